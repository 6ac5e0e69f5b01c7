"""Routing rules: add, change, end, look, explain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema, model_validator

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import Agent
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import Context
from ksi_mcp.routing.rules import Rule, RuleDraft
from ksi_mcp.routing.store import RuleFilter
from ksi_mcp.routing.targets import Mode
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.routing_explain import routing_explain
from ksi_mcp.tools.tool import Part, View, Views, tool
from ksi_mcp.tools.views import at


def published_rule(given: dict[str, Any]) -> dict[str, Any]:
    """A rule as KSI's documents write it, in our words: `target_agent`, `targets`, `ttl`, `pattern`."""
    rule = dict(given)
    for old, new in (("ttl", "ttl_s"), ("pattern", "source_pattern"), ("id", "rule_id"), ("from", "source_agent")):
        if old in rule and new not in rule:
            rule[new] = rule.pop(old)
    if "target_agent" in rule and "target" not in rule:
        name = rule.pop("target_agent")
        rule["target"] = name if str(name).startswith("agent:") else f"agent:{name}"
    if "targets" in rule and "target" not in rule:
        targets = rule.pop("targets")
        rule["target"] = targets[0] if isinstance(targets, list) and len(targets) == 1 else targets
    return rule


TargetWants = Annotated[
    str | list[str] | dict[Mode, list[str]],
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "object"}]}),
]


class RuleWants(Part):
    """As in routing_add_rule."""

    source_pattern: str = Field(description="event names: `*` a segment or part, `**` any number")
    target: TargetWants = Field(description="event name, agent:<id or name>, a list, or {mode: list}")
    condition: str | None = Field(default=None, description="e.g. data.score > 0.7 and source != 'operator'")
    mapping: dict[str, Any] | str | None = Field(
        default=None, description="e.g. {'task': '{{data.task_id}}'}; none: as is"
    )
    priority: int = Field(default=100, ge=0, le=10_000)
    ttl_s: float | None = Field(default=None, gt=0)
    source_agent: str | None = Field(default=None, description="whose events: id, name or glob")
    scope: str | None = Field(default=None, description="global, agent:<id> or orchestration:<id>: it ends with that")
    enabled: bool = True
    rule_id: str | None = None
    metadata: dict[str, Any] | None = None
    exclusive: bool = False
    rate: dict[str, Any] | None = Field(default=None, description="{count, per_s}")
    join: dict[str, Any] | None = Field(default=None, description="{all_of: [patterns], by, timeout_s}")
    modifiable: bool = True

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        return published_rule(given) if isinstance(given, dict) else given


def _named(target: Any, named: Callable[[str], str]) -> Any:
    """The same target, `self` in it replaced by the agent that is meant."""
    if isinstance(target, dict):
        return {mode: _named(inner, named) for mode, inner in target.items()}
    if isinstance(target, list):
        return [_named(inner, named) for inner in target]
    return named(target) if target.startswith("agent:") or target == "self" else target


def draft_of(wants: RuleWants, *, own: Agent | None = None, default_scope: str | None = None) -> RuleDraft:
    """As the router takes it; `self` as source or target is the agent the rule is made with."""

    def named(text: str) -> str:
        if own is not None and text in ("self", "agent:self", own.name, f"agent:{own.name}"):
            return f"agent:{own.agent_id}"
        return text

    return RuleDraft(
        source_pattern=wants.source_pattern,
        target=_named(wants.target, named),
        condition=wants.condition,
        mapping=wants.mapping,
        priority=wants.priority,
        ttl_s=wants.ttl_s,
        source_agent=None if wants.source_agent is None else named(wants.source_agent).removeprefix("agent:"),
        scope=wants.scope or default_scope,
        enabled=wants.enabled,
        metadata=wants.metadata or {},
        rule_id=wants.rule_id,
        exclusive=wants.exclusive,
        rate=wants.rate,
        join=wants.join,
        modifiable=wants.modifiable,
    )


