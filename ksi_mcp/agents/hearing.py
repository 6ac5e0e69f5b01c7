"""What agents hear without a rule: what those below them emit, and what of theirs fails.

It is kept as it comes and told as one notice before the agent's next turn. What a rule delivers as well is heard all
the same: a notice says what happened, a delivery asks for something.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from ksi_mcp.agents.injections import MAX_WAITING, MAX_WAITING_CHARS
from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError, StoreError
from ksi_mcp.events.journal import Recorder
from ksi_mcp.events.model import Event
from ksi_mcp.events.patterns import is_reserved
from ksi_mcp.ids import OrchestrationId, RootId
from ksi_mcp.permissions import SYSTEM, Context

MAX_HEARD: Final = 50
"""What one notice tells; of more, the newest."""
MAX_TEXT_CHARS: Final = 300
"""Of an event's data."""
MAX_ABOVE: Final = 64
"""Nobody further up hears of an agent, whatever its level."""
MAX_REASON_CHARS: Final = 500

RUN_FAILED: Final = "orchestration:failed"
ERRORS: Final = frozenset(
    {
        "agent:budget_exceeded",
        "agent:escalated",
        "agent:failed",
        "agent:given_up",
        "budget:terminate",
        "completion:failed",
        "completion:parked",
        RUN_FAILED,
    }
)
"""System events that tell of something that failed, or that goes on only if somebody steps in."""
_KNOWN: Final = frozenset({"agent", "agent_name", "name", "text", "prompt", "hint"})
"""What a notice of such an event leaves out: it names the agent itself, and is short."""
_WOKEN: Final = (
    "Something happened among the agents below you; you were told of it in a notice. Do what is to be done about it, "
    "if anything. Nobody waits for this reply."
)

Wake = Callable[[Tx, Context, str, str], object]
"""Sends an agent (by its id) a prompt, because of something; raises KsiError if that cannot be."""


def hear(tx: Tx, journal: Recorder, event: Event, *, wake: Wake) -> None:
    """Let those above the agent behind an event hear it, as far as their levels reach down.

    System events are for rules; of them only `ERRORS` are heard. Runs for every event, in the transaction that routes
    it: a system event costs nothing, and so does one without an agent.
    """
    failed = event.name in ERRORS
    if not failed and is_reserved(event.name):
        return
    emitter = event.source.removeprefix("agent:") if event.source.startswith("agent:") else event.agent_id
    run = event.orchestration_id if event.name == RUN_FAILED else None
    if emitter is None and run is None:
        return
    # The failure of a run is news for whoever started it, not for those above whoever reported it.
    below = {"agent_id": None, "orchestration_id": run} if run else {"agent_id": emitter, "orchestration_id": None}
    hearers = tx.all("agents.hearers", {**below, "failed": int(failed), "most": MAX_ABOVE})
    if not hearers:
        return
    facts = {"event_id": event.event_id, "name": event.name, "source_agent": run or emitter, "text": _text(event)}
    for row in hearers:
        if row["agent_id"] == emitter:
            continue
        agent = {"agent_id": row["agent_id"]}
        made = tx.one("agents.hear", {**agent, **facts, "now_ms": tx.now_ms})
        if made is not None and made["nth"] > MAX_HEARD:
            tx.run("agents.forget_heard", {**agent, "nth": made["nth"] - MAX_HEARD})
        if row["wake"] and not row["draining"] and tx.one("agents.unbegun", agent) is None:
            _wake(tx, journal, event, row["agent_id"], wake)


def tell(tx: Tx, agent_id: str) -> None:
    """Make one notice of all that an agent has heard; it goes with its next turn that starts.

    Notices of turns that ended without an answer wait as well: while there are as many words as may wait, no other is
    made, and what is heard is kept as before.
    """
    rows = tx.all("agents.heard", {"agent_id": agent_id})
    if not rows:
        return
    lines = [f"- {row['name']} of {_shown(row['source_name'], row['source_agent'])}: {row['text']}" for row in rows]
    missed = rows[0]["nth"] - 1
    more = f"\n({missed:,} older ones are left out; event_query shows them.)" if missed else ""
    words = "Since your last turn, among the agents below you (a notice, not a request):\n" + "\n".join(lines) + more
    row = tx.one("agents.injections_waiting", {"session_id": agent_id})
    if row is not None and (row["waiting"] >= MAX_WAITING or row["chars"] + len(words) > MAX_WAITING_CHARS):
        return
    tx.run("agents.forget_heard", {"agent_id": agent_id, "nth": None})
    values = {"session_id": agent_id, "position": "before", "content": words, "created_by": str(SYSTEM)}
    tx.one("agents.inject", {**values, "now_ms": tx.now_ms})


def _wake(tx: Tx, journal: Recorder, event: Event, agent_id: str, wake: Wake) -> None:
    """One turn for all that is heard until it starts, as deep in the chain of causes as what was heard."""
    ctx = Context(
        actor=SYSTEM,
        root_id=RootId(event.root_id),
        cause_id=f"event:{event.event_id}",
        hops=event.hops,
        depth=event.depth,
        orchestration_id=None if event.orchestration_id is None else OrchestrationId(event.orchestration_id),
    )
    try:
        wake(tx, ctx, agent_id, _WOKEN)
    except StoreError:
        raise
    except KsiError as failure:  # the chain is as long as it may get: it ends here, and what was heard waits
        facts = {"agent": agent_id, "event_id": event.event_id, "event": event.name}
        reason = failure.message[:MAX_REASON_CHARS]
        journal.record(tx, "agent:not_woken", {**facts, "reason": reason}, ctx, agent_id=agent_id, routable=False)


def _text(event: Event) -> str:
    data = event.data
    if is_reserved(event.name):
        data = {key: value for key, value in data.items() if key not in _KNOWN and value is not None}
    text = json.dumps(data, ensure_ascii=False)
    if len(text) <= MAX_TEXT_CHARS:
        return text
    return f"{text[:MAX_TEXT_CHARS]} ... [cut; event {event.event_id} has all of it]"


def _shown(name: str | None, ref: str) -> str:
    return ref if name is None else f"{name} ({ref})"
