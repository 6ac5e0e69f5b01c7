"""Delivers one event of the outbox to everybody who hears it, inside one transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError, StoreError
from ksi_mcp.events.journal import Recorder
from ksi_mcp.events.model import Event
from ksi_mcp.ids import OrchestrationId, RootId
from ksi_mcp.permissions import OPERATOR, SYSTEM, Actor, Context, actor_of
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.matching import Match, agent_of, judge
from ksi_mcp.routing.rules import Rule

MAX_PROMPT_DATA_BYTES = 16 * 1024
MAX_CHAIN = 20
"""Steps of a chain of causes that `routing:loop_stopped` shows."""
DEFAULT_MAX_DEPTH = 256
MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a chain of deliveries: its length since the last turn, and its breadth since the first cause."""

    max_hops: int = 16
    deliveries_per_root: int = 10_000


class TurnSink(Protocol):
    """Who gives an agent a turn; the agents' side of a delivery."""

    def deliver_turn(self, tx: Tx, ctx: Context, agent_id: str, prompt: str) -> str:
        """Enqueue a turn and return its id. `ctx` is that of the event heard; the sink counts the hop.

        Raises:
            KsiError: the agent cannot have it; then nothing has been written.
        """
        ...


def event_context(event: Event, actor: Actor) -> Context:
    """The context of something done because of an event."""
    return Context(
        actor=actor,
        root_id=RootId(event.root_id),
        cause_id=f"event:{event.event_id}",
        hops=event.hops,
        depth=event.depth,
        orchestration_id=None if event.orchestration_id is None else OrchestrationId(event.orchestration_id),
    )


def authority(rule: Rule, event: Event) -> Actor:
    """On whose authority a rule delivers: the lower one of the event's source and the rule's creator."""
    source, creator = actor_of(event.source), actor_of(rule.created_by)
    for actor in (source, creator):
        if actor.kind == "agent":
            return actor
    return OPERATOR if OPERATOR in (source, creator) else SYSTEM


def prompt_of(event: Event, data: dict[str, Any], *, sender: str, rule_id: str) -> str:
    """What an agent reads when a rule lets it hear an event."""
    text = json.dumps(data, ensure_ascii=False)
    raw = text.encode("utf-8", "replace")
    note = ""
    if len(raw) > MAX_PROMPT_DATA_BYTES:
        text = raw[:MAX_PROMPT_DATA_BYTES].decode("utf-8", "ignore")
        note = f"\n[cut after {MAX_PROMPT_DATA_BYTES:,} of {len(raw):,} bytes; event {event.event_id} has all of it]"
    return f"Event {event.name} (id {event.event_id}) from {sender}, by routing rule {rule_id}.\nData:\n{text}{note}"


