"""Replies that are not as expected: told to the model, parked for somebody, answered, across restarts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ksi_mcp.errors import Conflict, Invalid, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.waiting import parked_views

NUMBER = {"json_schema": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}}
WRONG = "/^Your reply was not as expected/"


def script(*replies: dict[str, Any], default: str = "I would rather talk.") -> dict[str, Any]:
    return {"replies": list(replies), "default": {"reply": default}}


async def parked(house: Any, **expect: Any) -> dict[str, Any]:
    """A turn of agent `a` whose model never gets it right."""
    sent = await house.call("completion_submit", agent="a", prompt="a number", expect={**NUMBER, **expect})
    return (await house.call("agent_wait", turns=[sent["turn"]], timeout_s=20))["turns"][0]


async def test_a_reply_that_is_not_as_expected_goes_back_with_the_reason(open_house) -> None:
    right = {"match": {"prompt": WRONG}, "reply": '```json\n{"n": 4}\n```'}
    async with open_house(script(right)) as house:
        await house.spawn("a")
        turn = await parked(house)
        assert (turn["status"], turn["text"]) == ("done", '```json\n{"n": 4}\n```')
        assert house.calls() == [(1, "answered"), (2, "answered")]
        ((note,),) = house.rows("SELECT text FROM round_note")
        assert "not valid JSON" in note
        (rejected,) = house.events("completion:rejected")
        assert rejected["reason"] == note
        (past,) = (await house.call("agent_history", agent="a"))["turns"]
        assert past["reply"] == turn["text"]
        assert past["rejected"] == [{"reply": "I would rather talk.", "why": note}]
        house.books()


async def test_the_model_is_asked_so_often_and_then_somebody_else_is(open_house) -> None:
    async with open_house(script()) as house:
        await house.spawn("a")
        turn = await parked(house, max_attempts=2)
        assert (turn["status"], turn["parked_on"]) == ("parked", "answer")
        assert "not valid JSON" in turn["question"]
        assert turn["partial_text"] == "I would rather talk."
        assert len(house.calls()) == 2
        waited = await house.call("agent_wait", turns=[turn["turn"]], timeout_s=20)  # a client is not kept waiting
        assert (waited["census"]["pending"], waited["partial"]) == (1, True)
        assert "completion_answer" in waited["next"]
        shown = await house.call("completion_status", turn=turn["turn"])
        assert (shown["expect"]["max_attempts"], shown["rejected_replies"]) == (2, 2)
        house.books()


async def test_a_turn_can_fail_instead(open_house) -> None:
    async with open_house(script()) as house:
        await house.spawn("a")
        turn = await parked(house, max_attempts=1, on_invalid="fail")
        assert (turn["status"], turn["error_class"], turn["partial_text"]) == ("failed", "task", "I would rather talk.")
        assert house.rows("SELECT * FROM round_note") == []
        with pytest.raises(Conflict, match="is failed, it does not wait for an answer"):
            await house.call("completion_answer", turn=turn["turn"], text='{"n": 1}')


async def test_an_answer_ends_a_parked_turn_and_is_the_models_word_from_then_on(open_house) -> None:
    async with open_house(script({"match": {"prompt": "and now?"}, "reply": "{{turn}}"})) as house:
        await house.spawn("a")
        sent = await house.call(
            "completion_submit",
            agent="a",
            prompt="a number",
            expect={**NUMBER, "max_attempts": 2},
            reply_event="got:it",
        )
        await house.call("agent_wait", turns=[sent["turn"]], timeout_s=20)
        following = await house.call("agent_send", agent="a", message="and now?")
        with pytest.raises(Invalid, match="is not what turn .* expects: it is not valid JSON"):
            await house.call("completion_answer", turn=sent["turn"], text="four")
        done = await house.call("completion_answer", turn=sent["turn"], text='{"n": 4}')
        assert (done["status"], done["text"], done["answered_by"]) == ("done", '{"n": 4}', "operator")
        with pytest.raises(Conflict, match="was answered by operator"):
            await house.call("completion_answer", turn=sent["turn"], text='{"n": 5}')
        assert [(event["text"], event["answered_by"]) for event in house.events("completion:result", "got:it")][:2] == [
            ('{"n": 4}', "operator"),
            ('{"n": 4}', "operator"),
        ]
        waited = await house.call("agent_wait", turns=[sent["turn"], following["turn"]], timeout_s=20)
        assert waited["census"]["ok"] == 2
        assert waited["turns"][1]["text"] == "3"  # the prompt, one note, this prompt
        past, _ = (await house.call("agent_history", agent="a"))["turns"]
        assert (past["reply"], past["answered_by"]) == ('{"n": 4}', "operator")
        assert [rejected["reply"] for rejected in past["rejected"]] == ["I would rather talk."] * 2
        house.books()


async def test_an_answer_that_is_not_as_expected_can_be_insisted_on(open_house) -> None:
    async with open_house(script()) as house:
        await house.spawn("a")
        turn = await parked(house, max_attempts=1)
        with pytest.raises(Invalid, match="the text is empty"):
            await house.call("completion_answer", turn=turn["turn"], text=" ", accept_anyway=True)
        done = await house.call("completion_answer", turn=turn["turn"], text="four", accept_anyway=True)
        assert (done["status"], done["text"]) == ("done", "four")


async def test_a_parked_turn_survives_a_restart(open_house) -> None:
    async with open_house(script()) as house:
        await house.spawn("a")
        turn = await parked(house, max_attempts=1)
    async with open_house(script()) as house:
        again = (await house.call("agent_wait", turns=[turn["turn"]], timeout_s=20))["turns"][0]
        assert (again["status"], again["question"]) == ("parked", turn["question"])
        done = await house.call("completion_answer", turn=turn["turn"], text='{"n": 4}')
        assert done["status"] == "done"
        assert len(house.calls()) == 1
        assert (await house.ask("a"))["status"] == "done"  # its session goes on
        house.books()


async def test_a_cancelled_turn_takes_no_answer(open_house) -> None:
    async with open_house(script()) as house:
        await house.spawn("a")
        turn = await parked(house, max_attempts=1)
        await house.call("completion_cancel", turn=turn["turn"])
        with pytest.raises(Conflict, match="is cancelled"):
            await house.call("completion_answer", turn=turn["turn"], text='{"n": 4}')
        with pytest.raises(NotFound, match="unknown turn 't_none'"):
            await house.call("completion_answer", turn="t_none", text="x")


async def test_who_asked_and_who_spawned_may_answer_but_never_the_agent_itself(open_house) -> None:
    async with open_house(script()) as house:
        await house.run("o_1")
        boss = await house.spawn("boss", ("base", "messaging", "spawn_agents"), orchestration="o_1")
        await house.spawn("a", ("base", "messaging"), orchestration="o_1", parent="boss")
        peer = await house.spawn("peer", ("base", "messaging"), orchestration="o_1")
        (own,) = house.rows("SELECT agent_id FROM agent WHERE name = 'a'")[0]
        first = await parked(house, max_attempts=1)

        async def answer(agent_id: str, turn: str) -> dict[str, Any]:
            args = {"turn": turn, "text": '{"n": 4}'}
            return (await house.app.toolbox.call(fresh_context(agent_actor(agent_id)), "completion_answer", args)).data

        for other in (own, peer):
            with pytest.raises(Refused, match="may not answer"):
                await answer(other, first["turn"])
        assert (await answer(boss, first["turn"]))["answered_by"] == f"agent:{boss}"
        submit = {"agent": "a", "prompt": "a number", "expect": {**NUMBER, "max_attempts": 1}}
        sent = await house.app.toolbox.call(fresh_context(agent_actor(peer)), "completion_submit", submit)
        await house.call("agent_wait", turns=[sent.data["turn"]], timeout_s=20)
        assert (await answer(peer, sent.data["turn"]))["status"] == "done"


async def test_a_bad_expectation_leaves_no_turn(open_house) -> None:
    async with open_house() as house:
        await house.spawn("a")
        for expect, said in (
            ({"json_schema": {"$ref": "http://example.org/x.json"}}, r"expect.json_schema.\$ref is 'http"),
            ({"regex": "(?=x)y"}, "expect.regex .* cannot be used"),
            ({"shape": 1}, "expect has the unknown key 'shape'"),
        ):
            with pytest.raises(Invalid, match=said):
                await house.call("completion_submit", agent="a", prompt="x", expect=expect)
        assert house.rows("SELECT * FROM turn") == []


async def test_what_an_agents_composition_expects_holds_for_every_turn_unless_the_turn_says_other(open_house) -> None:
    async with open_house(script()) as house:
        document = {
            "name": "counter", "type": "agent", "version": "1.0.0", "description": "counts", "prompt": "You count.",
            "expect": {"regex": "^[0-9]+$", "max_attempts": 1}, "context": {"max_messages": 7, "max_tokens": 900},
        }  # fmt: skip
        await house.call("composition_create", document=document)
        made = await house.call("agent_spawn", composition="counter", name="a", model="m")
        ((settings,),) = house.rows("SELECT settings FROM agent WHERE agent_id = ?", made["agent"])
        stored = json.loads(settings)
        assert (stored["context_messages"], stored["context_tokens"]) == (7, 900)
        turn = await house.ask("a", "count")
        assert (turn["status"], turn["parked_on"]) == ("parked", "answer")
        with pytest.raises(Invalid, match="matches the regular expression"):
            await house.call("completion_answer", turn=turn["turn"], text="four")
        await house.call("completion_answer", turn=turn["turn"], text="4")
        free = await house.call("completion_submit", agent="a", prompt="chat", expect={})
        waited = await house.call("agent_wait", turns=[free["turn"]], timeout_s=20)
        assert waited["turns"][0]["status"] == "done"


async def test_a_run_lists_what_waits_for_somebody(open_house) -> None:
    async with open_house(script()) as house:
        await house.run("o_1")
        await house.spawn("a", orchestration="o_1")
        turn = await parked(house, max_attempts=1)
        toolbox, services = house.app.toolbox, house.app.services
        call = Call(toolbox, services, fresh_context(OPERATOR), toolbox.get("orchestration_status"), {})
        (view,) = await services.journal.read(lambda tx: parked_views(tx, call, "o_1"))
        assert (view.turn, view.agent_name, view.parked_on) == (turn["turn"], "a", "answer")
        assert (view.prompt, view.reply) == ("a number", "I would rather talk.")
        assert "not valid JSON" in (view.question or "")
        assert "completion_answer" in (view.next or "")
        assert await services.journal.read(lambda tx: parked_views(tx, call, "o_2")) == []
