"""Decision logs as others write them, and our own read back. Pure.

A log is a list of entries, or a mapping with that list under `decisions`, in one YAML document or several. Confidence
may be text or a percentage, the outcome null. What has no place of its own is kept in the decision's context.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ksi_mcp import yamlio
from ksi_mcp.decisions.model import PENDING, Decision, Resolved, draft_decision, draft_resolution
from ksi_mcp.errors import Invalid, KsiError
from ksi_mcp.ids import DecisionId

MAX_LOG_BYTES: Final = 8_000_000
MAX_ENTRIES: Final = 20_000
_MAX_PROBLEMS: Final = 20

_OURS: Final = re.compile(r"d_[0-9a-z]{1,40}")
_PERCENT: Final = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]+)?)\s*%\s*")
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "decision": ("decision", "choice", "action"),
    "reasoning": ("reasoning", "rationale", "reason"),
    "confidence": ("confidence",),
    "outcome": ("outcome", "result"),
    "score": ("score",),
    "agent": ("agent", "agent_id", "decided_by"),
    "orchestration": ("orchestration", "orchestration_id", "run_id"),
    "at": ("at", "timestamp", "date", "time"),
    "context": ("context",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What a log holds; `problems` name the entries that could not be taken."""

    decisions: tuple[Decision, ...]
    resolutions: tuple[Resolved, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import brought; `known` were there before."""

    imported: int
    known: int
    resolved: int
    problems: tuple[str, ...]


def read_log(text: str, pattern: str, *, now_ms: int) -> Log:
    """The decisions of a log about `pattern`, which counts for entries that name none.

    An entry without an id of ours gets one made of its content, so that reading a log twice brings it once. An entry
    that cannot be taken is named among the problems while the rest is.

    Raises:
        Invalid: it is not YAML, no list of entries, or too long.
    """
    decisions: list[Decision] = []
    resolutions: list[Resolved] = []
    problems: list[str] = []
    for number, entry in enumerate(_entries(text), start=1):
        if number > MAX_ENTRIES:
            raise Invalid(f"the log has more than {MAX_ENTRIES:,} entries", hint="import it in parts")
        try:
            if not isinstance(entry, dict):
                raise Invalid("it is no mapping")
            if "resolves" in entry:
                resolutions.append(_resolution(entry, now_ms))
            else:
                decisions.append(_decision(entry, pattern, now_ms))
        except KsiError as error:
            problems.append(f"entry {number}: {error.text()}")
    if len(problems) > _MAX_PROBLEMS:
        problems = [*problems[:_MAX_PROBLEMS], f"and {len(problems) - _MAX_PROBLEMS} more"]
    return Log(decisions=tuple(decisions), resolutions=tuple(resolutions), problems=tuple(problems))


def _entries(text: str) -> Iterator[Any]:
    for document in yamlio.safe_load_all(text, what="the log", max_bytes=MAX_LOG_BYTES):
        found = document.get("decisions") if isinstance(document, dict) and "decisions" in document else document
        if found is None:
            continue
        if isinstance(found, dict):
            found = [found]
        if not isinstance(found, list):
            raise Invalid("the log is not a list of decisions", hint="each entry has at least `decision`")
        yield from found


def _decision(entry: dict[str, Any], pattern: str, now_ms: int) -> Decision:
    used = {key: next((name for name in names if name in entry), "") for key, names in _KEYS.items()}
    said = {key: entry.get(name) for key, name in used.items()}
    sure, unsaid = _confidence(said["confidence"])
    taken = {"id", "pattern", *used.values()}
    rest = {key: value for key, value in entry.items() if key not in taken} | unsaid
    context = said["context"]
    if rest:
        context = {
            **(context if isinstance(context, dict) else {} if context is None else {"context": context}),
            **rest,
        }
    at_ms = _time(said["at"])
    if at_ms is None and said["at"] is not None:
        context = {**(context if isinstance(context, dict) else {}), "at": said["at"]}
    draft = draft_decision(
        pattern=str(entry.get("pattern") or pattern),
        decision=said["decision"] if isinstance(said["decision"], str) else _short_json(said["decision"]),
        context=context,
        reasoning=None if said["reasoning"] is None else _text(said["reasoning"]),
        confidence=sure,
        outcome=PENDING if said["outcome"] in (None, "") else _text(said["outcome"]),
        score=said["score"],
        agent=None if said["agent"] is None else str(said["agent"]),
    )
    given = entry.get("id")
    own = isinstance(given, str) and _OURS.fullmatch(given)
    return Decision(
        decision_id=DecisionId(str(given)) if own else _id_of(pattern, entry),
        pattern=draft.pattern,
        decision=draft.decision,
        context=draft.context,
        reasoning=draft.reasoning,
        confidence=draft.confidence,
        outcome=draft.outcome,
        score=draft.score,
        agent=draft.agent or "unknown",
        orchestration_id=None if said["orchestration"] is None else str(said["orchestration"])[:80],
        at_ms=now_ms if at_ms is None else at_ms,
    )


def _resolution(entry: Mapping[str, Any], now_ms: int) -> Resolved:
    how = draft_resolution(_text(entry.get("outcome")), entry.get("score"))
    at_ms = _time(entry.get("at"))
    return Resolved(
        decision_id=str(entry["resolves"])[:80],
        outcome=how.outcome,
        score=how.score,
        by=str(entry.get("by") or "unknown")[:80],
        at_ms=now_ms if at_ms is None else at_ms,
    )


def _confidence(value: Any) -> tuple[float | str | None, dict[str, Any]]:
    """As a number between 0 and 1, or where it is a word or something else, what is kept of it."""
    if isinstance(value, str):
        if percent := _PERCENT.fullmatch(value):
            return float(percent[1]) / 100, {}
        try:
            value = float(value)
        except ValueError:
            return None, {"confidence": value} if value.strip() else {}
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value), {}
    return None, {} if value is None else {"confidence": str(value)[:200]}


def _time(value: Any) -> int | None:
    """Milliseconds of an ISO 8601 time, in UTC where it does not say, or of a number of seconds since 1970."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            moment = datetime.fromtimestamp(value, UTC)
        else:
            moment = datetime.fromisoformat(str(value))
        return max(round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000), 0)
    except (ValueError, OverflowError, OSError):
        return None


def _id_of(pattern: str, entry: dict[str, Any]) -> DecisionId:
    canonical = json.dumps([pattern, entry], sort_keys=True, ensure_ascii=True, default=str)
    return DecisionId(f"d_{hashlib.sha256(canonical.encode()).hexdigest()[:20]}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _short_json(value)


def _short_json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
