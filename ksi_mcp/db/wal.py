"""The write-ahead log stays small.

SQLite copies the log into the database by itself, but begins it anew only at a moment at which nobody reads
from it. Under constant readers that moment may never come, and the file grows; and once grown it stays so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from pathlib import Path

logger = logging.getLogger(__name__)

LOOK_S = 1.0
KEPT_BYTES = 4_000_000
"""A log of this size is left alone: it is about what SQLite makes of it by itself."""
LARGE_BYTES = 64_000_000
"""A larger one is emptied even while others write."""
WAIT_MS = 100
"""So long writers are held up at most, until readers have left the log."""
LONGEST_PAUSE = 32


class WalKeeper:
    """Empties the log of a database when nobody writes, or when it is large."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._log = database.with_name(database.name + "-wal")
        self._seen: tuple[int, int] | None = None
        self._pause = 0
        self._left = 0

    async def run(self) -> None:
        """Look after the log until cancelled."""
        while True:
            try:
                await self.tend()
            except Exception:  # the log only grows for another second
                logger.exception("the write-ahead log could not be looked after; trying again")
            await asyncio.sleep(LOOK_S)

    async def tend(self) -> bool:
        """Call it about once a second; whether the log was emptied. Without a need it only looks at the file.

        After an attempt that a reader was in the way of, the next one waits for 1, 2, 4, ... 32 calls.
        """
        try:
            facts = os.stat(self._log)  # noqa: PTH116  a look, not a read
        except OSError:
            return False
        seen, self._seen = self._seen, (facts.st_size, facts.st_mtime_ns)
        quiet = seen == self._seen
        if facts.st_size <= (KEPT_BYTES if quiet else LARGE_BYTES):
            return False
        if self._left > 0:
            self._left -= 1
            return False
        work = _Emptying(self._database)
        try:
            emptied = await asyncio.to_thread(work.run)
        except asyncio.CancelledError:
            work.stop()  # the process ends, and its threads are waited for
            raise
        self._pause = 0 if emptied else min(max(self._pause * 2, 1), LONGEST_PAUSE)
        self._left = self._pause
        return emptied


class _Emptying:
    """Copy the log into the database beside the writers, then cut it off in the moment that is left to do."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None
        self._stopped = False

    def run(self) -> bool:
        with contextlib.suppress(sqlite3.Error):
            connection = sqlite3.connect(
                self._database, timeout=WAIT_MS / 1000, isolation_level=None, check_same_thread=False
            )
            self._connection = connection
            try:
                return not self._stopped and self._empty(connection)
            finally:
                self._connection = None
                connection.close()
        return False

    def stop(self) -> None:
        self._stopped = True
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # closed in this moment
                connection.interrupt()

    def _empty(self, connection: sqlite3.Connection) -> bool:
        connection.execute("PRAGMA synchronous = FULL")
        _, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if copied < frames or self._stopped:  # somebody reads an older state: the log is needed
            return False
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
