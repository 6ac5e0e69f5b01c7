"""Single turns: submit, inject, look at one, answer one, cancel one."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.agents.history import plain
from ksi_mcp.agents.injections import Position, inject
from ksi_mcp.agents.model import MAX_MESSAGE_CHARS, Agent
from ksi_mcp.agents.roster import Delivery
from ksi_mcp.completions.endings import report_end
from ksi_mcp.completions.expect import Expect, encode_expect, parse_expect, problems_of
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid, NotFound, Refused
from ksi_mcp.queues.model import INJECTED, OpClass, Turn
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.events import check_emittable
from ksi_mcp.tools.selecting import AgentRef, Key, message_text
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import NEXT_OF_PARKED, TurnView, at
from ksi_mcp.tools.waiting import where_turns_are

TurnRef = Annotated[str, Field(description="turn id, from agent_send", min_length=1, max_length=100)]


class TurnDetail(TurnView):
    """A turn with who asked, what was asked and when."""

    prompt: str
    created_by: str
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    retry_at: str | None = None
    expect: dict[str, Any] | None = None
    rejected_replies: int | None = None


class Cancelled(View):
    """Whether this call cancelled the turn; if not, it had ended before, and nothing was changed."""

    turn: str
    cancelled: bool
    status: str
    was: str | None = None


class Injected(View):
    """Words that were put in. `waiting` counts those that go with the next turn; `turn` is one of their own."""

    agent: str
    mode: str
    position: str | None = None
    waiting: int | None = None
    turn: str | None = None


@tool(
    "completion_submit",
    needs="messaging",
    effects="writes",
    title="Submit a prompt to an agent",
    aliases={
        "agent_id": "agent", "session": "agent", "session_id": "agent", "target_agent": "agent", "to": "agent",
        "message": "prompt", "content": "prompt",
    },
)  # fmt: skip
async def completion_submit(
    call: Call,
    *,
    agent: AgentRef,
    prompt: str | dict[str, Any],
    expect: Annotated[
        dict[str, Any] | None,
        Field(
            description="what the reply must be like: json_schema (structured: true tells the provider), regex, "
            "min_length, max_length, contains; max_attempts (3), on_invalid: escalate | fail"
        ),
    ] = None,
    cache: Annotated[
        Literal["exact", "semantic"] | None,
        Field(description="reuse the answer of an equal request, or of one that asks the same in other words"),
    ] = None,
    mode: Annotated[Literal["next", "last"], Field(description="before or after what waits already")] = "last",
    timeout_s: Annotated[float | None, Field(description="for the model call", gt=0, le=3600)] = None,
    op_class: OpClass = "analysis",
    reply_event: Annotated[str | None, Field(description="event to emit with the reply")] = None,
    idempotency_key: Key = None,
) -> TurnView:
    """Give an agent a prompt, with all there is to say about how it is carried out. Returns the turn; then agent_wait.

    A reply that is not as expected goes back to the model with the reason; after max_attempts the turn is parked until
    completion_answer ends it, or it fails. agent_send is the short form.
    """
    if reply_event is not None:
        check_emittable(call, reply_event)
    how = Delivery(
        reply_event=reply_event,
        timeout_s=timeout_s,
        op_class=op_class,
        priority=INJECTED if mode == "next" else 0,
        expect=None if expect is None else encode_expect(expect),
        cache=cache,
    )

    def work(tx: Tx) -> TurnView:
        found = reach.find(tx, call.ctx, agent)
        return TurnView.of(call.svc.roster.send(tx, call.ctx, found, message_text(prompt), how), found.name)

    return await call.commit(work, key=idempotency_key, again=TurnView)


@tool(
    "completion_inject",
    needs="messaging",
    effects="writes",
    title="Put words into a conversation",
    aliases={"agent_id": "agent", "session": "agent", "session_id": "agent", "prompt": "content", "message": "content"},
)
async def completion_inject(
    call: Call,
    *,
    agent: AgentRef,
    content: str | dict[str, Any],
    position: Annotated[
        Position | None, Field(description="in its next turn: before or after the prompt, or in the system prompt")
    ] = None,
    mode: Annotated[
        Literal["direct", "next"],
        Field(description="next: with its next turn; direct: a turn of its own, first in line"),
    ] = "next",
    idempotency_key: Key = None,
) -> Injected:
    """Put words into an agent's conversation without asking it anything: they go with its next turn that starts.

    Before and after stay in its history, system holds for that one turn. mode='direct' makes a turn of the words, in
    front of those that wait. An agent does this to itself and to agents it spawned.
    """
    if mode == "direct" and position is not None:
        raise Invalid(
            f"position={position!r} goes with mode='next'", hint="in mode='direct' the words are the prompt of a turn"
        )

    def work(tx: Tx) -> Injected:
        found = reach.find_below(tx, call.ctx, agent, action="inject into")
        text = message_text(content)
        if mode == "direct":
            turn = call.svc.roster.send(tx, call.ctx, found, text, Delivery(priority=INJECTED))
            return Injected(agent=found.agent_id, mode=mode, turn=turn.turn_id)
        place = position or "before"
        waiting = inject(tx, call.svc.journal, call.ctx, found, content=text, position=place)
        return Injected(agent=found.agent_id, mode=mode, position=place, waiting=waiting)

    return await call.commit(work, key=idempotency_key, again=Injected)


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
            expect=None if found.expect is None else json.loads(found.expect),
            rejected_replies=found.checks or None,
        )

    return await call.read(work)


@tool(
    "completion_answer", needs="messaging", effects="writes", title="Answer a parked turn", aliases={"answer": "text"}
)
async def completion_answer(
    call: Call,
    *,
    turn: Annotated[str, Field(min_length=1, max_length=100)],
    text: str,
    accept_anyway: bool = False,
) -> TurnView:
    """Answer for an agent: end its turn parked on 'answer' with your text."""
    answer = plain(text)
    if not answer.strip():
        raise Invalid("the text is empty")
    if len(answer) > MAX_MESSAGE_CHARS:
        raise Invalid(f"the text has {len(answer):,} characters, the limit is {MAX_MESSAGE_CHARS:,}")

    def work(tx: Tx) -> TurnView:
        found = _visible(tx, call, turn)
        agent = call.svc.roster.get(tx, found.session_id)
        _check_may_answer(tx, call, found)
        _check_waits(found)
        if not accept_anyway and (wrong := problems_of(_expected(found, agent), answer)):
            raise Invalid(
                f"the text is not what turn {found.turn_id} expects: {'; '.join(wrong)}",
                hint="put it right, or say accept_anyway=true",
            )
        done = call.svc.queues.answer_parked(tx, found.turn_id, text=answer, by=str(call.ctx.actor))
        if done is None:
            raise Conflict(f"turn {found.turn_id} does not wait for an answer any more")
        report_end(tx, call.svc.journal, done, agent_name=agent.name)
        return TurnView.of(done, agent.name)

    return await call.commit(work)


def _check_may_answer(tx: Tx, call: Call, found: Turn) -> None:
    actor = call.ctx.actor
    if actor.kind != "agent":
        return
    asked = found.created_by == str(actor)
    if found.session_id == actor.agent_id or not (asked or found.session_id in reach.family(tx, actor.agent_id)):
        raise Refused(
            f"{actor} may not answer turn {found.turn_id}",
            hint="an agent answers for agents it spawned and for what it asked for, never for itself",
        )


def _check_waits(found: Turn) -> None:
    if found.state == "parked" and found.parked_on == "answer":
        return
    if found.answered_by is not None:
        raise Conflict(f"turn {found.turn_id} was answered by {found.answered_by}", hint="only the first answer counts")
    if found.state == "parked":
        hint = NEXT_OF_PARKED.get(found.parked_on or "")
        raise Conflict(f"turn {found.turn_id} waits for {found.parked_on}, not for an answer", hint=hint)
    raise Conflict(
        f"turn {found.turn_id} is {found.state}, it does not wait for an answer",
        hint="agent_wait shows what is parked; agent_send asks anew",
    )


def _expected(found: Turn, agent: Agent) -> Expect:
    if found.expect is not None:
        return parse_expect(json.loads(found.expect))
    return Expect() if agent.settings.expect is None else parse_expect(agent.settings.expect)


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
    found = next(iter(call.svc.queues.some(tx, [turn_id])), None)
    seen = reach.visible(tx, call.ctx)
    if found is None or (seen is not None and found.session_id not in seen):
        raise NotFound(f"unknown turn {turn_id[:80]!r}", hint=where_turns_are(call))
    return found


TOOLS = (completion_answer, completion_submit, completion_inject, completion_status, completion_cancel)
