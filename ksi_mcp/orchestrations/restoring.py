"""Back to a checkpoint, in place: the run stands where it stood, and nothing that was bought since is bought again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ksi_mcp.agents import reach
from ksi_mcp.compositions import runs
from ksi_mcp.db import Tx
from ksi_mcp.errors import Refused
from ksi_mcp.events.journal import Recorder
from ksi_mcp.ids import TurnId, new_id
from ksi_mcp.orchestrations.checkpoints import Checkpoint, check_not_left
from ksi_mcp.orchestrations.model import ENDED, Orchestration
from ksi_mcp.orchestrations.snapshot import Snapshot, lane_state
from ksi_mcp.orchestrations.suspension import Suspension
from ksi_mcp.permissions import Context, lower_level, system_context, within
from ksi_mcp.queues.model import NEVER_MS
from ksi_mcp.routing.pausing import restore_joins, restore_rules

Stays = Callable[[str], bool]
"""Whether what a tool of that name does stays done, whatever becomes of the run."""

MAX_EFFECTS: Final = 50
_FAR: Final = 1 << 52
"""Further below zero than any number of a turn: a place to wait in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A tool call since the checkpoint whose effect stays."""

    turn_id: str
    agent: str
    tool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did. `left` turns came after the checkpoint, `put_back` had not ended by then."""

    orchestration_id: str
    left: int
    put_back: int
    reusable: int
    effects: tuple[Effect, ...]
    """At most 50 of them, the newest first."""
    effects_kept: int


