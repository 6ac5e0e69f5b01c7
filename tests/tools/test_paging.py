"""Pages are as long as a reader can take, and the next begins where one ended, whatever is in them."""

from __future__ import annotations

import pytest

from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.testing import open_test_app
from ksi_mcp.tools.bounding import MAX_RESULT_CHARS, bounded, compact

ME = fresh_context(OPERATOR)


async def test_every_event_is_met_once_however_long_they_are():
    async with open_test_app() as app:

        async def call(name: str, **args: object) -> dict:
            return (await app.app.toolbox.call(ME, name, args)).data

        for number in range(40):
            await call("event_emit", event="big:one", data={"n": number, "text": "x" * 3_000})
        met: list[int] = []
        cursor = None
        for _ in range(20):
            page = await call("event_query", names=["big:one"], limit=200, cursor=cursor)
            assert len(compact(page)) <= MAX_RESULT_CHARS
            met += [event["data"]["n"] for event in page["events"]]
            cursor = page.get("cursor")
            if cursor is None:
                break
        assert met == list(reversed(range(40)))

        waited = await call("event_wait", names=["big:one"], since=0, min_count=40, timeout_s=0)
        assert (waited["arrived"], waited["complete"]) == (40, True)
        assert len(waited["events"]) < 40
        assert f"since={waited['events'][-1]['event_id']}" in waited["next"]


@pytest.mark.parametrize("limit", [1, 2])
async def test_a_single_entry_that_is_too_long_is_still_shown(limit):
    async with open_test_app() as app:
        text = {"text": "x" * 60_000}
        for _ in range(2):
            await app.app.toolbox.call(ME, "event_emit", {"event": "big:one", "data": text})
        page = (await app.app.toolbox.call(ME, "event_query", {"names": ["big:one"], "limit": limit})).data
        assert len(page["events"]) == 1
        assert page["cursor"]


async def test_an_entry_that_is_cut_inside_does_not_end_the_pages():
    async with open_test_app() as app:
        for number in range(3):
            data = {"n": number, "rows": [["abcdefgh"] * 3] * 1_700}
            await app.app.toolbox.call(ME, "event_emit", {"event": "big:one", "data": data})
        met: list[int] = []
        cursor = None
        for _ in range(9):
            found = (await app.app.toolbox.call(ME, "event_query", {"names": ["big:one"], "cursor": cursor})).data
            page, _ = bounded(found)
            assert not page["events"] or "events.data.rows" in page["cut"]
            met += [event["data"]["n"] for event in page["events"]]
            cursor = page.get("cursor")
            if cursor is None:
                break
        assert met == [2, 1, 0]


async def test_a_wait_says_where_all_that_it_leaves_out_is():
    async with open_test_app() as app:

        async def call(name: str, **args: object) -> dict:
            return (await app.app.toolbox.call(ME, name, args)).data

        for number in range(230):
            await call("event_emit", event="big:one", data={"n": number, "text": "x" * 500})
        waited = await call("event_wait", names=["big:one"], since=0, timeout_s=0)
        met = [event["data"]["n"] for event in waited["events"]]
        assert met[0] == 30
        assert len(met) < 200
        assert f"since={waited['events'][-1]['event_id']}" in waited["next"]
        cursor = waited["next"].partition("cursor=")[2].partition(";")[0].strip("'")
        before = await call("event_query", names=["big:one"], limit=200, cursor=cursor)
        assert [event["data"]["n"] for event in before["events"]] == list(range(29, -1, -1))
