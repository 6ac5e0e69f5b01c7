from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.agents.model import AgentSettings, AgentSpec
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Limits as Budget
from ksi_mcp.config import DampingConfig, RetentionConfig
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import SqliteDatabase, open_sqlite
from ksi_mcp.errors import Conflict, Exhausted, Invalid, KsiError, NotFound, Refused
from ksi_mcp.events import retention
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import EventFilter
from ksi_mcp.events.retention import Retention
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.changing import Change, Removal, Update
from ksi_mcp.routing.editing import Applied
from ksi_mcp.routing.governance import Quotas
from ksi_mcp.routing.pausing import pause_rules, resume_rules
from ksi_mcp.routing.router import Router
from ksi_mcp.routing.rules import RuleDraft
from ksi_mcp.routing.store import RuleFilter
from ksi_mcp.routing.versions import RolledBack
from ksi_mcp.testing import FakeClock
from ksi_mcp.tools.routing import RuleView

CTX = fresh_context(OPERATOR)


@dataclass
class Table:
    journal: Journal
    router: Router
    roster: Roster
    clock: FakeClock
    db: SqliteDatabase

    async def apply(self, *changes: Change) -> Applied:
        return await self.journal.commit(lambda tx: self.router.apply(tx, CTX, changes))

    async def add(self, rule_id: str, pattern: str = "a:b", target: Any = "c:d", **fields: Any) -> None:
        draft = RuleDraft(source_pattern=pattern, target=target, rule_id=rule_id, **fields)
        await self.journal.commit(lambda tx: self.router.add_rule(tx, CTX, draft))

    async def set(self, rule_id: str, **updates: Any) -> None:
        await self.journal.commit(lambda tx: self.router.modify_rule(tx, CTX, rule_id, updates))

    async def delete(self, rule_id: str) -> None:
        await self.journal.commit(lambda tx: self.router.delete_rule(tx, CTX, rule_id))

    async def back(self, version: int, *, dry_run: bool = False) -> RolledBack:
        return await self.journal.commit(
            lambda tx: self.router.roll_back(tx, CTX, version, reason="it was better", dry_run=dry_run)
        )

    async def version(self) -> int:
        return await self.journal.read(lambda tx: tx.one("routing.version")["routing_version"])

    async def rules(self) -> str:
        """All that a query answers."""
        page = await self.journal.read(lambda tx: self.router.query_rules(tx, CTX, RuleFilter(), limit=200))
        return json.dumps([RuleView.of(rule).as_json() for rule in page.rules])

    async def answers(self, *events: str) -> str:
        """What queries and explanations say, byte for byte."""

        def explained(tx: Tx, event: str) -> Any:
            found = self.router.explain(tx, CTX, event, {"n": 3})
            return [
                (match.rule.rule_id, match.outcome, match.reason, str(match.rule.target), match.data)
                for match in (*found.fires, *found.losers)
            ]

        told = [await self.journal.read(lambda tx, event=event: explained(tx, event)) for event in events]
        return await self.rules() + json.dumps(told)

    async def agent(self, name: str, run: str | None = None) -> str:
        spec = AgentSpec(
            name=name, system="", provider="scripted", model="m", capabilities=frozenset({"base"}),
            settings=AgentSettings(), orchestration_id=run,
        )  # fmt: skip
        return (await self.journal.commit(lambda tx: self.roster.spawn(tx, CTX, spec))).agent_id

    async def end(self, agent_id: str) -> None:
        def work(tx: Tx) -> None:
            self.roster.end(tx, CTX, self.roster.get(tx, agent_id), life="terminated", reason="enough")
            self.router.end_scope(tx, f"agent:{agent_id}")

        await self.journal.commit(work)

    async def run(self, orchestration_id: str) -> None:
        values = {
            "orchestration_id": orchestration_id, "pattern": "p", "pattern_hash": "h", "orchestrator": "client",
            "vars": "{}", "max_depth": 256, "created_by": "operator", "now_ms": self.clock.now_ms(),
        }  # fmt: skip
        await self.journal.commit(lambda tx: tx.run("orchestrations.insert", values))

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        rows = await self.db._writer.call(lambda connection: connection.execute(statement, values).fetchall())
        return [tuple(row) for row in rows]

    async def names(self, *names: str) -> list[dict[str, Any]]:
        page = await self.journal.query(EventFilter(names=names), limit=200)
        return [event.data for event in reversed(page.events)]


