"""A model that pauses goes on, and its answer is one."""

from __future__ import annotations

PAUSED = {"match": {"round": 1}, "reply": "one, two, ", "stop_reason": "pause_turn"}


async def test_the_parts_of_a_paused_answer_are_one_answer(open_house) -> None:
    replies = [
        {**PAUSED, "match": {"prompt": "count"}, "times": 1},
        {"match": {"prompt": "Go on"}, "reply": "three, ", "stop_reason": "pause_turn", "times": 1},
        {"match": {"prompt": "Go on"}, "reply": "four"},
        {"match": {"prompt": "and then"}, "reply": "five"},
    ]
    async with open_house({"replies": replies}) as house:
        await house.spawn("ann")
        turn = await house.ask("ann", "count")
        assert (turn["status"], turn["text"]) == ("done", "one, two, three, four")
        assert house.calls() == [(1, "answered"), (2, "answered"), (3, "answered")]
        history = await house.call("agent_history", agent="ann", limit=1)
        assert history["turns"][0]["reply"] == "one, two, three, four"
        assert (await house.ask("ann", "and then"))["text"] == "five"
        house.books()


async def test_what_is_expected_is_expected_of_the_whole_answer(open_house) -> None:
    replies = [
        {"match": {"prompt": "count"}, "reply": '{"a": ', "stop_reason": "pause_turn", "times": 1},
        {"match": {"prompt": "Go on"}, "reply": "1}"},
    ]
    async with open_house({"replies": replies}) as house:
        await house.spawn("ann")
        expect = {"json_schema": {"type": "object", "required": ["a"]}, "max_attempts": 1, "on_invalid": "fail"}
        turn = (await house.call("completion_submit", agent="ann", prompt="count", expect=expect))["turn"]
        done = (await house.call("agent_wait", turns=[turn], timeout_s=10))["turns"][0]
        assert (done["status"], done["text"]) == ("done", '{"a": 1}')


async def test_a_model_that_only_ever_pauses_is_given_up(open_house) -> None:
    async with open_house(
        {"default": {"reply": "more ", "stop_reason": "pause_turn"}}, agents={"max_tool_rounds": 3}
    ) as house:
        await house.spawn("ann")
        turn = await house.ask("ann", "count")
        assert (turn["status"], turn["error_class"], turn["partial_text"]) == ("failed", "task", "more " * 4)
        assert "paused more than 3 times" in turn["error"]
        house.books()
