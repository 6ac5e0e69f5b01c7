"""What runs beside the turns: delivering events, firing joins and delayed events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any, Final

from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError, StoreError
from ksi_mcp.events.journal import Due, Journal
from ksi_mcp.permissions import SYSTEM, fresh_context
from ksi_mcp.queues.model import TakenOver
from ksi_mcp.services import Services
from ksi_mcp.tools.events import decode_context
from ksi_mcp.tools.toolbox import Toolbox

logger = logging.getLogger(__name__)

LONGEST_NAP_S: Final = 5.0
"""The pumps look this often even if they heard nothing."""
LONGEST_JOIN_NAP_S: Final = 1.0
"""A join that was begun meanwhile may be due so soon."""
_DELAYED_BATCH: Final = 100
_FIRE_S: Final = 5.0
"""A delayed command that waits for others longer than this is left: the others are due as well."""
_SWEEP_S: Final = 30.0


def new_bell(journal: Journal, *kinds: Due) -> asyncio.Event:
    """One for each pump: what clears its own bell cannot swallow another's ring."""
    bell = asyncio.Event()
    journal.on_wake(bell.set, *kinds)
    return bell


async def nap(bell: asyncio.Event, seconds: float) -> None:
    """Sleep until somebody rings, but not longer than so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await bell.wait()


class Pumps:
    """The loops of a worker process beside its turns; none of them ends."""

    def __init__(self, services: Services, toolbox: Toolbox) -> None:
        self._services = services
        self._toolbox = toolbox

    async def route(self) -> None:
        """Deliver what is in the outbox, fire joins whose time is up, bury rules whose time is over."""
        router, clock, journal = self._services.router, self._services.clock, self._services.journal
        swept_s, joins_s = 0.0, 0.0
        bell = new_bell(journal, "events")
        while True:
            bell.clear()
            try:
                handled = await router.pump_once()
                if clock.monotonic_s() >= joins_s:
                    joins_s = clock.monotonic_s() + await self._fire_joins()
                if clock.monotonic_s() - swept_s >= _SWEEP_S:
                    swept_s = clock.monotonic_s()
                    await journal.commit(router.sweep_expired)
            except Exception:  # a pump that ends takes the worker along, and all it has under way
                logger.exception("deliveries could not be stored; trying again")
                await asyncio.sleep(1)
                continue
            if not handled:
                await nap(bell, min(max(joins_s - clock.monotonic_s(), 0.005), LONGEST_NAP_S))

    async def _fire_joins(self) -> float:
        """Fire joins whose time is up; when to look again, in seconds."""
        due_ms = await self._services.router.fire_due()
        if due_ms is None:
            return LONGEST_JOIN_NAP_S
        return min(LONGEST_JOIN_NAP_S, max((due_ms - self._services.clock.now_ms()) / 1000, 0.005))

    async def fire_delayed(self) -> None:
        """Fire what is due: each in the transaction of its effect, on the authority it was given."""
        bell = new_bell(self._services.journal, "delays")
        while True:
            bell.clear()
            try:
                nap_s = await self._fire_due()
            except Exception:  # as above
                logger.exception("delayed events could not be fired; trying again")
                nap_s = 1.0
            await nap(bell, nap_s)

    async def _fire_due(self) -> float:
        """Fire what is due; how long nothing more will be."""
        journal, now_ms = self._services.journal, self._services.clock.now_ms()
        rows = await journal.read(lambda tx: tx.all("events.due", {"now_ms": tx.now_ms, "limit": _DELAYED_BATCH}))
        for row in rows:
            await self._fire(row)
        following = await journal.read(lambda tx: tx.one("events.next_due"))
        if following is None or following["due_ms"] is None:
            return LONGEST_NAP_S
        return float(min(LONGEST_NAP_S, max((following["due_ms"] - now_ms) / 1000, 0.005)))

    async def _fire(self, row: Any) -> None:
        delayed_id = int(row["delayed_id"])

        def guard(tx: Tx) -> None:
            if tx.run("events.drop_delayed", {"delayed_id": delayed_id}) == 0:
                raise TakenOver(f"delayed event {delayed_id} was fired before")

        def drop(tx: Tx) -> int:
            return tx.run("events.drop_delayed", {"delayed_id": delayed_id})

        journal = self._services.journal
        ctx = decode_context(row["context"])
        args = {"event": row["event"], "data": json.loads(row["data"])}
        if row["condition"] is not None:
            args["condition"] = row["condition"]
        try:
            async with asyncio.timeout(_FIRE_S):
                done = await self._toolbox.call(ctx, "event_emit", args, guard=guard)
        except TakenOver:
            return
        except StoreError:
            raise  # nothing of it is lost: it waits for the next attempt
        except Exception as error:
            if isinstance(error, TimeoutError):  # where it had taken effect, its row is gone and nothing is reported
                reason = f"it waited for more than {_FIRE_S:g} s"
            elif isinstance(error, KsiError):
                reason = error.text()[:1000]
            else:
                logger.exception("delayed event %d met an error that nobody expected", delayed_id)
                reason = "internal error; the server's log has it"

            def fail(tx: Tx) -> None:
                if drop(tx):
                    facts = {"event": row["event"], "actor": str(ctx.actor), "reason": reason}
                    journal.record(tx, "system:delayed_failed", facts, fresh_context(SYSTEM), routable=False)

            await journal.commit(fail)
            return
        if not done.committed:  # a command that only reads, or a condition that does not hold
            await journal.commit(drop)
