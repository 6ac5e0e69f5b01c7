from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.completions.breaker import (
    COUNTED,
    Breakers,
    Circuit,
    Go,
    Wait,
    after_failure,
    after_success,
    family_of,
    may_call,
    probing,
    without_probe,
)
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import SqliteDatabase, open_sqlite
from ksi_mcp.errors import RETRYABLE_KINDS, StoreError
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import SYSTEM, fresh_context
from ksi_mcp.testing import FakeClock

CTX = fresh_context(SYSTEM)
CLOSED = Circuit(provider="p", family="f")
OPEN = Circuit(provider="p", family="f", state="open", failures=(1, 2, 3, 4, 5), opened_at_ms=100_000)
PROBED = probing(OPEN, "t_1", 130_000)
MODEL = "claude-haiku-5-5"


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("claude-haiku-5-5", "claude-haiku"),
        ("claude-haiku-4-5-20251001", "claude-haiku"),
        ("claude-3-5-sonnet-20241022", "claude-sonnet"),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "us-anthropic-claude-sonnet"),
        ("claude-opus-5-5[1m]", "claude-opus"),
        ("claude-mythos-preview", "claude-mythos"),
        ("gpt-6-mini-2026", "gpt-mini"),
        ("GPT-6", "gpt"),
        ("o3-mini", "o-mini"),
        ("llama3.1:8b", "llama"),
        ("meta-llama/Llama-3.1-70B-Instruct", "meta-llama-llama-instruct"),
        ("模型-2", "模型"),
        ("4", "4"),
        ("  ", "unknown"),
        ("", "unknown"),
        ("-" * 500, "-" * 80),
    ],
)
def test_the_models_of_a_family_share_its_name(model: str, family: str) -> None:
    assert family_of(model) == family


@given(st.text())
def test_a_family_is_never_empty_nor_long(model: str) -> None:
    assert 1 <= len(family_of(model)) <= 80


def test_what_is_counted_is_worth_a_retry_and_is_no_refusal() -> None:
    assert RETRYABLE_KINDS - {"rate"} == COUNTED


# -- the pure decisions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("circuit", "turn", "now_ms", "verdict"),
    [
        (CLOSED, "t_1", 0, Go()),
        (OPEN, "t_1", 100_000, Wait(until_ms=130_000)),  # 100,000 + 30,000
        (OPEN, "t_1", 129_999, Wait(until_ms=130_000)),
        (OPEN, "t_1", 130_000, Go(probe=True)),
        (OPEN, "t_1", 99_999, Go(probe=True)),  # it was opened in the future: the clock was set back
        (PROBED, "t_1", 130_001, Go(probe=True)),  # whoever holds the probe goes on
        (PROBED, "t_2", 130_000, Wait(until_ms=132_000)),  # 2 s at least
        (PROBED, "t_2", 137_000, Wait(until_ms=144_000)),  # as long again as it has taken so far: 7 s
        (PROBED, "t_2", 190_000, Wait(until_ms=220_000)),  # 30 s at most
        (PROBED, "t_2", 730_000, Go(probe=True)),  # no call lasts 600 s
        (PROBED, "t_2", 129_999, Go(probe=True)),  # the clock was set back
        (without_probe(PROBED), "t_2", 130_001, Go(probe=True)),
    ],
)
def test_who_may_call(circuit: Circuit, turn: str, now_ms: int, verdict: Go | Wait) -> None:
    assert may_call(circuit, turn, now_ms) == verdict


@pytest.mark.parametrize(
    ("times", "state", "kept"),
    [
        ([0, 10, 20, 30], "closed", (0, 10, 20, 30)),
        ([0, 10, 20, 30, 59_999], "open", (0, 10, 20, 30, 59_999)),
        ([0, 10, 20, 30, 60_000], "closed", (10, 20, 30, 60_000)),  # the first is 60 s old
        ([50, 40, 30, 20, 10], "closed", (10,)),  # a time in the future is no failure that happened
        ([0, 61_000, 122_000, 183_000, 244_000, 305_000], "closed", (305_000,)),
    ],
)
def test_five_failures_within_a_minute_open_a_circuit(times: list[int], state: str, kept: tuple[int, ...]) -> None:
    circuit = CLOSED
    for now_ms in times:
        circuit = after_failure(circuit, "server", now_ms, turn_id="t_1")
    assert (circuit.state, circuit.failures) == (state, kept)


def test_an_answer_ends_the_count() -> None:
    circuit = CLOSED
    for now_ms in range(4):
        circuit = after_failure(circuit, "timeout", now_ms, turn_id="t_1")
    assert after_success(circuit, turn_id="t_2") == CLOSED


@pytest.mark.parametrize("kind", ["rate", "request", "auth", "budget", "refused", "bug"])
def test_a_refusal_is_no_failure_of_the_provider(kind: str) -> None:
    assert after_failure(CLOSED, kind, 0, turn_id="t_1") == CLOSED
    assert after_failure(PROBED, kind, 0, turn_id="t_1") == without_probe(PROBED)
    assert after_failure(PROBED, kind, 0, turn_id="t_2") == PROBED


