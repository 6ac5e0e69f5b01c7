"""SQLite behind the seam: one writer with group commit, readers with a snapshot.

All units that wait when the writer is free run in **one** `BEGIN IMMEDIATE ... COMMIT`, each in a
savepoint of its own. One fsync then pays for many units, which is why `synchronous=FULL` is the
default. A whole batch crosses into aiosqlite's thread as one call: an await per statement would
cost 50-100 microseconds each.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import aiosqlite

from ksi_mcp.clock import Clock
from ksi_mcp.db.database import Listener, Row, Work
from ksi_mcp.db.migrate import migrate
from ksi_mcp.db.statements import Statement, load_statements
from ksi_mcp.errors import Invalid, StoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")

MEMORY = ":memory:"
MAX_UNITS = 1_000
"""Units in one transaction; more wait for the next."""
MAX_TICK_S = 0.005
"""A transaction takes no further unit after this long."""
BUSY_TIMEOUT_S = 30.0
OLDEST_SQLITE = (3, 38)
SQLITE_VERSION = sqlite3.sqlite_version
READERS = 1


class SqliteTx:
    """A unit's view of the transaction it runs in."""

    __slots__ = ("_connection", "_queries", "notes", "now_ms")

    def __init__(self, connection: sqlite3.Connection, queries: dict[str, Statement], now_ms: int) -> None:
        self._connection = connection
        self._queries = queries
        self.now_ms = now_ms
        self.notes: list[object] = []

    def run(self, name: str, params: dict[str, Any] | None = None, /) -> int:
        """Run a statement; the number of rows it changed."""
        return self._execute(name, params).rowcount

    def one(self, name: str, params: dict[str, Any] | None = None, /) -> Row | None:
        """The first row, or None."""
        rows = self._execute(name, params).fetchall()
        return cast("Row", rows[0]) if rows else None

    def all(self, name: str, params: dict[str, Any] | None = None, /) -> Sequence[Row]:
        """Every row."""
        return cast("Sequence[Row]", self._execute(name, params).fetchall())

    def announce(self, note: object, /) -> None:
        """Hand `note` to the listeners once this unit is committed."""
        self.notes.append(note)

    def _execute(self, name: str, params: dict[str, Any] | None) -> sqlite3.Cursor:
        try:
            statement = self._queries[name]
            return self._connection.execute(statement.sql, statement.values(params or {}))
        except (OverflowError, UnicodeEncodeError) as failure:  # what came from outside, not the store's fault
            raise Invalid(
                f"a value cannot be stored: {failure}"[:300], hint="give a smaller number or plain text"
            ) from None


@dataclass(slots=True)
class _Unit:
    work: Work[Any]
    future: asyncio.Future[Any]
    outcome: tuple[bool, Any] | None = None
    """(True, result) or (False, exception), set in the database's thread."""
    notes: Sequence[object] = ()


class _Job(Protocol):
    def run(self, connection: sqlite3.Connection) -> None: ...


class _Connection(sqlite3.Connection):
    """A connection whose `executemany`, which aiosqlite forwards to its thread, can also run a whole job there."""

    def executemany(self, sql: str | _Job, parameters: Iterable[Any] = ()) -> sqlite3.Cursor:
        if isinstance(sql, str):
            return super().executemany(sql, parameters)
        sql.run(self)
        return self.cursor()


