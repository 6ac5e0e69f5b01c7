"""What agents hear of others without a rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import Agent
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Refused
from ksi_mcp.permissions import MAX_SUBSCRIPTION_LEVEL, Context, within
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.selecting import AgentRef
from ksi_mcp.tools.tool import View, tool

HearingLevel = Annotated[int, Field(ge=-1, le=MAX_SUBSCRIPTION_LEVEL)]


class SubscriptionView(View):
    """How far below it an agent hears what others emit, and what fails: 0 not at all, -1 all the way."""

    agent: str
    name: str
    level: int
    error_level: int
    wake: bool
    was: dict[str, Any] | None = None


@tool(
    "routing_update_subscription",
    needs="routing_control",
    effects="writes",
    title="Change what an agent hears",
    idempotent=True,
    aliases={"agent_id": "agent", "target_agent": "agent", "subscription_level": "level"},
)
async def routing_update_subscription(
    call: Call,
    *,
    agent: AgentRef,
    level: Annotated[HearingLevel, Field(description="0 nobody, 1 its children, N so far down, -1 all below it")],
    error_level: Annotated[HearingLevel | None, Field(description="the same for what fails")] = None,
    wake: Annotated[bool | None, Field(description="what it hears starts a turn")] = None,
    reason: Annotated[str | None, Field(max_length=2000)] = None,
) -> SubscriptionView:
    """Set how far below it an agent hears what others emit without a rule; what is left out stays.

    What it hears is told in one notice before its next turn. System events are for rules: of them only failures are
    heard. An agent may change that for whom its routing level covers.
    """

    def work(tx: Tx) -> SubscriptionView:
        found = find_routable(tx, call.ctx, agent)
        now = replace(
            found,
            subscription_level=level,
            error_level=found.error_level if error_level is None else error_level,
            wake=found.wake if wake is None else wake,
        )
        changed = subscribe(tx, call, found, now, reason=reason)
        return SubscriptionView(
            agent=found.agent_id, name=found.name, **_shown(now), was=_shown(found) if changed else None
        )

    return await call.commit(work)


def find_routable(tx: Tx, ctx: Context, ref: str) -> Agent:
    """The agent of that id or name, if the actor's routing level covers it.

    Raises:
        NotFound: there is none in sight.
        Refused: it is beyond the level.
    """
    return reach.find_routable(tx, ctx, ref)


def check_routable(tx: Tx, ctx: Context, agent: Agent) -> None:
    """See that the actor may say what that agent hears.

    Raises:
        Refused: it may not.
    """
    if not reach.may_route(tx, ctx, agent.agent_id):
        level = reach.grants(tx, ctx).routing_level
        raise Refused(
            f"{ctx.actor} may not change what {agent.name!r} ({agent.agent_id}) hears: "
            f"it is beyond its routing level {level!r}",
            hint="an agent changes that only for whom its level covers; ask whoever is above both",
        )


def subscribe(tx: Tx, call: Call, was: Agent, now: Agent, *, reason: str | None) -> bool:
    """Write what an agent hears from now on; whether that is something else than before.

    Raises:
        Conflict: it has ended.
    """
    if was.life != "active":
        raise Conflict(f"agent {was.name!r} is {was.life}", hint="nothing was changed")
    before, after = _shown(was), _shown(now)
    if before == after:
        return False
    values = {"subscription_level": now.subscription_level, "error_level": now.error_level, "wake": int(now.wake)}
    tx.run("agents.subscribe", {"agent_id": was.agent_id, **values})
    facts = {"agent": was.agent_id, "name": was.name, "was": before, "now": after, "by": str(call.ctx.actor)}
    call.svc.journal.record(
        tx,
        "routing:subscription_changed",
        {**facts, "reason": reason},
        within(call.ctx, was.orchestration_id),
        agent_id=was.agent_id,
    )
    return True


def _shown(agent: Agent) -> dict[str, Any]:
    return {"level": agent.subscription_level, "error_level": agent.error_level, "wake": agent.wake}


TOOLS = (routing_update_subscription,)
