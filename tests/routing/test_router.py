from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
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
from ksi_mcp.errors import Conflict, Exhausted, Invalid, KsiError, NotFound, Refused, StoreError
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event, EventFilter
from ksi_mcp.permissions import OPERATOR, SYSTEM, Context, RoutingLevel, agent_actor, fresh_context, within
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.router import Limits, Quotas, Router
from ksi_mcp.routing.rules import Rule, RuleDraft
from ksi_mcp.routing.store import RuleFilter

COMMANDS = frozenset({"agent:spawn", "deploy:now"})


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

    async def agent(
        self, name: str, *, parent: str | None = None, run: str | None = None, level: RoutingLevel = "children"
    ) -> str:
        spec = AgentSpec(
            name=name, system="You help.", provider="scripted", model="m", settings=AgentSettings(), parent_id=parent,
            orchestration_id=run, capabilities=frozenset({"base", "routing_control"}), routing_level=level,
        )  # fmt: skip
        return (await self.journal.commit(lambda tx: self.roster.spawn(tx, self.ctx, spec))).agent_id

    async def run(self, orchestration_id: str, max_depth: int = 256) -> None:
        def make(tx: Tx) -> None:
            tx.run(
                "orchestrations.insert",
                {
                    "orchestration_id": orchestration_id, "pattern": "p", "pattern_hash": "h",
                    "orchestrator": "client", "vars": "{}", "max_depth": max_depth, "created_by": "operator",
                    "now_ms": tx.now_ms,
                },
            )  # fmt: skip
            ledger.open(tx, orchestration_id, parent_id="global", limits=Budget())

        ledger = Ledger(self.journal)
        await self.journal.commit(make)

    async def rule(self, pattern: str, target: Any, ctx: Context | None = None, **fields: Any) -> Rule:
        draft = RuleDraft(source_pattern=pattern, target=target, **fields)
        return await self.journal.commit(lambda tx: self.router.add_rule(tx, ctx or self.ctx, draft))

    async def emit(
        self, name: str, data: dict[str, Any] | None = None, ctx: Context | None = None, **more: Any
    ) -> Event:
        return await self.journal.commit(lambda tx: self.journal.record(tx, name, data or {}, ctx or self.ctx, **more))

    async def pump(self) -> int:
        handled = 0
        while now := await self.router.pump_once():
            handled += now
        return handled

    async def events(self, *names: str) -> list[Event]:
        page = await self.journal.query(EventFilter(names=names), limit=500)
        return list(reversed(page.events))

    async def turns(self, agent_id: str) -> list[str]:
        rows = await self.journal.read(lambda tx: tx.all("queues.unfinished_of_session", {"session_id": agent_id}))
        ids = [row["turn_id"] for row in rows]
        return [
            await self.journal.read(lambda tx, one=one: tx.one("queues.one", {"turn_id": one})["prompt"]) for one in ids
        ]


@asynccontextmanager
async def house(
    path: Path | str = ":memory:",
    *,
    quotas: Quotas | None = None,
    limits: Limits | None = None,
    sink: Callable[[Roster], Any] = lambda roster: roster,
) -> AsyncIterator[House]:
    clock = Clock()
    db = await open_sqlite(path, clock)
    journal = Journal(db, clock)
    try:
        ledger = Ledger(journal)
        await journal.commit(lambda tx: ledger.open(tx, "global", parent_id=None, limits=Budget()))
        roster = Roster(journal, SessionQueues(), ledger)
        router = Router(journal, sink(roster), is_command=COMMANDS.__contains__, quotas=quotas, limits=limits)
        yield House(journal=journal, roster=roster, router=router, clock=clock)
    finally:
        await journal.close()
        await db.close()


