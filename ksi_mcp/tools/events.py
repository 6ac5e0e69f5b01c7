"""Events: emit (or run a command), look, wait."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.events.journal import DELAYED
from ksi_mcp.events.model import Event, EventFilter, encode_data
from ksi_mcp.events.patterns import check_event_name, check_pattern, compile_pattern, is_reserved
from ksi_mcp.permissions import Context, actor_of
from ksi_mcp.routing.conditions import compile_condition
from ksi_mcp.routing.matching import Match
from ksi_mcp.tools.bounding import fitting
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import EventView, at
from ksi_mcp.tools.waiting import MAX_WAIT_S

MAX_DELAY_S = 30 * 86_400
MAX_NAMED: Final = 100
"""Rules that an answer names."""
_FAILS: Final = frozenset({"condition_failed", "mapping_failed"})


class Emitted(View):
    """What became of an emitted event. `unheard`: no rule hears it. `routing_paused`: it waits, by safe mode.

    `rules_left_out`: so many more hear it, or cannot deliver it, than are named.
    """

    event: str
    event_id: int | None = None
    matched_rules: list[str] | None = None
    delivered: int | None = None
    unheard: bool | None = None
    failing: list[str] | None = None
    """Rules that hear it and cannot deliver, with the reason."""
    rules_left_out: int | None = None
    routing_paused: bool | None = None
    did_you_mean: str | None = None
    delayed_until: str | None = None
    skipped: str | None = None


class CommandResult(View):
    """The result of the command that an event named."""

    command: str
    result: dict[str, Any]


class EventsView(View):
    """Newest first."""

    events: list[EventView]
    cursor: str | None = None


class Waited(View):
    """What arrived, oldest first. `complete` is false if the time ran out first."""

    events: list[EventView]
    asked: int
    arrived: int
    complete: bool
    next: str | None = None

    @classmethod
    def of(cls, events: Sequence[EventView], *, asked: int, arrived: int, older: str | None = None) -> Waited:
        """As many events as a reader can take. `older`: the cursor of those before them that were not looked at."""
        shown, done = fitting([view.as_json() for view in events]), arrived >= asked
        steps: list[str] = []
        if older is not None:
            steps.append(
                f"older events after `since` are left out here: event_query with the same `since` and cursor={older!r}"
            )
        if shown < len(events):
            last = events[shown - 1].event_id
            steps.append(f"there is no room for those after event {last}: event_wait again with since={last}")
        elif not done and not steps:
            steps.append("event_wait again with `since` set to the last event id you have seen")
        return cls(
            events=list(events[:shown]),
            asked=asked,
            arrived=arrived,
            complete=done,
            next="; ".join(steps) or None,
        )


def check_emittable(call: Call, name: str) -> str:
    """A name that an actor may emit as an event of its own.

    Raises:
        Invalid: it is no event name.
        Refused: only the server emits it.
    """
    check_event_name(name)
    if is_reserved(name):
        near = call.toolbox.nearest_command(name)
        raise Refused(
            f"{name!r} is a name that only the server emits",
            hint=f"did you mean the command {near!r}?" if near else "choose another first segment",
        )
    return name


@tool(
    "event_emit",
    needs="base",
    effects="writes",
    title="Emit an event or run a command",
    waits=True,
    aliases={"delay": "delay_s"},
)
async def event_emit(
    call: Call,
    *,
    event: str,
    data: dict[str, Any] | None = None,
    delay_s: Annotated[float, Field(ge=0, le=MAX_DELAY_S)] = 0,
    condition: Annotated[str | None, Field(description="emit only if this holds, e.g. data.score > 1")] = None,
    orchestration: str | None = None,
) -> Emitted | CommandResult:
    """Emit an event (routed by the rules), or run any tool by its command name: `routing:add_rule` with data={...}.

    This is how `EMIT "x" WITH {...}` of a pattern is carried out. Returns the rules that hear it and how many
    deliveries are due (unheard: true if none), or the command's result. delay_s survives restarts.
    """
    payload = data or {}
    command = call.toolbox.command(event)
    if command is None:
        check_emittable(call, event)
    encode_data(event, payload)
    compiled = compile_condition(condition) if condition is not None else None
    if delay_s > 0:
        return await _delay(call, event, payload, delay_s=delay_s, condition=condition, orchestration=orchestration)
    if compiled is not None:
        scope = {
            "event": event,
            "data": payload,
            "source": str(call.ctx.actor),
            "agent": call.ctx.actor.agent_id,
            "now": call.svc.clock.now_ms(),
        }
        if not compiled.evaluate(scope):
            return Emitted(event=event, skipped=f"the condition does not hold: {condition}"[:300])
    if command is not None:
        if command is call.tool and call.toolbox.command(str(payload.get("event"))) is command:
            raise Invalid("event:emit inside event:emit inside event:emit", hint="emit the innermost event itself")
        done = await call.toolbox.dispatch(call.ctx, command, payload, progress=call.progress, guard=call.guard)
        call.committed, call.stored_text = done.committed, done.stored_text
        return CommandResult(command=command.name, result=done.data)

    await call.svc.router.refresh()

    def work(tx: Tx) -> Emitted:
        run = run_of(tx, call, orchestration)
        recorded = call.svc.journal.record(tx, event, payload, call.ctx, orchestration_id=run)
        found = call.svc.router.preview(tx, call.ctx, recorded)
        unheard = not found.fires and not found.hidden
        failing = [match for match in found.losers if match.outcome in _FAILS]
        return Emitted(
            event=event,
            event_id=recorded.event_id,
            matched_rules=[match.rule.rule_id for match in found.fires[:MAX_NAMED]],
            delivered=sum(_places(match) for match in found.fires) + found.hidden,
            unheard=unheard or None,
            failing=[f"{match.rule.rule_id}: {match.reason}"[:300] for match in failing[:MAX_NAMED]] or None,
            rules_left_out=sum(max(len(each) - MAX_NAMED, 0) for each in (found.fires, failing)) or None,
            routing_paused=call.svc.router.is_paused(tx) or None,
            did_you_mean=call.toolbox.nearest_command(event) if unheard else None,
        )

    return await call.commit(work)


def _places(match: Match) -> int:
    """How many deliveries a rule that hears an event makes at once; a join makes one when it is complete."""
    if match.outcome == "collects":
        return 0
    return len(match.rule.target.each) if match.rule.target.mode == "all" else 1


async def _delay(
    call: Call, event: str, data: dict[str, Any], *, delay_s: float, condition: str | None, orchestration: str | None
) -> Emitted:
    def work(tx: Tx) -> Emitted:
        run = run_of(tx, call, orchestration)
        due_ms = tx.now_ms + int(delay_s * 1000)
        row = tx.one(
            "events.delay",
            {
                "due_ms": due_ms,
                "now_ms": tx.now_ms,
                "orchestration_id": run or call.ctx.orchestration_id,
                "event": event,
                "data": encode_data(event, data),
                "condition": condition,
                "context": encode_context(call.ctx, run),
            },
        )
        tx.announce(DELAYED)  # whoever fires it may have to get up earlier now
        held = row is not None and bool(row["held"])
        return Emitted(event=event, delayed_until=f"{delay_s:g} s after its run goes on" if held else at(due_ms))

    return await call.commit(work)


def encode_context(ctx: Context, orchestration_id: str | None) -> str:
    """A context as stored with a delayed event: on whose authority, because of what."""
    return json.dumps(
        {
            "actor": str(ctx.actor),
            "root_id": ctx.root_id,
            "cause_id": ctx.cause_id,
            "hops": ctx.hops,
            "depth": ctx.depth,
            "orchestration_id": orchestration_id or ctx.orchestration_id,
        }
    )


def decode_context(text: str) -> Context:
    """The context behind `encode_context`; it goes on in the same chain of causes."""
    stored = json.loads(text)
    return Context(
        actor=actor_of(stored["actor"]),
        root_id=stored["root_id"],
        cause_id=stored["cause_id"],
        hops=stored["hops"],
        depth=stored["depth"],
        orchestration_id=stored["orchestration_id"],
    )


def run_of(tx: Tx, call: Call, orchestration: str | None) -> str | None:
    """The run an event belongs to: an agent's own, or one that the actor can see."""
    if orchestration is not None:
        return call.svc.conductor.find(tx, call.ctx, orchestration).orchestration_id
    return reach.grants(tx, call.ctx).orchestration_id


