"""What goes on at this moment, for those who watch: busy agents first, in pages, each look bounded.

The look costs what is busy, not what there is: every session with work has exactly one head, and all the rest is read
for one page only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ksi_mcp.db import Row, Tx
from ksi_mcp.events.model import Event

MAX_LANES = 20_000
"""Busy agents that one look takes in; with more, the counts are those of the first."""
TAIL_CHARS = 400
"""Of what an agent writes, or has said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Whose: those the asker can see (None: all), of one run or of everything; `find` is looked for in their names."""

    orchestration_id: str | None = None
    agents: frozenset[str] | None = None
    runs: frozenset[str] | None = None
    find: str | None = None
    ended: bool = False

    @property
    def visible(self) -> str | None:
        """The agents as a statement takes them."""
        return None if self.agents is None else json.dumps(sorted(self.agents))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The queue at one moment: turns by what they are at, and how long the first of those that have not begun waits."""

    running: int
    waiting: int
    retrying: int
    blocked: int
    parked: int
    oldest_wait_ms: int
    partial: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some agents of those that fit, the busy ones first."""

    rows: Sequence[Row]
    fitting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An event went somewhere because of a rule."""

    event: Event
    source: str | None


def look(tx: Tx, sight: Sight, *, offset: int, limit: int) -> tuple[Load, Page]:
    """The queue, and one page of agents."""
    common = {"orchestration_id": sight.orchestration_id, "visible": sight.visible}
    heads = tx.all("orchestrations.overview_heads", {**common, "limit": MAX_LANES + 1})
    wanted = None if not sight.find else sight.find.lower()
    busy = [row["session_id"] for row in heads if wanted is None or wanted in _searched(row)]
    values = {**common, "find": wanted, "ended": int(sight.ended)}
    idle = tx.one("orchestrations.overview_idle_count", values)
    ids = busy[offset : offset + limit]
    if len(ids) < limit:
        place = {"limit": limit - len(ids), "offset": max(offset - len(busy), 0)}
        ids += [row["agent_id"] for row in tx.all("orchestrations.overview_idle", {**values, **place})]
    rows = tx.all("orchestrations.overview_agents", {"agent_ids": json.dumps(ids), "chars": TAIL_CHARS})
    page = Page(rows=rows, fitting=len(busy) + (0 if idle is None else idle["agents"]))
    return _load(heads, tx.now_ms), page


def _searched(row: Row) -> str:
    return f"{row['name']} {row['session_id']} {row['model']} {row['orchestration_id'] or ''}".lower()


def _load(heads: Sequence[Row], now_ms: int) -> Load:
    states = [row["state"] for row in heads]
    begun = sum(state in ("running", "parked", "retrying", "blocked") for state in states)
    since = [
        row["created_at_ms"] if row["state"] == "ready" else row["next_ms"]
        for row in heads
        if row["state"] == "ready" or row["next_ms"] is not None
    ]
    return Load(
        running=states.count("running"),
        waiting=sum(row["pending"] for row in heads) - begun,
        retrying=states.count("retrying"),
        blocked=states.count("blocked"),
        parked=states.count("parked"),
        oldest_wait_ms=max((now_ms - each for each in since), default=0),
        partial=len(heads) > MAX_LANES,
    )


def open_runs(tx: Tx, sight: Sight, *, limit: int) -> list[Row]:
    """Runs that are open, then those that ended last; or the one that was asked for."""
    if sight.orchestration_id is not None:
        row = tx.one("orchestrations.one", {"orchestration_id": sight.orchestration_id})
        return [] if row is None else [row]
    visible = None if sight.runs is None else json.dumps(sorted(sight.runs))
    found: dict[str, Row] = {}
    for state in ("running", "suspended", None):
        values = {"state": state, "pattern": None, "visible": visible, "before": 2**62, "limit": limit}
        for row in tx.all("orchestrations.page", values):
            found.setdefault(row["orchestration_id"], row)
    return list(found.values())[:limit]


def names_of(tx: Tx, agent_ids: Iterable[str]) -> dict[str, str]:
    """The names of agents, living or not."""
    rows = tx.all("orchestrations.overview_names", {"agent_ids": json.dumps(sorted(set(agent_ids)))})
    return {row["agent_id"]: row["name"] for row in rows}


def deliveries_of(tx: Tx, events: Sequence[Event]) -> list[Delivery]:
    """Of these events, those that tell of a delivery, with who had emitted what was delivered."""
    told = [event for event in events if event.name == "routing:delivered"]
    ids = json.dumps([event.data.get("event_id") for event in told])
    sources = {row["event_id"]: row["source"] for row in tx.all("orchestrations.overview_sources", {"event_ids": ids})}
    return [Delivery(event=event, source=sources.get(event.data.get("event_id"))) for event in told]