@dataclass(slots=True)
class _Batch:
    units: list[_Unit]
    queries: dict[str, Statement]
    now_ms: int
    writes: bool
    taken: int = 0

    def run(self, connection: sqlite3.Connection) -> None:
        # Hardly any unit fails, so the first try spares the savepoints: two statements a unit. If one does
        # fail, all of it is rolled back and run again with them; units are made to be run again.
        if not self._attempt(connection, savepoints=False):
            self._attempt(connection, savepoints=True)

    def _attempt(self, connection: sqlite3.Connection, *, savepoints: bool) -> bool:
        """Run the units in one transaction; False if one failed that others must not suffer from."""
        self.taken = 0
        until = time.perf_counter() + MAX_TICK_S
        connection.execute("BEGIN IMMEDIATE" if self.writes else "BEGIN")
        try:
            for unit in self.units:
                if self.taken and time.perf_counter() > until:
                    break
                self.taken += 1
                if savepoints:
                    self._guarded(connection, unit)
                elif not self._run_unit(connection, unit) and self.writes:
                    connection.execute("ROLLBACK")
                    return len(self.units) == 1
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return True

    def _guarded(self, connection: sqlite3.Connection, unit: _Unit) -> None:
        connection.execute("SAVEPOINT unit")
        if not self._run_unit(connection, unit):
            connection.execute("ROLLBACK TO unit")
        connection.execute("RELEASE unit")

    def _run_unit(self, connection: sqlite3.Connection, unit: _Unit) -> bool:
        tx = SqliteTx(connection, self.queries, self.now_ms)
        try:
            result = unit.work(tx)
        except Exception as failure:
            if not connection.in_transaction:  # disk full and the like end the whole transaction
                raise
            unit.outcome, unit.notes = (
                (False, _lost(failure) if isinstance(failure, sqlite3.OperationalError) else failure),
                (),
            )
            return False
        unit.outcome, unit.notes = (True, result), tx.notes
        return True


@dataclass(slots=True)
class _Call:
    """Any function of the connection, run in its thread."""

    fn: Any
    result: Any = None

    def run(self, connection: sqlite3.Connection) -> None:
        self.result = self.fn(connection)


class _Lane:
    """One connection and the units that wait for it."""

    def __init__(
        self,
        connection: aiosqlite.Connection,
        queries: dict[str, Statement],
        clock: Clock,
        listeners: list[Listener] | None,
    ) -> None:
        self._connection = connection
        self._queries = queries
        self._clock = clock
        self._listeners = listeners
        self._waiting: deque[_Unit] = deque()
        self._drainer: asyncio.Task[None] | None = None

    def submit(self, work: Work[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Unit(work, future))
        if self._drainer is None:
            self._drainer = asyncio.get_running_loop().create_task(self._drain(), name="ksi-db")
        return future

    async def call(self, fn: Any) -> Any:
        job = _Call(fn)
        await self._connection.executemany(cast("str", job), ())
        return job.result

    async def close(self) -> None:
        while self._drainer is not None:
            await asyncio.wait([self._drainer])
        await self._connection.close()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                # Let everything that is ready in this tick of the loop join: also those whom the last
                # transaction has just answered, and who have more to write.
                await asyncio.sleep(0)
                units = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_UNITS))]
                await self._run(units)
        finally:
            self._drainer = None

    async def _run(self, units: list[_Unit]) -> None:
        batch = _Batch(units, self._queries, self._clock.now_ms(), writes=self._listeners is not None)
        try:
            await self._connection.executemany(cast("str", batch), ())
        except Exception as failure:  # noqa: BLE001  whatever it was, every caller must hear of it
            for unit in units:
                if not unit.future.done():
                    unit.future.set_exception(_lost(failure))
            return
        self._waiting.extendleft(reversed(units[batch.taken :]))
        done = units[: batch.taken]
        if self._listeners and (notes := [note for unit in done for note in unit.notes]):
            for listener in self._listeners:
                try:
                    listener(notes)
                except Exception:  # the units are committed: their callers must hear of it, whatever a listener does
                    logger.exception("a listener failed")
        for unit in done:
            if unit.future.done() or unit.outcome is None:
                continue
            ok, value = unit.outcome
            if ok:
                unit.future.set_result(value)
            elif isinstance(value, StopIteration):  # which no future can hold
                unit.future.set_exception(RuntimeError("a unit raised StopIteration"))
            else:
                unit.future.set_exception(value)


