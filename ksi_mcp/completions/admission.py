"""What stands between a rendered request and the provider, in this order, in one transaction.

is the turn still ours, and may its session run?   else step back
is the answer there already, or on its way?         then it is not bought again
does somebody else than a model answer?             then it is parked for them
is the model's circuit closed?                      else the next model of the chain, or park until it may be
is there money for the worst case?                  else what the account's policy says
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

from ksi_mcp.agents.history import Round, round_of
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Amount, Blocked, Denied, Hold
from ksi_mcp.completions import prefetch, store
from ksi_mcp.completions.breaker import Breakers
from ksi_mcp.completions.chain import chain_of
from ksi_mcp.completions.endings import context_of
from ksi_mcp.completions.looked import Looked
from ksi_mcp.completions.model import Loaded, Sent, Wanted
from ksi_mcp.completions.semantic import SemanticCache
from ksi_mcp.db import Tx
from ksi_mcp.events.journal import Recorder
from ksi_mcp.providers.kinds import traits_of
from ksi_mcp.queues.model import ErrorClass
from ksi_mcp.queues.session_queues import SessionQueues

PREFETCH_LOOK_S: Final = 0.25
"""How often a turn looks whether the very answer that it wants, which is being made beforehand, is there."""
MAX_QUESTION_CHARS: Final = 4_000
"""Of a prompt as it is shown to whoever answers instead of a model; completion_status has all of it."""


class Fail(Protocol):
    """Ends the turn as failed."""

    def __call__(self, tx: Tx, item: Loaded, *, error_class: ErrorClass, error: str) -> None:
        """Store and report it."""
        ...


class Admission:
    """Lets a round out, serves it from the store, or sees to it that the turn waits or ends."""

    def __init__(
        self,
        journal: Recorder,
        queues: SessionQueues,
        ledger: Ledger,
        *,
        breakers: Breakers,
        semantic: SemanticCache | None,
        fail: Fail,
    ) -> None:
        self._journal = journal
        self._queues = queues
        self._ledger = ledger
        self._breakers = breakers
        self._semantic = semantic
        self._fail = fail

    def ask(
        self, tx: Tx, item: Loaded, wanted: Wanted, *, just_claimed: bool = False, looked: Looked | None = None
    ) -> Sent | Round | None:
        """A call that may leave, a round that need not be bought, or None if the turn had to stop here.

        `just_claimed`: in this very transaction, so it is ours and not held.

        Raises:
            TakenOver: the turn was cancelled, finished or claimed by somebody else.
        """
        turn, agent, choice = item.turn, item.agent, item.choice
        if not just_claimed and self._queues.require_owned(tx, turn.turn_id, turn.attempt, turn.owner or ""):
            self._queues.step_back(tx, turn)
            return None
        if (known := self._known(tx, item, wanted, looked)) is not None:
            return known
        if wanted.number == 1 and prefetch.under_way(tx, wanted.request_hash, agent.agent_id):
            # It is being bought already: to buy it twice would gain nothing.
            self._queues.retry(
                tx, turn, delay_s=PREFETCH_LOOK_S, counts=False, error="its answer is on its way", partial_text=None
            )
            return None
        if traits_of(choice.provider).parks:
            self._ask_somebody(tx, item, wanted)
            return None
        again_ms = self._breakers.ask(tx, choice.provider, choice.model, turn.turn_id)
        if again_ms is not None:
            error = f"{choice.model} is not asked: too many of its calls failed of late"
            if not self.next_model(tx, item, error=error):
                self._queues.park(tx, turn, on="breaker", run_at_ms=again_ms, error=error)
            return None
        if wanted.unpriced is not None and any(
            account.limits.usd_micros is not None for account in self._ledger.path(tx, agent.agent_id)
        ):
            self._breakers.forget_probe(tx, turn.turn_id)
            if not self.next_model(tx, item, error=wanted.unpriced):
                self._fail(tx, item, error_class="budget", error=wanted.unpriced)
            return None
        held = self._set_aside(tx, item, wanted)
        if held is None:
            self._breakers.forget_probe(tx, turn.turn_id)
            return None
        call_id = store.sent(
            tx,
            turn_id=turn.turn_id,
            number=wanted.number,
            attempt=turn.attempt,
            hold_id=held.hold_id,
            provider=choice.provider,
            model=choice.model,
            request_hash=wanted.request_hash,
        )
        if wanted.batch:
            store.batch_waits(tx, call_id)
            self._breakers.forget_probe(tx, turn.turn_id)  # its answer may take a day
            self._queues.park(tx, turn, on="batch")
            facts = {"turn": turn.turn_id, "agent": agent.agent_id, "agent_name": agent.name}
            self._journal.record(tx, "completion:batched", facts, context_of(turn, as_system=True), routable=False)
            return None
        return Sent(call_id=call_id, hold_id=held.hold_id, number=wanted.number, seconds_left=held.seconds_left)

    def _set_aside(self, tx: Tx, item: Loaded, wanted: Wanted) -> Hold | None:
        """The money for a round, held as sent; None if the turn had to stop for want of it."""
        turn = item.turn
        held = self._ledger.reserve(
            tx,
            item.agent.agent_id,
            turn_id=turn.turn_id,
            wanted=wanted.worst,
            new_turn=(wanted.number == 1 and turn.attempt == 1) or store.first_call(tx, turn.turn_id),
            sent=True,
            ctx=context_of(turn, as_system=True),
        )
        if isinstance(held, Hold):
            return held
        if isinstance(held, Blocked):
            self._queues.block(tx, turn, account_id=held.account_id)
        else:
            self._denied(tx, item, held)
        return None

    def _ask_somebody(self, tx: Tx, item: Loaded, wanted: Wanted) -> None:
        """Park a turn until a client, an agent or a person answers it. It counts as a turn, and costs nothing."""
        turn, agent = item.turn, item.agent
        free = replace(wanted, worst=Amount(usd_micros=0, tokens=0))
        if (held := self._set_aside(tx, item, free)) is None:
            return
        ctx = context_of(turn, as_system=True)
        self._queues.unblock(tx, self._ledger.settle(tx, held.hold_id, free.worst, ctx).path)
        facts = {"turn": turn.turn_id, "agent": agent.agent_id, "agent_name": agent.name, "reason": "external"}
        asked = "\n\n".join((*item.now.before, turn.prompt, *item.now.after))
        question = {
            "kind": "external",
            "text": asked[:MAX_QUESTION_CHARS],
            "system": "\n\n".join((agent.system, *item.now.system))[:MAX_QUESTION_CHARS],
            "earlier_turns": len(item.earlier),
        }
        self._queues.park(tx, turn, on="answer", question=question)
        hint = "completion_answer ends it with a reply; agent_history has what was said before"
        self._journal.record(tx, "completion:parked", {**facts, "hint": hint}, ctx, agent_id=agent.agent_id)

    def next_model(self, tx: Tx, item: Loaded, *, error: str) -> bool:
        """Let the next model of the chain be asked whose circuit is closed; False if there is none."""
        turn = item.turn
        for other in chain_of(item.agent)[item.choice.link + 1 :]:
            if self._breakers.ask(tx, other.provider, other.model, turn.turn_id) is not None:
                continue
            self._breakers.forget_probe(tx, turn.turn_id)  # it asks again when it is its turn there
            self._queues.fail_over(tx, turn, link=other.link, provider=other.provider, error=error)
            facts = {"turn": turn.turn_id, "agent": turn.session_id, "from": item.choice.model, "to": other.model}
            self._journal.record(
                tx,
                "completion:substituted",
                {**facts, "error": error[:500]},
                context_of(turn, as_system=True),
                agent_id=turn.session_id,
            )
            return True
        return False

    def _known(self, tx: Tx, item: Loaded, wanted: Wanted, looked: Looked | None) -> Round | None:
        """The answer of a time line that was left, or one made beforehand; if asked for, that of an equal request."""
        turn, agent = item.turn, item.agent
        call_id = left = similarity = None
        if turn.orchestration_id is not None:
            call_id = left = store.take_reusable(
                tx, turn.orchestration_id, agent.name, wanted.request_hash, turn_id=turn.turn_id
            )
        if call_id is None and wanted.number == 1 and (said := self._prefetched(tx, item, wanted)) is not None:
            return said
        if call_id is None and (turn.cache or agent.settings.cache) == "exact":
            call_id = store.cached(tx, wanted.request_hash)
        if call_id is None and self._semantic is not None and looked is not None:
            call_id = self._semantic.note(tx, item, looked)
            similarity = looked.similarity
        if call_id is None:
            return None
        stored = store.reuse(
            tx,
            call_id,
            turn_id=turn.turn_id,
            number=wanted.number,
            attempt=turn.attempt,
            account_id=agent.agent_id,
            request_hash=wanted.request_hash,
            similarity=similarity,
        )
        self._queues.reused(tx, turn.turn_id, similarity=similarity)
        kept = {} if left is None else store.give_kept_results(tx, left, turn_id=turn.turn_id, number=wanted.number)
        return round_of(wanted.number, stored, kept)

    def _prefetched(self, tx: Tx, item: Loaded, wanted: Wanted) -> Round | None:
        """The answer that was made beforehand to this very request of this agent."""
        turn, agent_id = item.turn, item.agent.agent_id
        found = prefetch.prefetched(tx, wanted.request_hash, agent_id)
        if found is None:
            return None
        stored = prefetch.use(
            tx, found["prefetch_id"], turn_id=turn.turn_id, number=1, attempt=turn.attempt, account_id=agent_id
        )
        if stored is None:
            return None
        self._queues.reused(tx, turn.turn_id)
        return round_of(1, stored, {})

    def _denied(self, tx: Tx, item: Loaded, denied: Denied) -> None:
        turn, agent = item.turn, item.agent
        facts = {
            "agent": agent.agent_id,
            "agent_name": agent.name,
            "turn": turn.turn_id,
            "account": denied.account_id,
            "limit_kind": denied.kind,
            "policy": denied.policy,
            "reason": denied.text(),
        }
        ctx = context_of(turn, as_system=True)
        self._journal.record(tx, "agent:budget_exceeded", facts, ctx, agent_id=agent.agent_id)
        if denied.policy == "downgrade" and denied.cheaper_may_fit and self.next_model(tx, item, error=denied.text()):
            return
        if denied.policy == "park" and denied.kind != "closed":
            question = {"kind": "budget", "account": denied.account_id, "text": denied.text()}
            self._queues.park(
                tx, turn, on="budget", account_id=denied.account_id, question=question, error=denied.text()
            )
            parked = {**facts, "hint": "budget_set raises a limit; completion_cancel gives the turn up"}
            self._journal.record(tx, "completion:parked", parked, ctx, agent_id=agent.agent_id)
            return
        self._fail(tx, item, error_class="budget", error=denied.text())
        if denied.policy == "terminate":  # whoever ends agents and runs hears it
            self._journal.record(tx, "budget:terminate", facts, ctx, agent_id=agent.agent_id)
