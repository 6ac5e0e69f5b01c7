from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from ksi_mcp.db import Tx
from ksi_mcp.errors import StoreError
from ksi_mcp.orchestrations.model import orchestration_of
from ksi_mcp.permissions import OPERATOR, SYSTEM, Context, agent_actor, fresh_context
from ksi_mcp.routing import collecting
from ksi_mcp.routing.succession import hand_on_rules

BOTH = {"all_of": ["draft:done", "review:done"]}
BY_TASK = {**BOTH, "by": "{{data.task}}"}


async def test_a_join_fires_once_when_everything_has_arrived(open_table) -> None:
    async with open_table() as t:
        rule = await t.rule("*:done", "all:there", join=BOTH)
        first = await t.emit("review:done", {"score": 3})
        assert await t.data("all:there") == []
        t.clock.ms += 100
        second = await t.emit("draft:done", {"text": "x"})
        await t.emit("other:done")
        [made] = await t.events("all:there")
        assert made.data == {
            "key": "",
            "parts": {"draft:done": {"text": "x"}, "review:done": {"score": 3}},
            "events": [second.event_id, first.event_id],
            "partial": False,
        }
        assert made.cause_id == f"event:{second.event_id}"
        [joined] = await t.data("routing:joined")
        assert (joined["rule_id"], joined["events"], joined["partial"]) == (rule.rule_id, made.data["events"], False)
        assert t.stats(rule.rule_id) == (2, 1, 0, 0, 0, 0)
        assert t.rows("SELECT * FROM join_open") == t.rows("SELECT * FROM join_part") == []


async def test_collections_are_kept_apart_by_their_key(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join=BY_TASK)
        for name, task in (
            ("draft", 1),
            ("review", 2),
            ("draft", "2"),
            ("draft", [1]),
            ("review", None),
            ("review", 1),
        ):
            await t.emit(f"{name}:done", {"task": task})
        assert [each["key"] for each in await t.data("all:there")] == ["2", "1"]
        assert [key for (key,) in t.rows("SELECT key FROM join_open ORDER BY key")] == ["[1]", "null"]


async def test_what_comes_twice_waits_for_the_next_collection(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join=BOTH)
        for n in range(3):
            await t.emit("draft:done", {"n": n})
        for n in range(4):
            await t.emit("review:done", {"n": n})
        parts = [each["parts"] for each in await t.data("all:there")]
        assert parts == [{"draft:done": {"n": n}, "review:done": {"n": n}} for n in range(3)]
        await t.emit("draft:done", {"n": 3})
        assert (await t.data("all:there"))[-1]["parts"]["review:done"] == {"n": 3}
        assert t.rows("SELECT * FROM join_part") == []


async def test_at_the_time_limit_it_fires_with_what_is_there(open_table) -> None:
    async with open_table() as t:
        rule = await t.rule("*:done", "all:there", join={**BOTH, "timeout_s": 10})
        await t.emit("draft:done", {"n": 1})
        assert await t.pass_s(9.999) == t.clock.ms + 1
        assert await t.data("all:there") == []
        assert await t.pass_s(0.001) is None
        [made] = await t.data("all:there")
        assert (made["partial"], made["missing"], made["parts"]) == (True, ["review:done"], {"draft:done": {"n": 1}})
        assert t.stats(rule.rule_id) == (1, 1, 0, 0, 0, 0)  # that it waited was no delay
        await t.pass_s(100)
        await t.emit("review:done")
        assert len(await t.data("all:there")) == 1  # it is the first of the next one


async def test_the_time_of_the_next_collection_begins_with_it(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join={**BOTH, "timeout_s": 10})
        await t.emit("draft:done", {"n": 1})
        await t.emit("draft:done", {"n": 2})
        t.clock.ms += 9_000
        await t.emit("review:done", {"n": 1})
        assert await t.pass_s(9) == t.clock.ms + 1_000
        assert len(await t.data("all:there")) == 1
        await t.pass_s(1)
        assert [each["partial"] for each in await t.data("all:there")] == [False, True]


