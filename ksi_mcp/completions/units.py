"""The transactions of a turn: each function here is one unit, and together they are its whole life in the store.

    load      what a claimed turn needs; closes what a lost attempt left open
    send      reserve for a round and write that its call leaves
    answer    settle, store the answer, and finish if it is the last
    fail      settle what is known, then retry or end
    result    store what a tool gave back
    stop      the call was cut off by a cancellation: paid in full

Money first, ownership second: a settlement is booked even if the turn belongs to somebody else by now.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ksi_mcp.agents import store as agents_store
from ksi_mcp.agents.history import PastTurn, Round, StoredResult, plain, round_of
from ksi_mcp.agents.model import Agent
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Amount, Blocked, Denied
from ksi_mcp.completions import store
from ksi_mcp.db import Tx
from ksi_mcp.errors import ProviderError
from ksi_mcp.events.journal import Journal
from ksi_mcp.ids import RootId, WorkerId
from ksi_mcp.permissions import SYSTEM, Context, Slot, agent_actor, within
from ksi_mcp.providers.base import Answer
from ksi_mcp.queues.model import ErrorClass, TakenOver, Turn, TurnState
from ksi_mcp.queues.retry import MAX_TRIES, Again, GiveUp
from ksi_mcp.queues.session_queues import SessionQueues

MAX_EVENT_TEXT_BYTES = 40 * 1024
"""Of a result that its event carries, as JSON; the turn itself keeps all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A claimed turn with all that its next round is rendered from."""

    turn: Turn
    agent: Agent
    earlier: list[PastTurn]
    rounds: tuple[Round, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A call that is paid for and may leave."""

    call_id: int
    hold_id: str
    number: int


def context_of(turn: Turn, *, slot: Slot | None = None, as_system: bool = False) -> Context:
    """What a turn does, it does as its agent, because of itself, with a fresh count of deliveries."""
    ctx = Context(
        actor=SYSTEM if as_system else agent_actor(turn.session_id),
        root_id=RootId(turn.root_id),
        cause_id=f"turn:{turn.turn_id}",
        hops=0,
        depth=turn.depth,
        slot=slot,
    )
    return within(ctx, turn.orchestration_id)


