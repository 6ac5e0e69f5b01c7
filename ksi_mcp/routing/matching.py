"""Why a rule fires for an event, or does not: the same answer for a delivery and for a dry run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ksi_mcp.errors import Invalid
from ksi_mcp.events.model import Event
from ksi_mcp.routing.conditions import ConditionError
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.joins import Join
from ksi_mcp.routing.rules import CompiledRule, Rule
from ksi_mcp.routing.targets import AGENT
from ksi_mcp.templates import MissingValue

Outcome = Literal[
    "fires",
    "collects",
    "excluded",
    "disabled",
    "expired",
    "other_orchestration",
    "other_agent",
    "condition_false",
    "condition_failed",
    "mapping_failed",
]
NameOf = Callable[[str], str | None]
"""The name of an agent, by its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What became of one rule whose pattern hears an event. `data` is the mapped payload when it fires.

    `collects`: it is a join, the event is one of its `parts`, and belongs to the collection `key`.
    """

    rule: Rule
    outcome: Outcome
    reason: str | None = None
    missing: str | None = None
    expression: str | None = None
    data: dict[str, Any] | None = None
    compiled: CompiledRule | None = None
    parts: tuple[int, ...] = ()
    key: str | None = None


def agent_of(event: Event) -> str | None:
    """The agent behind an event: the one that emitted it, or else the one it is about."""
    return event.source.removeprefix(AGENT) if event.source.startswith(AGENT) else event.agent_id


def scope_of(event: Event, *, now_ms: int) -> dict[str, Any]:
    """What conditions and mappings see of an event."""
    return {
        "event": event.name,
        "data": event.data,
        "source": event.source,
        "agent": agent_of(event),
        "now": now_ms,
        "$": event.data,
    }


def mapping_failed(rule: Rule, failure: Invalid) -> Match:
    """The match of a rule whose mapping could not be filled."""
    return _failed(rule, "mapping_failed", failure, None)


def judge(table: RuleTable, event: Event, *, now_ms: int, name_of: NameOf) -> Iterator[Match]:
    """What becomes of each rule whose pattern hears the event, in the order in which they fire."""
    scope = scope_of(event, now_ms=now_ms)
    for compiled in table.candidates(event.name):
        yield _judge(compiled, event, scope, name_of)


def _judge(compiled: CompiledRule, event: Event, scope: dict[str, Any], name_of: NameOf) -> Match:
    agent_id: str | None = scope["agent"]
    rule = compiled.rule
    if not rule.enabled:
        return Match(rule=rule, outcome="disabled", reason="the rule is disabled")
    if rule.expired(scope["now"]):
        return Match(rule=rule, outcome="expired", reason="its time to live is over")
    if compiled.broken is not None:
        return Match(rule=rule, outcome="condition_failed", reason=compiled.broken)
    if not _in_orchestration(rule, event):
        return Match(rule=rule, outcome="other_orchestration", reason=f"it hears only events of {rule.scope}")
    try:
        heard = compiled.source is None or compiled.source.hears(
            agent_id, lambda: name_of(agent_id) if agent_id else None, scope
        )
    except Invalid as failure:
        return _failed(rule, "condition_failed", failure, rule.source_agent)
    if not heard:
        reason = f"it hears only {rule.source_agent}, and this came from {agent_id or event.source}"
        return Match(rule=rule, outcome="other_agent", reason=reason)
    if compiled.condition is not None:
        try:
            holds = compiled.condition.evaluate(scope)
        except ConditionError as failure:
            return Match(
                rule=rule,
                outcome="condition_failed",
                reason=failure.reason,
                missing=failure.missing,
                expression=rule.condition,
            )
        if not holds:
            return Match(
                rule=rule, outcome="condition_false", reason="its condition does not hold", expression=rule.condition
            )
    if rule.join is not None:
        return _collects(compiled, rule.join, event, scope, name_of)
    try:
        data = compiled.mapping.apply(scope)
    except Invalid as failure:
        return _failed(rule, "mapping_failed", failure, None)
    return Match(rule=rule, outcome="fires", data=data)


def _collects(compiled: CompiledRule, join: Join, event: Event, scope: dict[str, Any], name_of: NameOf) -> Match:
    rule, agent_id = compiled.rule, scope["agent"]
    fitting = [
        place
        for place, part in enumerate(join.parts)
        if part.fits(event.name, agent_id, lambda: name_of(agent_id) if agent_id else None)
    ]
    fitting.sort(key=lambda place: join.parts[place].breadth)
    if not fitting:
        listed = ", ".join(part.text for part in join.parts)
        return Match(rule=rule, outcome="condition_false", reason=f"it is none of what the join waits for: {listed}")
    try:
        key = join.key(scope)
    except Invalid as failure:
        return _failed(rule, "mapping_failed", failure, join.by)
    return Match(rule=rule, outcome="collects", data=event.data, compiled=compiled, parts=tuple(fitting), key=key)


def _failed(
    rule: Rule, outcome: Literal["condition_failed", "mapping_failed"], failure: Invalid, text: str | None
) -> Match:
    missing, expression = (failure.name, failure.template) if isinstance(failure, MissingValue) else (None, text)
    return Match(rule=rule, outcome=outcome, reason=failure.message, missing=missing, expression=expression)


def _in_orchestration(rule: Rule, event: Event) -> bool:
    # Two runs of one pattern have the same rules: each must hear its own events only. What the
    # operator or the server emits outside of any run is meant for whoever listens, unless it is about an
    # agent: what an agent outside of any run was told and answered is nobody else's.
    if not rule.scope.startswith("orchestration:"):
        return True
    if event.orchestration_id is None:
        return agent_of(event) is None
    return event.orchestration_id == rule.orchestration_id