class Restorer:
    """Puts a run back, in one transaction of the caller's.

    Turns that came after the checkpoint lose their place in the conversation; their rows stay. Turns that had not
    ended by then go back to their place in the lane, with the rounds they had; what they did since moves to a
    cancelled turn of its own. All answers of what is left are kept for the very same requests. Money stays spent.
    """

    def __init__(self, journal: Recorder, suspension: Suspension) -> None:
        self._journal = journal
        self._suspension = suspension

    def restore(
        self, tx: Tx, ctx: Context, run: Orchestration, checkpoint: Checkpoint, snapshot: Snapshot, *, stays: Stays
    ) -> Restored:
        """Put the run back; it is suspended then.

        Raises:
            Refused: an agent cannot put back the run that it is part of.
            Conflict: the checkpoint lies in a time line that was left.
        """
        if ctx.actor.kind == "agent" and reach.grants(tx, ctx).orchestration_id == run.orchestration_id:
            raise Refused(
                f"{ctx.actor} cannot put back the run that it is part of",
                hint="into='new' makes another run of the checkpoint; the operator can put this one back",
            )
        check_not_left(checkpoint)
        inside = within(ctx, run.orchestration_id)
        own = {"orchestration_id": run.orchestration_id, "now_ms": tx.now_ms}
        reason = f"the run went back to checkpoint {checkpoint.checkpoint_id}"
        tx.run("orchestrations.back_outbox", {**own, "last_event": snapshot.last_event})
        if run.state not in ENDED:
            self._suspension.suspend(tx, inside, run, mode="now")
        tighter = ctx.actor.kind == "agent"
        before = {row["agent_id"]: row for row in tx.all("orchestrations.take_agents", own)}
        self._end_newcomers(tx, inside, snapshot, own, reason)
        left, kept = self._turns(tx, inside, snapshot, own, reason=reason, stays=stays)
        for agent in snapshot.agents:
            self._agent(tx, agent, before.get(agent["agent_id"]), tighter=tighter)
        tails = {agent["agent_id"]: agent["tail"] for agent in snapshot.agents}
        for agent_id, row in before.items():
            tx.run("orchestrations.back_session", {"session_id": agent_id, "tail": tails.get(agent_id, row["tail"])})
            # Does something only where the head of then was moved out of the run.
            tx.run("queues.promote", {"session_id": agent_id, "now_ms": tx.now_ms, "held": 1})
        limits = {**snapshot.account, "account_id": run.orchestration_id, "tighter": int(tighter)}
        tx.run("orchestrations.back_limits", limits)
        restore_rules(tx, self._journal, inside, run.orchestration_id, snapshot.rules, reason=reason)
        restore_joins(tx, run.orchestration_id, snapshot.joins)
        tx.run("orchestrations.back_delayed", own)
        for delayed in snapshot.delayed:
            tx.run("orchestrations.put_delayed", {**delayed, "orchestration_id": run.orchestration_id})
        _injections(tx, snapshot, own, checkpoint.checkpoint_id)
        tx.run("orchestrations.back_heard", own)
        for heard in snapshot.heard:
            tx.run("orchestrations.put_heard", heard)
        tx.run("orchestrations.back_undelivered", {"events": json.dumps(snapshot.outbox)})
        tx.run("orchestrations.back_run", {**own, "draining": snapshot.draining})
        runs.forget(tx, run.orchestration_id)
        tx.run(
            "orchestrations.leave_checkpoints", {**own, "n": checkpoint.n, "checkpoint_id": checkpoint.checkpoint_id}
        )
        effects, effects_kept = _keep_effects(tx, snapshot, left, kept)
        values = {"orchestration_id": run.orchestration_id, "turn_ids": json.dumps(left)}
        reusable = tx.run("orchestrations.make_reusable", {**values, "last_call": -1, "rounds": "[]"})
        done = Restored(
            orchestration_id=run.orchestration_id,
            left=len(left),
            put_back=len(snapshot.turns),
            reusable=reusable,
            effects=effects,
            effects_kept=effects_kept,
        )
        record_restored(tx, self._journal, inside, checkpoint, done)
        return done

    # ------------------------------------------------------------------------------------ agents

    def _end_newcomers(self, tx: Tx, ctx: Context, snapshot: Snapshot, own: dict[str, Any], reason: str) -> None:
        agents = json.dumps([agent["agent_id"] for agent in snapshot.agents])
        for row in tx.all("orchestrations.back_end_agents", {**own, "agents": agents}):
            facts = {"agent": row["agent_id"], "name": row["name"], "reason": reason, "cancelled": 0}
            self._journal.record(tx, "agent:terminated", facts, ctx, agent_id=row["agent_id"], routable=False)

    def _agent(self, tx: Tx, agent: dict[str, Any], now: Any, *, tighter: bool) -> None:
        capabilities = set(json.loads(agent["capabilities"]))
        if tighter and now is not None:  # what was taken away since, an agent cannot give back by going back
            capabilities &= set(json.loads(now["capabilities"]))
            agent = {**agent, "routing_level": lower_level(agent["routing_level"], now["routing_level"])}
        tx.run("orchestrations.back_agent", {**agent, "capabilities": json.dumps(sorted(capabilities))})
        limits = {**agent, "account_id": agent["agent_id"], "tighter": int(tighter)}
        tx.run("orchestrations.back_limits", limits)

    # ------------------------------------------------------------------------------------- turns

    def _turns(
        self, tx: Tx, ctx: Context, snapshot: Snapshot, own: dict[str, Any], *, reason: str, stays: Stays
    ) -> tuple[list[str], list[str]]:
        """Leave what came since and put back what had not ended; the turns left, and the tools whose effect stays."""
        turn_ids = json.dumps(snapshot.turn_ids)
        tx.run("orchestrations.back_lanes", own)
        rows = tx.all("orchestrations.back_left", {**own, "last_turn": snapshot.last_turn, "turn_ids": turn_ids})
        left = [row["turn_id"] for row in rows]
        names = tx.all("orchestrations.left_tools", {"turn_ids": json.dumps([*left, *snapshot.turn_ids])})
        kept = sorted(row["tool"] for row in names if stays(row["tool"]))
        for row in rows:
            if row["state"] in ("done", "failed", "cancelled", "timed_out"):
                continue
            # Whoever waits for it hears of its end; the rules of the run that was put back do not.
            because = replace(system_context(ctx), cause_id=f"turn:{row['turn_id']}")
            facts = {"turn": row["turn_id"], "agent": row["session_id"], "attempt": row["attempt"], "reason": reason}
            self._journal.record(tx, "completion:cancelled", facts, because, agent_id=row["session_id"], routable=False)
        tx.run("orchestrations.back_cancel", {**own, "turn_ids": json.dumps(left), "reason": reason})
        vacated = {row["turn_id"] for row in tx.all("orchestrations.back_vacate", {**own, "turn_ids": turn_ids})}
        for turn in snapshot.turns:
            if turn["turn_id"] not in vacated:  # it was moved out of the run since
                continue
            ghost = self._leave(tx, turn, snapshot, kept, reason=reason)
            if ghost is not None:
                left.append(ghost)
            lane = lane_state(turn, taken_at_ms=snapshot.at_ms, now_ms=tx.now_ms)
            tx.run("orchestrations.back_turn", {**turn, **lane})
            came = {"turn_id": turn["turn_id"], "last_call": snapshot.last_call, "never_ms": NEVER_MS}
            tx.run("orchestrations.back_to_batch", came)
        return left, kept

    def _leave(
        self, tx: Tx, turn: dict[str, Any], snapshot: Snapshot, kept: Sequence[str], *, reason: str
    ) -> str | None:
        """Move what a turn did since the checkpoint to a turn of its own; None if it did nothing."""
        ghost = TurnId(new_id("t"))
        values = {
            **turn,
            "ghost_id": ghost,
            "far": _FAR,
            "last_call": snapshot.last_call,
            "had": json.dumps(snapshot.tools.get(turn["turn_id"], [])),
            "kept_tools": json.dumps(list(kept)),
            "reason": reason,
            "now_ms": tx.now_ms,
        }
        if tx.run("orchestrations.back_ghost", values) == 0:
            return None
        tx.run("orchestrations.back_ghost_place", values)
        tx.run("orchestrations.back_calls", values)
        tx.run("orchestrations.back_tools", values)
        tx.run("orchestrations.back_notes", values)
        return ghost


