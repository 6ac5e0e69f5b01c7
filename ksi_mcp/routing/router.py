"""Who hears what? `Router`: the table's only door; `Pump` delivers by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, KsiError, NotFound, Refused
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event
from ksi_mcp.events.patterns import check_event_name, shorten
from ksi_mcp.ids import EventId, RuleId, new_id
from ksi_mcp.permissions import SYSTEM, Context, fresh_context
from ksi_mcp.routing import governance, store
from ksi_mcp.routing.governance import Quotas
from ksi_mcp.routing.index import RuleTable, find_cycle
from ksi_mcp.routing.listeners import React
from ksi_mcp.routing.matching import Match, judge
from ksi_mcp.routing.outbox import Limits, TurnSink
from ksi_mcp.routing.pump import Pump
from ksi_mcp.routing.rules import (
    AGENT,
    UPDATE_FIELDS,
    IsCommand,
    Rule,
    RuleDraft,
    check_not_command,
    compile_rule,
    draft_of,
    facts_of,
)
from ksi_mcp.routing.store import RuleFilter, RulePage

__all__ = ["Explanation", "Limits", "Quotas", "Router", "TurnSink"]

SWEEP_LIMIT = 500
MAX_PAGE = 200
MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What would become of an event. `hidden` counts matching rules that the asker may not see."""

    event: str
    fires: tuple[Match, ...]
    losers: tuple[Match, ...]
    hidden: int
    version: int


