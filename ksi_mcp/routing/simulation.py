"""Judges recorded events again and follows what would have come of it. The code that delivers is the router's own.

What a rule decides by more than the event at hand (its rate, whose turn it is, what its join has collected) is
taken from the log as long as the rule is as it was then and all that it heard happens again; from the first
difference on it is worked out. Joins whose time is up fire by the recorded times; an answer of a script comes at
once, and what only the replay makes is followed where it would have stood among the recorded events.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.events.model import Event, encode_data
from ksi_mcp.permissions import Context, within
from ksi_mcp.routing.collecting import Collected, due, time_up
from ksi_mcp.routing.comparing import Comparison, Outcome
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.matching import Match, judge, scope_of
from ksi_mcp.routing.outbox import Limits
from ksi_mcp.routing.rates import Rate
from ksi_mcp.routing.recording import UNROUTED, Attempt, Key, Recording
from ksi_mcp.routing.rehearsing import Answers, RehearsedDelivery, event_made
from ksi_mcp.routing.rules import CompiledRule, Rule
from ksi_mcp.routing.scratch import ScratchTx
from ksi_mcp.routing.targets import AGENT, Target

MAX_FOLLOWED: Final = 10_000
"""Events and turns that only a replay makes."""
MAX_TRIED: Final = 100_000
"""Deliveries of one replay."""
_TURN_ENDS: Final = frozenset({"completion:result", "completion:failed", "completion:cancelled"})
_FAILURES: Final = frozenset({"routing:undeliverable", "routing:mapping_failed", "routing:condition_failed"})
_HEARD: Final = frozenset({"fires", "collects", "mapping_failed", "condition_failed"})
_UNKNOWN: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The table to judge by. `since`: when each rule became as it is (ms); a rule that is not there never was.

    Deliveries of `hidden` rules are neither compared nor followed. Without `answers` simulated turns stay open.
    """

    table: RuleTable
    since: Mapping[str, int]
    hidden: frozenset[str] = frozenset()
    answers: Answers | None = None
    limits: Limits = field(default_factory=Limits)


class _TooMuch(Exception):
    """The replay has grown as large as it may get."""


@dataclass(slots=True, kw_only=True)
class _Now:
    """The delivery at hand."""

    event: Event
    rule: Rule
    target: Target | None = None
    payload: Any = None
    ref: str | None = None
    new: bool = False

    @property
    def key(self) -> Key:
        return int(self.event.event_id), self.rule.rule_id, str(self.target or self.rule.target)


