"""The application: role objects, toolbox and worker, opened and closed together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from ksi_mcp.access.tokens import AccessTokens
from ksi_mcp.agents.model import Agent
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import limits_of
from ksi_mcp.budgets.prices import Prices
from ksi_mcp.clock import Clock, SystemClock
from ksi_mcp.completions.batching import Batching
from ksi_mcp.completions.breaker import Breakers
from ksi_mcp.completions.latency import Latencies
from ksi_mcp.completions.limiter import Limits
from ksi_mcp.completions.liveness import Heartbeat, HungWorkerWatch
from ksi_mcp.completions.prefetch import unfinished as prefetches_wait
from ksi_mcp.completions.prefetcher import Prefetcher
from ksi_mcp.completions.preparing import Preparing
from ksi_mcp.completions.semantic import SemanticCache
from ksi_mcp.completions.slots import Slots
from ksi_mcp.completions.toolcalls import ToolRunner
from ksi_mcp.completions.turns import TurnRunner
from ksi_mcp.completions.units import TurnUnits
from ksi_mcp.completions.worker import Worker
from ksi_mcp.compositions.files import builtin_root
from ksi_mcp.compositions.library import Library
from ksi_mcp.config import Config, Home, load_config
from ksi_mcp.db import Tx
from ksi_mcp.db.doorbell import Doorbell, clear_away_the_dead
from ksi_mcp.db.sqlite import SqliteDatabase, open_sqlite
from ksi_mcp.db.wal import WalKeeper
from ksi_mcp.decisions.log import DecisionLog
from ksi_mcp.errors import Conflict
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.retention import Retention
from ksi_mcp.ids import WorkerId, new_id
from ksi_mcp.launching import WorkerLauncher
from ksi_mcp.orchestrations.conductor import Conductor
from ksi_mcp.orchestrations.monitor import Monitor
from ksi_mcp.orchestrations.supervision import Supervisor
from ksi_mcp.providers.door import Door, LazyDoor
from ksi_mcp.providers.mcp.tools import McpTools
from ksi_mcp.providers.registry import ProviderRegistry, settings_of
from ksi_mcp.pumps import LONGEST_NAP_S, Pumps, nap, new_bell
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.router import Router
from ksi_mcp.services import Services
from ksi_mcp.tools.agent_tools import AgentTools, Outside
from ksi_mcp.tools.catalog import ALL_TOOLS, DEFAULT_TOOLS
from ksi_mcp.tools.toolbox import Toolbox

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""How long another process's commit may go unnoticed where the doorbell does not ring."""
LOCK_WAIT_S = 2.0
"""A starting worker waits so long for the lock: a mere look at it must not turn it away."""
IDLE_LOOK_S = 0.5
_WORKING = ("ksi-worker", "ksi-router", "ksi-delayed", "ksi-batches")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """How an application is opened.

    `worker`: `inside` runs turns in this process (and needs the data folder's worker lock), `detached`
    starts a worker process when there is something to run, `none` only looks.
    """

    worker: str = "none"
    project: Path | None = None
    environ: Mapping[str, str] | None = None
    agent_door: Callable[[ToolRunner, Callable[[str], Awaitable[Agent]]], Door] | None = None
    """Makes the door through which agents that run as processes use our tools; without it they have none."""