def test_while_a_circuit_is_not_closed_only_the_probe_has_a_say() -> None:
    for circuit, turn in ((OPEN, "t_1"), (PROBED, "t_2")):
        assert after_failure(circuit, "server", 131_000, turn_id=turn) == circuit
        assert after_success(circuit, turn_id=turn) == circuit
    assert after_success(PROBED, turn_id="t_1") == CLOSED
    again = after_failure(PROBED, "timeout", 131_000, turn_id="t_1")
    assert (again.state, again.opened_at_ms, again.probe_turn, again.probe_at_ms) == ("open", 131_000, None, None)
    assert may_call(again, "t_1", 131_001) == Wait(until_ms=161_000)


# -- through real transactions ----------------------------------------------------------------------


class Bench:
    """A database, a journal, and breakers that ask through transactions of their own."""

    def __init__(self, db: SqliteDatabase, clock: FakeClock) -> None:
        self.db, self.clock = db, clock
        self.journal = Journal(db, clock)
        self.breakers = Breakers(self.journal)

    async def ask(self, turn: str, model: str = MODEL) -> int | None:
        return await self.journal.commit(lambda tx: self.breakers.ask(tx, "p", model, turn))

    async def fail(self, turn: str, kind: str = "server", model: str = MODEL) -> bool:
        return await self.journal.commit(lambda tx: self.breakers.failed(tx, "p", model, turn, kind, CTX))

    async def succeed(self, turn: str, model: str = MODEL) -> bool:
        return await self.journal.commit(lambda tx: self.breakers.succeeded(tx, "p", model, turn, CTX))

    async def forget(self, turn: str) -> None:
        await self.journal.commit(lambda tx: self.breakers.forget_probe(tx, turn))

    async def all(self) -> list[Circuit]:
        return await self.journal.read(self.breakers.all)

    async def open_it(self) -> None:
        for number in range(5):
            await self.fail(f"t_{number}")


@asynccontextmanager
async def bench(path: Path | str = ":memory:", clock: FakeClock | None = None) -> AsyncIterator[Bench]:
    clock = clock or FakeClock()
    db = await open_sqlite(path, clock)
    made = Bench(db, clock)
    try:
        yield made
    finally:
        await made.journal.close()
        await db.close()


def told(path: Path) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, source, data FROM event ORDER BY event_id").fetchall()
    connection.close()
    return rows


async def test_a_circuit_opens_is_probed_once_and_closes_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ksi.db"
    async with bench(path) as it:
        assert [await it.fail(f"t_{n}") for n in range(5)] == [False, False, False, False, True]
        opened_ms = it.clock.now_ms()
        assert await it.ask("t_9") == opened_ms + 30_000
        assert await it.ask("t_9", "claude-haiku-4-5") == opened_ms + 30_000  # the same family
        assert await it.ask("t_9", "claude-opus-5-5") is None
        await it.clock.advance(30)
        assert await it.ask("t_9") is None
        assert await it.ask("t_8") == it.clock.now_ms() + 2_000
        assert await it.succeed("t_8") is False  # it had left before
        await it.clock.advance(1)
        assert await it.succeed("t_9") is True
        assert await it.all() == []
        assert await it.ask("t_8") is None
    assert told(path) == [
        (
            "completion:breaker_opened",
            "system",
            '{"provider":"p","family":"claude-haiku","failures":5,"kind":"server","wait_s":30,"again":false}',
        ),
        ("completion:breaker_closed", "system", '{"provider":"p","family":"claude-haiku","open_s":31.0}'),
    ]


async def test_a_failed_probe_opens_it_for_another_half_minute(tmp_path: Path) -> None:
    path = tmp_path / "ksi.db"
    async with bench(path) as it:
        await it.open_it()
        await it.clock.advance(30)
        assert await it.ask("t_1") is None
        await it.clock.advance(4)
        assert await it.fail("t_1", "timeout") is True
        assert await it.ask("t_2") == it.clock.now_ms() + 30_000
    assert '"kind":"timeout","wait_s":30,"again":true' in told(path)[-1][2]


@pytest.mark.parametrize("connections", [1, 2])
async def test_of_ten_turns_that_ask_a_half_open_circuit_at_once_one_goes(tmp_path: Path, connections: int) -> None:
    path, clock = tmp_path / "ksi.db", FakeClock()
    async with bench(path, clock) as first:
        await first.open_it()
        async with bench(path, clock) as second:
            await clock.advance(30)
            benches = [first, second][:connections]
            asked = [benches[n % connections].ask(f"t_{n}") for n in range(10)]
            answers = await asyncio.gather(*asked)
            assert answers.count(None) == 1
            assert set(answers) == {None, clock.now_ms() + 2_000}
            (circuit,) = await first.all()
            assert circuit.probe_turn == f"t_{answers.index(None)}"


async def test_an_open_circuit_is_still_open_after_a_restart_and_so_is_the_count(tmp_path: Path) -> None:
    path, clock = tmp_path / "ksi.db", FakeClock()
    async with bench(path, clock) as it:
        await it.open_it()
        for number in range(4):
            await it.fail(f"t_{number}", model="claude-opus-5-5")
    async with bench(path, clock) as it:
        assert await it.ask("t_9") == clock.now_ms() + 30_000
        assert await it.ask("t_9", "claude-opus-5-5") is None
        assert await it.fail("t_9", model="claude-opus-5-5") is True


