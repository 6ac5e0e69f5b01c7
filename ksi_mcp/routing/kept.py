"""What a dead letter holds of its event and its rule, so that it can be delivered when both are gone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.events.model import Event
from ksi_mcp.ids import EventId, RuleId
from ksi_mcp.routing.rules import DEFAULT_PRIORITY, Rule
from ksi_mcp.routing.targets import stored_targets

_EVENT: Final = (
    "event_id", "name", "data", "source", "agent_id", "orchestration_id", "cause_id", "root_id", "hops", "depth",
    "at_ms",
)  # fmt: skip
_RULE: Final = (
    "source_pattern", "source_agent", "scope", "orchestration_id", "created_by", "created_at_ms", "modifiable",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An event as it was heard, and the rule that heard it, as far as a delivery needs it.

    `joined`: the event is what a join had collected, not one that was recorded so.
    """

    event: Event
    joined: bool
    rule: Rule | None


def keep(event: Event, rule: Rule | None, *, joined: bool) -> str:
    """The stored form."""
    kept: dict[str, Any] = {"event": {name: getattr(event, name) for name in _EVENT}, "joined": joined}
    if rule is not None:
        kept["rule"] = {**{name: getattr(rule, name) for name in _RULE}, "target": rule.target.shown}
    return json.dumps(kept, ensure_ascii=False)


def kept_of(text: str, rule_id: str | None) -> Kept:
    """What is behind the stored form."""
    stored = json.loads(text)
    event = Event(**{**stored["event"], "event_id": EventId(stored["event"]["event_id"])})
    return Kept(event=event, joined=stored["joined"], rule=_rule(stored.get("rule"), rule_id))


def _rule(stored: dict[str, Any] | None, rule_id: str | None) -> Rule | None:
    if stored is None or rule_id is None:
        return None
    return Rule(
        **{**stored, "target": stored_targets(stored["target"])},
        rule_id=RuleId(rule_id),
        condition=None,
        mapping=None,
        priority=DEFAULT_PRIORITY,
        enabled=True,
        version=0,
        expires_at_ms=None,
        metadata={},
    )
