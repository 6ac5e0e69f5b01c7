"""One agent takes the place of another: its name, role, rights, limits, children and all it had not finished.

Every function runs inside the caller's transaction. What was said stays with the old agent; the new one begins
a conversation of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ksi_mcp.agents.model import Agent, AgentSpec
from ksi_mcp.agents.roster import Roster
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict
from ksi_mcp.events.journal import Recorder
from ksi_mcp.permissions import Context, RoutingLevel, lower_level, system_context, within
from ksi_mcp.queues.moving import share_suspension

MAX_ROW_OF_SUCCESSORS = 1_000


def replace_agent(tx: Tx, ctx: Context, roster: Roster, journal: Recorder, old: Agent, *, reason: str) -> Agent:
    """End `old` as failed and make its successor; its turns and rules are still to be handed on.

    Limits: an account that has some stays where it is, and the successor's hangs below it, so what was spent
    under a limit stays spent. One without limits has nothing to hand on; the successor's stands beside it.

    Raises:
        Conflict: `old`, or the run it is part of, has ended.
    """
    if tx.run("agents.end", {"agent_id": old.agent_id, "status": "failed", "now_ms": tx.now_ms}) == 0:
        raise Conflict(f"agent {old.name!r} is {old.life}", hint="only a living agent can be replaced")
    server = within(system_context(ctx), old.orchestration_id)
    parent = None if old.parent_id is None else heir_of(tx, roster, roster.get(tx, old.parent_id))
    capabilities = old.capabilities if parent is None else old.capabilities & parent.capabilities
    spec = AgentSpec(
        name=old.name,
        system=old.system,
        provider=old.provider,
        model=old.model,
        capabilities=capabilities,
        settings=old.settings,
        composition=old.composition,
        parent_id=None if parent is None else parent.agent_id,
        orchestration_id=old.orchestration_id,
        routing_level=_level(old, parent, capabilities),
        subscription_level=old.subscription_level,
        error_level=old.error_level,
        wake=old.wake,
    )
    new = roster.spawn(tx, server, spec)
    place = {"old": old.agent_id, "new": new.agent_id}
    tx.run("agents.stand_in", {**place, "respawns": old.respawns + 1, "draining": int(old.draining)})
    account = tx.one("agents.bounded", {"account_id": old.agent_id})
    if account is not None:
        above = old.agent_id if account["bounded"] else account["parent_id"]
        tx.run("agents.account_under", {"account_id": new.agent_id, "parent_id": above})
    share_suspension(tx, old.agent_id, new.agent_id)
    for name in (
        "agents.adopt",
        "agents.adopt_runs",
        "agents.adopt_delayed",
        "agents.adopt_keys",
        "agents.adopt_heard",
    ):
        tx.run(name, place)
    journal.record(
        tx,
        "agent:failed",
        {"agent": old.agent_id, "name": old.name, "reason": reason, "successor": new.agent_id},
        server,
        agent_id=old.agent_id,
    )
    return roster.get(tx, new.agent_id)


def _level(old: Agent, parent: Agent | None, capabilities: frozenset[str]) -> RoutingLevel:
    if "routing_control" not in capabilities:
        return "none"
    return old.routing_level if parent is None else lower_level(old.routing_level, parent.routing_level)


def hand_on_injections(tx: Tx, old: Agent, new: Agent, turn_ids: Sequence[str]) -> None:
    """What was put into the old conversation and not said yet goes with the turns that moved."""
    values = {"old": old.agent_id, "new": new.agent_id, "turn_ids": json.dumps(list(turn_ids))}
    tx.run("agents.adopt_injections", values)


def heir_of(tx: Tx, roster: Roster, agent: Agent) -> Agent | None:
    """Who stands in an agent's place now: itself while it lives, else its newest successor, or nobody."""
    for _ in range(MAX_ROW_OF_SUCCESSORS):
        if agent.life == "active":
            return agent
        if agent.successor_id is None:
            return None
        agent = roster.get(tx, agent.successor_id)
    return None


def barren_row(tx: Tx, agent: Agent, *, most: int) -> int:
    """How many times in a row this place was taken over without one finished turn; counted up to `most`."""
    row = tx.one("agents.barren", {"agent_id": agent.agent_id, "most": most})
    return 0 if row is None else int(row["replaced"])


def least_busy_peer(tx: Tx, roster: Roster, agent: Agent) -> Agent | None:
    """The living agent of the same composition and run that has least to do, if there is another one."""
    if agent.composition is None:
        return None
    values = {"composition": agent.composition, "orchestration_id": agent.orchestration_id}
    row = tx.one("agents.least_busy_peer", {**values, "agent_id": agent.agent_id})
    return None if row is None else roster.get(tx, row["agent_id"])
