"""Patterns that evolve: compare by runs, promote behind evidence, keep what was learned."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from ksi_mcp.compositions import promotion, runs, store
from ksi_mcp.compositions.comparing import Question, check_metric, compare
from ksi_mcp.compositions.evidence import MIN_RUNS, Estimate
from ksi_mcp.compositions.model import Composition, parse_reference, shorten
from ksi_mcp.compositions.promotion import Evidence, Promotion, Side
from ksi_mcp.compositions.review import asks_of
from ksi_mcp.compositions.rewriting import supersede
from ksi_mcp.db import Tx
from ksi_mcp.decisions.model import recorded_agent
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.permissions import OPERATOR
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.measured import version_in, version_of
from ksi_mcp.tools.tool import View, tool

_MAX_GENERATIONS: Final = 100
_MAX_REASON_CHARS: Final = 2_000
_DIGITS: Final = 6

Metric = Annotated[str, Field(description="score, success, cost, duration, turns, tokens or metrics.NAME")]


class SideView(View):
    """One side: its runs, how many of them say the metric (n), their mean and its 95 % interval, who reported them."""

    version: str
    runs: int
    n: int
    mean: float | None = None
    interval: list[float] | None = None
    reported_by: dict[str, int]

    @classmethod
    def of(cls, side: Side, estimate: Estimate) -> SideView:
        """From the records."""
        return cls(
            version=side.reference,
            runs=side.runs,
            n=estimate.n,
            mean=_round(estimate.mean),
            interval=_interval(estimate.low, estimate.high),
            reported_by=dict(side.reporters),
        )


class ComparisonView(View):
    """`difference` is b minus a, with its 95 % interval. One that holds 0 shows nothing."""

    metric: str
    a: SideView
    b: SideView
    difference: float | None = None
    interval: list[float] | None = None
    verdict: str
    notes: list[str] | None = None

    @classmethod
    def of(cls, found: Evidence, notes: list[str]) -> ComparisonView:
        """From the record."""
        difference = found.result.difference
        return cls(
            metric=found.metric,
            a=SideView.of(found.a, found.result.a),
            b=SideView.of(found.b, found.result.b),
            difference=None if difference is None else _round(difference.mean),
            interval=None if difference is None else _interval(difference.low, difference.high),
            verdict=found.result.verdict,
            notes=notes or None,
        )


class PromotedView(View):
    """The parent's next version, and what it rests on."""

    name: str
    version: str
    hash: str
    promoted_from: str
    replaces: str
    layer: str | None = None
    evidence: ComparisonView


class LearningView(View):
    """What was added to the composition's learnings."""

    name: str
    insight: str
    confidence: float
    evidence: list[str]
    discovered_by: str


@tool("composition_compare", needs="base", effects="reads", title="Compare two patterns by their runs", idempotent=True)
async def composition_compare(
    call: Call,
    *,
    a: Annotated[str, Field(description="name or name@hash, e.g. the parent")],
    b: Annotated[str, Field(description="name or name@hash, e.g. its fork")],
    metric: Metric = "score",
    better: Annotated[Literal["higher", "lower"] | None, Field(description="default: as the metric says")] = None,
    versions: Annotated[Literal["current", "all"], Field(description="all: runs of older versions too")] = "current",
    suite: Annotated[str | None, Field(description="runs of this evaluation instead of work")] = None,
    min_runs: Annotated[int, Field(ge=2, le=10_000)] = MIN_RUNS,
) -> ComparisonView:
    """Compare what runs of two compositions came to: means, difference with its 95 % interval, and a verdict.

    Success rates: Wilson and Newcombe intervals. All else: Welch's. See composition_promote.
    """
    asked = Question(
        metric=check_metric(metric),
        better=better,
        minimum=min_runs,
        every_version=versions == "all",
        suite=await suite_reference(call, suite),
    )
    one, other = await version_of(call, a), await version_of(call, b)
    if (one.name, one.hash) == (other.name, other.hash):
        raise Invalid(f"{shorten(a)!r} and {shorten(b)!r} are the same version", hint="name@hash names an older one")
    found = await call.read(lambda tx: compare(tx, one, other, asked))
    return ComparisonView.of(found, _notes(found, None))


