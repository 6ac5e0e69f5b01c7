"""A fork in its parent's place, and what was learned: how they are written into a document. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp import yamlio
from ksi_mcp.compositions.evidence import Comparison, Estimate
from ksi_mcp.compositions.model import Composition, parse_reference, shorten
from ksi_mcp.errors import Conflict, Invalid, Refused

MAX_INSIGHT_CHARS: Final = 2_000
MAX_EVIDENCE: Final = 200
MAX_LEARNINGS: Final = 1_000
MAX_CITED: Final = 50
"""Runs of each side named in a promotion; the counts are of all."""
SAID_SHARE: Final = 0.8
"""Of the runs of each side, so many must say the metric: leaving out the bad ones must not pay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison: which version, its runs, and how many of them say the metric."""

    name: str
    version: str
    hash: str
    runs: int
    said: int
    run_ids: Sequence[str]
    reporters: Mapping[str, int]
    """How many of the runs each actor reported."""

    @property
    def reference(self) -> str:
        """`name@hash`, as runs remember it."""
        return f"{self.name}@{self.hash[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A comparison with what it rests on. `guard` is of success, where that is not the metric itself."""

    metric: str
    a: Side
    b: Side
    result: Comparison
    guard: Comparison | None
    suite: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """Who promotes, when (ISO 8601 in UTC), and why."""

    by: str
    date: str
    reason: str | None


def check_promotable(found: Evidence) -> None:
    """Refuse a promotion that the evidence does not carry.

    Raises:
        Conflict: not enough runs, or too many of them do not say; Refused: the fork is not shown to be better.
    """
    what = f"{found.b.name} cannot take the place of {found.a.name}"
    if found.result.difference is None:
        raise Conflict(
            f"{what}: {found.result.verdict}, by {found.metric}",
            hint=f"complete runs of {found.a.reference} and {found.b.reference}, then ask again",
        )
    for side in (found.a, found.b):
        if side.said < SAID_SHARE * side.runs:
            raise Conflict(
                f"{what}: only {side.said} of {side.runs} runs of {side.name} say {found.metric}",
                hint=f"at least {SAID_SHARE:.0%} must, or those that do are no fair sample",
            )
    shown = found.result.difference
    interval = f"difference {shown.mean:.4g}, 95 % interval {shown.low:.4g} to {shown.high:.4g}"
    if found.result.winner != "b":
        raise Refused(
            f"{what}: {found.result.verdict}, by {found.metric} ({interval})",
            hint="only a fork that is shown to be better is promoted",
        )
    guard = found.guard
    if guard is not None and guard.a.n and guard.b.n < SAID_SHARE * found.b.runs * guard.a.n / found.a.runs:
        raise Conflict(
            f"{what}: {guard.b.n} of {found.b.runs} runs of {found.b.name} say whether they succeeded, "
            f"{guard.a.n} of {found.a.runs} of {found.a.name}",
            hint="a fork that no longer says whether it succeeds is not shown to be no worse",
        )
    if guard is not None and guard.winner == "a":
        raise Refused(
            f"{what}: it is better by {found.metric}, but succeeds less often",
            hint="a cheaper failure is no improvement",
        )


def promoted_document(parent: Composition, fork: Composition, found: Evidence, how: Promotion) -> dict[str, Any]:
    """The fork's document as the parent's next version.

    Name, descent and learnings are the parent's, with those of the fork after them; what was done and on what evidence
    stands in `lineage`. Figures of the parent's earlier version are not those of this one and stay behind with it.
    """
    document: dict[str, Any] = yamlio.plain(fork.document)
    old: dict[str, Any] = yamlio.plain(parent.document)
    document["name"] = parent.name
    document["version"] = next_version(parent.version)
    lineage, of_fork = _mapping(old.get("lineage")), _mapping(document.get("lineage"))
    improvements = [*_list(lineage.get("improvements")), *_list(of_fork.get("improvements")), improvement(found)]
    document["lineage"] = {
        **lineage,
        "replaces": f"{parent.name}@{parent.version}",
        "replaces_hash": parent.hash,
        "promoted_from": f"{fork.name}@{fork.version}",
        "promoted_hash": fork.hash,
        "promotion_date": how.date,
        "promoted_by": how.by,
        **({"promotion_reason": how.reason} if how.reason else {}),
        "improvements": improvements,
    }
    learnings = _list(old.get("learnings"))
    learnings += [each for each in _list(document.get("learnings")) if each not in learnings]
    if learnings or "learnings" in document:
        document["learnings"] = learnings
    return document


