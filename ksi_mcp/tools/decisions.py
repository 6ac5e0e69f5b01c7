"""Decisions: track, look."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ksi_mcp.db import Tx
from ksi_mcp.decisions.model import Decision
from ksi_mcp.permissions import within
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.events import run_of
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import at


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
        )


class DecisionsView(View):
    """Newest first."""

    decisions: list[DecisionView]
    cursor: str | None = None


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
    context: Any = None,
    reasoning: str | None = None,
    confidence: Annotated[float | str | None, Field(description="0 to 1")] = None,
    outcome: str = "pending",
    score: float | str | None = None,
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
    limit: Annotated[int, Field(ge=1, le=200)] = 20,
    cursor: str | None = None,
) -> DecisionsView:
    """Look at tracked decisions, newest first."""

    def work(tx: Tx) -> DecisionsView:
        page = call.svc.decisions.query(
            tx, pattern=pattern, decision=decision, outcome=outcome, agent=agent, limit=limit, cursor=cursor
        )
        return DecisionsView(decisions=[DecisionView.of(each) for each in page.decisions], cursor=page.cursor)

    return await call.read(work)


TOOLS = (composition_track_decision, decision_query)
