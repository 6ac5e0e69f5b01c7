"""Turns that no model answers: the client's own model does, or a person."""

from __future__ import annotations

import pytest

from ksi_mcp.errors import Conflict, Invalid


async def test_a_turn_of_an_external_agent_waits_for_an_answer_and_says_what_is_asked(open_house) -> None:
    async with open_house() as house:
        ann = await house.spawn("ann", provider="external")
        turn = await house.ask("ann", "what is 6 x 7?")
        assert (turn["status"], turn["parked_on"], turn["question"]) == ("parked", "answer", "what is 6 x 7?")
        (parked,) = house.events("completion:parked")
        assert (parked["turn"], parked["agent"], parked["reason"]) == (turn["turn"], ann, "external")
        done = await house.call("completion_answer", turn=turn["turn"], text="42")
        assert (done["status"], done["text"], done["answered_by"], done["cost_usd"]) == ("done", "42", "operator", 0)
        assert house.calls() == []  # nobody was called
        assert house.rows("SELECT * FROM hold WHERE state IN ('reserved', 'sent')") == []


async def test_the_conversation_goes_on_with_what_was_answered(open_house) -> None:
    async with open_house({"default": {"reply": "I am {{agent}}"}}) as house:
        await house.spawn("ann", provider="external")
        for number in range(3):
            turn = await house.ask("ann", f"question {number}")
            await house.call("completion_answer", turn=turn["turn"], text=f"answer {number}")
        history = await house.call("agent_history", agent="ann", limit=2)
        assert [(each["prompt"], each["reply"]) for each in history["turns"]] == [
            ("question 1", "answer 1"),
            ("question 2", "answer 2"),
        ]
        await house.call("agent_update", agent="ann", provider="scripted", model="m")
        assert (await house.ask("ann", "who are you?"))["text"] == "I am ann"


async def test_the_next_turn_of_an_external_agent_waits_until_the_first_is_answered(open_house) -> None:
    async with open_house() as house:
        await house.spawn("ann", provider="external")
        first = await house.ask("ann", "one")
        second = await house.call("agent_send", agent="ann", message="two")
        assert second["status"] == "queued"
        await house.call("completion_answer", turn=first["turn"], text="1")
        waited = await house.call("agent_wait", turns=[second["turn"]], timeout_s=5)
        assert (waited["turns"][0]["status"], waited["turns"][0]["question"]) == ("parked", "two")


async def test_what_an_external_agent_is_expected_to_say_holds_for_whoever_answers(open_house) -> None:
    async with open_house() as house:
        await house.spawn("ann", provider="external")
        asked = await house.call("completion_submit", agent="ann", prompt="a number", expect={"regex": "^[0-9]+$"})
        await house.call("agent_wait", turns=[asked["turn"]], timeout_s=5)
        with pytest.raises(Invalid, match="not what turn"):
            await house.call("completion_answer", turn=asked["turn"], text="seven")
        assert (await house.call("completion_answer", turn=asked["turn"], text="7"))["status"] == "done"
        with pytest.raises(Conflict, match="was answered by operator"):
            await house.call("completion_answer", turn=asked["turn"], text="8")


async def test_an_external_turn_counts_as_a_turn_of_its_budget(open_house) -> None:
    async with open_house() as house:
        await house.spawn("ann", provider="external", budget={"turns": 1})
        first = await house.ask("ann", "one")
        await house.call("completion_answer", turn=first["turn"], text="1")
        second = await house.ask("ann", "two")
        assert (second["status"], second["error_class"]) == ("failed", "budget")


async def test_somebody_stands_in_for_a_model_that_fails(open_house) -> None:
    replies = [{"reply": "no", "fail": {"kind": "auth"}}]
    async with open_house({"replies": replies}) as house:
        document = {
            "name": "helper", "type": "agent", "prompt": "You help.", "model": "m", "fallback": ["external:anybody"],
        }  # fmt: skip
        await house.call("composition_create", document=document)
        await house.call("agent_spawn", composition="helper", name="ann")
        turn = await house.ask("ann", "help")
        assert (turn["status"], turn["parked_on"], turn["substituted"]) == ("parked", "answer", True)
        done = await house.call("completion_answer", turn=turn["turn"], text="here I am")
        assert (done["text"], done["answered_by"]) == ("here I am", "operator")
        house.books()
