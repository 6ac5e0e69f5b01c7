"""The store stays bounded: what is old and of no use to anybody goes, a little at a time.

What stays in any case: events that are not delivered; events and turns of living agents, of runs that go on
or have a checkpoint, and of the runs those were made from; turns that others wait for; open holds; accounts,
agents, runs, decisions and used versions of compositions. Numbers of rows never come back.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ksi_mcp.config import KeptEvents, KeptTurns, RetentionConfig
from ksi_mcp.db import Row, Tx
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import SYSTEM, fresh_context

logger = logging.getLogger(__name__)

AUDIT = (
    "agent:budget_exceeded", "budget:*", "composition:*", "decision:*", "routing:damped", "routing:redriven",
    "routing:rolled_back", "routing:rule_*", "routing:subscription_changed", "system:refused",
    "system:token_*",
)  # fmt: skip
"""Events with a retention of their own: who changed what, spent what, decided what, and was refused what."""
SWEEP_S = 3_600.0
UNIT_ROWS = 500
"""No transaction removes many more rows than this."""
PAUSE_S = 0.02
"""Others write between two transactions."""
FRESH_MS = 3_600_000
"""Nothing younger goes because there is too much: somebody may be waiting for it."""
HOLD_PAGES = 20
"""So much of the table of holds is looked through in one sweep."""
_DAY_MS = 86_400_000
_MINUTE_MS = 60_000
_MEGABYTE = 1_000_000
_TURN_PAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What went, or would go. `bytes` is that of the contents; the file keeps its size and fills the room again."""

    events: int = 0
    turns: int = 0
    checkpoints: int = 0
    keys: int = 0
    bytes: int = 0
    complete: bool = True
    """False if the time was up before everything was looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What has to go of one kind: all before a moment, and so many more of the oldest."""

    before_ms: int
    audit_before_ms: int
    fresh_ms: int
    rows: int = 0
    bytes: int = 0

    @property
    def met(self) -> bool:
        """Whether no more has to go than what is old."""
        return self.rows <= 0 and self.bytes <= 0

    def without(self, gone: Sequence[Row]) -> Goal:
        """What has still to go afterwards."""
        ordinary = [row for row in gone if row["ordinary"]]
        return Goal(
            before_ms=self.before_ms,
            audit_before_ms=self.audit_before_ms,
            fresh_ms=self.fresh_ms,
            rows=self.rows - len(ordinary),
            bytes=self.bytes - sum(row["bytes"] for row in ordinary),
        )


def choose(rows: Iterable[Row], goal: Goal) -> list[Row]:
    """Those of the rows, oldest first, that have to go; each has `at_ms, bytes, ordinary`."""
    chosen: list[Row] = []
    too_many, too_large = goal.rows, goal.bytes
    for row in rows:
        at_ms = row["at_ms"]
        if not row["ordinary"]:
            goes = at_ms < goal.audit_before_ms
        else:
            goes = at_ms < goal.before_ms or ((too_many > 0 or too_large > 0) and at_ms < goal.fresh_ms)
            too_many -= goes
            too_large -= row["bytes"] * goes
        if goes:
            chosen.append(row)
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    rows: Sequence[Row]
    last: int
    newest_ms: int