class Router:
    """Rules that agents may change while the table runs.

    The functions that take a `tx` are composed by the caller into one transaction. The table in
    memory only ever holds what was committed; a transaction adds what it sees beyond that for itself, so
    a change that is rolled back leaves no trace here. `refresh` makes that short, and is never needed to be right.
    """

    def __init__(
        self,
        journal: Journal,
        turns: TurnSink,
        *,
        is_command: IsCommand = lambda _name: False,
        quotas: Quotas | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._journal = journal
        self._is_command = is_command
        self._quotas = quotas or Quotas()
        self._table = RuleTable()
        self._compiled = store.CompiledRows()
        self._pump = Pump(journal, turns, limits or Limits(), table=self._seen_by, refresh=self.refresh)

    # ------------------------------------------------------------------------------- the table

    def add_rule(self, tx: Tx, ctx: Context, draft: RuleDraft) -> Rule:
        """Send every event that the draft describes to its target, from now on.

        Raises:
            Refused: it reaches beyond the actor, runs a command, or closes a circle of events.
            NotFound, Conflict: its target or scope is not there, has ended, or its id is taken.
            Exhausted: the actor, or the table, has as many rules as there may be.
        """
        check_not_command(draft.target, self._is_command)
        settled = governance.settle(tx, ctx, draft)
        if draft.rule_id is not None and (old := store.find(tx, draft.rule_id)) and old.expired(tx.now_ms):
            self._expire(tx, [old])
        governance.check_quota(tx, ctx, self._quotas)
        rule = Rule(
            rule_id=RuleId(draft.rule_id or new_id("r")),
            source_pattern=draft.source_pattern,
            source_agent=settled.source_agent,
            condition=draft.condition,
            target=settled.target,
            mapping=draft.mapping,
            priority=draft.priority,
            scope=settled.scope,
            orchestration_id=settled.orchestration_id,
            enabled=draft.enabled,
            created_by=str(ctx.actor),
            version=0,
            created_at_ms=tx.now_ms,
            expires_at_ms=None if draft.ttl_s is None else tx.now_ms + max(1, round(draft.ttl_s * 1000)),
            metadata=dict(draft.metadata),
        )
        self._check_cycle(tx, rule)
        rule = replace(rule, version=store.next_version(tx))
        store.put(tx, rule)
        self._audit(tx, ctx, "routing:rule_added", rule, {})
        return rule

    def modify_rule(self, tx: Tx, ctx: Context, rule_id: str, updates: Mapping[str, Any]) -> Rule:
        """Change fields of a rule; who made it and when stays. `ttl_s` counts from now, None means for ever.

        Raises:
            NotFound: there is no such rule.
            Invalid: a field is unknown, or its value cannot be taken.
            Refused: the actor may not change it, or not so.
        """
        rule = self._living(tx, rule_id)
        governance.check_owner(tx, ctx, rule, action="change")
        if unknown := sorted(set(updates) - set(UPDATE_FIELDS)):
            raise Invalid(
                f"a rule has no field {', '.join(shorten(name, 40) for name in unknown[:5])} to change",
                hint=f"there are {', '.join(UPDATE_FIELDS)}",
            )
        if not updates:
            raise Invalid("the updates are empty", hint=f"give at least one of {', '.join(UPDATE_FIELDS)}")
        draft = replace(draft_of(rule), **updates)
        check_not_command(draft.target, self._is_command)
        settled = governance.settle(tx, ctx, draft)
        expires = rule.expires_at_ms
        if "ttl_s" in updates:
            expires = None if draft.ttl_s is None else tx.now_ms + max(1, round(draft.ttl_s * 1000))
        changed = replace(
            rule,
            source_pattern=draft.source_pattern,
            source_agent=settled.source_agent,
            condition=draft.condition,
            target=settled.target,
            mapping=draft.mapping,
            priority=draft.priority,
            scope=settled.scope,
            orchestration_id=settled.orchestration_id,
            enabled=draft.enabled,
            expires_at_ms=expires,
            metadata=dict(draft.metadata),
        )
        self._check_cycle(tx, changed)
        changed = replace(changed, version=store.next_version(tx))
        store.change(tx, changed, new_life="ttl_s" in updates)
        self._audit(
            tx,
            ctx,
            "routing:rule_modified",
            changed,
            {"was": {key: was for key, was in facts_of(rule).items() if facts_of(changed)[key] != was}},
        )
        return changed

    def delete_rule(self, tx: Tx, ctx: Context, rule_id: str, reason: str | None = None) -> Rule:
        """End a rule; the rule as it was.

        Raises:
            NotFound: there is no such rule.
            Refused: the actor may not delete it.
        """
        rule = self._living(tx, rule_id)
        governance.check_owner(tx, ctx, rule, action="delete")
        self._bury(tx, ctx, rule, reason)
        return rule

    def query_rules(
        self, tx: Tx, ctx: Context, wanted: RuleFilter | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> RulePage:
        """Living rules that the actor may see, in the order in which they fire."""
        wanted = wanted or RuleFilter()
        ids = None if wanted.rule_id is None else [wanted.rule_id]
        if wanted.event is not None:
            check_event_name(wanted.event)
            heard = [each.rule.rule_id for each in self._seen_by(tx).candidates(wanted.event)]
            ids = [rule_id for rule_id in heard if ids is None or rule_id in ids]
        viewer = governance.viewer_of(tx, ctx)
        return store.page(tx, wanted, ids=ids, viewer=viewer, limit=min(max(limit, 1), MAX_PAGE), cursor=cursor)

    def explain(
        self,
        tx: Tx,
        ctx: Context,
        event: str,
        data: Mapping[str, Any] | None = None,
        source: str | None = None,
        *,
        agent_id: str | None = None,
        orchestration_id: str | None = None,
    ) -> Explanation:
        """Dry run: which rules would fire for such an event and with what payload, which not and why.

        Raises:
            Invalid: the event's name is none.
        """
        check_event_name(event)
        imagined = Event(
            event_id=EventId(0),
            name=event,
            data=dict(data or {}),
            source=source or str(ctx.actor),
            agent_id=agent_id or (None if source else ctx.actor.agent_id),
            orchestration_id=orchestration_id or ctx.orchestration_id,
            cause_id=ctx.cause_id,
            root_id=ctx.root_id,
            hops=ctx.hops,
            depth=ctx.depth,
            at_ms=tx.now_ms,
        )
        return self.preview(tx, ctx, imagined)

    def preview(self, tx: Tx, ctx: Context, event: Event) -> Explanation:
        """The same for an event that was recorded: who will hear it."""
        table = self._seen_by(tx)
        viewer = governance.viewer_of(tx, ctx)
        matches = list(judge(table, event, now_ms=tx.now_ms, name_of=lambda agent_id: _name_of(tx, agent_id)))
        seen = [match for match in matches if governance.sees(viewer, match.rule)]
        return Explanation(
            event=event.name,
            fires=tuple(match for match in seen if match.outcome == "fires"),
            losers=tuple(match for match in seen if match.outcome != "fires"),
            hidden=len(matches) - len(seen),
            version=table.version,
        )

    def record_refusal(
        self, tx: Tx, ctx: Context, action: str, failure: KsiError, *, rule_id: str | None = None
    ) -> None:
        """Keep a refusal for the audit, in a transaction of its own: that of the change was rolled back."""
        facts = {
            "action": action[:80],
            "by": str(ctx.actor),
            "rule_id": None if rule_id is None else rule_id[:80],
            "code": failure.code,
            "reason": failure.message[:MAX_REASON_CHARS],
        }
        self._journal.record(tx, "routing:refused", facts, ctx, routable=False)

    # -------------------------------------------------------------------------- ends of rules

    def end_scope(self, tx: Tx, scope: str, ctx: Context | None = None) -> int:
        """End the rules of `agent:<id>` or `orchestration:<id>` (its agents' rules too); how many there were."""
        owner = "agent" if scope.startswith(AGENT) else "orchestration"
        rules = store.in_scope(tx, scope)
        for rule in rules:
            self._bury(tx, ctx or fresh_context(SYSTEM), rule, f"its {owner} has ended")
        return len(rules)

    def sweep_expired(self, tx: Tx, limit: int = SWEEP_LIMIT) -> int:
        """Bury rules whose time is over, at most `limit`; how many there were."""
        rules = store.due(tx, limit)
        self._expire(tx, rules)
        return len(rules)

    def _expire(self, tx: Tx, rules: list[Rule]) -> None:
        for rule in rules:
            store.bury(tx, rule.rule_id, store.next_version(tx))
            self._audit(tx, fresh_context(SYSTEM), "routing:rule_expired", rule, {})

    def _bury(self, tx: Tx, ctx: Context, rule: Rule, reason: str | None) -> None:
        version = store.next_version(tx)
        store.bury(tx, rule.rule_id, version)
        facts = {"reason": None if reason is None else reason[:MAX_REASON_CHARS]}
        self._audit(tx, ctx, "routing:rule_deleted", replace(rule, version=version), facts)

    def _living(self, tx: Tx, rule_id: str) -> Rule:
        rule = store.get(tx, rule_id)
        if rule.expired(tx.now_ms):
            raise NotFound(f"rule {rule_id!r} has expired", hint="add it again with routing_add_rule")
        return rule

    def _check_cycle(self, tx: Tx, rule: Rule) -> None:
        if rule.target.kind != "event" or not rule.enabled:
            return
        links = find_cycle(self._seen_by(tx), compile_rule(rule), now_ms=tx.now_ms)
        if links is not None:
            path = " -> ".join(f"{link.name} [{link.rule_id}]" for link in links)
            raise Refused(
                f"rule {rule.rule_id!r} would feed itself: {rule.source_pattern} -> {path} -> {rule.source_pattern}",
                hint="send one of them to another event, or to an agent",
            )

    def _audit(self, tx: Tx, ctx: Context, name: str, rule: Rule, more: dict[str, Any]) -> None:
        owner = rule.scope.removeprefix(AGENT) if rule.scope.startswith(AGENT) else None
        facts = {"rule_id": rule.rule_id, "version": rule.version, "rule": facts_of(rule), **more}
        self._journal.record(tx, name, facts, ctx, agent_id=owner, orchestration_id=rule.orchestration_id)

    # --------------------------------------------------------------------------------- the pump

    async def refresh(self) -> None:
        """Take into memory what has been committed; cheap when nothing has."""
        table = await self._journal.read(self._seen_by)
        if table.version > self._table.version:
            self._table = table

    async def pump_once(self, limit: int = 100) -> int:
        """Deliver the oldest waiting events, at most `limit`; how many were handled. See `Pump`."""
        return await self._pump.once(limit)

    def listen(self, names: Collection[str], react: React) -> None:
        """Call `react(tx, event)` once for every event of these names, in the transaction that routes it.

        It runs before the rules are judged. One that raises is undone and left out, and `system:listener_failed`
        says so: it can neither hold up the event nor spoil its delivery.
        """
        self._pump.listeners.add(names, react)

    def _seen_by(self, tx: Tx) -> RuleTable:
        return store.catch_up(tx, self._table, self._compiled)


def _name_of(tx: Tx, agent_id: str) -> str | None:
    row = tx.one("routing.agent", {"agent_id": agent_id})
    return None if row is None else row["name"]