def improvement(found: Evidence) -> dict[str, Any]:
    """The evidence as it stands in a file."""
    difference = found.result.difference
    return {
        "metric": found.metric,
        **({"suite": found.suite} if found.suite else {}),
        "before": _side(found.a, found.result.a),
        "after": _side(found.b, found.result.b),
        **(
            {}
            if difference is None
            else {
                "difference": _rounded(difference.mean),
                "interval": [_rounded(difference.low), _rounded(difference.high)],
            }
        ),
    }


def learned_document(composition: Composition, learning: Mapping[str, Any]) -> dict[str, Any]:
    """The document with one more learning.

    Raises:
        Conflict: it is there already, or there are too many.
    """
    document: dict[str, Any] = yamlio.plain(composition.document)
    learnings = document.get("learnings")
    known = learnings if isinstance(learnings, list) else [] if learnings is None else [learnings]
    if any(isinstance(each, dict) and each.get("insight") == learning["insight"] for each in known):
        raise Conflict(
            f"{composition.name} has the learning {shorten(str(learning['insight']))!r} already",
            hint="word what is new about it",
        )
    if len(known) >= MAX_LEARNINGS:
        raise Conflict(f"{composition.name} has {len(known)} learnings, the limit", hint="sum some of them up")
    document["learnings"] = [*known, dict(learning)]
    return document


def check_learning(insight: str, confidence: float, evidence: Sequence[str]) -> tuple[str, list[str]]:
    """The insight and the run ids as they are stored.

    Raises:
        Invalid: naming what cannot be stored.
    """
    said = insight.strip()
    if not said or len(said) > MAX_INSIGHT_CHARS:
        raise Invalid(f"an insight has 1 to {MAX_INSIGHT_CHARS:,} characters, this one {len(said):,}")
    if not 0 <= confidence <= 1:
        raise Invalid(f"confidence {confidence!r} is not between 0 and 1", hint="0.8 means 80 % sure")
    ids = list(dict.fromkeys(evidence))
    if not 1 <= len(ids) <= MAX_EVIDENCE:
        raise Invalid(
            f"a learning rests on 1 to {MAX_EVIDENCE} runs, not {len(ids)}", hint="orchestration_list shows the runs"
        )
    return said, ids


def parent_name(composition: Composition) -> str | None:
    """The name its lineage says it was forked from, if it says one."""
    parent = _mapping(composition.document.get("lineage")).get("parent")
    try:
        return parse_reference(parent)[0] if parent else None
    except Invalid:
        return None


def parent_reference(composition: Composition) -> str | None:
    """The very version it was forked from, as `name@hash` where the lineage has the hash."""
    lineage, name = _mapping(composition.document.get("lineage")), parent_name(composition)
    given = lineage.get("parent_hash")
    return f"{name}@{given}" if name and isinstance(given, str) and given.isalnum() else name


def next_version(version: str) -> str:
    """The version after one: `1.2.3` is followed by `1.3.0`, `2` by `3`, `draft` by `draft.1`."""
    parts = version.split(".")
    if all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):  # noqa: PLR2004  a number of that
        if len(parts) == 1:
            return str(int(parts[0]) + 1)
        return ".".join([parts[0], str(int(parts[1]) + 1), *("0" for _ in parts[2:])])
    return f"{version}.1"


def _side(side: Side, of: Estimate) -> dict[str, Any]:
    return {
        "version": f"{side.name}@{side.version}",
        "hash": side.hash,
        "n": of.n,
        "mean": None if of.mean is None else _rounded(of.mean),
        "run_ids": list(side.run_ids[:MAX_CITED]),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]
