"""What is going on: the figures that a pattern's MONITOR reads."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.orchestrations.metrics import By, Group, Scope, measure, quantile
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import at, usd

MAX_WINDOW_S = 86_400


class Quantiles(View):
    """In seconds."""

    p50: float
    p90: float
    p99: float
    most: float


class Scores(View):
    """Judgements of decisions and of runs; no variance for fewer than two."""

    count: int
    mean: float
    variance: float | None = None


class Figures(View):
    """The figures of one agent, run, model or rule, or of all.

    `waiting` turns have not started, `oldest_wait_s` is how long the first of them waits. Rates: of the turns that
    ended, those that timed out; of the calls to a model, those that failed. `took_s`: from start to end of turns that
    are done; `waited_s`: from message to start.
    """

    key: str
    name: str | None = None
    waiting: int | None = None
    running: int | None = None
    parked: int | None = None
    oldest_wait_s: float | None = None
    ended: dict[str, int] | None = None
    timeout_rate: float | None = None
    retry_rate: float | None = None
    rescued: int | None = None
    tokens: int | None = None
    usd: float | None = None
    took_s: Quantiles | None = None
    waited_s: Quantiles | None = None
    score: Scores | None = None
    deliveries: int | None = None
    failed_deliveries: int | None = None

    @classmethod
    def of(cls, group: Group) -> Figures:
        """From the record; what is nought or unknown is left out."""
        return cls(
            key=group.key,
            name=group.name,
            waiting=group.waiting or None,
            running=group.running or None,
            parked=group.parked or None,
            oldest_wait_s=_s(group.oldest_wait_ms) or None,
            ended=dict(group.ended) or None,
            timeout_rate=_rate(group.timeout_rate),
            retry_rate=_rate(group.retry_rate),
            rescued=group.rescues or None,
            tokens=group.tokens or None,
            usd=usd(group.usd_micros) or None,
            took_s=_quantiles(group.took_ms),
            waited_s=_quantiles(group.waited_ms),
            score=_scores(group),
            deliveries=group.deliveries or None,
            failed_deliveries=group.failures or None,
        )


class MetricsView(View):
    """`partial`: more turns ended than were looked at, so only the newest count. `left_out` groups are not shown."""

    since: str
    window_s: float
    total: Figures
    by: str | None = None
    groups: list[Figures] | None = None
    left_out: int | None = None
    partial: bool | None = None


@tool(
    "monitor_metrics",
    needs="base",
    effects="reads",
    title="Figures of what is going on",
    idempotent=True,
    aliases={"window": "window_s", "group_by": "by", "orchestration_id": "orchestration"},
)
async def monitor_metrics(
    call: Call,
    *,
    window_s: Annotated[float, Field(gt=0, le=MAX_WINDOW_S, description="how far back, in seconds")] = 300,
    by: By | None = None,
    orchestration: Annotated[str | None, Field(max_length=100, description="only this run")] = None,
) -> MetricsView:
    """Return queue depth, oldest wait, turns by state, rates of time-outs and retries, tokens, spend, times, scores.

    `by` groups them. An agent sees its family's and its run's. Threshold events are set in config.yaml (monitor).
    """

    def work(tx: Tx) -> MetricsView:
        if orchestration is not None:
            call.svc.conductor.find(tx, call.ctx, orchestration)
        scope = Scope(
            since_ms=tx.now_ms - round(window_s * 1000),
            orchestration_id=orchestration,
            agents=reach.visible(tx, call.ctx),
            runs=reach.visible_runs(tx, call.ctx),
        )
        found = measure(tx, scope, by=by)
        return MetricsView(
            since=at(scope.since_ms),
            window_s=window_s,
            total=Figures.of(found.total),
            by=by,
            groups=None if by is None else [Figures.of(group) for group in found.groups],
            left_out=found.groups_left_out or None,
            partial=found.partial or None,
        )

    return await call.read(work)


def _s(ms: int) -> float:
    return round(ms / 1000, 3)


def _rate(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _quantiles(values: list[int]) -> Quantiles | None:
    if not values:
        return None
    p50, p90, p99 = (_s(quantile(values, share)) for share in (0.5, 0.9, 0.99))
    return Quantiles(p50=p50, p90=p90, p99=p99, most=_s(max(values)))


def _scores(group: Group) -> Scores | None:
    if not group.scores:
        return None
    variance = group.score_variance
    mean = round(math.fsum(group.scores) / len(group.scores), 6)
    return Scores(count=len(group.scores), mean=mean, variance=None if variance is None else round(variance, 6))


TOOLS = (monitor_metrics,)
