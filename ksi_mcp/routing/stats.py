"""What rules did: figures by the minute, over a window."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ksi_mcp.agents import reach
from ksi_mcp.db import Row, Tx
from ksi_mcp.permissions import Context
from ksi_mcp.routing import governance

_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFigures:
    """Of one rule, or of all (`rule_id` None). Times are in ms, from an event to its delivery.

    `limited`: events beyond the rule's rate. `living`: the rule is still there. `last_ms`: the minute of its last use.
    """

    rule_id: str | None
    matches: int
    deliveries: int
    failures: int
    limited: int
    latency_ms: int
    slowest_ms: int
    last_ms: int | None
    living: bool = True

    @property
    def mean_ms(self) -> float | None:
        """From event to delivery, on average; None if nothing was delivered."""
        return self.latency_ms / self.deliveries if self.deliveries else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of a window. `newest_ms`: when any rule was last used, in the window or before.

    `unmatched`: living rules without any match, as long as figures go back; `unmatched_count` counts also those that
    are not named. `redriven` dead letters were delivered later; they are in no other figure. None: not the actor's.
    """

    since_ms: int
    total: RuleFigures
    rules: tuple[RuleFigures, ...]
    rules_left_out: int
    unmatched: tuple[str, ...]
    unmatched_count: int
    newest_ms: int | None
    redriven: int | None


def visible_rules(tx: Tx, ctx: Context) -> str | None:
    """The ids of the rules that the actor may see, as a JSON list; None: all."""
    viewer = governance.viewer_of(tx, ctx)
    if viewer is None:
        return None
    values = {"viewers": json.dumps(sorted(viewer.agents)), "viewer_orchestration": viewer.orchestration_id}
    return json.dumps([row["rule_id"] for row in tx.all("routing.visible_to", values)])


def measure(tx: Tx, ctx: Context, *, rule_id: str | None, window_ms: int, limit: int) -> Measured:
    """What the rules that the actor may see did, the busiest first. The window begins with a whole minute."""
    since_minute = max(tx.now_ms - window_ms, 0) // _MINUTE_MS
    values = {
        "rule_id": rule_id,
        "since_minute": since_minute,
        "mine": visible_rules(tx, ctx),
        "now_ms": tx.now_ms,
        "limit": limit,
    }
    rows = tx.all("routing.stats", values)
    total = tx.one("routing.stats_total", values)
    unmatched = tx.all("routing.unmatched", values)
    assert total is not None  # noqa: S101  a sum always has a row
    newest = tx.one("routing.newest_stat", values) if total["last_minute"] is None else None
    redriven = None
    if reach.routable(tx, ctx) is None:
        counted = tx.one("routing.redriven_since", {"since_ms": since_minute * _MINUTE_MS, "rule_id": rule_id})
        redriven = 0 if counted is None else int(counted["letters"])
    return Measured(
        since_ms=since_minute * _MINUTE_MS,
        total=_figures(total, None),
        rules=tuple(_figures(row, row["rule_id"], living=bool(row["living"])) for row in rows),
        rules_left_out=int(rows[0]["rules"]) - len(rows) if rows else 0,
        unmatched=tuple(row["rule_id"] for row in unmatched),
        unmatched_count=int(unmatched[0]["total"]) if unmatched else 0,
        newest_ms=_moment(total["last_minute"] if newest is None else newest["minute"]),
        redriven=redriven,
    )


def _figures(row: Row, rule_id: str | None, *, living: bool = True) -> RuleFigures:
    return RuleFigures(
        rule_id=rule_id,
        matches=row["matches"] or 0,
        deliveries=row["deliveries"] or 0,
        failures=row["failures"] or 0,
        limited=row["limited"] or 0,
        latency_ms=row["latency_ms"] or 0,
        slowest_ms=row["slowest_ms"] or 0,
        last_ms=_moment(row["last_minute"]),
        living=living,
    )


def _moment(minute: int | None) -> int | None:
    return None if minute is None else minute * _MINUTE_MS
