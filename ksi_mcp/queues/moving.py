"""Turns that change their place: from one session to another, or before those that wait.

Each function runs inside the caller's transaction and leaves both lanes lawful: one head at most, a head wherever
a turn waits, `tail` and `pending` exact. A session that is suspended holds what comes to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Conflict, NotFound
from ksi_mcp.events.journal import WOKEN
from ksi_mcp.ids import TurnId
from ksi_mcp.queues.model import NEVER_MS, Turn, TurnDraft
from ksi_mcp.queues.session_queues import SessionQueues

FIRST = 1_000
"""Priority of a turn that goes before all that wait, injected ones too."""
MAX_MOVED = 10_000
"""Turns that one call moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnWhere:
    """Which of the waiting turns; None does not restrict. `most` takes those first in line."""

    turn_ids: tuple[str, ...] | None = None
    created_by: str | None = None
    contains: str | None = None
    before_ms: int | None = None
    most: int = MAX_MOVED


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What was moved, in order, and how many that fit had been begun already and so stay."""

    turn_ids: tuple[TurnId, ...]
    left_running: int


def move_waiting(
    tx: Tx, source: str, target: str, *, provider: str, where: TurnWhere | None = None, skip_circles: bool = False
) -> Moved:
    """Move turns that were never begun behind those of `target`, in the order in which they would have run.

    One that was begun stays: its rounds were answered by that agent. `provider` is the target's.

    Raises:
        Conflict: somebody would then wait for itself (with `skip_circles` such a turn stays instead).
    """
    where = where or TurnWhere()
    values = {
        "session_id": source,
        "turn_ids": None if where.turn_ids is None else json.dumps(where.turn_ids),
        "created_by": where.created_by,
        "contains": where.contains,
        "before_ms": where.before_ms,
    }
    fitting = _in_line(tx.all("queues.unfinished_where", values))
    waiting = [row["turn_id"] for row in fitting if row["begun"] == 0][: min(where.most, MAX_MOVED)]
    circles = _circles(tx, waiting, target)
    if circles and not skip_circles:
        turn_id, circle = next(iter(circles.items()))
        raise Conflict(
            f"turn {turn_id} cannot be moved, the wait for it would never end: " + " waits for ".join(circle),
            hint="leave that turn out, or move it to another agent",
        )
    allowed = [turn_id for turn_id in waiting if turn_id not in circles]
    _move(tx, allowed, source, target, provider=provider)
    return Moved(turn_ids=tuple(map(TurnId, allowed)), left_running=sum(row["begun"] for row in fitting))


def move_all(tx: Tx, source: str, target: str) -> tuple[TurnId, ...]:
    """Move every unfinished turn, one at work too, to a session that takes the other's place; in order.

    Whoever runs one finds that it was taken over. It goes on in its new session after its last stored round.
    """
    everything = {"turn_ids": None, "created_by": None, "contains": None, "before_ms": None}
    rows = _in_line(tx.all("queues.unfinished_where", {**everything, "session_id": source}))
    moved = [row["turn_id"] for row in rows]
    _move(tx, moved, source, target, provider=None)
    return tuple(map(TurnId, moved))


def put_first(
    tx: Tx, queues: SessionQueues, draft: TurnDraft, *, rescues: int, question: dict[str, Any] | None = None
) -> Turn:
    """Put a turn before all that wait in its session; one that was begun stays before it.

    With a `question` it is parked as soon as it stands first, and a person or a client answers it.
    """
    tx.run("queues.step_aside", {"session_id": draft.session_id})
    turn = queues.enqueue(tx, draft)
    asked = None if question is None else json.dumps(question, ensure_ascii=False)
    tx.run("queues.mark_rescue", {"turn_id": turn.turn_id, "rescues": rescues, "priority": FIRST, "question": asked})
    _promote(tx, draft.session_id)
    return queues.get(tx, turn.turn_id)


def put_last(tx: Tx, queues: SessionQueues, draft: TurnDraft, *, rescues: int) -> Turn:
    """Put a turn that another one was the reason for at the end of its session."""
    turn = queues.enqueue(tx, draft)
    values = {"turn_id": turn.turn_id, "rescues": rescues, "priority": draft.priority, "question": None}
    tx.run("queues.mark_rescue", values)
    return queues.get(tx, turn.turn_id)


def share_suspension(tx: Tx, source: str, target: str) -> None:
    """Let a new session be held as the one is whose place it takes."""
    tx.run("queues.share_suspension", {"source": source, "target": target})


def _in_line(rows: Sequence[Row]) -> list[Row]:
    """As they would run: the head, then by priority, then by place."""
    return sorted(rows, key=lambda row: (row["state"] == "queued", -row["priority"], row["seq"]))


def _move(tx: Tx, turn_ids: Sequence[str], source: str, target: str, *, provider: str | None) -> None:
    if not turn_ids:
        return
    count, ids = len(turn_ids), json.dumps(list(turn_ids))
    place = tx.one("queues.take_places", {"session_id": target, "count": count})
    if place is None:
        raise NotFound(f"no session {target!r}")
    values = {"turn_ids": ids, "target": target, "after": place["tail"] - count, "held": place["suspended"]}
    tx.run("queues.move", {**values, "provider": provider, "never_ms": NEVER_MS, "now_ms": tx.now_ms})
    tx.run("queues.end_waits_of", {"turn_ids": ids})
    tx.run("queues.give_places", {"session_id": source, "count": count})
    _promote(tx, source)
    _promote(tx, target)


def _promote(tx: Tx, session_id: str) -> None:
    row = tx.one("queues.suspended", {"session_id": session_id})
    held = 0 if row is None else row["suspended"]
    if tx.run("queues.promote", {"session_id": session_id, "now_ms": tx.now_ms, "held": held}):
        tx.announce(WOKEN)


def _circles(tx: Tx, turn_ids: Sequence[str], target: str) -> dict[str, list[str]]:
    """Turns that somebody waits for whom `target` waits for already, each with that circle of sessions."""
    found: dict[str, list[str]] = {}
    for waiter in tx.all("queues.waiters_of", {"turn_ids": json.dumps(list(turn_ids))}):
        start = waiter["session_id"]
        frontier, seen = [[start, target]], {target}
        while frontier:
            chain = frontier.pop()
            if chain[-1] == start:
                found[waiter["on_turn_id"]] = chain
                break
            for row in tx.all("queues.waits_of_session", {"session_id": chain[-1]}):
                if row["session_id"] == start or row["session_id"] not in seen:
                    seen.add(row["session_id"])
                    frontier.append([*chain, row["session_id"]])
    return found
