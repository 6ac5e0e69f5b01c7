"""How far a run is: what its agents do, what it spent, what waits, and for whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import Agent
from ksi_mcp.db import Tx
from ksi_mcp.events.model import EventFilter
from ksi_mcp.orchestrations.model import Orchestration
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.orchestrations import RunView
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import BudgetView, CensusView, EventView, ParkedView
from ksi_mcp.tools.waiting import parked_views, undelivered

_OPEN: Final = ("running", "suspended")
_OPEN_SHOWN: Final = 50
_QUESTIONS_SHOWN: Final = 10
_DONE: Final = frozenset({"done", "failed", "cancelled", "timed_out"})


class AgentBrief(View):
    """An agent of a run."""

    agent: str
    name: str
    status: str
    pending_turns: int
    parent: str | None = None

    @classmethod
    def of(cls, agent: Agent) -> AgentBrief:
        """From the record."""
        return cls(
            agent=agent.agent_id,
            name=agent.name,
            status=agent.status,
            pending_turns=agent.pending,
            parent=agent.parent_id,
        )


class StatusView(RunView):
    """How far a run is: agents, queue, spend, census of its turns, newest events, and what to do next.

    `questions` are its turns that wait for somebody, oldest first.
    """

    agents: list[AgentBrief]
    still_running: int | None = None
    census: CensusView
    queue: dict[str, int]
    questions: list[ParkedView] | None = None
    undelivered_events: int | None = None
    budget: BudgetView
    events: list[EventView]
    metrics: dict[str, Any] | None = None
    next: list[str]


class OpenRunView(RunView):
    """A run that has not ended, in short."""

    agents: int
    pending_turns: int
    budget: BudgetView


class OpenRunsView(View):
    """The runs that have not ended, newest first, and what waits for somebody in any of them."""

    orchestrations: list[OpenRunView]
    more: bool | None = None
    questions: list[ParkedView] | None = None
    next: list[str]


@tool("orchestration_status", needs="base", effects="reads", title="See how far a run is", idempotent=True)
async def orchestration_status(
    call: Call,
    *,
    orchestration: str | None = None,
    events: Annotated[int, Field(description="newest events", ge=0, le=50)] = 10,
) -> StatusView | OpenRunsView:
    """Return a run's agents, queue, cost, census of turns, questions, newest events, next steps; or the open runs."""

    def work(tx: Tx) -> StatusView | OpenRunsView:
        if orchestration is None and reach.grants(tx, call.ctx).orchestration_id is None:
            return _open_runs(tx, call)
        run = call.svc.conductor.find(tx, call.ctx, orchestration)
        agents = call.svc.roster.living_in(tx, run.orchestration_id)
        queue = call.svc.conductor.queue(tx, run.orchestration_id)
        turns = queue.turns
        due = undelivered(tx, [run.orchestration_id])
        asked = parked_views(tx, call, run.orchestration_id, limit=_QUESTIONS_SHOWN)
        census = CensusView(
            asked=sum(turns.values()),
            ok=turns.get("done", 0),
            failed=turns.get("failed", 0),
            cancelled=turns.get("cancelled", 0),
            timed_out=turns.get("timed_out", 0),
            pending=_pending(turns),
        )
        return StatusView(
            **RunView.of(run).model_dump(),
            agents=[AgentBrief.of(agent) for agent in agents[:100]],
            still_running=turns.get("running", 0) if run.state == "suspended" else None,
            census=census,
            undelivered_events=due or None,
            queue={state: count for state, count in turns.items() if state not in _DONE},
            questions=asked or None,
            budget=BudgetView.of(call.svc.ledger.account(tx, run.orchestration_id)),
            events=[],
            metrics=run.metrics,
            next=_next_steps(run, agents, census, due, asked),
        )

    status = await call.read(work)
    if not events or isinstance(status, OpenRunsView):
        return status
    page = await call.svc.journal.query(EventFilter(orchestration_id=status.orchestration), limit=events)
    return status.model_copy(update={"events": [EventView.of(event) for event in page.events]})


def _pending(turns: Mapping[str, int]) -> int:
    return sum(count for state, count in turns.items() if state not in _DONE)


def _open_runs(tx: Tx, call: Call) -> OpenRunsView:
    conductor = call.svc.conductor
    pages = [conductor.page(tx, call.ctx, state=state, pattern=None, limit=_OPEN_SHOWN, cursor=None) for state in _OPEN]
    runs = sorted((run for found, _ in pages for run in found), key=lambda run: run.n, reverse=True)
    asked = parked_views(tx, call, None, limit=_QUESTIONS_SHOWN)
    views = [
        OpenRunView(
            **RunView.of(run).model_dump(),
            agents=len(call.svc.roster.living_in(tx, run.orchestration_id)),
            pending_turns=_pending(conductor.queue(tx, run.orchestration_id).turns),
            budget=BudgetView.of(call.svc.ledger.account(tx, run.orchestration_id)),
        )
        for run in runs[:_OPEN_SHOWN]
    ]
    steps = ["orchestration_status(orchestration) shows one of them"]
    if not views:
        steps = ["no run is open: orchestration_start begins one"]
    if asked:
        steps.append(_to_answer(asked))
    return OpenRunsView(
        orchestrations=views,
        more=True if len(runs) > _OPEN_SHOWN or any(following for _, following in pages) else None,
        questions=asked or None,
        next=steps,
    )


def _to_answer(asked: list[ParkedView]) -> str:
    first = asked[0]
    return f"{first.turn} of {first.agent_name} is parked: {first.next or 'see its question'}"


def _next_steps(
    run: Orchestration, agents: list[Agent], census: CensusView, due: int, asked: list[ParkedView]
) -> list[str]:
    if run.state == "suspended":
        return [f"orchestration_control(action='resume') lets its {census.pending} pending turns go on"]
    if run.state != "running":
        return [f"the run is {run.state}; agent_history and event_query show what of it is kept"]
    steps = [_to_answer(asked)] if asked else []
    if due:
        steps.append(f"{due} events are still being delivered: agent_wait(agents=[...]) waits for them too")
    if census.pending:
        names = [agent.name for agent in agents if agent.pending][:5]
        steps.append(f"agent_wait(agents={names}): {census.pending} turns are pending")
    if census.failed:
        steps.append("event_query(names=['completion:failed']) says why turns failed")
    if not census.pending and not due:
        steps.append("nothing is pending: send the next messages, or orchestration_complete")
    return steps


TOOLS = (orchestration_status,)
