"""Which composition to take for a task: ranked, each with its score and the reasons, or "none fits". Pure.

The score is how well it fits (`fitting`), moved a little by what its runs here came to: at most 0.1 up or down, and
less the fewer they are, since four imagined runs with an even outcome are added to the real ones; and at most 0.02 up
for a run a moment ago. So experience decides among those that fit about as well, such as a pattern and its forks, and
never makes something fit that does not.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.compositions.asks import Documents
from ksi_mcp.compositions.evidence import Estimate
from ksi_mcp.compositions.features import Described
from ksi_mcp.compositions.fitting import FITS, MAX_TASK_WORDS, Index
from ksi_mcp.compositions.model import CompositionType
from ksi_mcp.compositions.requirements import Candidate, Check
from ksi_mcp.compositions.runs import Performance
from ksi_mcp.compositions.store import Head
from ksi_mcp.errors import Invalid

STARTABLE: Final[tuple[CompositionType, ...]] = ("orchestration", "ensemble")
"""What is chosen among unless a type is asked for."""
MAX_CHOICES: Final = 50
MAX_NEAREST: Final = 3
MAX_EXCLUDED: Final = 5

_EXPERIENCE: Final = 0.2
_IMAGINED_RUNS: Final = 4
_RECENCY: Final = 0.02
_RECENT_DAYS: Final = 30.0
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A composition with its score from 0 to 1, and why it has it."""

    head: Head
    score: float
    reasons: tuple[str, ...]
    performance: Performance | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A composition that would fit but does not meet a requirement."""

    name: str
    score: float
    unmet: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What fits, best first. If nothing does, `none_fits` says why, and `nearest` is what came closest."""

    choices: tuple[Choice, ...]
    none_fits: str | None
    nearest: tuple[Choice, ...]
    excluded: tuple[Excluded, ...]
    total: int
    """How many fit."""
    considered: int
    note: str | None


def key_of(head: Head) -> Hashable:
    """What changes whenever something changes that a composition is found by."""
    return (head.name, head.hash, head.description, head.tags)


def learn(index: Index, heads: Iterable[Head], documents: Documents) -> None:
    """Take the compositions apart that the index does not know yet."""
    known = {key_of(head): head for head in heads}
    for key in index.missing(known):
        index.add(key, _described(known[key], documents))


def choose(
    index: Index,
    text: str,
    heads: Sequence[Head],
    *,
    checks: Sequence[Check],
    documents: Documents,
    performance: Mapping[str, Performance],
    limit: int,
    now_ms: int,
) -> Selection:
    """Rank `heads`, which the index has learned, for the task `text`.

    Raises:
        Invalid: the task is empty.
    """
    if not text.strip():
        raise Invalid("the task is empty", hint="say what is to be done, such as 'compare three drafts and pick one'")
    task = index.task(text)
    scores = index.scores(task, [key_of(head) for head in heads])
    ranked: list[tuple[float, Head]] = []
    excluded: list[Excluded] = []
    for head, fit in zip(heads, scores, strict=True):
        measured = performance.get(head.name)
        score = _scored(fit, measured, now_ms)
        if checks and (unmet := _unmet(checks, head, documents, measured)):
            if fit >= FITS:
                excluded.append(Excluded(name=head.name, score=score, unmet=unmet))
            continue
        ranked.append((score, head))
    ranked.sort(key=lambda pair: (-pair[0], pair[1].name))
    excluded.sort(key=lambda each: (-each.score, each.name))

    def shown(pairs: Iterable[tuple[float, Head]]) -> tuple[Choice, ...]:
        return tuple(
            Choice(
                head=head,
                score=score,
                reasons=(
                    *index.reasons(task, key_of(head), _described(head, documents)),
                    *_met(checks, head, documents, performance.get(head.name)),
                    *_experience(performance.get(head.name), documents.get(head.name, {}), now_ms),
                ),
                performance=performance.get(head.name),
            )
            for score, head in pairs
        )

    fitting = [pair for pair in ranked if pair[0] >= FITS]
    nearest = [] if fitting else [pair for pair in ranked[:MAX_NEAREST] if pair[0] > 0]
    return Selection(
        choices=shown(fitting[: max(1, min(limit, MAX_CHOICES))]),
        none_fits=None if fitting else _why_none(nearest, excluded, len(heads), says_something=bool(task.terms)),
        nearest=shown(nearest),
        excluded=tuple(excluded[:MAX_EXCLUDED]),
        total=len(fitting),
        considered=len(heads),
        note=f"only the first {MAX_TASK_WORDS} words of the task were read" if task.cut else None,
    )