class RuleView(View):
    """A rule of the table; `version` is the table version that last touched it."""

    rule_id: str
    source_pattern: str
    source_agent: str | None = None
    condition: str | None = None
    target: Any
    mapping: Any = None
    priority: int
    scope: str
    enabled: bool | None = None
    created_by: str
    version: int
    expires_at: str | None = None
    metadata: dict[str, Any] | None = None
    exclusive: bool | None = None
    rate: dict[str, Any] | None = None
    join: dict[str, Any] | None = None
    modifiable: bool | None = None
    frozen_until: str | None = None
    warning: str | None = None

    @classmethod
    def of(cls, rule: Rule) -> RuleView:
        """From the record."""
        return cls(
            rule_id=rule.rule_id,
            source_pattern=rule.source_pattern,
            source_agent=rule.source_agent,
            condition=rule.condition,
            target=rule.target.shown,
            mapping=rule.mapping,
            priority=rule.priority,
            scope=rule.scope,
            enabled=None if rule.enabled else False,
            created_by=rule.created_by,
            version=rule.since,
            exclusive=rule.exclusive or None,
            rate=None if rule.rate is None else rule.rate.shown,
            join=None if rule.join is None else rule.join.shown,
            modifiable=None if rule.modifiable else False,
            frozen_until=None if rule.frozen_until_ms is None else at(rule.frozen_until_ms),
            expires_at=None if rule.expires_at_ms is None else at(rule.expires_at_ms),
            metadata=dict(rule.metadata) or None,
        )


_SHOWN: Final = Views(RuleView.of, size=1_000)


class RulesView(View):
    """Living rules, in the order in which they fire."""

    rules: list[RuleView]
    cursor: str | None = None


class Deleted(View):
    """The rule that is gone."""

    deleted: str


@tool(
    "routing_add_rule",
    needs="routing_control",
    effects="writes",
    title="Add a routing rule",
    aliases={"ttl": "ttl_s", "pattern": "source_pattern"},
    convert=published_rule,
)
async def routing_add_rule(
    call: Call,
    *,
    source_pattern: Annotated[str, Field(description="`task:*` one segment or part; `a:**` any number")],
    target: Annotated[
        TargetWants, Field(description="event, agent:<id or name>, list, or {round_robin|least_busy|first_idle: list}")
    ],
    condition: Annotated[str | None, Field(description="e.g. data.score > 0.7 and source != 'operator'")] = None,
    mapping: Annotated[
        dict[str, Any] | str | None, Field(description="{'task':'{{data.id}}'}; default: data as is")
    ] = None,
    priority: Annotated[int, Field(ge=0, le=10_000)] = 100,
    ttl_s: Annotated[float | None, Field(gt=0)] = None,
    source_agent: Annotated[str | None, Field(description="only this agent's events: id, name, glob")] = None,
    scope: Annotated[str | None, Field(description="global | agent:<id> | orchestration:<id>; ends with it")] = None,
    enabled: bool = True,
    rule_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    reason: str | None = None,
    exclusive: bool = False,
    rate: Annotated[dict[str, Any] | None, Field(description="{count, per_s}")] = None,
    join: Annotated[dict[str, Any] | None, Field(description="{all_of: [patterns], by: template, timeout_s}")] = None,
    modifiable: Annotated[bool, Field(description="false: agents cannot change it, but its author")] = True,
) -> RuleView:
    """Send every event that matches, from now on, to an event name or an agent (which gets a turn). Returns the rule.

    Agents' results are events completion:result {agent, agent_name, text}. All matching rules fire, higher priority
    first. Try it with routing_explain.
    """
    notes = {**(metadata or {}), **({"reason": reason[:500]} if reason else {})}
    wants = RuleWants(
        source_pattern=source_pattern,
        target=target,
        condition=condition,
        mapping=mapping,
        priority=priority,
        ttl_s=ttl_s,
        source_agent=source_agent,
        scope=scope,
        enabled=enabled,
        rule_id=rule_id,
        metadata=notes or None,
        exclusive=exclusive,
        rate=rate,
        join=join,
        modifiable=modifiable,
    )
    draft = draft_of(wants)
    await call.svc.router.refresh()

    def work(tx: Tx) -> RuleView:
        rule = call.svc.router.add_rule(tx, call.ctx, draft)
        return RuleView.of(rule).model_copy(update={"warning": _meant(tx, call.ctx, rule)})

    return await call.commit(work)