@pytest.mark.parametrize("how", ["forgotten", "old", "a refusal"])
async def test_a_probe_that_never_reports_is_free_for_the_next(how: str) -> None:
    async with bench() as it:
        await it.open_it()
        await it.clock.advance(30)
        assert await it.ask("t_1") is None
        if how == "forgotten":
            await it.forget("t_2")  # holds none
            assert await it.ask("t_2") is not None
            await it.forget("t_1")
        elif how == "old":
            await it.clock.advance(600)
        else:
            await it.fail("t_1", "rate")
        assert await it.ask("t_2") is None
        assert await it.ask("t_3") is not None
        assert await it.succeed("t_1") is False  # too late
        assert await it.ask("t_3") is not None


class Counted:
    """A transaction that counts its statements."""

    def __init__(self, tx: Tx) -> None:
        self._tx, self.names, self.now_ms = tx, [], tx.now_ms

    def run(self, name: str, params: Any = None) -> int:
        self.names.append(name)
        return self._tx.run(name, params)

    def one(self, name: str, params: Any = None) -> Any:
        self.names.append(name)
        return self._tx.one(name, params)

    def all(self, name: str, params: Any = None) -> Any:
        self.names.append(name)
        return self._tx.all(name, params)

    def announce(self, note: object) -> None:
        self._tx.announce(note)


async def statements(it: Bench, work: Callable[[Tx], Any]) -> list[str]:
    def counted(tx: Tx) -> list[str]:
        counting = Counted(tx)
        work(counting)  # type: ignore[arg-type]
        return counting.names

    return await it.journal.commit(counted)


async def test_a_healthy_provider_costs_no_statement() -> None:
    def round_trip(tx: Tx) -> None:
        it.breakers.ask(tx, "p", MODEL, "t_1")
        it.breakers.succeeded(tx, "p", MODEL, "t_1", CTX)
        it.breakers.failed(tx, "p", MODEL, "t_1", "rate", CTX)

    async with bench() as it:
        assert await statements(it, round_trip) == ["completions.breaker_all"]  # what a restart left
        assert await statements(it, round_trip) == []
        await it.fail("t_1")
        assert await statements(it, lambda tx: it.breakers.ask(tx, "p", "claude-opus-5-5", "t_1")) == []
        one, drop = "completions.breaker_one", "completions.breaker_drop"
        assert await statements(it, round_trip) == [one, one, drop, one]
        await it.clock.advance(1)
        assert await statements(it, round_trip) == [one]  # it is gone for good
        assert await statements(it, round_trip) == []


async def test_a_unit_that_is_undone_leaves_nothing_behind_that_misleads() -> None:
    class Undone(Exception):
        pass

    async def undone(work: Callable[[Tx], Any]) -> None:
        def unit(tx: Tx) -> None:
            work(tx)
            raise Undone

        with pytest.raises(Undone):
            await it.journal.commit(unit)

    async with bench() as it:
        for number in range(4):
            await it.fail(f"t_{number}")
        await undone(lambda tx: it.breakers.failed(tx, "p", MODEL, "t_4", "server", CTX))
        assert await it.ask("t_9") is None
        await undone(lambda tx: it.breakers.succeeded(tx, "p", MODEL, "t_4", CTX))
        assert await it.ask("t_9") is None  # within the same millisecond: what is gone is not yet known to be gone
        assert await it.fail("t_4") is True  # all four are still counted
        await it.clock.advance(30)
        await undone(lambda tx: it.breakers.ask(tx, "p", MODEL, "t_1"))
        assert await it.ask("t_2") is None  # the probe was not taken


async def test_a_whole_transaction_that_is_lost_takes_back_that_the_circuit_closed(tmp_path: Path) -> None:
    path, clock = tmp_path / "ksi.db", FakeClock()
    async with bench(path, clock) as it:
        await it.open_it()
        await clock.advance(30)
        assert await it.ask("t_1") is None

        def full(tx: Tx) -> None:
            it.breakers.succeeded(tx, "p", MODEL, "t_1", CTX)
            assert it.breakers.ask(tx, "p", MODEL, "t_2") is None  # closed, in here
            tx._connection.execute("ROLLBACK")  # type: ignore[attr-defined]  # as the database does when the disk is full
            raise sqlite3.OperationalError("database or disk is full")

        with pytest.raises(StoreError):
            await it.journal.commit(full)
        await clock.advance(1)
        assert await it.ask("t_2") is not None


async def test_a_process_that_becomes_the_worker_later_reads_what_the_one_before_wrote(tmp_path: Path) -> None:
    path, clock = tmp_path / "ksi.db", FakeClock()
    async with bench(path, clock) as late, bench(path, clock) as worker:
        assert await late.ask("t_1") is None
        await worker.open_it()
        await late.journal.commit(late.breakers.load)
        assert await late.ask("t_1") is not None