@tool(
    "event_query",
    needs="base",
    effects="reads",
    title="Look at recorded events",
    idempotent=True,
    aliases={"agent_id": "agent"},
)
async def event_query(
    call: Call,
    *,
    names: Annotated[list[str] | None, Field(description="names or patterns (* and **)", max_length=20)] = None,
    agent: str | None = None,
    orchestration: str | None = None,
    root: Annotated[str | None, Field(description="all that one cause led to")] = None,
    since: Annotated[int | None, Field(description="after this event id", ge=0)] = None,
    limit: Annotated[int, Field(ge=1, le=200)] = 30,
    cursor: str | None = None,
) -> EventsView:
    """Look at the log of events, newest first: what happened, to whom, and because of what."""
    for name in names or ():
        check_pattern(name)

    def work(tx: Tx) -> EventFilter:
        return EventFilter(
            names=tuple(names or ()),
            agent_id=None if agent is None else reach.find(tx, call.ctx, agent).agent_id,
            orchestration_id=None
            if orchestration is None
            else call.svc.conductor.find(tx, call.ctx, orchestration).orchestration_id,
            root_id=root,
            after_id=since or 0,
            visible_to=reach.visible_scopes(tx, call.ctx),
        )

    page = await call.svc.journal.query(await call.read(work), limit=limit, cursor=cursor)
    return EventsView(events=[EventView.of(event) for event in page.events], cursor=page.cursor)


