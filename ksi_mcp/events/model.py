"""What an event is, and what may be one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ksi_mcp.db import Row
from ksi_mcp.errors import Invalid
from ksi_mcp.ids import EventId

MAX_DATA_BYTES = 64 * 1024
"""The largest `data` of an event, as JSON in UTF-8."""
MAX_DEPTH = 64
"""Deepest nesting of what comes from outside: what is stored deeper could never be shown again."""

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `hops` counts deliveries since the last turn, `depth` turns since the first cause."""

    event_id: EventId
    name: str
    data: dict[str, Any]
    source: str
    agent_id: str | None
    orchestration_id: str | None
    cause_id: str | None
    root_id: str
    hops: int
    depth: int
    at_ms: int
    subject: object = field(default=None, compare=False, repr=False)
    """What it is about, as its transaction left it; only in the process that committed it, and never stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events a query is for; a field that is None does not restrict."""

    names: tuple[str, ...] = ()
    agent_id: str | None = None
    orchestration_id: str | None = None
    root_id: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    after_id: int = 0
    visible_to: frozenset[str] | None = None
    """Orchestration and agent ids that the asker may see; None for everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Newest first. `cursor` asks for the older ones; None when there are none."""

    events: tuple[Event, ...]
    cursor: str | None


def encode_data(name: str, data: dict[str, Any]) -> str:
    """The data as JSON.

    Raises:
        Invalid: it is not JSON, larger than `MAX_DATA_BYTES`, or nested too deeply.
    """
    return encode_json(f"the data of event {name[:100]!r}", data)


def encode_json(what: str, value: Any) -> str:
    """A value from outside as JSON; `what` names it in errors.

    Raises:
        Invalid: it is not JSON, larger than `MAX_DATA_BYTES`, or nested deeper than `MAX_DEPTH`.
    """
    try:
        text = _compact(value)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as failure:
        raise Invalid(f"{what} is not JSON: {failure}") from None
    if size > MAX_DATA_BYTES:
        raise Invalid(
            f"{what} has {size:,} bytes, the limit is {MAX_DATA_BYTES:,}", hint="send a reference or a summary"
        )
    if text.count("{") + text.count("[") > MAX_DEPTH:  # only then can it be too deep
        check_depth(what, value)
    return text


def check_depth(what: str, value: Any) -> None:
    """See that a JSON value can be shown again.

    Raises:
        Invalid: it is nested deeper than `MAX_DEPTH`.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list | tuple)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise Invalid(f"{what} is nested deeper than {MAX_DEPTH} levels", hint="send it flatter, or as text")


def event_of(row: Row) -> Event:
    """The record behind a row."""
    return Event(
        event_id=EventId(row["event_id"]),
        name=row["name"],
        data=json.loads(row["data"]),
        source=row["source"],
        agent_id=row["agent_id"],
        orchestration_id=row["orchestration_id"],
        cause_id=row["cause_id"],
        root_id=row["root_id"],
        hops=row["hops"],
        depth=row["depth"],
        at_ms=row["at_ms"],
    )
