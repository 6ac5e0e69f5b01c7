"""What came of the runs of a pattern, by version: recorded as they end, and what they come to together.

A run counts as a success by the word it ended with (see `success_of`). Runs that were made from a checkpoint of
another, or came with a bundle, are kept and not counted: the first are no runs of their own, the second are a claim.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.compositions.evidence import Estimate, check_value, mean_from, share
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Invalid

MAX_SAMPLE: Final = 10_000
"""Runs of one side that a comparison looks at, the newest."""
MAX_METRICS: Final = 50
MAX_METRIC_CHARS: Final = 100
SUCCESS_METRIC: Final = "success"
_MAX_DEPTH: Final = 4

_GOOD: Final = (
    "success successful successfully succeeded ok okay pass passed good complete completed done solved accepted "
    "approved agreed consensus win won yes true"
)
_BAD: Final = (
    "failure failed fail error errored broken rejected refused unsolved timeout aborted cancelled "
    "canceled stuck deadlock lost wrong bad no false partial partially incomplete unsuccessful"
)
_WORDS: Final = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of one run. `success` is None where nobody said; `duration_s` leaves pauses out."""

    run_id: str
    name: str
    hash: str
    version: str
    outcome: str | None
    success: bool | None
    score: float | None
    metrics: Mapping[str, float]
    usd_micros: int
    tokens: int
    turns: int
    duration_s: float
    ended_at_ms: int
    origin: str | None
    reported_by: str | None
    suite: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What the runs of a pattern or version come to. Averages are of all runs; success and score of those that say."""

    runs: int
    success: Estimate
    score: Estimate
    avg_cost_usd: float
    avg_tokens: float
    avg_turns: float
    avg_duration_s: float
    last_ended_at_ms: int

    def as_document(self) -> dict[str, Any]:
        """As it is shown and filtered: `runs`, `avg_score`, `success_rate`, their intervals, and the averages."""
        shown: dict[str, Any] = {"runs": self.runs}
        for name, of in (("success_rate", self.success), ("avg_score", self.score)):
            if of.mean is not None:
                shown[name] = round(of.mean, 6)
                shown[f"{name}_n"] = of.n
            if of.low is not None and of.high is not None:
                shown[f"{name}_interval"] = [round(of.low, 6), round(of.high, 6)]
        return {
            **shown,
            "avg_cost_usd": round(self.avg_cost_usd, 8),
            "avg_tokens": round(self.avg_tokens, 3),
            "avg_turns": round(self.avg_turns, 3),
            "avg_duration_s": round(self.avg_duration_s, 3),
        }


def check_figures(score: object, metrics: Mapping[str, Any] | None) -> None:
    """Refuse what no statistics can be made of, before a run ends with it.

    Raises:
        Invalid: a number is not finite or absurdly large, or there are too many.
    """
    if score is not None:
        check_value(score, "the score")
    if metrics is not None:
        found = list(_numbers(metrics, ""))
        if len(found) > MAX_METRICS:
            raise Invalid(f"the metrics hold {len(found)} numbers, the limit is {MAX_METRICS}", hint="send a summary")
        for name, value in found:
            if len(name) > MAX_METRIC_CHARS:
                raise Invalid(f"the metric {name[:40]!r}... has a name of more than {MAX_METRIC_CHARS} characters")
            check_value(value, f"metrics.{name}")


def success_of(state: str, outcome: str | None, metrics: Mapping[str, Any] | None) -> bool | None:
    """Whether a run succeeded, as far as anybody said.

    `metrics.success`, true or false, says it outright. Else a run that failed did not, and one that was stopped says
    nothing. Else the first word of the outcome that is known decides: success, ok, passed, done ... or failure, error,
    rejected, partial ... (a part is no success); another word, "inconclusive" say, is neither.
    """
    said = None if metrics is None else metrics.get(SUCCESS_METRIC)
    if said in (True, False, 0, 1):
        return bool(said)
    if state == "failed":
        return False
    if state == "stopped" or outcome is None:
        return None
    words = _WORDS.findall(outcome.lower()[:MAX_METRIC_CHARS])
    good, denied = _GOOD.split(), False
    for word in words:
        if word in ("not", "un"):
            denied = True
        elif word in good or word in _BAD.split():
            return (word in good) != denied
    return None


def record(tx: Tx, run_id: str, *, reported_by: str, suspended_at_ms: int | None) -> None:
    """Write what came of a run that has just ended, in the transaction that ends it. Never refuses."""
    row = tx.one("compositions.run_ended", {"run_id": run_id, "suspended_at_ms": suspended_at_ms})
    if row is None:
        return
    metrics = None if row["metrics"] is None else json.loads(row["metrics"])
    numbers = {name: value for name, value in _numbers(metrics, "") if _usable(value)} if metrics else {}
    success = success_of(row["state"], row["outcome"], metrics)
    values = {name: row[name] for name in _COPIED}
    tx.run(
        "compositions.put_run",
        {
            **values,
            "run_id": run_id,
            "version": str(row["version"]),
            "success": None if success is None else int(success),
            "score": row["score"] if _usable(row["score"]) else None,
            "metrics": json.dumps(dict(list(numbers.items())[:MAX_METRICS])) if numbers else None,
            "origin": None if row["origin_id"] is None else f"run:{row['origin_id']}",
            "reported_by": reported_by,
        },
    )
    tx.run("compositions.tally_add", {"run_id": run_id})


def forget(tx: Tx, run_id: str) -> None:
    """A run that is put back to a checkpoint has not ended any more."""
    run = by_ids(tx, [run_id]).get(run_id)
    if run is None:
        return
    tx.run("compositions.drop_run", {"run_id": run_id})
    tx.run("compositions.tally_clear", {"name": run.name, "hash": run.hash})
    for kind, key in (("name", run.name), ("hash", run.hash)):
        tx.run("compositions.tally_make", {"kind": kind, "key": key})


def performance(
    tx: Tx, *, names: Iterable[str] | None = None, hashes: Iterable[str] | None = None, evaluated: bool = False
) -> dict[str, Performance]:
    """What runs come to, by name (all versions) or by hash; what never ran is left out.

    `evaluated`: of the runs that were cases of an evaluation, instead of those that were work.
    """
    keys = json.dumps(sorted(set(names or ()) if hashes is None else set(hashes)))
    values = {"kind": "name" if hashes is None else "hash", "keys": keys, "evaluated": int(evaluated)}
    return {row["key"]: _performance(row) for row in tx.all("compositions.performance", values)}


def sample(
    tx: Tx, name: str, *, hash: str | None = None, suite: str | None = None, reported_by: str | None = None
) -> list[Run]:
    """The runs of a pattern, or of one version of it, newest first, at most `MAX_SAMPLE`.

    `suite`: those that were cases of that evaluation; without it, those that were none. `reported_by`: those whose
    ending that actor reported.
    """
    values = {"name": name, "hash": hash, "suite": suite, "reported_by": reported_by, "limit": MAX_SAMPLE}
    return [_run(row) for row in tx.all("compositions.runs_of", values)]


def by_ids(tx: Tx, ids: Iterable[str]) -> dict[str, Run]:
    """Those of the runs that have ended, by id."""
    rows = tx.all("compositions.runs_by_ids", {"ids": json.dumps(list(ids))})
    return {row["run_id"]: _run(row) for row in rows}


_COPIED: Final = ("name", "hash", "outcome", "usd_micros", "tokens", "turns", "duration_s", "ended_at_ms", "suite")


def _performance(row: Row) -> Performance:
    return Performance(
        runs=row["runs"],
        success=share(row["successes"], row["judged"]),
        score=mean_from(row["scored"], row["score"], row["score_squares"]),
        avg_cost_usd=row["usd_micros"] / row["runs"] / 1e6,
        avg_tokens=row["tokens"] / row["runs"],
        avg_turns=row["turns"] / row["runs"],
        avg_duration_s=row["duration_s"] / row["runs"],
        last_ended_at_ms=row["last_ms"],
    )


def _run(row: Row) -> Run:
    fields = {name: row[name] for name in Run.__slots__}
    fields["success"] = None if row["success"] is None else bool(row["success"])
    fields["metrics"] = {} if row["metrics"] is None else json.loads(row["metrics"])
    return Run(**fields)


def _numbers(value: Mapping[str, Any], path: str, depth: int = 0) -> Iterable[tuple[str, float]]:
    """The numbers of an object by dotted path, true and false as 1 and 0."""
    for key, item in value.items():
        name = f"{path}{key}"
        if isinstance(item, bool | int | float):
            yield name, int(item) if isinstance(item, bool) else item
        elif isinstance(item, dict) and depth < _MAX_DEPTH:
            yield from _numbers(item, f"{name}.", depth + 1)


def _usable(value: object) -> bool:
    try:
        check_value(value, "")
    except Invalid:
        return False
    return True
