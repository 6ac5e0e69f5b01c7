from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Invalid
from ksi_mcp.events.journal import Journal, Subscription
from ksi_mcp.events.model import MAX_DATA_BYTES, Event, EventFilter
from ksi_mcp.ids import OrchestrationId, RootId
from ksi_mcp.permissions import OPERATOR, Context, agent_actor, fresh_context

CTX = fresh_context(OPERATOR)


class FixedClock(SystemClock):
    def now_ms(self) -> int:
        return 1_234


@asynccontextmanager
async def journal_on(path: Path | str = ":memory:") -> AsyncIterator[Journal]:
    clock = FixedClock()
    db = await open_sqlite(path, clock)
    journal = Journal(db, clock)
    try:
        yield journal
    finally:
        await journal.close()
        await db.close()


async def emit(journal: Journal, name: str, ctx: Context = CTX, **more: Any) -> Event:
    return await journal.commit(lambda tx: journal.record(tx, name, {"n": name}, ctx, **more))


async def heard(live: Subscription, count: int) -> list[str]:
    found = []
    for _ in range(count):
        event = await live.next(5)
        assert event is not None, f"only {found}"
        found.append(event.name)
    return found


def everything(event: Event) -> bool:
    return True


async def test_an_event_says_who_did_it_and_because_of_what() -> None:
    ctx = Context(
        actor=agent_actor("a_1"),
        root_id=RootId("x_1"),
        cause_id="turn:t_1",
        hops=3,
        depth=7,
        orchestration_id=OrchestrationId("o_1"),
    )
    async with journal_on() as journal:
        recorded = await emit(journal, "note:made", ctx)
        (read,) = (await journal.query(EventFilter(), limit=10)).events
        assert read == recorded
        assert read == Event(
            event_id=recorded.event_id,
            name="note:made",
            data={"n": "note:made"},
            source="agent:a_1",
            agent_id="a_1",
            orchestration_id="o_1",
            cause_id="turn:t_1",
            root_id="x_1",
            hops=3,
            depth=7,
            at_ms=1_234,
        )
        about = await emit(journal, "note:made", ctx, agent_id="a_2", orchestration_id="o_2")
        assert (about.agent_id, about.orchestration_id, about.source) == ("a_2", "o_2", "agent:a_1")


async def test_only_a_routable_event_waits_for_the_router() -> None:
    async with journal_on() as journal:
        await emit(journal, "routing:delivered", routable=False)
        waiting = await journal.read(lambda tx: tx.one("events.outbox_waiting"))
        assert waiting is not None
        assert not waiting["waiting"]
        await emit(journal, "note:made")
        waiting = await journal.read(lambda tx: tx.one("events.outbox_waiting"))
        assert waiting is not None
        assert waiting["waiting"]


async def test_a_unit_that_fails_leaves_no_event_and_tells_nobody() -> None:
    async with journal_on() as journal, journal.subscribe(everything) as live:

        def fails(tx: Tx) -> None:
            journal.record(tx, "lost", {}, CTX)
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await journal.commit(fails)
        await emit(journal, "kept")
        assert await heard(live, 1) == ["kept"]
        assert [event.name for event in (await journal.query(EventFilter(), limit=9)).events] == ["kept"]


async def test_a_subscription_hears_only_what_it_wants_from_its_entry_on() -> None:
    async with journal_on() as journal:
        await emit(journal, "a:before")
        async with journal.subscribe(lambda event: event.name.startswith("a:")) as live:
            await emit(journal, "b:1")
            await emit(journal, "a:1")
            await emit(journal, "a:2")
            assert await heard(live, 2) == ["a:1", "a:2"]
            assert await live.next(0) is None


async def test_two_subscriptions_do_not_take_from_each_other_and_a_left_one_hears_no_more() -> None:
    async with journal_on() as journal:
        async with journal.subscribe(everything) as one:
            async with journal.subscribe(everything) as two:
                await emit(journal, "a")
                assert [await heard(one, 1), await heard(two, 1)] == [["a"], ["a"]]
            await emit(journal, "b")
            assert await heard(one, 1) == ["b"]
            assert await two.next(0) is None
        await emit(journal, "c")
        async with journal.subscribe(everything) as three:
            await emit(journal, "d")
            assert await heard(three, 1) == ["d"]


async def test_a_slow_subscriber_loses_the_oldest_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksi_mcp.events.journal.SUBSCRIPTION_BACKLOG", 5)
    async with journal_on() as journal, journal.subscribe(everything) as live:
        for n in range(8):
            await emit(journal, f"e{n}")
        assert live.missed == 3
        assert await heard(live, 5) == ["e3", "e4", "e5", "e6", "e7"]
        assert await live.next(0) is None


