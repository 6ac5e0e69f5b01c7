from __future__ import annotations

from ksi_mcp.testing import open_test_app

EXPECT = {"regex": "^[0-9]+$", "max_attempts": 1}


async def test_without_a_run_the_open_ones_are_shown_newest_first():
    async with open_test_app() as app:
        nothing = await app.call("orchestration_status")
        assert nothing == {"orchestrations": [], "next": ["no run is open: orchestration_start begins one"]}
        vars = {"proposition": "Tabs are better than spaces"}
        first, second, third = [
            (await app.call("orchestration_start", pattern="debate_with_judge", vars=vars))["orchestration"]
            for _ in range(3)
        ]
        await app.call("orchestration_control", orchestration=first, action="suspend")
        await app.call("orchestration_complete", orchestration=second)
        shown = await app.call("orchestration_status")
        runs = [(each["orchestration"], each["state"]) for each in shown["orchestrations"]]
        assert runs == [(third, "running"), (first, "suspended")]
        newest = shown["orchestrations"][0]
        assert (newest["agents"], newest["pending_turns"], newest["budget"]["limit_usd"]) == (4, 0, 3)


async def test_a_question_of_a_run_is_in_its_status_and_is_the_first_next_step():
    async with open_test_app(default={"reply": "many"}) as app:
        vars = {"proposition": "Tabs are better than spaces"}
        run = (await app.call("orchestration_start", pattern="debate_with_judge", vars=vars))["orchestration"]
        turn = (await app.call("completion_submit", agent="judge", prompt="how many?", expect=EXPECT))["turn"]
        await app.call("agent_wait", turns=[turn], timeout_s=10)
        status = await app.call("orchestration_status", orchestration=run)
        (asked,) = status["questions"]
        assert (asked["turn"], asked["agent_name"], asked["parked_on"]) == (turn, "judge", "answer")
        assert (asked["prompt"], asked["reply"]) == ("how many?", "many")
        assert status["next"][0].startswith(f"{turn} of judge is parked: completion_answer")
        assert (await app.call("orchestration_status"))["questions"] == status["questions"]

        await app.call("completion_answer", turn=turn, text="3")
        assert "questions" not in await app.call("orchestration_status", orchestration=run)
