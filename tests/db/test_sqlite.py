from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import SqliteDatabase, open_sqlite
from ksi_mcp.errors import Invalid, StoreError


def put(tx: Tx, name: str, tokens: int | None = None) -> str:
    values = {"account_id": name, "parent_id": None, "usd_micros": None, "tokens": tokens, "turns": None}
    values |= {"seconds": None, "policy": "deny", "now_ms": 0}
    tx.run("budgets.open", values)
    tx.announce(name)
    return name


def has(tx: Tx, name: str) -> bool:
    return tx.one("budgets.one", {"account_id": name}) is not None


async def statements(db: SqliteDatabase) -> list[str]:
    """What the writer runs from now on."""
    seen: list[str] = []
    await db._writer._connection.set_trace_callback(seen.append)
    return seen


async def on_writer(db: SqliteDatabase, sql: str) -> Any:
    return await db._writer.call(lambda connection: connection.execute(sql).fetchone())


async def opened(path: Path | str = ":memory:") -> SqliteDatabase:
    return await open_sqlite(path, SystemClock())


async def test_units_of_one_moment_share_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksi_mcp.db.sqlite.MAX_TICK_S", 60.0)
    db = await opened()
    ran = await statements(db)
    names = [f"a{n}" for n in range(300)]
    done = await asyncio.gather(*(db.write(lambda tx, name=name: put(tx, name)) for name in names))
    assert done == names
    assert ran.count("COMMIT") == 1
    await db.close()


async def test_a_transaction_ends_at_its_time_and_the_rest_follows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksi_mcp.db.sqlite.MAX_TICK_S", 0.0)
    db = await opened()
    heard: list[object] = []
    db.on_commit(heard.extend)
    ran = await statements(db)
    names = [f"a{n}" for n in range(5)]
    await asyncio.gather(*(db.write(lambda tx, name=name: put(tx, name)) for name in names))
    assert ran.count("COMMIT") == 5
    assert heard == names
    await db.close()


async def test_a_transaction_takes_no_more_units_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksi_mcp.db.sqlite.MAX_TICK_S", 60.0)
    monkeypatch.setattr("ksi_mcp.db.sqlite.MAX_UNITS", 4)
    db = await opened()
    ran = await statements(db)
    await asyncio.gather(*(db.write(lambda tx, n=n: put(tx, f"a{n}")) for n in range(10)))
    assert ran.count("COMMIT") == 3
    await db.close()


async def test_a_failing_unit_hurts_only_itself_and_takes_its_notes_along() -> None:
    db = await opened()
    heard: list[object] = []
    db.on_commit(heard.extend)

    def fails(tx: Tx) -> None:
        put(tx, "half")
        raise ValueError("no")

    def sees(tx: Tx) -> tuple[bool, bool]:
        return has(tx, "before"), has(tx, "half")

    outcomes = await asyncio.gather(
        db.write(lambda tx: put(tx, "before")),
        db.write(fails),
        db.write(sees),
        db.write(lambda tx: put(tx, "after")),
        return_exceptions=True,
    )
    assert outcomes[0] == "before"
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == (True, False)
    assert outcomes[3] == "after"
    assert heard == ["before", "after"]
    assert not await db.read(lambda tx: has(tx, "half"))
    await db.close()


async def test_a_broken_constraint_undoes_the_whole_unit() -> None:
    db = await opened()

    def twice(tx: Tx) -> None:
        put(tx, "kept?")
        tx.run("queues.open_session", {"session_id": "s"})
        tx.run("queues.open_session", {"session_id": "s"})

    with pytest.raises(sqlite3.IntegrityError):
        await db.write(twice)
    assert not await db.read(lambda tx: has(tx, "kept?"))
    await db.close()


async def test_the_unit_of_a_cancelled_caller_is_committed_all_the_same() -> None:
    db = await opened()
    caller = asyncio.create_task(db.write(lambda tx: put(tx, "mine")))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    other = await db.write(lambda tx: has(tx, "mine"))
    assert other is True
    await db.close()


async def test_listeners_hear_after_the_commit_and_before_the_caller_goes_on(tmp_path: Path) -> None:
    db = await opened(tmp_path / "f.db")
    looked: list[bool] = []
    with sqlite3.connect(tmp_path / "f.db") as other:

        def listener(notes: Sequence[object]) -> None:
            row = other.execute("SELECT 1 FROM account WHERE account_id = ?", (notes[0],)).fetchone()
            looked.append(row is not None)

        db.on_commit(listener)
        await db.write(lambda tx: put(tx, "a"))
        assert looked == [True]
    other.close()
    await db.close()


async def test_a_listener_that_raises_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    db = await opened()
    heard: list[object] = []

    def broken(notes: Sequence[object]) -> None:
        raise RuntimeError("deaf")

    db.on_commit(broken)
    db.on_commit(heard.extend)
    async with asyncio.timeout(5):
        assert await db.write(lambda tx: put(tx, "a")) == "a"
    assert heard == ["a"]
    assert "a listener failed" in caplog.text
    await db.close()


async def test_a_unit_that_raises_stop_iteration_keeps_nobody_waiting() -> None:
    db = await opened()

    def exhausted(tx: Tx) -> str:
        return next(iter([]))

    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(db.write(exhausted), db.write(lambda tx: put(tx, "a")), return_exceptions=True)
    assert isinstance(outcomes[0], RuntimeError)
    assert outcomes[1] == "a"
    await db.close()


