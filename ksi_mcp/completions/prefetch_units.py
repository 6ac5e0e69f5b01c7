"""The transactions of a prefetch: it is sent, it has come to something, or its worker was lost meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ksi_mcp.agents import store as agents_store
from ksi_mcp.agents.hearing import tell
from ksi_mcp.agents.history import encode_answer
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Amount, Blocked, Denied
from ksi_mcp.completions import prefetch
from ksi_mcp.completions.breaker import Breakers, family_of
from ksi_mcp.completions.chain import choice_of
from ksi_mcp.completions.kept import remembered
from ksi_mcp.completions.model import Loaded
from ksi_mcp.completions.prefetch import State, standing
from ksi_mcp.completions.preparing import Preparing
from ksi_mcp.db import Row, Tx
from ksi_mcp.events.journal import Recorder
from ksi_mcp.ids import TurnId
from ksi_mcp.providers.base import Answer, Request
from ksi_mcp.queues.model import TurnDraft, changed, queued_turn
from ksi_mcp.queues.session_queues import SessionQueues

NOTHING: Final = Amount(usd_micros=0, tokens=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A prefetch that is paid for and may leave."""

    row: Row
    item: Loaded
    request: Request
    hold_id: str
    worst: Amount
    """What was set aside."""
    seconds_left: float | None


class PrefetchUnits:
    """The units, bound to the role objects they write through."""

    def __init__(
        self,
        journal: Recorder,
        queues: SessionQueues,
        roster: Roster,
        ledger: Ledger,
        *,
        preparing: Preparing,
    ) -> None:
        self._journal = journal
        self._queues = queues
        self._roster = roster
        self._ledger = ledger
        self._breakers = Breakers(journal)
        self._preparing = preparing

    def begin(self, tx: Tx) -> None:
        """What a process does that has become the worker: pay in full what a lost one had under way."""
        for row in prefetch.lost(tx):
            ctx = prefetch.context_of(row, row["orchestration_id"])
            settled = self._ledger.settle_in_full(tx, row["hold_id"], ctx)
            self._queues.unblock(tx, settled.path)
            prefetch.paid(tx, row["prefetch_id"], settled.booked)
            prefetch.over(tx, row["prefetch_id"], "cancelled", error="the worker was lost")
            prefetch.report(tx, self._journal, row, row["agent_name"], ctx, cost=settled.booked)

    def load(self, tx: Tx, row: Row) -> Loaded:
        """The agent's next turn with that prompt, as the worker would load it."""
        agent = self._roster.get(tx, row["agent_id"])
        earlier = agents_store.past_turns(tx, agent.agent_id, limit=remembered(agent))
        choice, turn_id = choice_of(agent, 0), TurnId(f"{prefetch.HOLDS}{row['prefetch_id']}")
        seq = earlier[-1].seq + 1 if earlier else 1
        draft = TurnDraft(
            session_id=agent.agent_id,
            provider=choice.provider,
            prompt=row["prompt"],
            orchestration_id=agent.orchestration_id,
            created_by=row["created_by"],
            cause_id=row["cause_id"],
            root_id=row["root_id"],
            hops=row["hops"],
            depth=row["depth"],
        )
        turn = changed(queued_turn(draft, turn_id=turn_id, seq=seq, now_ms=tx.now_ms, held=0), attempt=1)
        now = prefetch.next_turn(tx, agent.agent_id, turn_id=turn_id, prompt=row["prompt"], seq=seq)
        return Loaded(turn=turn, agent=agent, earlier=earlier, now=now, choice=choice)

    def send(self, tx: Tx, prefetch_id: int, provider: str) -> Begun | None:
        """Set the money aside and mark it sent; None if it has to wait, or nothing can come of it."""
        open_now = next(iter(prefetch.open_ones(tx, prefetch_id)), None)
        if open_now is None or not standing(open_now, tx.now_ms).ready or turns_due(tx, self._queues):
            return None
        row = prefetch.find(tx, prefetch_id)
        if row is None:
            return None
        tell(tx, row["agent_id"])  # what it has heard goes with its next turn
        item = self.load(tx, row)
        prepared = self._preparing.prepare(item)
        if prepared is None or item.choice.provider != provider or self._circuit_is_open(tx, item):
            return None
        ctx = prefetch.context_of(row, item.agent.orchestration_id)
        if prepared.wanted.unpriced is not None:
            self._refuse(tx, row, item, prepared.wanted.unpriced)
            return None
        held = self._ledger.reserve(
            tx,
            row["account_id"],
            turn_id=item.turn.turn_id,
            wanted=prepared.wanted.worst,
            new_turn=False,
            sent=True,
            ctx=ctx,
        )
        if isinstance(held, Denied):
            self._refuse(tx, row, item, held.text())
            return None
        if isinstance(held, Blocked):
            return None
        prefetch.sent(
            tx,
            prefetch_id,
            provider=provider,
            model=item.choice.model,
            request_hash=prepared.wanted.request_hash,
            hold_id=held.hold_id,
        )
        return Begun(
            row=row,
            item=item,
            request=prepared.request,
            hold_id=held.hold_id,
            worst=prepared.wanted.worst,
            seconds_left=held.seconds_left,
        )

    def _circuit_is_open(self, tx: Tx, item: Loaded) -> bool:
        """Whether the model fails of late: then it is left alone, and nobody's probe is taken away."""
        family = family_of(item.choice.model)
        return any(
            circuit.provider == item.choice.provider and circuit.family == family and circuit.state != "closed"
            for circuit in self._breakers.all(tx)
        )

    def _refuse(self, tx: Tx, row: Row, item: Loaded, error: str) -> None:
        prefetch.over(tx, row["prefetch_id"], "failed", error=error)
        ctx = prefetch.context_of(row, item.agent.orchestration_id)
        prefetch.report(tx, self._journal, row, item.agent.name, ctx, cost=NOTHING)

    def close(
        self,
        tx: Tx,
        begun: Begun,
        cost: Amount | None,
        *,
        state: State,
        error: str | None = None,
        answer: Answer | None = None,
    ) -> None:
        """Settle (None: in full, for nobody knows the cost) and store what has become of it."""
        ctx = prefetch.context_of(begun.row, begun.item.agent.orchestration_id)
        if cost is None:
            settled = self._ledger.settle_in_full(tx, begun.hold_id, ctx)
        else:
            settled = self._ledger.settle(tx, begun.hold_id, cost, ctx)
        if not settled.path:  # somebody else has become the worker, and has paid for it
            return
        self._queues.unblock(tx, settled.path)
        prefetch_id = begun.row["prefetch_id"]
        prefetch.paid(tx, prefetch_id, settled.booked, None if answer is None else answer.usage)
        if error is None and answer is not None:
            prefetch.answered(tx, prefetch_id, encode_answer(answer))
        else:
            prefetch.over(tx, prefetch_id, state, error=error or state)
        prefetch.report(tx, self._journal, begun.row, begun.item.agent.name, ctx, cost=settled.booked)


def turns_due(tx: Tx, queues: SessionQueues) -> bool:
    """Whether a turn waits that could run at this moment."""
    return any(run_at_ms <= tx.now_ms for run_at_ms in queues.waiting(tx).values())
