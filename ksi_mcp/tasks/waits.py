"""The calls that wait: what each waits for once its first part is made, and how far that is.

Nothing here waits. Whoever looks sees the turns, runs and events as they are in the store, whatever process made the
call. What a call returns in the end comes from the tool itself, through the same door, so it is what the caller would
have been given had it stayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.events import store as events_store
from ksi_mcp.events.model import EventFilter, event_of
from ksi_mcp.orchestrations.evaluation import case_runs
from ksi_mcp.permissions import Context
from ksi_mcp.queues.model import FINAL
from ksi_mcp.services import Services
from ksi_mcp.tasks import store
from ksi_mcp.tasks.model import Sight
from ksi_mcp.tools.call import Call, Guard
from ksi_mcp.tools.events import Waited, run_of
from ksi_mcp.tools.toolbox import Toolbox
from ksi_mcp.tools.views import EventView
from ksi_mcp.tools.waiting import DELIVERY_S, PERSONS, deliveries_made

WAITING_TOOLS: Final = frozenset(
    {"agent_send", "agent_wait", "composition_evaluate", "event_wait", "orchestration_start"}
)
_MAY_MAKE: Final = frozenset({"agent_send", "composition_evaluate", "orchestration_start"})
"""Those of them that do something before they wait; the others only look."""
_WINDOWS: Final = 5
"""Looks at the log in one go; the next look goes on from there."""
_WORTH_NOTING: Final = 5_000
"""Events looked through in vain before it is written down that they were."""
_QUIET_MS: Final = 5_000
"""A run in which something has happened this short ago goes on: whoever heard of it may be about to do something."""
_TAIL_CHARS: Final = 120
_CHARS_PER_TOKEN: Final = 4


class Waits:
    """Begins a call, and looks at what it waits for. See `WAITING_TOOLS`."""

    def __init__(self, services: Services, toolbox: Toolbox) -> None:
        self._svc = services
        self._toolbox = toolbox

    def does_something(self, tool: str) -> bool:
        """Whether the call changes anything before it waits: then it must not be made again."""
        return tool in _MAY_MAKE

    async def begin(self, ctx: Context, name: str, args: dict[str, Any], reserve: Guard) -> dict[str, Any] | None:
        """Make the first part of a call. Returns what it waits for from now on, as JSON; None: this one does not wait.

        `reserve` runs in the transaction of what the call does.

        Raises:
            KsiError: as the call itself.
        """
        match name:
            case "agent_wait":
                return await self._begin_gather(ctx, args)
            case "event_wait":
                return await self._begin_events(ctx, args)
            case "agent_send":
                if self._toolbox.get(name).validate(args)["wait_s"] <= 0:
                    return None
                # The arguments as they came: how long to wait is no part of what an idempotency key stands for.
                made = await self._toolbox.call(ctx, name, {**args, "wait_s": 0}, guard=reserve)
                return {"turns": [made.data["turn"]]}
            case "orchestration_start":
                if self._toolbox.get(name).validate(args)["orchestrator"] != "agent":
                    return None
                made = await self._toolbox.call(ctx, name, args, guard=reserve)
                return {"orchestration": made.data["orchestration"]}
            case "composition_evaluate":
                checked = self._toolbox.get(name).validate(args)
                if checked["wait_s"] <= 0:
                    return None
                made = await self._toolbox.call(ctx, name, {**args, "wait_s": 0}, guard=reserve)
                more = {key: checked[key] for key in ("parallel", "provider", "model")}
                return {"evaluation": made.data["evaluation"], **more}
        return None

    async def look(self, ctx: Context, name: str, waits_for: Mapping[str, Any]) -> Sight:
        """How far it is.

        Raises:
            KsiError: as the call itself, e.g. because what it waits for is not kept any more.
        """
        match name:
            case "event_wait":
                return await self._look_events(ctx, waits_for)
            case "orchestration_start":
                return await self._look_run(ctx, waits_for)
            case "composition_evaluate":
                return await self._look_evaluation(ctx, waits_for)
        return await self._look_turns(ctx, name, waits_for)

    # ------------------------------------------------------------------------------------------- turns

    async def _begin_gather(self, ctx: Context, args: dict[str, Any]) -> dict[str, Any] | None:
        tool = self._toolbox.get("agent_wait")
        checked = tool.validate(args)
        if checked["timeout_s"] <= 0:
            return None
        if agents := checked["agents"]:
            call = Call(self._toolbox, self._svc, ctx, tool, args)
            await deliveries_made(call, agents, min(checked["timeout_s"], DELIVERY_S))
        found = await self._gathered(ctx, turns=checked["turns"], agents=agents)
        # From now on these turns, whatever else the agents are given.
        return {
            "turns": [turn["turn"] for turn in found["turns"]],
            "min_responses": checked["min_responses"],
            "collect_partial": checked["collect_partial"],
        }

    async def _look_turns(self, ctx: Context, name: str, waits_for: Mapping[str, Any]) -> Sight:
        found = await self._gathered(ctx, turns=waits_for["turns"])
        turns, census = found["turns"], found["census"]
        done = census["asked"] - census["pending"]
        enough = min(waits_for.get("min_responses") or census["asked"], census["asked"])
        if name == "agent_send":
            (turn,) = turns
            message = f"turn {turn['turn']} of {turn['agent_name']} is {turn['status']}"
            return Sight(ended=done >= enough, message=message, data=turn, **_waiting(turns), tail=_tail(turns))
        state = _waiting(turns)
        if not waits_for.get("collect_partial", True) and (done >= enough or state["stuck"]):
            found = await self._gathered(ctx, turns=waits_for["turns"], collect_partial=False)
        message = f"{done} of {census['asked']} turns have ended"
        return Sight(ended=done >= enough, message=message, data=found, **state, tail=_tail(turns))

    async def _gathered(self, ctx: Context, **args: Any) -> dict[str, Any]:
        return (await self._toolbox.call(ctx, "agent_wait", {**args, "timeout_s": 0})).data

    # -------------------------------------------------------------------------------------------- runs

    async def _look_run(self, ctx: Context, waits_for: Mapping[str, Any]) -> Sight:
        run = waits_for["orchestration"]
        seen = (await self._toolbox.call(ctx, "orchestration_status", {"orchestration": run, "events": 0})).data
        census, asked = seen["census"], seen.get("questions", ())
        running = seen["state"] in ("running", "suspended")

        def look(tx: Tx) -> tuple[bool, dict[str, int]]:
            turns = self._svc.queues.some(tx, [each["turn"] for each in asked])
            return store.goes_on(tx, run, quiet_ms=_QUIET_MS), {turn.turn_id: turn.attempt for turn in turns}

        goes_on, attempts = await self._svc.journal.read(look)
        idle = seen["state"] == "running" and not goes_on and not seen.get("draining")
        ended = not running or (idle and not asked)
        data = None
        if ended or idle:
            data = (await self._toolbox.call(ctx, "orchestration_status", {"orchestration": run})).data
        spent = seen["budget"]["spent_usd"]
        far = f"{census['asked'] - census['pending']} of {census['asked']} turns have ended, ${spent:g} spent"
        return Sight(
            ended=ended,
            stuck=idle,
            message=f"run {run} is {seen['state']}: {far}",
            data=data,
            parked=tuple(
                {**each, "partial_text": each.get("reply"), "attempts": attempts.get(each["turn"])} for each in asked
            ),
        )

    async def _look_evaluation(self, ctx: Context, waits_for: Mapping[str, Any]) -> Sight:
        # It starts the runs that there is room for: nobody else does.
        data = (await self._toolbox.call(ctx, "composition_evaluate", {**waits_for, "wait_s": 0})).data
        census = data["census"]
        message = (
            f"evaluation {data['evaluation']}: {census['passed'] + census['failed']} of {census['planned']} runs have "
            f"been judged, {census['running']} are under way"
        )
        if data["complete"]:
            return Sight(ended=True, message=message, data=data)
        runs = await self._svc.journal.read(lambda tx: case_runs(tx, data["evaluation"]))
        under_way = [run.turn_id for run in runs if run.problems is None]
        turns = (await self._gathered(ctx, turns=under_way))["turns"] if under_way else []
        return Sight(ended=False, message=message, data=data, **_waiting(turns), tail=_tail(turns))

    # ------------------------------------------------------------------------------------------ events

    async def _begin_events(self, ctx: Context, args: dict[str, Any]) -> dict[str, Any] | None:
        checked = self._toolbox.get("event_wait").validate(args)
        if checked["timeout_s"] <= 0:
            return None
        since = checked["since"]
        if since is None:
            newest = await self._svc.journal.read(lambda tx: tx.one("events.last_id"))
            checked["since"] = 0 if newest is None else newest["event_id"]
        found = (await self._toolbox.call(ctx, "event_wait", {**checked, "timeout_s": 0})).data
        if since is not None and found["complete"]:
            return None  # it is all there
        wanted = {key: checked[key] for key in ("names", "min_count", "orchestration")}
        return {**wanted, "after": checked["since"], "found": []}

    async def _look_events(self, ctx: Context, waits_for: Mapping[str, Any]) -> Sight:
        tool = self._toolbox.get("event_wait")
        names, enough, run = waits_for["names"], int(waits_for["min_count"]), waits_for["orchestration"]
        call = Call(self._toolbox, self._svc, ctx, tool, {})

        def look(tx: Tx) -> tuple[list[int], int, list[EventView]]:
            reach.require(tx, ctx, tool.needs, action=tool.name)
            seen = reach.visible_scopes(tx, ctx)
            orchestration = None if run is None else run_of(tx, call, run)
            found, after = list(waits_for["found"]), int(waits_for["after"])
            for _ in range(_WINDOWS):
                if len(found) >= enough:
                    break
                wanted = EventFilter(
                    names=tuple(names), after_id=after, orchestration_id=orchestration, visible_to=seen
                )
                more, upto = events_store.forward(tx, wanted, limit=enough - len(found))
                found += [event.event_id for event in more]
                if upto <= after:
                    break
                after = upto
            rows = [tx.one("events.one", {"event_id": each}) for each in found] if len(found) >= enough else []
            return found, after, [EventView.of(event_of(row)) for row in rows if row is not None]

        found, after, events = await self._svc.journal.read(look)
        moved = len(found) > len(waits_for["found"]) or after - int(waits_for["after"]) >= _WORTH_NOTING
        ended = len(found) >= enough
        data = Waited.of(events, asked=enough, arrived=len(found)).as_json() if ended else None
        return Sight(
            ended=ended,
            message=f"{len(found)} of {enough} events have arrived",
            data=data,
            waits_for={**waits_for, "found": found, "after": after} if moved else None,
        )


def _waiting(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The turns that wait for somebody, and whether all that are pending wait behind such a turn."""
    pending = [turn for turn in turns if turn["status"] not in FINAL]
    parked = tuple(turn for turn in pending if turn.get("parked_on") in PERSONS)
    held_back = {turn["agent"] for turn in parked}
    return {"parked": parked, "stuck": bool(parked) and all(turn["agent"] in held_back for turn in pending)}


def _tail(turns: Sequence[Mapping[str, Any]]) -> str:
    """What the longest answer that is under way says at its end."""
    streaming = [turn for turn in turns if turn.get("streamed_chars")]
    if not streaming:
        return ""
    tokens = sum(turn["streamed_chars"] for turn in streaming) // _CHARS_PER_TOKEN
    longest = max(streaming, key=lambda turn: turn["streamed_chars"])
    text = " ".join((longest.get("partial_text") or "")[-_TAIL_CHARS:].split())
    return f"; some {tokens:,} tokens are under way; {longest['agent_name']}: ...{text}"