@tool("composition_promote", needs="compositions", effects="writes", title="Put a fork in its parent's place")
async def composition_promote(
    call: Call,
    *,
    name: Annotated[str, Field(description="the fork")],
    over: Annotated[str | None, Field(description="whose place; default: its parent's")] = None,
    metric: Metric = "score",
    better: Literal["higher", "lower"] | None = None,
    suite: Annotated[str | None, Field(description="by runs of this evaluation instead of work")] = None,
    reason: Annotated[str | None, Field(max_length=_MAX_REASON_CHARS)] = None,
    dry_run: bool = False,
) -> PromotedView:
    """Write a fork as its parent's next version, if runs of both show that it is better (composition_compare).

    The name stays the parent's, so all who use it get the new version; running agents keep what they have. For an
    agent, only runs whose outcome the operator reported count.
    """
    of_fork = await call.svc.library.get(name, resolve=True)
    fork = of_fork.composition
    if of_fork.layer is None:
        raise Invalid(f"{shorten(name)!r} is a version of the past", hint="fork it, and promote the fork")
    elders = await call.read(lambda tx: ancestors(tx, fork))
    wanted = parse_reference(over)[0] if over is not None else promotion.parent_name(fork)
    if wanted is None or wanted not in elders:
        says = f"it descends from {', '.join(elders)}" if elders else "it was not forked from anything"
        raise Invalid(f"{fork.name} cannot take the place of {shorten(wanted or 'a parent')!r}: {says}")
    of_parent = await call.svc.library.get(wanted, resolve=True)
    parent = of_parent.composition
    if parent.type != fork.type:
        raise Invalid(f"{fork.name} is of type {fork.type!r}, {parent.name} of type {parent.type!r}")
    asked = Question(
        metric=check_metric(metric),
        better=better,
        suite=await suite_reference(call, suite),
        # What an agent says of a run must not be what it changes the library by.
        reported_by=str(OPERATOR) if call.ctx.actor.kind == "agent" else None,
    )
    # Of the very documents that were read: what is written is what the evidence is about.
    one, other = version_in(of_parent), version_in(of_fork)
    found = await call.read(lambda tx: compare(tx, one, other, asked))
    promotion.check_promotable(found)
    how = Promotion(by=str(call.ctx.actor), date=_now(call), reason=reason)
    document = promotion.promoted_document(parent, fork, found, how)
    view = PromotedView(
        name=parent.name,
        version=str(document["version"]),
        hash="",
        promoted_from=f"{fork.name}@{fork.version}",
        replaces=f"{parent.name}@{parent.version}",
        evidence=ComparisonView.of(found, [*_notes(found, fork), *_asks_more(parent, fork)]),
    )
    facts = {
        "version": document["version"],
        "promoted_from": f"{fork.name}@{fork.version}",
        "promoted_hash": fork.hash,
        "replaces": f"{parent.name}@{parent.version}",
        "replaces_hash": parent.hash,
        "reason": reason,
        "evidence": promotion.improvement(found),
    }
    record = await supersede(
        call.svc.library,
        call.ctx,
        document,
        expected=parent,
        event=("composition:promoted", facts),
        dry_run=dry_run,
        commit=call.committer(lambda _: view),
    )
    return view.model_copy(update={"hash": record.composition.hash[:12], "layer": record.layer})


