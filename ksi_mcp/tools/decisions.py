"""Decisions: track, look, say how they turned out, take over those of a log."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from ksi_mcp.agents import reach
from ksi_mcp.compositions.model import shorten
from ksi_mcp.db import Tx
from ksi_mcp.decisions.model import Decision, draft_resolution
from ksi_mcp.errors import Refused
from ksi_mcp.permissions import within
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.events import run_of
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import at

Number = Annotated[float | str, WithJsonSchema({"type": "number"})]
"""A number; as text it is taken too, for models write "0.8". Clients need not be told."""


class DecisionView(View):
    """A decision as stored."""

    decision_id: str
    pattern: str
    decision: str
    context: Any = None
    reasoning: str | None = None
    confidence: float | None = None
    outcome: str
    score: float | None = None
    agent: str
    orchestration: str | None = None
    at: str
    resolved_at: str | None = None
    resolved_by: str | None = None

    @classmethod
    def of(cls, decision: Decision) -> DecisionView:
        """From the record."""
        return cls(
            decision_id=decision.decision_id,
            pattern=decision.pattern,
            decision=decision.decision,
            context=decision.context,
            reasoning=decision.reasoning,
            confidence=decision.confidence,
            outcome=decision.outcome,
            score=decision.score,
            agent=decision.agent,
            orchestration=decision.orchestration_id,
            at=at(decision.at_ms),
            resolved_at=None if decision.resolved_at_ms is None else at(decision.resolved_at_ms),
            resolved_by=decision.resolved_by,
        )


class DecisionsView(View):
    """Newest first."""

    decisions: list[DecisionView]
    cursor: str | None = None


class ImportedView(View):
    """What came of an import; `known` were there before, `problems` are entries that could not be taken."""

    imported: int
    known: int
    resolved: int
    problems: list[str] | None = None


@tool(
    "composition_track_decision",
    needs="decisions",
    effects="writes",
    title="Track a decision",
    aliases={"agent_id": "agent"},
)
async def composition_track_decision(
    call: Call,
    *,
    pattern: str,
    decision: str,
    context: Annotated[Any, WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]})] = None,
    reasoning: str | None = None,
    confidence: Annotated[Number | None, Field(description="0 to 1")] = None,
    outcome: str = "pending",
    score: Number | None = None,
    agent: Annotated[str | None, Field(description="operator only: who decided")] = None,
    orchestration: Annotated[str | None, Field(description="the run it belongs to")] = None,
) -> DecisionView:
    """Record a decision made while following a pattern (TRACK), so that the pattern can evolve on evidence."""
    run = await call.read(lambda tx: run_of(tx, call, orchestration))
    tracked = await call.svc.decisions.track(
        within(call.ctx, run),
        call.committer(DecisionView.of),
        pattern=pattern,
        decision=decision,
        context=context,
        reasoning=reasoning,
        confidence=confidence,
        outcome=outcome,
        score=score,
        agent=agent,
    )
    return DecisionView.of(tracked)


@tool("decision_query", needs="base", effects="reads", title="Look at decisions", idempotent=True)
async def decision_query(
    call: Call,
    *,
    pattern: str | None = None,
    decision: Annotated[str | None, Field(description="a part of its text")] = None,
    outcome: str | None = None,
    agent: str | None = None,
    orchestration: Annotated[str | None, Field(description="the run it belongs to")] = None,
    min_score: Annotated[float | None, Field(allow_inf_nan=False)] = None,
    limit: Annotated[int, Field(ge=1, le=200)] = 20,
    cursor: str | None = None,
) -> DecisionsView:
    """Look at tracked decisions, newest first."""

    def work(tx: Tx) -> DecisionsView:
        page = call.svc.decisions.query(
            tx,
            pattern=pattern,
            decision=decision,
            outcome=outcome,
            agent=agent,
            orchestration_id=orchestration,
            min_score=min_score,
            limit=limit,
            cursor=cursor,
        )
        return DecisionsView(decisions=[DecisionView.of(each) for each in page.decisions], cursor=page.cursor)

    return await call.read(work)


@tool(
    "decision_resolve",
    needs="decisions",
    effects="writes",
    title="Say how a decision turned out",
    aliases={"id": "decision_id"},
)
async def decision_resolve(
    call: Call,
    *,
    decision_id: str,
    outcome: Annotated[str, Field(description="success, failure, or your word")],
    score: Number | None = None,
) -> DecisionView:
    """Say how a decision turned out, once. An agent may for its own decisions and those of agents below it."""
    how = draft_resolution(outcome, score)
    resolved: list[Decision] = []

    def work(tx: Tx) -> DecisionView:
        found = call.svc.decisions.get(tx, decision_id)
        own = call.ctx.actor.agent_id
        if call.ctx.actor.kind == "agent" and not (
            found.agent == own or (own is not None and reach.is_below(tx, found.agent, own))
        ):
            raise Refused(
                f"decision {decision_id} is one of {shorten(found.agent)!r}, which is not you nor below you",
                hint="whoever decided, an agent above it, or the operator says how it turned out",
            )
        resolved[:] = [call.svc.decisions.resolve_in(tx, within(call.ctx, found.orchestration_id), decision_id, how)]
        return DecisionView.of(resolved[0])

    view = await call.commit(work)
    await call.svc.decisions.append(resolved[0], kind="resolves")
    return view


@tool("decision_import", needs="operator", effects="writes", title="Take over a log of decisions", idempotent=True)
async def decision_import(
    call: Call,
    *,
    pattern: Annotated[str, Field(description="whose decisions, where an entry does not say")],
    log: Annotated[str | None, Field(description="YAML; default: the pattern's own file")] = None,
) -> ImportedView:
    """Take over the decisions of a log, of another system or a file of ours the database has lost. Twice is as once."""
    report = await call.svc.decisions.import_log(
        call.ctx, pattern, log, commit=call.committer(lambda _: ImportedView(imported=0, known=0, resolved=0))
    )
    return ImportedView(
        imported=report.imported,
        known=report.known,
        resolved=report.resolved,
        problems=list(report.problems) or None,
    )


TOOLS = (composition_track_decision, decision_query, decision_resolve, decision_import)
