"""Where an event goes, or went, and why."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.events.model import Event, event_of
from ksi_mcp.routing.explaining import Past, Went
from ksi_mcp.routing.matching import Match
from ksi_mcp.routing.router import Explanation
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import first_of

MAX_PAYLOAD_CHARS: Final = 6_000
"""Of the data of an event, and of what one rule makes of it."""
MAX_LIST_CHARS: Final = 9_000
"""Of each list of rules or deliveries, but for its first entry: what is cut in the middle explains nothing."""


class MatchView(View):
    """What becomes of one rule whose pattern hears the event."""

    rule_id: str
    outcome: str
    reason: str | None = None
    target: str
    priority: int
    payload: dict[str, Any] | str | None = None

    @classmethod
    def of(cls, match: Match) -> MatchView:
        """From the record."""
        return cls(
            rule_id=match.rule.rule_id,
            outcome=match.outcome,
            reason=match.reason,
            target=str(match.rule.target),
            priority=match.rule.priority,
            payload=_cut(match.data),
        )


class WentView(View):
    """What became of a recorded event by one rule, as it was reported then."""

    outcome: str
    rule_id: str | None = None
    target: str | None = None
    turn: str | None = None
    new_event_id: int | None = None
    dead_letter: int | None = None
    reason: str | None = None
    key: str | None = None
    joined_events: list[int] | None = None

    @classmethod
    def of(cls, went: Went) -> WentView:
        """From the record."""
        return cls(
            outcome=went.outcome,
            rule_id=went.rule_id,
            target=went.target,
            turn=went.turn,
            new_event_id=went.new_event_id,
            dead_letter=went.dead_letter,
            reason=went.reason,
            key=went.key or None,
            joined_events=list(went.events) or None,
        )


class ExplainView(View):
    """Which rules fire for an event, in order and with what payload; which do not, and why.

    Of a recorded event also its data, what was `delivered` then, and the rules that were changed since: by those that
    `fires` and `not_firing` may differ from what was done. `left_out`: what is too much to be shown, by list.
    """

    event: str
    data: dict[str, Any] | str | None = None
    delivered: list[WentView] | None = None
    not_delivered_yet: bool | None = None
    table_changed_since: list[str] | None = None
    fires: list[MatchView]
    not_firing: list[MatchView]
    left_out: dict[str, int] | None = None
    rules_hidden_from_you: int | None = None
    table_version: int

    @classmethod
    def of(cls, found: Explanation, recorded: Event | None = None, past: Past | None = None) -> ExplainView:
        """From the records; `recorded` and `past` for an event that there was."""
        fires, fires_more = first_of(map(MatchView.of, found.fires), MAX_LIST_CHARS)
        losers, losers_more = first_of(map(MatchView.of, found.losers), MAX_LIST_CHARS)
        went, went_more = first_of(map(WentView.of, () if past is None else past.went), MAX_LIST_CHARS)
        left_out = {"fires": fires_more, "not_firing": losers_more, "delivered": went_more}
        return cls(
            event=found.event,
            data=None if recorded is None else _cut(recorded.data),
            delivered=None if past is None else went,
            not_delivered_yet=True if past is not None and past.pending else None,
            table_changed_since=None if past is None else list(past.changed) or None,
            fires=fires,
            not_firing=losers,
            left_out={name: count for name, count in left_out.items() if count} or None,
            rules_hidden_from_you=found.hidden or None,
            table_version=found.version,
        )


def _cut(data: dict[str, Any] | None) -> dict[str, Any] | str | None:
    """The data, or where it is too large the beginning of its text."""
    if data is None:
        return None
    text = json.dumps(data, ensure_ascii=False)
    return data if len(text) <= MAX_PAYLOAD_CHARS else f"{text[:MAX_PAYLOAD_CHARS]}..."


@tool("routing_explain", needs="base", effects="reads", title="Explain where an event goes", idempotent=True)
async def routing_explain(
    call: Call,
    *,
    event: str | None = None,
    data: dict[str, Any] | None = None,
    source: Annotated[str | None, Field(description="operator or agent:<id>")] = None,
    event_id: Annotated[int | None, Field(description="or a recorded event")] = None,
) -> ExplainView:
    """Why a message went there or not: dry run of the rules that fire for an event, and why others do not."""
    if (event is None) == (event_id is None):
        raise Invalid("give event (with data) or event_id, one of them")
    await call.svc.router.refresh()

    def work(tx: Tx) -> ExplainView:
        if event_id is not None:
            row = tx.one("events.one", {"event_id": event_id})
            seen = reach.visible_scopes(tx, call.ctx)
            if row is None or (seen is not None and not {row["agent_id"], row["orchestration_id"]} & seen):
                raise NotFound(f"there is no event {event_id}", hint="event_query shows recorded events")
            recorded = event_of(row)
            past = call.svc.router.past(tx, call.ctx, recorded)
            return ExplainView.of(call.svc.router.preview(tx, call.ctx, recorded), recorded, past)
        return ExplainView.of(_imagined(tx, call, event or "", data, source))

    return await call.read(work)


def _imagined(tx: Tx, call: Call, event: str, data: dict[str, Any] | None, source: str | None) -> Explanation:
    """An event that nobody emitted: what an agent emits belongs to the agent's run."""
    agent_id = run = None
    if source is not None and source.startswith("agent:"):
        agent = reach.find(tx, call.ctx, source.removeprefix("agent:"))
        source, agent_id, run = f"agent:{agent.agent_id}", agent.agent_id, agent.orchestration_id
    elif source not in (None, "operator"):
        raise Invalid(f"source {source[:60]!r} is nobody", hint="operator, or agent:<id or name>")
    else:
        run = reach.grants(tx, call.ctx).orchestration_id
    return call.svc.router.explain(tx, call.ctx, event, data, source, agent_id=agent_id, orchestration_id=run)
