"""What becomes of a prompt whose turn was lost for good, and of the agent that lost it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ksi_mcp.agents.model import AgentSettings, AgentSpec
from ksi_mcp.agents.policy import Policy, policy_of
from ksi_mcp.errors import Conflict, Invalid, NotFound, Refused
from ksi_mcp.ids import OrchestrationId
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context

OK = {"reply": "ok: {{prompt}}"}


def lost(times: int) -> dict[str, Any]:
    """A provider that refuses the prompt `lost` so often, without a call's worth of retries."""
    return {"replies": [{"match": {"prompt": "lost"}, "fail": {"kind": "auth", "times": times}}], "default": OK}


async def spawn_like(house: Any, name: str, composition: str | None, run: str | None, **settings: Any) -> str:
    """An agent that says which composition it was made from."""
    spec = AgentSpec(
        name=name, system="You help.", provider="scripted", model="m", capabilities=frozenset({"base"}),
        settings=AgentSettings(**settings), composition=composition, orchestration_id=run,
    )  # fmt: skip
    roster, journal = house.app.services.roster, house.app.services.journal
    ctx = fresh_context(OPERATOR, orchestration_id=None if run is None else OrchestrationId(run))
    return str((await journal.commit(lambda tx: roster.spawn(tx, ctx, spec))).agent_id)


async def ended(house: Any, count: int) -> list[tuple[Any, ...]]:
    """(session, prompt, state, rescues) of all turns, once so many have ended."""
    sql = "SELECT COUNT(*) FROM turn WHERE state IN ('done', 'failed', 'timed_out', 'cancelled')"
    await house.until(lambda: house.rows(sql) == [(count,)])
    return house.rows("SELECT session_id, prompt, state, rescues FROM turn ORDER BY n")


async def routed(house: Any) -> None:
    """Until the router has handled all there was."""
    await house.until(lambda: house.rows("SELECT 1 FROM outbox") == [])


# -- policies ---------------------------------------------------------------------------------------