def _meant(tx: Tx, ctx: Context, rule: Rule) -> str | None:
    """What to say of a target that is an event's name, and an agent's too: it would be sent to, and nobody woken."""
    for name in rule.target.events:
        if reach.is_living(tx, ctx, name):
            return f"{name} is taken as the name of an event; agent:{name} gives the agent of that name a turn"
    return None


@tool("routing_modify_rule", needs="routing_control", effects="writes", title="Change a routing rule", idempotent=True)
async def routing_modify_rule(
    call: Call,
    *,
    rule_id: str,
    updates: Annotated[dict[str, Any], Field(description="fields of routing_add_rule; null clears")],
    reason: str | None = None,
) -> RuleView:
    """Change fields of a rule, from now on. Returns the rule as it is then."""
    changes = published_rule(updates)
    await call.svc.router.refresh()

    def work(tx: Tx) -> RuleView:
        wanted = dict(changes)
        if reason is not None and changes:  # a reason alone changes nothing, and takes nothing away
            was = call.svc.router.query_rules(tx, call.ctx, RuleFilter(rule_id=rule_id), limit=1).rules
            notes = wanted.get("metadata", dict(was[0].metadata) if was else {})
            wanted["metadata"] = {**notes, "reason": reason[:500]} if isinstance(notes, dict) else notes
        return RuleView.of(call.svc.router.modify_rule(tx, call.ctx, rule_id, wanted))

    return await call.commit(work)


@tool("routing_delete_rule", needs="routing_control", effects="destroys", title="Delete a routing rule")
async def routing_delete_rule(call: Call, *, rule_id: str, reason: str | None = None) -> Deleted:
    """End a rule at once. Deliveries made by it stay made."""
    return await call.commit(
        lambda tx: Deleted(deleted=call.svc.router.delete_rule(tx, call.ctx, rule_id, reason).rule_id)
    )


@tool(
    "routing_query_rules",
    needs="base",
    effects="reads",
    title="List routing rules",
    idempotent=True,
    commands=("routing:query_routes",),
)
async def routing_query_rules(
    call: Call,
    *,
    filter: Annotated[
        dict[str, Any] | None,
        Field(
            description="event (heard name), source_pattern, source_agent, target, created_by, orchestration, enabled"
        ),
    ] = None,
    agent_scope: Annotated[str | None, Field(description="rules that live with this agent")] = None,
    limit: Annotated[int, Field(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> RulesView:
    """List living rules in the order in which they fire. filter={'event': 'task:new'}: who hears that event."""
    wanted = _filter(filter or {}, agent_scope)

    def work(tx: Tx) -> RulesView:
        page = call.svc.router.query_rules(tx, call.ctx, wanted, limit=limit, cursor=cursor)
        return RulesView(rules=_SHOWN.of(page.rules), cursor=page.cursor)

    return await call.read(work)


_FILTER_KEYS = {"orchestration": "orchestration_id", "pattern": "source_pattern", "target_agent": "target"}


def _filter(given: dict[str, Any], agent_scope: str | None) -> RuleFilter:
    known = set(RuleFilter.__slots__)
    fields = {_FILTER_KEYS.get(key, key): value for key, value in given.items()}
    if unknown := sorted(set(fields) - known):
        raise Invalid(f"unknown filter keys: {', '.join(unknown)[:200]}", hint=f"there are {', '.join(sorted(known))}")
    for key, value in fields.items():
        if not isinstance(value, bool if key == "enabled" else str):
            raise Invalid(f"filter {key} is {value!r:.60}", hint="true or false" if key == "enabled" else "a text")
    if "target_agent" in given:
        fields["target"] = f"agent:{given['target_agent']}"
    if agent_scope is not None:
        fields["scope"] = f"agent:{agent_scope.removeprefix('agent:')}"
    return RuleFilter(**fields)


TOOLS = (routing_add_rule, routing_modify_rule, routing_delete_rule, routing_query_rules, routing_explain)
