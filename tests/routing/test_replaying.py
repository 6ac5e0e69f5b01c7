from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp.agents.model import AgentSettings, AgentSpec
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Limits as Budget
from ksi_mcp.clock import SystemClock
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event
from ksi_mcp.permissions import OPERATOR, SYSTEM, Context, agent_actor, fresh_context
from ksi_mcp.providers.script import parse_script
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.changing import Change, Removal, Update
from ksi_mcp.routing.recording import UNROUTED, Wanted
from ksi_mcp.routing.replaying import Replayed, ReplayWants, replay
from ksi_mcp.routing.router import Limits, Router
from ksi_mcp.routing.rules import Rule, RuleDraft


class Clock(SystemClock):
    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


@dataclass
class House:
    journal: Journal
    roster: Roster
    router: Router
    clock: Clock
    ctx: Context = field(default_factory=lambda: fresh_context(OPERATOR))

    async def agent(self, name: str) -> str:
        spec = AgentSpec(
            name=name, system="You help.", provider="scripted", model="m", capabilities=frozenset({"base"}),
            settings=AgentSettings(),
        )  # fmt: skip
        return (await self.journal.commit(lambda tx: self.roster.spawn(tx, self.ctx, spec))).agent_id

    async def rule(self, pattern: str, target: Any, **fields: Any) -> Rule:
        draft = RuleDraft(source_pattern=pattern, target=target, **fields)
        return await self.journal.commit(lambda tx: self.router.add_rule(tx, self.ctx, draft))

    async def drop(self, rule_id: str) -> None:
        await self.journal.commit(lambda tx: self.router.delete_rule(tx, self.ctx, rule_id))

    async def emit(self, name: str, data: dict[str, Any] | None = None, ctx: Context | None = None) -> int:
        context = ctx or fresh_context(OPERATOR)
        return int((await self.journal.commit(lambda tx: self.journal.record(tx, name, data or {}, context))).event_id)

    async def pump(self) -> None:
        while await self.router.pump_once():
            pass

    async def said(self, name: str, data: dict[str, Any] | None = None) -> int:
        """Emit and deliver, a second later."""
        self.clock.ms += 1_000
        await self.router.fire_due()
        event_id = await self.emit(name, data)
        await self.pump()
        return event_id

    async def turn_ends(self, turn: str, agent: str, text: str) -> int:
        """As the worker reports it."""
        self.clock.ms += 1_000
        row = await self.journal.read(lambda tx: tx.one("queues.one", {"turn_id": turn}))
        assert row is not None
        ctx = Context(actor=SYSTEM, root_id=row["root_id"], cause_id=f"turn:{turn}", depth=row["depth"])
        data = {"turn": turn, "agent": agent, "agent_name": "x", "status": "done", "text": text}
        made = await self.journal.commit(
            lambda tx: self.journal.record(tx, "completion:result", data, ctx, agent_id=agent)
        )
        await self.pump()
        return int(made.event_id)

    async def events(self, name: str) -> list[Event]:
        rows = await self.journal.read(lambda tx: tx.all("events.after", {"after_id": 0, "limit": 10_000}))
        found = [row for row in rows if row["name"] == name]
        return [
            Event(**{**{key: row[key] for key in row.keys()}, "data": json.loads(row["data"])})  # noqa: SIM118
            for row in found
        ]

    async def replay(
        self, from_event: int = 1, to_event: int = 10**9, *changes: Change, ctx: Context | None = None, **wants: Any
    ) -> Replayed:
        context = ctx or self.ctx
        asked = ReplayWants(events=Wanted(from_event=from_event, to_event=to_event), changes=changes, **wants)
        return await replay(self.journal, self.clock, context, asked, is_command=lambda name: name == "agent:spawn")


@asynccontextmanager
async def house(path: Path | str = ":memory:") -> AsyncIterator[House]:
    clock = Clock()
    db = await open_sqlite(path, clock)
    journal = Journal(db, clock)
    try:
        ledger = Ledger(journal)
        await journal.commit(lambda tx: ledger.open(tx, "global", parent_id=None, limits=Budget()))
        roster = Roster(journal, SessionQueues(), ledger)
        yield House(journal=journal, roster=roster, router=Router(journal, roster), clock=clock)
    finally:
        await journal.close()
        await db.close()