def _described(head: Head, documents: Documents) -> Described:
    return Described(
        name=head.name, tags=head.tags, description=head.description, document=documents.get(head.name, {})
    )


def _scored(fit: float, measured: Performance | None, now_ms: int) -> float:
    """The fit, moved by experience; what does not fit stays below."""
    if measured is None:
        return round(fit, 3)
    outcome = [_shrunk(each) for each in (measured.success, measured.score) if _is_share(each)]
    moved = _EXPERIENCE * (sum(outcome) / len(outcome) - 0.5) if outcome else 0.0
    age_days = max(0, now_ms - measured.last_ended_at_ms) / _DAY_MS
    moved += _RECENCY * math.exp(-age_days / _RECENT_DAYS)
    top = 1.0 if fit >= FITS else FITS - 0.001
    return round(min(top, max(0.0, fit + moved)), 3)


def _is_share(estimate: Estimate) -> bool:
    return estimate.mean is not None and 0 <= estimate.mean <= 1


def _shrunk(estimate: Estimate) -> float:
    return (estimate.n * (estimate.mean or 0.0) + _IMAGINED_RUNS * 0.5) / (estimate.n + _IMAGINED_RUNS)


def _unmet(checks: Sequence[Check], head: Head, documents: Documents, measured: Performance | None) -> tuple[str, ...]:
    candidate = _candidate(head, documents, measured)
    return tuple(found.reason for found in (check(candidate) for check in checks) if not found.met)


def _met(checks: Sequence[Check], head: Head, documents: Documents, measured: Performance | None) -> list[str]:
    candidate = _candidate(head, documents, measured)
    return [f"required: {check(candidate).reason}" for check in checks]


def _candidate(head: Head, documents: Documents, measured: Performance | None) -> Candidate:
    return Candidate(head=head, document=documents.get(head.name, {}), documents=documents, performance=measured)


def _experience(measured: Performance | None, document: Mapping[str, Any], now_ms: int) -> list[str]:
    reasons = []
    if measured is None:
        reasons.append("never run here")
    else:
        parts = [f"measured here: {measured.runs} run{'s' if measured.runs != 1 else ''}"]
        for name, each in (("success", measured.success), ("score", measured.score)):
            if each.mean is not None:
                between = f", 95 % interval {each.low:.2f} to {each.high:.2f}" if _has_interval(each) else ""
                parts.append(f"{name} {each.mean:.2f} (of {each.n}{between})")
        days = max(0, now_ms - measured.last_ended_at_ms) // _DAY_MS
        parts.append("the last one today" if days == 0 else f"the last one {days} day{'s' if days != 1 else ''} ago")
        reasons.append(", ".join(parts))
    if document.get("performance"):
        reasons.append("figures that came with its file do not count")
    return reasons


def _has_interval(estimate: Estimate) -> bool:
    return estimate.low is not None and estimate.high is not None


def _why_none(
    nearest: Sequence[tuple[float, Head]], excluded: Sequence[Excluded], considered: int, *, says_something: bool
) -> str:
    if excluded:
        names = ", ".join(repr(each.name) for each in excluded[:MAX_EXCLUDED])
        return f"what would fit does not meet the requirements: {names}"
    if considered == 0:
        return "the library has nothing of that type"
    if not says_something:
        return "no word of the task says what kind of work it is"
    if not nearest:
        return f"nothing of the task is found in any of the {considered} compositions"
    score, head = nearest[0]
    return (
        f"none of the {considered} compositions is made for this; the nearest, {head.name!r}, reaches {score} of {FITS}"
    )
