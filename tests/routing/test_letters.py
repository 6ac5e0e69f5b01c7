"""Deliveries that could not be made: kept, seen by those they concern, and made later, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.agents.model import AgentSettings, AgentSpec
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Limits as Budget
from ksi_mcp.clock import SystemClock
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Conflict, Exhausted, Invalid, KsiError, NotFound, Refused
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event, EventFilter
from ksi_mcp.permissions import OPERATOR, Context, agent_actor, fresh_context
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.letters import Letter, LetterFilter, Redriven
from ksi_mcp.routing.router import Limits, Router
from ksi_mcp.routing.rules import Rule, RuleDraft

ALL = LetterFilter(redriven=None)


class Clock(SystemClock):
    ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


@dataclass
class House:
    journal: Journal
    roster: Roster
    router: Router
    clock: Clock
    ctx: Context = field(default_factory=lambda: fresh_context(OPERATOR))

    async def agent(self, name: str, parent: str | None = None, *capabilities: Any) -> str:
        spec = AgentSpec(
            name=name, system="You help.", provider="scripted", model="m", settings=AgentSettings(), parent_id=parent,
            capabilities=frozenset({"base", *capabilities}),
        )  # fmt: skip
        return (await self.journal.commit(lambda tx: self.roster.spawn(tx, self.ctx, spec))).agent_id

    async def end(self, agent_id: str) -> None:
        await self.journal.commit(
            lambda tx: self.roster.end(tx, self.ctx, self.roster.get(tx, agent_id), life="terminated", reason="done")
        )

    async def rule(self, pattern: str, target: Any, ctx: Context | None = None, **fields: Any) -> Rule:
        draft = RuleDraft(source_pattern=pattern, target=target, **fields)
        return await self.journal.commit(lambda tx: self.router.add_rule(tx, ctx or self.ctx, draft))

    async def modify(self, rule: Rule, **updates: Any) -> Rule:
        return await self.journal.commit(lambda tx: self.router.modify_rule(tx, self.ctx, rule.rule_id, updates))

    async def emit(self, name: str, data: dict[str, Any] | None = None, ctx: Context | None = None) -> Event:
        event = await self.journal.commit(lambda tx: self.journal.record(tx, name, data or {}, ctx or self.ctx))
        await self.pump()
        return event

    async def pump(self) -> None:
        while await self.router.pump_once():
            pass

    async def events(self, *names: str) -> list[Event]:
        page = await self.journal.query(EventFilter(names=names), limit=500)
        return list(reversed(page.events))

    async def turns(self, agent_id: str) -> list[str]:
        rows = await self.journal.read(lambda tx: tx.all("queues.unfinished_of_session", {"session_id": agent_id}))
        prompts = [tx_row["turn_id"] for tx_row in rows]
        return [
            await self.journal.read(lambda tx, one=one: tx.one("queues.one", {"turn_id": one})["prompt"])
            for one in prompts
        ]

    async def letters(self, wanted: LetterFilter | None = None, ctx: Context | None = None) -> list[Letter]:
        page = await self.journal.read(
            lambda tx: self.router.letters.page(tx, ctx or self.ctx, wanted or LetterFilter(), limit=100)
        )
        return list(page.letters)

    async def redrive(self, dead_id: int, ctx: Context | None = None, *, dry_run: bool = False) -> Redriven:
        return await self.journal.commit(
            lambda tx: self.router.letters.redrive(tx, ctx or self.ctx, dead_id, dry_run=dry_run)
        )

    async def forget_events(self) -> None:
        """As if retention had been here: nothing of the log is left."""
        ids = "[" + ",".join(str(each.event_id) for each in await self.events()) + "]"
        await self.journal.commit(lambda tx: tx.run("events.drop_events", {"ids": ids, "kept": "[]"}))


@asynccontextmanager
async def house(path: Path | str = ":memory:", limits: Limits | None = None) -> AsyncIterator[House]:
    clock = Clock()
    db = await open_sqlite(path, clock)
    journal = Journal(db, clock)
    try:
        ledger = Ledger(journal)
        await journal.commit(lambda tx: ledger.open(tx, "global", parent_id=None, limits=Budget()))
        roster = Roster(journal, SessionQueues(), ledger)
        yield House(journal=journal, roster=roster, router=Router(journal, roster, limits=limits), clock=clock)
    finally:
        await journal.close()
        await db.close()


class Sink:
    """Hands turns on, unless it is to fail."""

    def __init__(self, roster: Roster, fails: Exception | None) -> None:
        self.roster, self.fails = roster, fails

    def deliver_turn(self, tx: Tx, ctx: Context, agent_id: str, prompt: str) -> str:
        if self.fails is not None:
            raise self.fails
        return self.roster.deliver_turn(tx, ctx, agent_id, prompt)


def as_agent(agent_id: str) -> Context:
    return fresh_context(agent_actor(agent_id))


async def test_a_letter_to_an_agent_that_is_gone_goes_to_whom_the_rule_names_now() -> None:
    async with house() as h:
        old, other = await h.agent("old"), await h.agent("other")
        rule = await h.rule("task:*", ["agent:old", "agent:other"])
        await h.end(old)
        await h.emit("task:new", {"id": 7})
        [letter] = await h.letters()
        assert (letter.rule_id, letter.target, letter.data) == (rule.rule_id, f"agent:{old}", {"id": 7})
        assert "terminated" in letter.reason

        again = await h.redrive(letter.dead_id)
        assert (again.outcome, again.delivered) == ("failed", 0)
        assert "terminated" in (again.reason or "")
        assert len(await h.letters()) == 1  # the same one, still open, and none besides

        new = await h.agent("new")
        await h.modify(rule, target=["agent:new", "agent:other"])
        done = await h.redrive(letter.dead_id)
        assert (done.outcome, done.delivered, done.target) == ("delivered", 1, f"agent:{new}")
        assert len(await h.turns(new)) == len(await h.turns(other)) == 1  # who had it is not told twice
        assert await h.letters() == []
        [event] = await h.events("routing:redriven")
        assert event.data["dead_letter"] == letter.dead_id
        assert (event.data["by"], event.data["delivered"], event.source) == ("operator", 1, "system")


async def test_a_letter_whose_mapping_failed_is_judged_again_with_the_mapping_of_today() -> None:
    async with house() as h:
        rule = await h.rule("task:*", "log:seen", mapping={"n": "{{data.missing}}"})
        await h.emit("task:new", {"id": 7})
        [letter] = await h.letters()
        assert (letter.target, letter.data) == (None, None)
        assert (await h.redrive(letter.dead_id)).outcome == "failed"
        await h.modify(rule, mapping={"n": "{{data.id}}"})
        would = await h.redrive(letter.dead_id, dry_run=True)
        assert (would.outcome, would.target, would.data) == ("would_deliver", "log:seen", {"n": 7})
        assert await h.events("log:seen") == []
        assert (await h.redrive(letter.dead_id)).outcome == "delivered"
        [seen] = await h.events("log:seen")
        assert (seen.data, seen.source, seen.hops) == ({"n": 7}, "operator", 1)


@pytest.mark.parametrize(
    ("updates", "why"),
    [
        ({"enabled": False}, "disabled"),
        ({"source_pattern": "other:*"}, "does not hear task:new"),
        ({"condition": "data.id > 100"}, "condition does not hold"),
        ({"mapping": {"n": "{{data.nothing}}"}}, "nothing"),
    ],
)
async def test_a_rule_that_would_not_fire_now_says_why_and_the_letter_stays(updates: dict[str, Any], why: str) -> None:
    async with house() as h:
        old = await h.agent("old")
        rule = await h.rule("task:*", ["agent:old", "log:seen"])
        await h.end(old)
        await h.emit("task:new", {"id": 7})
        [letter] = await h.letters()
        await h.modify(rule, target="log:other", **updates)
        for dry_run, outcome in ((True, "would_fail"), (False, "failed")):
            result = await h.redrive(letter.dead_id, dry_run=dry_run)
            assert result.outcome == outcome
            assert why in (result.reason or "")
        [still] = await h.letters()
        assert why in still.reason
        assert await h.events("log:other", "routing:redriven") == []


async def test_a_rule_that_is_gone_delivers_what_was_mapped_to_where_it_was_to_go() -> None:
    async with house() as h:
        worker = await h.agent("worker")
        sink = Sink(h.roster, Exhausted("its budget is used up"))
        h.router = Router(h.journal, sink)
        rule = await h.rule("task:*", "agent:worker", mapping={"n": "{{data.id}}"})
        await h.emit("task:new", {"id": 7})
        await h.emit("task:new", {})  # its mapping fails
        unmapped, mapped = await h.letters()
        await h.journal.commit(lambda tx: h.router.delete_rule(tx, h.ctx, rule.rule_id))
        await h.forget_events()
        failed = await h.redrive(unmapped.dead_id)
        assert (failed.outcome, failed.delivered) == ("failed", 0)
        assert "is gone, and what it would have delivered was never made" in (failed.reason or "")
        assert (await h.redrive(mapped.dead_id)).reason == "its budget is used up"
        sink.fails = None
        assert (await h.redrive(mapped.dead_id)).outcome == "delivered"
        [prompt] = await h.turns(worker)
        assert '{"n": 7}' in prompt


async def test_a_rule_that_has_taken_the_id_of_another_does_not_get_its_letters() -> None:
    async with house() as h:
        worker, thief = await h.agent("worker"), await h.agent("thief", None, "routing_control")
        sink = Sink(h.roster, Exhausted("its budget is used up"))
        h.router = Router(h.journal, sink)
        await h.rule("task:*", "agent:worker", rule_id="mine")
        await h.emit("task:new", {"secret": 7})
        [letter] = await h.letters()
        await h.journal.commit(lambda tx: h.router.delete_rule(tx, h.ctx, "mine"))
        h.clock.ms += 1
        await h.rule("**", "agent:thief", as_agent(thief), rule_id="mine")
        sink.fails = None
        assert (await h.redrive(letter.dead_id)).target == f"agent:{worker}"
        assert await h.turns(thief) == []
        assert len(await h.turns(worker)) == 1


async def test_an_event_that_was_pruned_is_delivered_as_the_letter_holds_it() -> None:
    async with house() as h:
        old = await h.agent("old")
        new = await h.agent("new")
        rule = await h.rule("task:*", "agent:old")
        sender = await h.agent("sender")
        await h.end(old)
        await h.emit("task:new", {"id": 7}, as_agent(sender))
        [letter] = await h.letters()
        await h.forget_events()
        await h.modify(rule, target="agent:new")
        assert (await h.redrive(letter.dead_id)).outcome == "delivered"
        [prompt] = await h.turns(new)
        assert '{"id": 7}' in prompt
        assert "from agent sender" in prompt


async def test_two_that_redrive_one_letter_at_once_deliver_it_once(tmp_path: Path) -> None:
    async with house(tmp_path / "ksi.db") as one:
        rule = await one.rule("task:*", "log:seen", mapping={"n": "{{data.missing}}"})
        await one.emit("task:new")
        await one.modify(rule, mapping=None)
        db = await open_sqlite(tmp_path / "ksi.db", one.clock)
        journal = Journal(db, one.clock)
        roster = Roster(journal, SessionQueues(), Ledger(journal))
        other = House(journal=journal, roster=roster, router=Router(journal, roster), clock=one.clock)
        [letter] = await one.letters()
        outcomes = await asyncio.gather(
            *(each.redrive(letter.dead_id) for each in (one, other, one, other)), return_exceptions=True
        )
        assert sum(isinstance(outcome, Redriven) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 3
        assert len(await one.events("log:seen")) == 1
        await journal.close()
        await db.close()


async def test_a_fan_out_that_fails_in_part_leaves_a_letter_for_that_part() -> None:
    async with house() as h:
        a, b = await h.agent("a"), await h.agent("b")
        rule = await h.rule("task:*", ["agent:a", "agent:b"], mapping={"n": "{{data.id}}"})
        await h.emit("task:new", {})
        [letter] = await h.letters()
        await h.end(a)
        await h.modify(rule, mapping=None, target=["log:seen", "agent:b"])
        await h.end(b)
        done = await h.redrive(letter.dead_id)
        assert (done.outcome, done.delivered) == ("delivered", 1)
        [left] = await h.letters()
        assert left.target == f"agent:{b}"
        assert left.dead_id != letter.dead_id
        assert "dead letters of their own" in (done.reason or "")


async def test_what_a_join_had_collected_is_delivered_whole() -> None:
    async with house() as h:
        old = await h.agent("old")
        rule = await h.rule("part:*", ["agent:old"], join={"all_of": ["part:a", "part:b"]})
        await h.end(old)
        await h.emit("part:a", {"x": 1})
        await h.emit("part:b", {"x": 2})
        [letter] = await h.letters()
        new = await h.agent("new")
        await h.modify(rule, target="agent:new")
        assert (await h.redrive(letter.dead_id)).outcome == "delivered"
        [prompt] = await h.turns(new)
        assert '"part:a": {"x": 1}' in prompt
        assert '"part:b": {"x": 2}' in prompt


async def test_an_event_that_a_join_could_not_place_is_collected_then() -> None:
    async with house() as h:
        rule = await h.rule("part:*", "log:both", join={"all_of": ["part:a", "part:b"], "by": "{{data.task}}"})
        await h.emit("part:a", {"no": 1})
        await h.emit("part:b", {"id": 1})
        first, second = reversed(await h.letters())
        await h.modify(rule, join={"all_of": ["part:a", "part:b"]})
        assert (await h.redrive(first.dead_id)).outcome == "collected"
        assert (await h.redrive(second.dead_id)).outcome == "delivered"
        [both] = await h.events("log:both")
        assert both.data["parts"] == {"part:a": {"no": 1}, "part:b": {"id": 1}}


async def test_redrives_keep_to_the_rate_of_the_rule_and_to_the_limits_of_the_chain() -> None:
    async with house() as h:
        rule = await h.rule("task:*", "log:seen", mapping={"n": "{{data.missing}}"})
        for _ in range(3):
            await h.emit("task:new")
        await h.modify(rule, mapping=None, rate={"count": 2, "per_s": 60})
        results = [await h.redrive(letter.dead_id) for letter in await h.letters()]
        assert [each.outcome for each in results] == ["delivered", "delivered", "failed"]
        assert "beyond the rate" in (results[2].reason or "")
        h.clock.ms += 61_000
        [letter] = await h.letters()
        assert (await h.redrive(letter.dead_id)).outcome == "delivered"

    async with house(limits=Limits(deliveries_per_root=1)) as h:
        rule = await h.rule("task:*", ["log:a", "log:b"], mapping={"n": "{{data.missing}}"})
        await h.emit("task:new")
        await h.emit("task:new")
        await h.modify(rule, mapping=None)
        second, first = await h.letters()
        assert (await h.redrive(first.dead_id)).delivered == 1
        stopped = await h.redrive(second.dead_id)  # of the same root
        assert (stopped.outcome, "chain of causes" in (stopped.reason or "")) == ("failed", True)


async def test_an_agent_redrives_only_what_lies_in_its_reach_and_never_as_somebody_higher() -> None:
    async with house() as h:
        boss = await h.agent("boss", None, "routing_control")
        child = await h.agent("child", boss)
        stranger = await h.agent("stranger", None, "routing_control")
        plain = await h.agent("plain", boss)
        rule = await h.rule(
            "task:*", "log:seen", scope=f"agent:{child}", source_agent=child, mapping="{{data.missing}}"
        )
        beyond = await h.rule("task:*", "log:far", mapping="{{data.missing}}")
        await h.emit("task:new", {}, as_agent(child))
        letters = {letter.rule_id: letter.dead_id for letter in await h.letters()}
        boss_ctx, stranger_ctx, plain_ctx = [as_agent(each) for each in (boss, stranger, plain)]

        assert await h.letters(ctx=stranger_ctx) == await h.letters(ctx=plain_ctx) == []
        assert len(await h.letters(ctx=boss_ctx)) == 2
        for ctx in (stranger_ctx, plain_ctx):
            with pytest.raises(NotFound):
                await h.redrive(letters[rule.rule_id], ctx)
        with pytest.raises(Refused, match="beyond its routing level"):
            await h.redrive(letters[beyond.rule_id], boss_ctx)
        await h.modify(rule, mapping=None)
        assert (await h.redrive(letters[rule.rule_id], boss_ctx)).outcome == "delivered"
        [seen] = await h.events("log:seen")
        assert seen.source == f"agent:{child}"  # the lower of all: not the operator, whose rule it is


async def test_what_an_agent_redrives_of_the_operators_making_is_of_the_agents_authority() -> None:
    async with house() as h:
        boss = await h.agent("boss", None, "routing_control")
        rule = await h.rule(
            "agent:*", "log:seen", scope=f"agent:{boss}", source_agent=boss, mapping="{{data.missing}}",
            condition="event == 'agent:updated'",
        )  # fmt: skip
        await h.journal.commit(lambda tx: h.journal.record(tx, "agent:updated", {"agent": boss}, h.ctx, agent_id=boss))
        await h.pump()
        await h.modify(rule, mapping=None)
        [letter] = await h.letters()
        assert letter.event.source == "operator"
        assert (await h.redrive(letter.dead_id, as_agent(boss))).outcome == "delivered"
        [seen] = await h.events("log:seen")
        assert seen.source == f"agent:{boss}"


async def test_who_redrives_what_is_of_somebody_above_does_so_on_its_own_authority() -> None:
    async with house() as h:
        agents: dict[str, str] = {}
        for name, parent in (("boss", None), ("child", "boss")):
            spec = AgentSpec(
                name=name, system="You help.", provider="scripted", model="m", settings=AgentSettings(),
                parent_id=agents.get(parent or ""), capabilities=frozenset({"base", "routing_control"}),
                routing_level="global",
            )  # fmt: skip
            made = await h.journal.commit(lambda tx, spec=spec: h.roster.spawn(tx, h.ctx, spec))
            agents[name] = made.agent_id
        boss, child = as_agent(agents["boss"]), as_agent(agents["child"])
        rule = await h.rule("task:*", "log:seen", boss, mapping={"n": "{{data.missing}}"})
        await h.emit("task:new", {}, boss)
        await h.emit("task:new", {}, boss)
        await h.modify(rule, mapping=None)
        first, second = await h.letters()
        assert (await h.redrive(first.dead_id, child)).outcome == "delivered"
        assert (await h.redrive(second.dead_id, boss)).outcome == "delivered"
        sources = {each.source for each in await h.events("log:seen")}
        assert sources == {f"agent:{agents['child']}", f"agent:{agents['boss']}"}


async def test_an_event_whose_whole_delivery_failed_goes_through_the_table_again_for_the_operator_only() -> None:
    async with house() as h:
        boss = await h.agent("boss", None, "routing_control")
        sink = Sink(h.roster, RuntimeError("a programming mistake"))
        h.router = Router(h.journal, sink)
        await h.rule("task:*", "log:seen")
        await h.rule("task:*", "agent:boss")
        await h.emit("task:new", {}, as_agent(boss))
        assert await h.events("log:seen") == []
        [letter] = await h.letters()
        assert letter.rule_id is None
        with pytest.raises(Refused, match="of the whole table"):
            await h.redrive(letter.dead_id, as_agent(boss))
        with pytest.raises(RuntimeError):
            await h.redrive(letter.dead_id)
        assert len(await h.letters()) == 1  # nothing of it was done
        assert await h.events("log:seen", "routing:redriven") == []
        sink.fails = None
        done = await h.redrive(letter.dead_id)
        assert (done.outcome, done.delivered) == ("routed", 2)
        assert len(await h.events("log:seen")) == len(await h.turns(boss)) == 1


async def test_letters_are_found_by_rule_agent_and_state_and_paged() -> None:
    async with house() as h:
        old, other = await h.agent("old"), await h.agent("other")
        one = await h.rule("task:*", "agent:old")
        two = await h.rule("task:*", "log:seen", mapping="{{data.missing}}")
        await h.end(old)
        for _ in range(3):
            await h.emit("task:new", {}, as_agent(other))
        assert len(await h.letters()) == 6
        assert {each.rule_id for each in await h.letters(LetterFilter(rule_id=one.rule_id))} == {one.rule_id}
        assert len(await h.letters(LetterFilter(agent_id=old))) == 3
        assert len(await h.letters(LetterFilter(agent_id=other))) == 6
        assert await h.letters(LetterFilter(orchestration_id="o_none")) == []
        await h.modify(two, mapping=None)
        [dead_id, *_], cursor = await h.journal.read(
            lambda tx: h.router.letters.waiting(tx, h.ctx, LetterFilter(rule_id=two.rule_id), limit=2)
        )
        assert cursor is not None
        await h.redrive(dead_id)
        assert [each.dead_id for each in await h.letters(LetterFilter(redriven=True))] == [dead_id]
        assert len(await h.letters(ALL)) == 6
        seen: list[int] = []
        cursor = None
        while True:
            page = await h.journal.read(
                lambda tx, cursor=cursor: h.router.letters.page(tx, h.ctx, ALL, limit=4, cursor=cursor)
            )
            seen += [each.dead_id for each in page.letters]
            if (cursor := page.cursor) is None:
                break
        assert seen == sorted(seen, reverse=True)
        assert len(seen) == 6


@pytest.mark.parametrize("cursor", ["", "-1", "x", "9" * 40, "1:2"])
async def test_a_forged_cursor_is_refused(cursor: str) -> None:
    async with house() as h:
        with pytest.raises(Invalid, match="not one of ours"):
            await h.journal.read(lambda tx: h.router.letters.page(tx, h.ctx, ALL, limit=5, cursor=cursor))


async def test_a_letter_that_is_not_there_or_was_delivered_is_refused_and_nothing_written() -> None:
    async with house() as h:
        rule = await h.rule("task:*", "log:seen", mapping="{{data.missing}}")
        await h.emit("task:new")
        await h.modify(rule, mapping=None)
        [letter] = await h.letters()
        await h.redrive(letter.dead_id)
        before = len(await h.events())
        for dead_id, kind in ((letter.dead_id, Conflict), (99, NotFound), (-1, NotFound)):
            with pytest.raises(KsiError) as refused:
                await h.redrive(dead_id)
            assert type(refused.value) is kind
        assert len(await h.events()) == before
