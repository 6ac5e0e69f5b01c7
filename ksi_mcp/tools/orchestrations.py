"""Runs of patterns: start, list. See status.py for how far one is, control.py for what can be done to it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from ksi_mcp.agents.model import Agent, check_agent_name
from ksi_mcp.agents.roster import Delivery
from ksi_mcp.budgets.model import Limits
from ksi_mcp.compositions.resolve import Resolved
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.orchestrations.model import Orchestration, StartPlan
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.specs import BudgetWants, limits_of_wish, spec_of, tightest
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import AgentView, BudgetView, at

BASE_ORCHESTRATOR = "base_orchestrator"
ORCHESTRATOR = "orchestrator"
_MAX_DEPTH = 100_000


class Started(View):
    """The open run: its agents, its rules, and the strategy for you to carry out with the tools."""

    orchestration: str
    pattern: str
    agents: list[AgentView]
    rules: list[str]
    budget: BudgetView
    description: str | None = None
    strategy: str | None = None
    includes: dict[str, str] | None = None
    warnings: list[str] | None = None
    turn: str | None = None
    next: str


class RunView(View):
    """A run in a list."""

    orchestration: str
    pattern: str
    state: str
    started_at: str
    ended_at: str | None = None
    origin: str | None = None
    draining: bool | None = None
    outcome: str | None = None
    score: float | None = None
    summary: str | None = None

    @classmethod
    def of(cls, run: Orchestration) -> RunView:
        """From the record."""
        return cls(
            orchestration=run.orchestration_id,
            pattern=f"{run.pattern}@{run.pattern_hash[:12]}",
            state=run.state,
            started_at=at(run.started_at_ms),
            ended_at=None if run.ended_at_ms is None else at(run.ended_at_ms),
            origin=run.origin_id,
            draining=run.draining is not None or None,
            outcome=run.outcome,
            score=run.score,
            summary=run.summary,
        )


class RunsView(View):
    """Newest first."""

    orchestrations: list[RunView]
    cursor: str | None = None


@tool(
    "orchestration_start", needs="orchestration", effects="writes", title="Start a pattern", aliases={"name": "pattern"}
)
async def orchestration_start(
    call: Call,
    *,
    pattern: str,
    vars: dict[str, Any] | None = None,
    budget: BudgetWants | None = None,
    orchestrator: Literal["client", "agent"] = "client",
    provider: str | None = None,
    model: Annotated[str | None, Field(max_length=200)] = None,
    idempotency_key: Annotated[str | None, Field(max_length=200)] = None,
) -> Started:
    """Start a run of a pattern: its team of agents. Returns the strategy for you to follow.

    With orchestrator='agent' an agent follows it instead. End it with orchestration_complete.
    """
    resolved = await call.svc.library.resolve(pattern, vars or {})
    if resolved.type not in ("orchestration", "ensemble"):
        raise Invalid(
            f"composition {resolved.name!r} is of type {resolved.type!r}, not an orchestration",
            hint="composition_discover(type='orchestration') lists patterns; agent_spawn makes one agent",
        )
    leader = await call.svc.library.resolve(BASE_ORCHESTRATOR, {}) if orchestrator == "agent" else None
    plan = await start_plan(call, resolved, leader, budget, provider=provider, model=model)

    def work(tx: Tx) -> Started:
        run, agents, rules = call.svc.conductor.start(tx, call.ctx, plan)
        turn = None
        if leader is not None:
            call.svc.library.remember(tx, leader)
            chief = next(agent for agent in agents if agent.name == ORCHESTRATOR)
            turn = call.svc.roster.send(tx, call.ctx, chief, _briefing(run, resolved, agents), Delivery()).turn_id
        logic = resolved.document.get("orchestration_logic")
        about = logic.get("description") if isinstance(logic, dict) else None
        return Started(
            orchestration=run.orchestration_id,
            pattern=resolved.reference,
            agents=[AgentView.of(agent) for agent in agents],
            rules=[rule.rule_id for rule in rules],
            budget=BudgetView.of(call.svc.ledger.account(tx, run.orchestration_id)),
            description=about if isinstance(about, str) else None,
            strategy=(resolved.strategy or None) if orchestrator == "client" else None,
            includes=resolved.includes or None,
            warnings=list(resolved.warnings) or None,
            turn=turn,
            next="follow the strategy with the tools, then orchestration_complete"
            if orchestrator == "client"
            else "orchestration_status, or agent_wait on this turn, until the orchestrator has completed the run",
        )

    return await call.commit(work, key=idempotency_key, again=Started)


async def start_plan(
    call: Call,
    resolved: Resolved,
    leader: Resolved | None,
    budget: BudgetWants | None,
    *,
    provider: str | None,
    model: str | None,
) -> StartPlan:
    """What `Conductor.start` is given for a pattern, its agents' models and limits decided."""
    specs = []
    for draft in resolved.agents:
        check_agent_name(draft.role)
        specs.append(
            await spec_of(
                call.svc,
                draft,
                name=draft.role,
                composition=resolved.reference,
                provider=draft.provider or provider,
                model=draft.model or model,
            )
        )
    if leader is not None:
        if any(spec.name == ORCHESTRATOR for spec in specs):
            raise Invalid(
                f"the pattern has an agent named {ORCHESTRATOR!r}", hint="start it with orchestrator='client'"
            )
        specs.append(
            await spec_of(
                call.svc,
                leader.agents[0],
                name=ORCHESTRATOR,
                composition=leader.reference,
                provider=provider,
                model=model,
            )
        )
    asked = resolved.document.get("max_depth", call.svc.config.max_depth)
    if not isinstance(asked, int) or isinstance(asked, bool) or not 1 <= asked <= _MAX_DEPTH:
        raise Invalid(f"max_depth of the pattern is {asked!r:.40}", hint=f"a whole number from 1 to {_MAX_DEPTH:,}")
    if call.ctx.actor.kind == "agent":  # who writes a pattern and starts it must not be who sets that limit
        asked = min(asked, call.svc.config.max_depth)
    every = resolved.document.get("checkpoint_every")
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or not 1 <= every <= _MAX_DEPTH):
        raise Invalid(
            f"checkpoint_every of the pattern is {every!r:.40}", hint=f"a whole number from 1 to {_MAX_DEPTH:,}"
        )
    limits = budget.limits() if budget is not None else Limits()
    return StartPlan(
        resolved=resolved,
        agents=tuple(specs),
        rules=resolved.rules,
        limits=tightest(limits, limits_of_wish(resolved.budget)),
        orchestrator="client" if leader is None else "agent",
        max_depth=asked,
        checkpoint_every=every,
    )


