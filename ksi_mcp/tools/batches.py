"""Many prompts with one call, on demand at half the price."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import Agent
from ksi_mcp.agents.roster import Delivery
from ksi_mcp.completions.expect import encode_expect
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.providers.kinds import traits_of
from ksi_mcp.queues.model import OpClass
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.events import check_emittable
from ksi_mcp.tools.selecting import AgentRef, Key, message_text
from ksi_mcp.tools.tool import Part, View, tool

MAX_REQUESTS = 1_000


class BatchItem(Part):
    """One prompt for one agent."""

    agent: AgentRef
    prompt: str | dict[str, Any]
    expect: dict[str, Any] | None = Field(default=None, description="as in completion_submit")
    cache: Literal["exact", "semantic"] | None = None
    op_class: OpClass = "analysis"


class BatchTurn(View):
    """The turn that a prompt has become."""

    turn: str
    agent: str


class Submitted(View):
    """The turns, in the order of the requests."""

    turns: list[BatchTurn]
    batch: bool
    next: str


@tool("completion_batch", needs="messaging", effects="writes", title="Submit many prompts")
async def completion_batch(
    call: Call,
    *,
    requests: Annotated[list[BatchItem], Field(min_length=1, max_length=MAX_REQUESTS)],
    batch: Annotated[
        bool, Field(description="send them as a batch of the provider: half the price, done within a day")
    ] = False,
    reply_event: Annotated[str | None, Field(description="event to emit with each reply")] = None,
    idempotency_key: Key = None,
) -> Submitted:
    """Give many prompts at once, to one agent or to many: all of them, or none if one cannot be taken.

    With batch=true they go through the batch API of their provider (anthropic). An agent's turns still run one after
    another, so many agents finish sooner than one. A reply that calls tools goes on outside of the batch.
    """
    if reply_event is not None:
        check_emittable(call, reply_event)
    how = [
        Delivery(
            reply_event=reply_event,
            op_class=item.op_class,
            expect=None if item.expect is None else encode_expect(item.expect),
            cache=item.cache,
            batched=batch,
        )
        for item in requests
    ]

    def work(tx: Tx) -> Submitted:
        turns: list[BatchTurn] = []
        for place, (item, delivery) in enumerate(zip(requests, how, strict=True)):
            agent = reach.find(tx, call.ctx, item.agent)
            if batch:
                _check_batches(agent, place)
            turn = call.svc.roster.send(tx, call.ctx, agent, message_text(item.prompt), delivery)
            turns.append(BatchTurn(turn=turn.turn_id, agent=agent.agent_id))
        later = "completion_status shows one; what waits for its batch is parked on 'batch', for up to a day"
        return Submitted(turns=turns, batch=batch, next=later if batch else "agent_wait with the turns")

    return await call.commit(work, key=idempotency_key, again=Submitted)


def _check_batches(agent: Agent, place: int) -> None:
    if not traits_of(agent.provider).batches:
        raise Invalid(
            f"requests.{place}: agent {agent.name!r} is answered by {agent.provider[:60]!r}, which takes no batches",
            hint="leave batch out, or use agents of provider anthropic",
        )


TOOLS = (completion_batch,)