async def test_an_event_is_delivered_to_an_event_and_to_an_agent_in_the_order_of_priority() -> None:
    async with house() as h:
        worker = await h.agent("worker")
        low = await h.rule("task:*", "log:seen", priority=1)
        high = await h.rule("task:*", "agent:worker", priority=500, mapping={"id": "{{data.id}}"})
        await h.pump()
        event = await h.emit("task:done", {"id": 7, "secret": "no"})
        assert await h.pump() == 2
        delivered = await h.events("routing:delivered")
        assert [each.data["rule_id"] for each in delivered] == [high.rule_id, low.rule_id]
        assert all(each.data["event_id"] == event.event_id and each.source == "system" for each in delivered)
        [prompt] = await h.turns(worker)
        assert prompt.startswith("Event task:done")
        assert "from operator" in prompt
        assert '{"id": 7}' in prompt
        [seen] = await h.events("log:seen")
        assert (seen.data, seen.hops, seen.depth) == (event.data, 1, 0)
        assert (seen.cause_id, seen.root_id, seen.source) == (f"event:{event.event_id}", event.root_id, "operator")
        assert await h.pump() == 0


async def test_conditions_that_cannot_be_decided_fail_closed_and_say_why() -> None:
    async with house() as h:
        rule = await h.rule("task:*", "log:seen", condition="data.score > 1")
        await h.emit("task:done", {"score": 0})
        await h.emit("task:done", {})
        await h.emit("task:done", {"score": 2})
        await h.pump()
        assert len(await h.events("log:seen")) == 1
        [failed] = await h.events("routing:condition_failed")
        assert failed.data["rule_id"] == rule.rule_id
        assert (failed.data["expression"], failed.data["missing"]) == ("data.score > 1", "data.score")


async def test_a_mapping_that_cannot_be_filled_sends_nothing_and_says_why() -> None:
    async with house() as h:
        await h.rule("task:*", "log:seen", mapping={"x": "{{data.absent}}"})
        await h.rule("task:*", "log:other")
        await h.emit("task:done")
        await h.pump()
        assert await h.events("log:seen") == []
        assert len(await h.events("log:other")) == 1
        [failed] = await h.events("routing:mapping_failed")
        assert failed.data["missing"] == "data.absent"


async def test_rules_survive_a_restart_and_an_undelivered_event_too(tmp_path: Path) -> None:
    async with house(tmp_path / "ksi.db") as h:
        await h.rule("task:*", "log:seen")
        await h.emit("task:done")
    async with house(tmp_path / "ksi.db") as h:
        await h.pump()
        await h.pump()
        assert len(await h.events("log:seen")) == 1


async def test_two_routers_on_one_file_see_each_others_rules_and_deliver_once(tmp_path: Path) -> None:
    async with house(tmp_path / "ksi.db") as one, house(tmp_path / "ksi.db") as two:
        rule = await one.rule("task:*", "log:one")
        await one.pump()
        await two.emit("task:done")
        await two.pump()
        await two.journal.commit(lambda tx: two.router.delete_rule(tx, two.ctx, rule.rule_id))
        await one.emit("task:done")
        await one.pump()
        await two.pump()
        assert len(await one.events("log:one")) == 1


async def test_a_rule_that_is_rolled_back_leaves_no_trace() -> None:
    async with house() as h:

        def spoiled(tx: Tx) -> None:
            h.router.add_rule(tx, h.ctx, RuleDraft(source_pattern="task:*", target="log:ghost"))
            h.router.query_rules(tx, h.ctx, RuleFilter(event="task:done"))
            raise Refused("no")

        with pytest.raises(Refused):
            await h.journal.commit(spoiled)
        await h.rule("task:*", "log:real")
        await h.emit("task:done")
        await h.pump()
        assert await h.events("log:ghost") == []
        assert len(await h.events("log:real")) == 1
        assert len(await h.events("routing:rule_added")) == 1


async def test_a_rule_in_the_same_transaction_is_seen_by_what_follows() -> None:
    async with house() as h:
        draft = RuleDraft(source_pattern="a:*", target="b:x")

        def both(tx: Tx) -> int:
            h.router.add_rule(tx, h.ctx, draft)
            return len(h.router.explain(tx, h.ctx, "a:b").fires)

        assert await h.journal.commit(both) == 1