async def test_a_mapping_sees_what_was_collected(open_table) -> None:
    async with open_table() as t:
        mapping = {"task": "{{data.key}}", "score": "{{data.parts['review:done'].score}}", "late": "{{data.partial}}"}
        await t.rule("*:done", "all:there", join={**BY_TASK, "timeout_s": 5}, mapping=mapping)
        await t.emit("draft:done", {"task": 7})
        await t.emit("review:done", {"task": 7, "score": 0.5})
        assert await t.data("all:there") == [{"task": "7", "score": 0.5, "late": False}]
        await t.emit("draft:done", {"task": 8})
        await t.pass_s(5)
        [letter] = await t.letters()  # there is no score
        assert letter.kept.joined
        assert letter.event.data["parts"] == {"draft:done": {"task": 8}}
        assert letter.event.data["missing"] == ["review:done"]


async def test_what_is_joined_has_come_as_far_as_the_farthest_and_has_the_lowest_authority(open_table) -> None:
    async with open_table() as t:
        ada = await t.agent("ada")
        await t.rule("*:done", ["all:there", "agent:ada"], join=BOTH)
        await t.emit("draft:done", ctx=replace(fresh_context(agent_actor(ada)), hops=7, depth=2))
        await t.emit("review:done", ctx=replace(fresh_context(SYSTEM), hops=3, depth=5))
        [made] = await t.events("all:there")
        assert (made.hops, made.depth, made.source) == (8, 5, f"agent:{ada}")
        assert t.rows("SELECT depth, created_by FROM turn") == [(6, f"agent:{ada}")]
        [prompt] = await t.turns(ada)
        assert prompt.startswith("Joined events ")


async def test_a_ring_through_a_join_stops_at_the_hop_limit_and_names_its_chain(open_table) -> None:
    async with open_table() as t:
        await t.rule("round:*", ["round:a", "round:b"], join={"all_of": ["round:a", "round:b"]})
        await t.record("round:a")
        await t.emit("round:b")
        assert len(await t.data("round:a")) == 17
        stopped = await t.data("routing:loop_stopped")
        assert {each["reason"] for each in stopped} == {"hops"}
        assert len(stopped) == 2  # each of the two that came as far
        assert len(stopped[0]["chain"]) == 17


@pytest.mark.parametrize("timeout_s", [None, 10])
async def test_a_restart_in_the_middle_loses_nothing(open_table, timeout_s: float | None) -> None:
    join = {**BY_TASK, **({} if timeout_s is None else {"timeout_s": timeout_s})}
    async with open_table() as t:
        await t.rule("*:done", "all:there", join=join)
        await t.emit("draft:done", {"task": 1})
        await t.emit("draft:done", {"task": 2})
    async with open_table() as t:
        await t.emit("review:done", {"task": 1})
        assert [each["key"] for each in await t.data("all:there")] == ["1"]
        await t.pass_s(10)
        assert [each["partial"] for each in await t.data("all:there")] == (
            [False] if timeout_s is None else [False, True]
        )


async def test_the_events_of_a_collection_may_be_gone_from_the_log(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join=BOTH)
        gone = await t.emit("draft:done", {"n": 1})
        await t.journal.commit(lambda tx: tx.run("events.drop_events", {"ids": f"[{gone.event_id}]", "kept": "[]"}))
        assert t.rows("SELECT * FROM event WHERE event_id = ?", gone.event_id) == []
        await t.emit("review:done")
        assert (await t.data("all:there"))[0]["parts"]["draft:done"] == {"n": 1}


