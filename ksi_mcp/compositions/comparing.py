"""Two versions side by side: their runs taken from the table, the statistics made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ksi_mcp.compositions import runs
from ksi_mcp.compositions.evidence import MIN_RUNS, Better, Comparison, compare_means, compare_shares
from ksi_mcp.compositions.model import shorten
from ksi_mcp.compositions.promotion import Evidence, Side
from ksi_mcp.compositions.runs import Run
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid

SUCCESS: Final = "success"
_OWN: Final = "metrics."
_LOWER: Final = frozenset({"cost", "duration", "turns", "tokens"})
METRICS: Final = ("score", SUCCESS, *sorted(_LOWER))


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What is compared. `hash` is as runs remember it: of the composition with its parents merged in."""

    name: str
    version: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """By what is compared, and which runs count.

    `every_version`: all runs of the names, not of the two versions alone. `suite`: runs that were cases of that
    evaluation, else those that were none. `reported_by`: only runs whose ending that actor reported.
    """

    metric: str = "score"
    better: Better | None = None
    minimum: int = MIN_RUNS
    every_version: bool = False
    suite: str | None = None
    reported_by: str | None = None


def check_metric(metric: str) -> str:
    """`metric` if it is one.

    Raises:
        Invalid: it is not.
    """
    if metric in METRICS or (metric.startswith(_OWN) and len(metric) > len(_OWN)):
        return metric
    hint = f"one of {', '.join(METRICS)}, or metrics.NAME for a number that runs report"
    raise Invalid(f"{shorten(metric)!r} is not a metric", hint=hint)


def compare(tx: Tx, a: Version, b: Version, asked: Question) -> Evidence:
    """What the runs of two versions show; b is better or not, in the direction of the metric.

    Raises:
        Invalid: no such metric.
    """
    metric = check_metric(asked.metric)
    of_a, of_b = _sample(tx, a, asked), _sample(tx, b, asked)
    guard = None if metric == SUCCESS else _by_success(of_a, of_b, asked.minimum)
    if metric == SUCCESS:
        result = _by_success(of_a, of_b, asked.minimum)
    else:
        better = asked.better or ("lower" if metric in _LOWER else "higher")
        result = compare_means(_values(of_a, metric), _values(of_b, metric), better=better, minimum=asked.minimum)
    return Evidence(
        metric=metric,
        a=_side(a, of_a, result.a.n),
        b=_side(b, of_b, result.b.n),
        result=result,
        guard=guard,
        suite=asked.suite,
    )


def _sample(tx: Tx, version: Version, asked: Question) -> list[Run]:
    chosen = None if asked.every_version else version.hash
    return runs.sample(tx, version.name, hash=chosen, suite=asked.suite, reported_by=asked.reported_by)


def _by_success(a: Sequence[Run], b: Sequence[Run], minimum: int) -> Comparison:
    return compare_shares(_successes(a), _successes(b), minimum=minimum)


def _successes(found: Sequence[Run]) -> tuple[int, int]:
    said = [run.success for run in found if run.success is not None]
    return sum(said), len(said)


def _values(found: Sequence[Run], metric: str) -> list[float]:
    if metric.startswith(_OWN):
        name = metric.removeprefix(_OWN)
        return [run.metrics[name] for run in found if name in run.metrics]
    if metric == "score":
        return [run.score for run in found if run.score is not None]
    if metric == "cost":
        return [run.usd_micros / 1e6 for run in found]
    if metric == "duration":
        return [run.duration_s for run in found]
    return [float(run.turns if metric == "turns" else run.tokens) for run in found]


def _side(version: Version, found: Sequence[Run], said: int) -> Side:
    return Side(
        name=version.name,
        version=version.version,
        hash=version.hash,
        runs=len(found),
        said=said,
        run_ids=[run.run_id for run in found],
        reporters=Counter(run.reported_by or "unknown" for run in found),
    )
