"""Changes of the rule table: one at a time, or several as one, checked in the transaction that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ksi_mcp.config import DampingConfig
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, NotFound, Refused
from ksi_mcp.events.journal import Journal
from ksi_mcp.ids import new_id
from ksi_mcp.permissions import SYSTEM, Context, fresh_context
from ksi_mcp.routing import damping, governance, store
from ksi_mcp.routing.changing import MAX_REASON_CHARS, Change, Removal, Update, in_change, named, rule_of_draft, updated
from ksi_mcp.routing.governance import Quotas
from ksi_mcp.routing.index import Link, RuleTable, find_cycle
from ksi_mcp.routing.rules import (
    IsCommand,
    Rule,
    RuleDraft,
    check_not_command,
    compile_rule,
    facts_of,
)
from ksi_mcp.routing.targets import AGENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What several changes made together, in one version of the table."""

    version: int
    rules: tuple[Rule, ...]
    """Those that were added or changed, and are there."""
    deleted: tuple[str, ...]


class Editor:
    """The only way to change rules on somebody's behalf. Every change is audited in its own transaction."""

    def __init__(
        self,
        journal: Journal,
        *,
        table: Callable[[Tx], RuleTable],
        is_command: IsCommand,
        quotas: Quotas,
        limits: DampingConfig,
    ) -> None:
        self._journal = journal
        self._table = table
        self._is_command = is_command
        self.quotas = quotas
        self.limits = limits

    def add(self, tx: Tx, ctx: Context, draft: RuleDraft) -> Rule:
        """See `Router.add_rule`."""
        rule = self.drafted(tx, ctx, draft)
        self.check(tx, ctx, rule, self._table(tx))
        return self._damped(tx, ctx, self._put(tx, ctx, draft, rule, store.next_version(tx)), draft.rule_id)

    def modify(self, tx: Tx, ctx: Context, wanted: Update) -> Rule:
        """See `Router.modify_rule`."""
        was, rule = self._updated(tx, ctx, wanted)
        self.check(tx, ctx, rule, self._table(tx))
        return self._damped(tx, ctx, self._change(tx, ctx, wanted, (was, rule), store.next_version(tx)), rule.rule_id)

    def delete(self, tx: Tx, ctx: Context, wanted: Removal) -> Rule:
        """See `Router.delete_rule`."""
        rule = self._doomed(tx, ctx, wanted)
        self.bury(tx, ctx, rule, wanted.reason)
        return self._damped(tx, ctx, rule, rule.rule_id)

    def apply(self, tx: Tx, ctx: Context, changes: Sequence[Change]) -> Applied:
        """See `Router.apply`."""
        version = store.next_version(tx)
        touched: dict[str, tuple[int, str]] = {}
        for place, change in enumerate(changes):
            what = named(change)
            with in_change(place, what):
                rule_id = self._one_of_several(tx, ctx, change, version)
            touched[rule_id] = (place, what)
        # Only now: two rules may change places, and what closes a circle may be opened by a later change.
        table = self._table(tx)
        standing = {rule_id: rule for rule_id in touched if (rule := store.find(tx, rule_id)) is not None}
        for rule_id, rule in standing.items():
            with in_change(*touched[rule_id]):
                self.check(tx, ctx, rule, table)
        rules = tuple(self._damped(tx, ctx, rule, rule_id) for rule_id, rule in standing.items())
        gone = tuple(rule_id for rule_id in touched if rule_id not in standing)
        for rule_id in gone:
            self._damp(tx, ctx, rule_id)
        return Applied(version=version, rules=rules, deleted=gone)

    def _one_of_several(self, tx: Tx, ctx: Context, change: Change, version: int) -> str:
        match change:
            case RuleDraft():
                return self._put(tx, ctx, change, self.drafted(tx, ctx, change), version).rule_id
            case Update():
                return self._change(tx, ctx, change, self._updated(tx, ctx, change), version).rule_id
            case Removal():
                rule = self._doomed(tx, ctx, change)
                self.bury(tx, ctx, rule, change.reason, version)
                return rule.rule_id

    # ---------------------------------------------------------------------- what is to be there

    def drafted(self, tx: Tx, ctx: Context, draft: RuleDraft) -> Rule:
        """The rule that a draft would make; nothing is written."""
        check_not_command(draft.target, self._is_command)
        settled = governance.settle(tx, ctx, draft)
        self.check_id(tx, draft.rule_id)
        governance.check_quota(tx, ctx, self.quotas)
        return rule_of_draft(
            settled, draft, None, now_ms=tx.now_ms, rule_id=draft.rule_id or new_id("r"), by=str(ctx.actor)
        )

    def check_id(self, tx: Tx, rule_id: str | None) -> None:
        """See that a rule of this id may be added.

        Raises:
            Conflict: there is one.
            Refused: there was one, which was changed too often.
        """
        row = None if rule_id is None else tx.one("routing.any_one", {"rule_id": rule_id})
        if row is None or rule_id is None:
            return
        expired = row["expires_at_ms"] is not None and row["expires_at_ms"] <= tx.now_ms
        if row["deleted_at_ms"] is None and not expired:
            raise Conflict(f"there is a rule {rule_id!r} already", hint="change it with routing_modify_rule")
        damping.check_thawed(tx, rule_id, row["frozen_until_ms"], action="add")

    def _updated(self, tx: Tx, ctx: Context, wanted: Update) -> tuple[Rule, Rule]:
        was = self.living(tx, wanted.rule_id)
        governance.check_reach(tx, ctx, was, action="change")
        damping.check_thawed(tx, was.rule_id, was.frozen_until_ms, action="change")
        draft = updated(was, wanted)
        check_not_command(draft.target, self._is_command)
        settled = governance.settle(tx, ctx, draft)
        by = governance.author(tx, ctx, was)
        if by != was.created_by:
            governance.check_share(tx, ctx, self.quotas)
        rule = rule_of_draft(settled, draft, was, now_ms=tx.now_ms, rule_id=was.rule_id, by=by)
        return was, rule if "ttl_s" in wanted.updates else replace(rule, expires_at_ms=was.expires_at_ms)

    def _doomed(self, tx: Tx, ctx: Context, wanted: Removal) -> Rule:
        rule = self.living(tx, wanted.rule_id)
        governance.check_reach(tx, ctx, rule, action="delete")
        damping.check_thawed(tx, rule.rule_id, rule.frozen_until_ms, action="delete")
        return rule

    def living(self, tx: Tx, rule_id: str) -> Rule:
        """A rule whose time is not over.

        Raises:
            NotFound: there is none of that id.
        """
        rule = store.get(tx, rule_id)
        if rule.expired(tx.now_ms):
            raise NotFound(f"rule {rule_id!r} has expired", hint="add it again with routing_add_rule")
        return rule

    # --------------------------------------------------------------- what must not be in the table

    def check(self, tx: Tx, ctx: Context, rule: Rule, table: RuleTable) -> None:
        """See that a rule fits into the table.

        Raises:
            Refused: it closes a circle of events.
            Conflict: another one is exclusive for the same.
        """
        links = cycle_of(rule, table, now_ms=tx.now_ms)
        if links is not None:
            way = way_round(rule, links, table, governance.viewer_of(tx, ctx))
            raise Refused(
                f"rule {rule.rule_id!r} would feed itself: {' -> '.join(way)}",
                hint="give one of them a rate or a join, or send it to another event or to an agent",
            )
        other = store.exclusive_like(tx, rule) if rule.exclusive and rule.enabled else None
        if other is not None:
            raise self.conflict(rule, other)

    @staticmethod
    def conflict(rule: Rule, other: Rule) -> Conflict:
        """What is wrong with two rules that both want to be the first and only one."""
        return Conflict(
            f"rule {other.rule_id!r} is exclusive for {rule.source_pattern} at priority {rule.priority} already",
            hint="two rules of one pattern, priority and scope cannot both be first; choose another priority",
        )

    # ------------------------------------------------------------------------------- the writing

    def _put(self, tx: Tx, ctx: Context, draft: RuleDraft, rule: Rule, version: int) -> Rule:
        if draft.rule_id is not None and (old := store.find(tx, draft.rule_id)) is not None:
            self.expire(tx, [old], version)  # `check_id` found that its time is over
        rule = replace(rule, version=version, since=version)
        store.put(tx, rule)
        self.audit(tx, ctx, "routing:rule_added", rule, _why(draft.metadata))
        return rule

    def _change(self, tx: Tx, ctx: Context, wanted: Update, was_and_is: tuple[Rule, Rule], version: int) -> Rule:
        was, rule = was_and_is
        rule = replace(rule, version=version, since=version)
        store.change(tx, rule, new_life="ttl_s" in wanted.updates)
        why = _why(rule.metadata) if wanted.reason is not None or "metadata" in wanted.updates else {}
        self.audit(tx, ctx, "routing:rule_modified", rule, {"was": differences(was, rule), **why})
        return rule

    def bury(
        self, tx: Tx, ctx: Context, rule: Rule, reason: str | None, version: int | None = None, **more: Any
    ) -> None:
        """End a rule, whoever wanted that, and whether it is frozen or not."""
        version = store.next_version(tx) if version is None else version
        store.bury(tx, rule.rule_id, version)
        facts = {"reason": None if reason is None else reason[:MAX_REASON_CHARS], **more}
        self.audit(tx, ctx, "routing:rule_deleted", replace(rule, version=version), facts)

    def expire(self, tx: Tx, rules: Sequence[Rule], version: int | None = None) -> None:
        """End rules whose time is over."""
        for rule in rules:
            store.bury(tx, rule.rule_id, store.next_version(tx) if version is None else version)
            self.audit(tx, fresh_context(SYSTEM), "routing:rule_expired", rule, {})

    def audit(self, tx: Tx, ctx: Context, name: str, rule: Rule, more: dict[str, Any]) -> None:
        """Record what became of a rule, where those see it whom it concerns."""
        owner = rule.scope.removeprefix(AGENT) if rule.scope.startswith(AGENT) else None
        facts = {"rule_id": rule.rule_id, "version": rule.version, "rule": facts_of(rule), **more}
        self._journal.record(tx, name, facts, ctx, agent_id=owner, orchestration_id=rule.orchestration_id)

    def report(self, tx: Tx, ctx: Context, name: str, facts: dict[str, Any]) -> None:
        """Record what became of the table as a whole."""
        self._journal.record(tx, name, facts, ctx)

    # ------------------------------------------------------------------------------------ damping

    def _damped(self, tx: Tx, ctx: Context, rule: Rule, rule_id: str | None) -> Rule:
        """The rule after a change, frozen if that was one too many; a new id has no past to look at."""
        until_ms = None if rule_id is None else self._damp(tx, ctx, rule_id, rule)
        return rule if until_ms is None else replace(rule, frozen_until_ms=until_ms)

    def _damp(self, tx: Tx, ctx: Context, rule_id: str, rule: Rule | None = None) -> int | None:
        row = tx.one("routing.any_one", {"rule_id": rule_id})
        found = damping.churn(tx, rule_id, self.limits, thawed_ms=None if row is None else row["frozen_until_ms"])
        if not found.too_much(self.limits):
            return None
        facts = damping.freeze(tx, rule_id, found, self.limits)
        owner = None if rule is None or not rule.scope.startswith(AGENT) else rule.scope.removeprefix(AGENT)
        run = None if rule is None else rule.orchestration_id
        self._journal.record(tx, "routing:damped", facts, ctx, agent_id=owner, orchestration_id=run)
        return int(facts["frozen_until_ms"])