async def test_changes_bump_the_version_and_leave_an_audit_event() -> None:
    async with house() as h:
        rule = await h.rule("task:*", "log:seen", rule_id="mine")
        changed = await h.journal.commit(
            lambda tx: h.router.modify_rule(tx, h.ctx, "mine", {"priority": 7, "condition": "data.ok", "ttl_s": 60})
        )
        assert (changed.priority, changed.condition, changed.created_at_ms) == (7, "data.ok", rule.created_at_ms)
        assert changed.expires_at_ms == h.clock.ms + 60_000
        await h.journal.commit(lambda tx: h.router.delete_rule(tx, h.ctx, "mine", "done with it"))
        audit = await h.events("routing:rule_added", "routing:rule_modified", "routing:rule_deleted")
        assert [each.data["version"] for each in audit] == [1, 2, 3]
        assert audit[1].data["was"] == {"priority": 100, "condition": None, "expires_at_ms": None}
        assert audit[2].data["reason"] == "done with it"
        with pytest.raises(NotFound):
            await h.journal.commit(lambda tx: h.router.modify_rule(tx, h.ctx, "mine", {"priority": 1}))
        again = await h.rule("task:*", "log:again", rule_id="mine")
        assert again.version == 4
        with pytest.raises(Conflict):
            await h.rule("task:*", "log:third", rule_id="mine")


async def test_updates_of_unknown_fields_are_refused() -> None:
    async with house() as h:
        await h.rule("task:*", "log:seen", rule_id="mine")
        for updates in ({"created_by": "system"}, {"rule_id": "x"}, {}, {"target": []}, {"priority": -1}):
            with pytest.raises(Invalid):
                await h.journal.commit(lambda tx, updates=updates: h.router.modify_rule(tx, h.ctx, "mine", updates))
        with pytest.raises(Refused):
            await h.journal.commit(lambda tx: h.router.modify_rule(tx, h.ctx, "mine", {"target": "deploy:now"}))


async def test_two_rules_that_feed_each_other_are_refused_with_the_path() -> None:
    async with house() as h:
        await h.rule("a:*", "b:x", rule_id="there")
        with pytest.raises(Refused) as refusal:
            await h.rule("b:*", "a:y", rule_id="back")
        assert "a:y [back] -> b:x [there] -> b:*" in refusal.value.text()
        await h.rule("b:*", "a:y", rule_id="back", enabled=False)
        with pytest.raises(Refused):
            await h.journal.commit(lambda tx: h.router.modify_rule(tx, h.ctx, "back", {"enabled": True}))
        await h.journal.commit(lambda tx: h.router.delete_rule(tx, h.ctx, "there"))
        await h.journal.commit(lambda tx: h.router.modify_rule(tx, h.ctx, "back", {"enabled": True}))


async def test_commands_and_the_servers_events_cannot_be_targets() -> None:
    async with house() as h:
        for target in ("agent:spawn", "deploy:now", "routing:rule_added", "completion:result"):
            with pytest.raises(Refused):
                await h.rule("task:*", target)
        with pytest.raises(NotFound):
            await h.rule("task:*", "agent:nobody")


async def test_an_agent_has_rules_within_its_reach_only() -> None:
    async with house() as h:
        await h.run("o_1")
        mine = await h.agent("mine", run="o_1")
        peer = await h.agent("peer", run="o_1")
        stranger = await h.agent("stranger")
        child = await h.agent("child", parent=mine)
        ctx = replace(fresh_context(agent_actor(mine)), orchestration_id="o_1")
        rule = await h.rule("task:*", "agent:child", ctx)
        assert (rule.source_agent, rule.scope, rule.orchestration_id) == (mine, f"agent:{mine}", "o_1")
        assert str(rule.target) == f"agent:{child}"
        assert (
            await h.rule("task:*", f"agent:{child}", ctx, source_agent="mine", scope="orchestration")
        ).scope == "orchestration:o_1"
        foreign = await h.rule("task:*", "agent:child", rule_id="operators")
        refused: list[dict[str, Any]] = [
            {"source_agent": peer}, {"source_agent": "*"}, {"source_agent": "{{data.x}}"},
            {"scope": "global"}, {"scope": f"agent:{peer}"}, {"scope": "orchestration:o_2"},
        ]  # fmt: skip
        for fields in refused:
            with pytest.raises(Refused):
                await h.rule("task:*", "agent:child", ctx, **fields)
        for target in (f"agent:{stranger}", "agent:peer"):
            with pytest.raises(Refused):
                await h.rule("task:*", target, ctx)
        for change in (
            lambda tx: h.router.modify_rule(tx, ctx, foreign.rule_id, {"priority": 1}),
            lambda tx: h.router.delete_rule(tx, ctx, foreign.rule_id),
            lambda tx: h.router.modify_rule(tx, ctx, rule.rule_id, {"source_agent": peer}),
        ):
            with pytest.raises(Refused):
                await h.journal.commit(change)
        await h.pump()
        await h.emit("task:done", ctx=fresh_context(agent_actor(stranger)))
        await h.emit("task:done", ctx=ctx)
        await h.pump()
        assert len(await h.turns(child)) == 4  # the operator's rule twice, its own two once