async def test_two_processes_fire_a_join_once(open_table) -> None:
    async with open_table() as one, open_table() as two:
        await one.rule("*:done", "all:there", join={**BY_TASK, "timeout_s": 5})
        for task in range(20):
            await one.record("draft:done", {"task": task})
            if task % 2:
                await two.record("review:done", {"task": task})
        await asyncio.gather(one.pump(), two.pump())
        one.clock.ms += 5_000
        two.clock.ms += 5_000
        await asyncio.gather(one.router.fire_due(), two.router.fire_due(), one.router.fire_due())
        made = await one.data("all:there")
        assert sorted(int(each["key"]) for each in made) == list(range(20))
        assert sum(each["partial"] for each in made) == 10
        assert len(await one.data("routing:joined")) == 20


async def test_an_event_without_the_key_is_an_error_event_and_a_dead_letter(open_table) -> None:
    async with open_table() as t:
        rule = await t.rule("*:done", "all:there", join=BY_TASK)
        await t.emit("draft:done", {"other": 1})
        await t.emit("draft:done", {"task": "x" * 300})
        failed = await t.data("routing:mapping_failed")
        assert [each["missing"] for each in failed] == ["data.task", None]
        assert [letter.rule_id for letter in await t.letters()] == [rule.rule_id] * 2
        assert t.rows("SELECT * FROM join_part") == []


async def test_a_rule_that_is_deleted_takes_what_it_had_collected_along(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join={**BOTH, "timeout_s": 5}, rule_id="r")
        await t.emit("draft:done")
        await t.delete("r")
        assert t.rows("SELECT * FROM join_open") == t.rows("SELECT * FROM join_part") == []
        await t.rule("*:done", "all:there", join={**BOTH, "timeout_s": 5}, rule_id="r")
        await t.emit("review:done")
        await t.pass_s(5)
        assert (await t.data("all:there"))[0]["missing"] == ["draft:done"]


async def test_a_rule_that_has_expired_fires_nothing(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join={**BOTH, "timeout_s": 5}, ttl_s=4)
        await t.emit("draft:done")
        assert await t.pass_s(5) is None
        assert await t.data("all:there") == []
        assert t.rows("SELECT * FROM join_open") == t.rows("SELECT * FROM join_part") == []


async def test_with_other_parts_it_goes_on_with_those_that_it_still_waits_for(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join={"all_of": ["a:done", "b:done", "c:done"]}, rule_id="r")
        await t.emit("c:done", {"n": 1})
        await t.emit("b:done", {"n": 2})
        await t.modify("r", join={"all_of": ["d:done", "c:done"]})
        await t.emit("d:done", {"n": 3})
        [made] = await t.data("all:there")
        assert made["parts"] == {"d:done": {"n": 3}, "c:done": {"n": 1}}
        assert t.rows("SELECT * FROM join_part") == []


async def test_a_change_that_makes_a_collection_complete_lets_it_fire(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join={"all_of": ["a:done", "b:done", "c:done"]}, rule_id="r")
        await t.emit("a:done")
        await t.emit("b:done")
        await t.modify("r", join={"all_of": ["a:done", "b:done"]})
        await t.pass_s(0)
        assert [each["partial"] for each in await t.data("all:there")] == [False]


async def test_another_time_limit_counts_from_the_beginning_of_the_collection(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join=BOTH, rule_id="r")
        await t.emit("draft:done")
        t.clock.ms += 3_000
        await t.modify("r", join={**BOTH, "timeout_s": 5})
        assert await t.pass_s(0) == t.clock.ms + 2_000
        assert await t.data("all:there") == []
        await t.pass_s(2)
        assert len(await t.data("all:there")) == 1


async def test_under_another_key_what_was_collected_is_void(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join=BY_TASK, rule_id="r")
        await t.emit("draft:done", {"task": 1})
        await t.modify("r", join={**BOTH, "by": "{{data.other}}"})
        assert t.rows("SELECT * FROM join_open") == t.rows("SELECT * FROM join_part") == []
        await t.emit("draft:done", {"other": 1})
        await t.modify("r", join=None)
        assert t.rows("SELECT * FROM join_open") == []


