"""What a decision is, and what may be one. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.compositions.model import parse_reference, shorten
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.events.model import check_depth
from ksi_mcp.ids import DecisionId
from ksi_mcp.permissions import Actor

MAX_DECISION_CHARS: Final = 2_000
MAX_REASONING_CHARS: Final = 20_000
MAX_CONTEXT_BYTES: Final = 32_768
MAX_WORD_CHARS: Final = 200
MAX_SCORE: Final = 1e12
PENDING: Final = "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionDraft:
    """A decision that was checked and is not yet stored. Make it with `draft_decision`."""

    pattern: str
    decision: str
    context: Any = None
    reasoning: str | None = None
    confidence: float | None = None
    outcome: str = "pending"
    score: float | None = None
    agent: str | None = None
    """Whom the operator names; None for whoever acts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A decision as stored. `confidence` is 0 to 1, `score` on whatever scale the pattern uses."""

    decision_id: DecisionId
    pattern: str
    decision: str
    context: Any
    reasoning: str | None
    confidence: float | None
    outcome: str
    score: float | None
    agent: str
    orchestration_id: str | None
    at_ms: int
    resolved_at_ms: int | None = None
    """When it was said how it turned out; `outcome` and `score` are of then."""
    resolved_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionPage:
    """Newest first. `cursor` asks for the older ones; None when there are none."""

    decisions: tuple[Decision, ...]
    cursor: str | None


def draft_decision(
    *,
    pattern: str,
    decision: str,
    context: Any = None,
    reasoning: str | None = None,
    confidence: float | str | None = None,
    outcome: str = "pending",
    score: float | str | None = None,
    agent: str | None = None,
) -> DecisionDraft:
    """Check what was given; numbers may come as text.

    Raises:
        Invalid: naming the first field that cannot be stored.
    """
    name, _version = parse_reference(pattern, what="the pattern")
    sure = _number(confidence, "confidence")
    if sure is not None and not 0 <= sure <= 1:
        raise Invalid(f"confidence {shorten(str(confidence))!r} is not between 0 and 1", hint="0.8 means 80 % sure")
    return DecisionDraft(
        pattern=name,
        decision=_text(decision, "decision", MAX_DECISION_CHARS),
        context=_json(context),
        reasoning=_text(reasoning, "reasoning", MAX_REASONING_CHARS) if reasoning else None,
        confidence=sure,
        outcome=_text(outcome, "outcome", MAX_WORD_CHARS),
        score=_number(score, "score"),
        agent=_text(agent, "agent", MAX_WORD_CHARS) if agent else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """How a decision turned out, checked. Make it with `draft_resolution`."""

    outcome: str
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """How a decision turned out, as whom says so and when."""

    decision_id: str
    outcome: str
    score: float | None
    by: str
    at_ms: int


def draft_resolution(outcome: str, score: float | str | None = None) -> Resolution:
    """Check what was given; the score may come as text.

    Raises:
        Invalid: naming the field that cannot be stored.
    """
    said = _text(outcome, "outcome", MAX_WORD_CHARS)
    if said == PENDING:
        raise Invalid("a decision cannot be resolved as pending", hint="say how it turned out, such as 'success'")
    return Resolution(outcome=said, score=_number(score, "score"))


def recorded_agent(actor: Actor, named: str | None) -> str:
    """Whose decision it is: an agent's own, or whom the operator names.

    Raises:
        Refused: an agent names another.
    """
    if actor.kind != "agent":
        return named or str(actor)
    own = str(actor.agent_id)
    if named is not None and named not in (own, str(actor)):
        raise Refused(f"you are {own!r} and cannot track a decision of {shorten(named)!r}", hint="leave out `agent`")
    return own


def _number(value: object, what: str) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Invalid(f"{what} must be a number, not {shorten(str(value))!r}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Invalid(f"{what} {shorten(str(value))!r} is not a number", hint="give it in figures, such as 0.8")
    if abs(number) > MAX_SCORE:
        raise Invalid(f"{what} {shorten(str(value))!r} is beyond {MAX_SCORE:g}", hint="use the pattern's own scale")
    return number


def _text(value: object, what: str, limit: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Invalid(f"{what} must be text")
    if len(value) > limit:
        raise Invalid(f"{what} has {len(value):,} characters, the limit is {limit:,}", hint="shorten it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise Invalid(f"{what} holds half a character (a lone surrogate)")
    return value.strip()


def _json(value: Any) -> Any:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError):
        raise Invalid("context is not JSON", hint="use text, numbers, true, false, null, lists and objects") from None
    if size > MAX_CONTEXT_BYTES:
        raise Invalid(f"context has {size:,} bytes, the limit is {MAX_CONTEXT_BYTES:,}", hint="send a summary")
    check_depth("context", value)
    return json.loads(text)