@asynccontextmanager
async def table(quotas: Quotas | None = None) -> AsyncIterator[Table]:
    clock = FakeClock()
    db = await open_sqlite(":memory:", clock)
    journal = Journal(db, clock)
    ledger = Ledger(journal)
    await journal.commit(lambda tx: ledger.open(tx, "global", parent_id=None, limits=Budget()))
    roster = Roster(journal, SessionQueues(), ledger)
    calm = DampingConfig(changes=1_000, undone=1_000)
    try:
        yield Table(journal, Router(journal, roster, quotas=quotas, damping=calm), roster, clock, db)
    finally:
        await journal.close()
        await db.close()


def draft(rule_id: str, pattern: str = "a:b", target: Any = "c:d", **fields: Any) -> RuleDraft:
    return RuleDraft(source_pattern=pattern, target=target, rule_id=rule_id, **fields)


# -- several changes as one -------------------------------------------------------------------------


async def test_several_changes_are_one_version_with_an_audit_entry_each() -> None:
    async with table() as t:
        await t.add("old")
        before = await t.version()
        done = await t.apply(
            draft("one"),
            Update(rule_id="one", updates={"priority": 7}, reason="more urgent"),
            draft("two"),
            Removal(rule_id="two"),
            Removal(rule_id="old", reason="not needed"),
        )
        assert done.version == before + 1 == await t.version()
        assert [(rule.rule_id, rule.priority, rule.since) for rule in done.rules] == [("one", 7, before + 1)]
        assert done.deleted == ("two", "old")
        told = await t.names("routing:rule_added", "routing:rule_modified", "routing:rule_deleted")
        assert [(each["rule_id"], each["version"]) for each in told] == [
            ("old", before), ("one", before + 1), ("one", before + 1), ("two", before + 1), ("two", before + 1),
            ("old", before + 1),
        ]  # fmt: skip
        assert told[2]["reason"] == "more urgent"
        assert told[2]["was"] == {"priority": 100}
        # The history has what stands at the end of the version.
        await t.back(before)
        assert [each["rule_id"] for each in json.loads(await t.rules())] == ["old"]
        await t.back(before + 1)
        assert [(each["rule_id"], each["priority"]) for each in json.loads(await t.rules())] == [("one", 7)]


async def test_two_exclusive_rules_change_places_only_together() -> None:
    async with table() as t:
        await t.add("a", exclusive=True, priority=1)
        await t.add("b", exclusive=True, priority=2)
        with pytest.raises(Conflict, match="'b' is exclusive for a:b at priority 2 already"):
            await t.set("a", priority=2)
        done = await t.apply(Update(rule_id="a", updates={"priority": 2}), Update(rule_id="b", updates={"priority": 1}))
        assert [(rule.rule_id, rule.priority) for rule in done.rules] == [("a", 2), ("b", 1)]
        with pytest.raises(Conflict, match=r"changes\[0\] \(modify 'a'\): rule 'b' is exclusive"):
            await t.apply(Update(rule_id="a", updates={"priority": 1}), draft("c"))


async def test_a_circle_is_looked_for_at_the_end_and_undoes_everything() -> None:
    async with table() as t:
        await t.add("forth", "a:b", "c:d")
        before = await t.rules()
        with pytest.raises(Refused, match=r"changes\[1\] \(add 'back'\): rule 'back' would feed itself: c:d -> a:b"):
            await t.apply(draft("other", "x:y", "x:z"), draft("back", "c:d", "a:b"))
        assert await t.rules() == before
        assert await t.names("routing:rule_added") == [(await t.names("routing:rule_added"))[0]]
        await t.apply(draft("back", "c:d", "a:b"), Removal(rule_id="forth"))


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (Removal(rule_id="none"), NotFound, r"changes\[2\] \(delete 'none'\): unknown rule 'none'"),
        (Update(rule_id="old", updates={}), Invalid, r"changes\[2\] \(modify 'old'\): the updates are empty"),
        (Update(rule_id="old", updates={"colour": 1}), Invalid, "a rule has no field 'colour' to change"),
        (Update(rule_id="old", updates={"priority": -1}), Invalid, "priority is -1"),
        (draft("old"), Conflict, "there is a rule 'old' already"),
        (draft("new2", target="agent:nobody"), NotFound, "unknown agent 'nobody'"),
        (draft("new2", scope="orchestration:o_none"), NotFound, "unknown orchestration"),
    ],
)
async def test_any_refusal_undoes_all_and_names_the_change(change: Change, kind: type[KsiError], says: str) -> None:
    async with table() as t:
        await t.add("old")
        before = (await t.rules(), await t.version(), await t.sql("SELECT * FROM rule_history"))
        with pytest.raises(kind, match=says):
            await t.apply(draft("new"), Update(rule_id="old", updates={"priority": 3}), change)
        assert (await t.rules(), await t.version(), await t.sql("SELECT * FROM rule_history")) == before


