"""Results as they leave: short, complete, without anything a caller could not use."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ksi_mcp.agents.history import PastTurn
from ksi_mcp.agents.model import Agent
from ksi_mcp.budgets.model import Account
from ksi_mcp.events.model import Event
from ksi_mcp.queues.model import Census, Turn
from ksi_mcp.tools.tool import View


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
            closed=account.closed or None,
        )


class AgentView(View):
    """An agent."""

    agent: str
    name: str
    status: str
    composition: str | None = None
    parent: str | None = None
    orchestration: str | None = None
    provider: str
    model: str
    capabilities: list[str]
    pending_turns: int
    created_at: str
    created_by: str

    @classmethod
    def of(cls, agent: Agent) -> AgentView:
        """From the record."""
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
            pending_turns=agent.pending,
            created_at=at(agent.created_at_ms),
            created_by=agent.created_by,
        )


class TurnView(View):
    """A turn. `text` only when it is done; `partial_text` is never a whole answer."""

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
        )


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


class HistoryView(View):
    """One finished turn of a conversation: what came in, which tools ran, what was answered."""

    turn: str
    prompt: str
    tools: list[str] | None = None
    reply: str
    at: str

    @classmethod
    def of(cls, past: PastTurn, *, max_chars: int = 4_000) -> HistoryView:
        """From the record."""
        used = [use.name for item in past.rounds for use in item.tool_uses]
        return cls(
            turn=past.turn_id,
            prompt=_cut(past.prompt, max_chars) or "",
            tools=used or None,
            reply=_cut(past.rounds[-1].text if past.rounds else "", max_chars) or "",
            at=at(past.at_ms),
        )


def _cut(text: str | None, limit: int) -> str | None:
    if text is None or len(text) <= limit:
        return text
    return text[:limit] + f" ... [cut at {limit:,} of {len(text):,} characters]"
