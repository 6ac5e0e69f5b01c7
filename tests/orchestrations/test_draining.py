from __future__ import annotations

import pytest

from ksi_mcp.errors import Conflict

SLOW = {"default": {"reply": "{{prompt}}!", "latency_s": 1}}


async def test_a_run_that_drains_takes_no_message_and_ends_with_its_last_turn(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.run("o_1")
        await house.spawn("ada", orchestration="o_1")
        await house.spawn("bob", orchestration="o_1")
        sent = [(await house.call("agent_send", agent=name, message="go"))["turn"] for name in ("ada", "ada", "bob")]
        await house.started()
        draining = await house.call(
            "orchestration_complete", orchestration="o_1", outcome="success", score=0.5, summary="well", mode="drain"
        )
        assert (draining["state"], draining["draining"], draining["cancelled_turns"]) == ("running", True, 0)
        assert [event["pending"] for event in house.events("orchestration:draining")] == [3]
        with pytest.raises(Conflict, match="draining"):
            await house.call("agent_send", agent="ada", message="one more")
        house.gate.opened.set()
        await house.until(lambda: house.rows("SELECT state FROM orchestration") == [("completed",)])
        states = house.rows("SELECT turn_id, state FROM turn ORDER BY n")
        assert states == [(turn, "done") for turn in sent]
        assert house.rows("SELECT outcome, score, summary, draining FROM orchestration") == [
            ("success", 0.5, "well", None)
        ]
        assert house.rows("SELECT DISTINCT status FROM agent") == [("terminated",)]
        assert [event["cancelled"] for event in house.events("orchestration:completed")] == [0]
        house.books()


async def test_a_run_without_turns_drains_at_once_and_one_that_ended_cannot(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        await house.spawn("ada", orchestration="o_1")
        ended = await house.call(
            "orchestration_control", orchestration="o_1", action="stop", mode="drain", reason="enough"
        )
        assert (ended["state"], ended["summary"]) == ("stopped", "enough")
        before = house.rows("SELECT * FROM orchestration")
        with pytest.raises(Conflict, match="o_1 is stopped"):
            await house.call("orchestration_control", orchestration="o_1", action="stop", mode="drain")
        assert house.rows("SELECT * FROM orchestration") == before
        assert len(house.events("orchestration:draining")) == 1


async def test_a_draining_run_can_be_stopped_at_once_and_suspended_in_between(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.run("o_1")
        await house.spawn("ada", orchestration="o_1")
        for message in ("one", "two"):
            await house.call("agent_send", agent="ada", message=message)
        await house.started()
        await house.call("orchestration_complete", orchestration="o_1", mode="drain")
        await house.call("orchestration_suspend", orchestration="o_1", mode="now")
        await house.until(lambda: house.calls() == [(1, "uncertain")])
        resumed = await house.call("orchestration_resume", orchestration="o_1")
        assert (resumed["state"], resumed["draining"]) == ("running", True)
        await house.started()
        stopped = await house.call("orchestration_control", orchestration="o_1", action="stop")
        assert (stopped["state"], stopped["cancelled_turns"]) == ("stopped", 2)
        await house.until(lambda: house.calls() == [(1, "uncertain"), (1, "uncertain")])
        house.books()
