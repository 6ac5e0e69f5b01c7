from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Invalid
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, fresh_context

CTX = fresh_context(OPERATOR)
NAMES = ("a:one", "a:two", "b:one", "a:one:more", "system:refused")


class SteppingClock(SystemClock):
    """One millisecond later at each look."""

    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        self.ms += 1
        return self.ms


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    """Twenty events: the names in turn, about agents a0 to a2, in runs o0 and o1."""
    clock = SteppingClock()
    db = await open_sqlite(":memory:", clock)
    journal = Journal(db, clock)
    for n in range(20):
        about: dict[str, Any] = {"agent_id": f"a{n % 3}", "orchestration_id": f"o{n % 2}"}
        await journal.commit(
            lambda tx, n=n, about=about: journal.record(tx, NAMES[n % 5], {"n": n}, CTX, **about)  # type: ignore[misc]
        )
    yield journal
    await journal.close()
    await db.close()


async def walk(journal: Journal, wanted: EventFilter, limit: int) -> list[int]:
    """All pages of a query, as the numbers of the events."""
    found: list[int] = []
    cursor = None
    for _ in range(100):
        page = await journal.query(wanted, limit=limit, cursor=cursor)
        assert len(page.events) <= limit
        found += [event.data["n"] for event in page.events]
        cursor = page.cursor
        if cursor is None:
            return found
    raise AssertionError("the pages have no end")


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20, 100])
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (EventFilter(), lambda n: True),
        (EventFilter(names=("a:one",)), lambda n: n % 5 == 0),
        (EventFilter(names=("a:one", "b:one")), lambda n: n % 5 in (0, 2)),
        (EventFilter(names=("a:*",)), lambda n: n % 5 in (0, 1)),
        (EventFilter(names=("a:**",)), lambda n: n % 5 in (0, 1, 3)),
        (EventFilter(names=("*",)), lambda n: True),
        (EventFilter(names=("a:*", "b:one")), lambda n: n % 5 in (0, 1, 2)),
        (EventFilter(names=("nothing",)), lambda n: False),
        (EventFilter(names=("no:*",)), lambda n: False),
        (EventFilter(agent_id="a1"), lambda n: n % 3 == 1),
        (EventFilter(orchestration_id="o1"), lambda n: n % 2 == 1),
        (EventFilter(names=("a:*",), agent_id="a1"), lambda n: n % 5 in (0, 1) and n % 3 == 1),
        (EventFilter(visible_to=frozenset()), lambda n: False),
        (EventFilter(visible_to=frozenset({"a2"})), lambda n: n % 3 == 2),
        (EventFilter(visible_to=frozenset({"a2", "o0"})), lambda n: n % 3 == 2 or n % 2 == 0),
        (EventFilter(names=("**",), visible_to=frozenset({"a2"})), lambda n: n % 3 == 2),
        (EventFilter(after_id=15), lambda n: n >= 15),
        (EventFilter(root_id=CTX.root_id), lambda n: True),
        (EventFilter(root_id="x_other"), lambda n: False),
    ],
)
async def test_pages_together_are_exactly_what_was_asked_for_newest_first(
    journal: Journal, wanted: EventFilter, expected: Any, limit: int
) -> None:
    assert await walk(journal, wanted, limit) == [n for n in reversed(range(20)) if expected(n)]


async def test_a_rare_name_is_found_however_far_back_over_several_pages(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ksi_mcp.events.store._CHUNK", 3)
    monkeypatch.setattr("ksi_mcp.events.store.SCAN_LIMIT", 5)
    assert await walk(journal, EventFilter(names=("a:one:*",)), 2) == [18, 13, 8, 3]


async def test_moments_bound_a_query_on_both_sides(journal: Journal) -> None:
    times = {event.data["n"]: event.at_ms for event in (await journal.query(EventFilter(), limit=50)).events}
    found = await walk(journal, EventFilter(since_ms=times[4], until_ms=times[6]), 10)
    assert found == [6, 5, 4]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "²", "٣", " 1", "1 ", "9" * 19, "9" * 6000, "0" * 30 + "1"])
async def test_a_cursor_of_somebody_else_is_refused(journal: Journal, cursor: str) -> None:
    with pytest.raises(Invalid, match="is not one of ours"):
        await journal.query(EventFilter(), limit=1, cursor=cursor)
