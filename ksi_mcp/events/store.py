"""Rows of the event log."""

from __future__ import annotations

import json
import sys

from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.events.model import Event, EventFilter, EventPage, event_of
from ksi_mcp.events.patterns import compile_pattern

SCAN_LIMIT = 20_000
"""Rows looked at for one page when names have wildcards; the cursor goes on from there."""
_CHUNK = 500
MAX_CURSOR_CHARS = 18
"""Digits that surely fit into the store's integers."""


def page(tx: Tx, wanted: EventFilter, *, limit: int, cursor: str | None) -> EventPage:
    """Newest first; at most `limit`."""
    before = _before(cursor)
    literal = all("*" not in name for name in wanted.names)
    patterns = [compile_pattern(name) for name in wanted.names]
    found: list[Event] = []
    scanned = 0
    while len(found) < limit and scanned < SCAN_LIMIT:
        rows = tx.all(
            "events.page",
            {
                "before_id": before,
                "after_id": wanted.after_id,
                "names": json.dumps(wanted.names) if wanted.names and literal else None,
                "agent_id": wanted.agent_id,
                "orchestration_id": wanted.orchestration_id,
                "root_id": wanted.root_id,
                "since_ms": wanted.since_ms,
                "until_ms": wanted.until_ms,
                "visible": None if wanted.visible_to is None else json.dumps(sorted(wanted.visible_to)),
                "limit": _CHUNK if wanted.names and not literal else limit - len(found),
            },
        )
        if not rows:
            return EventPage(events=tuple(found), cursor=None)
        for row in rows:
            scanned += 1
            before = row["event_id"]
            if literal or any(pattern.fits(row["name"]) for pattern in patterns):
                found.append(event_of(row))
                if len(found) == limit:
                    break
    return EventPage(events=tuple(found), cursor=str(before))


def forward(tx: Tx, wanted: EventFilter, *, limit: int) -> tuple[list[Event], int]:
    """Oldest first, at most `limit`, and the id up to which everything was looked at: go on from there.

    No more than `SCAN_LIMIT` numbers are looked at in one go.
    """
    newest = tx.one("events.last_id")
    until = min(0 if newest is None else newest["event_id"], wanted.after_id + SCAN_LIMIT)
    after = wanted.after_id
    literal = all("*" not in name for name in wanted.names)
    patterns = [compile_pattern(name) for name in wanted.names]
    found: list[Event] = []
    while after < until:
        rows = tx.all(
            "events.forward",
            {
                "after_id": after,
                "until_id": until,
                "names": json.dumps(wanted.names) if wanted.names and literal else None,
                "orchestration_id": wanted.orchestration_id,
                "visible": None if wanted.visible_to is None else json.dumps(sorted(wanted.visible_to)),
                "limit": _CHUNK,
            },
        )
        for row in rows:
            after = row["event_id"]
            if literal or any(pattern.fits(row["name"]) for pattern in patterns):
                found.append(event_of(row))
                if len(found) == limit:
                    return found, after
        if len(rows) < _CHUNK:
            break
    return found, max(until, wanted.after_id)


def _before(cursor: str | None) -> int:
    if cursor is None:
        return sys.maxsize
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_CURSOR_CHARS):
        raise Invalid(f"cursor {cursor[:40]!r} is not one of ours", hint="pass the `cursor` of the last page")
    return int(cursor)
