"""Prompts that an agent may be given next, answered beforehand: what is stored of them, and what holds of them.

A prefetch is for one place of a conversation: for the prompt after all that was asked when it was made. Whether its
answer fits is not guessed: it was given to a request, and only the very same request is served with it.

    waiting    until its agent rests and nobody else wants the room
    sent       its call is under way
    answered   until a turn makes that request, something else comes first, or its time is over
    used, stale, cancelled, failed   it is over
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from ksi_mcp.agents.history import PastTurn
from ksi_mcp.agents.model import Agent
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Account, Amount, Limits
from ksi_mcp.db import Row, Tx
from ksi_mcp.events.journal import Recorder
from ksi_mcp.ids import OrchestrationId, RootId, new_id
from ksi_mcp.permissions import SYSTEM, Context
from ksi_mcp.provider_config import PrefetchConfig
from ksi_mcp.providers.base import Usage

MAX_LIVE: Final = 3
"""Prefetches of one agent that wait, are under way or are answered; the oldest make room for others."""
SHOWN: Final = 10
"""Prefetches of one agent that are shown: the newest."""
LOOKED_AT: Final = 1_000
"""Prefetches that a worker looks at at once."""
SHOWN_CHARS: Final = 200
"""Of a prompt, as it is shown and as it is kept once it is over."""
HOLDS: Final = "prefetch:"
"""What stands before a prefetch's number where holds name their turn."""
ACCOUNTS: Final = "p_"
"""What stands before the id of a run or agent in the account of its prefetches."""