def draft(pattern: str, target: Any, **fields: Any) -> RuleDraft:
    return RuleDraft(source_pattern=pattern, target=target, **fields)


def shown(found: Replayed) -> list[tuple[str, int, str, str]]:
    return [(each.kind, each.event_id, each.rule_id, each.target) for each in found.outcome.differences]


def adds_up(found: Replayed) -> None:
    census, kinds = found.outcome.census, Counter(each.kind for each in found.outcome.differences)
    assert all(census[kind] == kinds[kind] for kind in ("added", "removed", "changed", "failed"))
    if not found.missing:
        assert census["before"] == sum(census[name] for name in ("same", "changed", "removed", "cut_off_deliveries"))
    assert census["after"] == sum(census[name] for name in ("same", "changed", "added"))


# ------------------------------------------------------------------------------------- the same


async def test_the_table_that_delivered_makes_no_difference_whatever_its_rules_are() -> None:
    async with house() as h:
        one, two, three = [await h.agent(name) for name in ("one", "two", "three")]
        await h.rule("task:new", {"round_robin": [f"agent:{one}", f"agent:{two}", f"agent:{three}"]}, rule_id="turns")
        await h.rule("task:new", {"least_busy": [f"agent:{one}", f"agent:{two}"]}, rule_id="busy")
        await h.rule("task:new", {"first_idle": [f"agent:{one}", f"agent:{two}"]}, rule_id="idle")
        await h.rule("task:*", "log:{}".format("seen"), rule_id="log", mapping={"id": "{{data.id}}", "at": "{{now}}"})
        await h.rule("task:*", "log:few", rule_id="few", rate={"count": 2, "per_s": 5})
        await h.rule("task:**", "log:none", rule_id="bad", mapping={"x": "{{data.nothing}}"})
        await h.rule("task:new", "log:big", rule_id="big", condition="data.id > 3", exclusive=True, priority=200)
        both = {"all_of": ["task:new", "task:done"], "by": "{{data.id}}", "timeout_s": 3}
        await h.rule("task:*", "task:joined", rule_id="both", join=both)
        began = await h.said("warm:up")
        for number in range(12):
            await h.said("task:new", {"id": number})
            if number % 3:
                await h.said("task:done", {"id": number})
        for _ in range(6):
            await h.said("quiet:now")
        found = await h.replay(began)
        middle = [await h.replay(first) for first in range(began, began + 120, 7)]
    assert shown(found) == []
    census = found.outcome.census
    assert census["same"] == census["before"] == census["after"] > 40
    assert census["events"] > 30
    assert found.missing == ()
    for each in (found, *middle):
        adds_up(each)
    assert [shown(each) for each in middle] == [[] for _ in middle]


async def test_what_failed_when_it_was_recorded_fails_again() -> None:
    async with house() as h:
        worker = await h.agent("worker")
        await h.rule("task:new", f"agent:{worker}", rule_id="work", scope="global")
        agent = await h.journal.read(lambda tx: h.roster.get(tx, worker))
        await h.journal.commit(lambda tx: h.roster.end(tx, h.ctx, agent, life="terminated", reason="over"))
        began = await h.said("task:new")
        found = await h.replay(began)
    assert shown(found) == []
    assert found.outcome.census["before"] == 0


async def test_an_agent_that_has_ended_since_takes_part_until_its_recorded_end() -> None:
    async with house() as h:
        worker = await h.agent("worker")
        await h.rule("task:new", f"agent:{worker}", rule_id="work")
        began = await h.said("task:new")
        h.clock.ms += 1_000
        agent = await h.journal.read(lambda tx: h.roster.get(tx, worker))
        await h.journal.commit(lambda tx: h.roster.end(tx, h.ctx, agent, life="terminated", reason="over"))
        after = await h.said("task:new")
        found = await h.replay(began)
    # Ended agents take their rules along in a real house; here only the rule's target has ended.
    assert ("failed", after, "work", f"agent:{worker}") not in shown(found)
    assert found.outcome.census["same"] == 1