def cycle_of(rule: Rule, table: RuleTable, *, now_ms: int) -> tuple[Link, ...] | None:
    """The way by which a rule would feed itself, if there is one."""
    if not rule.target.events or not rule.enabled:
        return None
    return find_cycle(table, compile_rule(rule), now_ms=now_ms)


def way_round(rule: Rule, links: Sequence[Link], table: RuleTable, viewer: store.Viewer | None) -> list[str]:
    """A circle as one reads it: events, and the rules that lead from one to the next, as far as one may see them."""

    def step(link: Link) -> str:
        other = table.get(link.rule_id)
        if link.rule_id == rule.rule_id or other is None or governance.sees(viewer, other.rule):
            return f"{link.name} [{link.rule_id}]"
        return "? [a rule that you may not see]"

    return [rule.source_pattern, *map(step, links), rule.source_pattern]


def differences(was: Rule, rule: Rule) -> dict[str, Any]:
    """What of a rule is not any more as it was, as it was."""
    before, after = facts_of(was), facts_of(rule)
    return {key: before.get(key) for key in {**before, **after} if before.get(key) != after.get(key)}


def _why(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The reason that was given with a change."""
    reason = metadata.get("reason")
    return {"reason": reason[:MAX_REASON_CHARS]} if isinstance(reason, str) else {}
