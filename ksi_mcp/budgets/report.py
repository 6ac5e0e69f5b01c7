"""Where the money went: exact sums over the provider calls, in whole micro-dollars."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ksi_mcp.db import Row, Tx

GroupBy = Literal["agent", "model", "orchestration", "day"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What the calls of one group cost.

    `usd_micros` is what was billed for certain; `uncertain_usd_micros` was booked in full because the true cost of
    those calls was not learned. Both together are what the accounts say.
    """

    label: str
    turns: int
    calls: int
    reused: int
    under_way: int
    input_tokens: int
    output_tokens: int
    cache_tokens: int
    usd_micros: int
    uncertain_calls: int
    uncertain_usd_micros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which calls a report is about; None does not restrict. `agents`: those that the asker can see."""

    orchestration_id: str | None = None
    since_ms: int | None = None
    agents: Iterable[str] | None = None


def spend(tx: Tx, wanted: Wanted, *, group_by: GroupBy, limit: int) -> tuple[list[Spend], Spend, bool]:
    """The groups, dearest first (days from the newest), the total of all, and whether there are more groups.

    The total is over every call, shown or not.
    """
    values = {
        "orchestration_id": wanted.orchestration_id,
        "since_ms": wanted.since_ms,
        "agents": None if wanted.agents is None else json.dumps(sorted(wanted.agents)),
    }
    rows = tx.all("budgets.spend", {**values, "group_by": group_by, "limit": limit + 1})
    total = tx.one("budgets.spend", {**values, "group_by": "all", "limit": 1})
    groups = [_spend_of(row) for row in rows[:limit]]
    nothing = Spend(
        label="", turns=0, calls=0, reused=0, under_way=0, input_tokens=0, output_tokens=0, cache_tokens=0,
        usd_micros=0, uncertain_calls=0, uncertain_usd_micros=0,
    )  # fmt: skip
    return groups, nothing if total is None else _spend_of(total), len(rows) > limit


def _spend_of(row: Row) -> Spend:
    return Spend(**{name: row[name] for name in row.keys()})  # noqa: SIM118  a row is no mapping
