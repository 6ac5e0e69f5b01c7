"""The state of joins: what has arrived, and when a collection is complete or its time is up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ksi_mcp.db import Tx
from ksi_mcp.errors import Exhausted
from ksi_mcp.events.model import MAX_DATA_BYTES, Event
from ksi_mcp.ids import EventId
from ksi_mcp.routing.joins import Join
from ksi_mcp.routing.rules import Rule

MAX_OPEN: Final = 10_000
"""Collections of one rule at a time: made-up keys cannot fill the store."""
MAX_REPEATS: Final = 1_000
"""Events of one part that wait for the next collections of one key."""

_FIELDS: Final = (
    "event_id", "name", "data", "source", "agent_id", "orchestration_id", "cause_id", "root_id", "hops", "depth",
    "at_ms",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a join fires with: `event` is the newest one of it, with all that was collected in the place of its data."""

    event: Event
    partial: bool


def collect(tx: Tx, rule: Rule, event: Event, *, parts: Sequence[int], key: str) -> Collected | None:
    """Keep an event for a join, as the first of `parts` still missing; what it fires with, if that was the last.

    Raises:
        Exhausted: too many collections of the rule are open, or too many such events wait; nothing was kept.
    """
    join = rule.join
    assert join is not None  # noqa: S101  only called for joins
    own = {"rule_id": rule.rule_id, "key": key, "now_ms": tx.now_ms}
    waiting = _waiting(tx, rule.rule_id, key)
    fitting = [join.parts[place].text for place in parts]
    part = next((text for text in fitting if text not in waiting), fitting[0])
    _check_room(tx, own, part, waiting)
    kept = json.dumps({name: getattr(event, name) for name in _FIELDS}, ensure_ascii=False)
    tx.run("routing.join_arrived", {**own, "part": part, "event_id": event.event_id, "event": kept})
    _open(tx, rule, join, key)
    if _missing(join, waiting | {part}):
        return None
    return _take(tx, rule, join, key)


def missing(tx: Tx, rule: Rule, key: str) -> tuple[str, ...]:
    """The parts that a collection still waits for."""
    return () if rule.join is None else _missing(rule.join, _waiting(tx, rule.rule_id, key))


def due(tx: Tx, *, limit: int) -> list[tuple[str, str]]:
    """The collections (rule, key) whose time is up, the oldest first."""
    return [(row["rule_id"], row["key"]) for row in tx.all("routing.join_due", {"now_ms": tx.now_ms, "limit": limit})]


def time_up(tx: Tx, rule: Rule, key: str) -> Collected | None:
    """What a join fires with whose time is up; None if nothing is to be fired (any more, or yet).

    A collection is also looked at when its rule was changed: it may be complete now, or have another time.
    """
    join = rule.join
    own = {"rule_id": rule.rule_id, "key": key, "now_ms": tx.now_ms}
    row = tx.one("routing.join_is_due", own)
    if row is None or join is None:
        return None
    if not rule.enabled:
        tx.run("routing.join_again", {**own, "due_ms": None})  # until it is enabled again
        return None
    waiting = _waiting(tx, rule.rule_id, key)
    if _missing(join, waiting):
        until_ms = None if join.timeout_s is None else row["opened_at_ms"] + _ms(join.timeout_s)
        if until_ms is None or until_ms > tx.now_ms:
            tx.run("routing.join_again", {**own, "due_ms": until_ms})
            return None
        if not waiting & {part.text for part in join.parts}:  # all that was there is not waited for any more
            forget(tx, rule.rule_id, key)
            return None
    return _take(tx, rule, join, key)


def forget(tx: Tx, rule_id: str, key: str | None = None) -> None:
    """Drop one collection of a rule, or all of them."""
    values = {"rule_id": rule_id, "key": key}
    tx.run("routing.join_forget", values)
    tx.run("routing.join_forget_parts", values)