async def test_a_disabled_join_waits_and_fires_when_it_is_enabled_again(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join={**BOTH, "timeout_s": 5}, rule_id="r")
        await t.emit("draft:done")
        await t.modify("r", enabled=False)
        assert await t.pass_s(50) is None  # and nobody is woken for it
        assert await t.data("all:there") == []
        await t.modify("r", enabled=True)
        await t.pass_s(0)
        assert [each["partial"] for each in await t.data("all:there")] == [True]


async def test_parts_may_be_agents(open_table) -> None:
    async with open_table() as t:
        ada, bob = await t.agent("ada"), await t.agent("bob")
        await t.rule("say:*", "all:there", join={"all_of": ["agent:ada", f"agent:{bob}"]})
        await t.emit("say:hello", {"n": 1}, fresh_context(agent_actor(ada)))
        await t.emit("say:hello", {"n": 2})  # the operator is neither
        await t.emit("say:done", {"n": 3}, fresh_context(SYSTEM), agent_id=bob)
        [made] = await t.data("all:there")
        assert list(made["parts"].values()) == [{"n": 1}, {"n": 3}]


async def test_what_an_agent_said_counts_for_its_successor(open_table) -> None:
    async with open_table() as t:
        ada, bob, cyd = [await t.agent(name) for name in ("ada", "bob", "cyd")]
        await t.rule("say:*", "all:there", join={"all_of": [f"agent:{ada}", f"agent:{bob}"]})
        await t.emit("say:hello", {"n": 1}, fresh_context(agent_actor(ada)))
        await t.journal.commit(lambda tx: hand_on_rules(tx, t.journal, t.ctx, old=ada, new=cyd))
        await t.emit("say:hello", {"n": 2}, fresh_context(agent_actor(bob)))
        [made] = await t.data("all:there")
        assert made["parts"] == {f"agent:{cyd}": {"n": 1}, f"agent:{bob}": {"n": 2}}


async def test_an_event_of_several_parts_is_kept_for_the_narrowest_that_is_missing(open_table) -> None:
    async with open_table() as t:
        await t.rule("a:*", "all:there", join={"all_of": ["a:*", "a:x"]})
        await t.emit("a:x", {"n": 1})
        await t.emit("a:y", {"n": 2})
        await t.emit("a:x", {"n": 3})
        await t.emit("a:x", {"n": 4})
        assert [each["parts"] for each in await t.data("all:there")] == [
            {"a:*": {"n": 2}, "a:x": {"n": 1}}, {"a:*": {"n": 4}, "a:x": {"n": 3}},
        ]  # fmt: skip


async def test_a_rate_bounds_how_often_a_join_fires(open_table) -> None:
    async with open_table() as t:
        rule = await t.rule("*:done", "all:there", join=BOTH, rate={"count": 1, "per_s": 60})
        for _ in range(3):
            await t.emit("draft:done")
            await t.emit("review:done")
        assert len(await t.data("all:there")) == 1
        assert t.stats(rule.rule_id)[:4] == (6, 1, 0, 2)


async def test_a_delivery_that_fails_keeps_what_was_collected(open_table) -> None:
    async with open_table() as t:
        ada = await t.agent("ada")
        await t.rule("*:done", ["agent:ada", "all:there"], join=BOTH, mapping={"n": "{{data.parts['draft:done'].n}}"})
        await t.end(ada)
        await t.emit("draft:done", {"n": 1})
        await t.emit("review:done", {"n": 2})
        [letter] = await t.letters()
        assert (letter.target, letter.data) == (f"agent:{ada}", {"n": 1})
        assert letter.event.data["parts"] == {"draft:done": {"n": 1}, "review:done": {"n": 2}}
        assert await t.data("all:there") == [{"n": 1}]


class Poisoned:
    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    def deliver_turn(self, tx: Tx, ctx: Context, agent_id: str, prompt: str) -> str:
        raise self.failure