async def test_quotas_bound_the_table_and_each_agent() -> None:
    async with house(quotas=Quotas(per_agent=2, total=4)) as h:
        ctx = fresh_context(agent_actor(await h.agent("busy")))
        for _ in range(2):
            await h.rule("task:*", "log:seen", ctx)
        with pytest.raises(Exhausted):
            await h.rule("task:*", "log:seen", ctx)
        await h.rule("task:*", "log:seen", ttl_s=1)
        await h.rule("task:*", "log:seen")
        with pytest.raises(Exhausted):
            await h.rule("task:*", "log:seen")
        h.clock.ms += 1_000
        await h.rule("task:*", "log:seen")


async def test_an_expired_rule_never_matches_swept_or_not() -> None:
    async with house() as h:
        rule = await h.rule("task:*", "log:seen", ttl_s=1)
        h.clock.ms += 1_000
        await h.emit("task:done")
        await h.pump()
        assert await h.events("log:seen") == []
        explained = await h.journal.read(lambda tx: h.router.explain(tx, h.ctx, "task:done"))
        assert [match.outcome for match in explained.losers] == ["expired"]
        assert (await h.journal.read(lambda tx: h.router.query_rules(tx, h.ctx))).rules == ()
        assert await h.journal.commit(h.router.sweep_expired) == 1
        assert await h.journal.commit(h.router.sweep_expired) == 0
        [swept] = await h.events("routing:rule_expired")
        assert swept.data["rule_id"] == rule.rule_id


async def test_rules_end_with_the_agent_or_run_they_live_with() -> None:
    async with house() as h:
        await h.run("o_1")
        agent = await h.agent("mine", run="o_1")
        await h.rule("task:*", "log:a", scope="agent:" + agent)
        await h.rule("task:*", "log:b", scope="orchestration:o_1")
        await h.rule("task:*", "log:c", fresh_context(agent_actor(agent)))
        await h.rule("task:*", "log:d")
        assert await h.journal.commit(lambda tx: h.router.end_scope(tx, "agent:" + agent)) == 2
        assert await h.journal.commit(lambda tx: h.router.end_scope(tx, "orchestration:o_1")) == 1
        left = (await h.journal.read(lambda tx: h.router.query_rules(tx, h.ctx))).rules
        assert [str(rule.target) for rule in left] == ["log:d"]


async def test_a_run_hears_its_own_events_only() -> None:
    async with house() as h:
        await h.run("o_1")
        await h.run("o_2")
        await h.rule("task:*", "log:one", scope="orchestration:o_1")
        await h.rule("task:*", "log:two", scope="orchestration:o_2")
        await h.emit("task:done", orchestration_id="o_1")
        await h.pump()
        assert len(await h.events("log:one")) == 1
        assert await h.events("log:two") == []


async def test_a_dead_agent_is_undeliverable_and_holds_up_nobody() -> None:
    async with house() as h:
        gone = await h.agent("gone")
        rule = await h.rule("task:*", "agent:gone", priority=200)
        await h.rule("task:*", "log:seen")
        agent = await h.journal.read(lambda tx: h.roster.get(tx, gone))
        await h.journal.commit(lambda tx: h.roster.end(tx, h.ctx, agent, life="terminated", reason="test"))
        await h.emit("task:done")
        await h.pump()
        [dead] = await h.events("routing:undeliverable")
        assert dead.data["rule_id"] == rule.rule_id
        assert "terminated" in dead.data["reason"]
        assert len(await h.events("log:seen")) == 1
        with pytest.raises((Conflict, NotFound)):
            await h.rule("task:*", f"agent:{gone}")


