"""Says, once, that something is wrong: too much waits, too much times out, a turn is stuck.

Each condition is reported when it begins and when it is over (`monitor:cleared`), with some room between the two,
so that one that hovers at its threshold does not chatter. What was reported is read back from the log, so a new
worker does not report it again.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from ksi_mcp.completions.request import MAX_ASKED_S, MAX_TIMEOUT_S
from ksi_mcp.config import MonitorConfig
from ksi_mcp.db import Row, Tx
from ksi_mcp.events.journal import Journal
from ksi_mcp.ids import RootId
from ksi_mcp.orchestrations.metrics import MAX_LANES, MAX_TURNS, first_event
from ksi_mcp.permissions import SYSTEM, Context, fresh_context, within

logger = logging.getLogger(__name__)

CLEARED_SHARE = 0.8
"""A condition is over when its value is at most this share of the threshold."""
EVENTS = {"backlog": "monitor:backlog", "timeout_rate": "monitor:timeout_rate"}
MIN_ENDED = 5
"""A rate of fewer turns than that says nothing."""
MAX_SILENT = 1_000
MAX_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The value of a condition, its threshold, and what is said of it."""

    condition: str
    value: float
    threshold: float
    facts: dict[str, Any]


class Monitor:
    """Looks every few seconds; runs in the worker's process."""

    def __init__(self, journal: Journal, config: MonitorConfig) -> None:
        self._journal = journal
        self._config = config
        self._raised: dict[str, bool] = {}
        self._silent: set[tuple[str, int]] = set()
        self._stuck: set[str] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._config.every_s)
            try:
                await self.look()
            except Exception:  # what watches must not be what ends the worker
                logger.exception("the monitor could not look; it looks again")

    async def look(self) -> None:
        """Read the figures, and report what begins or is over."""
        readings, silent = await self._journal.read(self._read)
        for reading in readings:
            await self._judge(reading)
        still = {(row["turn_id"], row["attempt"]): row for row in silent}
        # One that was silent at the last look too; a turn that was claimed a moment ago has an old life behind it.
        stuck = [row for key, row in still.items() if key in self._silent and row["turn_id"] not in self._stuck]
        self._silent = set(still)
        self._stuck &= {row["turn_id"] for row in silent}
        for row in stuck:
            await self._journal.commit(lambda tx, row=row: self._report_stuck(tx, row))  # type: ignore[misc]
            self._stuck.add(row["turn_id"])

    # --------------------------------------------------------------------------------- reading

    def _read(self, tx: Tx) -> tuple[list[Reading], list[Row]]:
        readings = []
        if self._config.backlog is not None:
            readings.append(self._backlog(tx, self._config.backlog))
        if self._config.timeout_rate is not None:
            readings.append(self._timeouts(tx, self._config.timeout_rate))
        return readings, self._silent_turns(tx)

    def _backlog(self, tx: Tx, threshold: int) -> Reading:
        everything = {"orchestration_id": None, "visible": None, "limit": MAX_LANES}
        waiting: list[tuple[int, str, str]] = []
        oldest_ms = tx.now_ms
        for row in tx.all("orchestrations.lanes", everything):
            begun = row["state"] in ("running", "parked")
            count = row["pending"] - begun
            if count == 0 or row["held"]:  # what is suspended is no backlog
                continue
            waiting.append((count, row["session_id"], row["name"]))
            oldest_ms = min(oldest_ms, row["next_ms"] if begun else row["created_at_ms"])
        most = sorted(waiting, reverse=True)[:MAX_NAMED]
        total = sum(count for count, _, _ in waiting)
        facts: dict[str, Any] = {
            "waiting": total,
            "oldest_wait_s": round((tx.now_ms - oldest_ms) / 1000, 3),
            "agents": [{"agent": agent, "name": name, "waiting": count} for count, agent, name in most],
        }
        return Reading(condition="backlog", value=total, threshold=threshold, facts=facts)

    def _timeouts(self, tx: Tx, threshold: float) -> Reading:
        first = first_event(tx, tx.now_ms - round(self._config.window_s * 1000))
        everything = {"orchestration_id": None, "visible": None}
        rows = tx.all("orchestrations.ended_turns", {**everything, "first": first, "limit": MAX_TURNS})
        timed_out = sum(row["state"] == "timed_out" for row in rows)
        rate = timed_out / len(rows) if len(rows) >= MIN_ENDED else 0.0
        facts = {"rate": round(rate, 4), "ended": len(rows), "timed_out": timed_out, "window_s": self._config.window_s}
        return Reading(condition="timeout_rate", value=rate, threshold=threshold, facts=facts)

    def _silent_turns(self, tx: Tx) -> list[Row]:
        if self._config.stuck_s is None:
            return []
        grace_ms = round(self._config.stuck_s * 1000)
        rows = tx.all("orchestrations.silent_turns", {"before_ms": tx.now_ms - grace_ms, "limit": MAX_SILENT})
        return [row for row in rows if row["active_ms"] + _deadline_s(row) * 1000 + grace_ms <= tx.now_ms]

    # ------------------------------------------------------------------------------- reporting

    async def _judge(self, reading: Reading) -> None:
        raised = self._raised.get(reading.condition)
        if raised is None:
            raised = await self._journal.read(lambda tx: _open(tx, reading.condition))
        if not raised and reading.value >= reading.threshold:
            facts = {**reading.facts, "threshold": reading.threshold}
            await self._report(EVENTS[reading.condition], facts)
            raised = True
        elif raised and reading.value <= reading.threshold * CLEARED_SHARE:
            facts = {"condition": reading.condition, "threshold": reading.threshold, **reading.facts}
            await self._report("monitor:cleared", facts)
            raised = False
        self._raised[reading.condition] = raised

    async def _report(self, name: str, facts: dict[str, Any]) -> None:
        await self._journal.commit(lambda tx: self._journal.record(tx, name, facts, fresh_context(SYSTEM)))

    def _report_stuck(self, tx: Tx, row: Row) -> None:
        cause = f"turn:{row['turn_id']}"
        if tx.one("orchestrations.reported_stuck", {"agent_id": row["session_id"], "cause_id": cause}) is not None:
            return
        ctx = Context(actor=SYSTEM, root_id=RootId(row["root_id"]), cause_id=cause, depth=row["depth"])
        facts = {
            "agent": row["session_id"],
            "agent_name": row["name"],
            "turn": row["turn_id"],
            "attempt": row["attempt"],
            "running_s": round((tx.now_ms - row["started_at_ms"]) / 1000, 3),
            "silent_s": round((tx.now_ms - row["active_ms"]) / 1000, 3),
            "deadline_s": _deadline_s(row),
        }
        inside = within(ctx, row["orchestration_id"])
        self._journal.record(tx, "monitor:stuck_agent", facts, inside, agent_id=row["session_id"])


def _deadline_s(row: Row) -> float:
    """The longest that a call of that turn may take: what was asked for, or the most that a default may be."""
    return float(MAX_TIMEOUT_S if row["asked_s"] is None else min(row["asked_s"], MAX_ASKED_S))


def _open(tx: Tx, condition: str) -> bool:
    """Whether a condition was reported and not cleared since."""
    began = tx.one("orchestrations.newest_of_condition", {"name": EVENTS[condition], "condition": None})
    over = tx.one("orchestrations.newest_of_condition", {"name": "monitor:cleared", "condition": condition})
    return began is not None and (over is None or over["event_id"] < began["event_id"])