async def test_a_join_that_cannot_be_fired_in_time_is_a_dead_letter_and_holds_up_no_other(open_table) -> None:
    async with open_table(sink=lambda _roster: Poisoned(RuntimeError("path /x"))) as t:
        await t.agent("ada")
        await t.rule("*:done", "agent:ada", join={**BOTH, "timeout_s": 5}, rule_id="a")
        await t.rule("*:done", "all:there", join={**BOTH, "timeout_s": 6}, rule_id="b")
        await t.emit("draft:done", {"n": 1})
        assert await t.pass_s(6) is None
        [letter] = await t.letters()
        assert (letter.rule_id, letter.reason) == ("a", "RuntimeError")
        assert letter.event.data["parts"] == {"draft:done": {"n": 1}}
        assert len(await t.data("all:there")) == 1


async def test_a_lost_store_leaves_the_join_waiting(open_table) -> None:
    async with open_table(sink=lambda _roster: Poisoned(StoreError("disk full"))) as t:
        await t.agent("ada")
        await t.rule("*:done", "agent:ada", join={**BOTH, "timeout_s": 5})
        await t.emit("draft:done")
        with pytest.raises(StoreError):
            await t.pass_s(5)
        assert len(t.rows("SELECT * FROM join_open")) == len(t.rows("SELECT * FROM join_part")) == 1


async def test_nothing_is_fired_in_safe_mode(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join={**BOTH, "timeout_s": 5})
        await t.emit("draft:done")
        await t.journal.commit(lambda tx: t.router.set_paused(tx, paused=True))
        assert await t.pass_s(5) is None
        assert await t.data("all:there") == []
        await t.journal.commit(lambda tx: t.router.set_paused(tx, paused=False))
        await t.pass_s(0)
        assert len(await t.data("all:there")) == 1


async def test_large_parts_are_left_out_of_the_event_and_named(open_table) -> None:
    async with open_table() as t:
        ada = await t.agent("ada")
        parts = [f"part:n{n}" for n in range(20)]
        await t.rule("part:*", ["all:there", "agent:ada"], join={"all_of": parts}, rule_id="whole")
        picked = {"first": "{{data.parts['part:n0'].n}}", "last": "{{data.parts['part:n19'].n}}"}
        await t.rule("part:*", "all:picked", join={"all_of": parts}, mapping=picked)
        await t.rule("part:*", "all:of_it", join={"all_of": parts}, mapping={"all": "{{$}}"})
        sent = [await t.emit(name, {"n": n, "text": "é" * (30_000 if n else 10)}) for n, name in enumerate(parts)]
        [made] = await t.data("all:there")
        assert made["events"] == [event.event_id for event in sent]
        assert made["parts"]["part:n0"] == {"n": 0, "text": "é" * 10}
        assert len(made["cut"]) == 18  # one of the large ones has room
        [kept] = [name for name in parts[1:] if name not in made["cut"]]
        assert made["parts"][kept]["text"] == "é" * 30_000
        for name in made["cut"]:
            left = made["parts"][name]
            assert (left["cut"], left["event_id"]) == (True, sent[parts.index(name)].event_id)
            assert left["bytes"] > 60_000
        assert await t.data("all:picked") == [{"first": 0, "last": 19}]  # a mapping sees all of it
        [letter] = await t.letters()
        assert len(letter.event.data["parts"]["part:n19"]["text"]) == 30_000
        [prompt] = await t.turns(ada)
        assert len(prompt.encode()) < 17_000


