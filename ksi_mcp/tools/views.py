"""Results as they leave: short, complete, without anything a caller could not use."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from ksi_mcp.agents.history import PastTurn
from ksi_mcp.agents.model import Agent
from ksi_mcp.budgets.model import Account
from ksi_mcp.events.model import Event
from ksi_mcp.queues.model import Census, Turn
from ksi_mcp.tools.tool import View

V = TypeVar("V", bound=View)
NEXT_OF_PARKED: Final = {
    "answer": "completion_answer(turn, text) ends it with your text; completion_cancel gives it up",
    "budget": "budget_set raises the limit of the account; completion_cancel gives the turn up",
    "breaker": "nothing: it goes on by itself once the provider may be asked again",
    "batch": "nothing: it goes on by itself once its batch has ended, which may take a day",
}
"""What a caller can do about a parked turn."""


def at(ms: int) -> str:
    """A moment as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def usd(micros: int) -> float:
    """Micro-dollars as dollars."""
    return round(micros / 1_000_000, 6)


class BudgetView(View):
    """An account: what was spent, what is set aside, and the limits, where there are any."""

    account: str
    spent_usd: float
    reserved_usd: float
    limit_usd: float | None = None
    spent_tokens: int
    limit_tokens: int | None = None
    spent_turns: int
    limit_turns: int | None = None
    limit_seconds: int | None = None
    closed: bool | None = None

    @classmethod
    def of(cls, account: Account) -> BudgetView:
        """From the record."""
        return cls(
            account=account.account_id,
            spent_usd=usd(account.spent_usd_micros),
            reserved_usd=usd(account.reserved_usd_micros),
            limit_usd=None if account.limits.usd_micros is None else usd(account.limits.usd_micros),
            spent_tokens=account.spent_tokens,
            limit_tokens=account.limits.tokens,
            spent_turns=account.spent_turns,
            limit_turns=account.limits.turns,
            limit_seconds=account.limits.seconds,
            closed=account.closed or None,
        )


class AgentView(View):
    """An agent. Its levels are shown where they are not what agents with its capabilities have by default."""

    agent: str
    name: str
    status: str
    composition: str | None = None
    parent: str | None = None
    orchestration: str | None = None
    provider: str
    model: str
    capabilities: list[str]
    routing_level: str | None = None
    subscription_level: int | None = None
    error_level: int | None = None
    wake: bool | None = None
    pending_turns: int
    draining: bool | None = None
    successor: str | None = None
    created_at: str
    created_by: str

    @classmethod
    def of(cls, agent: Agent) -> AgentView:
        """From the record."""
        usual = "children" if "routing_control" in agent.capabilities else "none"
        return cls(
            agent=agent.agent_id,
            name=agent.name,
            status=agent.status,
            composition=agent.composition,
            parent=agent.parent_id,
            orchestration=agent.orchestration_id,
            provider=agent.provider,
            model=agent.model,
            capabilities=sorted(agent.capabilities),
            routing_level=None if agent.routing_level == usual else agent.routing_level,
            subscription_level=None if agent.subscription_level == 1 else agent.subscription_level,
            error_level=None if agent.error_level == -1 else agent.error_level,
            wake=agent.wake or None,
            pending_turns=agent.pending,
            draining=(agent.draining and agent.life == "active") or None,
            successor=agent.successor_id,
            created_at=at(agent.created_at_ms),
            created_by=agent.created_by,
        )


class TurnView(View):
    """A turn. `text` only when it is done; `partial_text` is never a whole answer.

    `parked_on` while it waits for somebody, with the `question`, and the `account` that has no room; `answered_by` if
    it was not a model that replied. `streamed_chars` while it runs: how much of its answer has arrived. `similarity`:
    its answer is that of a prompt so alike, from the semantic cache.
    """

    turn: str
    agent: str
    agent_name: str | None = None
    status: str
    text: str | None = None
    partial_text: str | None = None
    error: str | None = None
    error_class: str | None = None
    attempts: int | None = None
    cost_usd: float | None = None
    tokens: int | None = None
    parked_on: str | None = None
    question: str | None = None
    account: str | None = None
    answered_by: str | None = None
    substituted: bool | None = None
    first_error: str | None = None
    reused: bool | None = None
    similarity: float | None = None
    streamed_chars: int | None = None

    @classmethod
    def of(cls, turn: Turn, name: str | None = None, *, max_chars: int = 20_000) -> TurnView:
        """From the record; a longer text is cut, and says so."""
        return cls(
            turn=turn.turn_id,
            agent=turn.session_id,
            agent_name=name,
            status=turn.state,
            text=_cut(turn.result, max_chars),
            partial_text=_cut(turn.partial_text, max_chars) if turn.state != "done" else None,
            error=turn.error if turn.state not in ("done", "running") else None,
            error_class=turn.error_class,
            attempts=turn.attempt if turn.attempt > 1 else None,
            cost_usd=usd(turn.cost_usd_micros) if turn.final else None,
            tokens=turn.tokens if turn.final else None,
            parked_on=turn.parked_on if turn.state == "parked" else None,
            question=_cut(question_of(turn).get("text"), min(max_chars, 2_000)) if turn.state == "parked" else None,
            account=question_of(turn).get("account") if turn.state == "parked" else None,
            answered_by=turn.answered_by,
            substituted=True if turn.link else None,
            first_error=turn.first_error[:500] if turn.link and turn.first_error else None,
            reused=True if turn.reused else None,
            similarity=turn.similarity,
            streamed_chars=turn.streamed_chars if turn.state == "running" and turn.streamed_chars else None,
        )


