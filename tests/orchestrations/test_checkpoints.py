from __future__ import annotations

import json
from typing import Any

import pytest

from ksi_mcp.errors import Conflict, Exhausted, Invalid, NotFound, Refused
from ksi_mcp.orchestrations import checkpoints
from ksi_mcp.permissions import agent_actor, fresh_context

PLAIN = {"default": {"reply": "{{prompt}}!"}}
SLOW = {"default": {"reply": "{{prompt}}!", "latency_s": 1}}


def lanes(house: Any) -> None:
    """Every lane is lawful: one head where anything waits, and exact counts."""
    for session, tail, pending in house.rows("SELECT session_id, tail, pending FROM session"):
        rows = house.rows("SELECT state, seq FROM turn WHERE session_id = ?", session)
        open_ = [state for state, _ in rows if state not in ("done", "failed", "cancelled", "timed_out")]
        assert len(open_) == pending, session
        assert len([state for state in open_ if state != "queued"]) == min(pending, 1), session
        assert max([seq for _, seq in rows], default=0) <= tail, session


def money(house: Any) -> int:
    """What was spent, which every sum agrees on."""
    ((spent,),) = house.rows("SELECT spent_usd_micros FROM account WHERE account_id = 'global'")
    for table in ("hold", "turn", "provider_call"):
        assert house.rows(f"SELECT TOTAL(cost_usd_micros) FROM {table}") == [(spent,)], table
    assert house.rows("SELECT * FROM account WHERE reserved_usd_micros <> 0 OR reserved_tokens <> 0") == []
    return int(spent)


def bought(house: Any) -> int:
    """Answers that were paid for."""
    ((count,),) = house.rows("SELECT COUNT(*) FROM provider_call WHERE state = 'answered' AND reused_from IS NULL")
    return int(count)


async def history(house: Any, agent: str) -> list[tuple[str, str]]:
    found = await house.call("agent_history", agent=agent)
    return [(turn["prompt"], turn["reply"]) for turn in found["turns"]]


async def send(house: Any, agent: str, message: str) -> str:
    return str((await house.call("agent_send", agent=agent, message=message))["turn"])


async def wait(house: Any, *turns: str) -> list[dict[str, Any]]:
    gathered = await house.call("agent_wait", turns=list(turns), timeout_s=20)
    assert gathered["census"]["pending"] == 0
    return list(gathered["turns"])


async def test_a_run_goes_back_and_buys_nothing_twice(open_house) -> None:
    async with open_house(PLAIN) as house:
        await house.run("o_1")
        scope = "orchestration:o_1"
        ada = await house.spawn("ada", orchestration="o_1")
        await house.call("routing_add_rule", rule_id="old", source_pattern="x:*", target="y:z", ttl_s=500, scope=scope)
        await house.call("routing_add_rule", rule_id="changed", source_pattern="w:*", target="y:z", scope=scope)
        await house.ask("ada", "one")
        await house.call("orchestration_suspend", orchestration="o_1")
        two = await send(house, "ada", "two")
        await house.call("event_emit", event="late:one", data={"n": 1}, delay_s=400, orchestration="o_1")
        made = await house.call("checkpoint_create", orchestration="o_1", label="before two")
        assert made["turns"] == 1
        await house.call("orchestration_resume", orchestration="o_1")

        await wait(house, two)
        three = (await house.ask("ada", "three"))["turn"]
        bob = await house.spawn("bob", orchestration="o_1")
        of_bob = (await house.ask("bob", "hello"))["turn"]
        await house.call("routing_delete_rule", rule_id="old")
        await house.call("routing_modify_rule", rule_id="changed", updates={"priority": 7})
        await house.call("routing_add_rule", rule_id="new", source_pattern="v:*", target="y:z", scope=scope)
        await house.call("event_emit", event="late:two", delay_s=400, orchestration="o_1")
        spent, calls = money(house), bought(house)
        assert calls == 4

        back = await house.call("checkpoint_restore", orchestration="o_1", checkpoint="before two")
        assert (back["state"], back["put_back"], back["effects_kept_count"]) == ("suspended", 1, 0)
        assert back["left_turns"] == 3  # three, that of bob, and what two had done
        assert back["reusable"] == 3
        lanes(house)
        assert money(house) == spent
        assert house.rows("SELECT state, held, result FROM turn WHERE turn_id = ?", two) == [("ready", 1, None)]
        assert {house.rows("SELECT state FROM turn WHERE turn_id = ?", turn)[0][0] for turn in (three, of_bob)} == {
            "cancelled"
        }
        assert await history(house, "ada") == [("one", "one!")]
        assert house.rows("SELECT status FROM agent WHERE agent_id = ?", bob) == [("terminated",)]
        living = house.rows(
            "SELECT rule_id, priority, remaining_ms > 0 FROM rule WHERE deleted_at_ms IS NULL ORDER BY 1"
        )
        assert living == [("changed", 100, None), ("old", 100, 1)]
        assert house.rows("SELECT event, data, held FROM delayed_event") == [("late:one", '{"n":1}', 1)]
        assert [event["put_back"] for event in house.events("checkpoint:restored")] == [1]

        await house.call("orchestration_resume", orchestration="o_1")
        (turn,) = await wait(house, two)
        assert turn["text"] == "two!"
        again = await house.ask("ada", "three")
        assert again["text"] == "three!"
        assert house.rows("SELECT reused FROM turn WHERE turn_id IN (?, ?)", two, again["turn"]) == [(1,), (1,)]
        assert bought(house) == calls
        assert money(house) == spent
        assert await history(house, ada) == [("one", "one!"), ("two", "two!"), ("three", "three!")]
        lanes(house)
        assert (await house.ask("ada", "another"))["status"] == "done"
        assert bought(house) == calls + 1
        money(house)


