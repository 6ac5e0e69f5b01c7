from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context

TWO_ROUNDS = {
    "replies": [
        {"match": {"round": 1}, "reply": "", "tool_calls": [{"name": "agent_list", "input": {}}], "latency_s": 1},
        {"match": {"round": 2}, "reply": "done"},
    ]
}
SLOW = {"default": {"reply": "{{prompt}}!", "latency_s": 1}}


class Counting:
    """A transaction that counts its statements."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self.now_ms = tx.now_ms
        self.statements = 0

    def run(self, name: str, params: dict[str, Any] | None = None, /) -> int:
        self.statements += 1
        return self._tx.run(name, params)

    def one(self, name: str, params: dict[str, Any] | None = None, /) -> Any:
        self.statements += 1
        return self._tx.one(name, params)

    def all(self, name: str, params: dict[str, Any] | None = None, /) -> Sequence[Any]:
        self.statements += 1
        return self._tx.all(name, params)

    def announce(self, note: object, /) -> None:
        self._tx.announce(note)


async def test_a_drained_turn_stops_between_two_rounds_and_pays_for_none_of_them_twice(open_house) -> None:
    async with open_house(TWO_ROUNDS) as house:
        await house.run("o_1")
        await house.spawn("ada", ("base",), orchestration="o_1")
        turn = (await house.call("agent_send", agent="ada", message="go"))["turn"]
        await house.started()
        held = await house.call("orchestration_suspend", orchestration="o_1")
        assert (held["state"], held["still_running"], held["held"], held["queued"]) == ("suspended", 1, 0, 0)
        status = await house.call("orchestration_status", orchestration="o_1")
        assert (status["state"], status["still_running"]) == ("suspended", 1)
        assert status["agents"][0]["status"] == "suspended"
        assert (await house.call("agent_list", filter={"status": "suspended"}))["agents"][0]["name"] == "ada"
        assert (await house.call("agent_list", filter={"status": "busy"}))["agents"] == []
        house.gate.opened.set()
        await house.until(lambda: house.rows("SELECT state, held FROM turn") == [("ready", 1)])
        assert (await house.call("orchestration_status", orchestration="o_1"))["still_running"] == 0
        assert house.calls() == [(1, "answered")]
        waiting = (await house.call("agent_send", agent="ada", message="and then"))["turn"]
        assert house.rows("SELECT state FROM turn WHERE turn_id = ?", waiting) == [("queued",)]
        resumed = await house.call("orchestration_resume", orchestration="o_1")
        assert resumed["state"] == "running"
        gathered = await house.call("agent_wait", turns=[turn, waiting], timeout_s=20)
        assert gathered["census"]["ok"] == 2
        assert house.calls() == [(1, "answered"), (2, "answered"), (1, "answered"), (2, "answered")]
        assert [event["paused_ms"] >= 0 for event in house.events("orchestration:resumed")] == [True]
        house.books()


async def test_suspending_at_once_cuts_the_call_off_in_full_and_resuming_makes_it_again(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.run("o_1")
        await house.spawn("ada", orchestration="o_1")
        turn = (await house.call("agent_send", agent="ada", message="go"))["turn"]
        await house.started()
        held = await house.call("orchestration_control", orchestration="o_1", action="suspend", mode="now")
        assert (held["still_running"], held["held"]) == (0, 1)
        assert [event["turn"] for event in house.events("completion:interrupted")] == [turn]
        await house.until(lambda: house.calls() == [(1, "uncertain")])
        assert house.rows("SELECT state, held, owner FROM turn") == [("ready", 1, None)]
        house.books()
        house.gate.opened.set()
        await house.call("orchestration_control", orchestration="o_1", action="resume")
        gathered = await house.call("agent_wait", turns=[turn], timeout_s=20)
        assert gathered["turns"][0]["text"] == "go!"
        assert house.calls() == [(1, "uncertain"), (1, "answered")]
        house.books()


async def test_a_drain_can_be_hurried_and_is_otherwise_left_as_it_is(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.run("o_1")
        await house.spawn("ada", orchestration="o_1")
        await house.call("agent_send", agent="ada", message="go")
        await house.started()
        await house.call("orchestration_suspend", orchestration="o_1")
        before = house.rows("SELECT suspended_at_ms FROM orchestration")
        house.gate.ahead_ms += 5_000
        again = await house.call("orchestration_suspend", orchestration="o_1")
        assert (again["state"], again["still_running"]) == ("suspended", 1)
        assert house.rows("SELECT suspended_at_ms FROM orchestration") == before
        assert len(house.events("orchestration:suspended")) == 1
        hurried = await house.call("orchestration_suspend", orchestration="o_1", mode="now")
        assert (hurried["still_running"], hurried["held"]) == (0, 1)
        await house.until(lambda: house.calls() == [(1, "uncertain")])


async def test_clocks_stand_still_while_a_run_is_suspended(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        ada = await house.spawn("ada", orchestration="o_1")
        rule = await house.call(
            "routing_add_rule", source_pattern="x:*", target="y:z", ttl_s=100, scope="orchestration:o_1"
        )
        await house.call("event_emit", event="late:one", delay_s=50, orchestration="o_1")
        await house.call("event_emit", event="late:other", delay_s=50)
        await house.call("orchestration_suspend", orchestration="o_1")
        assert house.rows("SELECT expires_at_ms, remaining_ms > 90000 FROM rule") == [(None, 1)]
        held = await house.call("event_emit", event="late:two", delay_s=70, orchestration="o_1")
        assert held["delayed_until"] == "70 s after its run goes on"
        house.gate.ahead_ms += 10_000_000
        await house.app.services.journal.commit(house.app.services.router.sweep_expired)
        await house.call("event_emit", event="wake:up")  # rings the pump of delayed events
        await house.until(lambda: house.rows("SELECT event FROM delayed_event") == [("late:one",), ("late:two",)])
        assert house.events("late:one") == []
        found = await house.call("routing_query_rules", filter={"rule_id": rule["rule_id"]})
        assert len(found["rules"]) == 1
        resumed = await house.call("orchestration_resume", orchestration="o_1")
        assert resumed["paused_s"] >= 10_000
        now_ms = house.gate.now_ms()
        ((expires, remaining),) = house.rows("SELECT expires_at_ms, remaining_ms FROM rule")
        assert 80_000 < expires - now_ms <= 100_000
        assert remaining is None
        due = house.rows("SELECT due_ms - ?, held FROM delayed_event ORDER BY delayed_id", now_ms)
        assert all(0 < left <= 70_000 and not is_held for left, is_held in due)
        paused = house.rows("SELECT account_id FROM account WHERE paused_ms >= 10000000 ORDER BY account_id")
        assert paused == sorted([(ada,), ("o_1",)])


async def test_rules_can_be_mended_during_the_pause_and_their_life_begins_with_its_end(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        scope = "orchestration:o_1"
        for name in ("a", "b", "c"):
            await house.call(
                "routing_add_rule", rule_id=name, source_pattern="x:*", target="y:z", ttl_s=100, scope=scope
            )
        await house.call("orchestration_suspend", orchestration="o_1")
        await house.call("routing_modify_rule", rule_id="a", updates={"ttl_s": None})
        await house.call("routing_modify_rule", rule_id="b", updates={"ttl_s": 500})
        await house.call("routing_modify_rule", rule_id="c", updates={"priority": 7})
        await house.call("routing_add_rule", rule_id="d", source_pattern="x:*", target="y:z", ttl_s=900, scope=scope)
        house.gate.ahead_ms += 10_000_000
        await house.call("orchestration_resume", orchestration="o_1")
        now_ms = house.gate.now_ms()
        rows = house.rows("SELECT rule_id, expires_at_ms, remaining_ms FROM rule ORDER BY rule_id")
        lives = {name: expires and round((expires - now_ms) / 100_000) for name, expires, _ in rows}
        assert lives == {"a": None, "b": 5, "c": 1, "d": 9}
        assert {remaining for *_, remaining in rows} == {None}


async def test_the_wait_of_a_retry_stands_still_too(open_house) -> None:
    async with open_house({"default": {"fail": {"kind": "overload"}}}) as house:
        await house.run("o_1")
        await house.spawn("ada", orchestration="o_1")
        await house.call("agent_send", agent="ada", message="go")
        await house.until(lambda: house.rows("SELECT state FROM turn") == [("retrying",)])
        ((run_at,),) = house.rows("SELECT run_at_ms FROM turn")
        await house.call("orchestration_suspend", orchestration="o_1")
        house.gate.ahead_ms += 1_000_000
        await house.call("event_emit", event="wake:up")
        await house.call("orchestration_resume", orchestration="o_1")
        ((later, held),) = house.rows("SELECT run_at_ms, held FROM turn")
        assert later - run_at >= 1_000_000
        assert held == 0
        assert len(house.calls()) == 1


async def test_suspending_and_resuming_take_as_many_statements_for_many_agents_as_for_few(open_house) -> None:
    async with open_house() as house:
        conductor, ctx = house.app.services.conductor, fresh_context(OPERATOR)

        def there_and_back(tx: Tx, run: str) -> int:
            counting = Counting(tx)
            conductor.suspension.suspend(counting, ctx, conductor.get(counting, run), mode="now")
            conductor.suspension.resume(counting, ctx, conductor.get(counting, run))
            return counting.statements

        counts = []
        for agents in (1, 40):
            await house.run(run := f"o_{agents}")
            for number in range(agents):
                await house.spawn(f"agent{number}", orchestration=run)
            counts.append(await house.app.services.journal.commit(partial(there_and_back, run=run)))
        assert counts[0] == counts[1]


async def test_what_cannot_be_suspended_or_resumed_is_refused_and_nothing_is_changed(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        await house.run("o_2")
        outsider = await house.spawn("outsider", ("base", "orchestration"), orchestration="o_2")
        await house.call("orchestration_control", orchestration="o_1", action="stop", reason="enough")
        before = house.rows("SELECT * FROM orchestration")
        for tool in ("orchestration_suspend", "orchestration_resume"):
            with pytest.raises(Conflict, match="orchestration o_1 is stopped"):
                await house.call(tool, orchestration="o_1")
            with pytest.raises(NotFound, match="unknown orchestration 'o_9'"):
                await house.call(tool, orchestration="o_9")
            with pytest.raises(NotFound, match="unknown orchestration 'o_1'"):
                await house.app.toolbox.call(fresh_context(agent_actor(outsider)), tool, {"orchestration": "o_1"})
            with pytest.raises(Invalid, match="orchestration is missing"):
                await house.call(tool)
        with pytest.raises(Invalid, match="mode"):
            await house.call("orchestration_suspend", orchestration="o_2", mode="gently")
        assert house.rows("SELECT * FROM orchestration") == before
        assert house.rows("SELECT * FROM session WHERE suspended <> 0") == []
        running = await house.call("orchestration_resume", orchestration="o_2")
        assert (running["state"], running["paused_s"]) == ("running", 0)
        assert house.events("orchestration:resumed") == []


async def test_a_suspended_run_takes_no_agents_and_can_be_ended(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.run("o_1")
        await house.spawn("ada", orchestration="o_1")
        turn = (await house.call("agent_send", agent="ada", message="go"))["turn"]
        await house.started()
        await house.call("event_emit", event="late:one", delay_s=50, orchestration="o_1")
        await house.call("orchestration_suspend", orchestration="o_1")
        with pytest.raises(Conflict, match="o_1 is suspended") as refused:
            await house.spawn("bob", orchestration="o_1")
        assert refused.value.hint == "resume it first"
        with pytest.raises(Conflict, match="o_1 is suspended") as refused:
            await house.call("orchestration_complete", orchestration="o_1", mode="drain")
        assert "resume it first" in (refused.value.hint or "")
        assert house.rows("SELECT COUNT(*) FROM agent") == [(1,)]
        ended = await house.call("orchestration_complete", orchestration="o_1", outcome="success")
        assert (ended["state"], ended["cancelled_turns"]) == ("completed", 1)
        assert house.rows("SELECT state FROM turn WHERE turn_id = ?", turn) == [("cancelled",)]
        assert house.rows("SELECT * FROM delayed_event") == []
        await house.until(lambda: house.calls() == [(1, "uncertain")])
        house.books()


async def test_an_agent_may_suspend_its_own_run_and_is_told_so_when_it_goes_on(open_house) -> None:
    use = {"name": "orchestration_suspend", "input": {"mode": "now"}}
    script = {
        "replies": [
            {"match": {"round": 1}, "reply": "", "tool_calls": [use]},
            {"match": {"round": 2}, "reply": "{{results[0].state}}"},
        ]
    }
    async with open_house(script) as house:
        await house.run("o_1")
        await house.spawn("ada", ("base", "orchestration"), orchestration="o_1")
        turn = (await house.call("agent_send", agent="ada", message="go"))["turn"]
        await house.until(lambda: house.rows("SELECT state, held FROM turn") == [("ready", 1)])
        assert house.rows("SELECT tool, is_error FROM tool_call") == [("orchestration_suspend", 0)]
        await house.call("orchestration_resume", orchestration="o_1")
        gathered = await house.call("agent_wait", turns=[turn], timeout_s=20)
        assert gathered["turns"][0]["text"] == "suspended"
        assert house.calls() == [(1, "answered"), (2, "answered")]


async def test_without_the_capability_nobody_holds_a_run(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        ada = await house.spawn("ada", ("base",), orchestration="o_1")
        ctx = fresh_context(agent_actor(ada))
        for tool in ("orchestration_suspend", "orchestration_resume", "checkpoint_create", "checkpoint_restore"):
            with pytest.raises(Refused, match="needs the capability 'orchestration'"):
                await house.app.toolbox.call(ctx, tool, {})
        assert house.rows("SELECT state FROM orchestration") == [("running",)]
        assert house.rows("SELECT * FROM checkpoint") == []
