"""What becomes a task, and how far it is, whoever asks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, TasksConfig
from ksi_mcp.errors import Exhausted, KsiError, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, READER, agent_actor, fresh_context
from ksi_mcp.tasks.desk import AtOnce, TaskDesk
from ksi_mcp.tasks.model import MAX_QUESTIONS, Task

SLOW = {"default": {"reply": "{{agent}} is done", "latency_s": 1}}
ASK = frozenset({"answer", "budget"})
NOBODY: frozenset[str] = frozenset()
EXPECT = {"regex": "^[0-9]+$", "max_attempts": 1}


def me() -> Any:
    return fresh_context(OPERATOR)


def desk_of(app: Any) -> TaskDesk:
    return TaskDesk(app.services, app.toolbox)


async def taken(desk: TaskDesk, tool: str, may: frozenset[str] = NOBODY, **args: Any) -> Task:
    task = await desk.take(me(), tool, args, may=may)
    assert isinstance(task, Task), task
    return task


async def until_ended(desk: TaskDesk, task: Task, may: frozenset[str] = NOBODY) -> Task:
    async with asyncio.timeout(10):
        while not (state := await desk.look(me(), task.task_id, may=may)).task.final:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return state.task


# --------------------------------------------------------------------------------------- what is taken


async def test_a_wait_for_a_turn_under_way_is_taken_and_ends_with_what_the_tool_returns(open_house):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        turn = (await house.call("agent_send", agent="ada", message="hi"))["turn"]
        await house.started()
        desk = desk_of(house.app)
        task = await taken(desk, "agent_wait", turns=[turn], timeout_s=1)
        assert (task.status, task.message) == ("working", "0 of 1 turns have ended")
        house.gate.ahead_ms += 600_000  # the time limit of the call has long passed
        assert (await desk.look(me(), task.task_id, may=NOBODY)).task.status == "working"
        house.gate.opened.set()
        ended = await until_ended(desk, task)
        assert ended.status == "completed"
        assert ended.result == {"data": await house.call("agent_wait", turns=[turn], timeout_s=0)}
        assert ended.result["data"]["turns"][0]["text"] == "ada is done"


async def test_what_has_ended_already_is_answered_at_once_and_leaves_no_task(open_house):
    async with open_house() as house:
        await house.spawn("ada")
        turn = (await house.ask("ada"))["turn"]
        desk = desk_of(house.app)
        found = await desk.take(me(), "agent_wait", {"turns": [turn]}, may=NOBODY)
        assert isinstance(found, AtOnce)
        assert found.data == await house.call("agent_wait", turns=[turn])
        assert house.rows("SELECT * FROM task") == []


@pytest.mark.parametrize(
    ("tool", "args"),
    [
        ("agent_list", {}),
        ("agent_wait", {"agents": ["ada"], "timeout_s": 0}),
        ("event_wait", {"names": ["x:y"], "timeout_s": 0}),
        ("agent_send", {"agent": "ada", "message": "hi"}),
        ("orchestration_start", {"pattern": "simple"}),
        ("event_emit", {"event": "agent:wait", "data": {"agents": ["ada"]}}),
        ("no_such_tool", {}),
    ],
)
async def test_a_call_that_does_not_wait_is_left_alone_and_not_made(open_house, tool, args):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        before = house.rows("SELECT COUNT(*) FROM turn")
        assert await desk_of(house.app).take(me(), tool, args, may=NOBODY) is None
        assert house.rows("SELECT COUNT(*) FROM turn") == before


async def test_a_message_is_sent_once_and_its_key_is_that_of_the_plain_call(open_house):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        desk = desk_of(house.app)
        how = {"agent": "ada", "message": "hi", "idempotency_key": "one"}
        task = await taken(desk, "agent_send", wait_s=5, **how)
        again = await taken(desk, "agent_send", wait_s=50, **how)
        assert task.task_id != again.task_id
        assert house.rows("SELECT COUNT(*) FROM turn") == [(1,)]
        assert task.message.startswith("turn t_")
        house.gate.opened.set()
        ended = await until_ended(desk, task)
        assert ended.result == {"data": await house.call("agent_send", wait_s=5, **how)}
        assert (await until_ended(desk, again)).result == ended.result
        assert isinstance(await desk.take(me(), "agent_send", {**how, "wait_s": 5}, may=NOBODY), AtOnce)
        assert house.rows("SELECT COUNT(*) FROM task") == [(2,)]
        assert house.rows("SELECT COUNT(*) FROM turn") == [(1,)]


async def test_waiting_for_agents_is_waiting_for_the_turns_they_have_at_that_moment(open_house):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        await house.spawn("bob")
        first = (await house.call("agent_send", agent="ada", message="1"))["turn"]
        other = (await house.call("agent_send", agent="bob", message="1"))["turn"]
        desk = desk_of(house.app)
        task = await taken(desk, "agent_wait", agents=["ada", "bob"])
        later = (await house.call("agent_send", agent="ada", message="2"))["turn"]
        house.gate.opened.set()
        ended = await until_ended(desk, task)
        turns = {turn["turn"] for turn in ended.result["data"]["turns"]}
        assert turns == {first, other}
        assert later not in turns


async def test_what_is_still_being_delivered_to_an_agent_is_waited_for(open_house):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        rule = {"source_pattern": "note:made", "target": "agent:ada", "mapping": {"message": "{{data.text}}"}}
        await house.call("routing_add_rule", **rule)
        await house.call("event_emit", event="note:made", data={"text": "hi"})
        task = await taken(desk_of(house.app), "agent_wait", agents=["ada"])  # her first turn ever
        assert task.message == "0 of 1 turns have ended"
        house.gate.opened.set()


async def test_some_responses_can_be_enough_and_others_left_out(open_house):
    slow = {"replies": [{"match": {"agent": "slow"}, "reply": "late", "latency_s": 1}], "default": {"reply": "here"}}
    async with open_house(slow) as house:
        turns = []
        for name in ("quick", "slow", "slow2"):
            await house.spawn(name)
        turns = [(await house.call("agent_send", agent=name, message="hi"))["turn"] for name in ("slow", "quick")]
        await house.call("agent_wait", turns=[turns[1]])
        desk = desk_of(house.app)
        wanted = {"turns": turns, "min_responses": 1, "collect_partial": False}
        at_once = await desk.take(me(), "agent_wait", wanted, may=NOBODY)
        assert isinstance(at_once, AtOnce)
        assert at_once.data == await house.call("agent_wait", timeout_s=0, **wanted)
        assert [turn["text"] for turn in at_once.data["turns"]] == ["here"]
        task = await taken(desk, "agent_wait", turns=turns, collect_partial=False)
        assert task.message == "1 of 2 turns have ended"
        house.gate.opened.set()
        ended = await until_ended(desk, task)
        assert len(ended.result["data"]["turns"]) == 2


@pytest.mark.parametrize(
    ("tool", "args", "why"),
    [
        ("agent_wait", {"turns": ["t_none"]}, "unknown turns: t_none"),
        ("agent_wait", {}, "needs turns or agents"),
        ("agent_wait", {"turns": "t_1"}, "turns"),
        ("agent_wait", {"turns": ["t_1"], "timeout_s": 56}, "less than or equal to 55"),
        ("agent_wait", {"timeout": 1, "timeout_s": 2, "turns": ["t_1"]}, "the same parameter"),
        ("agent_send", {"agent": "nobody", "message": "hi", "wait_s": 1}, "nobody"),
        ("agent_send", {"agent": "ada", "message": "hi", "wait_s": "x"}, "wait_s"),
        ("event_wait", {"names": ["***"]}, "\\*\\*\\*"),
        ("event_wait", {"names": []}, "names"),
        ("orchestration_start", {"pattern": "none_such", "orchestrator": "agent"}, "none_such"),
        ("orchestration_start", {"pattern": "simple", "orchestrator": 3}, "orchestrator"),
    ],
)
async def test_a_wrong_call_is_refused_as_it_always_is_and_nothing_is_left(open_house, tool, args, why):
    async with open_house() as house:
        await house.spawn("ada")
        with pytest.raises(KsiError, match=why) as refused:
            await desk_of(house.app).take(me(), tool, args, may=NOBODY)
        with pytest.raises(KsiError) as plain:
            await house.call(tool, **args)
        assert refused.value.text() == plain.value.text()
        assert house.rows("SELECT * FROM task") == []
        assert house.rows("SELECT * FROM turn") == []


async def test_a_wait_for_many_long_events_ends_with_as_many_as_there_is_room_for_and_where_the_rest_is(open_house):
    async with open_house() as house:
        desk = desk_of(house.app)
        task = await taken(desk, "event_wait", names=["big:one"], since=0, min_count=40)
        for number in range(40):
            await house.call("event_emit", event="big:one", data={"n": number, "text": "x" * 3_000})
        ended = await until_ended(desk, task)
        inline = await house.call("event_wait", names=["big:one"], since=0, min_count=40, timeout_s=0)
        assert ended.result == {"data": inline}
        assert f"since={inline['events'][-1]['event_id']}" in inline["next"]


# -------------------------------------------------------------------------------------------- durable


async def test_another_process_on_the_same_folder_gives_the_same_answer(open_house):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        task = await taken(desk_of(house.app), "agent_send", agent="ada", message="hi", wait_s=5)
        await house.started()
        async with App(house.home, AppOptions(worker="none"), config=house.app.config) as other:
            here, there = desk_of(house.app), desk_of(other)
            seen = await here.look(me(), task.task_id, may=NOBODY)
            assert await there.look(me(), task.task_id, may=NOBODY) == seen
            assert "is running" in seen.task.message
            house.gate.opened.set()
            ended = await until_ended(there, task)
            assert (await here.look(me(), task.task_id, may=NOBODY)).task == ended


async def test_the_first_word_on_a_task_is_the_last(open_house):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        desk = desk_of(house.app)
        given_up = await taken(desk, "agent_send", agent="ada", message="hi", wait_s=5)
        kept = await taken(desk, "agent_wait", agents=["ada"])
        await desk.cancel(me(), given_up.task_id)
        await desk.cancel(me(), given_up.task_id)
        house.gate.opened.set()
        ended = await asyncio.gather(*(until_ended(desk_of(house.app), kept) for _ in range(5)))
        assert all(each == ended[0] for each in ended)
        await desk.cancel(me(), kept.task_id)
        assert (await desk.look(me(), kept.task_id, may=NOBODY)).task == ended[0]
        cancelled = (await desk.look(me(), given_up.task_id, may=NOBODY)).task
        assert (cancelled.status, cancelled.result) == ("cancelled", None)
        assert "the turns go on: agent_wait(turns=['t_" in cancelled.message
        assert house.rows("SELECT state FROM turn") == [("done",)]  # what was begun went on


async def test_what_is_not_kept_any_more_ends_the_task_with_the_reason(open_house):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        desk = desk_of(house.app)
        task = await taken(desk, "agent_send", agent="ada", message="hi", wait_s=5)
        await house.app.services.journal.commit(
            lambda tx: tx.run(
                "tasks.begin",
                {"task_id": task.task_id, "waits_for": '{"turns":["t_gone"]}', "message": "", "for_ms": 10**9},
            )
        )
        ended = (await desk.look(me(), task.task_id, may=NOBODY)).task
        assert ended.status == "completed"
        assert ended.result["error"].startswith("unknown turns: t_gone")
        house.gate.opened.set()


# ------------------------------------------------------------------------------------------- identity


async def test_nobody_but_its_maker_finds_a_task_and_the_words_are_the_same_for_all(open_house):
    async with open_house(SLOW) as house:
        ada = await house.spawn("ada")
        desk = desk_of(house.app)
        task = await taken(desk, "agent_send", agent="ada", message="hi", wait_s=5)
        words = set()
        for actor, task_id in (
            (READER, task.task_id),
            (agent_actor(ada), task.task_id),
            (OPERATOR, task.task_id[:-1]),
            (OPERATOR, "x" * 1_000_000),
        ):
            ctx = fresh_context(actor)
            for ask in (desk.look(ctx, task_id, may=NOBODY), desk.cancel(ctx, task_id)):
                with pytest.raises(NotFound) as missing:
                    await ask
                words.add(missing.value.text().replace(task_id[:60], "ID"))
        house.gate.ahead_ms += 86_400_001
        with pytest.raises(NotFound) as expired:
            await desk.look(me(), task.task_id, may=NOBODY)
        words.add(expired.value.text().replace(task.task_id, "ID"))
        assert words == {"unknown task 'ID'; a task is known to whoever made the call, for 24 hours"}
        house.gate.opened.set()


async def test_who_may_only_look_can_hand_a_wait_over_but_sends_nothing(open_house):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        turn = (await house.call("agent_send", agent="ada", message="hi"))["turn"]
        desk, ctx = desk_of(house.app), fresh_context(READER)
        task = await desk.take(ctx, "agent_wait", {"turns": [turn]}, may=NOBODY)
        assert isinstance(task, Task)
        assert (await desk.look(ctx, task.task_id, may=NOBODY)).task.status == "working"
        with pytest.raises(Refused, match="read-only"):
            await desk.take(ctx, "agent_send", {"agent": "ada", "message": "x", "wait_s": 5}, may=NOBODY)
        assert house.rows("SELECT COUNT(*) FROM turn") == [(1,)]
        house.gate.opened.set()


async def test_an_agent_waits_for_what_it_can_see_only_and_loses_the_task_with_the_right(open_house):
    async with open_house(SLOW) as house:
        ada = await house.spawn("ada", ("base", "messaging"))
        await house.spawn("bob")
        foreign = (await house.call("agent_send", agent="bob", message="hi"))["turn"]
        own = (await house.call("agent_send", agent="ada", message="hi"))["turn"]
        desk, ctx = desk_of(house.app), fresh_context(agent_actor(ada))
        with pytest.raises(NotFound, match="unknown turns"):
            await desk.take(ctx, "agent_wait", {"turns": [foreign]}, may=NOBODY)
        task = await desk.take(ctx, "agent_wait", {"turns": [own]}, may=NOBODY)
        assert isinstance(task, Task)
        await house.call("agent_terminate", agent="ada")
        ended = (await desk.look(ctx, task.task_id, may=NOBODY)).task
        assert "is not active any more" in ended.result["error"]
        house.gate.opened.set()


async def test_too_many_tasks_are_refused_before_anything_is_sent(open_house):
    async with open_house(SLOW, tasks={"open": 2, "kept": 3}) as house:
        ada = await house.spawn("ada", ("base", "messaging"))
        desk = desk_of(house.app)
        tasks = [await taken(desk, "agent_send", agent="ada", message="hi", wait_s=5) for _ in range(2)]
        with pytest.raises(Exhausted, match="2 calls of operator are waited for") as refused:
            await desk.take(me(), "agent_send", {"agent": "ada", "message": "one too many", "wait_s": 5}, may=NOBODY)
        assert "tasks/cancel" in refused.value.hint
        with pytest.raises(Exhausted):
            await desk.take(me(), "agent_wait", {"agents": ["ada"]}, may=NOBODY)
        assert house.rows("SELECT COUNT(*) FROM turn") == [(2,)]
        other = await desk.take(fresh_context(agent_actor(ada)), "event_wait", {"names": ["x:y"]}, may=NOBODY)
        assert isinstance(other, Task)  # the limit is of each caller
        for task in tasks:
            await desk.cancel(me(), task.task_id)
        await taken(desk, "agent_wait", agents=["ada"])
        # As many as are kept: the call waits as it always does.
        assert await desk.take(me(), "agent_wait", {"agents": ["ada"]}, may=NOBODY) is None
        house.gate.ahead_ms += 86_400_001
        await taken(desk, "agent_wait", agents=["ada"])
        assert house.rows("SELECT COUNT(*) FROM task") == [(1,)]  # the old ones have made room
        house.gate.opened.set()


async def test_many_calls_at_one_moment_do_not_pass_the_limit(open_house):
    async with open_house(SLOW, tasks={"open": 5}) as house:
        await house.spawn("ada")
        desk = desk_of(house.app)
        args = {"agent": "ada", "message": "hi", "wait_s": 5}
        made = await asyncio.gather(
            *(desk.take(me(), "agent_send", dict(args), may=NOBODY) for _ in range(20)), return_exceptions=True
        )
        assert sum(isinstance(each, Task) for each in made) == 5
        assert sum(isinstance(each, Exhausted) for each in made) == 15
        assert house.rows("SELECT COUNT(*) FROM turn") == [(5,)]
        house.gate.opened.set()


async def test_what_has_expired_is_swept_away(open_house):
    async with open_house(SLOW) as house:
        await house.spawn("ada")
        await taken(desk_of(house.app), "agent_send", agent="ada", message="hi", wait_s=5)
        await house.app.retention.sweep()
        assert house.rows("SELECT COUNT(*) FROM task") == [(1,)]
        house.gate.ahead_ms += 86_400_001
        await house.app.retention.sweep()
        assert house.rows("SELECT COUNT(*) FROM task") == [(0,)]
        house.gate.opened.set()


# --------------------------------------------------------------------------------------------- events


async def test_events_that_come_between_two_looks_are_not_lost(open_house):
    async with open_house() as house:
        await house.call("event_emit", event="note:before", data={"i": -1})
        desk = desk_of(house.app)
        task = await taken(desk, "event_wait", names=["note:*"], min_count=3)
        for i in range(2):
            await house.call("event_emit", event="note:made", data={"i": i})
            await house.call("event_emit", event="other:made")
        seen = (await desk.look(me(), task.task_id, may=NOBODY)).task
        assert (seen.status, seen.message) == ("working", "2 of 3 events have arrived")
        for i in range(2, 300):
            await house.call("event_emit", event="note:made", data={"i": i})
        ended = (await desk.look(me(), task.task_id, may=NOBODY)).task
        data = ended.result["data"]
        assert [event["data"]["i"] for event in data["events"]] == [0, 1, 2]
        assert (data["asked"], data["arrived"], data["complete"]) == (3, 3, True)
        inline = await house.call(
            "event_query", names=["note:made"], since=data["events"][0]["event_id"] - 1, limit=200
        )
        assert data["events"][0].keys() == inline["events"][-1].keys()


async def test_events_that_were_there_already_count_with_since(open_house):
    async with open_house() as house:
        await house.call("event_emit", event="note:made", data={"i": 0})
        desk = desk_of(house.app)
        wanted = {"names": ["note:made"], "since": 0}
        assert await desk.take(me(), "event_wait", dict(wanted), may=NOBODY) is None  # all there: as always
        task = await taken(desk, "event_wait", min_count=2, **wanted)
        assert task.message == "1 of 2 events have arrived"
        await house.call("event_emit", event="note:made", data={"i": 1})
        data = (await desk.look(me(), task.task_id, may=NOBODY)).task.result["data"]
        assert data == await house.call("event_wait", min_count=2, timeout_s=0, **wanted)


async def test_a_busy_log_is_looked_through_once(open_house, monkeypatch):
    monkeypatch.setattr("ksi_mcp.events.store.SCAN_LIMIT", 50)
    monkeypatch.setattr("ksi_mcp.tasks.waits._WORTH_NOTING", 100)
    async with open_house() as house:
        desk = desk_of(house.app)
        task = await taken(desk, "event_wait", names=["rare:*", "note:some"], min_count=1)
        start = json.loads(house.rows("SELECT waits_for FROM task")[0][0])["after"]
        for _ in range(300):
            await house.call("event_emit", event="noise:made")
        await house.call("event_emit", event="rare:one")
        looks = 0
        while not (await desk.look(me(), task.task_id, may=NOBODY)).task.final:
            looks += 1
            assert json.loads(house.rows("SELECT waits_for FROM task")[0][0])["after"] == start + looks * 250
        assert looks == 1


# ----------------------------------------------------------------------------------------------- runs


PLAYED = {
    "replies": [
        {
            "match": {"agent": "orchestrator", "round": 1},
            "latency_s": 1,
            "tool_calls": [{"name": "orchestration_complete", "input": {"outcome": "success", "summary": "all well"}}],
        },
        {"match": {"agent": "orchestrator"}, "reply": "over"},
    ],
    "default": {"reply": "ok"},
}


def pattern(house: Any) -> None:
    folder = house.home.compositions / "orchestrations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(
        "name: tiny\ntype: orchestration\nversion: 1.0.0\ndescription: d\n"
        "agents:\n  helper: {prompt: help}\n"
        "orchestration_logic: {description: x, strategy: ask the helper}\n"
    )


async def test_a_run_that_an_agent_leads_is_started_once_and_ends_with_its_status(open_house):
    async with open_house(PLAYED) as house:
        pattern(house)
        desk = desk_of(house.app)
        how = {"pattern": "tiny", "orchestrator": "agent", "idempotency_key": "k"}
        task = await taken(desk, "orchestration_start", **how)
        await taken(desk, "orchestration_start", **how)
        ((run,),) = house.rows("SELECT orchestration_id FROM orchestration")
        assert task.message.startswith(f"run {run} is running: 0 of 1 turns have ended")
        house.gate.opened.set()
        ended = await until_ended(desk, task)
        status = ended.result["data"]
        assert (status["orchestration"], status["state"], status["summary"]) == (run, "completed", "all well")
        plain = await house.call("orchestration_status", orchestration=run)
        assert status.keys() ^ plain.keys() <= {"undelivered_events"}  # its last turn is still ending


async def test_a_run_in_which_nothing_happens_any_more_does_not_keep_its_client_waiting(open_house):
    async with open_house({"default": {"reply": "I forgot to complete it"}}) as house:
        pattern(house)
        desk = desk_of(house.app)
        task = await taken(desk, "orchestration_start", pattern="tiny", orchestrator="agent")
        await house.until(lambda: house.rows("SELECT state FROM turn") == [("done",)])
        await house.until(lambda: house.rows("SELECT * FROM outbox") == [])
        assert (await desk.look(me(), task.task_id, may=NOBODY)).task.status == "working"  # it has just happened
        house.gate.ahead_ms += 6_000
        ended = (await desk.look(me(), task.task_id, may=NOBODY)).task
        assert ended.result["data"]["state"] == "running"
        assert "nothing is pending" in ended.result["data"]["next"][-1]


async def test_a_run_that_is_given_up_or_held_goes_on_or_waits(open_house):
    async with open_house(PLAYED) as house:
        pattern(house)
        desk = desk_of(house.app)
        task = await taken(desk, "orchestration_start", pattern="tiny", orchestrator="agent")
        ((run,),) = house.rows("SELECT orchestration_id FROM orchestration")
        await house.call("orchestration_suspend", orchestration=run)
        house.gate.ahead_ms += 600_000
        seen = (await desk.look(me(), task.task_id, may=NOBODY)).task
        assert seen.status == "working"
        assert f"run {run} is suspended" in seen.message
        await desk.cancel(me(), task.task_id)
        assert house.rows("SELECT state FROM orchestration") == [("suspended",)]
        assert "goes on" in (await desk.look(me(), task.task_id, may=NOBODY)).task.message
        house.gate.opened.set()


async def test_an_evaluation_goes_on_with_each_look_and_ends_with_its_score(open_house):
    clerk = {"name": "clerk", "type": "profile", "version": "1.0.0", "agent": {"prompt": "You guess."}}
    suite = {
        "name": "cases",
        "type": "evaluation",
        "cases": [{"name": "easy", "input": "easy", "expect": "right"}, {"name": "hard", "input": "x", "expect": "no"}],
    }
    script = {"replies": [{"match": {"prompt": "/easy/"}, "reply": "right", "latency_s": 1}]}
    async with open_house(script) as house:
        await house.call("composition_create", document=clerk)
        await house.call("composition_create", document=suite)
        desk = desk_of(house.app)
        how = {"name": "clerk", "suite": "cases", "runs": 3, "budget": {"turns": 20}, "parallel": 1}
        task = await taken(desk, "composition_evaluate", **how)
        assert "0 of 6 runs have been judged, 1 are under way" in task.message
        house.gate.opened.set()
        ended = await until_ended(desk, task)
        data = ended.result["data"]
        assert data["census"] == {"planned": 6, "passed": 3, "failed": 3, "unjudged": 0, "running": 0, "not_run": 0}
        assert (data["complete"], data["score"]) == (True, 0.5)
        assert data == await house.call("composition_evaluate", evaluation=data["evaluation"], parallel=1)
        assert house.rows("SELECT COUNT(*) FROM evaluation") == [(1,)]
        house.books()


# ------------------------------------------------------------------------------------------ questions


async def parked(house: Any) -> str:
    await house.spawn("counter")
    sent = await house.call("completion_submit", agent="counter", prompt="how many?", expect=EXPECT)
    await house.until(lambda: house.rows("SELECT state FROM turn") == [("parked",)])
    return str(sent["turn"])


async def test_a_question_is_asked_until_it_is_answered_each_time_by_a_new_key(open_house):
    async with open_house() as house:
        turn = await parked(house)
        desk = desk_of(house.app)
        task = await taken(desk, "agent_wait", ASK, turns=[turn])
        keys = set()
        for i in range(MAX_QUESTIONS):
            state = await desk.look(me(), task.task_id, may=ASK)
            assert state.task.status == "input_required"
            (question,) = state.questions
            assert question.why == (None if i == 0 else f"no {i}")
            assert (question.kind, question.turn["turn"]) == ("answer", turn)
            assert question.key not in keys
            keys.add(question.key)
            for _ in range(2):  # said twice, it counts once
                await desk.answered(me(), task.task_id, question, why=f"no {i + 1}", again=True)
        state = await desk.look(me(), task.task_id, may=ASK)
        assert (state.task.status, state.questions) == ("working", ())
        assert "waits for an answer: completion_answer" in state.task.message
        assert state.task.message.endswith(f"the last answer was not taken: no {MAX_QUESTIONS}")
        await house.call("completion_answer", turn=turn, text="42")
        assert (await until_ended(desk, task, ASK)).result["data"]["turns"][0]["text"] == "42"


async def test_whoever_declines_is_not_asked_again_and_the_task_goes_on_waiting(open_house):
    async with open_house() as house:
        turn = await parked(house)
        desk = desk_of(house.app)
        task = await taken(desk, "agent_wait", ASK, turns=[turn])
        (question,) = (await desk.look(me(), task.task_id, may=ASK)).questions
        await desk.answered(me(), task.task_id, question, why=None, again=False)
        for _ in range(2):
            state = await desk.look(me(), task.task_id, may=ASK)
            assert (state.task.status, state.questions) == ("working", ())
        assert f"turn {turn} of counter waits for an answer" in state.task.message
        assert house.rows("SELECT state FROM turn") == [("parked",)]


async def test_where_nobody_can_be_asked_the_call_returns_as_it_always_does(open_house):
    async with open_house() as house:
        turn = await parked(house)
        desk = desk_of(house.app)
        found = await desk.take(me(), "agent_wait", {"turns": [turn]}, may=NOBODY)
        assert isinstance(found, AtOnce)
        assert found.data == await house.call("agent_wait", turns=[turn])
        task = await taken(desk, "agent_wait", ASK, turns=[turn])
        ended = (await desk.look(me(), task.task_id, may=NOBODY)).task
        assert ended.status == "completed"
        assert "completion_answer" in ended.result["data"]["next"]


async def test_a_parked_turn_of_a_run_asks_too(open_house):
    script = {"replies": [{"match": {"agent": "orchestrator"}, "fail": {"kind": "request", "status": 400}}]}
    async with open_house(script) as house:
        pattern(house)
        desk = desk_of(house.app)
        budget = {"turns": 0, "policy": "park"}
        task = await taken(desk, "orchestration_start", ASK, pattern="tiny", orchestrator="agent", budget=budget)
        await house.until(lambda: house.rows("SELECT state FROM turn") == [("parked",)])
        (question,) = (await desk.look(me(), task.task_id, may=ASK)).questions
        assert question.kind == "budget"
        assert question.turn["agent_name"] == "orchestrator"
        house.gate.ahead_ms += 60_000
        assert (await desk.look(me(), task.task_id, may=frozenset({"answer"}))).task.status == "completed"


async def test_answers_are_given_to_the_task_of_the_caller_only(open_house):
    async with open_house() as house:
        turn = await parked(house)
        desk = desk_of(house.app)
        task = await taken(desk, "agent_wait", ASK, turns=[turn])
        (question,) = (await desk.look(me(), task.task_id, may=ASK)).questions
        with pytest.raises(NotFound):
            await desk.answered(fresh_context(READER), task.task_id, question, why=None, again=False)
        assert (await desk.look(me(), task.task_id, may=ASK)).questions == (question,)


def test_the_limits_have_bounds():
    assert Config().tasks == TasksConfig(ttl_s=86_400, open=100, kept=1_000)
    with pytest.raises(ValueError, match="ttl_s"):
        TasksConfig(ttl_s=1)
