"""Figures of a window of time: what waits, how turns ended, how long they took, what they cost.

Everything is read through indexes and bounded: the log says which turns ended since when, and every session with
work has exactly one head.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ksi_mcp.db import Row, Tx
from ksi_mcp.queues.model import FINAL

MAX_TURNS = 5_000
"""Ended turns that one look takes in, the newest; more than that makes the figures partial."""
MAX_LANES = 20_000
MAX_SCORES = 5_000
MAX_USES = 20_000
MAX_GROUPS = 100

By = Literal["agent", "orchestration", "model", "rule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whose figures: those the asker can see (None: all), of one run or of everything, since when."""

    since_ms: int
    orchestration_id: str | None = None
    agents: frozenset[str] | None = None
    runs: frozenset[str] | None = None


class Group:
    """The figures of one agent, run, model or rule, or of all. Times in ms, money in millionths of a US dollar."""

    def __init__(self, key: str, name: str | None = None) -> None:
        self.key = key
        self.name = name
        self.ended: Counter[str] = Counter()
        self.running = self.parked = self.waiting = self.oldest_wait_ms = 0
        self.calls = self.failed_calls = self.tokens = self.usd_micros = 0
        self.rescues = self.deliveries = self.failures = 0
        self.took_ms: list[int] = []
        self.waited_ms: list[int] = []
        self.scores: list[float] = []

    @property
    def timeout_rate(self) -> float | None:
        """Of the turns that ended."""
        ended = self.ended.total()
        return self.ended["timed_out"] / ended if ended else None

    @property
    def retry_rate(self) -> float | None:
        """Of the calls to a model: those that failed, or were lost."""
        return self.failed_calls / self.calls if self.calls else None

    @property
    def score_variance(self) -> float | None:
        """Of a sample; None for fewer than two."""
        if len(self.scores) < 2:  # noqa: PLR2004  one value does not vary
            return None
        mean = math.fsum(self.scores) / len(self.scores)
        return math.fsum((score - mean) ** 2 for score in self.scores) / (len(self.scores) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """All together, and each group. `partial`: more turns ended than were looked at, so only the newest count."""

    total: Group
    groups: tuple[Group, ...]
    groups_left_out: int
    partial: bool


def quantile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of all do not exceed (nearest rank); 0 for none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0


def measure(tx: Tx, scope: Scope, *, by: By | None) -> Metrics:
    """The figures of a window."""
    first = first_event(tx, scope.since_ms)
    common = {
        "orchestration_id": scope.orchestration_id,
        "visible": None if scope.agents is None else json.dumps(sorted(scope.agents)),
    }
    total, groups = Group("all"), dict[str, Group]()

    def both(key: str | None, name: str | None = None) -> list[Group]:
        if by is None or key is None:
            return [total]
        return [total, groups.setdefault(key, Group(key, name))]

    rows = tx.all("orchestrations.ended_turns", {**common, "first": first, "limit": MAX_TURNS + 1})
    turns = rows[:MAX_TURNS]
    models = _add_calls(tx, turns, both, by)
    for row in turns:
        for group in both(*_key(row, by, models.get(row["turn_id"]))):
            _add_turn(group, row)
    for row in tx.all("orchestrations.lanes", {**common, "limit": MAX_LANES}):
        for group in both(*_key(row, by, None)):
            _add_lane(group, row, tx.now_ms)
    _add_scores(tx, scope, common, both, by)
    if by == "rule":
        for row in tx.all("orchestrations.rule_uses", {**common, "first": first, "limit": MAX_USES}):
            group = groups.setdefault(str(row["rule_id"]), Group(str(row["rule_id"])))
            if row["name"] == "routing:delivered":
                group.deliveries += row["times"]
            else:
                group.failures += row["times"]
    ranked = sorted(groups.values(), key=lambda one: (-one.ended.total() - one.waiting - one.deliveries, one.key))
    return Metrics(
        total=total,
        groups=tuple(ranked[:MAX_GROUPS]),
        groups_left_out=max(len(ranked) - MAX_GROUPS, 0),
        partial=len(rows) > MAX_TURNS,
    )


def first_event(tx: Tx, since_ms: int) -> int:
    """The id of the first event at or after a moment; that of the next one if there is none yet."""
    last = tx.one("events.last_id")
    low, high = 1, 1 if last is None else int(last["event_id"]) + 1
    while low < high:
        middle = (low + high) // 2
        row = tx.one("orchestrations.event_at", {"event_id": middle})
        if row is None or row["at_ms"] >= since_ms:
            high = middle
        else:
            low = int(row["event_id"]) + 1
    return low


Both = Callable[[str | None, str | None], list[Group]]


def _key(row: Row, by: By | None, model: str | None) -> tuple[str | None, str | None]:
    if by == "agent":
        return row["session_id"], row["name"]
    if by == "orchestration":
        return row["orchestration_id"], None
    return (model or row["model"], None) if by == "model" else (None, None)


def _add_calls(tx: Tx, turns: Sequence[Row], both: Both, by: By | None) -> dict[str, str]:
    """Add up the calls of these turns; the model that each asked last."""
    of_turn = {row["turn_id"]: row for row in turns}
    models: dict[str, str] = {}
    for row in tx.all("orchestrations.calls_of_turns", {"turn_ids": json.dumps(list(of_turn))}):
        models[row["turn_id"]] = row["model"]
        for group in both(*_key(of_turn[row["turn_id"]], by, row["model"])):
            group.calls += row["calls"]
            group.failed_calls += row["failed"]
            group.tokens += row["tokens"]
            group.usd_micros += row["usd_micros"]
    return models


def _add_turn(group: Group, row: Row) -> None:
    if row["state"] not in FINAL:
        return
    group.ended[row["state"]] += 1
    group.rescues += 1 if row["rescues"] else 0
    if row["started_at_ms"] is not None:
        group.waited_ms.append(row["started_at_ms"] - row["created_at_ms"])
        if row["state"] == "done":
            group.took_ms.append(row["finished_at_ms"] - row["started_at_ms"])


def _add_lane(group: Group, row: Row, now_ms: int) -> None:
    at_work, parked = row["state"] == "running", row["state"] == "parked"
    group.running += at_work
    group.parked += parked
    group.waiting += row["pending"] - (at_work or parked)
    since_ms = row["next_ms"] if at_work or parked else row["created_at_ms"]
    if since_ms is not None:
        group.oldest_wait_ms = max(group.oldest_wait_ms, now_ms - since_ms)


def _add_scores(tx: Tx, scope: Scope, common: dict[str, str | None], both: Both, by: By | None) -> None:
    values = {**common, "limit": MAX_SCORES, "since_ms": scope.since_ms}
    for row in tx.all("orchestrations.scores", values):
        key = {"agent": row["agent"], "orchestration": row["orchestration_id"]}.get(by or "")
        for group in both(key, None):
            group.scores.append(row["score"])
    if by in (None, "orchestration"):
        runs = None if scope.runs is None else json.dumps(sorted(scope.runs))
        for row in tx.all("orchestrations.scores_of_runs", {**values, "visible_runs": runs}):
            for group in both(row["orchestration_id"], None):
                group.scores.append(row["score"])
