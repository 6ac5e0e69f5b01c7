"""Whom an actor can see and whom it can change, and what it may do: read inside the transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Final, assert_never

from ksi_mcp.agents.model import Agent, agent_of
from ksi_mcp.agents.servers import Servers, check_servers_within
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, NotFound, Refused
from ksi_mcp.events.patterns import shorten
from ksi_mcp.permissions import OPERATOR, Context, RoutingLevel

MAX_NAMESAKES: Final = 20
"""So many agents of one name are looked at: the living first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """What an actor holds at this moment. `capabilities` is None for those who hold everything.

    `routing_level` is what counts: without the capability routing_control it is `none`, whatever was once given.
    """

    capabilities: frozenset[str] | None
    orchestration_id: str | None
    routing_level: RoutingLevel = "global"


def grants(tx: Tx, ctx: Context) -> Grants:
    """Read what the actor holds.

    Raises:
        Refused: the actor is an agent that has ended.
    """
    if ctx.actor.kind != "agent":
        return Grants(capabilities=None, orchestration_id=ctx.orchestration_id)
    row = tx.one("agents.grants", {"agent_id": ctx.actor.agent_id})
    if row is None or row["status"] != "active":
        raise Refused(f"agent {ctx.actor.agent_id} is not active any more")
    capabilities = frozenset(json.loads(row["capabilities"]))
    return Grants(
        capabilities=capabilities,
        orchestration_id=row["orchestration_id"],
        routing_level=row["routing_level"] if "routing_control" in capabilities else "none",
    )


def has_ended(tx: Tx, agent_id: str) -> bool:
    """Whether nothing can be done as this agent any more."""
    row = tx.one("agents.grants", {"agent_id": agent_id})
    return row is None or row["status"] != "active"


def check_servers(tx: Tx, ctx: Context, wanted: Servers | None) -> None:
    """Other MCP servers are handed on by those who have them only; the operator has all that the configuration permits.

    Raises:
        Refused: the actor is an agent that has not got them.
    """
    if ctx.actor.kind == "agent" and wanted:
        row = tx.one("agents.one", {"agent_id": ctx.actor.agent_id})
        held = None if row is None else agent_of(row).settings.mcp_servers
        check_servers_within(wanted, held, holder=str(ctx.actor))


def require(tx: Tx, ctx: Context, capability: str, *, action: str) -> None:
    """Default is refuse.

    Raises:
        Refused: the actor does not hold `capability`.
    """
    held = grants(tx, ctx).capabilities
    if held is not None and capability not in held:
        raise Refused(
            f"{action} needs the capability {capability!r}, which {ctx.actor} does not hold",
            hint=f"it holds {', '.join(sorted(held)) or 'none'}",
        )


def family(tx: Tx, agent_id: str | None) -> frozenset[str]:
    """An agent, all that descend from it, and the agents of the runs that one of them started."""
    return frozenset(row["agent_id"] for row in tx.all("agents.family", {"agent_id": agent_id}))


def visible(tx: Tx, ctx: Context) -> frozenset[str] | None:
    """The agents the actor can see: its family and its run. None means all."""
    if ctx.actor.kind != "agent":
        return None
    held = grants(tx, ctx)
    seen = family(tx, ctx.actor.agent_id)
    if held.orchestration_id is not None:
        peers = tx.all("agents.peers", {"orchestration_id": held.orchestration_id})
        seen = seen.union(row["agent_id"] for row in peers)
    return seen


def routable(tx: Tx, ctx: Context) -> frozenset[str] | None:
    """The agents whose routes the actor may change. None means all."""
    held = grants(tx, ctx)
    match held.routing_level:
        case "global":
            return None
        case "none":
            return frozenset()
        case "self":
            return frozenset({str(ctx.actor.agent_id)})
        case "children":
            return family(tx, ctx.actor.agent_id)
        case "orchestration":
            return visible(tx, ctx)
    assert_never(held.routing_level)


def may_route(tx: Tx, ctx: Context, agent_id: str) -> bool:
    """Whether the actor may change the routes of that agent. Costs what lies above it, however many there are."""
    held = grants(tx, ctx)
    match held.routing_level:
        case "global":
            return True
        case "none":
            return False
        case "self":
            return agent_id == ctx.actor.agent_id
        case "children":
            return is_below(tx, agent_id, str(ctx.actor.agent_id))
        case "orchestration":
            return _in_sight(tx, ctx, agent_id)
    assert_never(held.routing_level)


def is_below(tx: Tx, agent_id: str, elder_id: str) -> bool:
    """Whether an agent is in the family of another; see `family`."""
    return tx.one("agents.is_below", {"agent_id": agent_id, "elder_id": elder_id}) is not None


def _in_sight(tx: Tx, ctx: Context, agent_id: str) -> bool:
    """Whether `visible` has that agent."""
    if ctx.actor.kind != "agent":
        return True
    row, run = tx.one("agents.grants", {"agent_id": agent_id}), grants(tx, ctx).orchestration_id
    if row is None:
        return False
    return (run is not None and row["orchestration_id"] == run) or is_below(tx, agent_id, str(ctx.actor.agent_id))


