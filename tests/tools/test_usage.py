"""What the newest window cost."""

from __future__ import annotations

import pytest

from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.permissions import READER, agent_actor, fresh_context


async def test_usage_shows_spend_by_run_by_model_and_by_agent_beside_the_account(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        one = await house.spawn("one", orchestration="o_1")
        two = await house.spawn("two")
        for agent in ("one", "one", "two"):
            await house.ask(agent)
        seen = await house.call("usage_report")
        assert {group["group"]: group["calls"] for group in seen["runs"]} == {"o_1": 2, "none": 1}
        assert [(group["group"], group["calls"]) for group in seen["models"]] == [("scripted:m", 3)]
        assert {group["group"]: group["name"] for group in seen["agents"]} == {one: "one", two: "two"}
        assert seen["total"]["calls"] == 3
        assert seen["total"]["usd_micros"] == sum(group["usd_micros"] for group in seen["agents"]) > 0
        assert seen["account"]["account"] == "global"
        assert seen["account"]["spent_usd"] == seen["total"]["usd"]
        assert "cursor" not in seen
        assert "days" not in seen


async def test_what_is_set_aside_for_calls_under_way_is_shown_apart(open_house) -> None:
    replies = [{"match": {"prompt": "stuck"}, "reply": "late", "latency_s": 60}]
    async with open_house({"replies": replies}) as house:
        await house.spawn("one")
        stuck = await house.call("agent_send", agent="one", message="stuck")
        await house.started()
        seen = await house.call("usage_report")
        assert seen["total"]["calls_under_way"] == 1
        assert seen["total"]["reserved_usd"] == seen["account"]["reserved_usd"] > 0
        assert seen["total"]["usd"] == 0
        await house.call("completion_cancel", turn=stuck["turn"])
        await house.until(lambda: not house.rows("SELECT 1 FROM hold WHERE state IN ('reserved', 'sent')"))
        after = (await house.call("usage_report"))["total"]
        assert "reserved_usd" not in after
        assert (after["uncertain_calls"], after["uncertain_usd"]) == (1, seen["total"]["reserved_usd"])


async def test_an_answer_that_was_used_again_shows_what_it_saved(open_house) -> None:
    async with open_house() as house:
        for name in ("one", "two"):
            document = {"name": f"of_{name}", "type": "agent", "prompt": "You help.", "model": "m", "cache": "exact"}
            await house.call("composition_create", document=document)
            await house.call("agent_spawn", composition=f"of_{name}", name=name)
            await house.ask(name)
        ((cost,),) = house.rows("SELECT SUM(cost_usd_micros) FROM provider_call")
        total = (await house.call("usage_report"))["total"]
        assert (total["reused_calls"], total["calls"], total["usd_micros"]) == (1, 2, cost)
        assert total["saved_usd"] == cost / 1_000_000 > 0


async def test_pages_of_one_report_begin_at_one_moment_and_hold_every_group_once(open_house) -> None:
    async with open_house() as house:
        names = [f"agent{n}" for n in range(5)]
        for name in names:
            await house.spawn(name)
            await house.ask(name)
        found, cursor, begun = [], None, set()
        while True:
            page = await house.call("usage_report", by="agent", limit=2, cursor=cursor)
            found += [group["name"] for group in page["agents"]]
            begun.add(page["since"])
            cursor = page.get("cursor")
            assert ("more" in page) is (cursor is not None)
            if cursor is None:
                break
        assert sorted(found) == names
        assert len(begun) == 1
        (day,) = (await house.call("usage_report", by="day"))["days"]
        assert day["calls"] == 5


async def test_a_window_counts_from_its_beginning_only(open_house) -> None:
    async with open_house() as house:
        await house.spawn("one")
        await house.ask("one")
        assert (await house.call("usage_report", window_s=3600))["total"]["calls"] == 1
        house.gate.ahead_ms = 7_200_000
        later = await house.call("usage_report", window_s=3600)
        assert (later["total"]["calls"], later["agents"]) == (0, [])
        assert later["account"]["spent_usd"] > 0
        assert (await house.call("usage_report", since="1000-01-01"))["total"]["calls"] == 1


async def test_an_agent_sees_its_own_account_and_the_calls_in_its_sight_a_reader_sees_all(open_house) -> None:
    async with open_house() as house:
        one = await house.spawn("one", ("base",))
        await house.spawn("two")
        for agent in ("one", "two", "two"):
            await house.ask(agent)
        own = (await house.app.toolbox.call(fresh_context(agent_actor(one)), "usage_report", {})).data
        assert (own["account"]["account"], own["total"]["calls"]) == (one, 1)
        assert [group["group"] for group in own["agents"]] == [one]
        everything = (await house.app.toolbox.call(fresh_context(READER), "usage_report", {})).data
        assert everything["total"]["calls"] == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"by": "planet"}, "by"),
        ({"window_s": 0}, "window_s"),
        ({"window_s": 60, "since": "2026-01-01"}, "window_s and since"),
        ({"since": "yesterday"}, "since is 'yesterday'"),
        ({"cursor": '[1,2,"x"]'}, "goes with `by`"),
        ({"by": "day", "cursor": "[" * 500}, "not one of ours"),
        ({"by": "day", "cursor": "{}"}, "not one of ours"),
        ({"by": "day", "cursor": '[-1,0,"x"]'}, "not one of ours"),
    ],
)  # fmt: skip
async def test_a_senseless_question_is_refused(open_house, args, message) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid, match=message):
            await house.call("usage_report", **args)
        with pytest.raises(NotFound, match="unknown orchestration"):
            await house.call("usage_report", orchestration="o_nothing")
