"""The queue: turns of one session strictly in order, one at a time; sessions in parallel."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, NotFound
from ksi_mcp.events.journal import WOKEN
from ksi_mcp.ids import TurnId, WorkerId, new_id
from ksi_mcp.queues.model import (
    NEVER_MS,
    ErrorClass,
    ParkedOn,
    TakenOver,
    Turn,
    TurnDraft,
    TurnState,
    changed,
    queued_turn,
    turn_of,
)


class SessionQueues:
    """Lanes in the store.

    What it guarantees, each inside the caller's transaction:

    1. At most one turn of a session is `running`, `retrying` or `blocked`: its head.
    2. A claim takes heads only, oldest first; its cost does not depend on how many turns wait.
    3. A retry keeps its place: the turns behind it wait, so order holds through a backoff.
    4. `finish`, `retry` and `block` succeed only for the owner of the running attempt, else `TakenOver`.
    5. A finished turn is never run again.
    """

    def open_session(self, tx: Tx, session_id: str) -> None:
        """Make an empty lane."""
        tx.run("queues.open_session", {"session_id": session_id})

    def enqueue(self, tx: Tx, draft: TurnDraft) -> Turn:
        """Put a turn at the end of its lane (its priority may promote it earlier)."""
        place = tx.one("queues.take_place", {"session_id": draft.session_id})
        if place is None:
            raise NotFound(f"no session {draft.session_id!r}")
        turn_id = draft.turn_id or TurnId(new_id("t"))
        tx.run(
            "queues.enqueue",
            {
                "turn_id": turn_id,
                "session_id": draft.session_id,
                "seq": place["tail"],
                "priority": draft.priority,
                "state": "ready" if place["pending"] == 1 else "queued",
                "now_ms": tx.now_ms,
                "orchestration_id": draft.orchestration_id,
                "provider": draft.provider,
                "prompt": draft.prompt,
                "reply_event": draft.reply_event,
                "timeout_s": draft.timeout_s,
                "op_class": draft.op_class,
                "created_by": draft.created_by,
                "cause_id": draft.cause_id,
                "root_id": draft.root_id,
                "hops": draft.hops,
                "depth": draft.depth,
                "held": place["suspended"],
                "expect": draft.expect,
                "cache": draft.cache,
                "batched": int(draft.batched),
            },
        )
        tx.announce(WOKEN)
        return queued_turn(draft, turn_id=turn_id, seq=place["tail"], now_ms=tx.now_ms, held=place["suspended"])

    def claim(self, tx: Tx, owner: WorkerId, provider: str, *, limit: int) -> list[Turn]:
        """Take up to `limit` ready heads for one provider, oldest first; each becomes attempt + 1 of this owner."""
        values = {"owner": owner, "provider": provider, "limit": limit, "now_ms": tx.now_ms}
        return [turn_of(row) for row in tx.all("queues.claim", values)]

    def waiting(self, tx: Tx) -> dict[str, int]:
        """The providers that heads wait for, and from when (ms) the first of each may run."""
        return {row["provider"]: row["run_at_ms"] for row in tx.all("queues.next_ready")}

    def require_owned(self, tx: Tx, turn_id: str, attempt: int, owner: str) -> bool:
        """The guard of everything that a running turn writes; whether its session is suspended.

        Raises:
            TakenOver: the turn was cancelled, finished or claimed by somebody else.
        """
        row = tx.one("queues.owned", {"turn_id": turn_id, "attempt": attempt, "owner": owner})
        if row is None:
            raise TakenOver(f"turn {turn_id} is no longer attempt {attempt} of this worker")
        return bool(row["suspended"])

    def finish(
        self,
        tx: Tx,
        turn: Turn,
        *,
        state: TurnState,
        result: str | None = None,
        partial_text: str | None = None,
        error_class: ErrorClass | None = None,
        error: str | None = None,
        cost: tuple[int, int] | None = None,
    ) -> Turn:
        """End a running turn and promote the next of its session; `cost` is what its last answer adds (usd, tokens)."""
        row = tx.one(
            "queues.finish",
            {
                **_owned(turn),
                "state": state,
                "result": result,
                "partial_text": partial_text,
                "error_class": error_class,
                "error": error,
                "usd_micros": cost[0] if cost is not None else 0,
                "spent_tokens": cost[1] if cost is not None else 0,
                "answered": cost is not None,
                "now_ms": tx.now_ms,
            },
        )
        if row is None:
            raise TakenOver(f"turn {turn.turn_id} is no longer attempt {turn.attempt} of this worker")
        self._leave(tx, turn.session_id)
        return changed(
            turn,
            state=state,
            owner=None,
            result=result,
            partial_text=partial_text,
            error_class=error_class,
            error=error,
            finished_at_ms=tx.now_ms,
            cost_usd_micros=row["cost_usd_micros"],
            tokens=row["tokens"],
            tries=row["tries"],
            reused=row["reused"],
            checks=row["checks"],
            similarity=row["similarity"],
        )

    def cancel(self, tx: Tx, turn_id: str, *, reason: str) -> Turn | None:
        """End a turn that is not finished, running or not; None if it had ended before (a no-op)."""
        row = tx.one("queues.cancel", {"turn_id": turn_id, "reason": reason, "now_ms": tx.now_ms})
        if row is None:
            return None
        self._leave(tx, row["session_id"])
        return turn_of(row)

    def retry(
        self, tx: Tx, turn: Turn, *, delay_s: float, error: str, partial_text: str | None, counts: bool = True
    ) -> None:
        """Let a running turn wait for its next try; it stays the head of its session. `counts`: a try was used up."""
        run_at_ms = tx.now_ms + int(delay_s * 1000)
        values = {
            **_owned(turn),
            "run_at_ms": run_at_ms,
            "error": error,
            "partial_text": partial_text,
            "counts": counts,
        }
        self._one_row(tx.run("queues.retry", values), turn)
        tx.announce(WOKEN)  # whoever claims it may have to get up earlier now

    def block(self, tx: Tx, turn: Turn, *, account_id: str) -> None:
        """Take a running turn out of the ready index until room changes in that account."""
        self._one_row(tx.run("queues.block", {**_owned(turn), "account_id": account_id}), turn)

    def unblock(self, tx: Tx, accounts: Iterable[str]) -> None:
        """Ready every turn that waits for room in one of these accounts."""
        if tx.run("queues.unblock", {"accounts": json.dumps(list(accounts)), "now_ms": tx.now_ms}):
            tx.announce(WOKEN)

    # ------------------------------------------------------------------------- leaving the lane for a while

    def step_back(self, tx: Tx, turn: Turn) -> None:
        """Stop a running turn between two rounds, because its session is suspended; it goes on from there."""
        self._one_row(tx.run("queues.step_back", {**_owned(turn), "now_ms": tx.now_ms}), turn)
        tx.announce(WOKEN)

    def suspended(self, tx: Tx, session_id: str) -> bool:
        """Whether no call of that session may start."""
        row = tx.one("queues.suspended", {"session_id": session_id})
        return row is not None and bool(row["suspended"])

    def fail_over(self, tx: Tx, turn: Turn, *, link: int, provider: str, error: str) -> None:
        """Let a running turn ask the model at `link` of its agent's chain, at once."""
        values = {**_owned(turn), "link": link, "provider": provider, "error": error, "now_ms": tx.now_ms}
        self._one_row(tx.run("queues.fail_over", values), turn)
        tx.announce(WOKEN)

    def park(
        self,
        tx: Tx,
        turn: Turn,
        *,
        on: ParkedOn,
        question: dict[str, Any] | None = None,
        account_id: str | None = None,
        run_at_ms: int = NEVER_MS,
        error: str | None = None,
        partial_text: str | None = None,
    ) -> None:
        """Take a running turn out until it is answered, a limit is raised, or (from `run_at_ms`) a breaker closes."""
        values = {
            **_owned(turn),
            "parked_on": on,
            "question": None if question is None else json.dumps(question, ensure_ascii=False),
            "account_id": account_id,
            "run_at_ms": run_at_ms,
            "error": error,
            "partial_text": partial_text,
        }
        self._one_row(tx.run("queues.park", values), turn)
        tx.announce(WOKEN)

    def resume_batched(self, tx: Tx, turn_id: str, owner: WorkerId, call_id: int) -> Turn | None:
        """Let a turn that waits for its batch run again; None if it does not wait (any more)."""
        row = tx.one("queues.resume_batched", {"turn_id": turn_id, "owner": owner, "call_id": call_id})
        return None if row is None else turn_of(row)

    def unpark_budget(self, tx: Tx, accounts: Iterable[str]) -> int:
        """Let the turns parked on these accounts ask again; how many."""
        tx.announce(WOKEN)
        return tx.run("queues.unpark_budget", {"accounts": json.dumps(list(accounts)), "now_ms": tx.now_ms})

    def answer_parked(self, tx: Tx, turn_id: str, *, text: str, by: str) -> Turn | None:
        """End a turn that waits for an answer with this one; None if it does not wait (any more)."""
        row = tx.one(
            "queues.answer_parked", {"turn_id": turn_id, "result": text, "answered_by": by, "now_ms": tx.now_ms}
        )
        if row is None:
            return None
        self._leave(tx, row["session_id"])
        return turn_of(row)

    def parked(self, tx: Tx, orchestration_id: str | None, *, limit: int = 100) -> list[Turn]:
        """The turns of a run, or of everything, that wait for somebody; oldest first."""
        values = {"orchestration_id": orchestration_id, "limit": limit}
        return [turn_of(row) for row in tx.all("queues.parked", values)]

    # ------------------------------------------------------------------------------------ bookkeeping

    def checked(self, tx: Tx, turn_id: str) -> None:
        """A reply was not as expected."""
        tx.run("queues.checked", {"turn_id": turn_id})

    def reused(self, tx: Tx, turn_id: str, *, similarity: float | None = None) -> None:
        """A round's answer was there already, and cost nothing. `similarity`: of what it answered, if not the same."""
        tx.run("queues.reused", {"turn_id": turn_id, "similarity": similarity})

    def answered(self, tx: Tx, turn_id: str, *, usd_micros: int, tokens: int) -> None:
        """A round was answered: its failed tries are history, its cost is the turn's."""
        tx.run("queues.answered", {"turn_id": turn_id, "usd_micros": usd_micros, "tokens": tokens})

    def streamed(self, tx: Tx, turn: Turn, *, text: str, chars: int) -> None:
        """So much of the running attempt's answer has arrived; nothing happens if it does not run any more."""
        tx.run("queues.streamed", {**_owned(turn), "partial_text": text, "chars": chars})

    def charge(self, tx: Tx, turn_id: str, *, usd_micros: int, tokens: int) -> None:
        """Book a cost on a turn, whatever state it is in."""
        tx.run("queues.charge", {"turn_id": turn_id, "usd_micros": usd_micros, "tokens": tokens})

    def take_over(self, tx: Tx, owner: WorkerId) -> list[TurnId]:
        """Ready what other workers left running. Only for the holder of the data folder's worker lock."""
        taken = [row["turn_id"] for row in tx.all("queues.take_over", {"owner": owner, "now_ms": tx.now_ms})]
        tx.run("queues.end_stale_waits")
        return taken

    def give_back(self, tx: Tx, owner: WorkerId, turn_ids: Sequence[str], *, delay_s: float) -> None:
        """Let running turns of this owner that it could not carry on wait for another claim."""
        values = {"owner": owner, "turn_ids": json.dumps(list(turn_ids)), "run_at_ms": tx.now_ms + int(delay_s * 1000)}
        tx.run("queues.give_back", values)
        tx.announce(WOKEN)

    def get(self, tx: Tx, turn_id: str) -> Turn:
        """A turn by its id.

        Raises:
            NotFound: there is none.
        """
        row = tx.one("queues.one", {"turn_id": turn_id})
        if row is None:
            raise NotFound(f"unknown turn {turn_id[:80]!r}", hint="turn ids come from agent_send; they begin with t_")
        return turn_of(row)

    def some(self, tx: Tx, turn_ids: Sequence[str]) -> list[Turn]:
        """Turns by their ids, in the order in which they were enqueued."""
        return [turn_of(row) for row in tx.all("queues.some", {"turn_ids": json.dumps(turn_ids)})]

    def newest(self, tx: Tx, session_ids: Sequence[str]) -> list[Turn]:
        """The newest turn of each of these sessions, for those that have one."""
        return [turn_of(row) for row in tx.all("queues.last_of_sessions", {"session_ids": json.dumps(session_ids)})]

    def unfinished(self, tx: Tx, session_id: str) -> list[TurnId]:
        """The turns of a session that have not ended, in order."""
        return [row["turn_id"] for row in tx.all("queues.unfinished_of_session", {"session_id": session_id})]

    def begin_wait(self, tx: Tx, turn: Turn, on: Sequence[Turn]) -> None:
        """Note that a running turn waits for others.

        Raises:
            Conflict: one of them, directly or through others, waits for this turn's session.
        """
        for other in on:
            if not other.final and (circle := self._circle(tx, turn.session_id, other.session_id)):
                raise Conflict(
                    "waiting here would never end: " + " waits for ".join(circle),
                    hint="reply first, or wait for other agents",
                )
        for other in on:
            tx.run(
                "queues.wait_edge",
                {"turn_id": turn.turn_id, "session_id": turn.session_id, "on_turn_id": other.turn_id},
            )

    def end_wait(self, tx: Tx, turn_id: str) -> None:
        """The wait is over."""
        tx.run("queues.end_wait", {"turn_id": turn_id})

    def _circle(self, tx: Tx, start: str, first: str) -> list[str]:
        """The chain of sessions from `start` back to itself, or nothing."""
        frontier: list[list[str]] = [[start, first]]
        seen = {first}
        while frontier:
            chain = frontier.pop()
            if chain[-1] == start:
                return chain
            for row in tx.all("queues.waits_of_session", {"session_id": chain[-1]}):
                if row["session_id"] == start or row["session_id"] not in seen:
                    seen.add(row["session_id"])
                    frontier.append([*chain, row["session_id"]])
        return []

    def _leave(self, tx: Tx, session_id: str) -> None:
        left = tx.one("queues.leave", {"session_id": session_id})
        if left is None or left["pending"] == 0:
            return
        values = {"session_id": session_id, "now_ms": tx.now_ms, "held": left["suspended"]}
        if tx.run("queues.promote", values):
            tx.announce(WOKEN)

    def _one_row(self, changed: int, turn: Turn) -> None:
        if changed != 1:
            raise TakenOver(f"turn {turn.turn_id} is no longer attempt {turn.attempt} of this worker")


def _owned(turn: Turn) -> dict[str, object]:
    return {"turn_id": turn.turn_id, "attempt": turn.attempt, "owner": turn.owner}
