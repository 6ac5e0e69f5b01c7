from __future__ import annotations

import json
from typing import Any

import pytest

from ksi_mcp.errors import Conflict
from ksi_mcp.events.model import Event


def emit(name: str, **more: Any) -> dict[str, Any]:
    return {"name": "event_emit", "input": {"event": name, **more}}


async def test_a_tool_loop_runs_as_the_agent_itself(open_house) -> None:
    script = {
        "replies": [
            {"match": {"round": 1}, "reply": "looking", "tool_calls": [emit("note:one", data={"x": 1})]},
            {"match": {"round": 2}, "reply": "event {{results[0].event_id}} it was"},
        ]
    }
    async with open_house(script) as house:
        agent = await house.spawn("a", ("base",))
        turn = await house.ask("a")
        assert turn["status"] == "done"
        ((event_id, source, cause, depth, hops),) = house.rows(
            "SELECT event_id, source, cause_id, depth, hops FROM event WHERE name = 'note:one'"
        )
        assert turn["text"] == f"event {event_id} it was"
        assert (source, cause, depth, hops) == (f"agent:{agent}", f"turn:{turn['turn']}", 1, 0)
        assert house.calls() == [(1, "answered"), (2, "answered")]
        assert house.rows("SELECT round, idx, tool, is_error FROM tool_call") == [(1, 0, "event_emit", 0)]
        history = (await house.call("agent_history", agent="a"))["turns"]
        assert [(past["prompt"], past["tools"], past["reply"]) for past in history] == [
            ("go", ["event_emit"], turn["text"])
        ]
        house.books()


async def test_each_answer_and_each_result_is_stored_as_it_happens(open_house) -> None:
    script = {
        "replies": [
            {"match": {"round": 1}, "tool_calls": [emit("note:one"), emit("note:two")]},
            {"match": {"round": 2}, "latency_s": 1, "reply": "end"},
        ]
    }
    async with open_house(script) as house:
        await house.spawn("a", ("base",))
        seen: list[Any] = []

        def look(notes: Any) -> None:
            if any(isinstance(note, Event) and note.name.startswith("note:") for note in notes):
                seen.append((house.calls(), house.rows("SELECT idx FROM tool_call ORDER BY idx")))

        house.app._db.on_commit(look)
        turn = await house.call("agent_send", agent="a", message="go")
        await house.started()
        assert seen == [([(1, "answered")], [(0,)]), ([(1, "answered")], [(0,), (1,)])]
        assert house.calls() == [(1, "answered"), (2, "sent")]
        house.gate.opened.set()
        done = await house.call("agent_wait", turns=[turn["turn"]])
        assert done["census"]["ok"] == 1


async def test_turns_of_one_agent_follow_one_another_and_remember(open_house) -> None:
    async with open_house({"default": {"reply": "{{turn}}: {{prompt}}"}}) as house:
        await house.spawn("a")
        turns = [(await house.call("agent_send", agent="a", message=f"m{n}"))["turn"] for n in range(5)]
        done = await house.call("agent_wait", turns=turns)
        assert [turn["text"] for turn in done["turns"]] == [f"{n + 1}: m{n}" for n in range(5)]
        house.books()


async def test_an_idempotency_key_returns_the_first_result_and_refuses_another_call(open_house) -> None:
    async with open_house({"default": {"reply": "once"}}) as house:
        await house.spawn("a")
        first = await house.call("agent_send", agent="a", message="go", idempotency_key="k")
        again = await house.ask("a", "go", idempotency_key="k")
        assert again["turn"] == first["turn"]
        assert again["text"] == "once"
        with pytest.raises(Conflict, match="'k' was used for another call"):
            await house.call("agent_send", agent="a", message="other", idempotency_key="k")
        with pytest.raises(Conflict, match="'k' was used for another call"):
            await house.call("agent_spawn", prompt="p", idempotency_key="k")
        assert house.rows("SELECT COUNT(*) FROM turn") == [(1,)]


async def test_a_failed_call_does_not_use_up_its_key(open_house) -> None:
    async with open_house() as house:
        await house.spawn("a")
        with pytest.raises(Conflict, match="is taken"):
            await house.call("agent_spawn", prompt="p", name="a", idempotency_key="k")
        await house.call("agent_terminate", agent="a")
        made = await house.call("agent_spawn", prompt="p", name="a", idempotency_key="k")
        assert await house.call("agent_spawn", prompt="p", name="a", idempotency_key="k") == made


@pytest.mark.parametrize("stop_reason", ["end_turn", "refusal"])
async def test_a_reply_event_comes_from_the_agent_however_the_turn_ends(open_house, stop_reason: str) -> None:
    async with open_house({"default": {"reply": "words", "stop_reason": stop_reason}}) as house:
        agent = await house.spawn("a")
        turn = await house.ask("a", reply_event="done:it")
        (data,) = house.events("done:it")
        assert (data["turn"], data["agent"], data["text"]) == (turn["turn"], agent, "words")
        assert data["status"] == turn["status"] == ("done" if stop_reason == "end_turn" else "failed")
        assert house.rows("SELECT source, cause_id FROM event WHERE name = 'done:it'") == [
            (f"agent:{agent}", f"turn:{turn['turn']}")
        ]


