"""Waiting for turns: GATHER. Nothing is bound to the call that waits; it can be made again by anybody."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.events.model import Event
from ksi_mcp.queues.model import Turn, census_of
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View
from ksi_mcp.tools.views import NEXT_OF_PARKED, CensusView, ParkedView, TurnView

MAX_WAIT_S = 55.0
"""Clients cut calls off after a minute or more; a wait ends before that, and can be repeated."""
ENDINGS = frozenset({"completion:result", "completion:failed", "completion:cancelled"})
_HEARD = ENDINGS | {"completion:parked"}
PERSONS = frozenset({"answer", "budget"})
"""What a parked turn waits for that does not come by itself."""
_HEARTBEAT_S = 2.0
DELIVERY_S = 5.0
"""The router has so long to deliver what the agents' runs have emitted before a wait for agents begins."""
_DELIVERY_LOOK_S = 0.05
_TELL_S = 0.5
"""Progress is told at most this often."""
_TAIL_CHARS = 120
_CHARS_PER_TOKEN = 4
"""For people to look at; what is booked is what the provider counts."""
_TEXT_BUDGET = 30_000
"""Characters of replies in one result, shared by all turns."""


class Gathered(View):
    """What has come in so far. `partial` while something is pending."""

    census: CensusView
    partial: bool
    turns: list[TurnView]
    next: str | None = None


Found = tuple[list[Turn], dict[str, str]]
"""Turns, and the names of their agents."""
Begin = Callable[[], Awaitable[Found | None]]


async def gather(
    call: Call,
    *,
    turns: Sequence[str],
    agents: Sequence[str],
    timeout_s: float,
    min_responses: int | None,
    collect_partial: bool = True,
    begin: Begin | None = None,
) -> Gathered:
    """Wait until `min_responses` of the turns (all, by default) have ended, or the time is up.

    `begin` makes the turns once their ends can be heard, and gives them back. Without it, or if it gives back
    nothing because others than these had been made before (`turns` has them then), they are looked up.

    A client is not kept waiting for what waits for the client itself, or for a person; an agent is, since it
    has nothing else to do.
    """
    until = call.svc.clock.monotonic_s() + timeout_s

    def wants(event: Event) -> bool:
        return event.name in _HEARD

    if agents:
        await deliveries_made(call, agents, min(timeout_s, DELIVERY_S))
    async with call.svc.journal.subscribe(wants, about=None if agents else turns) as endings:
        known = None if begin is None else await begin()
        if known is None:
            if begin is not None:  # it was another one that had been made before
                endings.narrow(turns)
            known = await call.read(lambda tx: _find(tx, call, turns, agents))
        found, names = known
        turns_by_id: dict[str, Turn] = {turn.turn_id: turn for turn in found}
        pending: set[str] = {turn.turn_id for turn in found if not turn.final}
        if agents:
            endings.narrow(pending)
        enough = min(min_responses or len(found), len(found))
        slot = call.ctx.slot
        if slot is not None and pending:
            await call.svc.journal.commit(lambda tx: _begin(tx, call, found))
        told_s = float("-inf")
        try:
            while len(turns_by_id) - len(pending) < enough:
                now_s = call.svc.clock.monotonic_s()
                if now_s >= until or (slot is None and await _all_wait_for_somebody(call, turns_by_id, pending)):
                    break
                if now_s - told_s >= _TELL_S:
                    told_s, done = now_s, len(turns_by_id) - len(pending)
                    await call.progress(done, len(found), _progress(turns_by_id, pending, names))
                event = await endings.next(min(until - now_s, _HEARTBEAT_S))
                unknown: set[str] = set()
                for each in (event, *endings.drain()):
                    if each is None:
                        continue
                    turn_id, ended = str(each.data.get("turn")), each.subject
                    if isinstance(ended, Turn) and ended.final and turn_id in pending:
                        turns_by_id[turn_id] = ended
                        pending.discard(turn_id)
                    else:
                        unknown.add(turn_id)
                if event is None or endings.missed:  # nothing was heard for a while: look at all of them
                    unknown = pending
                if look := sorted(unknown & pending):
                    for turn in await call.read(lambda tx, look=look: call.svc.queues.some(tx, look)):  # type: ignore[misc]
                        turns_by_id[turn.turn_id] = turn
                        if turn.final:
                            pending.discard(turn.turn_id)
        finally:
            if slot is not None:
                await call.svc.journal.commit(lambda tx: call.svc.queues.end_wait(tx, slot.turn_id))
    found = list(turns_by_id.values())
    return _view(found, names, collect_partial=collect_partial)


def _progress(turns_by_id: dict[str, Turn], pending: set[str], names: dict[str, str]) -> str:
    """How far they are, and what the longest answer that is under way says at its end."""
    text = f"{len(turns_by_id) - len(pending)} of {len(turns_by_id)} turns have ended"
    streaming = [turn for turn_id in pending if (turn := turns_by_id[turn_id]).streamed_chars and not turn.final]
    if not streaming:
        return text
    chars = sum(turn.streamed_chars for turn in streaming)
    longest = max(streaming, key=lambda turn: turn.streamed_chars)
    tail = " ".join((longest.partial_text or "")[-_TAIL_CHARS:].split())
    name = names.get(longest.session_id, longest.session_id)
    return f"{text}; some {chars // _CHARS_PER_TOKEN:,} tokens are under way; {name}: ...{tail}"