# ------------------------------------------------------------------------- added, removed, changed


async def test_a_proposed_rule_adds_exactly_its_deliveries() -> None:
    async with house() as h:
        await h.rule("task:new", "log:seen", rule_id="log")
        ids = [await h.said("task:new", {"score": score}) for score in (1, 9, 5)]
        proposed = draft("task:new", "alarm:raised", rule_id="alarm", condition="data.score > 4",
                         mapping={"worst": "{{data.score}}"})  # fmt: skip
        found = await h.replay(ids[0], 10**9, proposed)
    adds_up(found)
    assert shown(found) == [("added", event_id, "alarm", "alarm:raised") for event_id in ids[1:]]
    assert [each.payload for each in found.outcome.differences] == [{"worst": 9}, {"worst": 5}]
    assert [each.made for each in found.outcome.differences] == ["event:-1", "event:-2"]
    assert found.outcome.census["followed_events"] == 2


async def test_new_events_are_judged_in_their_turn_and_stop_at_the_hop_limit() -> None:
    async with house() as h:
        first = await h.said("a:begin")
        circle = [draft("a:begin", "b:go", rule_id="in"), draft("b:go", "c:go", rule_id="on"),
                  draft("c:go", "b:go", rule_id="back")]  # fmt: skip
        found = await h.replay(first, first, *circle)
    assert found.outcome.census["added"] == 16
    assert {each.event_id for each in found.outcome.differences} == {first, *range(-15, 0)}


async def test_a_removed_rule_takes_along_what_it_caused() -> None:
    async with house() as h:
        worker = await h.agent("worker")
        await h.rule("task:new", "task:checked", rule_id="check")
        await h.rule("task:checked", f"agent:{worker}", rule_id="work")
        await h.rule("completion:result", "report:made", rule_id="report", source_agent=worker)
        first = await h.said("task:new")
        (delivered,) = [each for each in await h.events("routing:delivered") if "turn" in each.data]
        await h.turn_ends(delivered.data["turn"], worker, "done")
        found = await h.replay(first, 10**9, Removal(rule_id="check"))
    adds_up(found)
    (gone,) = found.outcome.differences
    assert (gone.kind, gone.event_id, gone.target) == ("removed", first, "task:checked")
    assert gone.reason == "the rule is not in this table"
    census = found.outcome.census
    assert (census["before"], census["after"], census["cut_off_deliveries"]) == (3, 0, 2)
    # task:checked, its two reports and the queued turn, the answer, its report, and what the report became
    assert gone.cut_off == census["cut_off_events"]
    assert census["events"] == 1


async def test_an_other_payload_is_a_change_and_cuts_off_what_the_old_one_caused() -> None:
    async with house() as h:
        await h.rule("task:new", "task:sorted", rule_id="sort", mapping={"kind": "easy"})
        await h.rule("task:sorted", "easy:task", rule_id="easy", condition="data.kind == 'easy'")
        await h.rule("task:sorted", "hard:task", rule_id="hard", condition="data.kind == 'hard'")
        first = await h.said("task:new")
        found = await h.replay(first, 10**9, Update(rule_id="sort", updates={"mapping": {"kind": "hard"}}))
    adds_up(found)
    assert shown(found) == [("changed", first, "sort", "task:sorted"), ("added", -1, "hard", "hard:task")]
    assert found.outcome.census["cut_off_deliveries"] == 1