async def test_two_processes_hear_every_event_once_and_in_order(tmp_path: Path) -> None:
    file = tmp_path / "f.db"
    async with journal_on(file) as one, journal_on(file) as two:
        # What the doorbell does between processes.
        one._db.on_commit(lambda _notes: two.rung())
        two._db.on_commit(lambda _notes: one.rung())

        async def writes(journal: Journal, prefix: str) -> None:
            for n in range(40):
                await emit(journal, f"{prefix}:{n}")

        async with one.subscribe(everything) as hears_one, two.subscribe(everything) as hears_two:
            await asyncio.gather(writes(one, "one"), writes(two, "two"), writes(one, "three"))
            found = [await heard(hears_one, 120), await heard(hears_two, 120)]
        page = await one.query(EventFilter(), limit=200)
        in_order = [event.name for event in reversed(page.events)]
        assert found == [in_order, in_order]


async def test_what_another_process_commits_is_heard_only_after_a_ring_and_then_whole(tmp_path: Path) -> None:
    file = tmp_path / "f.db"
    async with journal_on(file) as one, journal_on(file) as two, two.subscribe(everything) as live:
        for n in range(3):
            await emit(one, f"far:{n}")
        await emit(two, "near")  # its id shows that somebody else was in between
        assert await heard(live, 4) == ["far:0", "far:1", "far:2", "near"]


async def test_a_long_absence_is_read_up_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksi_mcp.events.journal._TAIL_CHUNK", 3)
    file = tmp_path / "f.db"
    async with journal_on(file) as one, journal_on(file) as two, two.subscribe(everything) as live:
        for n in range(10):
            await emit(one, f"e{n}")
        two.rung()
        assert await heard(live, 10) == [f"e{n}" for n in range(10)]


async def test_subscribing_and_leaving_under_load_neither_loses_nor_repeats(tmp_path: Path) -> None:
    file = tmp_path / "f.db"
    async with journal_on(file) as one, journal_on(file) as two:
        one._db.on_commit(lambda _notes: two.rung())

        async def writes() -> None:
            for n in range(60):
                await emit(one, f"e{n}")

        async def visits() -> None:
            for _ in range(15):
                async with two.subscribe(everything) as live:
                    names = await heard(live, 3)
                    first = int(names[0][1:])
                    assert names == [f"e{first + i}" for i in range(3)]

        writer = asyncio.create_task(writes())
        visitor = asyncio.create_task(visits())
        await asyncio.wait([writer])
        visitor.cancel()
        done, _ = await asyncio.wait([visitor])
        assert all(task.cancelled() or task.exception() is None for task in done)


async def test_everybody_who_may_have_work_is_woken_by_commits_and_rings() -> None:
    async with journal_on() as journal:
        woken: list[int] = []
        journal.on_wake(lambda: woken.append(1))
        await emit(journal, "a")
        assert len(woken) == 1
        await journal.read(lambda tx: tx.one("events.last_id"))
        assert len(woken) == 1
        journal.rung()
        assert len(woken) == 2


@pytest.mark.parametrize(
    "data",
    [{"x": float("nan")}, {"x": float("inf")}, {"x": {1, 2}}, {"x": b"raw"}, {"x": "\ud800"}, {"x": object()}],
    ids=["nan", "infinity", "set", "bytes", "lone surrogate", "object"],
)
async def test_data_that_is_not_json_is_refused_by_name(data: dict[str, Any]) -> None:
    async with journal_on() as journal:
        with pytest.raises(Invalid, match="'note:made' is not JSON"):
            await journal.commit(lambda tx: journal.record(tx, "note:made", data, CTX))
        assert (await journal.query(EventFilter(), limit=1)).events == ()


async def test_data_nested_without_end_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"x": deep}
    async with journal_on() as journal:
        with pytest.raises(Invalid, match="not JSON"):
            await journal.commit(lambda tx: journal.record(tx, "note:made", deep, CTX))
    while deep:  # taken apart step by step: letting go of it at once would go as deep
        deep = deep["x"]


async def test_data_may_be_as_large_as_its_limit_in_bytes_and_no_larger() -> None:
    frame = len('{"x":""}')
    async with journal_on() as journal:
        await journal.commit(lambda tx: journal.record(tx, "a", {"x": "x" * (MAX_DATA_BYTES - frame)}, CTX))
        for text in ("x" * (MAX_DATA_BYTES - frame + 1), "é" * ((MAX_DATA_BYTES - frame) // 2 + 1)):
            with pytest.raises(Invalid, match="the limit is 65,536"):
                await journal.commit(lambda tx, text=text: journal.record(tx, "a", {"x": text}, CTX))