async def _all_wait_for_somebody(call: Call, turns_by_id: dict[str, Turn], pending: set[str]) -> bool:
    """Whether nothing of this will end by itself; what was parked may have been let go meanwhile."""
    if not _stuck([turns_by_id[turn_id] for turn_id in pending]):
        return False
    found = await call.read(lambda tx: call.svc.queues.some(tx, list(pending)))
    for turn in found:
        turns_by_id[turn.turn_id] = turn
        if turn.final:
            pending.discard(turn.turn_id)
    return _stuck([turn for turn in found if not turn.final])


def _stuck(turns: list[Turn]) -> bool:
    parked = {turn.session_id for turn in turns if turn.state == "parked" and turn.parked_on in PERSONS}
    return bool(parked) and all(turn.session_id in parked for turn in turns)


def parked_views(tx: Tx, call: Call, orchestration_id: str | None, *, limit: int = 20) -> list[ParkedView]:
    """The turns of a run (None: of everything in sight) that wait for somebody, oldest first, with their questions."""
    seen = reach.visible(tx, call.ctx)
    found = [
        turn
        for turn in call.svc.queues.parked(tx, orchestration_id, limit=100)
        if turn.parked_on in PERSONS and (seen is None or turn.session_id in seen)
    ][:limit]
    return [ParkedView.of(turn, call.svc.roster.get(tx, turn.session_id).name) for turn in found]


async def deliveries_made(call: Call, agents: Sequence[str], seconds: float) -> None:
    """Let the router deliver what these agents' runs have emitted: a turn that is due is no turn yet."""
    until = call.svc.clock.monotonic_s() + seconds
    runs = await call.read(lambda tx: sorted({reach.find(tx, call.ctx, ref).orchestration_id or "" for ref in agents}))

    async with call.svc.journal.subscribe(lambda _event: True) as live:
        while await call.read(lambda tx: undelivered(tx, runs)):
            left = until - call.svc.clock.monotonic_s()
            if left <= 0:
                return
            await live.next(min(left, _DELIVERY_LOOK_S))
            live.drain()


def undelivered(tx: Tx, runs: Sequence[str]) -> int:
    """How many events of these runs (`""` for outside of any) the router has still to deliver."""
    row = tx.one("events.undelivered", {"orchestrations": json.dumps(list(runs))})
    return 0 if row is None else int(row["events"])


def _find(tx: Tx, call: Call, turn_ids: Sequence[str], agent_refs: Sequence[str]) -> tuple[list[Turn], dict[str, str]]:
    queues, ctx = call.svc.queues, call.ctx
    seen = reach.visible(tx, ctx)
    found = {turn.turn_id: turn for turn in queues.some(tx, list(turn_ids)) if seen is None or turn.session_id in seen}
    if unknown := [turn_id for turn_id in turn_ids if turn_id not in found]:
        raise NotFound(
            f"unknown turns: {', '.join(turn_id[:40] for turn_id in unknown[:5])}",
            hint=where_turns_are(call),
        )
    agents = [reach.find(tx, ctx, ref) for ref in agent_refs]
    newest = {turn.session_id: turn for turn in queues.newest(tx, [agent.agent_id for agent in agents])}
    if idle := [agent.name for agent in agents if agent.agent_id not in newest]:
        raise Invalid(
            f"nothing was ever sent to {', '.join(idle[:5])}, or nothing of it is kept", hint=where_turns_are(call)
        )
    found |= {turn.turn_id: turn for turn in newest.values()}
    sessions = {turn.session_id for turn in found.values()}
    return list(found.values()), {session: call.svc.roster.get(tx, session).name for session in sessions}


def where_turns_are(call: Call) -> str:
    """What to tell somebody who asks for a turn that is not there: it may have been."""
    days = call.svc.config.retention.turns.days
    kept = (
        "those of ended agents are not kept for ever"
        if days is None
        else f"those of ended agents go after {days:g} days"
    )
    return f"turn ids come from agent_send and begin with t_; {kept}"


def _begin(tx: Tx, call: Call, found: list[Turn]) -> None:
    slot = call.ctx.slot
    assert slot is not None  # noqa: S101  only called for a turn
    call.svc.queues.require_owned(tx, slot.turn_id, slot.attempt, slot.owner)
    call.svc.queues.begin_wait(tx, call.svc.queues.get(tx, slot.turn_id), found)


def _view(found: list[Turn], names: dict[str, str], *, collect_partial: bool) -> Gathered:
    census = census_of(found)
    share = max(_TEXT_BUDGET // max(len(found), 1), 200)
    views = [
        TurnView.of(turn, names.get(turn.session_id), max_chars=share)
        for turn in found
        if collect_partial or turn.state == "done"
    ]
    return Gathered(
        census=CensusView.of(census),
        partial=census.pending > 0 or census.ok < census.asked,
        turns=views,
        next=_next(found),
    )


def _next(found: list[Turn]) -> str | None:
    pending = [turn for turn in found if not turn.final]
    if asking := [turn for turn in pending if turn.state == "parked" and turn.parked_on in PERSONS]:
        first = asking[0]
        return f"{len(asking)} parked: {NEXT_OF_PARKED[first.parked_on or 'answer']}; then agent_wait again"
    return "agent_wait again with the same turns: some are pending" if pending else None
