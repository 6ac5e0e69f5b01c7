"""Agents: spawn, send, wait, look, end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import Agent
from ksi_mcp.agents.roster import AgentFilter, Delivery
from ksi_mcp.compositions.drafts import AgentDraft
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import within
from ksi_mcp.queues.model import OpClass
from ksi_mcp.routing.store import RuleFilter
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.events import check_emittable
from ksi_mcp.tools.routing import RuleView, RuleWants, draft_of
from ksi_mcp.tools.specs import BudgetWants, spec_of
from ksi_mcp.tools.tool import Part, View, tool
from ksi_mcp.tools.views import AgentView, BudgetView, EventView, HistoryView, TurnView
from ksi_mcp.tools.waiting import MAX_WAIT_S, Gathered, gather

AgentRef = Annotated[str, Field(description="agent id or name", min_length=1, max_length=100)]
Key = Annotated[str | None, Field(description="repeat a call with the same key to get the first result", max_length=200)]


class RoutingWants(Part):
    """Wiring that is made together with the agent, in one transaction."""

    parent: str | None = None
    rules: list[RuleWants] = Field(default_factory=list, max_length=50)


class Spawned(AgentView):
    """The new agent, the rules made with it, and its first turn if a message came along."""

    rules: list[str] | None = None
    turn: str | None = None


class Gone(View):
    """Agents that ended (or would end), and how many of their turns were cancelled."""

    agents: list[str]
    cancelled_turns: int
    dry_run: bool | None = None


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


class History(View):
    """The newest finished turns, oldest first."""

    agent: str
    name: str
    turns: list[HistoryView]


class Broadcast(View):
    """The turns made, one an agent."""

    turns: list[TurnView]


class AgentWhere(Part):
    """Which agents; all given fields must fit."""

    orchestration: str | None = None
    parent: str | None = None
    composition: str | None = None
    status: Literal["idle", "busy", "active", "terminated", "failed"] | None = None
    capabilities: list[str] = Field(default_factory=list, max_length=20)


def _message(value: str | dict[str, Any]) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


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
    model: str | None = None,
    provider: str | None = None,
    vars: dict[str, Any] | None = None,  # noqa: A002  the published name
    capabilities: list[str] | None = None,
    budget: BudgetWants | None = None,
    parent: str | None = None,
    orchestration: str | None = None,
    routing: Annotated[RoutingWants | None, Field(description="rules made with it")] = None,
    idempotency_key: Key = None,
) -> Spawned:
    """Make an agent: a durable conversation with a role. Returns its id.

    Use for each role of a pattern. Not for a one-off question to an agent you have (agent_send). A child cannot hold
    more capabilities than its spawner. A taken name is an error.
    """
    if composition is None and prompt is None:
        raise Invalid("agent_spawn needs composition or prompt", hint="composition_discover(type='agent') lists profiles")
    draft = AgentDraft(role="agent", prompt=prompt)
    reference = resolved = None
    if composition is not None:
        resolved = await call.svc.library.resolve(composition, vars or {})
        if resolved.type != "agent" or not resolved.agents:
            raise Invalid(
                f"composition {resolved.name!r} is of type {resolved.type!r}, not an agent",
                hint="start a pattern with orchestration_start",
            )
        draft = resolved.agents[0]
        reference = resolved.reference
        if prompt is not None:
            draft = replace(draft, prompt=f"{draft.prompt}\n\n{prompt}" if draft.prompt else prompt)
    elif vars:
        raise Invalid("vars go with a composition", hint="write the values into the prompt")
    base = name or (resolved.name if resolved is not None else "agent")
    spec = spec_of(
        call.svc,
        draft,
        name=base,
        composition=reference,
        model=model,
        provider=provider,
        capabilities=None if capabilities is None else frozenset(capabilities),
        limits=None if budget is None else budget.limits(),
    )
    wanted_parent = parent or (routing.parent if routing else None)

    def work(tx: Tx) -> Spawned:
        roster, ctx = call.svc.roster, call.ctx
        made = replace(spec, orchestration_id=orchestration)
        if wanted_parent is not None:
            above = reach.find(tx, ctx, wanted_parent)
            made = replace(made, parent_id=above.agent_id, orchestration_id=orchestration or above.orchestration_id)
        elif ctx.actor.kind == "agent" and orchestration is None:
            made = replace(made, orchestration_id=reach.grants(tx, ctx).orchestration_id)
        if name is None:
            made = replace(made, name=roster.free_name(tx, base, made.orchestration_id))
        if resolved is not None:
            call.svc.library.remember(tx, resolved)
        agent = roster.spawn(tx, ctx, made)
        inside = within(ctx, agent.orchestration_id)
        rules = [
            call.svc.router.add_rule(
                tx, inside, draft_of(rule, own=agent, default_scope=f"agent:{agent.agent_id}")
            ).rule_id
            for rule in (routing.rules if routing else ())
        ]
        turn = roster.send(tx, inside, agent, _message(message), Delivery()) if message is not None else None
        view = AgentView.of(roster.get(tx, agent.agent_id))
        return Spawned(**view.model_dump(), rules=list(rules) or None, turn=turn.turn_id if turn else None)

    return await call.commit(work, key=idempotency_key, again=Spawned)


@tool(
    "agent_send",
    needs="messaging",
    effects="writes",
    title="Send a message to an agent",
    waits=True,
    aliases={"agent_id": "agent", "to": "agent", "target_agent": "agent", "prompt": "message", "content": "message"},
    commands=("agent:send_message", "completion:async"),
)
async def agent_send(
    call: Call,
    *,
    agent: AgentRef,
    message: str | dict[str, Any],
    wait_s: Annotated[float, Field(description="also wait so long for the reply", ge=0, le=MAX_WAIT_S)] = 0,
    reply_event: Annotated[str | None, Field(description="event to emit with the reply")] = None,
    timeout_s: Annotated[float | None, Field(description="for the model call", gt=0, le=3600)] = None,
    op_class: OpClass = "analysis",
    idempotency_key: Key = None,
) -> TurnView:
    """Give an agent a message; it becomes a turn. Returns the turn id at once, or the reply if wait_s was enough.

    Then agent_wait(turns=[...]). Messages to one agent are answered in order; different agents work in parallel.
    """
    if reply_event is not None:
        check_emittable(call, reply_event)

    def work(tx: Tx) -> TurnView:
        found = reach.find(tx, call.ctx, agent)
        how = Delivery(reply_event=reply_event, timeout_s=timeout_s, op_class=op_class)
        return TurnView.of(call.svc.roster.send(tx, call.ctx, found, _message(message), how), found.name)

    sent = await call.commit(work, key=idempotency_key, again=TurnView)
    if wait_s <= 0:
        return sent
    gathered = await gather(call, turns=(sent.turn,), agents=(), timeout_s=wait_s, min_responses=1)
    return gathered.turns[0]


@tool("agent_broadcast", needs="messaging", effects="writes", title="Send one message to many agents")
async def agent_broadcast(
    call: Call,
    *,
    filter: AgentWhere,  # noqa: A002  the published name
    message: str | dict[str, Any],
    reply_event: str | None = None,
) -> Broadcast:
    """Give every living agent that fits the filter the same message, in one transaction. Returns a turn each."""
    if reply_event is not None:
        check_emittable(call, reply_event)

    def work(tx: Tx) -> Broadcast:
        found = _select(tx, call, filter)
        sent = [
            TurnView.of(
                call.svc.roster.send(tx, call.ctx, one, _message(message), Delivery(reply_event=reply_event)), one.name
            )
            for one in found
            if one.agent_id != call.ctx.actor.agent_id
        ]
        if not sent:
            raise Invalid("no living agent fits the filter", hint="agent_list shows who is there")
        return Broadcast(turns=sent)

    return await call.commit(work)


@tool("agent_wait", needs="messaging", effects="reads", title="Wait for replies", waits=True, aliases={"timeout": "timeout_s"})
async def agent_wait(
    call: Call,
    *,
    turns: Annotated[list[str] | None, Field(description="turn ids", max_length=1000)] = None,
    agents: Annotated[list[str] | None, Field(description="or agents: their newest turns", max_length=1000)] = None,
    timeout_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S)] = 30,
    min_responses: Annotated[int | None, Field(description="enough; default all", ge=1)] = None,
    collect_partial: Annotated[bool, Field(description="texts of those not done too")] = True,
) -> Gathered:
    """Wait until turns have ended (GATHER). Returns each turn's reply and a census {asked, ok, failed, ..., pending}.

    Running out of time is not an error: call again with the same ids while pending > 0; nothing is lost or repeated.
    """
    if not turns and not agents:
        raise Invalid("agent_wait needs turns or agents", hint="agent_send returned the turn ids")
    return await gather(
        call,
        turns=tuple(turns or ()),
        agents=tuple(agents or ()),
        timeout_s=timeout_s,
        min_responses=min_responses,
        collect_partial=collect_partial,
    )


@tool("agent_list", needs="base", effects="reads", title="List agents", idempotent=True)
async def agent_list(
    call: Call,
    *,
    filter: Annotated[AgentWhere | None, Field(description="all given must fit")] = None,  # noqa: A002
    limit: Annotated[int, Field(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> AgentPage:
    """List agents with status, model, capabilities and pending turns. Ended ones only with status='terminated'."""

    def work(tx: Tx) -> AgentPage:
        wanted = _filter(filter)
        found, following = call.svc.roster.page(tx, call.ctx, wanted, limit=limit, cursor=cursor)
        return AgentPage(agents=[AgentView.of(one) for one in found], cursor=following)

    return await call.read(work)


@tool("agent_get", needs="base", effects="reads", title="Look at one agent", idempotent=True, aliases={"agent_id": "agent"})
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
        about = EventFilter(agent_id=detail.agent, visible_to=await call.read(lambda tx: reach.visible_scopes(tx, call.ctx)))
        events = await call.svc.journal.query(about, limit=20)
        detail = detail.model_copy(update={"events": [EventView.of(event) for event in events.events]})
    return detail


@tool("agent_history", needs="base", effects="reads", title="Read a conversation", idempotent=True, aliases={"agent_id": "agent"})
async def agent_history(call: Call, *, agent: AgentRef, limit: Annotated[int, Field(ge=1, le=100)] = 10) -> History:
    """Return the newest finished turns of an agent, oldest first: prompt, tools used, reply."""

    def work(tx: Tx) -> History:
        found = reach.find(tx, call.ctx, agent)
        turns = [HistoryView.of(past) for past in call.svc.roster.history(tx, found, limit=limit)]
        return History(agent=found.agent_id, name=found.name, turns=turns)

    return await call.read(work)


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
    filter: AgentWhere | None = None,  # noqa: A002
    reason: str = "terminated on request",
    dry_run: bool = False,
) -> Gone:
    """End an agent, or all that fit a filter: their waiting turns are cancelled, their rules end, names become free.

    History stays readable. Ending one that has ended is no error. orchestration_complete ends a whole run.
    """
    if (agent is None) == (filter is None):
        raise Invalid("give agent or filter, one of them")

    def select(tx: Tx) -> list[Agent]:
        if agent is not None:
            return [reach.find_below(tx, call.ctx, agent, action="end")]
        return [reach.find_below(tx, call.ctx, one.agent_id, action="end") for one in _select(tx, call, filter)]

    def work(tx: Tx) -> Gone:
        found = select(tx)
        cancelled = [
            turn for one in found for turn in call.svc.conductor.end_agent(tx, call.ctx, one, reason=reason[:500])
        ]
        return Gone(agents=[one.agent_id for one in found], cancelled_turns=len(cancelled))

    def imagine(tx: Tx) -> Gone:
        found = select(tx)
        return Gone(agents=[one.agent_id for one in found], cancelled_turns=sum(one.pending for one in found), dry_run=True)

    if dry_run:
        return await call.read(imagine)
    return await call.commit(work)


def _filter(where: AgentWhere | None) -> AgentFilter:
    if where is None:
        return AgentFilter(status="active")
    return AgentFilter(
        orchestration_id=where.orchestration,
        parent_id=where.parent,
        composition=where.composition,
        status=where.status or "active",
        capabilities=tuple(where.capabilities),
    )


def _select(tx: Tx, call: Call, where: AgentWhere | None) -> list[Agent]:
    """Every living agent that fits, page by page."""
    if where is None or where == AgentWhere():
        raise Invalid("an empty filter would mean every agent", hint="name an orchestration, parent, composition or status")
    found: list[Agent] = []
    cursor: str | None = None
    while True:
        page, cursor = call.svc.roster.page(tx, call.ctx, _filter(where), limit=500, cursor=cursor)
        found += [one for one in page if one.life == "active"]
        if cursor is None:
            return found


TOOLS = (
    agent_spawn,
    agent_send,
    agent_wait,
    agent_list,
    agent_terminate,
    agent_get,
    agent_history,
    agent_broadcast,
)
