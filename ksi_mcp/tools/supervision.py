"""Agents under way: changed, replaced, relieved of what waits for them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.agents.levels import allowed_level
from ksi_mcp.agents.model import Agent, check_capabilities, check_within, encode_settings
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid, Refused
from ksi_mcp.permissions import RoutingLevel, lower_level, within
from ksi_mcp.queues import moving
from ksi_mcp.queues.moving import MAX_MOVED, TurnWhere
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.selecting import AgentRef
from ksi_mcp.tools.specs import LevelWants
from ksi_mcp.tools.subscriptions import HearingLevel, check_routable, subscribe
from ksi_mcp.tools.tool import Part, View, tool
from ksi_mcp.tools.views import AgentView

MAX_SHOWN = 200


class TurnFilter(Part):
    """Which waiting turns; all given must fit."""

    turns: list[str] | None = Field(default=None, max_length=1000, description="turn ids")
    sender: str | None = Field(default=None, max_length=100, description="operator, or agent:<id>")
    contains: str | None = Field(default=None, min_length=1, max_length=1000, description="words of the prompt")
    older_than_s: float | None = Field(default=None, ge=0, le=1_000_000_000)
    limit: int | None = Field(default=None, ge=1, le=MAX_MOVED, description="at most so many, those first in line")


class MovedView(View):
    """How many turns were moved, in order; `left_running` had been begun and stay."""

    source: str
    target: str
    moved: int
    left_running: int
    turns: list[str]


class Replaced(AgentView):
    """The new agent; `old` has ended, its unfinished turns and rules are the new one's."""

    old: str
    moved_turns: int
    rules: list[str]


class Updated(AgentView):
    """The agent as it is now; `cut` are agents below it that lost the rights it lost."""

    cut: list[str] | None = None


class SupervisionWants(Part):
    """What happens when a turn is lost for good, and how often for one prompt."""

    on_failure: Literal["none", "retry", "respawn", "redistribute", "escalate"]
    max: int = Field(default=2, ge=0, le=100)


@tool(
    "turn_move",
    needs="spawn_agents",
    effects="writes",
    title="Move waiting turns",
    aliases={"from": "source", "from_agent": "source", "to": "target", "to_agent": "target", "target_agent": "target"},
)
async def turn_move(call: Call, *, source: AgentRef, target: AgentRef, filter: TurnFilter | None = None) -> MovedView:
    """Move the waiting turns of one agent behind those of another, in order, all or none (REDISTRIBUTE).

    A turn that was begun stays. Both agents must be below the caller and in the same run; also called with from and to.
    """

    def work(tx: Tx) -> MovedView:
        giver = reach.find_below(tx, call.ctx, source, action="move turns of")
        taker = reach.find_below(tx, call.ctx, target, action="move turns to")
        _check_pair(giver, taker)
        where = filter or TurnFilter()
        moved = moving.move_waiting(
            tx,
            giver.agent_id,
            taker.agent_id,
            provider=taker.provider,
            where=TurnWhere(
                turn_ids=None if where.turns is None else tuple(where.turns),
                created_by=where.sender,
                contains=where.contains,
                before_ms=None if where.older_than_s is None else tx.now_ms - round(where.older_than_s * 1000),
                most=where.limit or MAX_MOVED,
            ),
        )
        facts = {"from": giver.agent_id, "to": taker.agent_id, "moved": len(moved.turn_ids)}
        call.svc.journal.record(
            tx,
            "turn:moved",
            {**facts, "left_running": moved.left_running, "turns": list(moved.turn_ids[:MAX_SHOWN])},
            within(call.ctx, giver.orchestration_id),
            agent_id=taker.agent_id,
        )
        return MovedView(
            source=giver.agent_id,
            target=taker.agent_id,
            moved=len(moved.turn_ids),
            left_running=moved.left_running,
            turns=list(moved.turn_ids[:MAX_SHOWN]),
        )

    return await call.commit(work)