class ParkedView(View):
    """A turn that waits for somebody: what is asked, and what was replied so far."""

    turn: str
    agent: str
    agent_name: str
    parked_on: str
    question: str | None = None
    prompt: str | None = None
    reply: str | None = None
    account: str | None = None
    next: str | None = None

    @classmethod
    def of(cls, turn: Turn, name: str, *, max_chars: int = 1_000) -> ParkedView:
        """From the record."""
        asked = question_of(turn)
        return cls(
            turn=turn.turn_id,
            agent=turn.session_id,
            agent_name=name,
            parked_on=turn.parked_on or "answer",
            question=_cut(asked.get("text"), max_chars),
            prompt=_cut(turn.prompt, max_chars),
            reply=_cut(turn.partial_text, max_chars),
            account=asked.get("account"),
            next=NEXT_OF_PARKED.get(turn.parked_on or ""),
        )


def question_of(turn: Turn) -> dict[str, Any]:
    """What somebody has to answer; empty while nothing is asked."""
    return {} if turn.question is None else dict(json.loads(turn.question))


class CensusView(View):
    """The parts add up to `asked`."""

    asked: int
    ok: int
    failed: int
    cancelled: int
    timed_out: int
    pending: int

    @classmethod
    def of(cls, census: Census) -> CensusView:
        """From the record."""
        return cls(
            asked=census.asked,
            ok=census.ok,
            failed=census.failed,
            cancelled=census.cancelled,
            timed_out=census.timed_out,
            pending=census.pending,
        )


class EventView(View):
    """An event; `root` is the first cause it goes back to, `cause` the thing directly before."""

    event_id: int
    event: str
    data: dict[str, Any]
    source: str
    agent: str | None = None
    orchestration: str | None = None
    cause: str | None = None
    root: str
    hops: int | None = None
    depth: int | None = None
    at: str

    @classmethod
    def of(cls, event: Event) -> EventView:
        """From the record."""
        return cls(
            event_id=event.event_id,
            event=event.name,
            data=event.data,
            source=event.source,
            agent=event.agent_id,
            orchestration=event.orchestration_id,
            cause=event.cause_id,
            root=event.root_id,
            hops=event.hops or None,
            depth=event.depth or None,
            at=at(event.at_ms),
        )


class RejectedView(View):
    """A reply of the model that was not as expected, and what it was told; nothing if somebody else was asked then."""

    reply: str
    why: str | None = None


class HistoryView(View):
    """One finished turn of a conversation: what came in, which tools ran, what was answered."""

    turn: str
    prompt: str
    injected: list[str] | None = None
    tools: list[str] | None = None
    rejected: list[RejectedView] | None = None
    reply: str
    answered_by: str | None = None
    at: str

    @classmethod
    def of(cls, past: PastTurn, *, max_chars: int = 4_000) -> HistoryView:
        """From the record."""
        used = [use.name for item in past.rounds for use in item.tool_uses]
        rejected = [
            RejectedView(reply=_cut(item.text, max_chars) or "", why=_cut(item.note, max_chars))
            for item in past.rounds
            if item.note is not None or (past.answer is not None and not item.tool_uses)
        ]
        injected = [_cut(text, max_chars) or "" for text in (*past.before, *past.after, *past.system)]
        return cls(
            turn=past.turn_id,
            prompt=_cut(past.prompt, max_chars) or "",
            injected=injected or None,
            tools=used or None,
            rejected=rejected or None,
            reply=_cut(past.reply, max_chars) or "",
            answered_by=past.answered_by,
            at=at(past.at_ms),
        )


def _cut(text: str | None, limit: int) -> str | None:
    if text is None or len(text) <= limit:
        return text
    return text[:limit] + f" ... [cut at {limit:,} of {len(text):,} characters]"


def first_of(views: Iterable[V], chars: int) -> tuple[list[V], int]:
    """As many as there is room for in so many characters, the first in any case; and how many are left out."""
    shown: list[V] = []
    left_out = 0
    for view in views:
        if chars > 0:
            chars -= len(view.model_dump_json(exclude_none=True))
        if shown and chars <= 0:
            chars, left_out = 0, left_out + 1
        else:
            shown.append(view)
    return shown, left_out
