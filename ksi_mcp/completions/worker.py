"""The worker: claims turns and runs them side by side, up to its concurrency."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator, Mapping

from ksi_mcp.completions.model import Claimed, Loaded, Sent
from ksi_mcp.completions.prefetcher import Prefetcher
from ksi_mcp.completions.slots import Slots
from ksi_mcp.completions.turns import TurnRunner
from ksi_mcp.completions.units import TurnUnits
from ksi_mcp.db import Tx
from ksi_mcp.errors import StoreError
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event
from ksi_mcp.ids import WorkerId
from ksi_mcp.queues.model import TakenOver
from ksi_mcp.queues.session_queues import SessionQueues

logger = logging.getLogger(__name__)

SHORTEST_NAP_S = 0.001
LONGEST_NAP_S = 5.0
"""A worker that heard nothing looks all the same."""
STORE_PAUSE_S = 1.0
"""How long a worker leaves a store alone that failed it."""
GIVE_BACK_S = 30.0
"""A turn whose step could not be stored waits so long: the store may recover, and each try may cost."""
CLAIM_LIMIT = 100
"""Turns of one claim; the next follows at once."""


_Key = tuple[str, int]
"""A turn and the attempt at it."""


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
        slots: Slots,
        worker_id: WorkerId,
        concurrency: int,
    ) -> None:
        self._journal = journal
        self._queues = queues
        self._units = units
        self._runner = runner
        self._slots = slots
        self._worker_id = worker_id
        self._concurrency = concurrency
        self._active = 0
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._cancelled: set[_Key] = set()
        self._claims: dict[_Key, str] = {}
        self._lost: list[str] = []
        self._roomless: list[tuple[Loaded, Sent]] = []
        self._careful = False
        self._prefetcher: Prefetcher | None = None
        self._bell = asyncio.Event()
        self._draining = False
        self.claiming = asyncio.Lock()
        """Held while turns are claimed; whoever holds it keeps this worker from claiming."""
        journal.on_wake(self._bell.set, "turns")
        slots.on_room(self._bell.set)

    @property
    def busy(self) -> bool:
        """Whether a turn is at work here."""
        return bool(self._tasks)

    def free_places(self) -> int:
        """How many more turns may be at work here."""
        return self._concurrency - self._active

    def share_with(self, prefetcher: Prefetcher) -> None:
        """What room is left may be used for prefetches, until a turn needs it."""
        self._prefetcher = prefetcher

    async def take_over(self) -> int:
        """Ready what a lost worker left behind. Only for the holder of the data folder's lock; the number of turns."""
        taken = await self._journal.commit(lambda tx: self._queues.take_over(tx, self._worker_id))
        await self._runner.begin()
        if self._prefetcher is not None:
            await self._journal.commit(self._prefetcher.begin)
        return len(taken)

    async def run(self) -> None:
        """Claim and run until cancelled; what is under way then is left for the next worker to take over."""
        listener = asyncio.create_task(self._hear_cancellations(), name="ksi-worker-cancellations")
        try:
            while True:
                self._bell.clear()
                try:
                    async with self.claiming:
                        nap_s = await self._claim()
                    if nap_s > 0:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(nap_s):
                                await self._bell.wait()
                except Exception:  # whatever it was, the turns under way are worth more than this claim
                    logger.exception("the store failed the worker; trying again")
                    self._careful = True
                    await asyncio.sleep(STORE_PAUSE_S)
        finally:
            listener.cancel()
            await asyncio.sleep(0)  # a turn that was just claimed takes its first step: only then it cleans up
            running = list(self._tasks.values())
            for task in running:
                task.cancel()
            await asyncio.gather(listener, *running, return_exceptions=True)

    async def _claim(self) -> float:
        """Take what is ready; how long there will be nothing more unless somebody rings."""
        if lost := list(self._lost):
            await self._journal.commit(
                lambda tx: self._queues.give_back(tx, self._worker_id, lost, delay_s=GIVE_BACK_S)
            )
            self._lost = self._lost[len(lost) :]
        if roomless := list(self._roomless):
            await self._journal.commit(lambda tx: self._put_back(tx, roomless))
            self._roomless = self._roomless[len(roomless) :]
        free = min(self._concurrency - self._active, CLAIM_LIMIT)
        if free <= 0 or self._draining:
            if self._prefetcher is not None and self._prefetcher.busy:
                self._make_room(await self._journal.read(self._queues.waiting))
            return LONGEST_NAP_S
        # After a claim that failed, each turn is prepared in its own task: what is wrong with one harms no other.
        prepare = None if self._careful else self._runner.prepare
        claims = await self._journal.commit(
            lambda tx: self._units.claim(tx, self._worker_id, free=self._slots.free, limit=free, prepare=prepare)
        )
        self._careful = False
        for claimed in claims.taken:
            self._begin(claimed)
        self._make_room(claims.waiting)
        if self._roomless:
            return 0
        # Were it wrong to take nothing of what is due, it must not be wrong in a circle.
        return max(self._quiet_s(claims.waiting), 0 if claims.taken else SHORTEST_NAP_S)

    def _make_room(self, waiting: Mapping[str, int]) -> None:
        """Turns that are due and find no room have that of prefetches."""
        if self._prefetcher is None or not self._prefetcher.busy:
            return
        now_ms = self._journal.clock.now_ms()
        for provider, run_at_ms in waiting.items():
            if run_at_ms > now_ms:
                continue
            if self._active >= self._concurrency:
                self._prefetcher.yield_room()
            elif self._slots.free(provider) <= 0:
                self._prefetcher.yield_room(provider)

    def _quiet_s(self, waiting: Mapping[str, int]) -> float:
        """How long none of these may run."""
        quiet_s = LONGEST_NAP_S
        if self._active >= self._concurrency:
            return quiet_s
        now_ms = self._journal.clock.now_ms()
        for provider, run_at_ms in waiting.items():
            opens_s = self._slots.opens_in_s(provider)
            if opens_s is None and self._slots.free(provider) <= 0:
                continue  # a call that ends rings the bell
            quiet_s = min(quiet_s, max((run_at_ms - now_ms) / 1000, opens_s or 0, 0))
        return quiet_s

    def _put_back(self, tx: Tx, roomless: list[tuple[Loaded, Sent]]) -> None:
        for item, sent in roomless:
            with contextlib.suppress(TakenOver):  # it was cancelled meanwhile; its money is settled all the same
                self._units.put_back(tx, item, sent)

    def _begin(self, claimed: Claimed) -> None:
        item, ready = claimed.item, claimed.ready
        key, provider = (item.turn.turn_id, item.turn.attempt), item.choice.provider
        if ready is None:
            self._slots.claim(provider)
            self._claims[key] = provider
        elif isinstance(ready.admitted, Sent) and not self._slots.take(provider):
            self._roomless.append((item, ready.admitted))
            return
        self._active += 1
        task = asyncio.create_task(self._run_one(claimed, key), name=f"ksi-turn-{item.turn.turn_id}")
        self._tasks[key] = task
        task.add_done_callback(lambda _task: self._ended(key))

    async def drain(self, timeout_s: float) -> None:
        """Claim no more; each turn at work stops before its next round. What is left after so long is taken over."""
        self._draining = True
        if self._prefetcher is not None:
            await self._prefetcher.drain()
        async with self.claiming:  # a claim that is under way has turns to come
            running = list(self._tasks.values())
        if running:
            await asyncio.wait(running, timeout=timeout_s)

    def _entering(self, key: _Key) -> None:
        if (provider := self._claims.pop(key, None)) is not None:
            self._slots.unclaim(provider)

    def _ended(self, key: _Key) -> None:
        self._entering(key)
        self._leave()
        self._cancelled.discard(key)
        del self._tasks[key]
        if self._lost:
            self._bell.set()

    def _leave(self) -> None:
        if self._active >= self._concurrency:  # there is room again; without that, nothing has changed for the queue
            self._bell.set()
        self._active -= 1

    async def _run_one(self, claimed: Claimed, key: _Key) -> None:
        item, turn_id = claimed.item, claimed.item.turn.turn_id
        try:
            await self._runner.run(
                claimed,
                resting=self._resting,
                cancelled=lambda: key in self._cancelled,
                entering=lambda: self._entering(key),
                leaving=self._leaving,
            )
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

    def _leaving(self) -> bool:
        return self._draining

    @contextlib.contextmanager
    def _resting(self) -> Iterator[None]:
        self._leave()
        try:
            yield
        finally:
            self._active += 1

    async def _hear_cancellations(self) -> None:
        def wants(event: Event) -> bool:
            return event.name in ("completion:cancelled", "completion:interrupted")

        async with self._journal.subscribe(wants) as cancellations:
            while True:
                event = await cancellations.next(LONGEST_NAP_S)
                for each in (event, *cancellations.drain()):
                    if each is not None:
                        self._stop((str(each.data.get("turn")), int(each.data.get("attempt", 0))))
                if event is None or cancellations.missed:
                    await self._stop_those_taken_away()

    async def _stop_those_taken_away(self) -> None:
        values = {"owner": self._worker_id, "turns": json.dumps(list(self._tasks))}
        try:
            rows = await self._journal.read(lambda tx: tx.all("queues.running_elsewhere", values))
        except StoreError:
            logger.exception("the store failed the worker; it looks again")
            return
        for row in rows:
            self._stop((row["turn_id"], row["attempt"]))

    def _stop(self, key: _Key) -> None:
        if (task := self._tasks.get(key)) is not None:
            self._cancelled.add(key)
            # After its first step, which may be due in this very tick: only then it settles what it has let out.
            asyncio.get_running_loop().call_soon(task.cancel)