class Retention:
    """Removes what passes the configured limits, in small transactions; for the holder of the worker's lock."""

    def __init__(self, journal: Journal, config: RetentionConfig) -> None:
        self._journal = journal
        self._config = config
        self._holds_after = 0

    async def run(self) -> None:
        """Sweep now and every hour until cancelled."""
        while True:
            try:
                await self.sweep()
            except Exception:  # what is too much now is too much in an hour
                logger.exception("what is old could not be removed; trying again in an hour")
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> Swept:
        """Remove what has to go. Every step is a transaction of its own: it may be broken off at any point."""
        checkpoints, freed = await self._drop_checkpoints()
        keys = await self._drop_keys()
        await self._drop_some("events.spare_reusable", "events.drop_reusable", "reusable_id")
        events, events_bytes, _ = await self._walk_events(drop=True)
        turns, turns_bytes, _ = await self._walk_turns(drop=True)
        await self._drop_roots()
        if (days := self._config.turns.days) is not None:
            old = self._before(days)
            await self._drop_some("events.old_prefetches", "events.drop_prefetches", "prefetch_id", before_ms=old)
        await self._drop_stray_holds()
        await self._drop_rule_stats()
        await self._drop_letters()
        if (days := self._config.events.days) is not None:
            await self._drop_some("events.buried_rules", "events.drop_rules", "rule_id", before_ms=self._before(days))
        await self._drop_rule_versions()
        over = {"now_ms": self._journal.clock.now_ms(), "limit": UNIT_ROWS}
        await self._drop_while("tasks.expired", "tasks.drop_expired", over)
        swept = Swept(
            events=events, turns=turns, checkpoints=checkpoints, keys=keys, bytes=freed + events_bytes + turns_bytes
        )
        if events or turns or checkpoints:
            facts = {"events": events, "turns": turns, "checkpoints": checkpoints, "bytes": swept.bytes}
            await self._journal.commit(
                lambda tx: self._journal.record(
                    tx, "system:retention_swept", facts, fresh_context(SYSTEM), routable=False
                )
            )
        return swept

    async def preview(self, *, limit_s: float) -> Swept:
        """What a sweep would remove now, of events and turns; it stops looking after `limit_s` seconds."""
        until_s = self._journal.clock.monotonic_s() + limit_s
        events, events_bytes, all_events = await self._walk_events(drop=False, until_s=until_s)
        turns, turns_bytes, all_turns = await self._walk_turns(drop=False, until_s=until_s)
        return Swept(events=events, turns=turns, bytes=events_bytes + turns_bytes, complete=all_events and all_turns)

    # ---------------------------------------------------------------------------- events and turns

    async def _walk_events(self, *, drop: bool, until_s: float | None = None) -> tuple[int, int, bool]:
        audit = json.dumps(AUDIT)

        def page(tx: Tx, after: int) -> _Page | None:
            place = {"after": after, "audit": audit, "limit": UNIT_ROWS}
            found = tx.one("events.page_of_events", place)
            if found is None or not found["events"]:
                return None
            values = {"after": after, "audit": audit, "last": found["last"], "kept": _kept_runs(tx)}
            return _Page(rows=tx.all("events.old_events", values), last=found["last"], newest_ms=found["newest_ms"])

        def drop_them(tx: Tx, rows: Sequence[Row]) -> int:
            ids = json.dumps([row["event_id"] for row in rows])
            return tx.run("events.drop_events", {"ids": ids, "kept": _kept_runs(tx)})

        days = self._config.audit_days
        goal = await self._goal("events", self._config.events, 0 if days is None else self._before(days))
        return await self._walk(goal, page, drop_them if drop else None, until_s)

    async def _walk_turns(self, *, drop: bool, until_s: float | None = None) -> tuple[int, int, bool]:
        def page(tx: Tx, after: int) -> _Page | None:
            found = tx.one("events.page_of_turns", {"after": after, "limit": _TURN_PAGE})
            if found is None or not found["turns"]:
                return None
            values = {"after": after, "last": found["last"], "kept": _kept_runs(tx)}
            return _Page(rows=tx.all("events.old_turns", values), last=found["last"], newest_ms=found["newest_ms"])

        goal = await self._goal("turns", self._config.turns, 0)
        return await self._walk(goal, page, _drop_turns if drop else None, until_s)

    async def _walk(
        self,
        goal: Goal,
        page: Callable[[Tx, int], _Page | None],
        drop: Callable[[Tx, Sequence[Row]], int] | None,
        until_s: float | None,
    ) -> tuple[int, int, bool]:
        """Rows and bytes that went (or would go), and whether everything was looked at."""
        after, rows, size = 0, 0, 0
        oldest_kept_ms = max(goal.before_ms, goal.audit_before_ms)
        while True:
            if until_s is not None and self._journal.clock.monotonic_s() > until_s:
                return rows, size, False
            found = await self._journal.read(lambda tx, after=after: page(tx, after))  # type: ignore[misc]
            if found is None:
                return rows, size, True
            chosen = choose(found.rows, goal)
            goal = goal.without(chosen)
            size += sum(row["bytes"] for row in chosen)
            if drop is None:
                rows += len(chosen)
            else:
                for unit in _units(chosen):
                    rows += await self._commit(lambda tx, unit=unit: drop(tx, unit))  # type: ignore[misc]
            after = found.last
            if goal.met and found.newest_ms >= oldest_kept_ms:
                return rows, size, True

    async def _goal(self, kind: str, kept: KeptEvents | KeptTurns, audit_before_ms: int) -> Goal:
        rows = size = 0
        extent = await self._journal.read(lambda tx: tx.one("events.extent"))
        most = None if kept.megabytes is None else int(kept.megabytes * _MEGABYTE)
        assert extent is not None  # noqa: S101  it always has a row
        # While the whole store is below a limit, nothing of it has to be measured.
        if (kept.count is not None and extent[kind] > kept.count) or (most is not None and extent["bytes"] > most):
            rows, size = await self._measure(kind)
        return Goal(
            before_ms=0 if kept.days is None else self._before(kept.days),
            audit_before_ms=audit_before_ms,
            fresh_ms=self._journal.clock.now_ms() - FRESH_MS,
            rows=0 if kept.count is None else rows - kept.count,
            bytes=0 if most is None else size - most,
        )

    async def _measure(self, kind: str) -> tuple[int, int]:
        after = rows = size = 0
        statement = f"events.page_of_{kind}"
        limit = UNIT_ROWS if kind == "events" else _TURN_PAGE
        while True:
            values = {"after": after, "audit": json.dumps(AUDIT), "limit": limit}
            found = await self._journal.read(lambda tx, values=values: tx.one(statement, values))  # type: ignore[misc]
            if found is None or not found[kind]:
                return rows, size
            rows += found["ordinary"] if kind == "events" else found["turns"]
            size += found["bytes"]
            after = found["last"]

    # ---------------------------------------------------------------------------------- the others

    async def _drop_checkpoints(self) -> tuple[int, int]:
        days = self._config.turns.days
        values = {
            "keep": self._config.checkpoints,
            "ended_before_ms": 0 if days is None else self._before(days),
            "limit": UNIT_ROWS // 10,  # they are large
        }
        count = size = 0
        while spare := await self._journal.read(lambda tx: tx.all("events.spare_checkpoints", values)):
            ids = json.dumps([row["n"] for row in spare])
            count += await self._commit(lambda tx, ids=ids: tx.run("events.drop_checkpoints", {"ids": ids}))  # type: ignore[misc]
            size += sum(row["bytes"] for row in spare)
        return count, size

    async def _drop_keys(self) -> int:
        values = {"before_ms": self._before(self._config.idempotency_days), "limit": UNIT_ROWS}
        first = await self._journal.read(lambda tx: tx.one("events.oldest_key"))
        if first is None or first["at_ms"] >= values["before_ms"]:
            return 0
        count = 0
        while gone := await self._commit(lambda tx: tx.run("events.drop_keys", values)):
            count += gone
        return count

    async def _drop_rule_stats(self) -> None:
        values = {"before_minute": self._before(self._config.rule_stats_days) // _MINUTE_MS, "limit": UNIT_ROWS}
        await self._drop_while("events.old_rule_stat", "events.drop_rule_stats", values)

    async def _drop_letters(self) -> None:
        days = self._config.dead_letters_days
        values = {
            "before_ms": 0 if days is None else self._before(days),
            "redriven_before_ms": self._before(self._config.redriven_days),
            "keep": self._config.dead_letters,
            "fresh_ms": self._journal.clock.now_ms() - FRESH_MS,
            "limit": UNIT_ROWS,
        }
        await self._drop_while("events.old_letter", "events.drop_letters", values)

    async def _drop_while(self, look: str, drop: str, values: dict[str, Any]) -> None:
        """A statement that removes a little, as long as there is something; where there is nothing, nobody waits."""
        while await self._journal.read(lambda tx: tx.one(look, values)):
            if not await self._commit(lambda tx: tx.run(drop, values)):
                return

    async def _drop_some(self, choose_by: str, drop_by: str, column: str, **more: Any) -> None:
        def look(tx: Tx) -> list[Any]:
            values = {**more, "limit": UNIT_ROWS, "kept": _kept_runs(tx)}
            return [row[column] for row in tx.all(choose_by, values)]

        def drop(tx: Tx, ids: list[Any]) -> int:
            return tx.run(drop_by, {**more, "ids": json.dumps(ids), "kept": _kept_runs(tx)})

        while ids := await self._journal.read(look):
            if not await self._commit(lambda tx, ids=ids: drop(tx, ids)):  # type: ignore[misc]
                return

    async def _drop_rule_versions(self) -> None:
        """Forget what rules were at all but the newest versions of the table, and say so before the first one goes."""
        kept = {"keep": self._config.rule_versions}
        if await self._journal.read(lambda tx: tx.one("events.raised_floor", kept)) is not None:
            await self._commit(lambda tx: tx.run("events.raise_floor", kept))
        await self._drop_some("events.old_rule_versions", "events.drop_rule_versions", "row")

    async def _drop_roots(self) -> None:
        def look(tx: Tx, after: str) -> tuple[str, list[str]] | None:
            page = tx.one("events.page_of_roots", {"after": after, "limit": UNIT_ROWS})
            if page is None or not page["roots"]:
                return None
            old = tx.all("events.old_roots", {"after": after, "last": page["last"]})
            return page["last"], [row["root_id"] for row in old]

        after = ""
        while found := await self._journal.read(lambda tx, after=after: look(tx, after)):  # type: ignore[misc]
            after, roots = found
            if roots:
                ids = json.dumps(roots)
                await self._commit(lambda tx, ids=ids: tx.run("events.drop_roots", {"ids": ids}))  # type: ignore[misc]

    async def _drop_stray_holds(self) -> None:
        for _ in range(HOLD_PAGES):
            place = {"after": self._holds_after, "limit": UNIT_ROWS}
            page = await self._journal.read(lambda tx, place=place: tx.one("events.page_of_holds", place))  # type: ignore[misc]
            if page is None or not page["holds"]:
                self._holds_after = 0
                return
            values = {"after": self._holds_after, "last": page["last"]}
            if await self._journal.read(lambda tx, values=values: tx.one("events.stray_hold", values)):  # type: ignore[misc]
                await self._commit(lambda tx, values=values: tx.run("events.drop_stray_holds", values))  # type: ignore[misc]
            self._holds_after = page["last"]

    async def _commit(self, work: Callable[[Tx], int]) -> int:
        gone = await self._journal.commit(work)
        await asyncio.sleep(PAUSE_S)
        return gone

    def _before(self, days: float) -> int:
        return self._journal.clock.now_ms() - int(days * _DAY_MS)


def _kept_runs(tx: Tx) -> str:
    return json.dumps([row["orchestration_id"] for row in tx.all("events.kept_runs")])


def _units(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Parts of about `UNIT_ROWS` rows of the store, counting those that go along with a row."""
    unit: list[Row] = []
    records = 0
    for row in rows:
        weight = row["records"]
        if unit and records + weight > UNIT_ROWS:
            yield unit
            unit, records = [], 0
        unit.append(row)
        records += weight
    if unit:
        yield unit


def _drop_turns(tx: Tx, rows: Sequence[Row]) -> int:
    chosen = {"ids": json.dumps([row["turn_id"] for row in rows]), "kept": _kept_runs(tx)}
    ids = {"ids": json.dumps([row["turn_id"] for row in tx.all("events.droppable_turns", chosen)])}
    for statement in (
        "events.drop_holds_of_turns",
        "events.drop_semantic_entries",
        "events.drop_semantic_looks",
        "events.drop_calls",
        "events.drop_tool_calls",
        "events.drop_notes",
        "events.drop_injections",
    ):
        tx.run(statement, ids)
    return tx.run("events.drop_turns", ids)