async def test_the_reason_says_why_a_delivery_is_gone() -> None:
    async with house() as h:
        one, two = await h.agent("one"), await h.agent("two")
        for rule_id in ("a", "b", "c", "d", "e", "f", "g"):
            await h.rule("task:new", f"seen:by_{rule_id}", rule_id=rule_id)
        await h.rule("task:new", f"agent:{one}", rule_id="h")
        first = await h.said("task:new", {"n": 1})
        found = await h.replay(
            first,
            10**9,
            Update(rule_id="a", updates={"condition": "data.n > 1"}),
            Update(rule_id="b", updates={"mapping": {"x": "{{data.m}}"}}),
            Update(rule_id="c", updates={"source_pattern": "job:new"}),
            Update(rule_id="d", updates={"enabled": False}),
            Update(rule_id="e", updates={"target": "seen:elsewhere"}),
            Update(rule_id="f", updates={"condition": "data.zzz > 1"}),
            Update(rule_id="h", updates={"target": f"agent:{two}", "exclusive": True, "priority": 50}),
            Update(rule_id="g", updates={"priority": 10}),
        )
    adds_up(found)
    reasons = {each.rule_id: each.reason for each in found.outcome.differences if each.kind == "removed"}
    assert reasons["a"] == "its condition does not hold"
    assert "data.m" in str(reasons["b"])
    assert reasons["c"] == "its pattern does not hear the event"
    assert reasons["d"] == "the rule is disabled"
    assert reasons["e"] == "it goes to seen:elsewhere"
    assert "zzz" in str(reasons["f"])
    assert "exclusive" in str(reasons["g"])
    assert reasons["h"] == f"it goes to agent:{two}"
    assert found.outcome.census["failed"] == 0  # what was made and fails now is a removal, with the reason


async def test_what_failed_may_be_mended() -> None:
    async with house() as h:
        await h.rule("task:new", "log:seen", rule_id="log", mapping={"x": "{{data.m}}"})
        await h.rule("task:new", "log:more", rule_id="more", condition="data.m > 1")
        first = await h.said("task:new", {"n": 1})
        mended = await h.replay(
            first,
            10**9,
            Update(rule_id="log", updates={"mapping": {"x": "{{data.n}}"}}),
            Update(rule_id="more", updates={"condition": "data.n == 1"}),
        )
        worse = await h.replay(first, 10**9, draft("task:new", "log:x", rule_id="bad", mapping={"x": "{{data.o}}"}))
    assert [each[0] for each in shown(mended)] == ["added", "added"]
    assert shown(worse) == [("failed", first, "bad", "log:x")]
    assert "data.o" in str(worse.outcome.differences[0].reason)


# ---------------------------------------------------------------------- what rules remember


async def test_a_new_agent_in_a_round_robin_changes_whose_turn_it_is() -> None:
    async with house() as h:
        one, two, three = [f"agent:{await h.agent(name)}" for name in ("one", "two", "three")]
        await h.rule("task:new", {"round_robin": [one, two]}, rule_id="turns")
        await h.said("task:new")
        ids = [await h.said("task:new") for _ in range(4)]  # two, one, two, one
        more = Update(rule_id="turns", updates={"target": {"round_robin": [one, two, three]}})
        found = await h.replay(ids[0], 10**9, more)
    adds_up(found)
    # two, three, one, two: it begins with whom the log shows to be the first
    assert [(kind, event_id, target) for kind, event_id, _, target in shown(found)] == [
        ("added", ids[1], three), ("removed", ids[1], one), ("added", ids[2], one), ("removed", ids[2], two),
        ("added", ids[3], two), ("removed", ids[3], one),
    ]  # fmt: skip


async def test_what_is_chosen_by_load_is_chosen_by_the_turns_that_would_wait() -> None:
    async with house() as h:
        one, two = [f"agent:{await h.agent(name)}" for name in ("one", "two")]
        await h.rule("task:new", one, rule_id="work")
        ids = [await h.said("task:new") for _ in range(4)]
        balanced = Update(rule_id="work", updates={"target": {"least_busy": [one, two]}})
        found = await h.replay(ids[0], 10**9, balanced)
        answered = await h.replay(ids[0], 10**9, balanced, script=parse_script({"default": {"reply": "ok"}}))
    adds_up(found)
    assert [target for kind, _, _, target in shown(found) if kind == "added"] == [two, two]
    assert found.outcome.census["unanswered_turns"] == 2
    # Who answers at once is never busy; who is recorded never ended.
    assert [target for kind, _, _, target in shown(answered) if kind == "added"] == [two, two, two]


