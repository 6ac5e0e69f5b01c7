"""Who changed the table, when and why, and who was not let: read from the log of events."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.events.model import EventPage, event_of
from ksi_mcp.events.patterns import shorten
from ksi_mcp.events.store import MAX_CURSOR_CHARS

Action = Literal["add", "modify", "delete", "expire", "rollback", "damp", "subscribe", "refuse"]

EVENTS: Final[Mapping[Action, tuple[str, ...]]] = {
    "add": ("routing:rule_added",),
    "modify": ("routing:rule_modified",),
    "delete": ("routing:rule_deleted",),
    "expire": ("routing:rule_expired",),
    "rollback": ("routing:rolled_back",),
    "damp": ("routing:damped",),
    "subscribe": ("routing:subscription_changed",),
    "refuse": ("system:refused",),
}
"""The events behind each kind of entry; of `system:refused` those of routing tools."""

ACTION_OF: Final[Mapping[str, Action]] = {name: action for action, names in EVENTS.items() for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries; None does not restrict. `visible_to`: the agents and runs that the asker may see."""

    rule_id: str | None = None
    actor: str | None = None
    action: Action | None = None
    orchestration_id: str | None = None
    after_id: int = 0
    visible_to: frozenset[str] | None = None


def page(tx: Tx, wanted: AuditFilter, *, limit: int, cursor: str | None) -> EventPage:
    """Entries, newest first; at most `limit`.

    Raises:
        Invalid: the cursor is none of ours.
    """
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_CURSOR_CHARS):
        raise Invalid(f"cursor {shorten(cursor)} is not one of ours", hint="pass the `cursor` of the last page")
    names = tuple(ACTION_OF) if wanted.action is None else EVENTS[wanted.action]
    rows = tx.all(
        "routing.audit",
        {
            "before_id": sys.maxsize if cursor is None else int(cursor),
            "after_id": wanted.after_id,
            "names": json.dumps(names),
            "rule_id": wanted.rule_id,
            "quoted_id": None if wanted.rule_id is None else repr(wanted.rule_id),
            "actor": wanted.actor,
            "orchestration_id": wanted.orchestration_id,
            "visible": None if wanted.visible_to is None else json.dumps(sorted(wanted.visible_to)),
            "limit": limit + 1,
        },
    )
    found = tuple(event_of(row) for row in rows[:limit])
    return EventPage(events=found, cursor=str(found[-1].event_id) if len(rows) > limit and found else None)