async def test_a_lost_transaction_fails_every_unit_of_its_tick_and_leaves_the_database_usable() -> None:
    db = await opened()
    heard: list[object] = []
    db.on_commit(heard.extend)
    await on_writer(
        db,
        "CREATE TEMP TRIGGER lost BEFORE INSERT ON account WHEN NEW.account_id = 'boom' "
        "BEGIN SELECT RAISE(ROLLBACK, 'gone'); END",
    )
    outcomes = await asyncio.gather(
        db.write(lambda tx: put(tx, "before")),
        db.write(lambda tx: put(tx, "boom")),
        db.write(lambda tx: put(tx, "after")),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [StoreError] * 3
    assert heard == []
    assert await db.write(lambda tx: (has(tx, "before"), put(tx, "again"))) == (False, "again")
    await db.close()


async def test_a_full_disk_is_a_store_error_and_what_fits_later_is_stored(tmp_path: Path) -> None:
    db = await opened(tmp_path / "f.db")
    await db.write(lambda tx: put(tx, "small"))
    pages = (await on_writer(db, "PRAGMA page_count"))[0]
    await on_writer(db, f"PRAGMA max_page_count = {pages + 2}")
    big = "x" * 200_000
    outcomes = await asyncio.gather(
        db.write(lambda tx: put(tx, "beside")), db.write(lambda tx: put(tx, big)), return_exceptions=True
    )
    assert isinstance(outcomes[1], StoreError)
    assert "full" in outcomes[1].message
    # Whether SQLite gave up the statement or the transaction, what it said of each unit is what is there.
    assert await db.read(lambda tx: has(tx, "beside")) == (outcomes[0] == "beside")
    assert not await db.read(lambda tx: has(tx, big))
    await on_writer(db, f"PRAGMA max_page_count = {pages + 1000}")
    assert await db.write(lambda tx: put(tx, big)) == big
    await db.close()


async def test_a_database_that_stays_locked_is_a_store_error(tmp_path: Path) -> None:
    db = await opened(tmp_path / "f.db")
    await on_writer(db, "PRAGMA busy_timeout = 0")
    other = sqlite3.connect(tmp_path / "f.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        await db.write(lambda tx: put(tx, "a"))
    assert not await db.read(lambda tx: has(tx, "a"))  # readers do not wait for a writer
    other.execute("ROLLBACK")
    other.close()
    assert await db.write(lambda tx: put(tx, "a")) == "a"
    await db.close()


async def test_a_read_sees_every_write_that_has_returned(tmp_path: Path) -> None:
    db = await opened(tmp_path / "f.db")
    for n in range(30):
        await db.write(lambda tx, n=n: put(tx, f"a{n}"))
        assert await db.read(lambda tx, n=n: has(tx, f"a{n}")), n
    await db.close()


async def test_a_read_cannot_write(tmp_path: Path) -> None:
    db = await opened(tmp_path / "f.db")
    with pytest.raises(StoreError, match="readonly"):
        await db.read(lambda tx: put(tx, "a"))
    assert not await db.read(lambda tx: has(tx, "a"))
    await db.close()


async def test_two_processes_see_each_others_commits_and_notice_them(tmp_path: Path) -> None:
    one, two = await opened(tmp_path / "f.db"), await opened(tmp_path / "f.db")
    assert [await one.foreign_change(), await two.foreign_change()] == [False, False]
    await one.write(lambda tx: put(tx, "a"))
    assert await two.read(lambda tx: has(tx, "a"))
    assert await two.foreign_change()
    assert not await two.foreign_change()
    assert not await one.foreign_change()  # its own commits are no news
    await asyncio.gather(
        *(db.write(lambda tx, name=f"{i}-{n}": put(tx, name)) for i, db in enumerate((one, two)) for n in range(50))
    )
    everything = [f"{i}-{n}" for i in range(2) for n in range(50)]
    assert all(await one.read(lambda tx: [has(tx, name) for name in everything]))
    await one.close()
    await two.close()


async def test_two_that_make_the_same_new_file_at_once_both_open_it(tmp_path: Path) -> None:
    databases = await asyncio.gather(*(opened(tmp_path / "new.db") for _ in range(4)))
    for db in databases:
        await db.close()


async def test_closing_finishes_what_was_handed_in(tmp_path: Path) -> None:
    db = await opened(tmp_path / "f.db")
    writes = [asyncio.create_task(db.write(lambda tx, n=n: put(tx, f"a{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await db.close()
    assert await asyncio.gather(*writes) == [f"a{n}" for n in range(20)]
    with pytest.raises(StoreError):
        await db.write(lambda tx: put(tx, "late"))


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb"])
async def test_text_that_is_not_unicode_is_refused_not_a_crash(name: str) -> None:
    db = await opened()
    with pytest.raises(Invalid, match="cannot be stored"):
        await db.write(lambda tx: put(tx, name))
    await db.close()


async def test_a_number_beyond_64_bits_is_refused_not_a_crash() -> None:
    db = await opened()
    with pytest.raises(Invalid, match="cannot be stored"):
        await db.write(lambda tx: put(tx, "a", tokens=2**63))
    assert await db.write(lambda tx: put(tx, "a", tokens=2**63 - 1)) == "a"
    await db.close()


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "f.db"
    file.write_bytes(b"precious text, not a database" * 100)
    before = file.read_bytes()
    with pytest.raises(StoreError, match="cannot be opened") as refused:
        await opened(file)
    assert str(tmp_path) not in refused.value.text()
    assert file.read_bytes() == before


async def test_a_folder_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        await opened(tmp_path / "missing" / "f.db")
