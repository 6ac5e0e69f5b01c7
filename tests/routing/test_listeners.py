from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.clock import SystemClock
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Conflict
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event, EventFilter
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.router import Router
from ksi_mcp.routing.rules import RuleDraft


@dataclass
class House:
    journal: Journal
    router: Router

    async def emit(self, *names: str) -> None:
        ctx = fresh_context(OPERATOR)
        for name in names:
            await self.journal.commit(lambda tx, name=name: self.journal.record(tx, name, {}, ctx))

    async def pump(self) -> None:
        while await self.router.pump_once():
            pass

    async def names(self) -> list[str]:
        page = await self.journal.query(EventFilter(), limit=100)
        return [event.name for event in reversed(page.events)]


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    clock = SystemClock()
    db = await open_sqlite(":memory:", clock)
    journal = Journal(db, clock)
    try:
        yield House(journal, Router(journal, Roster(journal, SessionQueues(), Ledger(journal))))
    finally:
        await journal.close()
        await db.close()


async def test_a_listener_hears_its_names_once_in_their_order_and_before_the_rules() -> None:
    heard: list[str] = []

    def react(tx: Tx, event: Event) -> None:
        heard.append(f"{event.name} {event.event_id}")
        made = house_.journal.record(tx, "note:made", {}, fresh_context(OPERATOR), routable=False)
        assert made.event_id > event.event_id

    async with house() as house_:
        house_.router.listen(frozenset({"a:one", "a:two"}), react)
        ctx = fresh_context(OPERATOR)
        draft = RuleDraft(source_pattern="a:*", target="heard:it")
        await house_.journal.commit(lambda tx: house_.router.add_rule(tx, ctx, draft))
        await house_.emit("a:two", "b:one", "a:one")
        await house_.pump()
        await house_.pump()
        assert [each.split()[0] for each in heard] == ["a:two", "a:one"]
        names = [name for name in await house_.names() if name in ("note:made", "heard:it")]
        assert names == ["note:made", "heard:it", "note:made", "heard:it"]


async def test_a_listener_that_fails_is_undone_and_spoils_neither_the_others_nor_the_delivery() -> None:
    def breaks(tx: Tx, event: Event) -> None:
        house_.journal.record(tx, "broken:half_way", {"event": event.name}, fresh_context(OPERATOR))
        raise Conflict("this cannot be")

    def bug(tx: Tx, event: Event) -> None:
        raise ZeroDivisionError

    def works(tx: Tx, event: Event) -> None:
        house_.journal.record(tx, "worked:well", {}, fresh_context(OPERATOR), routable=False)

    async with house() as house_:
        for react in (breaks, works, bug):
            house_.router.listen(frozenset({"a:one"}), react)
        ctx = fresh_context(OPERATOR)
        draft = RuleDraft(source_pattern="a:*", target="heard:it")
        await house_.journal.commit(lambda tx: house_.router.add_rule(tx, ctx, draft))
        await house_.emit("a:one", "a:two")
        await house_.pump()
        names = await house_.names()
        assert names.count("heard:it") == 2
        assert names.count("worked:well") == 1
        assert "broken:half_way" not in names
        page = await house_.journal.query(EventFilter(names=("system:listener_failed",)), limit=9)
        told = sorted(str(event.data["reason"]) for event in page.events)
        assert told == ["ZeroDivisionError", "this cannot be"]
        assert {event.data["event"] for event in page.events} == {"a:one"}
        assert all(
            "breaks" in str(event.data["listener"]) or "bug" in str(event.data["listener"]) for event in page.events
        )


async def test_whoever_hears_everything_hears_each_event_once_and_its_failure_holds_up_none() -> None:
    heard: list[str] = []

    def hear(_tx: Tx, event: Event) -> None:
        if event.name == "b:bad":
            raise Conflict("cannot hear that")
        heard.append(event.name)

    async with house() as house_:
        journal = house_.journal
        roster = Roster(journal, SessionQueues(), Ledger(journal))
        house_.router = Router(journal, roster, hear=hear)
        ctx = fresh_context(OPERATOR)
        draft = RuleDraft(source_pattern="b:*", target="delivered:it")
        await journal.commit(lambda tx: house_.router.add_rule(tx, ctx, draft))
        await house_.emit("a:one", "b:bad", "c:two")
        await house_.pump()
        # A unit that was undone is run again: what counts is what it wrote, which here is nothing.
        assert set(heard) == {"a:one", "c:two", "routing:rule_added", "delivered:it"}
        names = await house_.names()
        assert names.count("delivered:it") == 1
        assert names.count("system:listener_failed") == 1