class FailingSink:
    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    def deliver_turn(self, tx: Tx, ctx: Context, agent_id: str, prompt: str) -> str:
        raise self.failure


async def test_a_failing_delivery_is_reported_and_does_not_block_the_rest() -> None:
    async with house(sink=lambda _roster: FailingSink(RuntimeError("secret path /x"))) as h:
        await h.agent("worker")
        await h.rule("task:*", "agent:worker")
        await h.rule("other:*", "log:seen")
        await h.emit("task:done")
        await h.emit("other:done")
        await h.pump()
        [failed] = await h.events("routing:undeliverable")
        assert failed.data["reason"] == "RuntimeError"
        assert len(await h.events("log:seen")) == 1
        assert await h.pump() == 0


async def test_a_lost_store_leaves_the_event_waiting() -> None:
    async with house(sink=lambda _roster: FailingSink(StoreError("disk full"))) as h:
        await h.agent("worker")
        await h.rule("task:*", "agent:worker")
        await h.emit("task:done")
        with pytest.raises(StoreError):
            await h.pump()
        assert await h.events("routing:undeliverable") == []


async def test_a_chain_over_the_hop_limit_stops_with_one_event_that_names_it() -> None:
    async with house() as h:
        for n in range(20):
            await h.rule(f"step{n}:go", f"step{n + 1}:go")
        await h.emit("step0:go")
        await h.pump()
        assert len(await h.events("step16:go")) == 1
        assert await h.events("step17:go") == []
        [stopped] = await h.events("routing:loop_stopped")
        assert (stopped.data["reason"], stopped.data["limit"]) == ("hops", 16)
        assert stopped.data["chain"][0].startswith("step0:go")
        assert stopped.data["chain"][-1].startswith("step16:go")


async def test_a_run_as_deep_as_it_may_be_stops() -> None:
    async with house() as h:
        await h.run("o_1", max_depth=3)
        worker = await h.agent("worker", run="o_1")
        await h.rule("task:*", f"agent:{worker}", scope="orchestration:o_1")
        await h.emit("task:done", ctx=replace(h.ctx, depth=2, orchestration_id="o_1"))
        await h.emit("task:done", ctx=replace(h.ctx, depth=3, orchestration_id="o_1"))
        await h.pump()
        assert len(await h.turns(worker)) == 1
        [stopped] = await h.events("routing:loop_stopped")
        assert (stopped.data["reason"], stopped.data["limit"]) == ("depth", 3)


async def test_each_first_cause_has_so_many_deliveries_and_says_once_that_they_are_used_up() -> None:
    async with house(limits=Limits(deliveries_per_root=3)) as h:
        await h.rule("task:*", "log:seen")
        for _ in range(6):
            await h.emit("task:done")
        await h.emit("task:done", ctx=fresh_context(OPERATOR))
        await h.pump()
        assert len(await h.events("log:seen")) == 4
        [stopped] = await h.events("routing:loop_stopped")
        assert stopped.data["reason"] == "quota"


async def test_a_delivery_has_the_lower_authority_of_event_and_rule() -> None:
    async with house() as h:
        agent = await h.agent("mine")
        await h.rule("task:*", "log:seen")
        for ctx in (fresh_context(SYSTEM), fresh_context(agent_actor(agent)), h.ctx):
            await h.emit("task:done", ctx=ctx)
        await h.pump()
        assert [each.source for each in await h.events("log:seen")] == ["operator", f"agent:{agent}", "operator"]


async def test_nobody_puts_words_into_the_mouth_of_another_agent() -> None:
    async with house() as h:
        await h.run("o_1")
        boss = await h.agent("boss", run="o_1", level="orchestration")
        child = await h.agent("child", parent=boss, run="o_1")
        sibling = await h.agent("sibling", run="o_1")
        made_by = within(fresh_context(agent_actor(boss)), "o_1")
        await h.rule("task:*", "log:seen", ctx=made_by, scope="orchestration", mapping={"text": "as I say"})
        for agent in (child, sibling, boss):
            await h.emit("task:done", ctx=within(fresh_context(agent_actor(agent)), "o_1"))
        await h.pump()
        # What comes from below stays what it is; beside it, the rule's words are its creator's.
        sources = [each.source for each in await h.events("log:seen")]
        assert sources == [f"agent:{child}", f"agent:{boss}", f"agent:{boss}"]


