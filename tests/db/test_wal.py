"""The write-ahead log: small again after much was written, and never in anybody's way for long."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.db import Tx, wal
from ksi_mcp.db.sqlite import SqliteDatabase, open_sqlite
from ksi_mcp.db.wal import WalKeeper

FILL = "x" * 50_000


def put(tx: Tx, number: int) -> None:
    values = {"name": "note:made", "data": f'"{number}{FILL}"', "source": "operator", "root_id": "r", "hops": 0}
    tx.one(
        "events.insert",
        {**values, "agent_id": None, "orchestration_id": None, "cause_id": None, "depth": 0, "at_ms": 0},
    )


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[SqliteDatabase]:
    db = await open_sqlite(file, SystemClock())
    try:
        yield db
    finally:
        await db.close()


def log_of(file: Path) -> Path:
    return file.with_name(file.name + "-wal")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "KEPT_BYTES", 100_000)
    monkeypatch.setattr(wal, "LARGE_BYTES", 2_000_000)


@pytest.mark.usefixtures("small")
async def test_after_heavy_writing_beside_a_reader_and_then_quiet_the_log_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "f.db"
    async with opened(file) as db:
        keeper = WalKeeper(file)
        reader = sqlite3.connect(file, isolation_level=None)
        reader.execute("BEGIN")
        before = reader.execute("SELECT COUNT(*) FROM event").fetchone()
        for i in range(200):
            await db.write(lambda tx, i=i: put(tx, i))  # type: ignore[misc]
        grown = log_of(file).stat().st_size
        assert grown > 10_000_000  # the reader's state is in the way of beginning anew
        assert not await keeper.tend()
        assert not await keeper.tend()  # the last try was in vain: it lets one pass
        assert log_of(file).stat().st_size == grown
        assert reader.execute("SELECT COUNT(*) FROM event").fetchone() == before  # it still sees what it saw
        reader.execute("COMMIT")
        assert await keeper.tend()
        assert log_of(file).stat().st_size == 0
        assert reader.execute("SELECT COUNT(*) FROM event").fetchone() == (200,)
        reader.close()


@pytest.mark.usefixtures("small")
async def test_a_large_log_is_emptied_even_while_others_write_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "f.db"
    async with opened(file) as db:
        keeper = WalKeeper(file)
        reader = sqlite3.connect(file, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM event").fetchall()
        for i in range(60):
            await db.write(lambda tx, i=i: put(tx, i))  # type: ignore[misc]
        reader.execute("COMMIT")
        assert log_of(file).stat().st_size > 2_000_000
        assert await keeper.tend()
        assert log_of(file).stat().st_size < 2_000_000
        await db.write(lambda tx: put(tx, 60))
        assert reader.execute("SELECT COUNT(*) FROM event").fetchone() == (61,)
        reader.close()


async def test_a_small_log_is_left_alone_and_one_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "f.db"
    keeper = WalKeeper(file)
    assert not await keeper.tend()
    async with opened(file) as db:
        await db.write(lambda tx: put(tx, 1))
        size = log_of(file).stat().st_size
        assert not await keeper.tend()
        assert not await keeper.tend()
        assert log_of(file).stat().st_size == size > 0


@pytest.mark.usefixtures("small")
async def test_a_keeper_that_is_stopped_in_the_middle_leaves_a_whole_database(tmp_path: Path) -> None:
    file = tmp_path / "f.db"
    async with opened(file) as db:
        for i in range(100):
            await db.write(lambda tx, i=i: put(tx, i))  # type: ignore[misc]
        keeping = asyncio.create_task(WalKeeper(file).run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping
        assert await db.read(lambda tx: tx.one("events.last_id")["event_id"]) == 100  # type: ignore[index]
