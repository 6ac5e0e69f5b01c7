"""The worker: claims turns and runs them side by side, up to its concurrency."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
STORE_PAUSE_S = 1.0
"""How long a worker leaves a store alone that failed it."""
GIVE_BACK_S = 30.0
"""A turn whose step could not be stored waits so long: the store may recover, and each try may cost."""


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
        self._lost: list[str] = []
        self._bell = asyncio.Event()
        self.claiming = asyncio.Lock()
        """Held while turns are claimed; whoever holds it keeps this worker from claiming."""
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
                try:
                    async with self.claiming:
                        claimed = await self._claim()
                    if not claimed:
                        await self._nap()
                except Exception:  # whatever it was, the turns under way are worth more than this claim
                    logger.exception("the store failed the worker; trying again")
                    await asyncio.sleep(STORE_PAUSE_S)
        finally:
            listener.cancel()
            running = list(self._tasks.values())
            for task in running:
                task.cancel()
            await asyncio.gather(listener, *running, return_exceptions=True)

    async def _claim(self) -> int:
        if lost := list(self._lost):
            await self._journal.commit(
                lambda tx: self._queues.give_back(tx, self._worker_id, lost, delay_s=GIVE_BACK_S)
            )
            self._lost = self._lost[len(lost) :]
        free = self._concurrency - self._active
        if free <= 0:
            return 0
        items = await self._journal.commit(lambda tx: self._units.claim(tx, self._worker_id, limit=free))
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
            logger.exception("turn %s could not be stored", turn_id)
            self._lost.append(turn_id)
        except Exception:
            logger.exception("turn %s met an error that nobody expected", turn_id)
            try:
                await self._journal.commit(lambda tx: self._units.crash(tx, item))
            except TakenOver:
                pass
            except StoreError:
                self._lost.append(turn_id)
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
            while True:
                event = await cancellations.next(LONGEST_NAP_S)
                if event is not None:
                    self._stop(turn_id := str(event.data.get("turn")), self._tasks.get(turn_id))
                else:  # an event may have been missed
                    await self._stop_those_that_ended()

    async def _stop_those_that_ended(self) -> None:
        at_work = dict(self._tasks)
        values = {"owner": self._worker_id, "turn_ids": json.dumps(list(at_work))}
        try:
            rows = await self._journal.read(lambda tx: tx.all("queues.running_elsewhere", values))
        except StoreError:
            logger.exception("the store failed the worker; it looks again")
            return
        for row in rows:
            self._stop(row["turn_id"], at_work[row["turn_id"]])

    def _stop(self, turn_id: str, task: asyncio.Task[None] | None) -> None:
        if task is not None and task is self._tasks.get(turn_id):
            self._cancelled.add(turn_id)
            task.cancel()