async def test_open_collections_and_repeats_are_bounded(open_table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MAX_OPEN", 5)
    monkeypatch.setattr(collecting, "MAX_REPEATS", 3)
    async with open_table() as t:
        rule = await t.rule("*:done", "all:there", join=BY_TASK)
        for task in range(7):
            await t.emit("draft:done", {"task": task})
        for _ in range(4):
            await t.emit("draft:done", {"task": 0})
        letters = await t.letters()
        assert [letter.event.data["task"] for letter in letters] == [5, 6, 0, 0]
        assert "5 collections" in letters[0].reason
        assert "3 events wait" in letters[2].reason
        assert t.stats(rule.rule_id)[:3] == (11, 0, 4)
        await t.emit("review:done", {"task": 3})  # there is room again
        await t.emit("draft:done", {"task": 5})
        assert len(t.rows("SELECT * FROM join_open")) == 5


async def test_in_a_suspended_run_the_time_of_a_join_stands_still(open_table) -> None:
    async with open_table() as t:
        await t.run("o_1")

        async def hold(*, on: bool) -> None:
            def work(tx: Tx) -> None:
                run = orchestration_of(tx.one("orchestrations.one", {"orchestration_id": "o_1"}))
                if on:
                    t.suspension.suspend(tx, t.ctx, run, mode="drain")
                else:
                    t.suspension.resume(tx, t.ctx, run)

            await t.journal.commit(work)

        inside = replace(t.ctx, orchestration_id="o_1")
        join = {**BY_TASK, "timeout_s": 10}
        await t.rule("*:done", "all:there", join=join, scope="orchestration:o_1", rule_id="timed")
        await t.rule("*:done", "all:other", join=BY_TASK, scope="orchestration:o_1")
        await t.emit("draft:done", {"task": 1}, inside)
        t.clock.ms += 4_000
        await hold(on=True)
        assert await t.pass_s(1_000) is None
        await t.emit("draft:done", {"task": 2}, inside)
        assert await t.pass_s(1_000) is None
        await hold(on=False)
        assert await t.pass_s(0) == t.clock.ms + 6_000
        await t.pass_s(6)
        assert [each["key"] for each in await t.data("all:there")] == ["1"]
        await t.pass_s(4)
        assert [each["key"] for each in await t.data("all:there")] == ["1", "2"]
        await t.emit("review:done", {"task": 1}, inside)
        assert [each["key"] for each in await t.data("all:other")] == ["1"]


async def test_explain_says_what_a_join_still_waits_for(open_table) -> None:
    async with open_table() as t:
        parts = ["a:done", "b:done", "c:done"]
        await t.rule("*:done", "all:there", join={"all_of": parts, "by": "{{data.k}}"}, rule_id="r")

        async def said(name: str, k: str = "x") -> str:
            found = await t.journal.read(lambda tx: t.router.explain(tx, t.ctx, name, {"k": k}))
            [match] = found.fires
            assert match.outcome == "collects"
            return str(match.reason)

        assert await said("a:done") == "it is a:done in the collection of key 'x', which then waits for b:done, c:done"
        first = await t.emit("a:done", {"k": "x"})
        assert "there already" in await said("a:done")
        past = await t.journal.read(lambda tx: t.router.past(tx, t.ctx, first))
        assert [(went.outcome, went.key, went.reason) for went in past.went] == [
            ("waits", "x", "its join waits for b:done, c:done")
        ]
        await t.emit("c:done", {"k": "x"})
        assert (await said("b:done")).endswith("which then is complete")
        last = await t.emit("b:done", {"k": "x"})
        past = await t.journal.read(lambda tx: t.router.past(tx, t.ctx, first))
        [went] = past.went
        assert (went.outcome, went.rule_id, last.event_id in went.events) == ("joined", "r", True)
        past = await t.journal.read(lambda tx: t.router.past(tx, t.ctx, last))
        assert [went.outcome for went in past.went] == ["joined", "delivered"]


async def test_a_join_of_a_hundred_keys_is_fired_batch_by_batch(open_table) -> None:
    async with open_table() as t:
        await t.rule("*:done", "all:there", join={**BY_TASK, "timeout_s": 5})

        def many(tx: Tx) -> None:
            for task in range(130):
                t.journal.record(tx, "draft:done", {"task": task}, fresh_context(OPERATOR))

        await t.journal.commit(many)
        await t.pump()
        assert await t.pass_s(5) == t.clock.ms  # the rest is due now
        await t.pass_s(0)
        assert len(await t.data("all:there")) == 130