async def test_a_rate_goes_by_the_recorded_times() -> None:
    async with house() as h:
        await h.rule("task:new", "log:seen", rule_id="log")
        ids = [await h.said("task:new") for _ in range(6)]  # one a second
        found = await h.replay(ids[0], 10**9, Update(rule_id="log", updates={"rate": {"count": 2, "per_s": 4}}))
    adds_up(found)
    assert shown(found) == [("removed", event_id, "log", "log:seen") for event_id in ids[2:4]]
    assert {each.reason for each in found.outcome.differences} == {"it is beyond its rate"}


async def test_a_proposed_join_collects_and_fires_in_part_when_its_time_is_up_by_the_recording() -> None:
    async with house() as h:
        first = await h.said("part:a", {"task": 1, "v": "a1"})
        last = await h.said("part:b", {"task": 1, "v": "b1"})
        lone = await h.said("part:a", {"task": 2, "v": "a2"})
        for _ in range(5):
            await h.said("quiet:now")
        open_to_the_end = await h.said("part:a", {"task": 3})
        join = {"all_of": ["part:a", "part:b"], "by": "{{data.task}}", "timeout_s": 3}
        found = await h.replay(first, 10**9, draft("part:*", "both:there", rule_id="both", join=join))
    adds_up(found)
    assert shown(found) == [("added", last, "both", "both:there"), ("added", lone, "both", "both:there")]
    whole, partial = [each.payload for each in found.outcome.differences]
    assert (whole["parts"]["part:a"]["v"], whole["parts"]["part:b"]["v"]) == ("a1", "b1")
    assert (partial["partial"], partial["missing"]) == (True, ["part:b"])
    assert found.outcome.census["joins_waiting"] == 1
    assert open_to_the_end not in {each.event_id for each in found.outcome.differences}


async def test_a_recorded_join_that_loses_a_part_does_not_fire() -> None:
    async with house() as h:
        await h.rule("task:new", "part:a", rule_id="first")
        await h.rule("part:*", "both:there", rule_id="both", join={"all_of": ["part:a", "part:b"]})
        began = await h.said("task:new")
        last = await h.said("part:b")
        found = await h.replay(began, 10**9, Removal(rule_id="first"))
    adds_up(found)
    assert shown(found) == [("removed", began, "first", "part:a"), ("removed", last, "both", "both:there")]


# ------------------------------------------------------------------------------------- scripts


async def test_new_turns_are_answered_by_the_script_and_their_results_are_judged() -> None:
    async with house() as h:
        worker = await h.agent("worker")
        await h.rule("completion:result", "report:made", rule_id="report", source_agent=worker,
                     mapping={"said": "{{data.text}}"})  # fmt: skip
        first = await h.said("task:new", {"n": 7})
        script = parse_script(
            {
                "replies": [
                    {"match": {"agent": "worker", "turn": 1, "round": 1}, "tool_calls": [{"name": "agent_list"}]},
                    {"match": {"prompt": r'/"n": (\d+)/'}, "reply": "n is {{groups[1]}}"},
                ]
            }
        )
        work = draft("task:new", f"agent:{worker}", rule_id="work")
        silent = await h.replay(first, 10**9, work)
        found = await h.replay(first, 10**9, work, script=script)
    assert shown(silent) == [("added", first, "work", f"agent:{worker}")]
    assert silent.notes == ("simulated agents do not answer without a script: 1 turns stay open",)
    adds_up(found)
    assert shown(found)[1] == ("added", -2, "report", "report:made")
    assert found.outcome.differences[1].payload == {"said": "n is 7"}
    assert found.notes == ("simulated agents called 1 tools; none of them was run",)


async def test_a_script_that_fails_ends_the_turn_as_failed() -> None:
    async with house() as h:
        worker = await h.agent("worker")
        first = await h.said("task:new")
        work = draft("task:new", f"agent:{worker}", rule_id="work")
        alarm = draft("completion:failed", "alarm:raised", rule_id="alarm", mapping={"e": "{{data.error}}"})
        script = parse_script({"default": {"fail": {"kind": "overload", "message": "too much"}}})
        found = await h.replay(first, first, work, alarm, script=script)
    assert found.outcome.differences[-1].payload == {"e": "too much"}


