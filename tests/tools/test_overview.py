"""`monitor_overview`: what goes on, as a watcher sees it."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import NotFound
from ksi_mcp.permissions import agent_actor, fresh_context

SCRIPT = {
    "replies": [
        {"match": {"agent": "slow"}, "reply": "later", "latency_s": 600},
        {"match": {"agent": "broken"}, "fail": {"kind": "auth", "status": 401}},
    ]
}


async def test_agents_at_work_come_first_with_what_they_are_at(open_house: Any) -> None:
    async with open_house(SCRIPT) as house:
        for name in ("idle", "quick", "broken", "slow"):
            await house.spawn(name)
        await house.ask("quick", "hello")
        await house.ask("broken")
        for _ in range(3):
            await house.call("agent_send", agent="slow", message="go")
        await house.started()
        seen = await house.call("monitor_overview")
        lanes = {lane["name"]: lane for lane in seen["agents"]}
        assert [lane["name"] for lane in seen["agents"]] == ["slow", "idle", "quick", "broken"]
        assert (lanes["slow"]["now"]["state"], lanes["slow"]["pending"], lanes["slow"]["done"]) == ("running", 3, 0)
        assert (lanes["quick"]["said"], lanes["quick"]["said_state"]) == ("[quick] hello", "done")
        assert lanes["broken"]["said_state"] == "failed"
        assert (seen["queue"]["running"], seen["queue"]["waiting"], seen["agents_living"]) == (1, 2, 4)
        assert seen["names"][lanes["slow"]["agent"]] == "slow"


async def test_pages_and_a_search_bound_what_is_read(open_house: Any) -> None:
    async with open_house() as house:
        for n in range(7):
            await house.spawn(f"agent_{n}")
        second = await house.call("monitor_overview", agents=3, offset=3)
        assert [lane["name"] for lane in second["agents"]] == ["agent_3", "agent_4", "agent_5"]
        assert second["agents_fitting"] == 7
        found = await house.call("monitor_overview", find="AGENT_6")
        assert ([lane["name"] for lane in found["agents"]], found["agents_fitting"]) == (["agent_6"], 1)
        assert (await house.call("monitor_overview", find="100%_"))["agents"] == []


async def test_a_run_is_shown_with_its_own_and_its_ended_agents_if_asked_for(open_house: Any) -> None:
    async with open_house() as house:
        started = await house.call("orchestration_start", pattern="consensus", vars={"question": "Tea?"})
        run = started["orchestration"]
        await house.spawn("outside")
        seen = await house.call("monitor_overview", orchestration=run)
        assert "outside" not in [lane["name"] for lane in seen["agents"]]
        assert (seen["account"]["account"], seen["runs"][0]["state"]) == (run, "running")
        await house.call("orchestration_complete", orchestration=run)
        assert (await house.call("monitor_overview", orchestration=run))["agents"] == []
        ended = await house.call("monitor_overview", orchestration=run, ended=True)
        assert {lane["status"] for lane in ended["agents"]} == {"terminated"}
        with pytest.raises(NotFound):
            await house.call("monitor_overview", orchestration="o_nothere")


async def test_an_agent_sees_its_family_only_and_a_delivery_names_both_ends(open_house: Any) -> None:
    async with open_house() as house:
        await house.spawn("stranger")
        ada = await house.spawn("ada", capabilities=("base", "messaging"))
        await house.spawn("bob")
        await house.call("routing_add_rule", source_pattern="note:made", target="agent:bob")
        await house.call("event_emit", event="note:made")
        await house.call("agent_wait", agents=["bob"])
        seen = await house.call("monitor_overview")
        (delivery,) = seen["deliveries"]
        assert (delivery["event"], delivery["source"]) == ("note:made", "operator")
        assert seen["names"][delivery["target"].removeprefix("agent:")] == "bob"
        ctx = fresh_context(agent_actor(ada))
        own = (await house.app.toolbox.call(ctx, "monitor_overview", {})).data
        assert [lane["name"] for lane in own["agents"]] == ["ada"]
        assert (own["agents_living"], own["deliveries"], own["account"]["account"]) == (1, [], ada)


async def test_an_agent_learns_no_name_by_naming_an_id(open_house: Any) -> None:
    async with open_house() as house:
        ada, stranger = await house.spawn("ada", capabilities=["base"]), await house.spawn("stranger")
        ctx = fresh_context(agent_actor(ada))
        told = {"event": "a:b", "data": {"from": f"agent:{stranger}"}}
        await house.app.toolbox.call(ctx, "event_emit", told)
        seen = (await house.app.toolbox.call(ctx, "monitor_overview", {})).data
        assert seen["names"] == {ada: "ada"}