@pytest.mark.parametrize(
    ("stop_reason", "error_class", "shown"),
    [
        ("refusal", "refused", "the model refused"),
        ("max_tokens", "task", "cut off at max_tokens=4096"),
        ("context_exceeded", "task", "exceeds the model's context"),
    ],
)
async def test_an_answer_that_is_none_is_not_done_but_its_words_are_kept(
    open_house, stop_reason: str, error_class: str, shown: str
) -> None:
    async with open_house({"default": {"reply": "so far", "stop_reason": stop_reason}}) as house:
        await house.spawn("a")
        turn = await house.ask("a")
        assert (turn["status"], turn["error_class"], turn["partial_text"]) == ("failed", error_class, "so far")
        assert shown in turn["error"]
        assert "text" not in turn
        assert house.events("completion:failed")[0]["error_class"] == error_class
        assert (await house.call("agent_history", agent="a"))["turns"] == []  # no part of the conversation
        house.books()


async def test_a_model_that_never_stops_calling_tools_is_stopped(open_house) -> None:
    script = {"default": {"reply": "more", "tool_calls": [emit("note:again")]}}
    async with open_house(script, agents={"max_tool_rounds": 2}) as house:
        await house.spawn("a", ("base",))
        turn = await house.ask("a")
        assert (turn["status"], turn["error_class"], turn["partial_text"]) == ("failed", "task", "more")
        assert "all 2 tool rounds" in turn["error"]
        assert len(house.events("note:again")) == 2  # the calls of the third answer are not run
        assert house.calls() == [(1, "answered"), (2, "answered"), (3, "answered")]
        house.books()


async def test_a_tool_that_does_not_exist_or_fails_is_a_result_and_the_turn_goes_on(open_house) -> None:
    calls = [
        {"name": "agent_sned", "input": {}},
        {"name": "event_query", "input": {"limit": "many"}},
        {"name": "agent_spawn", "input": {"prompt": "p"}},
        {"name": "event_emit", "input": {"event": "note:fine"}},
    ]
    script = {"replies": [{"match": {"round": 1}, "tool_calls": calls}, {"match": {"round": 2}, "reply": "I see"}]}
    async with open_house(script) as house:
        agent = await house.spawn("a", ("base",))
        turn = await house.ask("a")
        assert (turn["status"], turn["text"]) == ("done", "I see")
        results = house.rows("SELECT is_error, result FROM tool_call ORDER BY idx")
        assert [is_error for is_error, _ in results] == [1, 1, 1, 0]
        assert "unknown tool 'agent_sned'; did you mean agent_send" in results[0][1]
        assert "limit" in results[1][1]
        assert "needs the capability 'spawn_agents'" in results[2][1]
        (refused,) = house.events("system:refused")
        assert (refused["tool"], refused["actor"]) == ("agent_spawn", f"agent:{agent}")


async def test_an_answer_of_any_script_and_length_is_kept_whole_and_its_event_is_cut(open_house) -> None:
    async with open_house(
        {"default": {"reply": "漢" * 16_000 + '"\n\x01' * 4_000, "usage": {"output_tokens": 9}}}
    ) as house:
        await house.spawn("a", ())
        turn = await house.ask("a", reply_event="done:it")
        assert turn["status"] == "done"
        assert house.rows("SELECT LENGTH(result) FROM turn") == [(28_000,)]
        for data in house.events("completion:result", "done:it"):
            assert data["truncated"]
            assert len(data["text"]) > 10_000
            assert len(json.dumps(data, ensure_ascii=False).encode()) <= 64 * 1024


async def test_waiting_for_a_helper_frees_the_only_place(open_house) -> None:
    send = {"name": "agent_send", "input": {"agent": "helper", "message": "help", "wait_s": 20}}
    wait = {"name": "agent_wait", "input": {"agents": ["helper"], "timeout_s": 20}}
    again = {"name": "agent_send", "input": {"agent": "helper", "message": "more"}}
    script = {
        "replies": [
            {"match": {"agent": "helper"}, "reply": "helped: {{prompt}}"},
            {"match": {"agent": "boss", "round": 1}, "tool_calls": [send, again, wait]},
            {"match": {"agent": "boss"}, "reply": "{{results[0].text}}, {{results[2].turns[0].text}}"},
        ]
    }
    async with open_house(script, worker={"concurrency": 1}) as house:
        boss = await house.spawn("boss", ("base", "messaging"))
        await house.spawn("helper", parent=boss)
        turn = await house.ask("boss")
        assert (turn["status"], turn["text"]) == ("done", "helped: help, helped: more")
        house.books()


@pytest.mark.parametrize("tool", ["agent_wait", "agent_send"])
async def test_waiting_in_a_circle_is_refused_and_both_turns_end(open_house, tool: str) -> None:
    ask = {"name": "agent_send", "input": {"agent": "two", "message": "help", "wait_s": 20}}
    back = {
        "agent_wait": {"name": "agent_wait", "input": {"agents": ["one"], "timeout_s": 20}},
        "agent_send": {"name": "agent_send", "input": {"agent": "one", "message": "and you?", "wait_s": 20}},
    }[tool]
    script = {
        "replies": [
            {"match": {"agent": "one", "prompt": "go", "round": 1}, "tool_calls": [ask]},
            {"match": {"agent": "two", "round": 1}, "tool_calls": [back]},
        ],
        "default": {"reply": "fine"},
    }
    async with open_house(script, worker={"concurrency": 1}) as house:
        await house.run("o_1")
        one = await house.spawn("one", ("base", "messaging"), orchestration="o_1")
        two = await house.spawn("two", ("base", "messaging"), orchestration="o_1")
        turn = await house.ask(one)
        assert turn["status"] == "done"
        ((is_error, text),) = house.rows(
            "SELECT c.is_error, c.result FROM tool_call c JOIN turn USING (turn_id) WHERE session_id = ?", two
        )
        assert is_error
        assert f"never end: {two} waits for {one} waits for {two}" in text
        # A refused call left nothing: no message lies there that the model believes was not sent.
        assert house.rows("SELECT COUNT(*) FROM turn WHERE session_id = ?", one) == [(1,)]
        house.books()