class EventDelivery:
    """One event on its way. Reports what it does as events that are not routed themselves."""

    def __init__(self, tx: Tx, journal: Recorder, turns: TurnSink, limits: Limits, event: Event) -> None:
        self._tx = tx
        self._journal = journal
        self._turns = turns
        self._limits = limits
        self._event = event

    def run(self, table: RuleTable) -> int:
        """Deliver to everybody who hears the event, by priority; how many deliveries were made."""
        delivered = 0
        for match in judge(table, self._event, now_ms=self._tx.now_ms, name_of=self._name_of):
            match match.outcome:
                case "fires":
                    if (stop := self._limit(match.rule)) is not None:
                        self._stopped(match.rule, *stop)
                        break
                    if not self._within_quota(match.rule):
                        break
                    delivered += self._deliver(match)
                case "condition_failed" | "mapping_failed":
                    self._failed(match, match.outcome)
                case _:
                    pass
        return delivered

    # ------------------------------------------------------------------------------ delivering

    def _deliver(self, match: Match) -> bool:
        rule, event = match.rule, self._event
        data = match.data or {}
        ctx = event_context(event, authority(rule, event))
        facts: dict[str, Any]
        if rule.target.kind == "agent":
            agent = self._tx.one("routing.agent", {"agent_id": rule.target.name})
            if agent is None or agent["status"] != "active":
                life = "does not exist" if agent is None else f"is {agent['status']}"
                self.undeliverable(f"agent {rule.target.name} {life}", rule=rule)
                return False
            prompt = prompt_of(event, data, sender=self._sender(), rule_id=rule.rule_id)
            try:
                facts = {"turn": self._turns.deliver_turn(self._tx, ctx, rule.target.name, prompt)}
            except StoreError:
                raise  # nothing of this event is lost: it waits for the next attempt
            except KsiError as failure:
                self.undeliverable(failure.message, rule=rule)
                return False
        else:
            try:
                made = self._journal.record(
                    self._tx, rule.target.name, data, replace(ctx, hops=ctx.hops + 1), agent_id=event.agent_id
                )
            except StoreError:
                raise  # nothing of this event is lost: it waits for the next attempt
            except KsiError as failure:
                self.undeliverable(failure.message, rule=rule)
                return False
            facts = {"new_event_id": made.event_id}
        self._report("routing:delivered", {"target": str(rule.target), **facts}, rule)
        return True

    def _sender(self) -> str:
        agent_id = agent_of(self._event)
        if agent_id is None:
            return self._event.source
        name = self._name_of(agent_id)
        shown = f"agent {name} ({agent_id})" if name else f"agent {agent_id}"
        return shown if self._event.source.startswith("agent:") else f"{self._event.source}, about {shown}"

    def _name_of(self, agent_id: str) -> str | None:
        row = self._tx.one("routing.agent", {"agent_id": agent_id})
        return None if row is None else row["name"]

    # ---------------------------------------------------------------------------------- limits

    def _limit(self, rule: Rule) -> tuple[Literal["hops", "depth"], int] | None:
        event = self._event
        if event.hops + 1 > self._limits.max_hops:
            return "hops", self._limits.max_hops
        run, depth = event.orchestration_id, event.depth
        if rule.target.kind == "agent":
            depth += 1
            agent = self._tx.one("routing.agent", {"agent_id": rule.target.name})
            run = run if agent is None else agent["orchestration_id"]
        row = None if run is None else self._tx.one("routing.orchestration", {"orchestration_id": run})
        most = DEFAULT_MAX_DEPTH if row is None else int(row["max_depth"])
        return ("depth", most) if depth > most else None

    def _within_quota(self, rule: Rule) -> bool:
        row = self._tx.one("routing.take_delivery", {"root_id": self._event.root_id})
        made = 1 if row is None else int(row["deliveries"])
        most = self._limits.deliveries_per_root
        if made == most + 1:  # said once for each first cause, however many deliveries it still tries
            self._stopped(rule, "quota", most)
        return made <= most

    def _stopped(self, rule: Rule, reason: Literal["hops", "depth", "quota"], limit: int) -> None:
        self._report("routing:loop_stopped", {"reason": reason, "limit": limit, "chain": self._chain()}, rule)

    def _chain(self) -> list[str]:
        """The causes that led here, the first of them first."""
        steps = [f"{self._event.name} (event:{self._event.event_id})"]
        cause = self._event.cause_id
        while cause is not None and len(steps) < MAX_CHAIN:
            kind, _, ref = cause.partition(":")
            if kind == "event" and ref.isdigit():
                row = self._tx.one("routing.cause_event", {"event_id": int(ref)})
                step = None if row is None else f"{row['name']} ({cause})"
            else:
                row = self._tx.one("routing.cause_turn", {"turn_id": ref})
                step = None if row is None else f"turn of {row['agent']} ({cause})"
            if row is None or step is None:
                break
            steps.append(step)
            cause = row["cause_id"]
        if cause is not None:
            steps.append("...")
        return steps[::-1]

    # --------------------------------------------------------------------------------- reports

    def undeliverable(self, reason: str, *, rule: Rule | None = None) -> None:
        """Report that a delivery, or with no rule the whole event, came to nothing."""
        facts = {"target": None if rule is None else str(rule.target), "reason": reason[:MAX_REASON_CHARS]}
        self._report("routing:undeliverable", facts, rule)

    def _failed(self, match: Match, outcome: Literal["condition_failed", "mapping_failed"]) -> None:
        facts = {
            "target": str(match.rule.target),
            "expression": match.expression,
            "missing": match.missing,
            "reason": (match.reason or "")[:MAX_REASON_CHARS],
        }
        self._report(f"routing:{outcome}", facts, match.rule)

    def _report(self, name: str, facts: dict[str, Any], rule: Rule | None) -> None:
        event = self._event
        data = {"rule_id": None if rule is None else rule.rule_id, "event_id": event.event_id, "event": event.name}
        about = rule.target.name if rule is not None and rule.target.kind == "agent" else event.agent_id
        self._journal.record(
            self._tx, name, {**data, **facts}, event_context(event, SYSTEM), agent_id=about, routable=False
        )
