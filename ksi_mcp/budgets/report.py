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
    those calls was not learned. Both together are what the accounts say. `reserved_usd_micros` is set aside for calls
    under way; `saved_usd_micros` is what the answers that were used again cost when they were bought. `failed` calls
    were tried again, or given up.
    """

    label: str
    turns: int
    calls: int
    reused: int
    under_way: int
    failed: int
    input_tokens: int
    output_tokens: int
    cache_tokens: int
    usd_micros: int
    uncertain_calls: int
    uncertain_usd_micros: int
    reserved_usd_micros: int
    saved_usd_micros: int

    @property
    def booked_usd_micros(self) -> int:
        """What the accounts say that it cost: the certain and the uncertain."""
        return self.usd_micros + self.uncertain_usd_micros


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which calls a report is about; None does not restrict. `agents`: those that the asker can see."""

    orchestration_id: str | None = None
    since_ms: int | None = None
    agents: Iterable[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """The last group of the page before."""

    label: str
    booked_usd_micros: int


def spend(tx: Tx, wanted: Wanted, *, group_by: GroupBy, limit: int) -> tuple[list[Spend], Spend, bool]:
    """The groups, dearest first (days from the newest), the total of all, and whether there are more groups.

    The total is over every call, shown or not.
    """
    found, more = groups(tx, wanted, group_by=group_by, limit=limit)
    return found, total(tx, wanted), more


def groups(
    tx: Tx, wanted: Wanted, *, group_by: GroupBy, limit: int, after: After | None = None
) -> tuple[list[Spend], bool]:
    """A page of the groups, and whether there are more."""
    place = {
        "after": None if after is None else after.label,
        "after_usd_micros": None if after is None else after.booked_usd_micros,
    }
    rows = tx.all("budgets.spend", {**_values(wanted), **place, "group_by": group_by, "limit": limit + 1})
    return [_spend_of(row) for row in rows[:limit]], len(rows) > limit


def total(tx: Tx, wanted: Wanted) -> Spend:
    """What all the calls cost together."""
    place = {"group_by": "all", "limit": 1, "after": None, "after_usd_micros": None}
    row = tx.one("budgets.spend", {**_values(wanted), **place})
    if row is not None:
        return _spend_of(row)
    return Spend(
        label="", turns=0, calls=0, reused=0, under_way=0, failed=0, input_tokens=0, output_tokens=0, cache_tokens=0,
        usd_micros=0, uncertain_calls=0, uncertain_usd_micros=0, reserved_usd_micros=0, saved_usd_micros=0,
    )  # fmt: skip


def _values(wanted: Wanted) -> dict[str, str | int | None]:
    return {
        "orchestration_id": wanted.orchestration_id,
        "since_ms": wanted.since_ms,
        "agents": None if wanted.agents is None else json.dumps(sorted(wanted.agents)),
    }


def _spend_of(row: Row) -> Spend:
    return Spend(**{name: row[name] for name in row.keys()})  # noqa: SIM118  a row is no mapping
