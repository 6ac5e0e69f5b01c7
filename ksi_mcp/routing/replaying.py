"""Replay: what a rule table would have made of a recorded range of events. The store is only read.

Each recorded event that was routed is judged again, as it was recorded and in its order, by one table; what that
delivers is compared with what was delivered. What would be new is followed: an event is judged in its turn, an
agent's turn is answered by the script. What would be gone takes along what it caused (`cut_off`). Time is that of
the recording. Not simulated: tools that agents call, delayed events, what the server itself does because of an
event, and how long an answer takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ksi_mcp.clock import Clock
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import MEMORY, open_sqlite
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import Context, actor_of
from ksi_mcp.providers.script_format import ScriptSpec
from ksi_mcp.routing import governance, store
from ksi_mcp.routing.answering import ScriptedAnswers
from ksi_mcp.routing.changing import Change
from ksi_mcp.routing.comparing import Outcome
from ksi_mcp.routing.index import RuleIndex, RuleTable
from ksi_mcp.routing.outbox import Limits
from ksi_mcp.routing.proposing import ThoughtTable, table_at, with_changes
from ksi_mcp.routing.recording import Recording, Wanted, read_range, read_recording
from ksi_mcp.routing.rules import IsCommand, compile_rule
from ksi_mcp.routing.simulation import Settings, Simulation

_canonical = json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayWants:
    """Which events, and by which table: the present one, or as it was at a version, with changes to it."""

    events: Wanted
    at_version: int | None = None
    changes: Sequence[Change] = ()
    script: ScriptSpec | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay found. `digest` is the SHA-256 of all of it: equal results have equal digests.

    `missing` says what could not be looked at, `notes` what else one has to know.
    """

    from_event: int
    to_event: int
    table_version: int
    outcome: Outcome
    notes: tuple[str, ...]
    digest: str

    @property
    def missing(self) -> tuple[str, ...]:
        """Why it is not complete; empty if it is."""
        return self.outcome.missing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    recording: Recording
    table: ThoughtTable
    hidden: frozenset[str]


async def replay(
    journal: Journal, clock: Clock, ctx: Context, wants: ReplayWants, *, is_command: IsCommand
) -> Replayed:
    """Replay a range; the same recording, table and script give the same result, byte for byte.

    Raises:
        Invalid: the range is none.
        KsiError: a change cannot be taken; the message says which one.
    """
    prepared = await journal.read(lambda tx: _prepare(tx, ctx, wants, is_command))
    # The deliveries run on a store of their own, in memory and in its thread: nothing leads from there to the real one.
    scratch = await open_sqlite(MEMORY, clock)
    try:
        outcome = await scratch.write(partial(_simulate, prepared=prepared, wants=wants))
    finally:
        await scratch.close()
    return _result(prepared, wants, outcome)


def _prepare(tx: Tx, ctx: Context, wants: ReplayWants, is_command: IsCommand) -> _Prepared:
    found = read_range(tx, wants.events)
    began_ms = found.events[0].at_ms if found.events else 0
    table = table_at(tx, wants.at_version)
    table = with_changes(tx, ctx, table, wants.changes, is_command=is_command, began_ms=began_ms)
    rules = table.rules
    doubtful = frozenset(
        rule_id
        for rule_id, rule in rules.items()
        if rule.join is not None or table.since.get(rule_id, began_ms + 1) > began_ms
    )
    recording = read_recording(
        tx,
        found,
        targets={agent for rule in rules.values() for agent in rule.target.agents},
        firsts={maker for rule in rules.values() if rule.exclusive and (maker := actor_of(rule.created_by).agent_id)},
        doubtful=doubtful,
        by_load=any(rule.target.mode in ("least_busy", "first_idle") for rule in rules.values()),
    )
    hidden: set[str] = set()
    if (viewer := governance.viewer_of(tx, ctx)) is not None:
        hidden = {rule_id for rule_id, rule in rules.items() if not governance.sees(viewer, rule)}
        others = {key[1] for key in recording.attempts} - set(rules)
        rows = tx.all("routing.replay_rules_named", {"ids": json.dumps(sorted(others))})
        hidden |= others - {row["rule_id"] for row in rows if governance.sees(viewer, store.rule_of(row))}
    return _Prepared(recording=recording, table=table, hidden=frozenset(hidden))


def _simulate(tx: Tx, *, prepared: _Prepared, wants: ReplayWants) -> Outcome:
    table, recording = prepared.table, prepared.recording
    compiled = (compile_rule(rule) for rule in table.rules.values())
    settings = Settings(
        table=RuleTable(version=table.version, index=RuleIndex(compiled)),
        since=table.since,
        hidden=prepared.hidden,
        answers=None if wants.script is None else ScriptedAnswers(wants.script, recording.agents),
        limits=wants.limits,
    )
    return Simulation(tx, recording, settings).run()


def _result(prepared: _Prepared, wants: ReplayWants, outcome: Outcome) -> Replayed:
    census, notes = outcome.census, []
    if census["unanswered_turns"] and wants.script is None:
        notes.append(f"simulated agents do not answer without a script: {census['unanswered_turns']:,} turns stay open")
    if census["tools_not_run"]:
        notes.append(f"simulated agents called {census['tools_not_run']:,} tools; none of them was run")
    if census["joins_waiting"]:
        notes.append(f"{census['joins_waiting']:,} collections of joins would still wait at the end of the range")
    if prepared.hidden:
        notes.append("deliveries of rules that you cannot see are left out")
    facts = {
        "from_event": prepared.recording.from_event,
        "to_event": prepared.recording.to_event,
        "table_version": prepared.table.version,
        "notes": notes,
    }
    said: dict[str, Any] = {**facts, "outcome": asdict(outcome)}
    return Replayed(
        from_event=prepared.recording.from_event,
        to_event=prepared.recording.to_event,
        table_version=prepared.table.version,
        outcome=outcome,
        notes=tuple(notes),
        digest=hashlib.sha256(_canonical(said).encode()).hexdigest(),
    )