async def test_a_turn_goes_back_to_the_rounds_it_had(open_house) -> None:
    script = {
        "replies": [
            {"match": {"round": 1}, "reply": "", "tool_calls": [{"name": "agent_list", "input": {}}]},
            {"match": {"round": 2}, "reply": "", "tool_calls": [{"name": "help", "input": {}}], "latency_s": 1},
            {"match": {"round": 3}, "reply": "done"},
        ]
    }
    async with open_house(script) as house:
        await house.run("o_1")
        await house.spawn("ada", ("base",), orchestration="o_1")
        turn = await send(house, "ada", "go")
        await house.started()
        await house.call("orchestration_control", orchestration="o_1", action="checkpoint")
        house.gate.opened.set()
        await wait(house, turn)
        spent = money(house)
        for _ in range(2):  # going back twice to the same moment is going back once
            back = await house.call("orchestration_control", orchestration="o_1", action="restore")
            assert back["effects_kept"] == []
            assert house.rows("SELECT state, held, attempt > 0 FROM turn WHERE turn_id = ?", turn) == [("ready", 1, 1)]
            rounds = "SELECT round FROM provider_call WHERE state = 'answered' AND turn_id = ?"
            assert house.rows(rounds, turn) == [(1,)]
            assert house.rows("SELECT round FROM tool_call WHERE turn_id = ?", turn) == [(1,)]
            lanes(house)
            await house.call("orchestration_resume", orchestration="o_1")
            assert [each["text"] for each in await wait(house, turn)] == ["done"]
            assert bought(house) == 3
            assert money(house) == spent
        lanes(house)


