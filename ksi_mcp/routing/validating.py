"""Whether a rule would be taken, asked before it is made: all that is wrong with it, and what one should know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, KsiError
from ksi_mcp.events.patterns import compile_pattern
from ksi_mcp.permissions import Context
from ksi_mcp.routing import damping, governance, store
from ksi_mcp.routing.editing import Editor, cycle_of, way_round
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.rules import CompiledRule, Rule, RuleDraft

MAX_NAMED = 10
"""So many other rules are named in one warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be said of a draft. It is valid if there are no errors.

    `conflicts`: rules that stand in its way. `cycle`: the circle that it would close, as events and rules.
    """

    errors: tuple[KsiError, ...] = ()
    warnings: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    cycle: tuple[str, ...] = ()


def validate(tx: Tx, ctx: Context, draft: RuleDraft, *, editor: Editor, table: RuleTable) -> Verdict:
    """Judge a draft by the rules that `Editor.add` goes by. Nothing is written."""
    errors: list[KsiError] = []
    conflicts: list[str] = []

    def noted(check: Callable[[], Rule | None]) -> Rule | None:
        try:
            return check()
        except KsiError as failure:
            if all(failure.message != known.message for known in errors):
                errors.append(failure)
            return None

    noted(lambda: reach.require(tx, ctx, "routing_control", action="routing_add_rule"))
    noted(lambda: editor.check_id(tx, draft.rule_id))
    if draft.rule_id is not None and any(isinstance(failure, Conflict) for failure in errors):
        conflicts.append(draft.rule_id)
    rule = noted(lambda: editor.drafted(tx, ctx, draft))
    if rule is None:
        return Verdict(errors=tuple(errors), conflicts=tuple(conflicts))
    noted(lambda: editor.check(tx, ctx, rule, table))
    links = cycle_of(rule, table, now_ms=tx.now_ms)
    viewer = governance.viewer_of(tx, ctx)
    other = store.exclusive_like(tx, rule) if rule.exclusive and rule.enabled else None
    if other is not None:
        conflicts.append(other.rule_id)
        if links is not None:  # the check ended with the circle
            errors.append(editor.conflict(rule, other))
    return Verdict(
        errors=tuple(errors),
        warnings=tuple(_warnings(tx, rule, table, editor, viewer, given_id=draft.rule_id)),
        conflicts=tuple(conflicts),
        cycle=() if links is None else tuple(way_round(rule, links, table, viewer)),
    )


def _warnings(
    tx: Tx, rule: Rule, table: RuleTable, editor: Editor, viewer: store.Viewer | None, *, given_id: str | None
) -> Iterator[str]:
    if not rule.enabled:
        yield "it is not enabled: it does nothing until it is"
    if rule.source_pattern in ("*", "**") and rule.source_agent is None and rule.condition is None:
        yield f"it hears every event of {rule.scope}, except the server's own"
    for name in rule.target.events:
        if not any(_hears(each, tx.now_ms) for each in table.candidates(name)):
            yield f"no rule hears {name} so far: it is recorded, and wakes nobody"
    ahead = sorted((each.rule for each in _exclusive_before(tx, rule, table)), key=Rule.order)
    if len(ahead) > MAX_NAMED:
        yield f"{len(ahead)} exclusive rules of higher priority may keep events from it; the first of them follow"
    for other in ahead[:MAX_NAMED]:
        if not governance.sees(viewer, other):
            yield "an exclusive rule that you may not see may keep events from it"
            continue
        yield (
            f"rule {other.rule_id!r} ({other.source_pattern}) is exclusive at priority {other.priority}: where it"
            " delivers an event, this one does not"
        )
    if rule.exclusive and rule.enabled:
        after = [
            each.rule.rule_id
            for each in _overlapping(rule, table, tx.now_ms)
            if rule.order() < each.rule.order()
            and governance.sees(viewer, each.rule)
            and governance.keeps_from(tx, rule, each.rule)
        ]
        if after:
            listed = ", ".join(sorted(after)[:MAX_NAMED])
            yield f"it keeps what it delivers from {len(after)} of lower priority: {listed}"
    if given_id is not None:
        row = tx.one("routing.any_one", {"rule_id": given_id})
        thawed_ms = None if row is None else row["frozen_until_ms"]
        coming = [{**store.columns(rule), "since": -1}]
        found = damping.churn(tx, given_id, editor.limits, thawed_ms=thawed_ms, coming=coming)
        if found.too_much(editor.limits):
            yield f"with this it was changed {found.changes} times of late: it is frozen then for a while"


def _exclusive_before(tx: Tx, rule: Rule, table: RuleTable) -> Iterator[CompiledRule]:
    for each in _overlapping(rule, table, tx.now_ms):
        if each.rule.exclusive and each.rule.order() < rule.order() and governance.keeps_from(tx, each.rule, rule):
            yield each


def _overlapping(rule: Rule, table: RuleTable, now_ms: int) -> Iterator[CompiledRule]:
    """Living rules that hear an event which this one hears too; one such event is tried, so some may be missed."""
    pattern = compile_pattern(rule.source_pattern)
    sample = _sample(rule.source_pattern)
    for each in ({**table.index.rules, **table.changed}).values():
        if each is None or each.rule.rule_id == rule.rule_id or not _hears(each, now_ms):
            continue
        if each.pattern.matches(sample) or pattern.matches(_sample(each.rule.source_pattern)):
            yield each


def _sample(pattern: str) -> str:
    """An event's name that a pattern hears."""
    return pattern.replace("**", "x").replace("*", "x")


def _hears(each: CompiledRule, now_ms: int) -> bool:
    return each.rule.enabled and each.broken is None and not each.rule.expired(now_ms)
