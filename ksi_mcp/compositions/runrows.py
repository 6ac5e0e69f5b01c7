"""Runs that somebody else reports: claims, kept apart from what was measured here. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.compositions.model import name_problem, shorten
from ksi_mcp.errors import Invalid

MAX_RUNS: Final = 20_000
MAX_METRICS: Final = 50
MAX_TEXT_CHARS: Final = 500
MAX_NUMBER: Final = 1 << 53

_RUN_ID = re.compile(r"[a-z]{1,4}_[0-9a-z]{4,40}")
_HASH = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One completed run of a composition: what it cost and what came of it."""

    run_id: str
    name: str
    hash: str
    version: str
    outcome: str | None
    success: bool | None
    score: float | None
    metrics: dict[str, float] | None
    usd_micros: int
    tokens: int
    turns: int
    duration_s: float
    ended_at_ms: int


def read_runs(raw: Any) -> tuple[RunRow, ...]:
    """The runs in a list of objects.

    Raises:
        Invalid: one of them is no run, is there twice, or there are too many.
    """
    if not isinstance(raw, list) or len(raw) > MAX_RUNS:
        raise Invalid(f"runs must be a list of at most {MAX_RUNS:,}")
    rows = tuple(_row(each, place) for place, each in enumerate(raw))
    if len({row.run_id for row in rows}) != len(rows):
        raise Invalid("a run is there twice")
    return rows


def _row(raw: Any, place: int) -> RunRow:
    if not isinstance(raw, dict) or raw.keys() != set(RunRow.__dataclass_fields__):
        raise Invalid(f"run {place} does not have the keys {', '.join(RunRow.__dataclass_fields__)}")

    def wrong(key: str) -> Invalid:
        return Invalid(f"run {place} has {shorten(str(raw[key]))!r} for `{key}`")

    for key, fits in (
        ("run_id", _RUN_ID.fullmatch),
        ("hash", _HASH.fullmatch),
        ("name", lambda name: name_problem(name) is None),
        ("version", lambda text: 0 < len(text) <= MAX_TEXT_CHARS),
    ):
        if not isinstance(raw[key], str) or not fits(raw[key]):
            raise wrong(key)
    if raw["outcome"] is not None and not (isinstance(raw["outcome"], str) and len(raw["outcome"]) <= MAX_TEXT_CHARS):
        raise wrong("outcome")
    if not isinstance(raw["success"], bool | None):
        raise wrong("success")
    if raw["score"] is not None and not _is_number(raw["score"]):
        raise wrong("score")
    for key in ("usd_micros", "tokens", "turns", "ended_at_ms"):
        if type(raw[key]) is not int or not 0 <= raw[key] <= MAX_NUMBER:
            raise wrong(key)
    if not _is_number(raw["duration_s"]) or raw["duration_s"] < 0:
        raise wrong("duration_s")
    metrics = raw["metrics"]
    if metrics is not None and not (
        isinstance(metrics, dict) and len(metrics) <= MAX_METRICS and all(map(_is_number, metrics.values()))
    ):
        raise wrong("metrics")
    return RunRow(**raw)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= MAX_NUMBER
