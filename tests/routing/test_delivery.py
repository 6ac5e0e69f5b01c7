from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict
from ksi_mcp.permissions import OPERATOR, SYSTEM, Context, agent_actor, fresh_context
from ksi_mcp.routing.router import Limits


async def test_several_targets_all_get_the_event_in_the_order_of_the_rule(open_table) -> None:
    async with open_table() as t:
        ada, bob = await t.agent("ada"), await t.agent("bob")
        rule = await t.rule("task:*", ["agent:bob", "log:seen", "agent:ada"])
        event = await t.emit("task:new", {"n": 1})
        delivered = await t.data("routing:delivered")
        assert [each["target"] for each in delivered] == [f"agent:{bob}", "log:seen", f"agent:{ada}"]
        assert {each["event_id"] for each in delivered} == {event.event_id}
        assert [len(await t.turns(agent)) for agent in (ada, bob)] == [1, 1]
        assert await t.data("log:seen") == [{"n": 1}]
        assert t.stats(rule.rule_id) == (1, 3, 0, 0, 0, 0)


async def test_round_robin_goes_in_order_across_restarts_and_past_who_takes_no_messages(open_table) -> None:
    async with open_table() as t:
        ids = [await t.agent(name) for name in ("ada", "bob", "cyd")]
        await t.rule("task:*", {"round_robin": ["agent:ada", "log:seen", "agent:bob", "agent:cyd"]}, rule_id="turns")
        for _ in range(5):
            await t.emit("task:new")
    async with open_table() as t:
        t.drain(ids[1])
        for _ in range(3):
            await t.emit("task:new")
        await t.end(ids[2])
        for _ in range(3):
            await t.emit("task:new")
        order = [each["target"] for each in await t.data("routing:delivered")]
        ada, bob, cyd = (f"agent:{each}" for each in ids)
        assert order[:5] == [ada, "log:seen", bob, cyd, ada]
        assert order[5:8] == ["log:seen", cyd, ada]  # bob drains
        assert order[8:] == ["log:seen", ada, "log:seen"]  # and cyd is gone
        assert await t.letters() == []


async def test_the_least_busy_gets_it_and_of_equals_the_first(open_table) -> None:
    async with open_table() as t:
        ada, bob = await t.agent("ada"), await t.agent("bob")
        await t.rule("task:*", {"least_busy": ["agent:ada", "agent:bob"]})
        await t.busy(ada, 2)
        for _ in range(5):  # within one unit the counts are those that it made
            await t.record("task:new")
        await t.pump()
        order = [each["target"] for each in await t.data("routing:delivered")]
        assert order == [f"agent:{each}" for each in (bob, bob, ada, bob, ada)]


async def test_the_first_idle_gets_it_and_when_none_is_the_least_busy(open_table) -> None:
    async with open_table() as t:
        ada, bob, cyd = [await t.agent(name) for name in ("ada", "bob", "cyd")]
        await t.rule("task:*", {"first_idle": ["agent:ada", "agent:bob", "agent:cyd"]})
        await t.busy(ada, 2)
        await t.emit("task:new")
        await t.emit("task:new")
        await t.busy(bob, 2)
        await t.emit("task:new")
        t.drain(cyd)
        await t.emit("task:new")
        order = [each["target"] for each in await t.data("routing:delivered")]
        assert order == [f"agent:{each}" for each in (bob, cyd, cyd, ada)]


async def test_with_nobody_left_to_choose_it_is_one_dead_letter_with_its_payload(open_table) -> None:
    async with open_table() as t:
        ada, bob = await t.agent("ada"), await t.agent("bob")
        rule = await t.rule("task:*", {"round_robin": ["agent:ada", "agent:bob"]}, mapping={"id": "{{data.id}}"})
        await t.end(ada)
        t.drain(bob)
        event = await t.emit("task:new", {"id": 7, "secret": 1})
        [letter] = await t.letters()
        assert (letter.rule_id, letter.target, letter.data) == (rule.rule_id, None, {"id": 7})
        assert letter.reason == f"none of round_robin(agent:{ada}, agent:{bob}) takes messages any more"
        [report] = await t.data("routing:undeliverable")
        assert (report["dead_letter"], report["event_id"]) == (letter.dead_id, event.event_id)
        assert t.stats(rule.rule_id)[:3] == (1, 0, 1)


