from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Limits as Budget
from ksi_mcp.config import DampingConfig
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import NotFound, Refused
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event, EventFilter
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.changing import Change, Removal, Update
from ksi_mcp.routing.router import Router
from ksi_mcp.routing.rules import Rule, RuleDraft
from ksi_mcp.testing import FakeClock

CTX = fresh_context(OPERATOR)


@dataclass
class Table:
    journal: Journal
    router: Router
    clock: FakeClock

    async def add(self, rule_id: str = "r1", target: str = "b:c", **fields: Any) -> Rule:
        draft = RuleDraft(source_pattern="a:b", target=target, rule_id=rule_id, **fields)
        return await self.journal.commit(lambda tx: self.router.add_rule(tx, CTX, draft))

    async def set(self, **updates: Any) -> Rule:
        return await self.journal.commit(lambda tx: self.router.modify_rule(tx, CTX, "r1", updates))

    async def delete(self) -> Rule:
        return await self.journal.commit(lambda tx: self.router.delete_rule(tx, CTX, "r1"))

    async def apply(self, *changes: Change) -> None:
        await self.journal.commit(lambda tx: self.router.apply(tx, CTX, changes))

    async def rule(self) -> Rule:
        return (await self.journal.read(lambda tx: self.router.query_rules(tx, CTX))).rules[0]

    async def damped(self) -> list[Event]:
        page = await self.journal.query(EventFilter(names=("routing:damped",)), limit=50)
        return list(page.events)


@asynccontextmanager
async def table(**limits: Any) -> AsyncIterator[Table]:
    clock = FakeClock()
    db = await open_sqlite(":memory:", clock)
    journal = Journal(db, clock)
    ledger = Ledger(journal)
    await journal.commit(lambda tx: ledger.open(tx, "global", parent_id=None, limits=Budget()))
    roster = Roster(journal, SessionQueues(), ledger)
    try:
        yield Table(journal, Router(journal, roster, damping=DampingConfig(**limits)), clock)
    finally:
        await journal.close()
        await db.close()


async def test_the_eleventh_change_within_a_minute_is_made_and_freezes_the_rule_for_a_minute() -> None:
    async with table() as t:
        await t.add()
        for n in range(9):
            assert (await t.set(priority=200 + n)).frozen_until_ms is None
        assert await t.damped() == []
        frozen = await t.set(priority=300)
        assert frozen.frozen_until_ms == t.clock.now_ms() + 60_000
        [event] = await t.damped()
        assert event.data == {
            "rule_id": "r1", "changes": 11, "undone": 0, "window_s": 60, "frozen_until_ms": frozen.frozen_until_ms,
        }  # fmt: skip
        await t.clock.advance(10)
        for change in (t.set(priority=1), t.delete()):
            with pytest.raises(Refused, match=r"rule 'r1' was changed too often: nobody may \w+ it for 50 s, until"):
                await change
        with pytest.raises(Refused, match=r"changes\[0\] \(modify 'r1'\): rule 'r1' was changed too often"):
            await t.apply(Update(rule_id="r1", updates={"priority": 1}))
        assert (await t.rule()).priority == 300
        await t.clock.advance(50)
        assert (await t.rule()).frozen_until_ms is None
        assert (await t.set(priority=1)).priority == 1
        assert len(await t.damped()) == 1


async def test_changes_spread_over_more_than_a_minute_freeze_nothing() -> None:
    async with table() as t:
        await t.add()
        for n in range(40):
            await t.clock.advance(6.1)
            await t.set(priority=n)
        assert await t.damped() == []


async def test_three_pairs_of_changes_that_undo_each_other_freeze_the_rule() -> None:
    async with table() as t:
        await t.add(target="x:one")
        await t.clock.advance(61)
        for n in range(5):
            await t.set(target="x:two" if n % 2 == 0 else "x:one", metadata={"reason": f"no {n}"})
        assert await t.damped() == []
        await t.set(target="x:one")
        [event] = await t.damped()
        assert (event.data["changes"], event.data["undone"]) == (6, 3)


async def test_a_rule_that_goes_on_from_change_to_change_or_stays_the_same_undoes_nothing() -> None:
    async with table(changes=100) as t:
        await t.add()
        for n in range(12):
            await t.set(priority=n)
        for _ in range(12):
            await t.set(ttl_s=60)
        assert await t.damped() == []


async def test_adding_and_deleting_the_same_id_again_and_again_freezes_the_id() -> None:
    async with table() as t:
        for _ in range(3):
            await t.add()
            await t.delete()
        [event] = await t.damped()
        assert event.data["undone"] == 3
        with pytest.raises(Refused, match="nobody may add it for 60 s"):
            await t.add()
        await t.add("another")
        await t.clock.advance(60)
        await t.add()


async def test_a_rule_that_expires_and_is_added_again_fights_with_nobody() -> None:
    async with table() as t:
        for n in range(5):
            await t.add(ttl_s=1)
            await t.clock.advance(2)
            if n % 2 == 0:
                await t.journal.commit(t.router.sweep_expired)
        assert await t.damped() == []


async def test_the_changes_of_one_apply_are_one_change_of_each_rule() -> None:
    async with table() as t:
        draft = RuleDraft(source_pattern="a:b", target="b:c", rule_id="r1")
        await t.apply(draft, *(Update(rule_id="r1", updates={"priority": n}) for n in range(30)), Removal(rule_id="r1"))
        await t.apply(draft, *(Update(rule_id="r1", updates={"priority": n}) for n in range(30)))
        assert (await t.rule()).priority == 29
        assert await t.damped() == []


async def test_a_frozen_rule_ends_with_its_time_and_with_what_it_lives_with() -> None:
    async with table(changes=1) as t:
        await t.add(ttl_s=5)
        assert (await t.set(priority=1)).frozen_until_ms is not None
        await t.clock.advance(6)
        assert await t.journal.commit(t.router.sweep_expired) == 1
        with pytest.raises(Refused, match="nobody may add it"):
            await t.add()
        await t.clock.advance(60)
        await t.add()
        await t.set(priority=2)
        assert await t.journal.commit(lambda tx: t.router.end_scope(tx, "global")) == 1
        with pytest.raises(NotFound):
            await t.delete()


async def test_limits_come_from_the_configuration() -> None:
    async with table(changes=2, window_s=5, frozen_s=7) as t:
        await t.add()
        await t.set(priority=1)
        frozen = await t.set(priority=2)
        assert frozen.frozen_until_ms == t.clock.now_ms() + 7_000
        await t.clock.advance(7)
        await t.set(priority=3)
        await t.set(priority=4)
        assert (await t.set(priority=5)).frozen_until_ms is not None


async def test_a_trial_says_that_one_more_change_would_freeze_the_id() -> None:
    async with table(changes=3) as t:
        await t.add()
        await t.set(priority=1)
        await t.delete()
        draft = RuleDraft(source_pattern="a:b", target="b:c", rule_id="r1")
        verdict = await t.journal.read(lambda tx: t.router.validate(tx, CTX, draft))
        assert verdict.errors == ()
        assert "with this it was changed 4 times of late: it is frozen then for a while" in verdict.warnings
