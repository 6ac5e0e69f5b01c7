"""What the log holds of a range of events: what happened, where it went, and whom it was about. Only reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.events.model import Event, event_of
from ksi_mcp.routing.matching import agent_of
from ksi_mcp.routing.targets import AGENT

MAX_EVENTS: Final = 5_000
"""Events of the log that one replay looks at."""
MAX_BYTES: Final = 32 * 1024 * 1024
"""Of the data of these events."""
MAX_REPORTS: Final = 100_000
_PAGE: Final = 500

DELIVERED: Final = "routing:delivered"
UNDELIVERABLE: Final = "routing:undeliverable"
JOINED: Final = "routing:joined"
_REPORTS: Final = (DELIVERED, UNDELIVERABLE, "routing:mapping_failed", "routing:condition_failed", JOINED)

UNROUTED: Final = frozenset(
    {
        "agent:not_woken", "agent:tool_answered", "agent:tool_called", "completion:batch_sent", "completion:batched",
        "completion:injected", "completion:interrupted", "completion:queued",
        "routing:condition_failed", "routing:delivered", "routing:joined", "routing:loop_stopped",
        "routing:mapping_failed", "routing:paused", "routing:rate_limited", "routing:redriven",
        "routing:resumed", "routing:undeliverable", "system:delayed_failed", "system:listener_failed",
        "system:refused", "system:retention_swept", "system:token_made", "system:token_revoked",
    }
)  # fmt: skip
"""Events that rules never hear: docs/events.md says so of them."""

Key = tuple[int, str, str]
"""An event, a rule, and the place the rule delivers to (all of them, as text, where it did not come to one)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A delivery as it was recorded. `ref` is the event or turn it made; `first_id` the first event that shows it.

    `tried`: it came as far as a place to deliver to.
    """

    key: Key
    made: bool
    tried: bool
    reason: str | None
    ref: str | None
    first_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """What a replay has to know of an agent."""

    agent_id: str
    name: str
    orchestration_id: str | None
    ended_at_ms: int | None
    model: str
    system: str
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events: by id, both included; of one run, and of those that the asker may see (None: of all)."""

    from_event: int
    to_event: int
    orchestration_id: str | None = None
    visible: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A range as it was. `missing` says in words what of it is not there."""

    from_event: int
    to_event: int
    events: tuple[Event, ...]
    attempts: Mapping[Key, Attempt]
    waiting: frozenset[int]
    agents: Mapping[str, AgentFacts]
    depths: Mapping[str, int]
    spent: Mapping[str, int]
    """Deliveries before the range, by root."""
    pending: Mapping[str, frozenset[str]]
    """Turns that were unfinished when it began, by agent."""
    payloads: Mapping[str, Any] = field(default_factory=dict)
    """What recorded deliveries carried, by `ref`: an event's data or a turn's prompt."""
    missing: tuple[str, ...] = ()
    families: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Who is below an agent, of those whose exclusive rules may keep events from others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The events themselves."""

    from_event: int
    to_event: int
    events: tuple[Event, ...]
    missing: tuple[str, ...]


def read_range(tx: Tx, wanted: Wanted) -> Range:
    """The events of a range, oldest first, as many as one replay takes.

    Raises:
        Invalid: the range is none, or there are no events in it yet.
    """
    if wanted.from_event > wanted.to_event:
        raise Invalid(
            f"the range goes from {wanted.from_event} to {wanted.to_event}", hint="give the older event's id first"
        )
    row = tx.one("events.last_id")
    last_id = 0 if row is None else int(row["event_id"])
    if wanted.from_event > last_id:
        raise Invalid(f"there is no event {wanted.from_event} yet", hint=f"the newest is {last_id}; see event_query")
    last, end = min(wanted.to_event, last_id), 0
    events: list[Event] = []
    size, missing = 0, []
    after = wanted.from_event - 1
    while end == 0:
        rows = tx.all("routing.replay_range", {**_where(wanted), "after_id": after, "to_id": last, "limit": _PAGE})
        for row in rows:
            size += len(row["data"])
            if len(events) == MAX_EVENTS or (size > MAX_BYTES and events):
                end = int(events[-1].event_id)
                most = f"{MAX_EVENTS:,} events" if len(events) == MAX_EVENTS else f"{MAX_BYTES // 1024**2} MB"
                missing.append(f"a replay takes {most} at most: it ends with event {end}; go on from there")
                break
            events.append(event_of(row))
            after = int(row["event_id"])
        if len(rows) < _PAGE and end == 0:
            end = last
    counted = tx.one("routing.replay_count", {"from_id": wanted.from_event, "to_id": end})
    gone = end - wanted.from_event + 1 - (0 if counted is None else int(counted["events"]))
    if gone > 0:
        missing.append(f"{gone:,} events of the range are no longer in the log: they were removed by retention")
    return Range(from_event=wanted.from_event, to_event=end, events=tuple(events), missing=tuple(missing))


