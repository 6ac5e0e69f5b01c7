"""What can be done to a run: hold it, let it go on, go back to a checkpoint, end it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.orchestrations.checkpoints import Checkpoint
from ksi_mcp.orchestrations.model import Ending, Mode
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.orchestrations import RunView
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import BudgetView, at

UNDONE_WITH_THE_RUN: Final = ("agent_", "completion_", "event_", "orchestration_co", "routing_", "turn_")
"""Beginnings of the names of tools that work on a run itself: what they did is put back with it, and done again."""

Into = Annotated[Literal["same", "new"], Field(description="new: another run is made of it")]


class EndedView(RunView):
    """The run as it ended, or as it drains."""

    agents_ended: int
    cancelled_turns: int
    budget: BudgetView


class HeldView(RunView):
    """A held run: turns still at work (they stop by themselves), held at the front of a session, waiting behind."""

    still_running: int
    held: int
    queued: int
    next: str


class ResumedView(RunView):
    """A run that goes on, and how long it stood still."""

    paused_s: float


class CheckpointView(View):
    """A moment of a run. `turns` had ended by then. It cannot be gone back to once it was `left`."""

    checkpoint: str
    orchestration: str
    label: str | None = None
    automatic: bool | None = None
    turns: int
    event_id: int
    at: str
    left_by: str | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, found: Checkpoint, size: int | None = None) -> CheckpointView:
        """From the record."""
        return cls(
            checkpoint=found.checkpoint_id,
            orchestration=found.orchestration_id,
            label=found.label,
            automatic=found.automatic or None,
            turns=found.turns,
            event_id=found.event_id,
            at=at(found.at_ms),
            left_by=found.left_by,
            bytes=size,
        )


class CheckpointsView(View):
    """Newest first."""

    checkpoints: list[CheckpointView]
    cursor: str | None = None


class RestoredView(RunView):
    """A run as of a checkpoint.

    `left_turns` came after it and are no part of the conversation any more; `put_back` had not ended by then. So many
    answers are `reusable`: the very same requests get them and cost nothing. What the tools in `effects_kept` did
    since is not undone, and is not done again with the same answer.
    """

    checkpoint: str
    left_turns: int
    put_back: int
    reusable: int
    effects_kept: list[dict[str, str]]
    effects_kept_count: int
    next: str | None = None


def stays(call: Call, name: str) -> bool:
    """Whether what that tool does outlasts a restore; a tool of another server is not ours to undo."""
    known = {tool.name: tool for tool in call.toolbox.tools}.get(name)
    return known is None or not (known.effects == "reads" or name.startswith(UNDONE_WITH_THE_RUN))


# ------------------------------------------------------------------------------------ suspend, resume


def _suspend(tx: Tx, call: Call, orchestration: str | None, mode: Mode) -> HeldView:
    conductor = call.svc.conductor
    run = conductor.find(tx, call.ctx, orchestration)
    census = conductor.suspension.suspend(tx, call.ctx, run, mode=mode)
    return HeldView(
        **RunView.of(conductor.get(tx, run.orchestration_id)).model_dump(),
        still_running=census.running,
        held=census.held,
        queued=census.queued,
        next="its agents take messages, which wait; orchestration_control(action='resume') lets it go on",
    )


def _resume(tx: Tx, call: Call, orchestration: str | None) -> ResumedView:
    conductor = call.svc.conductor
    run = conductor.find(tx, call.ctx, orchestration)
    paused_ms = conductor.suspension.resume(tx, call.ctx, run)
    return ResumedView(
        **RunView.of(conductor.get(tx, run.orchestration_id)).model_dump(), paused_s=round(paused_ms / 1000, 3)
    )


@tool("orchestration_suspend", needs="orchestration", effects="writes", title="Hold a run", idempotent=True)
async def orchestration_suspend(
    call: Call,
    *,
    orchestration: Annotated[str | None, Field(description="default for an agent: its own")] = None,
    mode: Annotated[Mode, Field(description="now: running calls are cut off, and paid")] = "drain",
) -> HeldView:
    """Hold a run: no turn starts, those at work stop between two rounds and keep what was paid. Its clocks stop."""
    return await call.commit(lambda tx: _suspend(tx, call, orchestration, mode))


@tool("orchestration_resume", needs="orchestration", effects="writes", title="Let a run go on", idempotent=True)
async def orchestration_resume(
    call: Call,
    *,
    orchestration: Annotated[str | None, Field(description="default for an agent: its own")] = None,
) -> ResumedView:
    """Let a held run go on, from any process, after any time. What has ended is not run again."""
    return await call.commit(lambda tx: _resume(tx, call, orchestration))


# ---------------------------------------------------------------------------------------- checkpoints


def _create(tx: Tx, call: Call, orchestration: str | None, label: str | None) -> CheckpointView:
    run = call.svc.conductor.find(tx, call.ctx, orchestration)
    return CheckpointView.of(call.svc.conductor.vault.create(tx, call.ctx, run, label=label or None))


def _restore(
    tx: Tx, call: Call, orchestration: str | None, checkpoint: str | None, *, into: Literal["same", "new"], resume: bool
) -> RestoredView:
    conductor = call.svc.conductor
    within = None if orchestration is None else conductor.find(tx, call.ctx, orchestration).orchestration_id
    found, snapshot = conductor.vault.find(tx, within, checkpoint)
    run = conductor.find(tx, call.ctx, found.orchestration_id)
    if into == "new":
        done = conductor.forker.fork(tx, call.ctx, run, found, snapshot)
    else:
        done = conductor.restorer.restore(tx, call.ctx, run, found, snapshot, stays=lambda name: stays(call, name))
    now = conductor.get(tx, done.orchestration_id)
    if resume:
        conductor.suspension.resume(tx, call.ctx, now)
        now = conductor.get(tx, done.orchestration_id)
    return RestoredView(
        **RunView.of(now).model_dump(),
        checkpoint=found.checkpoint_id,
        left_turns=done.left,
        put_back=done.put_back,
        reusable=done.reusable,
        effects_kept=[{"agent": each.agent, "tool": each.tool, "turn": each.turn_id} for each in done.effects],
        effects_kept_count=done.effects_kept,
        next=None if resume else "it is suspended: orchestration_control(action='resume') lets it go on",
    )


@tool("checkpoint_create", needs="orchestration", effects="writes", title="Keep a run as it stands")
async def checkpoint_create(
    call: Call,
    *,
    orchestration: Annotated[str | None, Field(description="default for an agent: its own")] = None,
    label: str | None = None,
) -> CheckpointView:
    """Keep a run as it stands, to go back to it or to make another run of it. The run goes on meanwhile."""
    return await call.commit(lambda tx: _create(tx, call, orchestration, label))


@tool("checkpoint_list", needs="base", effects="reads", title="List checkpoints", idempotent=True)
async def checkpoint_list(
    call: Call,
    *,
    orchestration: str | None = None,
    limit: Annotated[int, Field(ge=1, le=100)] = 20,
    cursor: str | None = None,
) -> CheckpointsView:
    """List checkpoints, newest first."""

    def work(tx: Tx) -> CheckpointsView:
        run = None
        if orchestration is not None:
            run = call.svc.conductor.find(tx, call.ctx, orchestration).orchestration_id
        visible = reach.visible_runs(tx, call.ctx)
        found, following = call.svc.conductor.vault.page(
            tx, orchestration_id=run, visible=visible, limit=limit, cursor=cursor
        )
        return CheckpointsView(checkpoints=[CheckpointView.of(*each) for each in found], cursor=following)

    return await call.read(work)


@tool("checkpoint_restore", needs="orchestration", effects="destroys", title="Go back to a checkpoint")
async def checkpoint_restore(
    call: Call,
    *,
    checkpoint: Annotated[str | None, Field(description="id or label; the run's newest")] = None,
    orchestration: str | None = None,
    into: Into = "same",
    resume: bool = False,
) -> RestoredView:
    """Put a run back to a checkpoint, or make another run of it. Money spent stays spent; nothing is bought twice."""
    return await call.commit(lambda tx: _restore(tx, call, orchestration, checkpoint, into=into, resume=resume))


# ------------------------------------------------------------------------------------------- the two listed


@tool(
    "orchestration_control",
    needs="orchestration",
    effects="destroys",
    title="Control a run",
    aliases={"reason": "label"},
)
async def orchestration_control(
    call: Call,
    *,
    orchestration: str,
    action: Literal["suspend", "resume", "stop", "checkpoint", "restore"],
    mode: Mode | None = None,
    label: str | None = None,
    checkpoint: str | None = None,
    into: Literal["same", "new"] | None = None,
) -> EndedView | HeldView | ResumedView | CheckpointView | RestoredView:
    """Pause a run (drain), resume it, stop it (now) without an outcome, keep or restore a checkpoint."""
    match action:
        case "stop":
            return await _end(call, orchestration, Ending(state="stopped", summary=label), mode=mode or "now")
        case "suspend":
            return await call.commit(lambda tx: _suspend(tx, call, orchestration, mode or "drain"))
        case "resume":
            return await call.commit(lambda tx: _resume(tx, call, orchestration))
        case "checkpoint":
            return await call.commit(lambda tx: _create(tx, call, orchestration, label))
        case "restore":
            return await call.commit(
                lambda tx: _restore(tx, call, orchestration, checkpoint, into=into or "same", resume=False)
            )


@tool("orchestration_complete", needs="orchestration", effects="destroys", title="Complete a run")
async def orchestration_complete(
    call: Call,
    *,
    orchestration: str | None = None,
    outcome: Annotated[str, Field(description="success, failure, or your word")] = "success",
    score: Annotated[float | None, Field(allow_inf_nan=False)] = None,
    metrics: dict[str, Any] | None = None,
    summary: str | None = None,
    mode: Mode | None = None,
) -> EndedView:
    """End a run with its outcome and score: the evidence on which patterns evolve. Its agents and rules end with it.

    Now, or with mode='drain' once its turns have ended.
    """
    state: Literal["completed", "failed"] = "failed" if outcome in ("failure", "failed") else "completed"
    ending = Ending(state=state, outcome=outcome, score=score, metrics=metrics, summary=summary)
    return await _end(call, orchestration, ending, mode=mode or "now")


async def _end(call: Call, orchestration: str | None, ending: Ending, *, mode: Mode) -> EndedView:
    for name, text, most in (("summary", ending.summary, _MAX_SUMMARY_CHARS), ("outcome", ending.outcome, 200)):
        if text is not None and len(text) > most:
            raise Invalid(f"the {name} has {len(text):,} characters, the limit is {most:,}")

    def work(tx: Tx) -> EndedView:
        conductor = call.svc.conductor
        run = conductor.find(tx, call.ctx, orchestration)
        agents = cancelled = 0
        if mode == "drain":
            ended = conductor.drain(tx, call.ctx, run, ending)
        else:
            ended, gone, turns = conductor.end(tx, call.ctx, run, ending)
            agents, cancelled = len(gone), len(turns)
        return EndedView(
            **RunView.of(ended).model_dump(),
            agents_ended=agents,
            cancelled_turns=cancelled,
            budget=BudgetView.of(call.svc.ledger.account(tx, run.orchestration_id)),
        )

    return await call.commit(work)


_MAX_SUMMARY_CHARS: Final = 20_000

TOOLS = (
    orchestration_control,
    orchestration_complete,
    orchestration_suspend,
    orchestration_resume,
    checkpoint_create,
    checkpoint_list,
    checkpoint_restore,
)
