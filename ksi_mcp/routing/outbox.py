"""Delivers one event of the outbox to everybody who hears it, inside one transaction."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from ksi_mcp.agents.reach import is_below
from ksi_mcp.db import Tx
from ksi_mcp.errors import Exhausted, Invalid, KsiError, StoreError
from ksi_mcp.events.journal import Recorder
from ksi_mcp.events.model import Event
from ksi_mcp.ids import OrchestrationId, RootId
from ksi_mcp.permissions import OPERATOR, SYSTEM, Actor, Context, actor_of
from ksi_mcp.routing.choosing import choose, take_turn
from ksi_mcp.routing.collecting import Collected, collect, within_limit
from ksi_mcp.routing.governance import keeps_from
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.kept import keep
from ksi_mcp.routing.matching import Match, agent_of, judge, mapping_failed, scope_of
from ksi_mcp.routing.rates import Rate
from ksi_mcp.routing.rules import CompiledRule, Rule
from ksi_mcp.routing.targets import Target

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


def authority(tx: Tx, rule: Rule, event: Event) -> Actor:
    """On whose authority a rule delivers: the lower one of the event's source and the rule's creator.

    Of two agents that is the one below the other. Where neither is, it is the creator: a mapping may say anything,
    and nobody puts words into another's mouth.
    """
    source, creator = actor_of(event.source), actor_of(rule.created_by)
    if source.agent_id is not None and creator.agent_id is not None and source != creator:
        return source if is_below(tx, source.agent_id, creator.agent_id) else creator
    for actor in (source, creator):
        if actor.kind == "agent":
            return actor
    return OPERATOR if OPERATOR in (source, creator) else SYSTEM


def prompt_of(event: Event, data: dict[str, Any], *, sender: str, rule_id: str, joined: bool = False) -> str:
    """What an agent reads when a rule lets it hear an event, or what a join has collected."""
    said, whole = f"Event {event.name} (id {event.event_id}) from {sender}", f"event {event.event_id} has"
    if joined:
        ids = ", ".join(str(event_id) for event_id in event.data["events"])
        said = f"Joined events {ids}, the newest of them {event.name} from {sender}"
        whole = f"events {ids} have"
        if event.data["partial"]:
            said += f" (partial: the time was up, missing {', '.join(event.data['missing'])})"
    text = json.dumps(data, ensure_ascii=False)
    raw = text.encode("utf-8", "replace")
    note = ""
    if len(raw) > MAX_PROMPT_DATA_BYTES:
        text = raw[:MAX_PROMPT_DATA_BYTES].decode("utf-8", "ignore")
        note = f"\n[cut after {MAX_PROMPT_DATA_BYTES:,} of {len(raw):,} bytes; {whole} all of it]"
    return f"{said}, by routing rule {rule_id}.\nData:\n{text}{note}"


class EventDelivery:
    """One event on its way. Reports what it does as events that are not routed themselves."""

    def __init__(
        self, tx: Tx, journal: Recorder, turns: TurnSink, limits: Limits, event: Event, *, joined: bool = False
    ) -> None:
        self._tx = tx
        self._journal = journal
        self._turns = turns
        self._limits = limits
        self._event = event
        self._joined = joined  # the event is what a join has collected
        self._over = False
        self._too_deep = False
        self._tally: Counter[str] | None = None

    def run(self, table: RuleTable) -> int:
        """Deliver to everybody who hears the event, by priority; how many deliveries were made."""
        delivered, first = 0, list[Rule]()

        def is_open(rule: Rule) -> bool:
            return not any(keeps_from(self._tx, each, rule) for each in first)

        for match in judge(table, self._event, now_ms=self._tx.now_ms, name_of=self._name_of):
            if self._over:
                break
            match match.outcome:
                case "collects":
                    delivered += self._collect(match)
                case "fires" if is_open(match.rule):
                    made = self.deliver(match.rule, match.data or {})
                    delivered += made
                    if match.rule.exclusive and made > 0:
                        first.append(match.rule)
                case "condition_failed" | "mapping_failed" if match.rule.join is not None or is_open(match.rule):
                    self._failed(match, match.outcome)
                case _:
                    pass
        return delivered

    # ------------------------------------------------------------------------------ delivering

    def deliver(self, rule: Rule, data: dict[str, Any]) -> int:
        """Deliver by one rule, within its rate, to all of its targets or to the one it chooses; how many were made."""
        self._tally = Counter()
        made = self._deliver(rule, within_limit(data) if self._joined else data)
        tally, self._tally = self._tally, None
        if tally:
            self._count(rule, **tally)
        return made

    def _deliver(self, rule: Rule, data: dict[str, Any]) -> int:
        if not self._joined:  # what a join has heard was counted as it came
            self._count(rule, matches=1)
        if rule.rate is not None and not self._within_rate(rule, rule.rate):
            return 0
        made = 0
        for target in () if self._too_far(rule) else self._chosen(rule, data):
            if self._is_too_deep(rule, target):
                continue
            if not self._within_quota(rule):
                self._over = True
                break
            made += self.deliver_to(rule, target, data)
        return made

    def deliver_to(self, rule: Rule, target: Target, data: dict[str, Any]) -> bool:
        """Deliver to one place; whether it was made. What could not be made is a dead letter."""
        event = self._event
        ctx = event_context(event, self._authority(rule))
        facts: dict[str, Any]
        try:
            if target.kind == "agent":
                agent = self._tx.one("routing.agent", {"agent_id": target.name})
                if agent is None or agent["status"] != "active":
                    life = "does not exist" if agent is None else f"is {agent['status']}"
                    self.undeliverable(f"agent {target.name} {life}", rule=rule, target=target, data=data)
                    return False
                prompt = prompt_of(event, data, sender=self._sender(), rule_id=rule.rule_id, joined=self._joined)
                facts = {"turn": self._turns.deliver_turn(self._tx, ctx, target.name, prompt)}
            else:
                made = self._journal.record(
                    self._tx, target.name, data, replace(ctx, hops=ctx.hops + 1), agent_id=event.agent_id
                )
                facts = {"new_event_id": made.event_id}
        except StoreError:
            raise  # nothing of this event is lost: it waits for the next attempt
        except KsiError as failure:
            self.undeliverable(failure.message, rule=rule, target=target, data=data)
            return False
        self._count(rule, deliveries=1, latency_ms=self._latency_ms)
        self._report("routing:delivered", {"target": str(target), **facts}, rule, about=target)
        return True

    def _authority(self, rule: Rule) -> Actor:
        return authority(self._tx, rule, self._event)

    def _chosen(self, rule: Rule, data: dict[str, Any]) -> tuple[Target, ...]:
        if rule.target.mode == "all":
            return rule.target.each
        target = choose(self._tx, rule)
        if target is None:
            self.undeliverable(f"none of {rule.target} takes messages any more", rule=rule, data=data)
            return ()
        take_turn(self._tx, rule, target)
        return (target,)

    def _within_rate(self, rule: Rule, rate: Rate) -> bool:
        values = {"rule_id": rule.rule_id, "per_ms": rate.per_ms, "now_ms": self._tx.now_ms}
        row = self._tx.one("routing.take_rate", values)
        seen = 1 if row is None else int(row["in_window"])
        if seen <= rate.count:
            return True
        self._count(rule, limited=1)
        if seen == rate.count + 1:  # said once a window
            facts = {"count": rate.count, "per_s": rate.per_s}
            self._report("routing:rate_limited", facts, rule)
        return False

    def _collect(self, match: Match) -> int:
        rule, compiled = match.rule, match.compiled
        assert compiled is not None  # noqa: S101  a match that collects has it
        self._count(rule, matches=1)
        if self._too_far(rule):
            return 0
        try:
            done = collect(self._tx, rule, self._event, parts=match.parts, key=match.key or "")
        except Exhausted as failure:
            self.undeliverable(failure.message, rule=rule)
            return 0
        return 0 if done is None else self.fire(compiled, done)

    def fire(self, compiled: CompiledRule, done: Collected) -> int:
        """Deliver what a join has collected; how many deliveries were made."""
        own = EventDelivery(self._tx, self._journal, self._turns, self._limits, done.event, joined=True)
        collected = done.event.data
        facts = {"key": collected["key"], "events": collected["events"], "partial": done.partial}
        own._report("routing:joined", {**facts, "missing": collected.get("missing")}, compiled.rule)
        if compiled.broken is not None:
            own.undeliverable(compiled.broken, rule=compiled.rule)
            return 0
        try:
            data = compiled.mapping.apply(scope_of(done.event, now_ms=self._tx.now_ms))
        except Invalid as failure:
            own._failed(mapping_failed(compiled.rule, failure), "mapping_failed")
            return 0
        return own.deliver(compiled.rule, data)

    def _count(self, rule: Rule, **counts: int) -> None:
        if self._tally is not None:  # one statement for all that one rule does with the event
            self._tally.update(counts)
            return
        none = {"matches": 0, "deliveries": 0, "failures": 0, "limited": 0, "latency_ms": 0}
        values = {**none, **counts, "slowest_ms": 0}
        if counts.get("deliveries"):
            values["slowest_ms"] = self._latency_ms
        self._tx.run("routing.stat", {**values, "rule_id": rule.rule_id, "minute": self._tx.now_ms // 60_000})

    @property
    def _latency_ms(self) -> int:
        return max(self._tx.now_ms - self._event.at_ms, 0)

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

    def _too_far(self, rule: Rule) -> bool:
        """Whether the event has come as far as it may: then nobody hears it."""
        if self._event.hops + 1 <= self._limits.max_hops:
            return False
        self._stopped(rule, "hops", self._limits.max_hops)
        self._over = True
        return True

    def _is_too_deep(self, rule: Rule, target: Target) -> bool:
        """Whether it may not go to one place, since chains have to be shorter in the run of that; said once."""
        event = self._event
        run, depth = event.orchestration_id, event.depth
        if target.kind == "agent":
            depth += 1
            agent = self._tx.one("routing.agent", {"agent_id": target.name})
            run = run if agent is None else agent["orchestration_id"]
        row = None if run is None else self._tx.one("routing.orchestration", {"orchestration_id": run})
        most = DEFAULT_MAX_DEPTH if row is None else int(row["max_depth"])
        if depth > most and not self._too_deep:
            self._stopped(rule, "depth", most)
            self._too_deep = True
        return depth > most

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

    def undeliverable(
        self,
        reason: str,
        *,
        rule: Rule | None = None,
        target: Target | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Report that a delivery, or with no rule the whole event, came to nothing, and keep it to be tried again."""
        shown = str(target or rule.target) if rule is not None else None
        dead_id = self._bury(reason, rule, target, data)
        facts = {"target": shown, "reason": reason[:MAX_REASON_CHARS], "dead_letter": dead_id}
        self._report("routing:undeliverable", facts, rule, about=target)

    def _failed(self, match: Match, outcome: Literal["condition_failed", "mapping_failed"]) -> None:
        reason = match.reason or ""
        facts: dict[str, Any] = {
            "target": str(match.rule.target),
            "expression": match.expression,
            "missing": match.missing,
            "reason": reason[:MAX_REASON_CHARS],
        }
        if outcome == "mapping_failed":  # somebody was to hear it; a rule that does not match is nobody's letter
            facts["dead_letter"] = self._bury(reason, match.rule, None, None)
        self._report(f"routing:{outcome}", facts, match.rule)

    def _bury(self, reason: str, rule: Rule | None, target: Target | None, data: dict[str, Any] | None) -> int:
        if rule is not None:
            self._count(rule, failures=1)
        event = self._event
        row = self._tx.one(
            "routing.dead",
            {
                "event_id": event.event_id,
                "rule_id": None if rule is None else rule.rule_id,
                "target": None if target is None else str(target),
                "reason": reason[:MAX_REASON_CHARS],
                "data": None if data is None else json.dumps(data, ensure_ascii=False),
                "agent_id": event.agent_id,
                "orchestration_id": event.orchestration_id,
                "now_ms": self._tx.now_ms,
                "kept": keep(event, rule, joined=self._joined),
            },
        )
        assert row is not None  # noqa: S101  RETURNING always has a row
        return int(row["dead_id"])

    def _report(self, name: str, facts: dict[str, Any], rule: Rule | None, *, about: Target | None = None) -> None:
        event = self._event
        data = {"rule_id": None if rule is None else rule.rule_id, "event_id": event.event_id, "event": event.name}
        agent = about.name if about is not None and about.kind == "agent" else event.agent_id
        self._journal.record(
            self._tx, name, {**data, **facts}, event_context(event, SYSTEM), agent_id=agent, routable=False
        )
