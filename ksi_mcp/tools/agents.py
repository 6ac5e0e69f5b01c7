"""Agents: spawn, send, wait, look, end."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import Agent
from ksi_mcp.agents.roster import Delivery
from ksi_mcp.compositions.drafts import AgentDraft
from ksi_mcp.compositions.model import text_of
from ksi_mcp.compositions.resolve import Resolved
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import within
from ksi_mcp.routing.rules import RuleDraft
from ksi_mcp.routing.store import RuleFilter
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.routing import RuleView, RuleWants, draft_of
from ksi_mcp.tools.selecting import AgentRef, AgentWhere, Key, filter_of, message_text, select_living
from ksi_mcp.tools.specs import BudgetWants, LevelWants, spec_of
from ksi_mcp.tools.subscriptions import HearingLevel, check_routable
from ksi_mcp.tools.tool import Part, View, Views, tool
from ksi_mcp.tools.views import AgentView, BudgetView, EventView, HistoryView


class RoutingWants(Part):
    """Wiring that is made together with the agent, in one transaction."""

    parent: str | None = None
    rules: list[RuleWants] = Field(default_factory=list, max_length=50)
    subscription_level: HearingLevel | None = None
    routing_level: LevelWants | None = None
    modifiable: bool | None = None
    scope: str | None = None

    def rule(self, wants: RuleWants, agent: Agent, *, default_scope: str | None) -> RuleDraft:
        """One of the rules, made with that agent; the scope `agent` is the new one here."""
        own = f"agent:{agent.agent_id}"
        scope = own if self.scope == "agent" else self.scope or default_scope
        draft = draft_of(wants, own=agent, default_scope=scope)
        return draft if self.modifiable is None else replace(draft, modifiable=draft.modifiable and self.modifiable)


class Spawned(AgentView):
    """The new agent, the rules made with it, and its first turn if a message came along."""

    rules: list[str] | None = None
    turn: str | None = None
    note: str | None = None


class Gone(View):
    """Agents that ended (or would end), and how many of their turns were cancelled; `draining` end with their last."""

    agents: list[str]
    cancelled_turns: int
    draining: list[str] | None = None
    dry_run: bool | None = None


_SHOWN: Final = Views(AgentView.of, size=256)


class AgentPage(View):
    """Agents in the order of their making."""

    agents: list[AgentView]
    cursor: str | None = None


class AgentDetail(AgentView):
    """An agent with what was asked to be included."""

    system: str
    budget: BudgetView | None = None
    history: list[HistoryView] | None = None
    rules: list[RuleView] | None = None
    events: list[EventView] | None = None


@tool(
    "agent_spawn",
    needs="spawn_agents",
    effects="writes",
    title="Spawn an agent",
    aliases={"component": "composition", "profile": "composition", "agent_id": "name", "task": "message"},
    commands=("agent:spawn_with_routing",),
)
async def agent_spawn(
    call: Call,
    *,
    composition: Annotated[str | None, Field(description="profile to make it from; or give prompt")] = None,
    prompt: Annotated[str | None, Field(description="its system prompt", max_length=200_000)] = None,
    name: str | None = None,
    message: Annotated[str | dict[str, Any] | None, Field(description="first message; becomes a turn")] = None,
    model: Annotated[str | None, Field(max_length=200)] = None,
    provider: str | None = None,
    vars: dict[str, Any] | None = None,
    capabilities: list[str] | None = None,
    budget: BudgetWants | None = None,
    parent: str | None = None,
    orchestration: str | None = None,
    routing: Annotated[RoutingWants | None, Field(description="rules made with it")] = None,
    idempotency_key: Key = None,
) -> Spawned:
    """Make one agent: a durable conversation with a role. Returns its id.

    orchestration_start makes those of a pattern. A child gets no capability its spawner lacks. A taken name
    is an error.
    """
    if composition is None and prompt is None:
        raise Invalid(
            "agent_spawn needs composition or prompt", hint="composition_discover(type='agent') lists profiles"
        )
    draft = AgentDraft(role="agent", prompt=prompt)
    reference = resolved = None
    if composition is not None:
        # Published calls write `components/personas/analyst`: names are unique, so the last part says it all.
        resolved = await call.svc.library.resolve(composition.rpartition("/")[2], vars or {})
        draft = _profile(resolved)
        reference = resolved.reference
        if prompt is not None:
            draft = replace(draft, prompt=f"{draft.prompt}\n\n{prompt}" if draft.prompt else prompt)
    elif vars:
        raise Invalid("vars go with a composition", hint="write the values into the prompt")
    base = name or (resolved.name if resolved is not None else "agent")
    spec = await spec_of(
        call.svc,
        draft,
        name=base,
        composition=reference,
        model=model,
        provider=provider,
        capabilities=None if capabilities is None else frozenset(capabilities),
        limits=None if budget is None else budget.limits(),
        routing_level=routing.routing_level if routing else None,
        subscription_level=routing.subscription_level if routing else None,
    )
    wanted_parent = parent or (routing.parent if routing else None)
    if wanted_parent == "self":
        wanted_parent = call.ctx.actor.agent_id

    def work(tx: Tx) -> Spawned:
        roster, ctx = call.svc.roster, call.ctx
        if routing is not None and (routing.rules or routing.subscription_level is not None):
            reach.require(tx, ctx, "routing_control", action="agent_spawn with routing")
        made = replace(spec, orchestration_id=orchestration)
        if wanted_parent is not None:
            above = reach.find(tx, ctx, wanted_parent)
            made = replace(made, parent_id=above.agent_id, orchestration_id=orchestration or above.orchestration_id)
        elif ctx.actor.kind == "agent" and orchestration is None:
            made = replace(made, orchestration_id=reach.grants(tx, ctx).orchestration_id)
        if name is None:
            made = replace(made, name=roster.free_name(tx, base, made.orchestration_id))
        if capabilities is None and draft.capabilities is None:
            # Nobody asked for them: the defaults are cut to what the spawner and the parent hold, not refused.
            held = reach.grants(tx, ctx).capabilities
            made = replace(made, capabilities=made.capabilities if held is None else made.capabilities & held)
            if made.parent_id is not None:
                made = replace(made, capabilities=made.capabilities & roster.get(tx, made.parent_id).capabilities)
            if "routing_control" not in made.capabilities and (routing is None or routing.routing_level is None):
                made = replace(made, routing_level=None)
        if resolved is not None:
            call.svc.library.remember(tx, resolved)
        agent = roster.spawn(tx, ctx, made)
        inside = within(ctx, agent.orchestration_id)
        if routing is not None and routing.subscription_level is not None:
            check_routable(tx, inside, agent)
        # An agent's rules live with the agent that made them; the operator's live with the new agent.
        scope = None if ctx.actor.kind == "agent" else f"agent:{agent.agent_id}"
        drafts = [routing.rule(rule, agent, default_scope=scope) for rule in routing.rules] if routing else []
        rules = [call.svc.router.add_rule(tx, inside, draft).rule_id for draft in drafts]
        turn = roster.send(tx, inside, agent, message_text(message), Delivery()) if message is not None else None
        view = AgentView.of(roster.get(tx, agent.agent_id))
        note = call.svc.registry.note(agent.provider)
        return Spawned(**view.model_dump(), rules=list(rules) or None, turn=turn.turn_id if turn else None, note=note)

    return await call.commit(work, key=idempotency_key, again=Spawned)


@tool("agent_list", needs="base", effects="reads", title="List agents", idempotent=True)
async def agent_list(
    call: Call,
    *,
    filter: Annotated[AgentWhere | None, Field(description="all given must fit")] = None,
    limit: Annotated[int, Field(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> AgentPage:
    """List agents with status, model, capabilities and pending turns. Ended ones only with status='terminated'."""

    def work(tx: Tx) -> AgentPage:
        wanted = filter_of(filter)
        found, following = call.svc.roster.page(tx, call.ctx, wanted, limit=limit, cursor=cursor)
        return AgentPage(agents=_SHOWN.of(found), cursor=following)

    return await call.read(work)


@tool(
    "agent_get",
    needs="base",
    effects="reads",
    title="Look at one agent",
    idempotent=True,
    aliases={"agent_id": "agent"},
)
async def agent_get(
    call: Call,
    *,
    agent: AgentRef,
    include: Annotated[list[Literal["history", "rules", "budget", "events"]] | None, Field(max_length=4)] = None,
) -> AgentDetail:
    """Return one agent: its prompt, and on request its history, rules, budget and newest events."""
    wanted = set(include or ())

    def work(tx: Tx) -> AgentDetail:
        found = reach.find(tx, call.ctx, agent)
        detail = AgentDetail(**AgentView.of(found).model_dump(), system=found.system[:8_000])
        more: dict[str, Any] = {}
        if "history" in wanted:
            more["history"] = [HistoryView.of(past) for past in call.svc.roster.history(tx, found, limit=10)]
        if "budget" in wanted:
            more["budget"] = BudgetView.of(call.svc.ledger.account(tx, found.agent_id))
        if "rules" in wanted:
            wanted_rules = RuleFilter(target=f"agent:{found.agent_id}")
            page = call.svc.router.query_rules(tx, call.ctx, wanted_rules, limit=50)
            more["rules"] = [RuleView.of(rule) for rule in page.rules]
        return detail.model_copy(update=more)

    detail = await call.read(work)
    if "events" in wanted:
        about = EventFilter(
            agent_id=detail.agent, visible_to=await call.read(lambda tx: reach.visible_scopes(tx, call.ctx))
        )
        events = await call.svc.journal.query(about, limit=20)
        detail = detail.model_copy(update={"events": [EventView.of(event) for event in events.events]})
    return detail


@tool(
    "agent_terminate",
    needs="spawn_agents",
    effects="destroys",
    title="End agents",
    idempotent=True,
    aliases={"agent_id": "agent"},
)
async def agent_terminate(
    call: Call,
    *,
    agent: AgentRef | None = None,
    filter: AgentWhere | None = None,
    mode: Literal["now", "drain"] = "now",
    reason: str | None = None,
    dry_run: bool = False,
) -> Gone:
    """End an agent, or all that fit: waiting turns are cancelled (drain: done first), their rules end.

    History stays readable. orchestration_complete ends a whole run.
    """
    if (agent is None) == (filter is None):
        raise Invalid("give agent or filter, one of them")
    why = (reason or "terminated on request")[:500]

    def select(tx: Tx) -> list[Agent]:
        if agent is not None:
            return [reach.find_below(tx, call.ctx, agent, action="end")]
        return [reach.find_below(tx, call.ctx, one.agent_id, action="end") for one in select_living(tx, call, filter)]

    def work(tx: Tx) -> Gone:
        found = select(tx)
        if mode == "drain":
            living = [one for one in found if one.life == "active"]
            ended = [one for one in living if call.svc.supervisor.drain(tx, call.ctx, one, reason=why)]
            left: list[str] = [one.agent_id for one in living if one not in ended]
            return Gone(
                agents=[one.agent_id for one in found if one.agent_id not in left], cancelled_turns=0, draining=left
            )
        cancelled = [turn for one in found for turn in call.svc.conductor.end_agent(tx, call.ctx, one, reason=why)]
        return Gone(agents=[one.agent_id for one in found], cancelled_turns=len(cancelled))

    def imagine(tx: Tx) -> Gone:
        found = select(tx)
        if mode == "drain":
            left: list[str] = [one.agent_id for one in found if one.life == "active" and one.pending]
            ends: list[str] = [one.agent_id for one in found if one.agent_id not in left]
            return Gone(agents=ends, cancelled_turns=0, draining=left, dry_run=True)
        return Gone(
            agents=[one.agent_id for one in found], cancelled_turns=sum(one.pending for one in found), dry_run=True
        )

    if dry_run:
        return await call.read(imagine)
    return await call.commit(work)


def _profile(resolved: Resolved) -> AgentDraft:
    """What an agent is made from: a profile, or a component whose text becomes its prompt."""
    if resolved.type == "agent" and resolved.agents:
        return resolved.agents[0]
    if resolved.type == "component" and (text := text_of(resolved.document)):
        return AgentDraft(role=resolved.name, prompt=text)
    raise Invalid(
        f"composition {resolved.name!r} is of type {resolved.type!r}, not an agent",
        hint="start a pattern with orchestration_start",
    )


TOOLS = (
    agent_spawn,
    agent_list,
    agent_terminate,
    agent_get,
)