State = Literal["waiting", "sent", "answered", "used", "cancelled", "failed", "stale"]
LIVE: Final[frozenset[State]] = frozenset({"waiting", "sent", "answered"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What can become of a live prefetch at this moment: it is over (`gone` says why), it may be sent, or neither."""

    gone: str | None = None
    ready: bool = False


def standing(row: Row, now_ms: int) -> Standing:
    """How a live prefetch stands; `row` has its state, its times, and its agent's session.

    Every turn that ends adds one to the session's changes and takes one from what is pending, so their sum grows only
    with turns that are put in, and with other changes: as long as it is what it was, nothing has come in between.
    """
    state, coming = row["state"], row["changes"] + row["pending"]
    if row["life"] != "active" or row["draining"]:
        return Standing(gone="its agent has ended")
    if row["expires_at_ms"] <= now_ms:
        return Standing(gone="its time was over")
    if row["changes"] > row["follows"]:
        return Standing(gone="its agent's conversation went on")
    if coming < row["follows"]:
        return Standing(gone="turns before it were taken away")
    if coming > row["follows"]:
        if not row["asked"]:
            return Standing(gone="another prompt came first")
        # What has left is paid for, and its answer may still be there before the turn is.
        return Standing(gone="it was asked before it could be answered" if state == "waiting" else None)
    return Standing(ready=state == "waiting" and not row["pending"] and not row["suspended"])


# ------------------------------------------------------------------------------------------ asking


def open_account(tx: Tx, ledger: Ledger, agent: Agent, config: PrefetchConfig) -> Account:
    """The account that an agent's prefetches are paid from, inside that of its run (or, without one, its own).

    Its limit is a share of what the account above may spend when it is made; it can be changed like any other.
    """
    parent_id = agent.orchestration_id or agent.agent_id
    above = ledger.account(tx, parent_id).limits.usd_micros
    usd_micros = Decimal(str(config.usd)) * 1_000_000 if above is None else Decimal(str(config.usd_share)) * above
    account_id = ACCOUNTS + parent_id
    ledger.open(tx, account_id, parent_id=parent_id, limits=Limits(usd_micros=int(usd_micros)))
    return ledger.account(tx, account_id)


def ask(tx: Tx, ctx: Context, agent: Agent, prompts: Sequence[str], *, account_id: str, keep_s: float) -> None:
    """Let these prompts be answered beforehand; one that is live already is kept for longer, and not asked twice.

    `prompts` are at most `MAX_LIVE`; what was asked before makes room for them.
    """
    expires_at_ms = tx.now_ms + int(keep_s * 1000)
    for row in of_agent(tx, agent.agent_id, live=True):
        if (why := standing(row, tx.now_ms).gone) is not None:
            over(tx, row["prefetch_id"], "stale", error=why)
    for prompt in dict.fromkeys(prompts):
        values = {"agent_id": agent.agent_id, "prompt": prompt, "expires_at_ms": expires_at_ms}
        if tx.run("completions.prefetch_keep", values):
            continue
        who = {"created_by": str(ctx.actor), "cause_id": ctx.cause_id, "root_id": ctx.root_id}
        where = {"account_id": account_id, "follows": agent.changes + agent.pending}
        chain = {"hops": ctx.hops, "depth": ctx.depth, "now_ms": tx.now_ms}
        tx.run("completions.prefetch_ask", {**values, **who, **where, **chain})
    for row in of_agent(tx, agent.agent_id, live=True)[MAX_LIVE:]:
        over(tx, row["prefetch_id"], "stale", error=f"newer ones took its place: an agent has {MAX_LIVE}")


def of_agent(tx: Tx, agent_id: str, *, live: bool = False) -> Sequence[Row]:
    """The newest prefetches of an agent (or of its live ones), newest first, each with how its session stands."""
    values = {"agent_id": agent_id, "live": int(live), "limit": SHOWN, "shown_chars": SHOWN_CHARS}
    return tx.all("completions.prefetch_of_agent", values)


def unfinished(tx: Tx) -> bool:
    """Whether a worker has something to do here: a prefetch that may be sent, or one that was left by a lost one."""
    row = tx.one("completions.prefetch_unfinished", {"now_ms": tx.now_ms})
    return row is not None and bool(row["open"])


# ----------------------------------------------------------------------------------------- serving


def prefetched(tx: Tx, request_hash: str, agent_id: str) -> Row | None:
    """The prefetch of that agent whose answer this request has; None if there is none. Its id is `prefetch_id`."""
    values = {"request_hash": request_hash, "agent_id": agent_id, "now_ms": tx.now_ms}
    return tx.one("completions.prefetched", values)


def under_way(tx: Tx, request_hash: str, agent_id: str) -> bool:
    """Whether a prefetch of that agent has sent this very request, and its answer is not there yet."""
    return tx.one("completions.prefetch_under_way", {"request_hash": request_hash, "agent_id": agent_id}) is not None


def use(tx: Tx, prefetch_id: int, *, turn_id: str, number: int, attempt: int, account_id: str) -> str | None:
    """Give a round the answer of a prefetch, for nothing and only once; the answer as stored. None: it is gone."""
    hold_id = new_id("h")
    values = {"turn_id": turn_id, "round": number, "attempt": attempt, "hold_id": hold_id, "prefetch_id": prefetch_id}
    row = tx.one("completions.use_prefetched", {**values, "now_ms": tx.now_ms})
    if row is None:
        return None
    tx.run("completions.free_hold", {"hold_id": hold_id, "account_id": account_id, "turn_id": turn_id})
    used = {"prefetch_id": prefetch_id, "turn_id": turn_id, "shown_chars": SHOWN_CHARS}
    tx.run("completions.prefetch_used", used)
    return str(row["answer"])


# ---------------------------------------------------------------------------- what the prefetcher writes


def open_ones(tx: Tx, prefetch_id: int | None = None) -> Sequence[Row]:
    """The prefetches that wait or are under way (or that one, if it does), each with how its session stands."""
    return tx.all("completions.prefetch_open", {"prefetch_id": prefetch_id, "limit": LOOKED_AT})


def next_turn(tx: Tx, agent_id: str, *, turn_id: str, prompt: str, seq: int) -> PastTurn:
    """A turn with that prompt as it would begin now, with what waits to be put into the conversation."""
    words: dict[str, list[str]] = {"before": [], "after": [], "system": []}
    for row in tx.all("completions.prefetch_words", {"agent_id": agent_id}):
        words[row["position"]].append(row["content"])
    return PastTurn(
        turn_id=turn_id,
        prompt=prompt,
        rounds=(),
        at_ms=tx.now_ms,
        seq=seq,
        before=tuple(words["before"]),
        after=tuple(words["after"]),
        system=tuple(words["system"]),
    )


def find(tx: Tx, prefetch_id: int) -> Row | None:
    """All of a prefetch."""
    return tx.one("completions.prefetch_one", {"prefetch_id": prefetch_id})


def sent(tx: Tx, prefetch_id: int, *, provider: str, model: str, request_hash: str, hold_id: str) -> None:
    """Write that its call is about to leave."""
    values = {"provider": provider, "model": model, "request_hash": request_hash, "hold_id": hold_id}
    tx.run("completions.prefetch_sent", {**values, "prefetch_id": prefetch_id})


def paid(tx: Tx, prefetch_id: int, cost: Amount, usage: Usage | None = None) -> None:
    """Write what its call came to."""
    usage = usage or Usage()
    cached = usage.cache_read_tokens + usage.cache_write_tokens + usage.cache_write_1h_tokens
    tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cache_tokens": cached}
    values = {"prefetch_id": prefetch_id, "cost_usd_micros": cost.usd_micros, "now_ms": tx.now_ms}
    tx.run("completions.prefetch_paid", {**values, **tokens})


def answered(tx: Tx, prefetch_id: int, stored: str) -> bool:
    """Keep its answer; False if nobody wants it any more."""
    return tx.run("completions.prefetch_answered", {"prefetch_id": prefetch_id, "answer": stored}) == 1


def over(tx: Tx, prefetch_id: int, state: State, *, error: str) -> None:
    """Nothing will come of it any more; one that is over already stays what it is."""
    values = {"prefetch_id": prefetch_id, "state": state, "error": error[:2000], "shown_chars": SHOWN_CHARS}
    tx.run("completions.prefetch_over", {**values, "now_ms": tx.now_ms})


def lost(tx: Tx) -> Sequence[Row]:
    """The prefetches whose money is set aside though nobody is at work on them. For a worker that begins."""
    return tx.all("completions.prefetch_lost")


def report(tx: Tx, journal: Recorder, row: Row, agent_name: str, ctx: Context, *, cost: Amount) -> None:
    """Tell what has become of a prefetch that was sent, or could not be."""
    now = find(tx, row["prefetch_id"])
    if now is None:
        return
    facts = {
        "prefetch": row["prefetch_id"],
        "agent": row["agent_id"],
        "agent_name": agent_name,
        "status": now["state"],
        "account": row["account_id"],
        "cost_usd_micros": cost.usd_micros,
    }
    if now["error"] is not None:
        facts["reason"] = now["error"][:500]
    journal.record(tx, "completion:prefetched", facts, ctx, agent_id=row["agent_id"])


def context_of(row: Row, orchestration_id: str | None) -> Context:
    """What is done for a prefetch the server does, because of what it was asked for."""
    return Context(
        actor=SYSTEM,
        root_id=RootId(row["root_id"]),
        cause_id=row["cause_id"],
        hops=row["hops"],
        depth=row["depth"],
        orchestration_id=None if orchestration_id is None else OrchestrationId(orchestration_id),
    )