@tool(
    "agent_respawn",
    needs="spawn_agents",
    effects="destroys",
    title="Replace an agent",
    aliases={"agent_id": "agent"},
)
async def agent_respawn(
    call: Call, *, agent: AgentRef, reason: Annotated[str, Field(max_length=2000)] = "respawned on request"
) -> Replaced:
    """Put a new agent of the same making into an agent's place: name, role, rights, limits, rules, children.

    It takes over the unfinished turns in order; one at work is stopped and goes on with the new agent. The old one
    has failed; its conversation stays readable, the new one begins its own. What was spent stays spent.
    """

    def work(tx: Tx) -> Replaced:
        found = reach.find_below(tx, call.ctx, agent, action="replace")
        if found.agent_id == call.ctx.actor.agent_id:
            raise Refused("an agent cannot replace itself", hint="ask whoever spawned it")
        done = call.svc.supervisor.respawn(tx, call.ctx, found, reason=reason)
        view = AgentView.of(done.new).model_dump()
        return Replaced(**view, old=done.old.agent_id, moved_turns=len(done.moved), rules=list(done.rules))

    return await call.commit(work)


@tool(
    "agent_update",
    needs="spawn_agents",
    effects="writes",
    title="Change an agent",
    idempotent=True,
    aliases={"agent_id": "agent"},
)
async def agent_update(
    call: Call,
    *,
    agent: AgentRef,
    model: Annotated[str | None, Field(min_length=1, max_length=200)] = None,
    provider: Annotated[str | None, Field(max_length=60)] = None,
    capabilities: Annotated[list[str] | None, Field(max_length=20, description="all that it is to hold")] = None,
    max_tokens: int | None = None,
    max_tool_rounds: int | None = None,
    effort: Annotated[str | None, Field(max_length=40)] = None,
    timeout_s: Annotated[float | None, Field(gt=0, le=3600)] = None,
    supervision: SupervisionWants | Literal["none", "retry", "respawn", "redistribute", "escalate"] | None = None,
    routing_level: LevelWants | None = None,
    subscription_level: HearingLevel | None = None,
    error_level: HearingLevel | None = None,
    wake: bool | None = None,
    reason: Annotated[str | None, Field(max_length=2000)] = None,
) -> Updated:
    """Change the model, rights or settings of a living agent; what is left out stays.

    Rights and levels count at once, never more than the caller and the agent's parent hold; whoever is below it loses
    what it loses. Model and settings count from the next turn that starts. A model may be a profile, which brings its
    provider and what stands in for it. See routing_update_subscription.
    """
    settings: dict[str, Any] = {
        "max_tokens": max_tokens,
        "max_tool_rounds": max_tool_rounds,
        "effort": effort,
        "timeout_s": timeout_s,
        "supervision": supervision.model_dump() if isinstance(supervision, SupervisionWants) else supervision,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    levels: dict[str, Any] = {"subscription_level": subscription_level, "error_level": error_level, "wake": wake}
    levels = {name: value for name, value in levels.items() if value is not None}
    rest = (model, provider, capabilities, routing_level)
    if not settings and not levels and all(value is None for value in rest):
        raise Invalid("agent_update was given nothing to change", hint="give model, capabilities or a setting")
    if provider is not None:
        call.svc.registry.check(provider)
    profile = None if model is None else await call.svc.registry.names.named(model)

    def work(tx: Tx) -> Updated:
        found = reach.find_below(tx, call.ctx, agent, action="change")
        if found.life != "active":
            raise Conflict(f"agent {found.name!r} is {found.life}", hint="nothing was changed")
        rights = found.capabilities if capabilities is None else _rights(tx, call, found, frozenset(capabilities))
        place, changed = provider or found.provider, dict(settings)
        if profile is not None:
            place = profile.provider(provider) or found.provider
            changed["fallback"] = profile.fallback(place)
        now = replace(
            found,
            model=model or found.model if profile is None else profile.model,
            provider=place,
            capabilities=rights,
            settings=replace(found.settings, **changed),
            routing_level=_level(tx, call, found, routing_level, rights),
            **levels,
        )
        _write(tx, now)
        if levels:
            check_routable(tx, call.ctx, found)
            subscribe(tx, call, found, now, reason=reason)
        if now.provider != found.provider:
            tx.run("agents.retarget", {"agent_id": found.agent_id, "provider": now.provider})
        same = (rights, now.routing_level) == (found.capabilities, found.routing_level)
        cut = [] if same else _cut_below(tx, call, now)
        asked = {"model": model, "provider": provider, "capabilities": capabilities, **settings}
        asked |= {"routing_level": routing_level, **levels}
        facts = {"agent": found.agent_id, "name": found.name, "cut": cut, "reason": reason}
        call.svc.journal.record(
            tx,
            "agent:updated",
            {**facts, "changed": {name: value for name, value in asked.items() if value is not None}},
            within(call.ctx, found.orchestration_id),
            agent_id=found.agent_id,
        )
        view = AgentView.of(call.svc.roster.get(tx, found.agent_id)).model_dump()
        return Updated(**view, cut=cut or None)

    return await call.commit(work)


def _check_pair(giver: Agent, taker: Agent) -> None:
    if giver.agent_id == taker.agent_id:
        raise Invalid("both are the same agent", hint="turns are moved from one agent to another")
    if taker.life != "active" or taker.draining:
        state = taker.life if taker.life != "active" else "draining"
        raise Conflict(f"agent {taker.name!r} is {state} and takes no turns", hint="choose another target")
    if giver.orchestration_id != taker.orchestration_id:
        where = f"{giver.orchestration_id or 'no run'} and {taker.orchestration_id or 'no run'}"
        raise Invalid(f"{giver.name!r} and {taker.name!r} are in {where}", hint="turns stay in their run")


def _rights(tx: Tx, call: Call, found: Agent, wanted: frozenset[str]) -> frozenset[str]:
    check_capabilities(wanted)
    held = reach.grants(tx, call.ctx).capabilities
    if held is not None:
        check_within(wanted, held, holder=str(call.ctx.actor))
    if found.parent_id is not None:
        parent = call.svc.roster.get(tx, found.parent_id)
        if parent.life == "active":
            check_within(wanted, parent.capabilities, holder=f"parent {parent.name!r}")
    return wanted


def _level(tx: Tx, call: Call, found: Agent, wanted: RoutingLevel | None, capabilities: frozenset[str]) -> RoutingLevel:
    """What is asked for; else what it has, as long as it may change routes; else what it would be made with."""
    if wanted is None and "routing_control" in found.capabilities & capabilities:
        return found.routing_level
    parent = None if found.parent_id is None else call.svc.roster.get(tx, found.parent_id)
    above = parent if parent is not None and parent.life == "active" else None
    return allowed_level(tx, call.ctx, wanted, capabilities=capabilities, parent=above)


def _cut_below(tx: Tx, call: Call, above: Agent) -> list[str]:
    """A child can never hold more than its spawner, also when its spawner comes to hold less."""
    cut: list[str] = []
    for row in tx.all("agents.offspring", {"agent_id": above.agent_id}):
        one = call.svc.roster.get(tx, row["agent_id"])
        rights = one.capabilities & above.capabilities
        level = lower_level(one.routing_level, above.routing_level) if "routing_control" in rights else "none"
        if (rights, level) != (one.capabilities, one.routing_level):
            _write(tx, replace(one, capabilities=rights, routing_level=level))
            cut.append(one.agent_id)
    return cut


def _write(tx: Tx, agent: Agent) -> None:
    tx.run(
        "agents.update",
        {
            "agent_id": agent.agent_id,
            "provider": agent.provider,
            "model": agent.model,
            "capabilities": json.dumps(sorted(agent.capabilities)),
            "settings": encode_settings(agent.settings),
        },
    )
    tx.run("agents.set_level", {"agent_id": agent.agent_id, "routing_level": agent.routing_level})


TOOLS = (turn_move, agent_respawn, agent_update)