async def test_a_quota_counts_what_the_same_changes_add_and_take_away() -> None:
    async with table(quotas=Quotas(total=3)) as t:
        await t.apply(draft("a"), draft("b"), draft("c"))
        with pytest.raises(Exhausted, match=r"changes\[0\] \(add 'd'\): the table has 3 rules"):
            await t.apply(draft("d"), Removal(rule_id="a"))
        await t.apply(Removal(rule_id="a"), draft("d"))
        await t.clock.advance(1)
        await t.set("d", ttl_s=1)
        await t.clock.advance(2)
        await t.apply(draft("d"))  # what has expired makes room before it is swept
        assert len(json.loads(await t.rules())) == 3


# -- the way back -----------------------------------------------------------------------------------


async def test_a_rollback_is_one_version_and_audits_each_rule_and_itself() -> None:
    async with table() as t:
        await t.add("kept", metadata={"why": "ü"})
        await t.add("changed", condition="data.n > 1", rate={"count": 1, "per_s": 60}, priority=7)
        await t.add("gone", target=["c:d", "e:f"], mapping={"x": "{{data.n}}"}, ttl_s=1_000)
        version, before = await t.version(), await t.answers("a:b")
        await t.clock.advance(5)
        await t.set("changed", condition=None, enabled=False)
        await t.delete("gone")
        await t.add("new")
        trial = await t.back(version, dry_run=True)
        assert (trial.added, trial.modified, trial.deleted) == (("gone",), ("changed",), ("new",))
        assert await t.version() == version + 3
        done = await t.back(version)
        assert (done.version, done.added, done.modified, done.deleted) == (
            version + 4,
            *[("gone",), ("changed",), ("new",)],
        )
        assert done.skipped == ()
        assert await t.answers("a:b") == before
        [told] = await t.names("routing:rolled_back")
        assert told == {
            "version": version + 4, "to_version": version, "added": 1, "modified": 1, "deleted": 1, "skipped": 0,
            "skipped_rules": [], "reason": "it was better",
        }  # fmt: skip
        back = [
            each
            for each in await t.names("routing:rule_added", "routing:rule_modified", "routing:rule_deleted")
            if each.get("rolled_back_to") == version
        ]
        assert [(each["rule_id"], each["version"]) for each in back] == [
            ("changed", version + 4), ("gone", version + 4), ("new", version + 4),
        ]  # fmt: skip
        assert await t.back(version) == RolledBack(
            version=version + 4, to_version=version, added=(), modified=(), deleted=(), skipped=()
        )
        assert await t.version() == version + 4


async def test_a_version_that_never_was_or_is_not_kept_is_a_clear_error() -> None:
    async with table() as t:
        for n in range(30):
            await t.add(f"r{n}")
        with pytest.raises(Invalid, match="the table has no version 31") as unknown:
            await t.back(31)
        assert "it is at 30" in unknown.value.text()
        with pytest.raises(Invalid, match="the table has no version -1"):
            await t.back(-1)
        await t.delete("r3")
        await t.set("r4", priority=5)
        kept = await t.rules()
        await t.delete("r4")
        await t.add("r3", priority=9)
        await Retention(t.journal, RetentionConfig(rule_versions=3)).sweep()
        with pytest.raises(NotFound, match="version 29 of the table is not kept any more") as pruned:
            await t.back(29)
        assert "it can go back to 31" in pruned.value.text()
        assert await t.sql("SELECT COUNT(*), MIN(version) FROM rule_history WHERE rule_id IN ('r3')") == [(1, 34)]
        before = await t.sql("SELECT rule_id, version FROM rule_history ORDER BY 1, 2")
        await Retention(t.journal, RetentionConfig(rule_versions=3)).sweep()
        assert await t.sql("SELECT rule_id, version FROM rule_history ORDER BY 1, 2") == before
        await t.back(31)
        [r4] = [each for each in json.loads(await t.rules()) if each["rule_id"] == "r4"]
        assert r4["priority"] == 100
        await t.back(32)
        assert await t.rules() == kept


