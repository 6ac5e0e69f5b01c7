"""The pump: takes events out of the outbox and delivers them by the rules of that moment."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError, StoreError
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import event_of
from ksi_mcp.routing.collecting import due, forget, time_up
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.listeners import ListenerFailed, Listeners, React
from ksi_mcp.routing.outbox import EventDelivery, Limits, TurnSink
from ksi_mcp.routing.safe_mode import is_paused

logger = logging.getLogger(__name__)

UNIT_S = 0.005
"""Others want to write as well: a unit routes no further event after this long."""


class Pump:
    """Carries the outbox out.

    Contract: an event is delivered exactly once, in the order of ids, by the rules of the moment in which it is
    delivered; its outbox row goes in the transaction of its deliveries. What cannot be delivered leaves an event
    that says so and never holds up another.
    """

    def __init__(
        self,
        journal: Journal,
        turns: TurnSink,
        limits: Limits,
        *,
        table: Callable[[Tx], RuleTable],
        refresh: Callable[[], Awaitable[None]],
        hear: React | None = None,
    ) -> None:
        self._journal = journal
        self._turns = turns
        self._limits = limits
        self._table = table
        self._refresh = refresh
        self._pumping = asyncio.Lock()
        self.listeners = Listeners(always=hear)
        """Who reacts before the rules are judged; `hear` to every event."""

    async def once(self, limit: int) -> int:
        """Deliver the oldest waiting events, at most `limit`; how many were handled.

        Raises:
            StoreError: the store could not take it; what was not delivered waits on.
        """
        async with self._pumping:
            waiting = await self._journal.read(
                lambda tx: [] if is_paused(tx) else tx.all("routing.waiting", {"limit": limit})
            )
            if not waiting:
                return 0
            await self._refresh()
            ids = [int(row["event_id"]) for row in waiting]
            try:
                return await self._journal.commit(partial(self._handle_all, event_ids=ids))
            except Exception as failure:  # noqa: BLE001  whichever it was will say so itself
                logger.debug("routing %d events one by one: %s", len(ids), failure)
            # Submitted in this order they run in this order, mostly in one transaction, each undone alone.
            outcomes = await asyncio.gather(
                *(self._journal.commit(partial(self._handle, event_id=event_id)) for event_id in ids),
                return_exceptions=True,
            )
            for event_id, outcome in zip(ids, outcomes, strict=True):
                if isinstance(outcome, ListenerFailed):
                    outcome = await self._handle_without(event_id, outcome)  # noqa: PLW2901
                if outcome is None:
                    continue
                if isinstance(outcome, StoreError) or not isinstance(outcome, Exception):
                    raise outcome
                await self._journal.commit(partial(self._give_up, event_id=event_id, reason=_reason(outcome)))
            return len(ids)

    async def fire_due(self, limit: int = 100) -> int | None:
        """Fire the joins whose time is up, with what is there; when the next one is due (ms), None if none is.

        Raises:
            StoreError: the store could not take it; they are fired the next time.
        """
        async with self._pumping:
            waiting, next_ms = await self._journal.read(partial(self._due, limit=limit))
            if not waiting:
                return next_ms
            await self._refresh()
            for rule_id, key in waiting:
                try:
                    await self._journal.commit(partial(self._fire, rule_id=rule_id, key=key))
                except StoreError:
                    raise
                except Exception as failure:
                    logger.exception("a join of rule %s could not be fired", rule_id)
                    reason = _reason(failure)
                    await self._journal.commit(partial(self._give_up_join, rule_id=rule_id, key=key, reason=reason))
            return (await self._journal.read(partial(self._due, limit=1)))[1]

    def _due(self, tx: Tx, limit: int) -> tuple[list[tuple[str, str]], int | None]:
        """The collections whose time is up, and when the first of those that wait is due (ms)."""
        row = tx.one("routing.next_join_due")
        next_ms = None if row is None else row["due_ms"]
        if next_ms is None or is_paused(tx):
            return [], None
        return due(tx, limit=limit) if next_ms <= tx.now_ms else [], next_ms

    def _fire(self, tx: Tx, rule_id: str, key: str) -> None:
        compiled = self._table(tx).get(rule_id)
        if compiled is None or compiled.rule.expired(tx.now_ms) or compiled.rule.join is None:
            forget(tx, rule_id)
            return
        done = time_up(tx, compiled.rule, key)
        if done is not None:
            EventDelivery(tx, self._journal, self._turns, self._limits, done.event).fire(compiled, done)

    def _give_up_join(self, tx: Tx, rule_id: str, key: str, reason: str) -> None:
        compiled = self._table(tx).get(rule_id)
        done = None if compiled is None else time_up(tx, compiled.rule, key)
        if compiled is not None and done is not None:
            delivery = EventDelivery(tx, self._journal, self._turns, self._limits, done.event, joined=True)
            delivery.undeliverable(reason, rule=compiled.rule)

    def _handle_all(self, tx: Tx, event_ids: list[int]) -> int:
        """Route the first of these, as many as one transaction should; how many."""
        until_s = time.perf_counter() + UNIT_S
        for count, event_id in enumerate(event_ids, start=1):
            self._handle(tx, event_id)
            if time.perf_counter() > until_s:
                return count
        return len(event_ids)

    def _handle(self, tx: Tx, event_id: int, failed: Collection[ListenerFailed] = ()) -> None:
        row = tx.one("routing.waiting_event", {"event_id": event_id})
        if row is None:
            return
        event = event_of(row)
        self.listeners.hear(tx, event, without=[each.react for each in failed])
        for each in failed:
            each.report(tx, self._journal, event)
        EventDelivery(tx, self._journal, self._turns, self._limits, event).run(self._table(tx))
        tx.run("routing.handled", {"event_id": event_id})

    async def _handle_without(self, event_id: int, failure: ListenerFailed) -> Exception | None:
        """Route an event without those of its listeners that fail."""
        failed = [failure]
        while True:
            logger.error("a listener of event %d failed", event_id, exc_info=failed[-1].failure)
            try:
                await self._journal.commit(partial(self._handle, event_id=event_id, failed=tuple(failed)))
            except ListenerFailed as another:
                failed.append(another)
            except Exception as other:  # noqa: BLE001  the pump decides
                return other
            else:
                return None

    def _give_up(self, tx: Tx, event_id: int, reason: str) -> None:
        row = tx.one("routing.waiting_event", {"event_id": event_id})
        if row is None:
            return
        EventDelivery(tx, self._journal, self._turns, self._limits, event_of(row)).undeliverable(reason)
        tx.run("routing.handled", {"event_id": event_id})


def _reason(failure: Exception) -> str:
    """What one may know of it."""
    return ascii(failure.message) if isinstance(failure, KsiError) else type(failure).__name__
