"""Single turns: look at one, cancel one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import NotFound, Refused
from ksi_mcp.queues.model import Turn
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import TurnView, at

TurnRef = Annotated[str, Field(description="turn id, from agent_send", min_length=1, max_length=100)]


class TurnDetail(TurnView):
    """A turn with who asked, what was asked and when."""

    prompt: str
    created_by: str
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    retry_at: str | None = None


class Cancelled(View):
    """Whether this call cancelled the turn; if not, it had ended before, and nothing was changed."""

    turn: str
    cancelled: bool
    status: str
    was: str | None = None


@tool("completion_status", needs="messaging", effects="reads", title="Look at one turn", idempotent=True)
async def completion_status(call: Call, *, turn: TurnRef) -> TurnDetail:
    """Return one turn: status, reply or error, attempts, cost. agent_wait waits for it to end."""

    def work(tx: Tx) -> TurnDetail:
        found = _visible(tx, call, turn)
        brief = TurnView.of(found, call.svc.roster.get(tx, found.session_id).name)
        return TurnDetail(
            **brief.model_dump(),
            prompt=found.prompt[:8_000],
            created_by=found.created_by,
            created_at=at(found.created_at_ms),
            started_at=None if found.started_at_ms is None else at(found.started_at_ms),
            finished_at=None if found.finished_at_ms is None else at(found.finished_at_ms),
            retry_at=at(found.run_at_ms) if found.state == "retrying" else None,
        )

    return await call.read(work)


@tool("completion_cancel", needs="messaging", effects="destroys", title="Cancel one turn", idempotent=True)
async def completion_cancel(call: Call, *, turn: TurnRef, reason: str = "cancelled on request") -> Cancelled:
    """Cancel a turn: a queued one never runs, a running one is stopped (and paid for); its agent goes on.

    Cancelling one that has ended is no error and changes nothing. An agent cancels its own turns, those of agents it
    spawned, and those it asked for.
    """

    def work(tx: Tx) -> Cancelled:
        found = _visible(tx, call, turn)
        actor = call.ctx.actor
        asked_for = actor.kind != "agent" or found.created_by == str(actor)
        if not asked_for and found.session_id not in reach.family(tx, actor.agent_id):
            raise Refused(
                f"{actor} may not cancel turn {found.turn_id}",
                hint="an agent cancels its own turns, those of agents it spawned, and those it asked for",
            )
        ended = call.svc.roster.cancel_turn(tx, call.ctx, found, reason=reason[:500])
        if ended is None:
            return Cancelled(turn=found.turn_id, cancelled=False, status=found.state)
        return Cancelled(turn=found.turn_id, cancelled=True, status=ended.state, was=found.state)

    return await call.commit(work)


def _visible(tx: Tx, call: Call, turn_id: str) -> Turn:
    found = call.svc.queues.get(tx, turn_id)
    seen = reach.visible(tx, call.ctx)
    if seen is not None and found.session_id not in seen:
        raise NotFound(f"unknown turn {turn_id[:80]!r}", hint="turn ids come from agent_send; they begin with t_")
    return found


TOOLS = (completion_status, completion_cancel)