async def test_of_several_targets_only_the_dead_one_is_a_dead_letter(open_table) -> None:
    async with open_table() as t:
        ada, bob = await t.agent("ada"), await t.agent("bob")
        rule = await t.rule("task:*", ["agent:ada", "agent:bob", "log:seen"], mapping={"id": "{{data.id}}"})
        await t.end(ada)
        await t.emit("task:new", {"id": 7})
        [letter] = await t.letters()
        assert (letter.target, letter.data) == (f"agent:{ada}", {"id": 7})
        assert letter.reason == f"agent {ada} is terminated"
        assert len(await t.turns(bob)) == len(await t.data("log:seen")) == 1
        assert t.stats(rule.rule_id)[:3] == (1, 2, 1)


async def test_a_mapping_that_cannot_be_filled_is_a_dead_letter(open_table) -> None:
    async with open_table() as t:
        rule = await t.rule("task:*", ["log:a", "log:b"], mapping={"x": "{{data.absent}}"})
        event = await t.emit("task:new", {"here": 1})
        [letter] = await t.letters()
        assert (letter.rule_id, letter.target, letter.data) == (rule.rule_id, None, None)
        assert letter.event.data == {"here": 1}
        assert "data.absent" in letter.reason
        [failed] = await t.data("routing:mapping_failed")
        assert (failed["dead_letter"], failed["event_id"]) == (letter.dead_id, event.event_id)
        assert t.stats(rule.rule_id)[:3] == (0, 0, 1)


async def test_an_exclusive_rule_that_delivered_stops_those_of_lower_priority(open_table) -> None:
    async with open_table() as t:
        await t.rule("task:*", "log:above", priority=300)
        await t.rule("task:*", "log:first", priority=200, exclusive=True, condition="data.n > 1")
        await t.rule("task:*", "log:below", priority=100)
        await t.rule("task:*", "log:broken", priority=50, mapping={"x": "{{data.absent}}"})
        await t.rule("task:*", "log:undecided", priority=50, condition="data.absent")
        await t.emit("task:new", {"n": 2})
        assert [len(await t.data(f"log:{name}")) for name in ("above", "first", "below")] == [1, 1, 0]
        assert await t.letters() == []  # who is excluded has no letters
        assert await t.events("routing:condition_failed") == []
        await t.emit("task:new", {"n": 1})
        assert [len(await t.data(f"log:{name}")) for name in ("above", "first", "below")] == [2, 1, 1]
        assert len(await t.letters()) == 1


@pytest.mark.parametrize("why", ["dead", "rate", "mapping"])
async def test_an_exclusive_rule_that_did_not_deliver_stops_nobody(open_table, why: str) -> None:
    async with open_table() as t:
        ada = await t.agent("ada")
        fields: dict[str, Any] = {
            "dead": {}, "rate": {"rate": {"count": 1, "per_s": 60}}, "mapping": {"mapping": {"x": "{{data.absent}}"}},
        }[why]  # fmt: skip
        await t.rule("task:*", "agent:ada", priority=200, exclusive=True, **fields)
        await t.rule("task:*", "log:below", priority=100)
        if why == "dead":
            await t.end(ada)
        await t.emit("task:new")
        await t.emit("task:new")
        assert len(await t.data("log:below")) == (1 if why == "rate" else 2)


async def test_two_exclusive_rules_of_one_pattern_priority_and_scope_conflict(open_table) -> None:
    async with open_table() as t:
        await t.run("o_1")
        await t.rule("task:*", "log:a", exclusive=True, rule_id="first")
        with pytest.raises(Conflict, match="first"):
            await t.rule("task:*", "log:b", exclusive=True)
        await t.rule("task:*", "log:b", exclusive=True, priority=99, rule_id="second")
        await t.rule("task:*", "log:b", exclusive=True, scope="orchestration:o_1")
        await t.rule("task:*", "log:b", exclusive=True, enabled=False, rule_id="off")
        for rule_id, updates in (("second", {"priority": 100}), ("off", {"enabled": True})):
            with pytest.raises(Conflict):
                await t.modify(rule_id, **updates)


async def test_a_join_collects_in_spite_of_an_exclusive_rule(open_table) -> None:
    async with open_table() as t:
        await t.rule("task:*", "log:first", priority=200, exclusive=True)
        await t.rule("task:*", "log:joined", join={"all_of": ["task:a", "task:b"]})
        await t.emit("task:a")
        await t.emit("task:b")
        assert len(await t.data("log:joined")) == 1
        assert len(await t.data("log:first")) == 2


async def test_a_rate_in_a_window_of_less_than_a_millisecond_bounds_all_the_same(open_table) -> None:
    async with open_table() as t:
        await t.rule("task:*", "log:a", rate={"count": 1, "per_s": 0.0001})
        for _ in range(3):
            await t.emit("task:new")
        assert len(await t.data("log:a")) == 1  # its clock stands still