def visible_runs(tx: Tx, ctx: Context) -> frozenset[str] | None:
    """The runs the actor can see: its own and those its family started. None means all."""
    if ctx.actor.kind != "agent":
        return None
    own = grants(tx, ctx).orchestration_id
    rows = tx.all("agents.runs_started", {"family": json.dumps(sorted(family(tx, ctx.actor.agent_id)))})
    return frozenset(row["orchestration_id"] for row in rows) | ({own} if own is not None else frozenset())


def visible_scopes(tx: Tx, ctx: Context) -> frozenset[str] | None:
    """The agents and the runs whose events the actor may see. None means all."""
    seen, runs = visible(tx, ctx), visible_runs(tx, ctx)
    return None if seen is None or runs is None else seen | runs


def find(tx: Tx, ctx: Context, ref: str) -> Agent:
    """The agent with that id or name, if the actor can see it.

    Raises:
        NotFound: there is none, or none in reach.
        Invalid: several living agents have that name.
    """
    row = tx.one("agents.one", {"agent_id": ref}) if ref.startswith("a_") else None
    if row is None and ctx.orchestration_id is not None:  # most names are those of living agents of the same run
        living = tx.one("agents.live_name", {"orchestration_id": ctx.orchestration_id, "name": ref})
        row = None if living is None else tx.one("agents.one", {"agent_id": living["agent_id"]})
    if row is not None and _in_sight(tx, ctx, row["agent_id"]):
        return agent_of(row)
    rows = _named(tx, ctx, ref, ctx.orchestration_id)
    if not rows and ctx.orchestration_id is not None and ctx.actor.kind != "agent":
        rows = _named(tx, ctx, ref, None)
    alive = [agent for agent in rows if agent.life == "active"]
    if len(alive) > 1:
        listed = ", ".join(f"{agent.agent_id} (in {agent.orchestration_id or 'no orchestration'})" for agent in alive)
        raise Invalid(f"{len(alive)} agents are named {ref[:80]!r}", hint=f"say which by its id: {listed[:400]}")
    if not rows:
        seen = visible(tx, ctx)
        counted = tx.one("agents.counts", {"visible": None if seen is None else json.dumps(sorted(seen))})
        count = counted["agents"] if counted is not None else 0
        raise NotFound(f"unknown agent {ref[:80]!r}", hint=f"agent_list shows {count} agent{'' if count == 1 else 's'}")
    return (alive or rows)[0]


def is_living(tx: Tx, ctx: Context, name: str) -> bool:
    """Whether the actor can see a living agent of that name."""
    return any(agent.life == "active" for agent in _named(tx, ctx, name, ctx.orchestration_id))


def _named(tx: Tx, ctx: Context, name: str, orchestration_id: str | None) -> list[Agent]:
    """The agents of that name that the actor can see, the living before the dead."""
    values = {"name": name, "orchestration_id": orchestration_id, "limit": MAX_NAMESAKES}
    rows = tx.all("agents.by_name", {**values, "visible": None})
    if ctx.actor.kind == "agent":
        if len(rows) < MAX_NAMESAKES:  # all there are: to ask for each of them is less than to list whom one sees
            rows = [row for row in rows if _in_sight(tx, ctx, row["agent_id"])]
        else:
            rows = tx.all("agents.by_name", {**values, "visible": json.dumps(sorted(visible(tx, ctx) or ()))})
    return [agent_of(row) for row in rows]


def find_below(tx: Tx, ctx: Context, ref: str, *, action: str) -> Agent:
    """Like `find`, but only what the actor may change: itself and its descendants.

    Raises:
        Refused: the agent is in sight but not below the actor.
    """
    agent = find(tx, ctx, ref)
    if ctx.actor.kind == "agent" and not is_below(tx, agent.agent_id, str(ctx.actor.agent_id)):
        raise Refused(
            f"{ctx.actor} may not {action} {agent.name!r} ({agent.agent_id})",
            hint="an agent can only do that to itself and to agents it spawned",
        )
    return agent


def find_routable(tx: Tx, ctx: Context, ref: str, *, what: str = "the agent") -> Agent:
    """Like `find`, but only whom the actor may route; who may route everybody sees everybody here.

    An id that is out of sight was not misspelt: it is refused, and so audited, whether there is such an agent or not.

    Raises:
        Refused: the agent is beyond the actor's routing level.
        NotFound: no agent in sight has that name.
    """
    level = grants(tx, ctx).routing_level
    try:
        agent = find(tx, replace(ctx, actor=OPERATOR) if level == "global" else ctx, ref)
    except NotFound:
        if level == "global" or not ref.startswith("a_"):
            raise
        named = shorten(ref)
    else:
        if may_route(tx, ctx, agent.agent_id):
            return agent
        named = f"{agent.name!r} ({agent.agent_id})"
    raise Refused(
        f"{what} {named} is beyond the routing level {level!r} of {ctx.actor}",
        hint="it covers fewer agents; emit an event instead, or ask whoever is above both",
    )