def test_a_policy_is_a_word_or_a_mapping() -> None:
    assert policy_of("respawn") == Policy(on_failure="respawn", most=2)
    assert policy_of({"on_failure": "retry", "max": 5}) == Policy(on_failure="retry", most=5)
    assert policy_of({}) == Policy(on_failure="none", most=2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("panic", "supervision is 'panic'"),
        (3, "supervision is '3'"),
        ({"on_failure": "panic"}, "supervision is 'panic'"),
        ({"on_failure": ["retry"]}, "supervision is"),
        ({"max": -1}, "supervision max is '-1'"),
        ({"max": True}, "supervision max is 'True'"),
        ({"max": "x" * 999}, "supervision max is 'x{40}'"),
        ({"retries": 1, "on_failure": "retry"}, "supervision has no retries"),
    ],
)
def test_a_policy_that_is_none_is_refused_where_an_agent_is_made(value: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        AgentSettings(supervision=value)


# -- retry ------------------------------------------------------------------------------------------


async def test_nothing_is_taken_up_again_unless_somebody_says_so(open_house) -> None:
    async with open_house(lost(1)) as house:
        await house.spawn("a")
        assert (await house.ask("a", "lost"))["error_class"] == "infra"
        await routed(house)
        assert house.rows("SELECT COUNT(*) FROM turn") == [(1,)]


async def test_a_lost_prompt_is_asked_again_as_a_new_turn_because_of_the_lost_one(open_house) -> None:
    async with open_house(lost(1), supervision={"policy": "retry"}) as house:
        agent = await house.spawn("a")
        first = await house.ask("a", "lost", reply_event="reply:here")
        assert await ended(house, 2) == [(agent, "lost", "failed", 0), (agent, "lost", "done", 1)]
        (event,) = house.events("agent:rescued")
        assert (event["policy"], event["lost"], event["rescues"]) == ("retry", first["turn"], 1)
        assert house.rows("SELECT cause_id FROM turn WHERE turn_id = ?", event["turn"]) == [(f"turn:{first['turn']}",)]
        await house.until(lambda: len(house.events("reply:here")) == 2)
        assert [event["status"] for event in house.events("reply:here")] == ["failed", "done"]
        house.books()


async def test_a_prompt_that_is_always_lost_is_given_up_after_two_rescues(open_house) -> None:
    async with open_house(lost(99), supervision={"policy": "retry"}) as house:
        await house.spawn("a")
        await house.ask("a", "lost")
        await house.until(lambda: house.events("agent:given_up"))
        assert [row[2:] for row in await ended(house, 3)] == [("failed", 0), ("failed", 1), ("failed", 2)]
        (event,) = house.events("agent:given_up")
        assert event["reason"] == "it was taken up again 2 times"
        house.books()


async def test_an_agent_s_own_policy_outranks_the_configuration(open_house) -> None:
    async with open_house(lost(1), supervision={"policy": "retry"}) as house:
        await house.spawn("a")
        await house.call("agent_update", agent="a", supervision="none")
        await house.ask("a", "lost")
        await house.call("agent_update", agent="a", supervision={"on_failure": "retry", "max": 0})
        await house.ask("a", "after")
        await routed(house)
        assert house.events("agent:rescued") == []


async def test_a_prompt_that_was_wrong_or_too_dear_is_not_lost(open_house) -> None:
    script = {"replies": [{"match": {"prompt": "wrong"}, "fail": {"kind": "request"}}], "default": OK}
    async with open_house(script, supervision={"policy": "retry"}) as house:
        await house.spawn("a", budget={"turns": 2})
        classes = [(await house.ask("a", prompt)).get("error_class") for prompt in ("wrong", "fine", "too much")]
        assert classes == ["task", None, "budget"]
        await routed(house)
        assert house.events("agent:rescued", "agent:given_up") == []


async def test_a_composition_says_how_its_agents_are_supervised(open_house) -> None:
    async with open_house(lost(1)) as house:
        supervision = {"on_failure": "retry", "max": 1}
        document = {"name": "careful", "type": "agent", "prompt": "You help.", "supervision": supervision}
        await house.call("composition_create", document=document)
        await house.call("agent_spawn", name="a", composition="careful", model="m")
        await house.ask("a", "lost")
        assert [row[2] for row in await ended(house, 2)] == ["failed", "done"]


# -- respawn ----------------------------------------------------------------------------------------


async def test_a_successor_has_the_name_the_rules_the_children_and_the_unfinished_turns(open_house) -> None:
    script = {**lost(1)}
    async with open_house(script, supervision={"policy": "respawn"}) as house:
        capabilities = ("base", "messaging", "spawn_agents", "routing_control")
        old = await house.spawn("a", capabilities)
        child = await house.spawn("child", parent="a")
        other = await house.spawn("other")
        rule = {"source_pattern": "note:x", "target": f"agent:{old}"}
        await house.call("routing_add_rule", rule_id="to_a", **rule)
        await house.call("routing_add_rule", rule_id="from_a", source_pattern="y", target="z", source_agent=old)
        mine = fresh_context(agent_actor(old))
        await house.app.toolbox.call(
            mine, "routing_add_rule", {"rule_id": "of_a", "source_pattern": "q", "target": "r"}
        )
        await house.app.toolbox.call(mine, "event_emit", {"event": "note:later", "data": {}, "delay_s": 900})
        await house.ask("a", "lost")
        await house.until(lambda: house.events("agent:respawned"))
        (event,) = house.events("agent:respawned")
        new = event["new"]
        assert (event["old"], event["name"], event["moved"], event["rules"]) == (old, "a", 1, 3)
        await ended(house, 2)
        assert house.rows("SELECT session_id, state, rescues FROM turn ORDER BY n") == [
            (old, "failed", 0), (new, "done", 1),
        ]  # fmt: skip
        was, now = await house.call("agent_get", agent=old), await house.call("agent_get", agent="a")
        assert (was["status"], was["successor"], now["agent"], now["status"]) == ("failed", new, new, "idle")
        assert now["capabilities"] == sorted(capabilities)
        assert (await house.call("agent_get", agent=child))["parent"] == new
        assert (await house.call("agent_get", agent=other)).get("parent") is None
        assert house.rows("SELECT rule_id, source_agent, target, scope, created_by FROM rule ORDER BY rule_id") == [
            ("from_a", new, '"z"', "global", "operator"),
            ("of_a", new, '"r"', f"agent:{new}", f"agent:{new}"),
            ("to_a", None, f'"agent:{new}"', "global", "operator"),
        ]
        ((context,),) = house.rows("SELECT context FROM delayed_event")
        assert json.loads(context)["actor"] == f"agent:{new}"
        await house.call("event_emit", event="note:x", data={"n": 1})
        await ended(house, 3)
        assert house.rows("SELECT session_id FROM turn ORDER BY n DESC LIMIT 1") == [(new,)]
        audits = house.events("routing:rule_modified")
        assert {audit["rule_id"]: audit["was"] for audit in audits}["to_a"] == {"target": f"agent:{old}"}
        house.books()


async def test_what_was_spent_under_a_limit_stays_spent_after_a_respawn(open_house) -> None:
    async with open_house(lost(1), supervision={"policy": "respawn"}) as house:
        old = await house.spawn("a", budget={"turns": 3})
        await house.ask("a", "fine")
        await house.ask("a", "lost")
        await ended(house, 3)  # one, the lost one, and its rescue by the successor
        late = await house.ask("a", "too much")
        assert (late["status"], late["error_class"]) == ("failed", "budget")
        assert house.events("agent:budget_exceeded")[0]["account"] == old
        new = (await house.call("agent_get", agent="a"))["agent"]
        assert house.rows("SELECT parent_id FROM account WHERE account_id = ?", new) == [(old,)]
        house.books()


async def test_without_limits_the_accounts_of_successors_do_not_pile_up(open_house) -> None:
    async with open_house() as house:
        await house.spawn("a")
        for _ in range(3):
            await house.call("agent_respawn", agent="a")
        assert house.rows("SELECT DISTINCT parent_id FROM account WHERE account_id <> 'global'") == [("global",)]
        await house.spawn("b", budget={"tokens": 10_000_000})
        for _ in range(3):
            await house.call("agent_respawn", agent="b")
        new = (await house.call("agent_get", agent="b"))["agent"]
        path = (await house.call("budget_status", account=new))["accounts"]
        assert len(path) == 3  # global, the one with the limit, the newest
        assert (await house.ask("b"))["status"] == "done"
        house.books()


async def test_an_agent_that_only_fails_is_replaced_three_times_and_then_given_up(open_house) -> None:
    async with open_house(lost(99), supervision={"policy": "respawn", "max_rescues": 50}) as house:
        await house.spawn("a")
        await house.ask("a", "lost")
        await house.until(lambda: house.events("agent:given_up"))
        assert len(house.events("agent:respawned")) == 3
        assert house.events("agent:given_up")[0]["reason"].startswith("it was replaced 3 times in a row")
        # A success ends the row.
        assert (await house.ask("a", "fine"))["status"] == "done"
        await house.ask("a", "lost")
        await house.until(lambda: len(house.events("agent:given_up")) == 2)
        assert len(house.events("agent:respawned")) == 6
        house.books()


async def test_two_prompts_lost_at_once_cost_one_respawn(open_house) -> None:
    async with open_house(lost(2), supervision={"policy": "respawn"}) as house:
        await house.spawn("a")
        async with house.app.services.router._pump._pumping:  # nothing is routed before both have failed
            for text in ("lost 1", "lost 2"):
                assert (await house.ask("a", text))["status"] == "failed"
        done = "SELECT COUNT(*) FROM turn WHERE state = 'done'"
        await house.until(lambda: house.rows(done) == [(2,)])
        prompts = house.rows("SELECT prompt FROM turn WHERE state = 'done' ORDER BY prompt")
        assert prompts == [("lost 1",), ("lost 2",)]
        assert len(house.events("agent:respawned")) == 1
        house.books()


async def test_a_turn_at_work_goes_on_with_the_successor_and_its_old_call_is_paid(open_house) -> None:
    script = {"replies": [{"match": {"prompt": "slow"}, "reply": "late", "latency_s": 60}], "default": OK}
    async with open_house(script) as house:
        old = await house.spawn("a")
        slow = await house.call("agent_send", agent="a", message="slow")
        behind = await house.call("agent_send", agent="a", message="behind")
        await house.started()
        done = await house.call("agent_respawn", agent="a", reason="it hangs")
        assert (done["old"], done["moved_turns"], done["name"]) == (old, 2, "a")
        await house.started()  # the second attempt is at the provider
        house.gate.opened.set()
        waited = await house.call("agent_wait", turns=[slow["turn"], behind["turn"]], timeout_s=10)
        assert waited["census"]["ok"] == 2
        assert house.rows("SELECT session_id, prompt, state, attempt, moved_from FROM turn ORDER BY seq") == [
            (done["agent"], "slow", "done", 2, old), (done["agent"], "behind", "done", 1, old),
        ]  # fmt: skip
        await house.until(lambda: not house.rows("SELECT 1 FROM hold WHERE state IN ('reserved', 'sent')"))
        assert house.rows("SELECT state FROM provider_call ORDER BY call_id")[0] == ("uncertain",)
        house.books()


async def test_only_those_above_an_agent_replace_it_and_only_while_it_lives(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        boss = await house.spawn("boss", ("base", "spawn_agents"), orchestration="o_1")
        peer = await house.spawn("peer", ("base", "spawn_agents"), orchestration="o_1")
        child = await house.spawn("child", parent=boss)
        as_boss = fresh_context(agent_actor(boss))
        for target, failure in ((peer, "may not replace"), (boss, "cannot replace itself")):
            with pytest.raises(Refused, match=failure):
                await house.app.toolbox.call(as_boss, "agent_respawn", {"agent": target})
        done = await house.app.toolbox.call(as_boss, "agent_respawn", {"agent": child})
        assert done.data["parent"] == boss
        with pytest.raises(Conflict, match="agent 'child' is failed"):
            await house.call("agent_respawn", agent=child)
        with pytest.raises(NotFound):
            await house.call("agent_respawn", agent="nobody")
        assert len(house.events("agent:respawned")) == 1


async def test_a_successor_holds_no_more_than_its_parent_holds_by_then(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", ("base", "messaging", "spawn_agents"))
        child = await house.spawn("child", ("base", "messaging"), parent=boss)
        journal = house.app.services.journal
        values = {"agent_id": boss, "provider": "scripted", "model": "m", "settings": "{}"}
        await journal.commit(lambda tx: tx.run("agents.update", {**values, "capabilities": '["base"]'}))
        done = await house.call("agent_respawn", agent=child)
        assert done["capabilities"] == ["base"]


# -- redistribute, escalate -------------------------------------------------------------------------


async def test_a_peer_gets_the_lost_prompt_and_what_waits_with_it(open_house) -> None:
    async with open_house(lost(1)) as house:
        await house.run("o_1")
        settings = {"supervision": "redistribute"}
        one = await spawn_like(house, "one", "worker@1", "o_1", **settings)
        two = await spawn_like(house, "two", "worker@1", "o_1", **settings)
        await spawn_like(house, "elsewhere", "worker@1", None, **settings)
        await spawn_like(house, "another", "writer@1", "o_1", **settings)
        await house.ask(one, "lost")
        assert await ended(house, 2) == [(one, "lost", "failed", 0), (two, "lost", "done", 1)]
        (event,) = house.events("agent:rescued")
        assert (event["policy"], event["agent"], event["from"]) == ("redistribute", two, one)
        house.books()


async def test_a_lost_prompt_that_nobody_else_can_take_waits_for_a_person(open_house) -> None:
    async with open_house(lost(99)) as house:
        one = await spawn_like(house, "one", "worker@1", None, supervision="redistribute")
        await house.ask(one, "lost", reply_event="reply:here")
        await house.until(lambda: house.events("agent:escalated"))
        (event,) = house.events("agent:escalated")
        assert event["prompt"] == "lost"
        assert "could not answer" in event["text"]
        behind = await house.call("agent_send", agent=one, message="behind")
        shown = await house.call("completion_status", turn=event["turn"])
        assert shown["status"] == "parked"
        queues, journal = house.app.services.queues, house.app.services.journal
        await journal.commit(lambda tx: queues.answer_parked(tx, event["turn"], text="by hand", by="operator"))
        waited = await house.call("agent_wait", turns=[event["turn"], behind["turn"]], timeout_s=10)
        assert [turn["text"] for turn in waited["turns"]] == ["by hand", "ok: behind"]
        house.books()


# -- drain ------------------------------------------------------------------------------------------

SLOW = {"replies": [{"match": {"prompt": "slow"}, "reply": "late", "latency_s": 60}], "default": OK}


async def test_an_agent_that_drains_takes_nothing_more_and_ends_with_its_last_turn(open_house) -> None:
    async with open_house(SLOW) as house:
        agent = await house.spawn("a")
        turns = [(await house.call("agent_send", agent="a", message=text))["turn"] for text in ("slow", "next")]
        await house.started()
        done = await house.call("agent_terminate", agent="a", mode="drain", reason="enough")
        assert done == {"agents": [], "cancelled_turns": 0, "draining": [agent]}
        assert (await house.call("agent_get", agent="a"))["draining"] is True
        assert (await house.call("agent_list"))["agents"][0]["draining"] is True
        with pytest.raises(Conflict, match="agent 'a' is draining") as refused:
            await house.call("agent_send", agent="a", message="more")
        assert refused.value.hint == "send to another agent, or spawn one under another name"
        assert (await house.call("agent_terminate", agent="a", mode="drain"))["draining"] == [agent]
        house.gate.opened.set()
        assert (await house.call("agent_wait", turns=turns, timeout_s=10))["census"]["ok"] == 2
        await house.until(lambda: house.events("agent:terminated"))
        assert (await house.call("agent_get", agent=agent))["status"] == "terminated"
        assert len(house.events("agent:draining")) == 1
        await house.spawn("a")  # the name is free
        house.books()


async def test_an_idle_agent_that_is_to_drain_ends_at_once(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a")
        assert await house.call("agent_terminate", agent="a", mode="drain") == {
            "agents": [agent], "cancelled_turns": 0, "draining": [],
        }  # fmt: skip
        assert house.events("agent:draining") == []
        again = await house.call("agent_terminate", agent=agent, mode="drain")
        assert again["agents"] == [agent]
        assert len(house.events("agent:terminated")) == 1


async def test_an_agent_whose_lost_turn_nobody_heard_of_yet_does_not_end_before_its_rescue(open_house) -> None:
    async with open_house(lost(1), supervision={"policy": "retry"}) as house:
        agent = await house.spawn("a")
        async with house.app.services.router._pump._pumping:  # nothing is routed meanwhile
            await house.ask("a", "lost")
            done = await house.call("agent_terminate", agent="a", mode="drain")
            assert done["draining"] == [agent]
        await house.until(lambda: house.events("agent:terminated"))
        assert [row[2] for row in await ended(house, 2)] == ["failed", "done"]


async def test_a_dry_run_of_a_drain_changes_nothing(open_house) -> None:
    async with open_house(SLOW) as house:
        busy, idle = await house.spawn("busy"), await house.spawn("idle")
        await house.call("agent_send", agent="busy", message="slow")
        done = await house.call("agent_terminate", filter={"status": "active"}, mode="drain", dry_run=True)
        assert (done["agents"], done["draining"], done["dry_run"]) == ([idle], [busy], True)
        assert house.rows("SELECT COUNT(*) FROM agent WHERE draining = 1 OR status <> 'active'") == [(0,)]


async def test_a_lost_prompt_keeps_a_draining_agent_until_it_was_taken_up_again(open_house) -> None:
    script = {
        "replies": [{"match": {"prompt": "lost"}, "fail": {"kind": "auth", "times": 1}}, *SLOW["replies"]],
        "default": OK,
    }
    async with open_house(script, supervision={"policy": "retry"}) as house:
        agent = await house.spawn("a")
        await house.call("agent_send", agent="a", message="slow")
        await house.call("agent_send", agent="a", message="lost")
        await house.started()
        await house.call("agent_terminate", agent="a", mode="drain")
        house.gate.opened.set()
        await house.until(lambda: house.events("agent:terminated"))
        states = [row[1:3] for row in house.rows("SELECT session_id, prompt, state FROM turn ORDER BY n")]
        assert states == [("slow", "done"), ("lost", "failed"), ("lost", "done")]
        assert (await house.call("agent_get", agent=agent))["status"] == "terminated"