def within_limit(data: dict[str, Any]) -> dict[str, Any]:
    """What was collected, as an event can carry it: where it is too large, the largest parts are left out.

    A part that is left out is `{"cut": true, "bytes": n, "event_id": id}`, and `cut` names it: the event has all of it.
    """
    parts, ids = data.get("parts"), data.get("events")
    if not isinstance(parts, dict) or not isinstance(ids, list) or (size := _size(data)) <= MAX_DATA_BYTES:
        return data
    sizes = {text: _size(part) for text, part in parts.items()}
    left_out: dict[str, Any] = {}
    cut: list[str] = []
    for text in sorted(sizes, key=lambda each: -sizes[each]):
        event_id = ids[list(parts).index(text)]
        left_out[text] = {"cut": True, "bytes": sizes[text], "event_id": event_id}
        cut.append(text)
        size += _size(left_out[text]) - sizes[text]
        if size + _size(cut) + len(',"cut":') <= MAX_DATA_BYTES:
            break
    return {**data, "parts": {**parts, **left_out}, "cut": cut}


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _waiting(tx: Tx, rule_id: str, key: str) -> set[str]:
    return {row["part"] for row in tx.all("routing.join_waiting", {"rule_id": rule_id, "key": key})}


def _missing(join: Join, waiting: set[str]) -> tuple[str, ...]:
    return tuple(part.text for part in join.parts if part.text not in waiting)


def _check_room(tx: Tx, own: Mapping[str, Any], part: str, waiting: set[str]) -> None:
    if not waiting:
        row = tx.one("routing.join_count", {"rule_id": own["rule_id"]})
        if row is not None and row["open"] >= MAX_OPEN:
            raise Exhausted(
                f"{row['open']:,} collections of rule {own['rule_id']!r} are open, the most there can be",
                hint="give its join a timeout_s, or fewer keys",
            )
    elif part in waiting:
        row = tx.one("routing.join_repeats", {**own, "part": part})
        if row is not None and row["waiting"] >= MAX_REPEATS:
            raise Exhausted(
                f"{row['waiting']:,} events wait as {part} of a join, the most there can be",
                hint="give its join a timeout_s, or a `by` that tells them apart",
            )


def _open(tx: Tx, rule: Rule, join: Join, key: str) -> None:
    tx.run(
        "routing.join_open",
        {
            "rule_id": rule.rule_id,
            "key": key,
            "timeout_ms": None if join.timeout_s is None else _ms(join.timeout_s),
            "orchestration_id": rule.orchestration_id,
            "now_ms": tx.now_ms,
        },
    )


def _take(tx: Tx, rule: Rule, join: Join, key: str) -> Collected:
    """Take the oldest arrival of each part; what is left begins the next collection."""
    own = {"rule_id": rule.rule_id, "key": key}
    wanted = [part.text for part in join.parts]
    tx.run("routing.join_drop", {**own, "parts": json.dumps(wanted)})
    kept = {row["part"]: json.loads(row["event"]) for row in tx.all("routing.join_take", own)}
    tx.run("routing.join_forget", own)
    if tx.all("routing.join_waiting", own):
        _open(tx, rule, join, key)
    found = {text: kept[text] for text in wanted if text in kept}
    lacking = [text for text in wanted if text not in kept]
    data: dict[str, Any] = {
        "key": key,
        "parts": {text: each["data"] for text, each in found.items()},
        "events": [each["event_id"] for each in found.values()],
        "partial": bool(lacking),
    }
    if lacking:
        data["missing"] = lacking
    newest = max(found.values(), key=lambda each: int(each["event_id"]))
    event = Event(**{**newest, "event_id": EventId(newest["event_id"])})
    agents = [each["source"] for each in found.values() if each["source"].startswith("agent:")]
    return Collected(
        event=replace(
            event,
            data=data,
            # The lower authority of all that it is made of: an agent's, if any of it is an agent's.
            source=event.source if event.source in agents or not agents else agents[-1],
            hops=max(each["hops"] for each in found.values()),
            depth=max(each["depth"] for each in found.values()),
            at_ms=tx.now_ms if lacking else event.at_ms,  # that it waited for its time limit was no delay
        ),
        partial=bool(lacking),
    )