class App:
    """One process's view of a data folder. Use it as an asynchronous context manager."""

    def __init__(
        self, home: Home, options: AppOptions | None = None, *, config: Config | None = None, clock: Clock | None = None
    ) -> None:
        self.home = home
        self.config = config or load_config(home)
        self._options = options or AppOptions()
        self._clock = clock or SystemClock()
        self._lock = FileLock(home.worker_lock)
        self._launcher = WorkerLauncher(
            home, self._clock, idle_s=self.config.worker.idle_s, project=self._options.project
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.services: Services
        self.toolbox: Toolbox

    # --------------------------------------------------------------------------- open and close

    async def __aenter__(self) -> Self:
        if self._options.worker == "inside":
            self._take_lock()
        try:
            _make_private(self.home.database)
            self._db = await open_sqlite(self.home.database, self._clock)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._build(self._db)
            await self._begin()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._options.worker == "detached":
                await self._leave_to_somebody()
        finally:
            # Whoever is told to stop meanwhile closes all the same: the database's threads would keep the process.
            closing = asyncio.create_task(self._close())
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await closing
                raise

    async def _leave_to_somebody(self) -> None:
        """Whoever enqueues and leaves at once has not seen a worker start; nobody else might."""
        try:
            if await self.unfinished() and (failed := await self._launcher.ensure()):
                logger.error("the worker process could not be started: %s", failed)
        except Exception:
            logger.exception("it could not be seen to that a worker process goes on")

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout:
            raise Conflict(
                "another worker holds this data folder",
                hint="it runs the turns; start the server without a worker inside",
            ) from None

    def _build(self, db: SqliteDatabase) -> None:
        config, clock = self.config, self._clock
        environ = os.environ if self._options.environ is None else self._options.environ
        journal = Journal(db, clock)
        ledger, queues = Ledger(journal), SessionQueues()
        roster = Roster(journal, queues, ledger)
        commands = frozenset(command for tool in ALL_TOOLS for command in (tool.command, *tool.commands))
        router = Router(journal, roster, is_command=commands.__contains__, hear=roster.hear, damping=config.damping)
        library = Library(journal, builtin=builtin_root(), user=self.home.compositions, project=self._options.project)
        self._door = None if self._options.agent_door is None else LazyDoor(self._build_door)
        settings = settings_of(config, self.home.root, self._options.project)
        registry = ProviderRegistry(settings, clock, environ, door=self._door)
        self._outside = McpTools(config.mcp_servers, clock=clock, lookup=registry.credentials.get, home=self.home.root)
        self.services = Services(
            clock=clock,
            config=config,
            journal=journal,
            ledger=ledger,
            queues=queues,
            roster=roster,
            library=library,
            data_folder=self.home.root,
            decisions=DecisionLog(journal, library),
            router=router,
            conductor=Conductor(journal, library, roster, router, ledger),
            supervisor=Supervisor(journal, queues, roster, router, config.supervision),
            registry=registry,
            prices=Prices(registry.price_overrides()),
            access=AccessTokens(journal),
        )
        self.services.supervisor.listen()
        self.services.conductor.listen()
        shown = None if config.agents.tools == "full" else DEFAULT_TOOLS
        self.toolbox = Toolbox(self.services, ALL_TOOLS, shown=shown)
        semantic = SemanticCache(journal, config.semantic_cache)
        units = TurnUnits(journal, queues, roster, ledger, Breakers(journal), semantic=semantic)
        slots, latencies = Slots(Limits(clock, ceiling=registry.in_flight, near=registry.near), clock), Latencies()
        self.agent_tools = AgentTools(self.toolbox, Outside(self._outside, journal, queues))
        preparing = Preparing(config, self.agent_tools, self.services.prices)
        worker_id, beat_s = WorkerId(new_id("w")), config.worker.beat_s
        self._heartbeat = Heartbeat(journal, worker_id, every_s=beat_s, lost=self._stop_working)
        self._watch = HungWorkerWatch(journal, clock, hung_s=config.worker.hung_s, held=self._launcher.lives)
        self.monitor = Monitor(journal, config.monitor)
        self.worker = Worker(
            journal,
            queues,
            units,
            TurnRunner(
                journal,
                units,
                self.agent_tools,
                preparing,
                registry.get,
                slots=slots,
                latencies=latencies,
                semantic=semantic,
            ),
            slots=slots,
            worker_id=worker_id,
            concurrency=config.worker.concurrency,
        )
        self.prefetcher = Prefetcher(
            journal,
            queues,
            roster,
            ledger,
            preparing=preparing,
            get_provider=registry.get,
            slots=slots,
            free_places=self.worker.free_places,
            claiming=self.worker.claiming,
        )
        self.worker.share_with(self.prefetcher)
        self.batching = Batching(
            journal,
            queues,
            units,
            preparing,
            registry.get,
            worker_id=worker_id,
            poll_s=config.anthropic.batch_poll_s,
        )
        self.retention = Retention(journal, config.retention)
        self._doorbell = Doorbell(self.home.root)
        db.on_commit(lambda _notes: self._doorbell.ring())

    def _build_door(self) -> Door:
        services, build = self.services, self._options.agent_door
        assert build is not None  # noqa: S101  there would be no door to build

        async def load(agent_id: str) -> Agent:
            return await services.journal.read(lambda tx: services.roster.get(tx, agent_id))

        return build(self.agent_tools, load)

    async def _begin(self) -> None:
        services = self.services
        limits = limits_of(usd=self.config.budget.usd, tokens=self.config.budget.tokens, turns=self.config.budget.turns)
        paused = None if self._options.worker == "none" else self.config.routing.safe_mode

        def prepare(tx: Tx) -> None:
            services.ledger.open_global(tx, limits)
            if paused is not None:
                services.router.set_paused(tx, paused=paused)

        await services.journal.commit(prepare)
        self._doorbell.open(services.journal.rung)
        self._spawn(self._poll(), "ksi-poll")
        self._spawn(WalKeeper(self.home.database).run(), "ksi-wal")
        if self._options.worker == "inside":
            await asyncio.to_thread(services.registry.end_lost)
            await self._heartbeat.begin()
            taken = await self.worker.take_over()
            if taken:
                logger.warning("took over %d turns that a lost worker left running", taken)
            await services.decisions.write_missing()
            self._spawn(self._heartbeat.run(), "ksi-heartbeat")
            pumps = Pumps(services, self.toolbox)
            for work, name in zip(
                (self.worker.run(), pumps.route(), pumps.fire_delayed(), self.batching.run()), _WORKING, strict=True
            ):
                self._spawn(work, name)
            self._spawn(self.prefetcher.run(), "ksi-prefetcher")
            self._spawn(self.monitor.run(), "ksi-monitor")
            self._spawn(self.retention.run(), "ksi-retention")
            self._spawn(asyncio.to_thread(clear_away_the_dead), "ksi-clear-away")
        elif self._options.worker == "detached":
            self._spawn(self._keep_worker(), "ksi-keep-worker")

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("a part of the server had failed: %r", outcome)
        self._tasks.clear()
        if hasattr(self, "services"):
            await self._outside.aclose()
            await self.services.registry.aclose()
            if self._door is not None:
                await self._door.aclose()
            await self.services.journal.close()
            self._doorbell.close()
        await self._db.close()
        self._launcher.let_go()
        self._lock.release()

    def _spawn(self, work: Any, name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    def _stop_working(self) -> None:
        """Another worker has taken over: this one claims, routes and fires nothing any more."""
        for task in self._tasks:
            if task.get_name() in (*_WORKING, "ksi-prefetcher"):
                task.cancel()

    async def _poll(self) -> None:
        """Notice what other processes commit, even where no bell rings."""
        while True:
            if await self._db.foreign_change():
                self.services.journal.rung()
            await asyncio.sleep(POLL_S)

    # -------------------------------------------------------------------------- worker processes

    async def _keep_worker(self) -> None:
        """See to it that a worker process lives while there is something to do."""
        bell = new_bell(self.services.journal)
        while True:
            bell.clear()
            try:
                if await self.unfinished():
                    await self._watch.look()
                    if failed := await self._launcher.ensure():
                        logger.error("the worker process could not be started: %s", failed)
            except Exception:  # nobody else would start one
                logger.exception("the worker process could not be looked after; trying again")
            await nap(bell, min(LONGEST_NAP_S, self._watch.look_s))

    async def unfinished(self) -> bool:
        """Whether there are turns to run, events to route, delayed events to fire, or lost calls to settle."""

        def look(tx: Tx) -> bool:
            turns, outbox = tx.one("queues.open_turns"), tx.one("events.outbox_waiting")
            timers = (tx.one("events.next_due"), tx.one("routing.next_join_due"))
            waiting = any(due is not None and due["due_ms"] is not None for due in timers)
            batch = tx.one("completions.batch_open")
            waiting = waiting or bool(batch and batch["open"]) or prefetches_wait(tx)
            if self.services.router.is_paused(tx):  # safe mode: events wait for a worker that delivers
                outbox = None
            if self._options.worker != "inside" and tx.one("budgets.orphan_holds") is not None:
                return True  # a lost worker's: the next one settles them as it starts
            return bool(turns and turns["open"]) or bool(outbox and outbox["waiting"]) or waiting

        return await self.services.journal.read(look)

    def worker_lives(self) -> bool:
        """Whether some process holds the worker lock of this data folder."""
        return self._lock.is_locked or self._launcher.lives()

    async def run_until_idle(self, idle_s: float | None) -> None:
        """Return once there has been nothing to do for `idle_s` seconds; never, without it.

        The lock is let go before the last look, so that what was enqueued by somebody who still saw
        a living worker is not left lying.
        """
        quiet_since_s = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(IDLE_LOOK_S)
            for task in self._tasks:
                if task.done():
                    task.result()
            if self.worker.busy or self.prefetcher.busy or await self.unfinished():
                quiet_since_s = self._clock.monotonic_s()
            elif idle_s is not None and self._clock.monotonic_s() - quiet_since_s >= idle_s:
                async with self.worker.claiming:  # what is claimed without the lock another worker would run again
                    if self.worker.busy or self.prefetcher.busy:
                        continue
                    self._lock.release()
                    if not await self.unfinished():
                        return
                    self._take_lock()
                    await self.worker.take_over()  # another one may have been at work in between


def _make_private(database: Path) -> None:
    """Conversations are nobody else's, even in a folder that others can enter; SQLite's other files take its mode."""
    with contextlib.suppress(OSError):  # it is there, or opening it will say what is wrong
        os.close(os.open(database, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