def _briefing(run: Orchestration, resolved: Resolved, agents: list[Agent]) -> str:
    team = "\n".join(f"- {agent.name} ({agent.agent_id})" for agent in agents if agent.name != ORCHESTRATOR)
    texts = "\n\n".join(f"## {name}\n{text}" for name, text in resolved.includes.items())
    return (
        f"Carry out orchestration {run.orchestration_id}, a run of the pattern {resolved.reference}.\n\n"
        f"Your agents:\n{team or '- none yet'}\n\nVariables: {json.dumps(resolved.vars, ensure_ascii=False)}\n\n"
        f"# Strategy\n{resolved.strategy}\n\n{texts}\n\n"
        "When it is done, call orchestration_complete with the outcome."
    )


@tool("orchestration_list", needs="base", effects="reads", title="List runs", idempotent=True)
async def orchestration_list(
    call: Call,
    *,
    state: Literal["running", "suspended", "completed", "failed", "stopped"] | None = None,
    pattern: str | None = None,
    limit: Annotated[int, Field(ge=1, le=100)] = 20,
    cursor: str | None = None,
) -> RunsView:
    """List runs, newest first."""

    def work(tx: Tx) -> RunsView:
        runs, following = call.svc.conductor.page(
            tx, call.ctx, state=state, pattern=pattern, limit=limit, cursor=cursor
        )
        return RunsView(orchestrations=[RunView.of(run) for run in runs], cursor=following)

    return await call.read(work)


TOOLS = (
    orchestration_start,
    orchestration_list,
)