# ------------------------------------------------------------------------------------ versions


async def test_an_earlier_version_of_the_table_is_what_delivered_then() -> None:
    async with house() as h:
        made = await h.rule("task:new", "log:seen", rule_id="log")
        first = await h.said("task:new")
        await h.drop("log")
        now = await h.replay(first)
        then = await h.replay(first, at_version=made.version)
        with pytest.raises(Invalid, match="no version 99"):
            await h.replay(first, at_version=99)
    assert shown(now) == [("removed", first, "log", "log:seen")]
    assert shown(then) == []
    assert (now.table_version, then.table_version) == (2, 1)


# ---------------------------------------------------------------------------- nothing is written


async def test_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ksi.db"
    async with house(path) as h:
        worker = await h.agent("worker")
        await h.rule("task:new", {"round_robin": [f"agent:{worker}"]}, rule_id="work", rate={"count": 1, "per_s": 9})
        first = await h.said("task:new")
        await h.said("task:new")
        before = _dump(path)
        join = {"all_of": ["task:new", "task:old"]}
        await h.replay(
            first,
            10**9,
            Update(rule_id="work", updates={"rate": None}),
            draft("task:**", "a:b", rule_id="joined", join=join),
            draft("task:new", "nowhere:x", mapping={"x": "{{data.x}}"}),
            draft("task:new", "log:x", mapping={"x": 1}),
            script=parse_script({"default": {"reply": "ok"}}),
        )
        assert _dump(path) == before