async def test_beyond_its_rate_a_rule_delivers_nothing_and_says_so_once_a_window(open_table) -> None:
    async with open_table() as t:
        rule = await t.rule("task:*", ["log:a", "log:b"], rate={"count": 2, "per_s": 10})
        for _ in range(5):
            await t.emit("task:new")
        await t.pass_s(9.999)
        await t.emit("task:new")
        assert len(await t.data("log:a")) == len(await t.data("log:b")) == 2
        [said] = await t.data("routing:rate_limited")
        assert (said["rule_id"], said["count"], said["per_s"]) == (rule.rule_id, 2, 10)
        await t.pass_s(0.001)
        for _ in range(3):
            await t.emit("task:new")
        assert len(await t.data("log:a")) == 4
        assert len(await t.data("routing:rate_limited")) == 2
        assert t.stats(rule.rule_id)[:4] == (9, 8, 0, 5)
        assert await t.letters() == []
    async with open_table() as t:  # which window it is in, is not forgotten
        t.clock.ms += 10_000
        await t.emit("task:new")
        assert len(await t.data("log:a")) == 4


async def test_a_clock_that_is_put_back_opens_a_window(open_table) -> None:
    async with open_table() as t:
        await t.rule("task:*", "log:a", rate={"count": 1, "per_s": 1})
        await t.emit("task:new")
        t.clock.ms -= 500_000
        await t.emit("task:new")
        assert len(await t.data("log:a")) == 2


async def test_figures_are_exact(open_table) -> None:
    async with open_table() as t:
        await t.rule("task:*", ["log:a", "log:b"], rule_id="r")
        await t.record("task:new")
        t.clock.ms += 40
        await t.record("task:new")
        t.clock.ms += 10
        await t.pump()
        assert t.stats("r") == (2, 4, 0, 0, 2 * 50 + 2 * 10, 50)
        t.clock.ms += 60_000
        await t.emit("task:new")
        minutes = t.rows("SELECT minute, matches, deliveries FROM rule_stat ORDER BY minute")
        assert minutes == [(16, 2, 4), (17, 1, 2)]


async def test_the_quota_of_a_first_cause_counts_every_target(open_table) -> None:
    async with open_table(limits=Limits(deliveries_per_root=5)) as t:
        await t.rule("task:*", ["log:a", "log:b", "log:c"])
        await t.rule("task:*", "log:d", priority=1)
        await t.emit("task:new")
        await t.emit("task:new")
        await t.emit("task:new")
        assert [len(await t.data(f"log:{name}")) for name in "abcd"] == [2, 1, 1, 1]
        [stopped] = await t.data("routing:loop_stopped")
        assert (stopped["reason"], stopped["limit"]) == ("quota", 5)
        await t.emit("task:new", ctx=fresh_context(OPERATOR))
        assert len(await t.data("log:d")) == 2


async def test_over_the_hop_limit_nobody_hears_it_not_even_a_join(open_table) -> None:
    async with open_table() as t:
        await t.rule("task:*", ["log:a", "log:b"], rule_id="low", priority=1)
        await t.rule("task:*", "log:j", join={"all_of": ["task:new", "task:other"]}, priority=2)
        await t.emit("task:new", ctx=replace(t.ctx, hops=16))
        await t.emit("task:other")
        assert [await t.data(f"log:{name}") for name in "ab"] == [[{}], [{}]]  # of task:other
        assert await t.data("log:j") == []
        [stopped] = await t.data("routing:loop_stopped")
        assert (stopped["reason"], stopped["event"]) == ("hops", "task:new")


async def test_depth_stops_the_target_that_is_too_deep_and_no_other(open_table) -> None:
    async with open_table() as t:
        await t.run("o_1", max_depth=3)
        shallow, deep = await t.agent("shallow", run="o_1"), await t.agent("deep")
        await t.rule("task:*", [f"agent:{shallow}", f"agent:{deep}", "log:seen"])
        await t.emit("task:new", ctx=replace(t.ctx, depth=3))
        assert [len(await t.turns(agent)) for agent in (shallow, deep)] == [0, 1]
        assert len(await t.data("log:seen")) == 1
        [stopped] = await t.data("routing:loop_stopped")
        assert (stopped["reason"], stopped["limit"]) == ("depth", 3)


async def test_each_target_gets_it_on_the_lower_authority_of_event_and_rule(open_table) -> None:
    async with open_table() as t:
        ada = await t.agent("ada")
        await t.rule("task:*", ["log:a", "agent:ada"])
        for actor in (SYSTEM, agent_actor(ada), OPERATOR):
            await t.emit("task:new", ctx=fresh_context(actor))
        assert [each.source for each in await t.events("log:a")] == ["operator", f"agent:{ada}", "operator"]
        by = [who for (who,) in t.rows("SELECT created_by FROM turn ORDER BY n")]
        assert by == ["operator", f"agent:{ada}", "operator"]
        ctx = fresh_context(agent_actor(ada))
        await t.rule("job:*", ["log:b", "log:c"], ctx)
        await t.emit("job:new", ctx=ctx)
        assert [each.source for each in await t.events("log:b", "log:c")] == [f"agent:{ada}"] * 2