@tool("composition_add_learning", needs="compositions", effects="writes", title="Keep what was learned of a pattern")
async def composition_add_learning(
    call: Call,
    *,
    name: str,
    insight: str,
    confidence: Annotated[float, Field(ge=0, le=1)],
    evidence: Annotated[list[str], Field(description="ids of runs that show it", min_length=1, max_length=1000)],
    discovered_by: Annotated[str | None, Field(description="operator only: who found it", max_length=200)] = None,
) -> LearningView:
    """Add a learning to a composition's file. Every run cited must have ended, and be one of it or of its ancestors."""
    said, ids = promotion.check_learning(insight, confidence, evidence)
    by = recorded_agent(call.ctx.actor, discovered_by)
    found = (await call.svc.library.get(parse_reference(name)[0])).composition

    def check(tx: Tx) -> None:
        known = runs.by_ids(tx, ids)
        if missing := [each for each in ids if each not in known]:
            raise Refused(
                f"no ended run {shorten(missing[0])!r}" + (f", nor {len(missing) - 1} more" if missing[1:] else ""),
                hint="a learning cites runs that were completed here; orchestration_list shows them",
            )
        family = {found.name, *ancestors(tx, found)}
        if strange := next((run for run in known.values() if run.name not in family), None):
            raise Refused(
                f"run {strange.run_id} is one of {strange.name}, not of {found.name} or what it descends from",
                hint="add the learning to the pattern that ran",
            )

    await call.read(check)
    learning = {
        "insight": said,
        "confidence": confidence,
        "evidence": ids,
        "discovered_by": by,
        "discovered_at": _now(call),
    }
    view = LearningView(name=found.name, insight=said, confidence=confidence, evidence=ids, discovered_by=by)
    await supersede(
        call.svc.library,
        call.ctx,
        promotion.learned_document(found, learning),
        expected=found,
        event=("composition:learned", {"insight": said[:_MAX_REASON_CHARS], "evidence": ids, "discovered_by": by}),
        commit=call.committer(lambda _: view),
    )
    return view


async def suite_reference(call: Call, suite: str | None) -> str | None:
    """An evaluation as its runs remember it: `name@hash` of the current version."""
    if suite is None:
        return None
    found = await version_of(call, suite)
    return f"{found.name}@{found.hash[:12]}"


def ancestors(tx: Tx, composition: Composition) -> list[str]:
    """The names it descends from by forks, nearest first, as far as the lineages in the files reach."""
    names: list[str] = []
    here: Composition | None = composition
    while here is not None and len(names) < _MAX_GENERATIONS:
        name = promotion.parent_name(here)
        if name is None or name in (composition.name, *names):
            break
        names.append(name)
        known = store.find(tx, promotion.parent_reference(here) or name) or store.find(tx, name)
        here = None if known is None else known.composition
    return names


def _notes(found: Evidence, fork: Composition | None) -> list[str]:
    notes = [
        f"{side.runs - side.said} of {side.runs} runs of {side.name} do not say {found.metric} and are left out"
        for side in (found.a, found.b)
        if side.said < side.runs
    ]
    lineage = {} if fork is None else fork.document.get("lineage") or {}
    author = lineage.get("fork_author") if isinstance(lineage, dict) else None
    if isinstance(author, str) and author.startswith("agent:") and (own := found.b.reporters.get(author)):
        notes.append(f"{own} of {found.b.runs} runs of {found.b.name} were reported by {author}, who made it")
    if found.guard is not None and found.guard.winner == "a":
        notes.append(f"{found.b.name} succeeds less often than {found.a.name}")
    return notes


def _asks_more(parent: Composition, fork: Composition) -> list[str]:
    """What the fork's agents ask for and its parent's did not; they get what the operator grants, at most."""
    before, after = asks_of(parent)[0], asks_of(fork)[0]
    more = [f"capability {name}" for name in after.capabilities if name not in before.capabilities]
    more += [f"MCP server {name}" for name in after.mcp_servers if name not in before.mcp_servers]
    more += [f"model {name}" for name in after.models if name not in before.models]
    if after.routing_level != before.routing_level and after.routing_level is not None:
        more.append(f"routing level {after.routing_level}")
    return [f"{fork.name} asks for what {parent.name} did not: {', '.join(more)}"] if more else []


def _now(call: Call) -> str:
    moment = datetime.fromtimestamp(call.svc.clock.now_ms() / 1000, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _interval(low: float | None, high: float | None) -> list[float] | None:
    return None if low is None or high is None else [float(f"{each:.{_DIGITS}g}") for each in (low, high)]


TOOLS = (composition_compare, composition_promote, composition_add_learning)