def _dump(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        text = "\n".join(connection.iterdump())
    connection.close()
    return hashlib.sha256(text.encode()).hexdigest()


# -------------------------------------------------------------------------------- determinism

_PATTERNS = st.sampled_from(["a:x", "a:*", "b:*", "**", "c:**", "completion:result"])
_TARGETS = st.sampled_from(
    ["b:x", "c:x", "c:y:z", ["b:x", "agent:one"], "agent:two", {"round_robin": ["b:y", "agent:one", "agent:two"]},
     {"least_busy": ["agent:one", "agent:two"]}, {"first_idle": ["agent:two", "agent:one"]}]
)  # fmt: skip
_RULES = st.fixed_dictionaries(
    {"source_pattern": _PATTERNS, "target": _TARGETS},
    optional={
        "condition": st.sampled_from(["data.n > 1", "data.n == 2 or data.n == 0", "data.m == 1"]),
        "mapping": st.sampled_from([{"n": "{{data.n}}"}, {"n": 2, "who": "{{agent}}"}]),
        "priority": st.integers(0, 3),
        "rate": st.sampled_from([{"count": 1, "per_s": 3}, {"count": 2, "per_s": 2}]),
        "join": st.sampled_from([{"all_of": ["*:x", "b:*"], "timeout_s": 2}, {"all_of": ["a:*", "agent:one"]}]),
        "exclusive": st.booleans(),
    },
).filter(lambda rule: not (rule.get("join") and rule.get("exclusive")))
_STEPS = st.lists(st.tuples(st.sampled_from(["a:x", "a:y", "b:x", "c:x"]), st.integers(0, 3)), min_size=1, max_size=8)


@settings(max_examples=15)
@given(rules=st.lists(_RULES, max_size=5), proposed=st.lists(_RULES, max_size=3), steps=_STEPS, gone=st.integers(0, 9))
async def test_the_same_replay_has_the_same_bytes_and_its_numbers_add_up(
    rules: list[dict[str, Any]], proposed: list[dict[str, Any]], steps: list[tuple[str, int]], gone: int
) -> None:
    async with house() as h:
        await h.agent("one")
        await h.agent("two")
        kept = []
        for number, each in enumerate(rules):
            try:
                kept.append(
                    (
                        await h.rule(**{"pattern": each["source_pattern"], **_without(each), "rule_id": f"r{number}"})
                    ).rule_id
                )
            except KsiError:  # a circle, or two that are exclusive
                continue
        began = await h.said("quiet:now")
        for name, number in steps:
            await h.said(name, {"n": number})
        changes: list[Change] = [RuleDraft(**{**each, "rule_id": f"p{n}"}) for n, each in enumerate(proposed)]
        if gone < len(kept):
            changes.append(Removal(rule_id=kept[gone]))
        script = parse_script({"default": {"reply": "{{agent}} {{turn}}"}})
        same = await h.replay(began)
        narrow = Limits(max_hops=5, deliveries_per_root=40)
        first = await h.replay(began, 10**9, *changes, script=script, limits=narrow)
        again = await h.replay(began, 10**9, *changes, script=script, limits=narrow)
        part = await h.replay(began + 1, 10**9)
    assert shown(same) == []
    assert shown(part) == []
    assert first == again
    for each in (same, first, part):
        adds_up(each)


def _without(rule: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rule.items() if name != "source_pattern"}


@settings(max_examples=15)
@given(rules=st.lists(_RULES, max_size=4), proposed=st.lists(_RULES, max_size=3), steps=_STEPS)
async def test_what_a_replay_says_is_what_happens(
    rules: list[dict[str, Any]], proposed: list[dict[str, Any]], steps: list[tuple[str, int]]
) -> None:
    """The same stimuli, once with a table and its replay with more rules, once with those rules for real."""

    async def begun(h: House, drafts: list[dict[str, Any]]) -> tuple[int, list[str]]:
        await h.agent("one")
        await h.agent("two")
        kept = []
        for each in drafts:
            try:
                await h.rule(**{"pattern": each["source_pattern"], **_without(each)})
            except KsiError:  # a circle, or two that are exclusive
                continue
            kept.append(each["rule_id"])
        began = await h.said("quiet:now")
        for name, number in steps:
            await h.said(name, {"n": number})
        return began, kept

    old = [{**each, "rule_id": f"r{number}"} for number, each in enumerate(rules)]
    new = [{**each, "rule_id": f"s{number}"} for number, each in enumerate(proposed)]
    async with house() as real:
        began, kept = await begun(real, old + new)
        happened = Counter(
            (each.data["rule_id"], each.data["target"].partition("a_")[0])
            for each in await real.events("routing:delivered")
        )
        end = (await real.replay(began)).outcome.census["before"]
    if not all(each["rule_id"] in kept for each in old):
        return
    async with house() as h:
        began, kept_before = await begun(h, old)
        changes = [RuleDraft(**each) for each in new if each["rule_id"] in kept]
        found = await h.replay(began, 10**9, *changes)
    assert kept_before == [each["rule_id"] for each in old]
    assert found.outcome.census["after"] == end, (happened, shown(found))


_ELSEWHERE = """
import asyncio, json, sys
from ksi_mcp.clock import SystemClock
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.routing.changing import Removal
from ksi_mcp.routing.recording import Wanted
from ksi_mcp.routing.replaying import ReplayWants, replay
from ksi_mcp.routing.rules import RuleDraft

async def main():
    db = await open_sqlite(sys.argv[1], SystemClock())
    journal = Journal(db, SystemClock())
    changes = [RuleDraft(**each) for each in json.loads(sys.argv[2])] + [Removal(rule_id="log")]
    wants = ReplayWants(events=Wanted(from_event=1, to_event=10**9), changes=changes)
    found = await replay(journal, SystemClock(), fresh_context(OPERATOR), wants, is_command=lambda name: False)
    await journal.close()
    await db.close()
    print(found)

asyncio.run(main())
"""


async def test_another_process_finds_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ksi.db"
    async with house(path) as h:
        one, two = [f"agent:{await h.agent(name)}" for name in ("one", "two")]
        drafts: list[dict[str, Any]] = [
            {"source_pattern": "task:**", "target": ["log:a", "log:b"], "mapping": {"n": "{{data.n}}"}},
            {"source_pattern": "log:*", "target": {"least_busy": [two, one]}},
        ]
        await h.rule("task:new", "log:seen", rule_id="log")
        for number in range(5):
            await h.said("task:new", {"n": number})
        await h.said("task:old", {"m": 1})
        here = await h.replay(1, 10**9, *(RuleDraft(**each) for each in drafts), Removal(rule_id="log"))
    found = [
        subprocess.run(  # noqa: ASYNC221
            [sys.executable, "-c", _ELSEWHERE, str(path), json.dumps(drafts)],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found == [f"{here}\n"] * 2
    assert len(here.outcome.differences) > 10


# ------------------------------------------------------------------------- ranges and arguments


async def test_a_range_that_is_none_or_is_not_whole_is_said() -> None:
    async with house() as h:
        first = await h.said("task:new")
        with pytest.raises(Invalid, match="goes from 5 to 4"):
            await h.replay(5, 4)
        with pytest.raises(Invalid, match="there is no event"):
            await h.replay(10**6, 10**7)
        for _ in range(3):
            await h.said("task:new")
        await h.journal.commit(lambda tx: tx.run("events.drop_events", {"ids": json.dumps([first + 1]), "kept": "[]"}))
        found = await h.replay(first)
    assert found.missing == ("1 events of the range are no longer in the log: they were removed by retention",)


async def test_what_the_router_has_not_delivered_yet_is_left_out() -> None:
    async with house() as h:
        await h.rule("task:new", "log:seen", rule_id="log")
        first = await h.emit("task:new")
        found = await h.replay(first)
    assert shown(found) == []
    assert found.outcome.census["not_delivered_yet"] == 1
    assert found.missing == ("1 events still wait for the router: they were left out",)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (Removal(rule_id="nobody"), NotFound, "unknown rule"),
        (Update(rule_id="log", updates={}), Invalid, "updates are empty"),
        (Update(rule_id="log", updates={"color": "red"}), Invalid, "no field 'color'"),
        (Update(rule_id="log", updates={"condition": "9**9**9"}), Invalid, "changes\\[0\\]"),
        (Update(rule_id="log", updates={"target": "agent:nobody"}), NotFound, "unknown agent"),
        (Update(rule_id="log", updates={"target": "agent:spawn"}), Refused, "the command"),
        (Update(rule_id="log", updates={"target": "routing:delivered"}), Refused, "only the server emits"),
        (RuleDraft(source_pattern="a:b", target="c:d", rule_id="log"), Conflict, "there is a rule"),
        (RuleDraft(source_pattern="a:b", target="c:d", scope="orchestration:o_none"), NotFound, "unknown orchestr"),
        (RuleDraft(source_pattern="a:b", target="c:d", scope="agent"), Invalid, "scope agent"),
    ],
)
async def test_a_change_that_cannot_be_taken_is_refused(change: Change, error: type[KsiError], words: str) -> None:
    async with house() as h:
        await h.rule("task:new", "log:seen", rule_id="log")
        first = await h.said("task:new")
        with pytest.raises(error, match=words):
            await h.replay(first, first, change)


async def test_an_agent_thinks_only_of_what_it_may_do() -> None:
    async with house() as h:
        worker = await h.agent("worker")
        await h.rule("task:new", "log:seen", rule_id="log")
        first = await h.said("task:new")
        mine = fresh_context(agent_actor(worker))
        with pytest.raises(Refused):
            await h.replay(first, first, draft("task:new", "log:all", scope="global"), ctx=mine)
        with pytest.raises(Refused):
            await h.replay(first, first, Removal(rule_id="log"), ctx=mine)


def test_the_events_that_rules_never_hear_are_those_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.rstrip().endswith("| no |")]
    assert {row[1].strip(" `") for row in rows} == UNROUTED


async def test_a_breadth_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksi_mcp.routing.simulation.MAX_FOLLOWED", 50)
    async with house() as h:
        first = await h.said("a:x")
        wide = draft("**", ["a:x", "a:y"], rule_id="wide")
        found = await h.replay(first, first, wide)
    assert found.missing == ("more than 50 new events and turns would come of it: take a shorter range",)