async def test_rules_of_what_has_ended_since_are_skipped_with_the_reason() -> None:
    async with table() as t:
        gone, stays = await t.agent("gone"), await t.agent("stays")
        await t.run("o_1")
        await t.add("target", target=["agent:gone", "agent:stays"])
        await t.add("scope", scope="agent:gone")
        await t.add("source", source_agent=gone)
        await t.add("join", join={"all_of": ["a:b", "agent:gone"]})
        await t.add("run", scope="orchestration:o_1")
        await t.add("short", ttl_s=10)
        await t.add("fine", target="agent:stays")
        version = await t.version()
        for rule_id in ("target", "source", "join", "short", "fine"):
            await t.delete(rule_id)
        await t.end(gone)
        await t.journal.commit(lambda tx: t.router.end_scope(tx, "orchestration:o_1"))
        await t.sql("UPDATE orchestration SET state = 'completed', ended_at_ms = ?", t.clock.now_ms())
        await t.clock.advance(11)
        done = await t.back(version)
        assert done.added == ("fine",)
        assert {each.rule_id: each.reason for each in done.skipped} == {
            "target": f"its target agent 'gone' ({gone}) has ended",
            "scope": f"its agent 'gone' (agent:{gone}) has ended",
            "source": f"its source agent 'gone' ({gone}) has ended",
            "join": f"the agent that its join waits for, 'gone' (agent:{gone}) has ended",
            "run": "its orchestration o_1 has ended",
            "short": "its time is over",
        }
        assert [each["rule_id"] for each in json.loads(await t.rules())] == ["fine"]
        assert stays in await t.rules()


async def test_what_cannot_come_back_does_not_stay_as_it_was_made_since_unless_it_was_handed_on() -> None:
    async with table() as t:
        await t.agent("old")
        await t.add("bent", target="agent:old")
        await t.add("handed_on", target="agent:old", pattern="x:y")
        version = await t.version()
        await t.set("bent", target="z:z")
        await t.set("handed_on", target="z:z")
        [(old,)] = await t.sql("SELECT agent_id FROM agent")
        await t.end(old)
        done = await t.back(version)
        assert done.deleted == ("bent", "handed_on")
        await t.back(done.version - 1)
        await t.sql("UPDATE agent SET successor_id = 'a_new'")
        done = await t.back(version)
        assert done.deleted == done.added == done.modified == ()
        assert [each.reason for each in done.skipped] == [
            f"its target agent 'old' ({old}) has ended (its successor is a_new); it stays as it is"
        ] * 2


async def test_a_rule_that_already_had_a_dead_target_then_comes_back_with_it() -> None:
    async with table() as t:
        dead = await t.agent("dead")
        await t.add("r", target="agent:dead")
        await t.clock.advance(1)
        await t.end(dead)
        await t.clock.advance(1)
        await t.add("later")
        version, before = await t.version(), await t.rules()
        await t.delete("r")
        assert (await t.back(version)).skipped == ()
        assert await t.rules() == before


async def test_the_life_of_rules_follows_whether_their_run_is_suspended_now() -> None:
    async with table() as t:
        await t.run("o_1")
        await t.add("r", scope="orchestration:o_1", ttl_s=100)
        await t.add("untouched", scope="orchestration:o_1", ttl_s=100)
        running = await t.version()
        await t.clock.advance(30)
        await t.journal.commit(lambda tx: pause_rules(tx, "o_1"))
        await t.sql("UPDATE orchestration SET state = 'suspended', suspended_at_ms = ?", t.clock.now_ms())
        paused = await t.version()
        await t.clock.advance(500)
        await t.set("r", priority=5)
        # Back to when it ran, in a run that is held: what remained when it was held.
        assert (await t.back(running)).modified == ("r",)
        held = "SELECT expires_at_ms, remaining_ms, priority FROM rule ORDER BY rule_id"
        assert await t.sql(held) == [(None, 70_000, 100), (None, 70_000, 100)]
        await t.delete("r")
        await t.journal.commit(lambda tx: resume_rules(tx, "o_1"))
        await t.sql("UPDATE orchestration SET state = 'running', suspended_at_ms = NULL")
        # Back to when it was held, in a run that goes on: what remained counts from now.
        await t.clock.advance(10)
        done = await t.back(paused)
        assert (done.added, done.modified, done.deleted) == (("r",), (), ())
        now = t.clock.now_ms()
        assert await t.sql(held) == [(now + 70_000, None, 100), (now + 60_000, None, 100)]


async def test_what_rules_remembered_goes_only_where_they_change() -> None:
    async with table() as t:
        for rule_id in ("kept", "changed"):
            await t.add(rule_id, target={"round_robin": ["c:d", "e:f"]})
        version = await t.version()
        await t.set("changed", priority=1)
        for rule_id in ("kept", "changed"):
            await t.sql("INSERT INTO rule_state (rule_id, turn) VALUES (?, 1)", rule_id)
            await t.sql("INSERT INTO join_open (rule_id, key, opened_at_ms) VALUES (?, '', 1)", rule_id)
        await t.back(version)
        assert await t.sql("SELECT rule_id FROM rule_state") == [("kept",)]
        assert await t.sql("SELECT rule_id FROM join_open") == [("kept",)]


