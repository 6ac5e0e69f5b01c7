"""A change of the rule table as somebody wants it: a rule to add, fields to change, or a rule to end. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ksi_mcp.errors import Invalid, KsiError
from ksi_mcp.events.patterns import shorten
from ksi_mcp.ids import RuleId
from ksi_mcp.routing.governance import Settled
from ksi_mcp.routing.rates import rate_of
from ksi_mcp.routing.rules import UPDATE_FIELDS, Rule, RuleDraft, draft_of

MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """New values of some fields of a rule."""

    rule_id: str
    updates: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The end of a rule."""

    rule_id: str
    reason: str | None = None


Change = RuleDraft | Update | Removal
"""A draft is a rule to add."""


@contextmanager
def in_change(place: int, what: str) -> Iterator[None]:
    """Let a failure say which of several changes it is about."""
    try:
        yield
    except KsiError as failure:
        failure.message = f"changes[{place}] ({what}): {failure.message}"
        failure.args = (failure.message,)
        raise


def updated(was: Rule, change: Update) -> RuleDraft:
    """The draft of a rule with some fields changed.

    Raises:
        Invalid: a field is unknown, or there is none.
    """
    updates = dict(change.updates)
    if unknown := sorted(set(updates) - set(UPDATE_FIELDS)):
        raise Invalid(
            f"a rule has no field {', '.join(shorten(name, 40) for name in unknown[:5])} to change",
            hint=f"there are {', '.join(UPDATE_FIELDS)}",
        )
    if not updates:
        raise Invalid("the updates are empty", hint=f"give at least one of {', '.join(UPDATE_FIELDS)}")
    if change.reason is not None and isinstance(notes := updates.get("metadata", was.metadata), Mapping):
        updates["metadata"] = {**notes, "reason": change.reason[:MAX_REASON_CHARS]}
    return replace(draft_of(was), **updates)


def rule_of_draft(settled: Settled, draft: RuleDraft, was: Rule | None, *, now_ms: int, rule_id: str, by: str) -> Rule:
    """The rule that a draft describes: new, or in the place of another."""
    return Rule(
        rule_id=RuleId(rule_id),
        source_pattern=draft.source_pattern,
        source_agent=settled.source_agent,
        condition=draft.condition,
        target=settled.target,
        mapping=draft.mapping,
        priority=draft.priority,
        scope=settled.scope,
        orchestration_id=settled.orchestration_id,
        enabled=draft.enabled,
        created_by=by,
        version=0,
        created_at_ms=now_ms if was is None else was.created_at_ms,
        expires_at_ms=None if draft.ttl_s is None else now_ms + max(1, round(draft.ttl_s * 1000)),
        metadata=dict(draft.metadata),
        exclusive=draft.exclusive,
        rate=rate_of(draft.rate),
        join=settled.join,
        modifiable=draft.modifiable,
        frozen_until_ms=None if was is None else was.frozen_until_ms,
    )


def named(change: Change) -> str:
    """A change, as a failure names it."""
    match change:
        case RuleDraft():
            return "add" if change.rule_id is None else f"add {change.rule_id!r}"
        case Update():
            return f"modify {shorten(change.rule_id)}"
        case Removal():
            return f"delete {shorten(change.rule_id)}"