async def test_what_was_at_work_is_interrupted_and_what_waited_is_gone(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.run("o_1")
        await house.spawn("ada", orchestration="o_1")
        await house.call("checkpoint_create", orchestration="o_1")
        sent = [await send(house, "ada", message) for message in ("one", "two")]
        await house.started()
        back = await house.call("checkpoint_restore", orchestration="o_1", resume=True)
        assert (back["state"], back["left_turns"], back["put_back"]) == ("running", 2, 0)
        assert [event["turn"] for event in house.events("completion:interrupted")] == [sent[0]]
        assert {event["turn"] for event in house.events("completion:cancelled")} == set(sent)
        await house.until(lambda: house.calls() == [(1, "uncertain")])
        gathered = await house.call("agent_wait", turns=sent, timeout_s=20)
        assert gathered["census"]["cancelled"] == 2
        house.gate.opened.set()
        assert (await house.ask("ada", "three"))["text"] == "three!"
        lanes(house)
        money(house)


async def test_an_ended_run_lives_again(open_house) -> None:
    async with open_house(PLAIN) as house:
        await house.run("o_1")
        await house.spawn("ada", orchestration="o_1", budget={"usd": 5})
        await house.ask("ada", "one")
        await house.call("routing_add_rule", source_pattern="x:*", target="y:z", scope="orchestration:o_1")
        await house.call("checkpoint_create", orchestration="o_1", label="so far")
        await house.ask("ada", "two")
        await house.call("orchestration_complete", orchestration="o_1", score=1)
        back = await house.call("checkpoint_restore", orchestration="o_1", checkpoint="so far", resume=True)
        assert (back["state"], back.get("score"), back.get("ended_at")) == ("running", None, None)
        assert house.rows("SELECT status, ended_at_ms FROM agent") == [("active", None)]
        assert house.rows("SELECT COUNT(*) FROM rule WHERE deleted_at_ms IS NULL") == [(1,)]
        assert (await house.ask("ada", "two"))["text"] == "two!"
        assert bought(house) == 2


async def test_an_effect_that_stays_is_told_and_not_made_twice(open_house) -> None:
    decide = {"pattern": "p", "decision": "go on", "reasoning": "why not"}
    use = [
        {"name": "agent_wait", "input": {"agents": ["bob"]}},
        {"name": "composition_track_decision", "input": decide},
        {"name": "agent_send", "input": {"agent": "bob", "message": "thanks"}},
    ]
    script = {
        "replies": [
            {"match": {"agent": "ada", "round": 1}, "reply": "", "tool_calls": use},
            {"match": {"agent": "ada", "round": 2}, "reply": "decided"},
        ],
        "default": {"reply": "{{prompt}}!", "latency_s": 1},
    }
    async with open_house(script) as house:
        await house.run("o_1")
        bob = await house.spawn("bob", orchestration="o_1")
        await house.spawn("ada", ("base", "messaging", "decisions"), orchestration="o_1")
        of_bob = await send(house, "bob", "think")
        await house.started()
        of_ada = await send(house, "ada", "go")
        await house.until(lambda: house.rows("SELECT 1 FROM turn_wait") == [(1,)])
        await house.call("checkpoint_create", orchestration="o_1")
        house.gate.opened.set()
        await wait(house, of_ada)
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'done'") == [(3,)])
        back = await house.call("checkpoint_restore", orchestration="o_1")
        assert [(each["agent"], each["tool"]) for each in back["effects_kept"]] == [
            ("ada", "composition_track_decision")
        ]
        assert house.rows("SELECT COUNT(*) FROM turn_wait") == [(0,)]
        lanes(house)
        await house.call("orchestration_resume", orchestration="o_1")
        await wait(house, of_bob, of_ada)
        await house.until(
            lambda: len(house.rows("SELECT 1 FROM turn WHERE session_id = ? AND state = 'done'", bob)) == 2
        )
        # The decision was made once; the message was undone with the run, so it was sent again.
        assert house.rows("SELECT COUNT(*) FROM decision") == [(1,)]
        assert await history(house, bob) == [("think", "think!"), ("thanks", "thanks!")]
        lanes(house)
        money(house)


async def test_words_put_in_and_events_under_way_go_back_too(open_house) -> None:
    async with open_house(PLAIN) as house:
        await house.run("o_1")
        ada = await house.spawn("ada", orchestration="o_1")
        await house.call("routing_add_rule", source_pattern="x:*", target="agent:ada", scope="orchestration:o_1")
        await house.call("orchestration_suspend", orchestration="o_1")
        services = house.app.services
        await house.call("event_emit", event="x:one", orchestration="o_1")
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM outbox") == [(0,)])
        async with services.router._pump._pumping:  # what is emitted now is not delivered before the checkpoint
            await house.call("completion_inject", agent=ada, content="mind the gap", position="before")
            await house.call("event_emit", event="x:two", orchestration="o_1")
            await house.call("checkpoint_create", orchestration="o_1")
            await house.call("completion_inject", agent=ada, content="forget it", position="before")
        await house.call("orchestration_resume", orchestration="o_1")
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'done'")[0][0] >= 2)
        await house.call("checkpoint_restore", orchestration="o_1", resume=True)
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM outbox") == [(0,)])
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'done'") == [(2,)])
        done = house.rows("SELECT turn_id FROM turn WHERE state = 'done' ORDER BY seq")
        words = house.rows("SELECT content, turn_id FROM injection ORDER BY injection_id")
        assert words[0] == ("mind the gap", done[0][0])
        assert words[1][1].startswith("c_")
        lanes(house)


async def test_a_fork_is_a_run_of_its_own_with_all_that_was_said(open_house) -> None:
    async with open_house(PLAIN) as house:
        await house.run("o_1")
        boss = await house.spawn("boss", ("base", "spawn_agents"), orchestration="o_1", budget={"usd": 3, "turns": 9})
        child = await house.spawn("child", parent=boss, orchestration="o_1")
        await house.ask("boss", "one")
        await house.ask("child", "alpha")
        await house.call("routing_add_rule", source_pattern="x:*", target="agent:child", source_agent=boss,
                         ttl_s=500, scope="orchestration:o_1")  # fmt: skip
        await house.call("orchestration_suspend", orchestration="o_1")
        await send(house, "boss", "two")
        await house.call("event_emit", event="late:one", delay_s=400, orchestration="o_1")
        await house.call("checkpoint_create", orchestration="o_1", label="here")
        await house.call("orchestration_resume", orchestration="o_1")
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'done'") == [(3,)])
        spent = money(house)
        mine = "SELECT * FROM {} WHERE orchestration_id = 'o_1'"
        before = [house.rows(mine.format(table)) for table in ("agent", "turn", "rule", "orchestration")]

        fork = await house.call("checkpoint_restore", orchestration="o_1", checkpoint="here", into="new")
        run = fork["orchestration"]
        assert (fork["state"], fork["origin"], fork["put_back"], fork["reusable"]) == ("suspended", "o_1", 1, 1)
        assert [house.rows(mine.format(table)) for table in ("agent", "turn", "rule", "orchestration")] == before
        agents = dict(house.rows("SELECT name, agent_id FROM agent WHERE orchestration_id = ?", run))
        assert set(agents) == {"boss", "child"}
        assert not set(agents.values()) & {boss, child}
        assert house.rows("SELECT parent_id FROM agent WHERE agent_id = ?", agents["child"]) == [(agents["boss"],)]
        accounts = dict(
            house.rows(
                "SELECT account_id, parent_id || ' ' || COALESCE(limit_turns, '-') || ' ' || spent_turns FROM account"
            )
        )
        assert accounts[run] == "global - 0"
        assert accounts[agents["boss"]] == f"{run} 9 0"
        assert accounts[agents["child"]] == f"{agents['boss']} - 0"
        assert await history(house, agents["boss"]) == [("one", "one!")]
        assert await history(house, agents["child"]) == [("alpha", "alpha!")]
        ((target, source, remaining),) = house.rows(
            "SELECT target, source_agent, remaining_ms > 0 FROM rule WHERE orchestration_id = ?", run
        )
        assert (json.loads(target), source, remaining) == (f"agent:{agents['child']}", agents["boss"], 1)
        assert house.rows("SELECT event, held FROM delayed_event WHERE orchestration_id = ?", run) == [("late:one", 1)]
        lanes(house)

        # The first run may go whatever way: nothing of it touches the second.
        await house.call("orchestration_control", orchestration="o_1", action="stop")
        await house.call("orchestration_resume", orchestration=run)
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'done'") == [(3 + 2 + 1,)])
        assert await history(house, agents["boss"]) == [("one", "one!"), ("two", "two!")]
        assert money(house) == spent
        assert house.rows("SELECT spent_usd_micros FROM account WHERE account_id = ?", run) == [(0,)]
        assert (await house.ask(agents["boss"], "three"))["text"] == "three!"
        assert money(house) > spent
        lanes(house)


async def test_no_agent_makes_a_fork_with_more_than_it_may_grant_or_puts_back_its_own_run(open_house) -> None:
    async with open_house(PLAIN) as house:
        await house.run("o_1")
        ada = await house.spawn("ada", ("base", "orchestration"), orchestration="o_1")
        await house.spawn("rich", ("base", "routing_control"), orchestration="o_1")
        await house.call("checkpoint_create", orchestration="o_1", label="here")
        tables = ("orchestration", "agent", "session", "turn", "account", "rule", "checkpoint", "reusable")
        before = [house.rows(f"SELECT * FROM {table}") for table in tables]
        ctx = fresh_context(agent_actor(ada))
        for into, message in (("new", "cannot grant what it does not hold: routing_control"), ("same", "part of")):
            with pytest.raises(Refused, match=message):
                await house.app.toolbox.call(
                    ctx, "checkpoint_restore", {"checkpoint": "here", "orchestration": "o_1", "into": into}
                )
        assert [house.rows(f"SELECT * FROM {table}") for table in tables] == before
        await house.call("agent_terminate", agent="rich")
        await house.call("checkpoint_create", orchestration="o_1", label="without")
        done = await house.app.toolbox.call(
            ctx, "checkpoint_restore", {"checkpoint": "without", "orchestration": "o_1", "into": "new"}
        )
        # It is paid from the account of the agent that made it.
        run = done.data["orchestration"]
        assert house.rows("SELECT parent_id FROM account WHERE account_id = ?", run) == [(ada,)]


async def test_every_refusal_leaves_everything_as_it_was(open_house, monkeypatch) -> None:
    async with open_house(PLAIN) as house:
        await house.run("o_1")
        await house.run("o_2")
        outsider = await house.spawn("outsider", ("base", "orchestration"), orchestration="o_2")
        await house.spawn("ada", orchestration="o_1")
        first = await house.call("checkpoint_create", orchestration="o_1", label="first")
        await house.ask("ada", "one")
        second = await house.call("checkpoint_create", orchestration="o_1", label="second")
        await house.call("checkpoint_restore", orchestration="o_1", checkpoint="first", resume=True)
        listed = (await house.call("checkpoint_list", orchestration="o_1"))["checkpoints"]
        assert [(each["label"], each.get("left_by")) for each in listed] == [
            ("second", first["checkpoint"]),
            ("first", None),
        ]
        tables = ("orchestration", "agent", "session", "turn", "account", "rule", "checkpoint", "reusable", "outbox")
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM outbox") == [(0,)])
        before = [house.rows(f"SELECT * FROM {table}") for table in tables]
        monkeypatch.setattr(checkpoints, "MAX_ASKED_FOR", 2)
        seen = fresh_context(agent_actor(outsider))
        refusals: list[tuple[type[Exception], str, str, dict[str, Any]]] = [
            (Conflict, "time line that was left", "checkpoint_restore", {"checkpoint": second["checkpoint"]}),
            (Conflict, "left", "checkpoint_restore", {"orchestration": "o_1", "checkpoint": "second", "into": "new"}),
            (
                NotFound,
                "unknown checkpoint 'third'",
                "checkpoint_restore",
                {"orchestration": "o_1", "checkpoint": "third"},
            ),
            (NotFound, "unknown checkpoint 'first'", "checkpoint_restore", {"checkpoint": "first"}),
            (NotFound, "no checkpoint of o_2", "checkpoint_restore", {"orchestration": "o_2"}),
            (Invalid, "checkpoint is missing", "checkpoint_restore", {}),
            (Invalid, "into", "checkpoint_restore", {"orchestration": "o_1", "into": "old"}),
            (Invalid, "label", "checkpoint_create", {"orchestration": "o_1", "label": "x" * 101}),
            (Invalid, "label", "checkpoint_create", {"orchestration": "o_1", "label": "a\x1b[2Jb"}),
            (Exhausted, "has 2 checkpoints", "checkpoint_create", {"orchestration": "o_1"}),
            (Invalid, "cursor", "checkpoint_list", {"cursor": "1; DROP"}),
        ]
        for kind, message, tool, args in refusals:
            with pytest.raises(kind, match=message):
                await house.call(tool, **args)
        for args in ({"checkpoint": first["checkpoint"]}, {"orchestration": "o_1"}):
            with pytest.raises(NotFound, match="unknown orchestration 'o_1'"):
                await house.app.toolbox.call(seen, "checkpoint_restore", args)
        assert (await house.app.toolbox.call(seen, "checkpoint_list", {})).data["checkpoints"] == []
        assert [house.rows(f"SELECT * FROM {table}") for table in tables] == before


async def test_automatic_checkpoints_come_every_so_many_turns_and_only_the_newest_stay(open_house, monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "KEEP_AUTOMATIC", 2)
    async with open_house(PLAIN) as house:
        document = {
            "name": "kept", "type": "orchestration", "version": "1.0.0", "description": "d", "checkpoint_every": 2,
            "agents": {"ada": {"prompt": "You help."}}, "orchestration_logic": {"strategy": "do"},
        }  # fmt: skip
        await house.call("composition_create", document=document)
        started = await house.call("orchestration_start", pattern="kept", model="m")
        ada = started["agents"][0]["agent"]
        for number in range(7):
            await house.ask(ada, f"question {number}")
            await house.until(lambda: house.rows("SELECT COUNT(*) FROM outbox") == [(0,)])
        rows = house.rows("SELECT automatic, turns, label FROM checkpoint ORDER BY n")
        assert rows == [(1, 4, None), (1, 6, None)]
        assert [event["turns"] for event in house.events("checkpoint:created")] == [2, 4, 6]
        await house.call("composition_create", document={**document, "name": "wrong", "checkpoint_every": 0})
        with pytest.raises(Invalid, match="checkpoint_every of the pattern is 0"):
            await house.call("orchestration_start", pattern="wrong", model="m")


async def test_a_question_that_waited_for_its_answer_waits_again_in_both_runs(open_house) -> None:
    async with open_house({"default": {"reply": "perhaps"}}) as house:
        await house.run("o_1")
        ada = await house.spawn("ada", orchestration="o_1")
        expect = {"regex": "^yes$", "max_attempts": 2}
        turn = (await house.call("completion_submit", agent="ada", prompt="well?", expect=expect))["turn"]
        await house.until(lambda: house.rows("SELECT state FROM turn") == [("parked",)])
        asked = "SELECT question, checks, parked_on, run_at_ms FROM turn WHERE turn_id = ?"
        before = house.rows(asked, turn)
        await house.call("checkpoint_create", orchestration="o_1")
        await house.call("completion_answer", turn=turn, text="yes")
        await house.call("checkpoint_restore", orchestration="o_1")
        assert house.rows(asked, turn) == before
        fork = await house.call("checkpoint_restore", orchestration="o_1", into="new", resume=True)
        ((twin, of_twin),) = house.rows(
            "SELECT turn_id, session_id FROM turn WHERE orchestration_id = ? AND state = 'parked'",
            fork["orchestration"],
        )
        assert house.rows(asked, twin) == before
        await house.call("completion_answer", turn=twin, text="yes")
        assert house.rows("SELECT state, held FROM turn WHERE turn_id = ?", turn) == [("parked", 1)]
        await house.call("orchestration_resume", orchestration="o_1")
        await house.call("completion_answer", turn=turn, text="yes")
        assert await history(house, of_twin) == await history(house, ada) == [("well?", "yes")]
        lanes(house)


async def test_a_kept_effect_is_given_with_its_reused_answer(open_house) -> None:
    decide = {"pattern": "p", "decision": "go on", "reasoning": "why not"}
    use = [{"name": "composition_track_decision", "input": decide}, {"name": "help", "input": {}}]
    script = {
        "replies": [
            {"match": {"round": 1}, "reply": "", "tool_calls": use},
            {"match": {"round": 2}, "reply": "decided"},
        ]
    }
    async with open_house(script) as house:
        await house.run("o_1")
        await house.spawn("ada", ("base", "decisions"), orchestration="o_1")
        await house.call("checkpoint_create", orchestration="o_1")
        await house.ask("ada", "go")
        for _ in range(3):
            back = await house.call("checkpoint_restore", orchestration="o_1", resume=True)
            assert [each["tool"] for each in back["effects_kept"]] == ["composition_track_decision"]
            again = await house.ask("ada", "go")
            assert again["text"] == "decided"
            assert house.rows("SELECT COUNT(*) FROM decision") == [(1,)]
            bought = house.rows("SELECT COUNT(*) FROM provider_call WHERE state='answered' AND reused_from IS NULL")
            assert bought == [(2,)]