async def test_a_deleted_rule_comes_back_though_its_tombstone_is_gone() -> None:
    async with table() as t:
        await t.add("r", metadata={"n": 1})
        version, before = await t.version(), await t.rules()
        await t.delete("r")
        await t.sql("DELETE FROM rule WHERE rule_id = 'r'")
        assert (await t.back(version)).added == ("r",)
        assert await t.rules() == before


_IDS = st.sampled_from(["r1", "r2", "r3", "r4", "r5"])
_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "source_pattern": st.sampled_from(["a:b", "a:*", "**", "c:d"]),
        "target": st.sampled_from(["x:y", ["x:y", "x:z"], {"round_robin": ["x:y", "x:z"]}]),
        "condition": st.sampled_from([None, "data.n > 1", "data.n > 5"]),
        "mapping": st.sampled_from([None, {"m": "{{data.n}}"}, "{{$}}"]),
        "priority": st.integers(0, 200),
        "ttl_s": st.sampled_from([None, 10_000, 20_000]),
        "enabled": st.booleans(),
        "metadata": st.sampled_from([{}, {"k": "ö"}, {"k": [1, 2]}]),
        "exclusive": st.booleans(),
        "rate": st.sampled_from([None, {"count": 2, "per_s": 1}]),
        "modifiable": st.booleans(),
    },
)
_ONE = st.one_of(
    st.tuples(st.just("add"), _IDS, _FIELDS),
    st.tuples(st.just("modify"), _IDS, _FIELDS),
    st.tuples(st.just("delete"), _IDS, st.just({})),
)
_STEP = st.one_of(st.lists(_ONE, min_size=1, max_size=3), st.integers(0, 30))
"""Several changes as one, or a rollback to one of the versions that there were."""


def _change(op: str, rule_id: str, fields: dict[str, Any]) -> Change:
    if op == "add":
        return RuleDraft(**{"source_pattern": "a:b", "target": "x:y", **fields, "rule_id": rule_id})
    return Update(rule_id=rule_id, updates=fields) if op == "modify" else Removal(rule_id=rule_id)


@given(steps=st.lists(_STEP, max_size=25), back=st.integers(0, 1_000))
def test_after_a_rollback_every_answer_is_byte_for_byte_what_it_was_then(steps: list[Any], back: int) -> None:
    async def play() -> None:
        async with table() as t:
            recorded = {0: await t.answers("a:b", "a:x", "c:d")}
            for step in steps:
                await t.clock.advance(1)
                try:
                    if isinstance(step, int):
                        await t.back(step % (await t.version() + 1))
                    else:
                        await t.apply(*(_change(*one) for one in step))
                except KsiError:
                    assert await t.answers("a:b", "a:x", "c:d") == recorded[await t.version()]
                    continue
                recorded[await t.version()] = await t.answers("a:b", "a:x", "c:d")
            wanted = back % (max(recorded) + 1)
            assert set(recorded) == set(range(max(recorded) + 1))
            done = await t.back(wanted)
            assert done.skipped == ()
            assert await t.answers("a:b", "a:x", "c:d") == recorded[wanted]
            await t.back(max(recorded))
            assert await t.answers("a:b", "a:x", "c:d") == recorded[max(recorded)]

    asyncio.run(play())


@given(
    steps=st.lists(st.lists(_ONE, min_size=1, max_size=3), max_size=15), kept=st.integers(0, 8), back=st.integers(0, 8)
)
def test_the_versions_that_are_kept_are_whole_whatever_went_before_them(steps: list[Any], kept: int, back: int) -> None:
    async def play() -> None:
        async with table() as t:
            recorded = {0: await t.rules()}
            for step in steps:
                with contextlib.suppress(KsiError):
                    await t.apply(*(_change(*one) for one in step))
                recorded[await t.version()] = await t.rules()
            await Retention(t.journal, RetentionConfig(rule_versions=kept)).sweep()
            newest = max(recorded)
            if newest - back >= max(0, newest - kept):
                await t.back(newest - back)
                assert await t.rules() == recorded[newest - back]
            elif newest - back >= 0:
                with pytest.raises(NotFound):
                    await t.back(newest - back)
            [(most,)] = await t.sql("SELECT COUNT(DISTINCT rule_id) FROM rule_history")
            [(rows,)] = await t.sql("SELECT COUNT(*) FROM rule_history")
            assert rows <= most + 3 * (kept + 1) + 5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "PAUSE_S", 0)
        asyncio.run(play())