async def test_what_the_router_reports_is_not_routed() -> None:
    async with house() as h:
        await h.rule("routing:delivered", "log:echo")
        await h.rule("task:**", "log:seen:again")
        await h.emit("task:done")
        await h.pump()
        assert len(await h.events("log:seen:again")) == 1
        assert await h.events("log:echo") == []


async def test_explain_says_who_wins_who_loses_and_why() -> None:
    async with house() as h:
        agent = await h.agent("mine")
        await h.rule("task:*", "log:a", mapping={"n": "{{data.n}}"}, rule_id="wins")
        await h.rule("task:*", "log:b", enabled=False, rule_id="off")
        await h.rule("task:*", "log:c", condition="data.n > 9", rule_id="small")
        await h.rule("task:*", "log:d", condition="data.x", rule_id="missing")
        await h.rule("task:*", "log:e", source_agent="mine", rule_id="others")
        explain = h.router.explain
        found = await h.journal.read(lambda tx: explain(tx, h.ctx, "task:done", {"n": 5}))
        assert [(match.rule.rule_id, match.data) for match in found.fires] == [("wins", {"n": 5})]
        assert {match.rule.rule_id: match.outcome for match in found.losers} == {
            "off": "disabled", "small": "condition_false", "missing": "condition_failed", "others": "other_agent",
        }  # fmt: skip
        named = await h.journal.read(lambda tx: explain(tx, h.ctx, "task:done", {"n": 5}, f"agent:{agent}"))
        assert [match.rule.rule_id for match in named.fires] == ["others", "wins"]
        with pytest.raises(Invalid):
            await h.journal.read(lambda tx: explain(tx, h.ctx, "not a name"))


async def test_rules_are_listed_page_by_page_and_an_agent_sees_what_concerns_it() -> None:
    async with house() as h:
        await h.run("o_1")
        inside = await h.agent("inside", run="o_1")
        outside = await h.agent("outside")
        for n in range(5):
            await h.rule(f"t{n}:*", "log:seen", priority=n, rule_id=f"r{n}")
        await h.rule("x:*", "log:seen", scope="orchestration:o_1", rule_id="runs")
        listed: list[str] = []
        cursor = None
        while True:
            page = await h.journal.read(lambda tx, at=cursor: h.router.query_rules(tx, h.ctx, limit=2, cursor=at))
            listed += [rule.rule_id for rule in page.rules]
            if (cursor := page.cursor) is None:
                break
        assert listed == ["runs", "r4", "r3", "r2", "r1", "r0"]

        async def seen(ctx: Context, **wanted: Any) -> set[str]:
            page = await h.journal.read(lambda tx: h.router.query_rules(tx, ctx, RuleFilter(**wanted)))
            return {rule.rule_id for rule in page.rules}

        assert "runs" in await seen(fresh_context(agent_actor(inside)))
        assert "runs" not in await seen(fresh_context(agent_actor(outside)))
        assert await seen(h.ctx, event="t3:now") == {"r3"}
        assert await seen(h.ctx, target="log:seen", scope="orchestration:o_1") == {"runs"}
        with pytest.raises(Invalid):
            await h.journal.read(lambda tx: h.router.query_rules(tx, h.ctx, cursor="x"))


async def test_a_long_payload_is_cut_in_the_prompt_with_a_note() -> None:
    async with house() as h:
        worker = await h.agent("worker")
        await h.rule("task:*", "agent:worker")
        await h.emit("task:done", {"text": "é" * 20_000})
        await h.pump()
        [prompt] = await h.turns(worker)
        assert len(prompt.encode()) < 17_000
        assert "[cut after 16,384 of" in prompt


async def test_a_quota_of_rules_is_met_in_one_transaction_without_a_crawl() -> None:
    async with house(quotas=Quotas(total=300)) as h:

        def many(tx: Tx) -> None:
            for n in range(300):
                h.router.add_rule(tx, h.ctx, RuleDraft(source_pattern=f"t{n}:*", target=f"log:n{n}"))

        await h.journal.commit(many)
        with pytest.raises(KsiError):
            await h.rule("x:*", "log:x")
