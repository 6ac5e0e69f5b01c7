"""How the end of a turn is told, and on whose account a turn acts."""

from __future__ import annotations

import json
from typing import Any

from ksi_mcp.db import Tx
from ksi_mcp.events.journal import Recorder
from ksi_mcp.ids import OrchestrationId, RootId
from ksi_mcp.permissions import SYSTEM, Context, Slot, agent_actor
from ksi_mcp.queues.model import Turn

MAX_EVENT_TEXT_BYTES = 40 * 1024
"""Of a result that its event carries, as JSON; the turn itself keeps all of it."""


def context_of(turn: Turn, *, slot: Slot | None = None, as_system: bool = False) -> Context:
    """What a turn does, it does as its agent, because of itself, with a fresh count of deliveries."""
    run = turn.orchestration_id
    return Context(
        actor=SYSTEM if as_system else agent_actor(turn.session_id),
        root_id=RootId(turn.root_id),
        cause_id=f"turn:{turn.turn_id}",
        hops=0,
        depth=turn.depth,
        slot=slot,
        orchestration_id=None if run is None else OrchestrationId(run),
    )


def report_end(tx: Tx, journal: Recorder, turn: Turn, *, agent_name: str) -> None:
    """The event of a turn's end, and the reply event if its sender asked for one."""
    whole = turn.result or turn.partial_text or ""
    text = _cut(whole)
    data: dict[str, Any] = {
        "turn": turn.turn_id,
        "agent": turn.session_id,
        "agent_name": agent_name,
        "status": turn.state,
        "text": text,
    }
    if len(text) < len(whole):
        data["truncated"] = True
    if turn.error is not None and turn.state != "done":
        data |= {"error": turn.error[:2000], "error_class": turn.error_class}
    if turn.link:
        data |= {"substituted": True, "first_error": (turn.first_error or "")[:2000]}
    if turn.reused:
        data["reused"] = True
    if turn.similarity is not None:
        data["similarity"] = turn.similarity
    if turn.answered_by is not None:
        data["answered_by"] = turn.answered_by
    name = "completion:result" if turn.state == "done" else "completion:failed"
    ctx = context_of(turn, as_system=True)
    journal.record(tx, name, data, ctx, agent_id=turn.session_id, subject=turn)
    if turn.reply_event is not None:
        journal.record(tx, turn.reply_event, data, context_of(turn), agent_id=turn.session_id)


def _cut(text: str) -> str:
    text = text[:MAX_EVENT_TEXT_BYTES]
    while (size := len(json.dumps(text, ensure_ascii=False).encode())) > MAX_EVENT_TEXT_BYTES:
        text = text[: len(text) * MAX_EVENT_TEXT_BYTES // size]
    return text
