"""A rule that is changed too often stays as it is for a while: two that fight over one must not churn the table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ksi_mcp.config import DampingConfig
from ksi_mcp.db import Tx
from ksi_mcp.errors import Refused

Content = Mapping[str, Any] | None
"""The columns of a rule at a version of the table; None: it was not there."""

_COMPARED: Final = (
    "source_pattern", "source_agent", "condition", "target", "mapping", "priority", "scope", "enabled", "exclusive",
    "rate", "join_spec", "modifiable",
)  # fmt: skip
"""What makes a change the opposite of another. How long a rule lives, who made it and what was noted does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """How often a rule was changed of late, and how many pairs of these changes undid each other."""

    changes: int
    undone: int

    def too_much(self, limits: DampingConfig) -> bool:
        """Whether the rule is to be frozen."""
        return self.changes > limits.changes or self.undone >= limits.undone


def check_thawed(tx: Tx, rule_id: str, frozen_until_ms: int | None, *, action: str) -> None:
    """Nobody changes a frozen rule; it ends all the same with its time, its agent or its run.

    Raises:
        Refused: the rule was changed too often; the message says until when it stays as it is.
    """
    if frozen_until_ms is None or frozen_until_ms <= tx.now_ms:
        return
    until = datetime.fromtimestamp(frozen_until_ms / 1000, UTC).strftime("%H:%M:%S")
    left_s = (frozen_until_ms - tx.now_ms) / 1000
    raise Refused(
        f"rule {rule_id!r} was changed too often: nobody may {action} it for {left_s:.0f} s, until {until} UTC",
        hint="routing_audit shows who changed it; agree on what it is to be, then change it once",
    )


def churn(
    tx: Tx, rule_id: str, limits: DampingConfig, *, thawed_ms: int | None, coming: Sequence[Content] = ()
) -> Churn:
    """Count the changes of a rule within the window; those that it was frozen for before do not count again.

    `coming`: what it would be after changes that nobody has made yet.
    """
    most = 2 * (limits.changes + 2 * limits.undone) + 4
    rows = tx.all("routing.newest_history", {"rule_id": rule_id, "limit": most})
    since_ms = max(tx.now_ms - round(limits.window_s * 1000), thawed_ms or 0)
    contents: list[Content] = [] if len(rows) == most else [None]
    recent = 0
    last: Content = None
    for row in reversed(rows):
        content = None if row["content"] is None else json.loads(row["content"])
        if last is not None and _by_itself(last, content, row["at_ms"]):
            last = content or last
            continue
        last = content
        contents.append(content)
        recent += row["at_ms"] > since_ms
    recent += len(coming)
    return Churn(changes=recent, undone=_undone([_compared(each) for each in (*contents, *coming)], recent))


def freeze(tx: Tx, rule_id: str, found: Churn, limits: DampingConfig) -> dict[str, Any]:
    """Let nobody change the rule for a while; the facts of the event that says so."""
    until_ms = tx.now_ms + round(limits.frozen_s * 1000)
    tx.run("routing.freeze", {"rule_id": rule_id, "frozen_until_ms": until_ms})
    return {
        "rule_id": rule_id,
        "changes": found.changes,
        "undone": found.undone,
        "window_s": limits.window_s,
        "frozen_until_ms": until_ms,
    }


def _by_itself(was: Mapping[str, Any], content: Content, at_ms: int) -> bool:
    """Whether nobody changed the rule: its clock was stopped or started, or its time was over."""
    if content is None:
        return was["expires_at_ms"] is not None and was["expires_at_ms"] <= at_ms
    return bool(content["since"] == was["since"])


def _compared(content: Content) -> tuple[Any, ...] | None:
    return None if content is None else tuple(content[name] for name in _COMPARED)


def _undone(contents: Sequence[object], recent: int) -> int:
    """Pairs of changes next to each other of which the second brought back what the first had changed."""
    pairs, place = 0, max(len(contents) - recent + 1, 2)
    while place < len(contents):
        if contents[place] == contents[place - 2] != contents[place - 1]:
            pairs += 1
            place += 1  # a change is part of one pair
        place += 1
    return pairs
