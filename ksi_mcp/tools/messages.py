"""Messages: send, broadcast, wait, read back."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.agents.roster import Delivery
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.ids import TurnId, new_id
from ksi_mcp.queues.model import OpClass
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.events import check_emittable
from ksi_mcp.tools.selecting import AgentRef, AgentWhere, Key, message_text, select_living
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import HistoryView, TurnView
from ksi_mcp.tools.waiting import MAX_WAIT_S, Found, Gathered, gather


class History(View):
    """The newest finished turns, oldest first."""

    agent: str
    name: str
    turns: list[HistoryView]


class Broadcast(View):
    """The turns made, one an agent."""

    turns: list[TurnView]


@tool(
    "agent_send",
    needs="messaging",
    effects="writes",
    title="Send a message to an agent",
    waits=True,
    aliases={"agent_id": "agent", "to": "agent", "target_agent": "agent", "prompt": "message", "content": "message"},
    commands=("agent:send_message", "completion:async"),
)
async def agent_send(
    call: Call,
    *,
    agent: AgentRef,
    message: str | dict[str, Any],
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S)] = 0,
    reply_event: Annotated[str | None, Field(description="emitted with the reply")] = None,
    timeout_s: Annotated[float | None, Field(gt=0, le=3600)] = None,
    op_class: OpClass = "analysis",
    idempotency_key: Key = None,
) -> TurnView:
    """Give an agent a message; it becomes a turn. Returns its id, then agent_wait(turns=[...]).

    One agent answers in order, different agents in parallel. completion_submit can say more.
    """
    if reply_event is not None:
        check_emittable(call, reply_event)

    made: dict[str, Found] = {}
    turns: list[str] = [new_id("t")]

    def work(tx: Tx) -> TurnView:
        found = reach.find(tx, call.ctx, agent)
        how = Delivery(reply_event=reply_event, timeout_s=timeout_s, op_class=op_class, turn_id=TurnId(turns[0]))
        turn = call.svc.roster.send(tx, call.ctx, found, message_text(message), how)
        if wait_s > 0 and call.ctx.slot is not None:  # a wait that cannot be must not leave the message behind
            call.svc.queues.begin_wait(tx, call.svc.queues.get(tx, call.ctx.slot.turn_id), [turn])
        made[turn.turn_id] = [turn], {found.agent_id: found.name}
        return TurnView.of(turn, found.name)

    if wait_s <= 0:
        return await call.commit(work, key=idempotency_key, again=TurnView)

    async def begin() -> Found | None:
        turns[0] = (await call.commit(work, key=idempotency_key, again=TurnView)).turn
        return made.get(turns[0])  # nothing, if the key has had its result before

    gathered = await gather(call, turns=turns, agents=(), timeout_s=wait_s, min_responses=1, begin=begin)
    return gathered.turns[0]


@tool("agent_broadcast", needs="messaging", effects="writes", title="Send one message to many agents")
async def agent_broadcast(
    call: Call,
    *,
    filter: AgentWhere,
    message: str | dict[str, Any],
    reply_event: str | None = None,
) -> Broadcast:
    """Give every living agent that fits the filter the same message, in one transaction. Returns a turn each."""
    if reply_event is not None:
        check_emittable(call, reply_event)

    def work(tx: Tx) -> Broadcast:
        found = select_living(tx, call, filter)
        sent = [
            TurnView.of(
                call.svc.roster.send(tx, call.ctx, one, message_text(message), Delivery(reply_event=reply_event)),
                one.name,
            )
            for one in found
            if one.agent_id != call.ctx.actor.agent_id and not one.draining
        ]
        if not sent:
            raise Invalid("no living agent fits the filter", hint="agent_list shows who is there")
        return Broadcast(turns=sent)

    return await call.commit(work)


@tool(
    "agent_wait",
    needs="messaging",
    effects="reads",
    title="Wait for replies",
    waits=True,
    aliases={"timeout": "timeout_s"},
)
async def agent_wait(
    call: Call,
    *,
    turns: Annotated[list[str] | None, Field(max_length=1000)] = None,
    agents: Annotated[list[str] | None, Field(description="or their newest turns", max_length=1000)] = None,
    timeout_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S)] = 30,
    min_responses: Annotated[int | None, Field(ge=1)] = None,
    collect_partial: bool = True,
) -> Gathered:
    """Wait until turns have ended, and collect the replies (GATHER) with a census; call again while pending > 0."""
    if not turns and not agents:
        raise Invalid("agent_wait needs turns or agents", hint="agent_send returned the turn ids")
    return await gather(
        call,
        turns=tuple(turns or ()),
        agents=tuple(agents or ()),
        timeout_s=timeout_s,
        min_responses=min_responses,
        collect_partial=collect_partial,
    )


@tool(
    "agent_history",
    needs="base",
    effects="reads",
    title="Read a conversation",
    idempotent=True,
    aliases={"agent_id": "agent"},
)
async def agent_history(call: Call, *, agent: AgentRef, limit: Annotated[int, Field(ge=1, le=100)] = 10) -> History:
    """Return the newest finished turns of an agent, oldest first: prompt, tools used, reply."""

    def work(tx: Tx) -> History:
        found = reach.find(tx, call.ctx, agent)
        turns = [HistoryView.of(past) for past in call.svc.roster.history(tx, found, limit=limit)]
        return History(agent=found.agent_id, name=found.name, turns=turns)

    return await call.read(work)


TOOLS = (agent_send, agent_wait, agent_history, agent_broadcast)