def _injections(tx: Tx, snapshot: Snapshot, own: dict[str, Any], checkpoint_id: str) -> None:
    turn_ids = json.dumps(snapshot.turn_ids)
    since = {**own, "last_injection": snapshot.last_injection, "checkpoint_id": checkpoint_id, "turn_ids": turn_ids}
    tx.run("orchestrations.back_injections", since)
    for injection_id, turn_id in snapshot.injections:
        values = {"injection_id": injection_id, "turn_id": turn_id, "turn_ids": turn_ids}
        tx.run("orchestrations.back_injection", values)
    if not snapshot.injections:
        return
    fresh = {turn["turn_id"]: turn for turn in snapshot.turns if turn["attempt"] == 0 and turn["state"] != "queued"}
    for row in tx.all("orchestrations.attempts", {"turn_ids": json.dumps(list(fresh))}):
        if row["attempt"]:
            values = {"turn_id": row["turn_id"], "session_id": row["session_id"]}
            tx.run("orchestrations.waiting_injection_of", values)


def _keep_effects(
    tx: Tx, snapshot: Snapshot, left: Sequence[str], kept: Sequence[str]
) -> tuple[tuple[Effect, ...], int]:
    """Mark the results whose effect stays, and list them."""
    if not kept:
        return (), 0
    values = {"turn_ids": json.dumps([*left, *snapshot.turn_ids]), "kept_tools": json.dumps(list(kept))}
    tx.run("orchestrations.keep_results", {**values, "turn_ids": json.dumps(list(left))})
    since = [
        Effect(turn_id=row["turn_id"], agent=row["name"], tool=row["tool"])
        for row in tx.all("orchestrations.effects", values)
        if [row["round"], row["idx"]] not in snapshot.tools.get(row["turn_id"], [])
    ]
    return tuple(since[:MAX_EFFECTS]), len(since)


def record_restored(
    tx: Tx, journal: Recorder, ctx: Context, checkpoint: Checkpoint, done: Restored, *, origin: str | None = None
) -> None:
    """The event of a restore, in the run that was put back or made."""
    facts = {
        "checkpoint": checkpoint.checkpoint_id,
        "orchestration": done.orchestration_id,
        "origin": origin,
        "left": done.left,
        "put_back": done.put_back,
        "reusable": done.reusable,
        "effects_kept": done.effects_kept,
    }
    journal.record(tx, "checkpoint:restored", facts, ctx, orchestration_id=done.orchestration_id)
