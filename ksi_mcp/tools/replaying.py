"""Replay: what another rule table would have made of what happened."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Refused
from ksi_mcp.routing.comparing import Difference, Kind
from ksi_mcp.routing.recording import MAX_EVENTS, Wanted
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.events import run_of
from ksi_mcp.tools.routing_table import MAX_CHANGES, change_of
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import first_of

MAX_PAYLOAD_CHARS = 1_000
"""Of what a delivery carries, as it is shown here."""
MAX_SHOWN_CHARS = 32_000
"""Of all differences: cut in the middle the answer would be none."""
MAX_EVENT_ID = 2**53
"""The largest number that every client can hold."""


class DifferenceView(View):
    """One delivery that would be another; `made` is what only the replay made, `cut_off` what is gone with it."""

    kind: Kind
    event_id: int
    event: str
    rule_id: str
    target: str
    payload: Any = None
    reason: str | None = None
    made: str | None = None
    cut_off: int | None = None

    @classmethod
    def of(cls, found: Difference) -> DifferenceView:
        """From the record."""
        text = json.dumps(found.payload, ensure_ascii=False)
        return cls(
            kind=found.kind,
            event_id=found.event_id,
            event=found.event,
            rule_id=found.rule_id,
            target=found.target,
            payload=found.payload if len(text) <= MAX_PAYLOAD_CHARS else f"{text[:MAX_PAYLOAD_CHARS]}...",
            reason=found.reason,
            made=found.made,
            cut_off=found.cut_off or None,
        )


class ReplayView(View):
    """The difference in deliveries. Equal digests: equal results, byte for byte."""

    from_event: int
    to_event: int
    table_version: int
    changes: int | None = None
    complete: bool
    missing: list[str] | None = None
    census: dict[str, int]
    differences: list[DifferenceView]
    left_out: int | None = None
    notes: list[str] | None = None
    digest: str


@tool(
    "event_replay",
    needs="base",
    effects="reads",
    title="Replay events against another rule table",
    idempotent=True,
    commands=("replay",),
    aliases={"from": "from_event", "to": "to_event", "since": "from_event", "version": "at_version"},
)
async def event_replay(
    call: Call,
    *,
    from_event: Annotated[int, Field(ge=1, le=MAX_EVENT_ID, description="the first event's id")],
    to_event: Annotated[
        int, Field(ge=1, le=MAX_EVENT_ID, description=f"the last one's; {MAX_EVENTS:,} events at most")
    ],
    orchestration: Annotated[str | None, Field(description="only events of this run")] = None,
    changes: Annotated[
        list[dict[str, Any]] | None,
        Field(description="to the table, as in routing_apply; nobody makes them", max_length=MAX_CHANGES),
    ] = None,
    at_version: Annotated[int | None, Field(ge=0, le=MAX_EVENT_ID, description="the table as it was then")] = None,
    script: Annotated[
        dict[str, Any] | None, Field(description="replies of the scripted provider, for turns that are new")
    ] = None,
    limit: Annotated[int, Field(ge=0, le=500, description="differences shown")] = 50,
) -> ReplayView:
    """What would another rule table have made of what happened? Judges recorded events again, without any effect.

    Compares with the deliveries that were recorded: added, removed, changed (another payload), failed. New events and
    turns are followed, what a removed delivery caused is cut off; census counts all. Without at_version the table is
    the present one: rules that have ended since count as removed.
    """
    # The engine and the format of scripts are nothing that every start should wait for.
    from ksi_mcp.providers.script import parse_script  # noqa: PLC0415
    from ksi_mcp.routing.replaying import ReplayWants, replay  # noqa: PLC0415

    wanted = [change_of(place, given, None) for place, given in enumerate(changes or ())]
    spec = None if script is None else parse_script(script)
    if spec is not None and spec.has_regex and call.ctx.actor.kind != "operator":
        raise Refused(
            "a regular expression can keep the whole server busy, so only the operator's scripts may have any",
            hint="plain text in match finds the prompts that hold it",
        )

    def look(tx: Tx) -> Wanted:
        if wanted:
            reach.require(tx, call.ctx, "routing_control", action="event_replay with changes")
        return Wanted(
            from_event=from_event,
            to_event=to_event,
            orchestration_id=None if orchestration is None else run_of(tx, call, orchestration),
            visible=reach.visible_scopes(tx, call.ctx),
        )

    wants = ReplayWants(events=await call.read(look), at_version=at_version, changes=wanted, script=spec)
    found = await replay(
        call.svc.journal,
        call.svc.clock,
        call.ctx,
        wants,
        is_command=lambda name: call.toolbox.command(name) is not None,
    )
    differences = found.outcome.differences
    shown, _ = first_of(map(DifferenceView.of, differences[:limit]), MAX_SHOWN_CHARS)
    return ReplayView(
        from_event=found.from_event,
        to_event=found.to_event,
        table_version=found.table_version,
        changes=len(wanted) or None,
        complete=not found.missing,
        missing=list(found.missing) or None,
        census=dict(found.outcome.census),
        differences=shown,
        left_out=len(differences) - len(shown) or None,
        notes=list(found.notes) or None,
        digest=found.digest,
    )


TOOLS = (event_replay,)
