"""Answers made before they are asked for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.agents.history import plain
from ksi_mcp.agents.model import MAX_MESSAGE_CHARS, Agent
from ksi_mcp.budgets.model import Account
from ksi_mcp.completions import prefetch
from ksi_mcp.completions.prefetch import LIVE, MAX_LIVE, standing
from ksi_mcp.completions.prefetcher import SPARE
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Conflict, Exhausted, Invalid
from ksi_mcp.events.journal import WOKEN
from ksi_mcp.providers.kinds import traits_of
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.selecting import AgentRef
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import BudgetView, at, usd


class PrefetchView(View):
    """A prompt that may come next. `status`: waiting, sent, answered, used, stale, cancelled or failed."""

    prefetch: int
    prompt: str
    status: str
    cost_usd: float | None = None
    reason: str | None = None
    expires_at: str | None = None
    used_by: str | None = None

    @classmethod
    def of(cls, row: Row, now_ms: int) -> PrefetchView:
        """From the record, as it stands at a moment."""
        status, reason = row["state"], row["error"]
        if status in LIVE and (gone := standing(row, now_ms).gone) is not None and status != "sent":
            status, reason = "stale", gone  # it is, though nobody has noted it yet
        return cls(
            prefetch=row["prefetch_id"],
            prompt=row["prompt"],
            status=status,
            cost_usd=usd(row["cost_usd_micros"]) if row["cost_usd_micros"] else None,
            reason=reason,
            expires_at=at(row["expires_at_ms"]) if status in LIVE else None,
            used_by=row["used_by"],
        )


class Prefetches(View):
    """The newest prefetches of an agent, newest first, and the account that they are paid from, once there is one."""

    agent: str
    name: str
    prefetches: list[PrefetchView]
    account: BudgetView | None = None


@tool(
    "completion_prefetch",
    needs="messaging",
    effects="writes",
    title="Have likely prompts answered beforehand",
    idempotent=True,
    aliases={"agent_id": "agent", "session": "agent", "session_id": "agent", "target_agent": "agent", "to": "agent"},
)
async def completion_prefetch(
    call: Call,
    *,
    agent: AgentRef,
    prompts: Annotated[
        list[str], Field(max_length=MAX_LIVE, description="that it may be given next; none: only look")
    ] = [],  # noqa: B006  never changed
    keep_s: Annotated[float | None, Field(gt=0, le=86_400, description="how long an answer is good for")] = None,
) -> Prefetches:
    """Answer prompts that an agent may be given next, so that the one that comes is answered at once and for nothing.

    Only from spare room and an account of its own, once the agent rests; a turn that needs the room ends it (and it is
    paid). An answer is good for the next prompt only, word for word, and not if it asks for tools. At most 3 an agent.
    """
    if not prompts:
        return await call.read(lambda tx: _shown(tx, call, reach.find(tx, call.ctx, agent)))
    texts = [_checked(prompt) for prompt in prompts]

    def work(tx: Tx) -> Prefetches:
        found = reach.find(tx, call.ctx, agent)
        _check_agent(call, found)
        account = prefetch.open_account(tx, call.svc.ledger, found, call.svc.config.prefetch)
        _check_account(call, found, account)
        kept_s = call.svc.config.prefetch.keep_s if keep_s is None else keep_s
        prefetch.ask(tx, call.ctx, found, texts, account_id=account.account_id, keep_s=kept_s)
        tx.announce(WOKEN)
        return _shown(tx, call, found)

    return await call.commit(work)


def _checked(prompt: str) -> str:
    text = plain(prompt)
    if not text.strip():
        raise Invalid("a prompt is empty", hint="give the prompts as they would be sent")
    if len(text) > MAX_MESSAGE_CHARS:
        raise Invalid(f"a prompt has {len(text):,} characters, the limit is {MAX_MESSAGE_CHARS:,}")
    return text


def _check_agent(call: Call, agent: Agent) -> None:
    """Whether anything can be prefetched for an agent at all.

    Raises:
        Conflict: it takes no prompts, nobody else than a model answers them, or there is never room to spare.
    """
    if agent.life != "active":
        raise Conflict(f"agent {agent.name!r} is {agent.life}", hint="agent_list(status='active') shows the living")
    if agent.draining:
        raise Conflict(f"agent {agent.name!r} is draining: it takes no more prompts", hint="choose another agent")
    traits, provider = traits_of(agent.provider), agent.provider
    if traits.agentic or traits.parks or not traits.metered:
        why = (
            "somebody answers it, not a model" if traits.parks else "it does its work as it answers, and cannot undo it"
        )
        raise Conflict(
            f"the provider {provider!r} of agent {agent.name!r} cannot be prefetched: {why}",
            hint="send the prompt when it is due; prefetching is for models that are called one by one",
        )
    room = call.svc.config.worker.concurrency
    at_provider = call.svc.config.in_flight(provider)
    if min(room, room if at_provider is None else at_provider) <= SPARE:
        raise Conflict(
            f"there is never room to spare: {room} turns at once, {at_provider or 'any number of'} at {provider!r}",
            hint=f"prefetching keeps {SPARE} places free; the configuration has to allow more than that",
        )
    if not call.svc.prices.is_priced(provider, agent.model):
        raise Conflict(
            f"no price is known for model {agent.model[:80]!r} of provider {provider!r}, and prefetching has a limit",
            hint="give it one under `prices` in config.yaml, in USD per million tokens, or say `free` there",
        )


def _check_account(call: Call, agent: Agent, account: Account) -> None:
    """Whether there is money left for a model that costs some.

    Raises:
        Exhausted: there is not.
    """
    limit = account.limits.usd_micros or 0
    costs = call.svc.prices.worst_case_usd_micros(agent.provider, agent.model, 1_000_000, 1_000_000) > 0
    if account.closed or (costs and account.spent_usd_micros >= limit):
        spent = f"${usd(account.spent_usd_micros)} of ${usd(limit)} are spent"
        state = "closed" if account.closed else "used up"
        raise Exhausted(
            f"the account {account.account_id}, which prefetches are paid from, is {state}: {spent}",
            hint="the operator raises its limit with budget_set; the configuration (prefetch) has the share of others",
        )


def _shown(tx: Tx, call: Call, agent: Agent) -> Prefetches:
    rows = prefetch.of_agent(tx, agent.agent_id)
    return Prefetches(
        agent=agent.agent_id,
        name=agent.name,
        prefetches=[PrefetchView.of(row, tx.now_ms) for row in rows],
        account=BudgetView.of(call.svc.ledger.account(tx, rows[0]["account_id"])) if rows else None,
    )


TOOLS = (completion_prefetch,)
