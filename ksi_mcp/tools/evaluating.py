"""Put a pattern or a profile to the cases of an evaluation, within a budget."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Final

from pydantic import Field

from ksi_mcp.agents.roster import Delivery
from ksi_mcp.budgets.model import GLOBAL, Limits
from ksi_mcp.compositions.evidence import share
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.ids import new_id
from ksi_mcp.orchestrations import evaluation as cases_of
from ksi_mcp.orchestrations.evaluation import FAILED, PASSED, Case, CaseRun, Evaluation
from ksi_mcp.orchestrations.model import ENDED, StartPlan
from ksi_mcp.queues.model import Turn
from ksi_mcp.tools.call import Call, Progress
from ksi_mcp.tools.orchestrations import start_plan
from ksi_mcp.tools.specs import BudgetWants, limits_of_wish, tightest
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import BudgetView
from ksi_mcp.tools.waiting import MAX_WAIT_S, gather

_MAX_PARALLEL: Final = 20
_EXAMPLES: Final = 3


class CaseView(View):
    """One case: its runs, how many of the judged ones passed, and what was wrong with some that did not."""

    case: str
    weight: float
    planned: int
    judged: int
    passed: int
    pass_rate: float | None = None
    interval: list[float] | None = None
    problems: list[str] | None = None


class EvaluationCensus(View):
    """Of the runs planned. `unjudged` had no answer (budget, provider, cancelled); `not_run` were never started."""

    planned: int
    passed: int
    failed: int
    unjudged: int
    running: int
    not_run: int


class EvaluationView(View):
    """How far it is. `score` is the weighted share of passed runs, over the cases that have been judged."""

    evaluation: str
    name: str
    suite: str
    complete: bool
    census: EvaluationCensus
    score: float | None = None
    weight_judged: float
    cases: list[CaseView]
    budget: BudgetView
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """An evaluation under way, its cases, and the plan of a run of each."""

    made: Evaluation
    cases: Sequence[Case]
    plans: dict[str, StartPlan]


@tool("composition_evaluate", needs="orchestration", effects="writes", title="Evaluate a composition", waits=True)
async def composition_evaluate(
    call: Call,
    *,
    name: Annotated[str | None, Field(description="a profile, or a pattern of one agent")] = None,
    suite: Annotated[str | None, Field(description="an evaluation composition")] = None,
    runs: Annotated[int | None, Field(ge=1, le=100, description="of each case; default: as it says")] = None,
    budget: Annotated[BudgetWants | None, Field(description="of all runs together; or the suite has one")] = None,
    evaluation: Annotated[str | None, Field(description="go on with this one")] = None,
    parallel: Annotated[int, Field(ge=1, le=_MAX_PARALLEL)] = 4,
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S)] = 50,
    provider: str | None = None,
    model: Annotated[str | None, Field(max_length=200)] = None,
) -> EvaluationView:
    """Run the cases of an evaluation and check each reply; every run is recorded, for composition_compare(suite=...).

    Returns a census. While runs are left, call again with `evaluation`. It never spends more than the budget.
    """
    if evaluation is not None:
        work = await _go_on(call, evaluation, provider=provider, model=model)
    elif name is None or suite is None:
        raise Invalid("composition_evaluate needs name and suite, or evaluation", hint="see composition_discover")
    else:
        work = await _begin(call, name, suite, runs, budget, provider=provider, model=model)
    until, tell = call.svc.clock.monotonic_s() + wait_s, call.progress
    begun = False
    while True:
        found = await call.read(lambda tx: cases_of.case_runs(tx, work.made.evaluation_id))
        running = [run for run in found if run.problems is None]
        turns = await call.read(lambda tx: _turns(tx, call, running))  # noqa: B023
        if any(turns[run.turn_id].final for run in running):
            await call.step(lambda tx: _settle(tx, call, work))
            continue
        left = until - call.svc.clock.monotonic_s()
        if left > 0 or not begun:
            begun = True
            if await call.step(lambda tx: _start(tx, call, work, parallel)):
                continue
        if left <= 0:
            break
        if not running:
            if await call.read(lambda tx: _is_running(tx, work)):  # another call has just started some
                continue
            break
        call.progress = _progress(tell, len(found) - len(running), sum(case.repeats for case in work.cases))
        gathered = await gather(
            call, turns=[run.turn_id for run in running], agents=(), timeout_s=left, min_responses=1
        )
        if gathered.census.pending == len(running):  # the time is up, or all of them wait for somebody
            break
    return await call.commit(lambda tx: _finish(tx, call, work))


async def _go_on(call: Call, evaluation: str, *, provider: str | None, model: str | None) -> _Work:
    made = await call.read(lambda tx: cases_of.find(tx, evaluation))
    if call.ctx.actor.kind == "agent" and made.created_by != str(call.ctx.actor):
        raise Refused(f"evaluation {evaluation} is one of {made.created_by}", hint="begin one of your own")
    suite = await call.svc.library.resolve(made.suite, {})
    cases = cases_of.parse_cases(suite.document, what=made.suite, repeats=made.repeats)
    return _Work(made=made, cases=cases, plans=await _plans(call, made, cases, provider=provider, model=model))


async def _begin(
    call: Call,
    name: str,
    suite: str,
    runs: int | None,
    budget: BudgetWants | None,
    *,
    provider: str | None,
    model: str | None,
) -> _Work:
    chosen = await call.svc.library.resolve(suite, {})
    if chosen.type != "evaluation":
        raise Invalid(
            f"composition {chosen.name!r} is of type {chosen.type!r}, not an evaluation",
            hint="composition_discover(type='evaluation') lists them",
        )
    cases = cases_of.parse_cases(chosen.document, what=chosen.reference, repeats=runs)
    limits = tightest(Limits() if budget is None else budget.limits(), limits_of_wish(chosen.budget))
    if (limits.usd_micros, limits.tokens, limits.turns) == (None, None, None):
        raise Invalid("an evaluation needs a budget", hint="budget={'usd': 1}, or a budget in the suite")
    target = await call.svc.library.resolve(name, dict(cases[0].vars))
    made = Evaluation(
        evaluation_id=_id_for(call),
        name=target.name,
        hash=target.hash,
        suite=chosen.reference,
        repeats=runs,
        created_by=str(call.ctx.actor),
    )
    plans = await _plans(call, made, cases, provider=provider, model=model, reference=name)

    def write(tx: Tx) -> None:
        cases_of.insert(tx, made)
        call.svc.library.remember(tx, chosen)
        call.svc.library.remember(tx, target)
        call.svc.ledger.open(tx, made.evaluation_id, parent_id=call.ctx.actor.agent_id or GLOBAL, limits=limits)

    await call.step(write)
    return _Work(made=made, cases=cases, plans=plans)


def _progress(tell: Progress, before: int, planned: int) -> Progress:
    """Counts runs of the whole evaluation, where a single wait counts its own."""

    async def progress(done: float, total: float | None, message: str) -> None:
        under_way = 0 if total is None else total - done
        counted = f"{before + done:g} of {planned} runs have ended, {under_way:g} are under way"
        await tell(before + done, planned, "; ".join((counted, *message.split("; ")[1:])))

    return progress


async def _plans(
    call: Call,
    made: Evaluation,
    cases: Sequence[Case],
    *,
    provider: str | None,
    model: str | None,
    reference: str | None = None,
) -> dict[str, StartPlan]:
    """A plan a case: the same version, with the variables of the case."""
    plans = {}
    for case in cases:
        resolved = await call.svc.library.resolve(reference or f"{made.name}@{made.hash}", dict(case.vars))
        if resolved.type not in ("agent", "orchestration") or len(resolved.agents) != 1:
            raise Invalid(
                f"{resolved.name!r} is of type {resolved.type!r} with {len(resolved.agents)} agents",
                hint="a profile or a pattern of one agent can be evaluated; complete runs of others yourself",
            )
        plan = await start_plan(call, resolved, None, None, provider=provider, model=model)
        plans[case.name] = replace(plan, account=made.evaluation_id)
    return plans


def _turns(tx: Tx, call: Call, found: Sequence[CaseRun]) -> dict[str, Turn]:
    return {str(turn.turn_id): turn for turn in call.svc.queues.some(tx, [run.turn_id for run in found])}


def _is_running(tx: Tx, work: _Work) -> bool:
    return any(run.problems is None for run in cases_of.case_runs(tx, work.made.evaluation_id))


def _used_up(tx: Tx, call: Call, work: _Work) -> bool:
    account = call.svc.ledger.account(tx, work.made.evaluation_id)
    limits = account.limits
    return (
        account.closed
        or (limits.usd_micros is not None and account.spent_usd_micros >= limits.usd_micros)
        or (limits.tokens is not None and account.spent_tokens >= limits.tokens)
        or (limits.turns is not None and account.spent_turns >= limits.turns)
        or account.seconds_left(tx.now_ms) == 0
    )


def _start(tx: Tx, call: Call, work: _Work, parallel: int) -> int:
    """Start the next runs, as many as there is room for, unless the budget is used up; how many that were."""
    found = cases_of.case_runs(tx, work.made.evaluation_id)
    room = parallel - sum(run.problems is None for run in found)
    made = Counter(run.case_name for run in found)
    wanted = list(islice(cases_of.plan(work.cases, made), max(room, 0)))
    if not wanted or _used_up(tx, call, work):
        return 0
    for case in wanted:
        run, agents, _rules = call.svc.conductor.start(tx, call.ctx, work.plans[case.name])
        turn = call.svc.roster.send(tx, call.ctx, agents[0], case.input, Delivery())
        cases_of.add_run(tx, work.made.evaluation_id, case, run_id=run.orchestration_id, turn_id=turn.turn_id)
    return len(wanted)


def _settle(tx: Tx, call: Call, work: _Work) -> None:
    """Check the replies that have come and end their runs, with the verdict as their outcome."""
    waiting = [run for run in cases_of.case_runs(tx, work.made.evaluation_id) if run.problems is None]
    turns = _turns(tx, call, waiting)
    ended = [run for run in waiting if turns[run.turn_id].final]
    cases = {case.name: case for case in work.cases}
    for each in ended:
        ending, problems = cases_of.judged(cases[each.case_name], turns[each.turn_id])
        run = call.svc.conductor.get(tx, each.run_id)
        if run.state in ENDED:  # by somebody else, whose word on it stands
            problems = problems or [f"the run was {run.state} by somebody else"]
        else:
            call.svc.conductor.end(tx, call.ctx, run, ending)
        cases_of.set_problems(tx, each.run_id, problems)


def _finish(tx: Tx, call: Call, work: _Work) -> EvaluationView:
    found = cases_of.case_runs(tx, work.made.evaluation_id)
    outcomes = Counter(run.outcome if run.problems is not None else "running" for run in found)
    planned = sum(case.repeats for case in work.cases)
    census = EvaluationCensus(
        planned=planned,
        passed=outcomes[PASSED],
        failed=outcomes[FAILED],
        running=outcomes["running"],
        unjudged=len(found) - outcomes[PASSED] - outcomes[FAILED] - outcomes["running"],
        not_run=planned - len(found),
    )
    views = [_case_view(case, [run for run in found if run.case_name == case.name]) for case in work.cases]
    weighed = [(view.weight, view.passed / view.judged) for view in views if view.judged]
    total = sum(weight for weight, _ in weighed)
    score = sum(weight * rate for weight, rate in weighed) / total if total else None
    used_up = _used_up(tx, call, work)
    done = census.running == 0 and (census.not_run == 0 or used_up)
    if done and cases_of.end(tx, work.made.evaluation_id):
        facts = {
            "name": work.made.name,
            "hash": work.made.hash,
            "suite": work.made.suite,
            "evaluation": work.made.evaluation_id,
            "score": score,
            "census": census.as_json(),
        }
        call.svc.journal.record(tx, "composition:evaluated", facts, call.ctx)
    return EvaluationView(
        evaluation=work.made.evaluation_id,
        name=f"{work.made.name}@{work.made.hash[:12]}",
        suite=work.made.suite,
        complete=done,
        census=census,
        score=None if score is None else round(score, 6),
        weight_judged=round(total / sum(case.weight for case in work.cases), 6),
        cases=views,
        budget=BudgetView.of(call.svc.ledger.account(tx, work.made.evaluation_id)),
        next=_next(work.made.evaluation_id, census, done=done, used_up=used_up),
    )


def _next(evaluation_id: str, census: EvaluationCensus, *, done: bool, used_up: bool) -> str | None:
    if done:
        return f"the budget is used up: {census.not_run} runs were not made" if census.not_run and used_up else None
    return f"composition_evaluate(evaluation={evaluation_id!r}) goes on; what is parked waits for completion_answer"


def _case_view(case: Case, found: Sequence[CaseRun]) -> CaseView:
    passed = sum(run.outcome == PASSED for run in found)
    judged = share(passed, passed + sum(run.outcome == FAILED for run in found))
    wrong = list(dict.fromkeys(problem for run in found for problem in run.problems or ()))
    bounds = None if judged.low is None or judged.high is None else [round(judged.low, 6), round(judged.high, 6)]
    return CaseView(
        case=case.name,
        weight=case.weight,
        planned=case.repeats,
        judged=judged.n,
        passed=passed,
        pass_rate=None if judged.mean is None else round(judged.mean, 6),
        interval=bounds,
        problems=wrong[:_EXAMPLES] or None,
    )


def _id_for(call: Call) -> str:
    """A new id; in a turn, one made of the place in it, so that a call repeated after a crash goes on with its own."""
    slot = call.ctx.slot
    if slot is None:
        return new_id("v")
    return f"v_{hashlib.sha256(f'{slot.turn_id}/{slot.round}/{slot.index}'.encode()).hexdigest()[:20]}"


TOOLS = (composition_evaluate,)
