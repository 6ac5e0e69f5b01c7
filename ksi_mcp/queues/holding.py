"""The lanes of a run, held and let go: a few statements, however many agents the run has."""

from __future__ import annotations

from dataclasses import dataclass

from ksi_mcp.db import Tx
from ksi_mcp.events.journal import DELAYED, WOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldCensus:
    """How far a suspension is: turns still at work, held at the front of their session, and waiting behind."""

    running: int
    held: int
    queued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """A turn that was taken from its worker between two steps; it goes on from its last stored round."""

    turn_id: str
    session_id: str
    attempt: int
    """The one that was taken."""


def hold_sessions(tx: Tx, orchestration_id: str) -> int:
    """Let no turn of this run's agents start; what is at work stops by itself. How many heads are held by it."""
    tx.run("queues.suspend_sessions", {"orchestration_id": orchestration_id})
    return tx.run("queues.hold_heads", {"orchestration_id": orchestration_id})


def interrupt_held(tx: Tx, orchestration_id: str, *, except_turn_id: str | None = None) -> list[Interrupted]:
    """Take the turns at work in held sessions from whoever runs them; all but the one in which this is done."""
    values = {"orchestration_id": orchestration_id, "except_turn_id": except_turn_id, "now_ms": tx.now_ms}
    rows = tx.all("queues.interrupt", values)
    tx.run("queues.end_waits_of_held", {"orchestration_id": orchestration_id})
    return [Interrupted(turn_id=row["turn_id"], session_id=row["session_id"], attempt=row["attempt"]) for row in rows]


def held_census(tx: Tx, orchestration_id: str) -> HeldCensus:
    """How the unfinished turns of a run stand."""
    row = tx.one("queues.held_census", {"orchestration_id": orchestration_id})
    if row is None:
        return HeldCensus(running=0, held=0, queued=0)
    return HeldCensus(running=row["running"], held=row["held"], queued=row["queued"])


def release_sessions(tx: Tx, orchestration_id: str, *, paused_ms: int) -> int:
    """Let a run's turns start again, retries as much later as the pause was long; how many heads were held."""
    tx.run("queues.release_sessions", {"orchestration_id": orchestration_id})
    released = tx.run("queues.release_heads", {"orchestration_id": orchestration_id, "paused_ms": paused_ms})
    tx.announce(WOKEN)
    tx.announce(DELAYED)  # the run's delayed events count on, too
    return released