def read_recording(
    tx: Tx, found: Range, *, targets: Iterable[str], firsts: Iterable[str], doubtful: frozenset[str], by_load: bool
) -> Recording:
    """Everything else about these events.

    Args:
        tx: a transaction that reads.
        found: the events.
        targets: the agents that rules of the table speak of.
        firsts: the agents that made exclusive rules.
        doubtful: the rules whose deliveries have to be compared by what they carried.
        by_load: whether it matters how busy agents were.
    """
    missing = list(found.missing)
    attempts = _attempts(tx, found, missing)
    agents = {each.removeprefix(AGENT) for (_, _, each) in attempts if each.startswith(AGENT)}.union(targets)
    agents |= {agent_id for event in found.events if (agent_id := agent_of(event)) is not None}
    agents |= {event.agent_id for event in found.events if event.agent_id is not None}
    facts = {row["agent_id"]: _facts(row) for row in tx.all("routing.replay_agents", {"ids": _listed(agents)})}
    runs = {event.orchestration_id for event in found.events} | {each.orchestration_id for each in facts.values()}
    depths = tx.all("routing.replay_depths", {"ids": _listed(run for run in runs if run is not None)})
    roots = _listed(event.root_id for event in found.events)
    before = {"roots": roots, "from_id": found.from_event, "names": json.dumps([DELIVERED, UNDELIVERABLE])}
    pending: dict[str, set[str]] = {}
    if by_load and found.events:
        began = {"agents": _listed(targets), "at_ms": found.events[0].at_ms}
        for row in tx.all("routing.replay_unfinished", began):
            pending.setdefault(row["session_id"], set()).add(f"turn:{row['turn_id']}")
    waiting = tx.all("routing.replay_waiting", {"from_id": found.from_event, "to_id": found.to_event})
    refs = [each.ref for each in attempts.values() if each.ref is not None and each.key[1] in doubtful]
    return Recording(
        from_event=found.from_event,
        to_event=found.to_event,
        events=found.events,
        attempts=attempts,
        waiting=frozenset(int(row["event_id"]) for row in waiting),
        agents=facts,
        depths={row["orchestration_id"]: int(row["max_depth"]) for row in depths},
        spent={row["root_id"]: int(row["deliveries"]) for row in tx.all("routing.replay_spent", before)},
        pending={agent: frozenset(turns) for agent, turns in pending.items()},
        payloads=_payloads(tx, refs),
        missing=tuple(missing),
        families={agent_id: reach.family(tx, agent_id) for agent_id in firsts},
    )


def _attempts(tx: Tx, found: Range, missing: list[str]) -> dict[Key, Attempt]:
    """What rules did with these events, as far as it belongs to the time of the range."""
    known = {int(event.event_id) for event in found.events}
    rows = tx.all(
        "routing.replay_reports",
        {
            "roots": _listed(event.root_id for event in found.events),
            "from_id": found.from_event,
            "to_id": found.to_event,
            "names": json.dumps(_REPORTS),
            "limit": MAX_REPORTS + 1,
        },
    )
    if len(rows) > MAX_REPORTS:
        missing.append(f"more than {MAX_REPORTS:,} deliveries were made of these events: take a shorter range")
    end_ms = max((event.at_ms for event in found.events), default=0)
    late: set[tuple[int, str]] = set()
    attempts: dict[Key, Attempt] = {}
    for row in rows[:MAX_REPORTS]:
        data = json.loads(row["data"])
        event_id, rule_id = data.get("event_id"), data.get("rule_id")
        if event_id not in known or not isinstance(rule_id, str):
            continue
        if row["name"] == JOINED:
            # A join whose time was up after the range is over belongs to what came afterwards.
            if data.get("partial") and row["at_ms"] > end_ms:
                late.add((event_id, rule_id))
            continue
        if (event_id, rule_id) in late:
            continue
        attempt = _attempt(row["name"], int(row["event_id"]), data)
        if attempt.made or attempt.key not in attempts:
            attempts[attempt.key] = attempt
    return attempts


def _attempt(name: str, report_id: int, data: Mapping[str, Any]) -> Attempt:
    key = (int(data["event_id"]), str(data["rule_id"]), str(data.get("target")))
    if name != DELIVERED:
        tried, reason = name == UNDELIVERABLE, str(data.get("reason"))
        return Attempt(key=key, made=False, tried=tried, reason=reason, ref=None, first_id=report_id)
    made = data.get("new_event_id")
    if made is None:
        return Attempt(key=key, made=True, tried=True, reason=None, ref=f"turn:{data.get('turn')}", first_id=report_id)
    return Attempt(key=key, made=True, tried=True, reason=None, ref=f"event:{made}", first_id=int(made))


def _payloads(tx: Tx, refs: Sequence[str]) -> dict[str, Any]:
    events = [int(ref.removeprefix("event:")) for ref in refs if ref.startswith("event:")]
    turns = [ref.removeprefix("turn:") for ref in refs if ref.startswith("turn:")]
    found: dict[str, Any] = {}
    for row in tx.all("routing.replay_data", {"ids": json.dumps(events)}):
        found[f"event:{row['event_id']}"] = json.loads(row["data"])
    for row in tx.all("routing.replay_prompts", {"ids": json.dumps(turns)}):
        found[f"turn:{row['turn_id']}"] = row["prompt"]
    return found


def _facts(row: Any) -> AgentFacts:
    return AgentFacts(
        agent_id=row["agent_id"],
        name=row["name"],
        orchestration_id=row["orchestration_id"],
        ended_at_ms=row["ended_at_ms"],
        model=row["model"],
        system=row["system"],
        max_tokens=row["max_tokens"],
    )


def _where(wanted: Wanted) -> dict[str, Any]:
    return {
        "orchestration_id": wanted.orchestration_id,
        "visible": None if wanted.visible is None else json.dumps(sorted(wanted.visible)),
    }


def _listed(names: Iterable[str]) -> str:
    return json.dumps(sorted(set(names)))
