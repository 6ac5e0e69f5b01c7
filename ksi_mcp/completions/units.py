"""The transactions of a turn: each function here is one unit, and together they are its whole life in the store.

    claim     take turns, load what they need, close what a lost attempt left open, and let their first round out
    send      let a later round out: see admission.py
    put_back  a call that was let out found no room after all
    answer    settle, store the answer, and finish if it is the last
    fail      settle what is known, then retry or end
    result    store what a tool gave back
    stop      the call was cut off by a cancellation: paid in full

Money first, ownership second: a settlement is booked even if the turn belongs to somebody else by now.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ksi_mcp.agents import store as agents_store
from ksi_mcp.agents.hearing import tell
from ksi_mcp.agents.history import PastTurn, Round, StoredResult, encode_answer, plain, round_of
from ksi_mcp.agents.injections import bind_injections, release_injections
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Amount
from ksi_mcp.completions import store
from ksi_mcp.completions.admission import Admission
from ksi_mcp.completions.breaker import Breakers
from ksi_mcp.completions.chain import choice_of
from ksi_mcp.completions.endings import context_of, report_end
from ksi_mcp.completions.expecting import unexpected
from ksi_mcp.completions.following import Following
from ksi_mcp.completions.kept import Kept, remembered
from ksi_mcp.completions.looked import Looked
from ksi_mcp.completions.model import Claimed, Claims, Ended, Loaded, Prepared, Ready, Sent, Wanted
from ksi_mcp.completions.semantic import SemanticCache
from ksi_mcp.db import Tx
from ksi_mcp.errors import ProviderError
from ksi_mcp.events.journal import Journal
from ksi_mcp.ids import WorkerId
from ksi_mcp.permissions import Slot
from ksi_mcp.providers.base import Answer
from ksi_mcp.queues.model import ErrorClass, TakenOver, Turn, TurnState
from ksi_mcp.queues.retry import MAX_TRIES, Again, GiveUp
from ksi_mcp.queues.session_queues import SessionQueues

TOUCH_MS = 1000
"""How exactly it is known when an agent was last active."""
CLAIM_S = 0.02
"""A claim that took so long lets no further round out: others want to write as well."""

Prepare = Callable[[Loaded], Prepared | None]
"""Renders the next round of a turn, or says that this takes longer. Pure, for it runs inside a transaction."""


class TurnUnits:
    """The units, bound to the role objects they write through."""

    def __init__(
        self,
        journal: Journal,
        queues: SessionQueues,
        roster: Roster,
        ledger: Ledger,
        breakers: Breakers,
        *,
        semantic: SemanticCache | None = None,
    ) -> None:
        self._journal = journal
        self._queues = queues
        self._roster = roster
        self._ledger = ledger
        self._breakers = breakers
        self._semantic = semantic
        self._kept = Kept()
        self._following = Following(journal, queues, finish=self._finish)
        self._admission = Admission(journal, queues, ledger, breakers=breakers, semantic=semantic, fail=self._failed)

    def claim(
        self, tx: Tx, owner: WorkerId, *, free: Callable[[str], int], limit: int, prepare: Prepare | None = None
    ) -> Claims:
        """Take ready heads, at most `free(provider)` of each, and load what they need.

        With `prepare`, a turn that begins is let out at once: what is claimed may leave when this is committed.
        A turn that was lost too often ends: each try may cost.
        """
        taken: list[Claimed] = []
        until_s = time.perf_counter() + CLAIM_S
        for provider, run_at_ms in self._queues.waiting(tx).items():
            most = min(limit - len(taken), free(provider))
            if most <= 0 or run_at_ms > tx.now_ms:
                continue
            for turn in self._queues.claim(tx, owner, provider, limit=most):
                item = self._load(tx, turn)
                if turn.tries >= MAX_TRIES:
                    error = f"given up after {turn.tries} tries: its worker was lost, or its steps could not be stored"
                    self._failed(tx, item, error_class="infra", error=error)
                    continue
                prepared = None
                if prepare is not None and not item.rounds and time.perf_counter() <= until_s:
                    prepared = prepare(item)
                if prepared is None:
                    taken.append(Claimed(item=item))
                elif (admitted := self.send(tx, item, prepared.wanted, just_claimed=True)) is not None:
                    taken.append(Claimed(item=item, ready=Ready(prepared=prepared, admitted=admitted)))
        return Claims(taken=taken, waiting=self._queues.waiting(tx))

    def _load(self, tx: Tx, turn: Turn) -> Loaded:
        agent = self._roster.get(tx, turn.session_id)
        if turn.attempt > 1:
            self._close_lost(tx, turn)
        elif agent.hears:
            tell(tx, agent.agent_id)
        if turn.attempt > 1 or bind_injections(tx, turn.session_id, turn.turn_id):
            now = agents_store.turn_at_work(
                tx, turn.turn_id, prompt=turn.prompt, at_ms=turn.created_at_ms, seq=turn.seq
            )
        else:  # nothing can be stored of it yet
            now = PastTurn(turn_id=turn.turn_id, prompt=turn.prompt, at_ms=turn.created_at_ms, seq=turn.seq, rounds=())
        earlier = self._kept.get(agent)
        if earlier is None:
            earlier = agents_store.past_turns(tx, turn.session_id, limit=remembered(agent))
        if tx.now_ms - agent.last_active_ms >= TOUCH_MS:
            tx.run("agents.touch", {"agent_id": agent.agent_id, "now_ms": tx.now_ms})
        return Loaded(turn=turn, agent=agent, earlier=earlier, now=now, choice=choice_of(agent, turn.link))

    def load_again(self, tx: Tx, turn: Turn) -> Loaded:
        """A turn that is under way elsewhere, with a batch, as it was when it was let out."""
        agent = self._roster.get(tx, turn.session_id)
        now = agents_store.turn_at_work(tx, turn.turn_id, prompt=turn.prompt, at_ms=turn.created_at_ms, seq=turn.seq)
        earlier = agents_store.past_turns(tx, turn.session_id, limit=remembered(agent))
        return Loaded(turn=turn, agent=agent, earlier=earlier, now=now, choice=choice_of(agent, turn.link))

    def _close_lost(self, tx: Tx, turn: Turn) -> None:
        self._breakers.forget_probe(tx, turn.turn_id)
        for row in tx.all("completions.batch_unsent_of", {"turn_id": turn.turn_id}):
            self.unsent(tx, turn, row["hold_id"], row["call_id"])
        settled = self._ledger.clear_turn(tx, turn.turn_id, context_of(turn, as_system=True))
        if settled.path:
            store.mark_uncertain(tx, turn.turn_id)
            self._queues.charge(tx, turn.turn_id, usd_micros=settled.booked.usd_micros, tokens=settled.booked.tokens)
            self._queues.unblock(tx, settled.path)

    def begin(self, tx: Tx) -> None:
        """What a process does that has become the worker: close the holds of turns that nobody runs any more."""
        self._breakers.load(tx)
        for turn_id in {row["turn_id"] for row in tx.all("budgets.orphan_holds")}:
            self._close_lost(tx, self._queues.get(tx, turn_id))

    def send(
        self, tx: Tx, item: Loaded, wanted: Wanted, *, just_claimed: bool = False, looked: Looked | None = None
    ) -> Sent | Round | None:
        """A call that may leave, a round whose answer was there already, or None if the turn had to stop here."""
        admitted = self._admission.ask(tx, item, wanted, just_claimed=just_claimed, looked=looked)
        if isinstance(admitted, Round):
            wrong = unexpected(item, admitted.stop_reason, admitted.text)
            follows = self._following.taken(tx, item, admitted, None, wrong)
            return follows if isinstance(follows, Round) else None
        return admitted

    def answer(
        self,
        tx: Tx,
        item: Loaded,
        sent: Sent,
        answer: Answer,
        cost: Amount,
        *,
        wrong: str | None,
        looked: Looked | None = None,
    ) -> Round | Ended | None:
        """Settle, store, and finish if nothing is left to do: the round that the turn goes on with, or how it ended.

        None: it waits for somebody, or is not ours any more. `wrong` is what `unexpected` says of the answer:
        looking may take longer than a transaction should.
        """
        turn, choice = item.turn, item.choice
        ctx = context_of(turn, as_system=True)
        settled = self._ledger.settle(tx, sent.hold_id, cost, ctx)
        self._queues.unblock(tx, settled.path)
        self._breakers.succeeded(tx, choice.provider, choice.model, turn.turn_id, ctx)
        stored = encode_answer(answer)
        current = round_of(sent.number, stored, {})
        try:
            follows = self._following.taken(tx, item, current, cost, wrong)
        except TakenOver:
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
        store.answered(tx, sent.call_id, answer, stored=stored, cost_usd_micros=cost.usd_micros)
        if self._semantic is not None and looked is not None and answer.stop_reason == "end_turn" and wrong is None:
            self._semantic.learn(tx, item, looked, sent.call_id, answer.text)
        return follows

    def keep(self, item: Loaded, ended: Ended) -> None:
        """After the commit of a turn's end: the next turn of its session need not read the conversation again."""
        if ended.turn.state == "done":
            self._kept.put(item, ended.answer)

    def put_back(self, tx: Tx, item: Loaded, sent: Sent) -> None:
        """The provider has no room any more for a call that was let out: it never left, and waits in the queue."""
        self._breakers.forget_probe(tx, item.turn.turn_id)
        self._settle_failed(tx, item, sent, usd_micros=0)
        store.ended(
            tx, sent.call_id, state="failed", error_kind="rate", error="not sent: no room any more", cost_usd_micros=0
        )
        self._queues.step_back(tx, item.turn)

    def unsent(self, tx: Tx, turn: Turn, hold_id: str, call_id: int) -> None:
        """A call that was let out and will never leave: its money is free again."""
        ctx = context_of(turn, as_system=True)
        nothing = Amount(usd_micros=0, tokens=0)
        self._queues.unblock(tx, self._ledger.settle(tx, hold_id, nothing, ctx).path)
        store.ended(tx, call_id, state="failed", error_kind="transport", error="not sent", cost_usd_micros=0)

    def step_back(self, tx: Tx, item: Loaded) -> None:
        """Stop between two rounds; whoever claims the turn goes on with what is stored."""
        self._queues.step_back(tx, item.turn)

    def give_up(self, tx: Tx, item: Loaded, *, error: str, partial: str) -> None:
        """End a turn whose model went on asking for tools beyond its rounds."""
        self._finish(tx, item, state="failed", error_class="task", error=error, partial=partial)

    def crash(self, tx: Tx, item: Loaded) -> None:
        """End a turn that met a defect of the server: what it left open is closed, the session goes on."""
        self._close_lost(tx, item.turn)
        self._finish(tx, item, state="failed", error_class="infra", error="internal error; the server's log has it")

    def fail(
        self, tx: Tx, item: Loaded, sent: Sent, error: ProviderError, verdict: Again | GiveUp, *, told: bool = True
    ) -> bool:
        """Settle what is known, then retry or end; whether the turn will be tried again."""
        turn, choice = item.turn, item.choice
        known = 0 if error.billed == "no" else error.cost_usd_micros
        settled = self._settle_failed(tx, item, sent, usd_micros=known)
        ctx = context_of(turn, as_system=True)
        if told:
            self._breakers.failed(tx, choice.provider, choice.model, turn.turn_id, error.kind, ctx)
        else:
            self._breakers.forget_probe(tx, turn.turn_id)
        state = "uncertain" if known is None else "failed"
        text, partial = plain(error.text()), plain(error.partial_text)
        store.ended(
            tx, sent.call_id, state=state, error_kind=error.kind, error=text, cost_usd_micros=settled.usd_micros
        )
        if not self._owned(tx, turn):
            return False
        if isinstance(verdict, Again):
            self._queues.retry(
                tx, turn, delay_s=verdict.delay_s, counts=verdict.counts, error=text, partial_text=partial or None
            )
            facts = {"turn": turn.turn_id, "agent": turn.session_id, "kind": error.kind, "delay_s": verdict.delay_s}
            self._journal.record(
                tx,
                "completion:retrying",
                {**facts, "error": text[:500]},
                ctx,
                agent_id=turn.session_id,
            )
            return True
        if verdict.error_class == "infra" and self._admission.next_model(tx, item, error=text):
            return True
        self._finish(tx, item, state=verdict.state, error_class=verdict.error_class, error=text, partial=partial)
        return False

    def streamed(self, tx: Tx, item: Loaded, text: str, chars: int) -> None:
        """Store how far the answer of a running call is; nothing, if the turn is not ours any more."""
        self._queues.streamed(tx, item.turn, text=text, chars=chars)

    def stop(self, tx: Tx, item: Loaded, sent: Sent) -> None:
        """The call was cut off from here: what it would have cost is unknown, so it is paid in full."""
        self._breakers.forget_probe(tx, item.turn.turn_id)
        cost = self._settle_failed(tx, item, sent, usd_micros=None)
        store.ended(
            tx,
            sent.call_id,
            state="uncertain",
            error_kind="transport",
            error="cancelled",
            cost_usd_micros=cost.usd_micros,
        )

    def _settle_failed(self, tx: Tx, item: Loaded, sent: Sent, *, usd_micros: int | None) -> Amount:
        """Book what a call without an answer has cost; None: nobody knows, so it is paid in full."""
        ctx, turn_id = context_of(item.turn, as_system=True), item.turn.turn_id
        if usd_micros is None:
            settled = self._ledger.settle_in_full(tx, sent.hold_id, ctx)
        else:
            settled = self._ledger.settle(tx, sent.hold_id, Amount(usd_micros=usd_micros, tokens=0), ctx)
        if usd_micros != 0:
            self._queues.charge(tx, turn_id, usd_micros=settled.booked.usd_micros, tokens=settled.booked.tokens)
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

    def _failed(self, tx: Tx, item: Loaded, *, error_class: ErrorClass, error: str) -> None:
        self._finish(tx, item, state="failed", error_class=error_class, error=error)

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
        cost: Amount | None = None,
    ) -> Turn:
        done = self._queues.finish(
            tx,
            item.turn,
            state=state,
            result=result,
            partial_text=partial or None,
            error_class=error_class,
            error=error,
            cost=None if cost is None else (cost.usd_micros, cost.tokens),
        )
        if state != "done":
            release_injections(tx, item.turn.turn_id)  # what was put in is not lost with the turn
        report_end(tx, self._journal, done, agent_name=item.agent.name)
        return done


def with_result(item: Round, index: int, text: str, *, is_error: bool) -> Round:
    """The same round with one more tool result."""
    return replace(item, results={**item.results, index: StoredResult(index=index, text=text, is_error=is_error)})