def _lost(failure: Exception) -> StoreError:
    return StoreError(f"the database could not take the change: {failure}", hint="nothing was written; try again")


class SqliteDatabase:
    """See `Database`. Open it with `open_sqlite`."""

    def __init__(self, writer: aiosqlite.Connection, readers: list[aiosqlite.Connection], clock: Clock) -> None:
        self._listeners: list[Listener] = []
        queries = load_statements()
        self._writer = _Lane(writer, queries, clock, self._listeners)
        self._readers = [_Lane(reader, queries, clock, None) for reader in readers]
        self._next = 0
        self._data_version: int | None = None

    async def write(self, work: Work[T], /) -> T:
        """Run `work` in a transaction and return once it is durable."""
        return await self._writer.submit(work)

    async def read(self, work: Work[T], /) -> T:
        """Run `work` on a consistent snapshot."""
        if not self._readers:
            return await self._writer.submit(work)
        self._next = (self._next + 1) % len(self._readers)
        return await self._readers[self._next].submit(work)

    def on_commit(self, listener: Listener, /) -> None:
        """Call `listener` after each commit with what was announced."""
        self._listeners.append(listener)

    async def foreign_change(self) -> bool:
        """Whether another process has committed since the last time this was asked."""
        version = int(
            await self._writer.call(lambda connection: connection.execute("PRAGMA data_version").fetchone()[0])
        )
        changed = self._data_version is not None and version != self._data_version
        self._data_version = version
        return changed

    async def close(self) -> None:
        """Finish what is pending, then close."""
        for reader in self._readers:
            await reader.close()
        await self._writer.close()


async def open_sqlite(path: Path | str, clock: Clock) -> SqliteDatabase:
    """Open (and create or upgrade) a database file; `":memory:"` for one that lives with the object.

    Raises:
        StoreError: SQLite is too old, the file system cannot hold a WAL, or the file is newer than this version.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreError(
            f"SQLite {sqlite3.sqlite_version} is too old", hint="use a Python built with SQLite 3.38 or newer"
        )
    memory = str(path) == MEMORY
    connections: list[aiosqlite.Connection] = []
    try:
        connections.append(await _connect(path))
        await _first_steps(connections[0], clock, memory=memory)
        connections += [await _connect(path, read_only=True) for _ in range(0 if memory else READERS)]
        return SqliteDatabase(connections[0], connections[1:], clock)
    except BaseException as failure:
        for connection in connections:
            await connection.close()
        if isinstance(failure, sqlite3.Error):
            raise StoreError(
                f"the data folder's database cannot be opened: {failure}", hint="choose another folder with --home"
            ) from None
        raise


async def _connect(path: Path | str, *, read_only: bool = False) -> aiosqlite.Connection:
    connection = aiosqlite.connect(
        path, isolation_level=None, timeout=BUSY_TIMEOUT_S, factory=_Connection, cached_statements=256
    )
    try:
        await connection
    except BaseException:
        # Its thread still reports to this loop, which the caller may close at once.
        await asyncio.to_thread(connection._thread.join)  # noqa: SLF001
        raise
    connection.row_factory = cast("Any", sqlite3.Row)
    await connection.execute("PRAGMA foreign_keys = ON")
    if read_only:
        await connection.execute("PRAGMA query_only = ON")
    return connection


async def _first_steps(writer: aiosqlite.Connection, clock: Clock, *, memory: bool) -> None:
    def prepare(connection: sqlite3.Connection) -> None:
        if not memory:
            _wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        migrate(connection, now_ms=clock.now_ms(), whole=True)

    await writer.executemany(cast("str", _Call(prepare)), ())


def _wal(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. Two processes that create the file at once may both be told `locked`."""
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as failure:
            if "locked" not in str(failure) or time.monotonic() > until:
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise StoreError(
                "this file system cannot hold a write-ahead log", hint="choose a local folder with --home or KSI_HOME"
            )
        return