class Failing:
    """Gives no turn for prompts that hold a word, and fails as nobody expected."""

    def __init__(self, roster: Any) -> None:
        self._roster = roster

    def deliver_turn(self, tx: Tx, ctx: Context, agent_id: str, prompt: str) -> str:
        turn = str(self._roster.deliver_turn(tx, ctx, agent_id, prompt))
        if "poison" in prompt:
            raise RuntimeError("path /x")
        return turn


async def test_one_event_that_fails_spoils_no_other_and_no_figure(open_table) -> None:
    async with open_table(sink=Failing) as t:
        ada = await t.agent("ada")
        await t.rule("task:*", ["log:seen", "agent:ada"], rule_id="r")
        for n in range(9):
            await t.record("task:new", {"say": "poison" if n == 4 else "hello"})
        await t.pump()
        assert len(await t.turns(ada)) == 8
        assert len(await t.data("log:seen")) == 8  # nothing is left of what failed
        assert t.stats("r")[:3] == (8, 16, 0)
        [letter] = await t.letters()
        assert (letter.rule_id, letter.reason, letter.event.data) == (None, "RuntimeError", {"say": "poison"})
        ids = [each["event_id"] for each in await t.data("routing:delivered") if each["target"] == "log:seen"]
        assert ids == sorted(ids)


async def test_explain_says_whom_a_rule_would_choose(open_table) -> None:
    async with open_table() as t:
        ada, bob = await t.agent("ada"), await t.agent("bob")
        await t.rule("task:*", {"round_robin": ["agent:ada", "agent:bob"]}, rule_id="a_turns")
        await t.rule("task:*", {"least_busy": ["agent:ada", "agent:bob"]}, rule_id="b_least")
        await t.rule("task:*", ["agent:ada", "agent:bob"], rule_id="c_all")
        await t.rule("task:*", "log:x", rate={"count": 1, "per_s": 60}, rule_id="d_rate")

        async def said() -> dict[str, str | None]:
            found = await t.journal.read(lambda tx: t.router.explain(tx, t.ctx, "task:new"))
            return {match.rule.rule_id: match.reason for match in found.fires}

        for _ in range(2):  # looking takes nobody's turn
            now = await said()
            assert now == {"a_turns": f"to agent:{ada}", "b_least": f"to agent:{ada}", "c_all": None, "d_rate": None}
        await t.emit("task:new")
        await t.busy(ada, 3)
        now = await said()
        assert (now["a_turns"], now["b_least"]) == (f"to agent:{bob}", f"to agent:{bob}")
        assert "beyond its rate" in (now["d_rate"] or "")
        await t.end(ada)
        t.drain(bob)
        now = await said()
        assert "none of" in (now["a_turns"] or "")
        assert now["c_all"] == f"agent {ada}, {bob} takes no messages: that would be a dead letter"


async def test_of_a_recorded_event_it_is_told_where_it_went_whatever_the_table_is_now(open_table) -> None:
    async with open_table() as t:
        ada = await t.agent("ada")
        await t.rule("task:*", ["log:a", "agent:ada"], rule_id="fan")
        await t.rule("task:*", "log:b", mapping={"x": "{{data.absent}}"}, rule_id="unfilled")
        event = await t.record("task:new", {"n": 1})
        past = await t.journal.read(lambda tx: t.router.past(tx, t.ctx, event))
        assert (past.pending, past.went, past.changed) == (True, (), ())
        await t.pump()
        await t.delete("unfilled")
        past = await t.journal.read(lambda tx: t.router.past(tx, t.ctx, event))
        assert [(went.outcome, went.rule_id, went.target) for went in past.went] == [
            ("delivered", "fan", "log:a"), ("delivered", "fan", f"agent:{ada}"),
            ("mapping_failed", "unfilled", "log:b"),
        ]  # fmt: skip
        made = await t.events("log:a")
        assert past.went[0].new_event_id == made[0].event_id
        assert past.went[1].turn is not None
        assert past.went[2].dead_letter == (await t.letters())[0].dead_id
        assert (past.pending, past.changed) == (False, ("unfilled",))
        stranger = fresh_context(agent_actor(await t.agent("stranger")))
        assert (await t.journal.read(lambda tx: t.router.past(tx, stranger, event))).hidden == 1  # the rule is gone