class TurnUnits:
    """The units, bound to the role objects they write through."""

    def __init__(self, journal: Journal, queues: SessionQueues, roster: Roster, ledger: Ledger) -> None:
        self._journal = journal
        self._queues = queues
        self._roster = roster
        self._ledger = ledger

    def claim(self, tx: Tx, owner: WorkerId, *, limit: int) -> list[Loaded]:
        """Take ready heads and load what they need. A turn that was lost too often ends: each try may cost."""
        items: list[Loaded] = []
        for turn in self._queues.claim(tx, owner, limit=limit):
            item = self._load(tx, turn)
            if turn.tries < MAX_TRIES:
                items.append(item)
            else:
                error = f"given up after {turn.tries} tries: its worker was lost, or its steps could not be stored"
                self._finish(tx, item, state="failed", error_class="infra", error=error)
        return items

    def _load(self, tx: Tx, turn: Turn) -> Loaded:
        agent = self._roster.get(tx, turn.session_id)
        if turn.attempt > 1:
            self._close_lost(tx, turn)
        earlier = agents_store.past_turns(
            tx, turn.session_id, limit=agent.settings.context_messages // 2 + 1, before_seq=turn.seq
        )
        rounds = agents_store.rounds_of(tx, [turn.turn_id]).get(turn.turn_id, ()) if turn.attempt > 1 else ()
        tx.run("agents.touch", {"agent_id": agent.agent_id, "now_ms": tx.now_ms})
        return Loaded(turn=turn, agent=agent, earlier=earlier, rounds=rounds)

    def _close_lost(self, tx: Tx, turn: Turn) -> None:
        settled = self._ledger.clear_turn(tx, turn.turn_id, context_of(turn, as_system=True))
        if settled.path:
            store.mark_uncertain(tx, turn.turn_id)
            self._queues.charge(tx, turn.turn_id, usd_micros=settled.booked.usd_micros, tokens=settled.booked.tokens)
            self._queues.unblock(tx, settled.path)

    def close_orphans(self, tx: Tx) -> None:
        """Close holds of turns that nobody runs: the worker that made their calls is gone."""
        for turn_id in {row["turn_id"] for row in tx.all("budgets.orphan_holds")}:
            self._close_lost(tx, self._queues.get(tx, turn_id))

    def send(self, tx: Tx, item: Loaded, *, number: int, wanted: Amount, unpriced: str | None) -> Sent | None:
        """Reserve for a round and write that its call leaves; None if the turn had to stop here.

        `unpriced` is the reason why the call has no price; it is refused under a USD limit.
        """
        turn, agent = item.turn, item.agent
        self._queues.require_owned(tx, turn.turn_id, turn.attempt, turn.owner or "")
        path = self._ledger.path(tx, agent.agent_id) if unpriced is not None else []
        if unpriced is not None and any(account.limits.usd_micros is not None for account in path):
            self._finish(tx, item, state="failed", error_class="budget", error=unpriced)
            return None
        held = self._ledger.reserve(
            tx,
            agent.agent_id,
            turn_id=turn.turn_id,
            wanted=wanted,
            new_turn=number == 1 and store.first_call(tx, turn.turn_id),
        )
        if isinstance(held, Blocked):
            self._queues.block(tx, turn, account_id=held.account_id)
            return None
        if isinstance(held, Denied):
            self._journal.record(
                tx,
                "agent:budget_exceeded",
                {
                    "agent": agent.agent_id,
                    "agent_name": agent.name,
                    "turn": turn.turn_id,
                    "account": held.account_id,
                    "limit_kind": held.kind,
                    "reason": held.text(),
                },
                context_of(turn, as_system=True),
                agent_id=agent.agent_id,
            )
            self._finish(tx, item, state="failed", error_class="budget", error=held.text())
            return None
        self._ledger.mark_sent(tx, held.hold_id)
        call_id = store.sent(
            tx,
            turn_id=turn.turn_id,
            number=number,
            attempt=turn.attempt,
            hold_id=held.hold_id,
            provider=agent.provider,
            model=agent.model,
        )
        return Sent(call_id=call_id, hold_id=held.hold_id, number=number)

    def answer(self, tx: Tx, item: Loaded, sent: Sent, answer: Answer, cost: Amount) -> Round | None:
        """Settle, store, and finish if no tool was called; the round, or None if the turn is not ours any more."""
        turn = item.turn
        settled = self._ledger.settle(tx, sent.hold_id, cost, context_of(turn, as_system=True))
        self._queues.unblock(tx, settled.path)
        if not self._owned(tx, turn):
            self._queues.charge(tx, turn.turn_id, usd_micros=settled.booked.usd_micros, tokens=settled.booked.tokens)
            store.ended(
                tx,
                sent.call_id,
                state="failed",
                error_kind="bug",
                error="the turn had ended or was taken over",
                cost_usd_micros=settled.booked.usd_micros,
            )
            return None
        stored = store.answered(tx, sent.call_id, answer, cost_usd_micros=cost.usd_micros)
        self._queues.answered(tx, turn.turn_id, usd_micros=cost.usd_micros, tokens=cost.tokens)
        current = round_of(sent.number, stored, {})
        if not current.tool_uses:
            self._end_with_answer(tx, item, current)
        return current

    def _end_with_answer(self, tx: Tx, item: Loaded, answer: Round) -> None:
        if answer.stop_reason == "refusal":
            self._finish(
                tx, item, state="failed", error_class="refused", error="the model refused", partial=answer.text
            )
        elif answer.stop_reason == "context_exceeded":
            self._finish(
                tx,
                item,
                state="failed",
                error_class="task",
                error="the conversation exceeds the model's context",
                partial=answer.text,
            )
        elif answer.stop_reason == "max_tokens":
            # A cut-off answer must not look like a whole one.
            error = f"the answer was cut off at max_tokens={item.agent.settings.max_tokens}"
            self._finish(tx, item, state="failed", error_class="task", error=error, partial=answer.text)
        else:
            self._finish(tx, item, state="done", result=answer.text)

    def give_up(self, tx: Tx, item: Loaded, *, error: str, partial: str) -> None:
        """End a turn whose model went on asking for tools beyond its rounds."""
        self._finish(tx, item, state="failed", error_class="task", error=error, partial=partial)

    def crash(self, tx: Tx, item: Loaded) -> None:
        """End a turn that met a defect of the server: what it left open is closed, the session goes on."""
        self._close_lost(tx, item.turn)
        self._finish(tx, item, state="failed", error_class="infra", error="internal error; the server's log has it")

    def fail(self, tx: Tx, item: Loaded, sent: Sent, error: ProviderError, verdict: Again | GiveUp) -> bool:
        """Settle what is known, then retry or end; whether the turn will be tried again."""
        turn = item.turn
        settled = self._settle_failed(tx, item, sent, certain=error.billed == "no")
        state = "failed" if error.billed == "no" else "uncertain"
        text, partial = plain(error.text()), plain(error.partial_text)
        store.ended(
            tx, sent.call_id, state=state, error_kind=error.kind, error=text, cost_usd_micros=settled.usd_micros
        )
        if not self._owned(tx, turn):
            return False
        if isinstance(verdict, Again):
            self._queues.retry(tx, turn, delay_s=verdict.delay_s, error=text, partial_text=partial or None)
            facts = {"turn": turn.turn_id, "agent": turn.session_id, "kind": error.kind, "delay_s": verdict.delay_s}
            self._journal.record(
                tx,
                "completion:retrying",
                {**facts, "error": text[:500]},
                context_of(turn, as_system=True),
                agent_id=turn.session_id,
            )
            return True
        self._finish(tx, item, state=verdict.state, error_class=verdict.error_class, error=text, partial=partial)
        return False

    def stop(self, tx: Tx, item: Loaded, sent: Sent) -> None:
        """A cancellation cut the call off: what it would have cost is unknown, so it is paid in full."""
        cost = self._settle_failed(tx, item, sent, certain=False)
        store.ended(
            tx,
            sent.call_id,
            state="uncertain",
            error_kind="transport",
            error="cancelled",
            cost_usd_micros=cost.usd_micros,
        )

    def _settle_failed(self, tx: Tx, item: Loaded, sent: Sent, *, certain: bool) -> Amount:
        ctx = context_of(item.turn, as_system=True)
        if certain:
            settled = self._ledger.settle(tx, sent.hold_id, Amount(usd_micros=0, tokens=0), ctx)
        else:
            settled = self._ledger.settle_in_full(tx, sent.hold_id, ctx)
            self._queues.charge(
                tx, item.turn.turn_id, usd_micros=settled.booked.usd_micros, tokens=settled.booked.tokens
            )
        self._queues.unblock(tx, settled.path)
        return settled.booked

    def result(self, tx: Tx, slot: Slot, *, tool: str, args: dict[str, Any], text: str, is_error: bool) -> None:
        """Store what a tool gave back, if the turn is still ours."""
        self._queues.require_owned(tx, slot.turn_id, slot.attempt, slot.owner)
        store.store_result(tx, slot, tool=tool, args=args, result=text, is_error=is_error)

    def _owned(self, tx: Tx, turn: Turn) -> bool:
        try:
            self._queues.require_owned(tx, turn.turn_id, turn.attempt, turn.owner or "")
        except TakenOver:
            return False
        return True

    def _finish(
        self,
        tx: Tx,
        item: Loaded,
        *,
        state: TurnState,
        result: str | None = None,
        error_class: ErrorClass | None = None,
        error: str | None = None,
        partial: str = "",
    ) -> None:
        done = self._queues.finish(
            tx,
            item.turn,
            state=state,
            result=result,
            partial_text=partial or None,
            error_class=error_class,
            error=error,
        )
        report_end(tx, self._journal, done, agent_name=item.agent.name)


