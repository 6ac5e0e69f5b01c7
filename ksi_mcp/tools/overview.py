"""What goes on right now, in one look: for `ksi-mcp top`, `ksi-mcp run`, and whoever else watches."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.budgets.model import GLOBAL
from ksi_mcp.db import Row, Tx
from ksi_mcp.events import store as events_store
from ksi_mcp.events.model import EventFilter
from ksi_mcp.orchestrations.model import orchestration_of
from ksi_mcp.orchestrations.overview import Delivery, Load, Sight, deliveries_of, look, names_of, open_runs
from ksi_mcp.tools.budgets import AccountView
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.orchestrations import RunView
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import BudgetView, EventView, ParkedView, at, usd
from ksi_mcp.tools.waiting import parked_views, undelivered

MAX_AGENTS = 200
_EVENT_CHARS = 2_000


class QueueView(View):
    """Turns that have not ended, by what they are at; how long the first of those that have not begun waits."""

    running: int
    waiting: int
    retrying: int | None = None
    blocked: int | None = None
    parked: int | None = None
    oldest_wait_s: float | None = None
    partial: bool | None = None

    @classmethod
    def of(cls, load: Load) -> QueueView:
        """From the record; what is nought is left out."""
        return cls(
            running=load.running,
            waiting=load.waiting,
            retrying=load.retrying or None,
            blocked=load.blocked or None,
            parked=load.parked or None,
            oldest_wait_s=round(load.oldest_wait_ms / 1000, 3) or None,
            partial=load.partial or None,
        )


class NowView(View):
    """What an agent is at: the turn at the front of its session.

    `written` is the end of what has arrived of its reply; `waits_for` counts turns of others that it waits for.
    """

    turn: str
    state: str
    since: str
    round: int | None = None
    model: str | None = None
    parked_on: str | None = None
    waits_for: int | None = None
    tries: int | None = None
    retry_at: str | None = None
    error: str | None = None
    streamed_chars: int | None = None
    written: str | None = None


class LaneView(View):
    """An agent: how many turns have ended and how many wait, what it is at, what it cost, what it said last."""

    agent: str
    name: str
    orchestration: str | None = None
    status: str
    draining: bool | None = None
    provider: str
    model: str
    done: int
    pending: int
    tokens: int
    usd: float
    limit_usd: float | None = None
    closed: bool | None = None
    now: NowView | None = None
    said: str | None = None
    said_state: str | None = None
    said_class: str | None = None

    @classmethod
    def of(cls, row: Row) -> LaneView:
        """From the record."""
        status = row["status"]
        if status == "active":
            status = "suspended" if row["suspended"] else "busy" if row["pending"] else "idle"
        return cls(
            agent=row["agent_id"],
            name=row["name"],
            orchestration=row["orchestration_id"],
            status=status,
            draining=bool(row["draining"] and row["status"] == "active") or None,
            provider=row["provider"],
            model=row["model"],
            done=max(row["tail"] - row["pending"], 0),
            pending=row["pending"],
            tokens=row["spent_tokens"],
            usd=usd(row["spent_usd_micros"]),
            limit_usd=None if row["limit_usd_micros"] is None else usd(row["limit_usd_micros"]),
            closed=bool(row["closed"]) or None,
            now=None if row["turn_id"] is None else _now(row),
            said=row["said"] or None,
            said_state=row["said_state"],
            said_class=row["said_class"],
        )


def _now(row: Row) -> NowView:
    state = "queued" if row["state"] == "ready" else row["state"]
    running = state == "running"
    begun = row["started_at_ms"] if running and row["started_at_ms"] is not None else row["created_at_ms"]
    return NowView(
        turn=row["turn_id"],
        state=state,
        since=at(begun),
        round=row["round"],
        model=row["asked_model"],
        parked_on=row["parked_on"] if state == "parked" else None,
        waits_for=(row["waits_for"] or None) if running else None,
        tries=row["tries"] or None,
        retry_at=at(row["run_at_ms"]) if state == "retrying" else None,
        error=None if running or row["error"] is None else row["error"][:400],
        streamed_chars=(row["streamed_chars"] or None) if running else None,
        written=row["partial_text"] if running else None,
    )


class OpenRunView(RunView):
    """A run with its agents, turns and account. `next_due_s`: when what waits for its time is due, if anything does."""

    orchestrator: str
    agents: int
    pending: int
    done: int
    undelivered_events: int | None = None
    next_due_s: float | None = None
    budget: BudgetView


class DeliveryView(View):
    """An event went somewhere: from whom, to whom, by which rule."""

    event_id: int
    event: str
    source: str | None = None
    target: str
    rule_id: str | None = None
    turn: str | None = None
    at: str

    @classmethod
    def of(cls, found: Delivery) -> DeliveryView:
        """From the record."""
        data = found.event.data
        return cls(
            event_id=found.event.event_id,
            event=str(data.get("event", ""))[:200],
            source=found.source,
            target=str(data.get("target", ""))[:200],
            rule_id=data.get("rule_id"),
            turn=data.get("turn"),
            at=at(found.event.at_ms),
        )


class BreakerView(View):
    """A model that is not asked at the moment, since it failed too often."""

    provider: str
    family: str
    state: str
    since: str | None = None


class OverviewView(View):
    """Everything at one moment. `agents` is one page of `agents_fitting`; `names` are those of all agents mentioned."""

    at: str
    runs_open: dict[str, int]
    agents_living: int
    agents_fitting: int
    queue: QueueView
    account: AccountView
    runs: list[OpenRunView]
    agents: list[LaneView]
    events: list[EventView]
    deliveries: list[DeliveryView]
    parked: list[ParkedView] | None = None
    breakers: list[BreakerView] | None = None
    routing_paused: bool | None = None
    names: dict[str, str]


@tool("monitor_overview", needs="base", effects="reads", title="See what goes on", idempotent=True)
async def monitor_overview(
    call: Call,
    *,
    orchestration: Annotated[str | None, Field(max_length=100, description="only this run")] = None,
    find: Annotated[str | None, Field(max_length=100, description="in an agent's name, id, model or run")] = None,
    ended: Annotated[bool, Field(description="agents that have ended too")] = False,
    agents: Annotated[int, Field(ge=0, le=MAX_AGENTS)] = 50,
    offset: Annotated[int, Field(ge=0, le=10_000_000, description="agents to pass over")] = 0,
    runs: Annotated[int, Field(ge=0, le=50)] = 10,
    events: Annotated[int, Field(ge=0, le=100, description="newest events, and deliveries among them")] = 30,
) -> OverviewView:
    """Return what goes on right now: runs, agents with what each is at (the busy first), queue, spend, newest events.

    For watching; monitor_metrics has figures of a window of time, orchestration_status the next steps of one run.
    """

    def work(tx: Tx) -> OverviewView:
        ctx = call.ctx
        run = None if orchestration is None else call.svc.conductor.find(tx, ctx, orchestration).orchestration_id
        sight = Sight(
            orchestration_id=run,
            agents=reach.visible(tx, ctx),
            runs=reach.visible_runs(tx, ctx),
            find=find or None,
            ended=ended,
        )
        load, page = look(tx, sight, offset=offset, limit=agents)
        found: tuple[Any, ...] = ()
        if events:
            wanted = EventFilter(orchestration_id=run, visible_to=reach.visible_scopes(tx, ctx))
            found = events_store.page(tx, wanted, limit=events, cursor=None).events
        living = tx.one("orchestrations.overview_living", {"visible": sight.visible})
        deliveries = [DeliveryView.of(each) for each in deliveries_of(tx, found)]
        account = call.svc.ledger.account(tx, run or ctx.actor.agent_id or GLOBAL)
        visible = None if sight.runs is None else json.dumps(sorted(sight.runs))
        states = tx.all("orchestrations.overview_states", {"visible": visible})
        return OverviewView(
            at=at(tx.now_ms),
            runs_open={row["state"]: row["runs"] for row in states},
            agents_living=0 if living is None else living["agents"],
            agents_fitting=page.fitting,
            queue=QueueView.of(load),
            account=AccountView.at(account, tx.now_ms),
            runs=[_run(tx, call, row) for row in open_runs(tx, sight, limit=runs)],
            agents=[LaneView.of(row) for row in page.rows],
            events=[_short(EventView.of(event)) for event in found if event.name != "routing:delivered"],
            deliveries=deliveries,
            parked=parked_views(tx, call, run) or None,
            breakers=[_breaker(row) for row in tx.all("orchestrations.overview_breakers")] or None,
            routing_paused=call.svc.router.is_paused(tx) or None,
            names=names_of(tx, _mentioned(found, deliveries, sight.agents)),
        )

    return await call.read(work)


def _run(tx: Tx, call: Call, row: Row) -> OpenRunView:
    found = orchestration_of(row)
    facts = tx.one("orchestrations.overview_run", {"orchestration_id": found.orchestration_id})
    assert facts is not None  # noqa: S101  it has no table of its own
    due = [facts[name] for name in ("delayed_ms", "join_ms") if facts[name] is not None]
    is_open = found.state in ("running", "suspended")
    return OpenRunView(
        **RunView.of(found).model_dump(),
        orchestrator=found.orchestrator,
        agents=facts["agents"],
        pending=facts["pending"],
        done=max(facts["turns"] - facts["pending"], 0),
        undelivered_events=(undelivered(tx, [found.orchestration_id]) or None) if is_open else None,
        next_due_s=round(max(min(due) - tx.now_ms, 0) / 1000, 3) if due and is_open else None,
        budget=BudgetView.of(call.svc.ledger.account(tx, found.orchestration_id)),
    )


def _breaker(row: Row) -> BreakerView:
    since = row["opened_at_ms"]
    return BreakerView(
        provider=row["provider"], family=row["family"], state=row["state"], since=None if since is None else at(since)
    )


def _mentioned(events: tuple[Any, ...], deliveries: list[DeliveryView], seen: frozenset[str] | None) -> set[str]:
    """Agents in these events. What an event says of agents may be anybody's word: those out of sight have no name."""
    sources = [event.source for event in events] + [each.source or "" for each in deliveries]
    targets = [each.target for each in deliveries] + [str(event.data.get("from", "")) for event in events]
    found = {text.removeprefix("agent:") for text in (*sources, *targets) if text.startswith("agent:")}
    found |= {event.agent_id for event in events if event.agent_id is not None}
    return found if seen is None else found & seen


def _short(view: EventView) -> EventView:
    """Long texts of its data are cut: who needs them asks for the event."""
    if len(view.model_dump_json()) <= _EVENT_CHARS:
        return view
    data = {
        key: value[:400] + "..." if isinstance(value, str) and len(value) > 400 else value  # noqa: PLR2004
        for key, value in view.data.items()
        if isinstance(value, str | int | float | bool | None) or len(json.dumps(value)) <= _EVENT_CHARS
    }
    return view.model_copy(update={"data": data})


TOOLS = (monitor_overview,)
