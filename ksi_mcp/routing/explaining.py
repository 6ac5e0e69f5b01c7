"""What only the store knows of a match: whom it would choose, what its join still waits for, where its event went."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ksi_mcp.db import Tx
from ksi_mcp.events.model import Event
from ksi_mcp.routing.choosing import choose, takers
from ksi_mcp.routing.collecting import missing
from ksi_mcp.routing.matching import Match
from ksi_mcp.routing.rules import Rule

MAX_WENT: Final = 200
"""Reports that are looked at for one event."""
MAX_CHANGED: Final = 50
_PREFIX: Final = "routing:"
_REPORTS: Final = tuple(
    _PREFIX + name
    for name in (
        "delivered", "undeliverable", "mapping_failed", "condition_failed", "loop_stopped", "rate_limited", "joined",
    )
)  # fmt: skip
_CHANGES: Final = tuple(_PREFIX + name for name in ("rule_added", "rule_modified", "rule_deleted", "rule_expired"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Went:
    """What became of a recorded event by one rule, as it was reported then.

    `outcome`: delivered, undeliverable, mapping_failed, condition_failed, loop_stopped, rate_limited, joined (a join
    fired with it and `events`), or waits (a join has it, in the collection `key`).
    """

    outcome: str
    rule_id: str | None
    target: str | None = None
    turn: str | None = None
    new_event_id: int | None = None
    dead_letter: int | None = None
    reason: str | None = None
    key: str | None = None
    events: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Where a recorded event went. `pending`: the router has still to deliver it."""

    went: tuple[Went, ...]
    hidden: int
    pending: bool
    changed: tuple[str, ...]
    """Rules that were changed, added or ended after the event; at most 50."""


def foresee(tx: Tx, match: Match) -> Match:
    """The match, with what the store has to say of it as its `reason`."""
    said = ""
    if match.outcome == "collects":
        said = _would_collect(tx, match)
    elif match.outcome == "fires":
        said = _would_deliver(tx, match.rule)
    return replace(match, reason=said) if said else match


def past(tx: Tx, event: Event, matches: Sequence[Match], *, sees: Callable[[str], bool]) -> Past:
    """What the log and the joins say of a recorded event. `sees`: whether the asker may know of a rule."""
    values = {"event_id": event.event_id, "root_id": event.root_id, "limit": MAX_WENT}
    rows = [
        *tx.all("routing.reports_of", {**values, "names": json.dumps(_REPORTS)}),
        *tx.all("routing.joined_with", values),
    ]
    found = {row["event_id"]: _went(row["name"], json.loads(row["data"])) for row in rows}
    every = [found[event_id] for event_id in sorted(found)]
    for match in matches:
        own = {"rule_id": match.rule.rule_id, "key": match.key, "event_id": event.event_id}
        if match.outcome == "collects" and tx.one("routing.join_has", own) is not None:
            still = ", ".join(missing(tx, match.rule, match.key or ""))
            reason = f"its join waits for {still}" if still else "it waits for the next collection"
            every.append(Went(outcome="waits", rule_id=match.rule.rule_id, key=match.key, reason=reason))
    seen = [each for each in every if each.rule_id is None or sees(each.rule_id)]
    changes = tx.all(
        "routing.changed_after",
        {"event_id": event.event_id, "names": json.dumps(_CHANGES), "limit": MAX_CHANGED},
    )
    return Past(
        went=tuple(seen),
        hidden=len(every) - len(seen),
        pending=tx.one("routing.waiting_event", {"event_id": event.event_id}) is not None,
        changed=tuple(row["rule_id"] for row in changes if sees(row["rule_id"])),
    )


def _went(name: str, data: dict[str, Any]) -> Went:
    return Went(
        outcome=name.removeprefix(_PREFIX),
        rule_id=data.get("rule_id"),
        target=data.get("target"),
        turn=data.get("turn"),
        new_event_id=data.get("new_event_id"),
        dead_letter=data.get("dead_letter"),
        reason=data.get("reason"),
        key=data.get("key"),
        events=tuple(data.get("events") or ()),
    )


def _would_collect(tx: Tx, match: Match) -> str:
    rule, key = match.rule, match.key or ""
    assert rule.join is not None  # noqa: S101  only joins collect
    lacking = missing(tx, rule, key)
    fitting = [rule.join.parts[place].text for place in match.parts]
    part = next((text for text in fitting if text in lacking), None)
    of = f" of key {key!r}" if key else ""
    if part is None:
        return f"{fitting[0]} is there already in its collection{of}: it waits for the next one"
    left = ", ".join(text for text in lacking if text != part)
    return f"it is {part} in the collection{of}, which then " + (f"waits for {left}" if left else "is complete")


def _would_deliver(tx: Tx, rule: Rule) -> str:
    if rule.rate is not None:
        row = tx.one("routing.state", {"rule_id": rule.rule_id})
        over_ms = 0 if row is None else row["window_ms"] + rule.rate.per_ms
        if row is not None and row["in_window"] >= rule.rate.count and row["window_ms"] <= tx.now_ms < over_ms:
            return f"it is beyond its rate of {rule.rate.count} in {rule.rate.per_s:g} s: nothing is delivered now"
    if rule.target.mode != "all":
        chosen = choose(tx, rule)
        return f"to {chosen}" if chosen else f"none of {rule.target} takes messages any more: it would be a dead letter"
    gone = [name for name in rule.target.agents if name not in takers(tx, rule)]
    return f"agent {', '.join(gone)} takes no messages: that would be a dead letter" if gone else ""
