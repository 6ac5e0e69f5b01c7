"""Whom an actor can see and whom it can change, and what it may do: read inside the transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ksi_mcp.agents.model import Agent, agent_of
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, NotFound, Refused
from ksi_mcp.permissions import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """What an actor holds at this moment. `capabilities` is None for those who hold everything."""

    capabilities: frozenset[str] | None
    orchestration_id: str | None


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
    return Grants(capabilities=frozenset(json.loads(row["capabilities"])), orchestration_id=row["orchestration_id"])


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
    seen = visible(tx, ctx)
    row = tx.one("agents.one", {"agent_id": ref}) if ref.startswith("a_") else None
    if row is not None and (seen is None or row["agent_id"] in seen):
        return agent_of(row)
    named = {"name": ref, "visible": None if seen is None else json.dumps(sorted(seen))}
    rows = [agent_of(row) for row in tx.all("agents.by_name", {**named, "orchestration_id": ctx.orchestration_id})]
    if not rows and ctx.orchestration_id is not None and seen is None:
        rows = [agent_of(row) for row in tx.all("agents.by_name", {**named, "orchestration_id": None})]
    living = [agent for agent in rows if agent.life == "active"]
    if len(living) > 1:
        listed = ", ".join(f"{agent.agent_id} (in {agent.orchestration_id or 'no orchestration'})" for agent in living)
        raise Invalid(f"{len(living)} agents are named {ref[:80]!r}", hint=f"say which by its id: {listed[:400]}")
    if not rows:
        counted = tx.one("agents.counts", {"visible": None if seen is None else json.dumps(sorted(seen))})
        count = counted["agents"] if counted is not None else 0
        raise NotFound(f"unknown agent {ref[:80]!r}", hint=f"agent_list shows {count} agent{'' if count == 1 else 's'}")
    return (living or rows)[0]


def find_below(tx: Tx, ctx: Context, ref: str, *, action: str) -> Agent:
    """Like `find`, but only what the actor may change: itself and its descendants.

    Raises:
        Refused: the agent is in sight but not below the actor.
    """
    agent = find(tx, ctx, ref)
    if ctx.actor.kind == "agent" and agent.agent_id not in family(tx, ctx.actor.agent_id):
        raise Refused(
            f"{ctx.actor} may not {action} {agent.name!r} ({agent.agent_id})",
            hint="an agent can only do that to itself and to agents it spawned",
        )
    return agent
