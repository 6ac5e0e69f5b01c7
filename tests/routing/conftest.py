from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event, EventFilter
from ksi_mcp.orchestrations.suspension import Suspension
from ksi_mcp.permissions import OPERATOR, Context, fresh_context
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.letters import Letter, LetterFilter
from ksi_mcp.routing.router import Limits, Router
from ksi_mcp.routing.rules import Rule, RuleDraft


class Clock(SystemClock):
    ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


@dataclass
class Table:
    """A router over a real store and real agents, with a clock that stands still."""

    path: Path
    journal: Journal
    roster: Roster
    router: Router
    suspension: Suspension
    ledger: Ledger
    clock: Clock
    ctx: Context = field(default_factory=lambda: fresh_context(OPERATOR))

    async def agent(self, name: str, *, run: str | None = None) -> str:
        spec = AgentSpec(
            name=name, system="You help.", provider="scripted", model="m", settings=AgentSettings(),
            capabilities=frozenset({"base", "routing_control"}), orchestration_id=run,
        )  # fmt: skip
        return (await self.journal.commit(lambda tx: self.roster.spawn(tx, self.ctx, spec))).agent_id

    async def end(self, agent_id: str) -> None:
        await self.journal.commit(
            lambda tx: self.roster.end(tx, self.ctx, self.roster.get(tx, agent_id), life="terminated", reason="done")
        )

    def drain(self, agent_id: str) -> None:
        with sqlite3.connect(self.path) as connection:
            connection.execute("UPDATE agent SET draining = 1 WHERE agent_id = ?", (agent_id,))
        connection.close()

    async def busy(self, agent_id: str, turns: int = 1) -> None:
        for _ in range(turns):
            await self.journal.commit(lambda tx: self.roster.deliver_turn(tx, fresh_context(OPERATOR), agent_id, "x"))

    async def run(self, orchestration_id: str, max_depth: int = 256) -> None:
        def make(tx: Tx) -> None:
            values = {
                "orchestration_id": orchestration_id, "pattern": "p", "pattern_hash": "h", "orchestrator": "client",
                "vars": "{}", "max_depth": max_depth, "created_by": "operator", "now_ms": tx.now_ms,
            }  # fmt: skip
            tx.run("orchestrations.insert", values)
            self.ledger.open(tx, orchestration_id, parent_id="global", limits=Budget())

        await self.journal.commit(make)

    async def rule(self, pattern: str, target: Any, ctx: Context | None = None, **fields: Any) -> Rule:
        draft = RuleDraft(source_pattern=pattern, target=target, **fields)
        return await self.journal.commit(lambda tx: self.router.add_rule(tx, ctx or self.ctx, draft))

    async def modify(self, rule_id: str, **updates: Any) -> Rule:
        return await self.journal.commit(lambda tx: self.router.modify_rule(tx, self.ctx, rule_id, updates))

    async def delete(self, rule_id: str) -> None:
        await self.journal.commit(lambda tx: self.router.delete_rule(tx, self.ctx, rule_id))

    async def emit(
        self, name: str, data: dict[str, Any] | None = None, ctx: Context | None = None, **more: Any
    ) -> Event:
        """Emit and deliver."""
        event = await self.record(name, data, ctx, **more)
        await self.pump()
        return event

    async def record(
        self, name: str, data: dict[str, Any] | None = None, ctx: Context | None = None, **more: Any
    ) -> Event:
        return await self.journal.commit(lambda tx: self.journal.record(tx, name, data or {}, ctx or self.ctx, **more))

    async def pump(self) -> int:
        handled = 0
        while now := await self.router.pump_once():
            handled += now
        return handled

    async def pass_s(self, seconds: float) -> int | None:
        """Let time pass and fire what is due; when the next is."""
        self.clock.ms += round(seconds * 1000)
        next_ms = await self.router.fire_due()
        await self.pump()
        return next_ms

    async def events(self, *names: str) -> list[Event]:
        page = await self.journal.query(EventFilter(names=names), limit=500)
        return list(reversed(page.events))

    async def data(self, name: str) -> list[dict[str, Any]]:
        return [event.data for event in await self.events(name)]

    async def turns(self, agent_id: str) -> list[str]:
        sql = "SELECT prompt FROM turn WHERE session_id = ? ORDER BY seq"
        return [prompt for (prompt,) in self.rows(sql, agent_id)]

    async def letters(self) -> list[Letter]:
        page = await self.journal.read(lambda tx: self.router.letters.page(tx, self.ctx, LetterFilter(), limit=100))
        return list(reversed(page.letters))

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def stats(self, rule_id: str) -> tuple[Any, ...]:
        """Matches, deliveries, failures, limited, latency, slowest."""
        sql = (
            "SELECT SUM(matches), SUM(deliveries), SUM(failures), SUM(limited), SUM(latency_ms), MAX(slowest_ms) "
            "FROM rule_stat WHERE rule_id = ?"
        )
        return self.rows(sql, rule_id)[0]


OpenTable = Callable[..., AbstractAsyncContextManager[Table]]


@pytest.fixture
def open_table(tmp_path: Path) -> OpenTable:
    """Open the table of a data folder; a second time is another process, or the next one."""

    @asynccontextmanager
    async def opened(
        *,
        limits: Limits | None = None,
        sink: Callable[[Roster], Any] = lambda roster: roster,
        clock: Clock | None = None,
    ) -> AsyncIterator[Table]:
        clock = clock or Clock()
        path = tmp_path / "ksi.db"
        db = await open_sqlite(path, clock)
        journal = Journal(db, clock)
        try:
            ledger = Ledger(journal)
            await journal.commit(lambda tx: ledger.open(tx, "global", parent_id=None, limits=Budget()))
            roster = Roster(journal, SessionQueues(), ledger)
            yield Table(
                path=path,
                journal=journal,
                roster=roster,
                router=Router(journal, sink(roster), limits=limits),
                suspension=Suspension(journal, ledger),
                ledger=ledger,
                clock=clock,
            )
        finally:
            await journal.close()
            await db.close()

    return opened