def report_end(tx: Tx, journal: Journal, turn: Turn, *, agent_name: str) -> None:
    """The event of a turn's end, and the reply event if its sender asked for one."""
    whole = turn.result or turn.partial_text or ""
    text = _cut(whole)
    data: dict[str, Any] = {
        "turn": turn.turn_id,
        "agent": turn.session_id,
        "agent_name": agent_name,
        "status": turn.state,
        "text": text,
    }
    if len(text) < len(whole):
        data["truncated"] = True
    if turn.error is not None:
        data |= {"error": turn.error[:2000], "error_class": turn.error_class}
    name = "completion:result" if turn.state == "done" else "completion:failed"
    ctx = context_of(turn, as_system=True)
    journal.record(tx, name, data, ctx, agent_id=turn.session_id)
    if turn.reply_event is not None:
        journal.record(tx, turn.reply_event, data, context_of(turn), agent_id=turn.session_id)


def _cut(text: str) -> str:
    text = text[:MAX_EVENT_TEXT_BYTES]
    while (size := len(json.dumps(text, ensure_ascii=False).encode())) > MAX_EVENT_TEXT_BYTES:
        text = text[: len(text) * MAX_EVENT_TEXT_BYTES // size]
    return text


def with_result(item: Round, index: int, text: str, *, is_error: bool) -> Round:
    """The same round with one more tool result."""
    return Round(
        number=item.number,
        text=item.text,
        tool_uses=item.tool_uses,
        stop_reason=item.stop_reason,
        results={**item.results, index: StoredResult(index=index, text=text, is_error=is_error)},
    )