class Simulation:
    """One replay. Deterministic: it knows no clock, no chance, and no order but that of the log and of the rules."""

    def __init__(self, tx: Tx, recording: Recording, settings: Settings) -> None:
        self._recording = recording
        self._settings = settings
        self._table = settings.table
        self._tx = ScratchTx(tx, recording)
        self._found = Comparison(recording, settings.hidden)
        self._names = {int(event.event_id): event.name for event in recording.events}
        self._disturbed: set[str] = set()
        """Rules that have heard, or done, something else than the log shows."""
        self._quiet = True
        """Everybody who did something with the event at hand still stands as he did."""
        self._later: list[tuple[int, Key]] = []
        """Deliveries of joins: the log shows them later than their newest event."""
        self._follow: list[tuple[int, int, Callable[[], None]]] = []
        """What comes of new deliveries, by the recorded event after which it would have come."""
        self._place = 0  # after which recorded event that is for the delivery at hand
        self._made = 0
        self._said: dict[tuple[int, str], str] = {}
        self._now: _Now | None = None

    def run(self) -> Outcome:
        """Go through the recording."""
        missing = list(self._recording.missing)
        begun: set[str] = set()
        for each in self._found.attempts.values():  # round robin begins with whom the log shows to be the first
            if each.made and each.key[1] not in begun and (compiled := self._table.get(each.key[1])) is not None:
                begun.add(each.key[1])
                self._next_is(compiled.rule, each.key[2])
        try:
            for event in self._recording.events:
                self._follow_up(int(event.event_id))
                self._time_passes(event.at_ms)
                self._settle_until(int(event.event_id))
                self._recorded(event)
            self._follow_up(None)
            self._settle_until(None)
        except _TooMuch as reached:
            missing.append(str(reached))
        if waiting := self._found.counts["not_delivered_yet"]:
            missing.append(f"{waiting:,} events still wait for the router: they were left out")
        self._tx.now_ms = 2**62
        open_joins = [rule_id for rule_id, _ in due(self._tx, limit=MAX_TRIED) if rule_id in self._disturbed]
        self._found.counts["joins_waiting"] = len(open_joins)
        return self._found.outcome(missing)

    def _recorded(self, event: Event) -> None:
        turn = event.data.get("turn")
        ref = f"turn:{turn}" if isinstance(turn, str) and event.name.startswith("completion:") else None
        queued = event.name == "completion:queued"
        gone = next((one for one in (f"event:{event.event_id}", event.cause_id, ref) if one in self._found.gone), None)
        if gone is not None:
            self._found.cut_off(event, gone, [f"event:{event.event_id}", *([ref] if ref and queued else [])])
            if event.name not in UNROUTED:  # who heard it has not heard it now
                self._disturbed.update(each.rule.rule_id for each in self._table.candidates(event.name))
        elif queued and ref is not None and event.agent_id is not None:
            self._tx.loads.add(event.agent_id, ref)
        elif event.name in UNROUTED:
            return
        elif int(event.event_id) in self._recording.waiting:
            self._found.counts["not_delivered_yet"] += 1
        else:
            self._judge(event)
        if ref is not None and (gone is not None or event.name in _TURN_ENDS):
            self._tx.loads.done(ref)

    def _later_on(self, action: Callable[[], None]) -> None:
        heapq.heappush(self._follow, (self._place, self._made, action))

    def _follow_up(self, event_id: int | None) -> None:
        """Do what would have come before a recorded event."""
        while self._follow and (event_id is None or self._follow[0][0] < event_id):
            self._place, _, action = heapq.heappop(self._follow)
            action()

    # -------------------------------------------------------------------------------- one event

    def _judge(self, event: Event) -> None:
        self._found.counts["events"] += 1
        self._tx.now_ms = event.at_ms
        judged = judge(self._table, event, now_ms=event.at_ms, name_of=self._tx.name_of)
        matches: dict[str, Match] = {match.rule.rule_id: match for match in judged}
        for rule_id, match in matches.items():
            if match.outcome in ("fires", "collects") and not self._as_it_was(match.rule, event):
                self._disturbed.add(rule_id)
        done = self._found.of_event.get(int(event.event_id), [])
        if int(event.event_id) > 0:
            firsts = [each.first_id - 1 for each in done if not self._is_join(each.key[1])]
            self._place = min(firsts, default=int(event.event_id))
        self._quiet = all(self._stands(matches.get(each.key[1]), event) for each in done)
        RehearsedDelivery(self, self._tx, self._settings.limits, event).run(self._table)
        for rule_id in dict.fromkeys(each.key[1] for each in done):
            compiled, own = self._table.get(rule_id), self._found.recorded(event, rule_id)
            if compiled is None or not self._is_join(rule_id):
                self._settle(own, event.name, matches.get(rule_id))
                continue
            if (int(event.event_id), rule_id) not in self._found.tried and self._undisturbed(compiled.rule, event):
                self._complete(compiled.rule, own, matches.get(rule_id))
            for each in own:
                heapq.heappush(self._later, (each.first_id, each.key))

    def _is_join(self, rule_id: str) -> bool:
        compiled = self._table.get(rule_id)
        return compiled is not None and compiled.rule.join is not None

    def _stands(self, match: Match | None, event: Event) -> bool:
        return match is not None and match.outcome in _HEARD and self._as_it_was(match.rule, event)

    def _as_it_was(self, rule: Rule, event: Event) -> bool:
        since = self._settings.since.get(rule.rule_id)
        return int(event.event_id) > 0 and since is not None and since <= event.at_ms

    def _undisturbed(self, rule: Rule, event: Event) -> bool:
        return rule.rule_id not in self._disturbed and self._as_it_was(rule, event)

    def _complete(self, rule: Rule, done: list[Attempt], match: Match | None) -> None:
        """The log shows that a join was complete, with what had arrived before the range, or by its time limit."""
        if match is None or match.outcome != "collects":
            return
        own = {"rule_id": rule.rule_id, "key": match.key or ""}
        self._tx.all("routing.join_take", own)
        if not self._tx.all("routing.join_waiting", own):
            self._tx.run("routing.join_forget", own)
        for each in done:
            self._found.kept(each.key)

    def _time_passes(self, until_ms: int) -> None:
        """Fire the joins whose time is up by then; of those that are as they were the log shows what became."""
        self._tx.now_ms, self._place = until_ms, 0
        for rule_id, key in due(self._tx, limit=MAX_TRIED):
            compiled = self._table.get(rule_id)
            if compiled is None or rule_id not in self._disturbed:
                continue
            done = time_up(self._tx, compiled.rule, key)
            if done is not None:
                self.fire(compiled, done)
        self._follow_up(1)

    def fire(self, compiled: CompiledRule, done: Collected) -> int:
        """Deliver what a join has collected; how many deliveries were made."""
        try:
            data = compiled.mapping.apply(scope_of(done.event, now_ms=self._tx.now_ms))
        except Invalid as failure:
            self._found.failed(_Now(event=done.event, rule=compiled.rule).key, done.event.name, failure.message)
            return 0
        own = RehearsedDelivery(self, self._tx, self._settings.limits, done.event, joined=True)
        return own.deliver(compiled.rule, data)

    # ------------------------------------------------------------------------------ one delivery

    def begin(self, rule: Rule, event: Event) -> None:
        """Let a rule decide as the log shows that it did, if it is the same rule in the same place."""
        self._tx.chosen = None
        self._said[int(event.event_id), rule.rule_id] = (
            "it chose nobody" if rule.rate is None else "it is beyond its rate"
        )
        if rule.rule_id in self._settings.hidden or not self._undisturbed(rule, event):
            self._disturbed.add(rule.rule_id)
            return
        done = self._found.recorded(event, rule.rule_id)
        if not done and rule.rate is None:
            self._disturbed.add(rule.rule_id)
        for each in done:
            if each.made and rule.target.mode != "all":
                self._tx.chosen = each.key[2].removeprefix(AGENT) if each.key[2].startswith(AGENT) else None
                self._next_is(rule, each.key[2])
        if rule.rate is not None and (done or self._quiet):
            self._set_window(rule, rule.rate, full=not done)

    def _next_is(self, rule: Rule, target: str) -> None:
        place = next((place for place, each in enumerate(rule.target) if str(each) == target), None)
        if place is not None and rule.target.mode == "round_robin":
            self._tx.run("routing.take_turn", {"rule_id": rule.rule_id, "turn": place})

    def _set_window(self, rule: Rule, rate: Rate, *, full: bool) -> None:
        row = self._tx.one("routing.state", {"rule_id": rule.rule_id})
        over = row is None or self._tx.now_ms >= row["window_ms"] + rate.per_ms
        used = 0 if row is None or over else int(row["in_window"])
        if full != (used >= rate.count):
            window = {"window_ms": self._tx.now_ms, "in_window": rate.count if full else 0}
            self._tx.run("routing.replay_window", {**window, "rule_id": rule.rule_id})

    def attempt(self, rule: Rule, target: Target, event: Event) -> str | None:
        """A delivery begins; the reason for which it fails, if the log shows that it failed."""
        if self._found.tries >= MAX_TRIED:
            raise _TooMuch(f"more than {MAX_TRIED:,} deliveries would be made: take a shorter range")
        self._now = _Now(event=event, rule=rule, target=target)
        known = self._found.attempts.get(self._now.key)
        self._tx.proven = str(target) if known is not None and known.made else None
        if known is None or known.made or not known.tried:
            return None
        # Another payload may be taken where the old one was not; an agent that was not there does not come back.
        again = target.kind == "agent" or self._as_it_was(rule, event)
        return (known.reason or "it failed when it was recorded") if again else None

    def end(self) -> None:
        """The delivery at hand was made."""
        now = self._now
        if now is None or now.rule.rule_id in self._settings.hidden:
            return
        if not now.new:
            self._place = self._found.attempts[now.key].first_id
            self._found.kept(now.key)
        elif self._found.made(now.key, now.event, ref=now.ref or "", payload=now.payload):
            self._disturbed.add(now.rule.rule_id)

    def turn(self, ctx: Context, agent_id: str, prompt: str) -> str:
        """A turn for an agent; its id."""
        ref = self._carried(prompt, lambda number: f"turn:new-{number}")
        self._tx.loads.add(agent_id, ref)
        if self._is_new():
            self._found.counts["followed_turns"] += 1
            self._later_on(lambda: self._answer(ctx, agent_id, prompt, ref))
        return ref.removeprefix("turn:")

    def emitted(self, name: str, data: dict[str, Any], ctx: Context, agent_id: str | None) -> int:
        """A new event; its id.

        Raises:
            Invalid: it cannot be one.
        """
        encode_data(name, data)
        event_id = int(self._carried(data, lambda number: f"event:-{number}").removeprefix("event:"))
        if self._is_new():
            event = event_made(event_id, name, data, ctx, agent_id=agent_id, at_ms=self._tx.now_ms)
            self._found.counts["followed_events"] += 1
            self._later_on(lambda: self._judge(event))
        return event_id

    def _is_new(self) -> bool:
        return self._now is not None and self._now.new and self._now.rule.rule_id not in self._settings.hidden

    def _carried(self, payload: Any, new: Callable[[int], str]) -> str:
        """What the delivery at hand makes: what the log shows that it made, or something new."""
        now = self._now
        assert now is not None  # noqa: S101  it was begun
        now.payload = payload
        known = self._found.standing(now.key)
        if known is not None and known.ref is not None and self._same(now, known.ref):
            now.ref = known.ref
            return known.ref
        if known is not None and known.ref is not None:
            self._tx.loads.done(known.ref)
        now.new, now.ref = True, new(self._next())
        return now.ref

    def _same(self, now: _Now, ref: str) -> bool:
        """Whether it carries what it carried: the same rule says the same of the same event."""
        if self._as_it_was(now.rule, now.event) and (now.rule.join is None or now.rule.rule_id not in self._disturbed):
            return True
        return bool(self._recording.payloads.get(ref, _UNKNOWN) == now.payload)

    def _next(self) -> int:
        self._made += 1
        if self._made > MAX_FOLLOWED:
            raise _TooMuch(f"more than {MAX_FOLLOWED:,} new events and turns would come of it: take a shorter range")
        return self._made

    def _answer(self, ctx: Context, agent_id: str, prompt: str, ref: str) -> None:
        agent = self._tx.agent(agent_id)
        if self._settings.answers is None or agent is None:
            self._found.counts["unanswered_turns"] += 1
            return
        reply = self._settings.answers(agent_id, prompt)
        self._tx.loads.done(ref)
        self._found.counts["tools_not_run"] += reply.not_run
        self._found.counts["followed_events"] += 1
        turn = {"turn": ref.removeprefix("turn:"), "agent": agent_id, "agent_name": agent.name}
        run = within(ctx, agent.orchestration_id)
        because = replace(run, hops=0, depth=ctx.depth + 1, cause_id=ref)
        event = event_made(-self._next(), reply.name, {**turn, **reply.data}, because, agent_id, at_ms=self._tx.now_ms)
        self._judge(replace(event, source="system"))

    def report(self, name: str, data: Mapping[str, Any]) -> None:
        """What the router says of a delivery."""
        event_id, rule_id = int(data["event_id"]), str(data["rule_id"])
        if name in _FAILURES:
            self._found.failed((event_id, rule_id, str(data["target"])), str(data["event"]), data["reason"])
            self._said[event_id, rule_id] = str(data["reason"])
        elif name == "routing:loop_stopped":
            self._said[event_id, rule_id] = f"the chain is stopped: {data['reason']}, the limit is {data['limit']:,}"

    # ------------------------------------------------------------------------- what is not made

    def _settle_until(self, event_id: int | None) -> None:
        while self._later and (event_id is None or self._later[0][0] <= event_id):
            _, key = heapq.heappop(self._later)
            self._settle([self._found.attempts[key]], self._names[key[0]], None)

    def _settle(self, done: list[Attempt], event: str, match: Match | None) -> None:
        """Recorded deliveries whose time has come: what was not made again by now is gone."""
        for each in done:
            if self._found.standing(each.key) is not None:
                self._disturbed.add(each.key[1])
                self._found.removed(each, event, self._why_not(each, match))
                if each.ref is not None:
                    self._tx.loads.done(each.ref)

    def _why_not(self, each: Attempt, match: Match | None) -> str:
        event_id, rule_id, target = each.key
        compiled = self._table.get(rule_id)
        if compiled is None:
            return "the rule is not in this table"
        rule = compiled.rule
        if rule.join is not None:
            return "its join is not complete with this event, or not yet"
        if match is None:
            return "its pattern does not hear the event"
        if match.outcome != "fires":
            return match.reason or match.outcome
        if all(str(one) != target for one in rule.target):
            return f"it goes to {rule.target}"
        if rule.target.mode != "all" and (others := self._found.tried.get((event_id, rule_id))):
            return f"it chose {others[0]}"
        return self._said.get(
            (event_id, rule_id), "an exclusive rule of higher priority delivered, or the chain is stopped"
        )
