"""The worker: claims turns and runs them side by side, up to its concurrency."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from ksi_mcp.completions.turns import TurnRunner
from ksi_mcp.completions.units import Loaded, TurnUnits
from ksi_mcp.errors import StoreError
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event
from ksi_mcp.ids import WorkerId
from ksi_mcp.queues.model import TakenOver
from ksi_mcp.queues.session_queues import SessionQueues

logger = logging.getLogger(__name__)

LONGEST_NAP_S = 5.0
"""A worker that heard nothing looks all the same."""


class Worker:
    """One per data folder. `run` returns when it is stopped.

    A turn whose tool waits for others gives its place away meanwhile, so that waiting never
    keeps the awaited from running.
    """

    def __init__(
        self,
        journal: Journal,
        queues: SessionQueues,
        units: TurnUnits,
        runner: TurnRunner,
        *,
        worker_id: WorkerId,
        concurrency: int,
    ) -> None:
        self._journal = journal
        self._queues = queues
        self._units = units
        self._runner = runner
        self._worker_id = worker_id
        self._concurrency = concurrency
        self._active = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()
        self._bell = asyncio.Event()
        journal.on_wake(self._bell.set)

    @property
    def busy(self) -> bool:
        """Whether a turn is at work here."""
        return bool(self._tasks)

    async def take_over(self) -> int:
        """Ready what a lost worker left behind. Only for the holder of the data folder's lock; the number of turns."""
        taken = await self._journal.commit(lambda tx: self._queues.take_over(tx, self._worker_id))
        await self._journal.commit(self._units.close_orphans)
        return len(taken)

    async def run(self) -> None:
        """Claim and run until cancelled; what is under way then is left for the next worker to take over."""
        listener = asyncio.create_task(self._hear_cancellations(), name="ksi-worker-cancellations")
        try:
            while True:
                self._bell.clear()
                claimed = await self._claim()
                if not claimed:
                    await self._nap()
        finally:
            listener.cancel()
            running = list(self._tasks.values())
            for task in running:
                task.cancel()
            await asyncio.gather(listener, *running, return_exceptions=True)

    async def _claim(self) -> int:
        free = self._concurrency - self._active
        if free <= 0:
            return 0
        try:
            items = await self._journal.commit(lambda tx: self._units.claim(tx, self._worker_id, limit=free))
        except StoreError:
            logger.exception("no turn could be claimed; trying again")
            await asyncio.sleep(1)
            return 0
        for item in items:
            self._active += 1
            turn_id = item.turn.turn_id
            self._tasks[turn_id] = asyncio.create_task(self._run_one(item), name=f"ksi-turn-{turn_id}")
        return len(items)

    async def _nap(self) -> None:
        ready = await self._journal.read(lambda tx: tx.one("queues.next_ready"))
        nap_s = LONGEST_NAP_S
        if ready is not None and ready["run_at_ms"] is not None and self._active < self._concurrency:
            nap_s = min(nap_s, max((ready["run_at_ms"] - self._journal.clock.now_ms()) / 1000, 0.001))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(nap_s):
                await self._bell.wait()

    async def _run_one(self, item: Loaded) -> None:
        turn_id = item.turn.turn_id
        try:
            await self._runner.run(item, resting=self._resting, cancelled=self._cancelled.__contains__)
        except TakenOver:
            logger.info("turn %s belongs to somebody else by now", turn_id)
        except StoreError:
            # The turn stays ours in the store; the next worker to start takes it over.
            logger.exception("turn %s could not be stored", turn_id)
        except Exception:
            logger.exception("turn %s met an error that nobody expected", turn_id)
            with contextlib.suppress(TakenOver, StoreError):
                await self._journal.commit(lambda tx: self._units.crash(tx, item))
        finally:
            self._active -= 1
            self._cancelled.discard(turn_id)
            if self._tasks.get(turn_id) is asyncio.current_task():
                del self._tasks[turn_id]
            self._bell.set()

    @contextlib.contextmanager
    def _resting(self) -> Iterator[None]:
        self._active -= 1
        self._bell.set()
        try:
            yield
        finally:
            self._active += 1

    async def _hear_cancellations(self) -> None:
        def wants(event: Event) -> bool:
            return event.name == "completion:cancelled"

        async with self._journal.subscribe(wants) as cancellations:
            while (event := await cancellations.next(None)) is not None:
                turn_id = str(event.data.get("turn"))
                if (task := self._tasks.get(turn_id)) is not None:
                    self._cancelled.add(turn_id)
                    task.cancel()
