"""Dead letters: deliveries that could not be made, to be looked at and tried again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from ksi_mcp.agents import reach
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Conflict, Invalid, NotFound, Refused
from ksi_mcp.events.journal import Recorder
from ksi_mcp.events.model import Event
from ksi_mcp.events.patterns import shorten
from ksi_mcp.permissions import Actor, Context
from ksi_mcp.routing import governance
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.kept import Kept, kept_of
from ksi_mcp.routing.matching import Match, judge, scope_of
from ksi_mcp.routing.outbox import MAX_REASON_CHARS, EventDelivery, Limits, TurnSink, authority
from ksi_mcp.routing.rules import CompiledRule, Rule
from ksi_mcp.routing.targets import Target, Targets

_MAX_CURSOR_DIGITS = 18

Outcome = Literal["delivered", "collected", "routed", "failed", "would_deliver", "would_collect", "would_fail"]
"""What became, or would become, of a letter that is tried again.

`collected`: a join keeps it until it is complete. `routed`: a whole event went through the table, whoever heard it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which letters; None does not restrict. `agent_id`: about it, from it or to it."""

    rule_id: str | None = None
    agent_id: str | None = None
    orchestration_id: str | None = None
    redriven: bool | None = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A delivery that could not be made. `target` is None where it never came so far; `data` was to be delivered."""

    dead_id: int
    rule_id: str | None
    target: str | None
    reason: str
    data: dict[str, Any] | None
    agent_id: str | None
    orchestration_id: str | None
    at_ms: int
    redriven_at_ms: int | None
    redriven_by: str | None
    kept: Kept

    @property
    def event(self) -> Event:
        """The event as it was heard."""
        return self.kept.event


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterPage:
    """Newest first. `cursor` asks for the rest; None when there is none."""

    letters: tuple[Letter, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redriven:
    """What became of one letter, or would. `data` is what is delivered, or would be."""

    letter: Letter
    outcome: Outcome
    delivered: int = 0
    target: str | None = None
    data: dict[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How a letter is delivered; `rule` None: the event is put through the whole table."""

    rule: Rule | None
    data: dict[str, Any] | None = None
    collects: Match | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    reason: str
    rule: Rule | None
    target: Target | None
    data: dict[str, Any] | None


class _Redelivery(EventDelivery):
    """Tries again. What fails is told before it becomes a letter; what a rule did is counted once, the first time."""

    def __init__(
        self, tx: Tx, journal: Recorder, turns: TurnSink, limits: Limits, event: Event, *, joined: bool, by: Actor
    ) -> None:
        super().__init__(tx, journal, turns, limits, event, joined=joined)
        self._by = by
        self.failures: list[_Failure] = []

    def carry_out(self, plan: _Plan, table: RuleTable) -> int:
        """How many deliveries were made."""
        if plan.rule is None:
            return self.run(table)
        if plan.collects is not None:
            return self._collect(plan.collects)
        return self.deliver(plan.rule, plan.data or {})

    def why_not(self, rule: Rule | None) -> str:
        """Why nothing was delivered."""
        if self.failures:
            return "; ".join(dict.fromkeys(failure.reason for failure in self.failures))[:MAX_REASON_CHARS]
        if self._over or self._too_deep:
            return "its chain of causes is as long, or as broad, as it may get (see routing:loop_stopped)"
        if rule is not None and rule.rate is not None:
            return f"it is beyond the rate of rule {rule.rule_id!r}: {rule.rate.count} in {rule.rate.per_s:g} s"
        return "nobody was left to deliver to"

    def bury_failures(self) -> None:
        """Make letters of their own of those that failed beside others that were delivered."""
        for each in self.failures:
            super().undeliverable(each.reason, rule=each.rule, target=each.target, data=each.data)

    def undeliverable(
        self,
        reason: str,
        *,
        rule: Rule | None = None,
        target: Target | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Remember it; whoever redrives decides."""
        self.failures.append(_Failure(reason=reason, rule=rule, target=target, data=data))

    def report(self, name: str, facts: dict[str, Any], rule: Rule | None) -> None:
        """Write an event about the redrive."""
        self._report(name, facts, rule)

    def _authority(self, rule: Rule) -> Actor:
        lower = authority(self._tx, rule, self._event)
        by = self._by.agent_id
        if by is None or (lower.agent_id is not None and not reach.is_below(self._tx, by, lower.agent_id)):
            return lower
        return self._by

    def _count(self, rule: Rule, **counts: int) -> None:
        pass


class Letters:
    """The list of dead letters.

    Contract of `redrive`: in its transaction a letter is delivered and marked, or neither; so a letter that several
    try at once is delivered once. It goes by its rule as that is now, or, where the rule is gone, to where it was to
    go with what it was to say; on the lowest authority of the rule's creator, the event's source and whoever tries.
    """

    def __init__(self, journal: Recorder, turns: TurnSink, limits: Limits, *, table: Callable[[Tx], RuleTable]) -> None:
        self._journal = journal
        self._turns = turns
        self._limits = limits
        self._table = table

    def page(self, tx: Tx, ctx: Context, wanted: LetterFilter, *, limit: int, cursor: str | None = None) -> LetterPage:
        """The letters that the actor may see.

        Raises:
            Invalid: the cursor is none of ours.
        """
        values = {
            **_values(tx, ctx, wanted),
            "open": None if wanted.redriven is None else int(not wanted.redriven),
            "before": None if cursor is None else _place(cursor),
            "limit": limit + 1,
        }
        rows = tx.all("routing.letters", values)
        letters = tuple(_letter_of(row) for row in rows[:limit])
        return LetterPage(letters=letters, cursor=str(letters[-1].dead_id) if len(rows) > limit else None)

    def waiting(
        self, tx: Tx, ctx: Context, wanted: LetterFilter, *, limit: int, cursor: str | None = None
    ) -> tuple[list[int], str | None]:
        """The ids of letters still to be tried, oldest first, and where the next ones begin."""
        values = {**_values(tx, ctx, wanted), "after": 0 if cursor is None else _place(cursor), "limit": limit + 1}
        ids = [int(row["dead_id"]) for row in tx.all("routing.open_letters", values)]
        return ids[:limit], str(ids[limit - 1]) if len(ids) > limit else None

    def check(self, tx: Tx, ctx: Context, dead_id: int) -> Letter:
        """A letter that the actor may try again.

        Raises:
            NotFound: there is none of that id, or none that the actor may see.
            Refused: its rule is beyond the actor's reach.
            Conflict: it was delivered before.
        """
        row = tx.one("routing.letter", {"dead_id": dead_id})
        letter = None if row is None else _letter_of(row)
        if letter is None or not _sees(tx, ctx, letter):
            raise NotFound(f"there is no dead letter {dead_id}", hint="routing_dead_letters lists them")
        rule = self._living(tx, letter)
        if ctx.actor.kind == "agent":
            described = letter.kept.rule if rule is None else rule.rule
            if described is None:
                raise Refused(
                    f"{ctx.actor} may not redrive dead letter {dead_id}: it is of the whole table, not of one rule",
                    hint="ask the operator",
                )
            governance.check_reach(tx, ctx, described, action="redrive a dead letter of")
        if letter.redriven_at_ms is not None:
            raise Conflict(
                f"dead letter {dead_id} was redriven before, by {letter.redriven_by}",
                hint="routing_dead_letters shows those that are open",
            )
        return letter

    def redrive(self, tx: Tx, ctx: Context, dead_id: int, *, dry_run: bool = False) -> Redriven:
        """Try a delivery again. What cannot be made stays open, and says why.

        Raises:
            NotFound, Refused, Conflict: as `check`; then nothing was done.
        """
        letter = self.check(tx, ctx, dead_id)
        plan = self._plan(tx, letter)
        if isinstance(plan, str):
            if dry_run:
                return Redriven(letter=letter, outcome="would_fail", reason=plan)
            return self._failed(tx, ctx, letter, self._delivery(tx, ctx, letter), plan)
        target = None if plan.rule is None else str(plan.rule.target)
        if dry_run:
            would: Outcome = "would_collect" if plan.collects else "would_deliver"
            return Redriven(letter=letter, outcome=would, target=target, data=plan.data)
        delivery = self._delivery(tx, ctx, letter)
        made = delivery.carry_out(plan, self._table(tx))
        if made == 0 and plan.rule is not None and plan.collects is None:
            return self._failed(tx, ctx, letter, delivery, delivery.why_not(plan.rule))
        delivery.bury_failures()
        tx.run("routing.letter_redriven", {"dead_id": dead_id, "by": str(ctx.actor), "now_ms": tx.now_ms})
        facts = {"dead_letter": dead_id, "target": target, "delivered": made, "by": str(ctx.actor)}
        delivery.report("routing:redriven", facts, plan.rule)
        outcome: Outcome = "routed" if plan.rule is None else "delivered"
        if plan.collects is not None and made == 0:
            outcome = "collected"
        again = len(delivery.failures)
        reason = f"{again} of its deliveries failed, and are dead letters of their own" if again else None
        return Redriven(letter=letter, outcome=outcome, delivered=made, target=target, data=plan.data, reason=reason)

    # --------------------------------------------------------------------------------- private

    def _delivery(self, tx: Tx, ctx: Context, letter: Letter) -> _Redelivery:
        kept = letter.kept
        return _Redelivery(tx, self._journal, self._turns, self._limits, kept.event, joined=kept.joined, by=ctx.actor)

    def _failed(self, tx: Tx, ctx: Context, letter: Letter, delivery: _Redelivery, reason: str) -> Redriven:
        tx.run("routing.letter_failed_again", {"dead_id": letter.dead_id, "reason": reason[:MAX_REASON_CHARS]})
        facts = {
            "target": letter.target,
            "reason": reason[:MAX_REASON_CHARS],
            "dead_letter": letter.dead_id,
            "by": str(ctx.actor),
        }
        rule = self._living(tx, letter)
        delivery.report("routing:undeliverable", facts, letter.kept.rule if rule is None else rule.rule)
        return Redriven(letter=letter, outcome="failed", reason=reason)

    def _living(self, tx: Tx, letter: Letter) -> CompiledRule | None:
        compiled = None if letter.rule_id is None else self._table(tx).get(letter.rule_id)
        if compiled is None or compiled.rule.expired(tx.now_ms):
            return None
        was = letter.kept.rule  # another rule that has taken its id is not it, and must not have its letters
        return compiled if was is not None and was.created_at_ms == compiled.rule.created_at_ms else None

    def _plan(self, tx: Tx, letter: Letter) -> _Plan | str:
        """How it would be delivered now, or why not."""
        if letter.rule_id is None:
            return _Plan(rule=None)
        compiled = self._living(tx, letter)
        if compiled is not None:
            return self._by_rule(tx, letter, compiled)
        rule = letter.kept.rule
        if letter.data is None or rule is None:
            return f"rule {letter.rule_id!r} is gone, and what it would have delivered was never made"
        return self._narrowed(tx, letter, rule, letter.data)

    def _by_rule(self, tx: Tx, letter: Letter, compiled: CompiledRule) -> _Plan | str:
        rule, event = compiled.rule, letter.event
        if letter.kept.joined:  # it has been collected, and is not to be collected again
            if not rule.enabled:
                return f"rule {rule.rule_id!r} is disabled"
            try:
                return self._narrowed(tx, letter, rule, compiled.mapping.apply(scope_of(event, now_ms=tx.now_ms)))
            except Invalid as failure:
                return failure.message
        alone = RuleTable().with_changes(1, {rule.rule_id: compiled})
        match = next(judge(alone, event, now_ms=tx.now_ms, name_of=lambda agent_id: _name_of(tx, agent_id)), None)
        if match is None:
            return f"rule {rule.rule_id!r} does not hear {event.name} any more"
        if match.outcome == "collects":
            return _Plan(rule=rule, collects=match)
        if match.outcome != "fires":
            return match.reason or match.outcome
        return self._narrowed(tx, letter, rule, match.data or {})

    def _narrowed(self, tx: Tx, letter: Letter, rule: Rule, data: dict[str, Any]) -> _Plan | str:
        """To the place that has not had it: the one of the letter, or those that stand in its place now."""
        if letter.target is None or rule.target.mode != "all":
            return _Plan(rule=rule, data=data)
        left = [target for target in rule.target if str(target) == letter.target]
        if not left:
            event = letter.event
            values = {"root_id": event.root_id, "cause_id": f"event:{event.event_id}", "rule_id": rule.rule_id}
            served = {row["target"] for row in tx.all("routing.served", values)}
            left = [target for target in rule.target if str(target) not in served]
        if not left:
            return (
                f"rule {rule.rule_id!r} does not go to {letter.target} any more, and all of its targets had the event"
            )
        return _Plan(rule=replace(rule, target=Targets(mode="all", each=tuple(left))), data=data)


def _letter_of(row: Row) -> Letter:
    return Letter(
        dead_id=row["dead_id"],
        rule_id=row["rule_id"],
        target=row["target"],
        reason=row["reason"],
        data=None if row["data"] is None else json.loads(row["data"]),
        agent_id=row["agent_id"],
        orchestration_id=row["orchestration_id"],
        at_ms=row["at_ms"],
        redriven_at_ms=row["redriven_at_ms"],
        redriven_by=row["redriven_by"],
        kept=kept_of(row["kept"], row["rule_id"]),
    )


def _scopes(tx: Tx, ctx: Context) -> frozenset[str] | None:
    """The agents and runs whose letters the actor may see; None: all. Who may route everybody sees everybody here."""
    return None if reach.routable(tx, ctx) is None else reach.visible_scopes(tx, ctx)


def _sees(tx: Tx, ctx: Context, letter: Letter) -> bool:
    seen = _scopes(tx, ctx)
    run = None if letter.kept.rule is None else letter.kept.rule.orchestration_id
    about = {letter.agent_id, letter.orchestration_id, run, (letter.target or "").removeprefix("agent:")}
    return seen is None or bool(about & seen)


def _values(tx: Tx, ctx: Context, wanted: LetterFilter) -> dict[str, Any]:
    seen = _scopes(tx, ctx)
    return {
        "rule_id": wanted.rule_id,
        "agent_id": wanted.agent_id,
        "run": wanted.orchestration_id,
        "seen": None if seen is None else json.dumps(sorted(seen)),
    }


def _place(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= _MAX_CURSOR_DIGITS):
        raise Invalid(f"cursor {shorten(cursor)} is not one of ours", hint="pass the `cursor` of the last page")
    return int(cursor)


def _name_of(tx: Tx, agent_id: str) -> str | None:
    row = tx.one("routing.agent", {"agent_id": agent_id})
    return None if row is None else row["name"]
