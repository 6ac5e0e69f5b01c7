"""What follows an answer: its tools, another round, a question to somebody, or the end of the turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

from ksi_mcp.agents import reach
from ksi_mcp.agents.history import Round, whole_text
from ksi_mcp.budgets.model import Amount
from ksi_mcp.completions import store
from ksi_mcp.completions.endings import context_of
from ksi_mcp.completions.expect import Expect
from ksi_mcp.completions.expecting import expected_of
from ksi_mcp.completions.model import Ended, Loaded
from ksi_mcp.db import Tx
from ksi_mcp.events.journal import Recorder
from ksi_mcp.queues.model import ErrorClass, Turn, TurnState
from ksi_mcp.queues.session_queues import SessionQueues

GO_ON: Final = "Go on where you stopped."
"""What a model is told that paused."""


class Finish(Protocol):
    """Ends a turn, and tells."""

    def __call__(
        self,
        tx: Tx,
        item: Loaded,
        *,
        state: TurnState,
        result: str | None = None,
        error_class: ErrorClass | None = None,
        error: str | None = None,
        partial: str = "",
        cost: Amount | None = None,
    ) -> Turn:
        """Store and report it."""
        ...


class Following:
    """Decides and stores it, in the transaction that stores the answer."""

    def __init__(self, journal: Recorder, queues: SessionQueues, *, finish: Finish) -> None:
        self._journal = journal
        self._queues = queues
        self._finish = finish

    def taken(
        self, tx: Tx, item: Loaded, current: Round, cost: Amount | None, wrong: str | None
    ) -> Round | Ended | None:
        """What follows an answer: its tools, another try, or the end. `cost` is None if it was there already.

        Raises:
            TakenOver: nothing does, since the turn belongs to somebody else by now.
        """
        if current.tool_uses:
            if reach.has_ended(tx, item.agent.agent_id):
                return self._end_of_the_ended(tx, item, current, cost)
            self._book(tx, item, cost)
            return current
        if current.stop_reason == "pause_turn" and current.number <= item.agent.settings.max_tool_rounds:
            self._book(tx, item, cost)
            store.store_note(tx, item.turn.turn_id, current.number, GO_ON)
            return replace(current, note=GO_ON)
        if wrong is not None and (asked := expected_of(item)) is not None:
            self._book(tx, item, cost)
            return self._unexpected(tx, item, current, asked, wrong)
        return self._end_with_answer(tx, item, current, cost)

    def _end_of_the_ended(self, tx: Tx, item: Loaded, current: Round, cost: Amount | None) -> Ended:
        """Whoever has ended itself may say its last word; its tools would all be refused, and each round paid."""
        error = "its agent has ended: the tools that it asked for after that were not run"
        partial = whole_text((*item.rounds, current))
        turn = self._finish(tx, item, state="failed", error_class="task", error=error, partial=partial, cost=cost)
        return Ended(turn=turn, answer=current)

    def _book(self, tx: Tx, item: Loaded, cost: Amount | None) -> None:
        """A round that is not the last: its failed tries are history, its cost is the turn's."""
        turn = item.turn
        self._queues.require_owned(tx, turn.turn_id, turn.attempt, turn.owner or "")
        if cost is not None:
            self._queues.answered(tx, turn.turn_id, usd_micros=cost.usd_micros, tokens=cost.tokens)

    def _unexpected(self, tx: Tx, item: Loaded, current: Round, asked: Expect, wrong: str) -> Round | None:
        """A reply that is not as expected: say so and let the model try again, or ask somebody else."""
        turn = item.turn
        self._queues.checked(tx, turn.turn_id)
        ctx = context_of(turn, as_system=True)
        facts = {"turn": turn.turn_id, "agent": turn.session_id, "agent_name": item.agent.name, "reason": wrong[:2000]}
        if turn.checks + 1 < asked.max_attempts:
            store.store_note(tx, turn.turn_id, current.number, wrong)
            self._journal.record(tx, "completion:rejected", facts, ctx, agent_id=turn.session_id)
            return replace(current, note=wrong)
        error = f"no reply was as expected in {asked.max_attempts} attempts; the last: {wrong}"
        if asked.on_invalid == "fail":
            self._finish(tx, item, state="failed", error_class="task", error=error, partial=current.text)
            return None
        question = {
            "kind": "validation",
            "text": f"{wrong}\nIts last reply: {current.text[:4000]}",
            "asked": turn.prompt[:2000],
        }
        self._queues.park(tx, turn, on="answer", question=question, error=error, partial_text=current.text)
        parked = {**facts, "hint": "completion_answer ends it with a reply, completion_cancel gives it up"}
        self._journal.record(tx, "completion:parked", parked, ctx, agent_id=turn.session_id)
        return None

    def _end_with_answer(self, tx: Tx, item: Loaded, answer: Round, cost: Amount | None) -> Ended:
        error_class: ErrorClass = "task"
        text = whole_text((*item.rounds, answer))
        if answer.stop_reason == "refusal":
            error_class, error = "refused", "the model refused"
        elif answer.stop_reason == "context_exceeded":
            error = "the conversation exceeds the model's context"
        elif answer.stop_reason == "max_tokens":
            # A cut-off answer must not look like a whole one.
            error = f"the answer was cut off at max_tokens={item.agent.settings.max_tokens}"
        elif answer.stop_reason == "pause_turn":
            error = f"the model paused more than {item.agent.settings.max_tool_rounds} times (max_tool_rounds)"
        else:
            done = self._finish(tx, item, state="done", result=text, cost=cost)
            return Ended(turn=done, answer=answer)
        failed = self._finish(tx, item, state="failed", error_class=error_class, error=error, partial=text, cost=cost)
        return Ended(turn=failed, answer=answer)