@tool(
    "event_wait", needs="base", effects="reads", title="Wait for events", waits=True, aliases={"timeout": "timeout_s"}
)
async def event_wait(
    call: Call,
    *,
    names: Annotated[list[str], Field(description="names or patterns", min_length=1, max_length=20)],
    timeout_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S)] = 30,
    since: Annotated[int | None, Field(description="count events after this id", ge=0)] = None,
    min_count: Annotated[int, Field(ge=1, le=200)] = 1,
    orchestration: Annotated[str | None, Field(description="only events of this run")] = None,
) -> Waited:
    """Wait until events arrive. Returns what arrived, oldest first; running out of time is not an error."""
    patterns = [compile_pattern(name) for name in names]
    seen, run = await call.read(
        lambda tx: (
            reach.visible_scopes(tx, call.ctx),
            None if orchestration is None else run_of(tx, call, orchestration),
        )
    )

    def wants(event: Event) -> bool:
        if run is not None and event.orchestration_id != run:
            return False
        if seen is not None and event.agent_id not in seen and event.orchestration_id not in seen:
            return False
        return any(pattern.fits(event.name) for pattern in patterns)

    until = call.svc.clock.monotonic_s() + timeout_s
    arrived: list[Event] = []
    older: str | None = None
    async with call.svc.journal.subscribe(wants) as live:
        if since is not None:
            wanted = EventFilter(names=tuple(names), after_id=since, visible_to=seen, orchestration_id=run)
            page = await call.svc.journal.query(wanted, limit=200)
            arrived = list(reversed(page.events))
            older = page.cursor
        known = {event.event_id for event in arrived}
        while len(arrived) < min_count:
            left = until - call.svc.clock.monotonic_s()
            if left <= 0:
                break
            await call.progress(len(arrived), min_count, f"{len(arrived)} of {min_count} events have arrived")
            event = await live.next(min(left, 5.0))
            if event is not None and event.event_id not in known:
                arrived.append(event)
    return Waited.of([EventView.of(event) for event in arrived], asked=min_count, arrived=len(arrived), older=older)


TOOLS = (event_emit, event_query, event_wait)
