"""Who hears what? `Router`: the table's only door; `Pump` delivers by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ksi_mcp.config import DampingConfig
from ksi_mcp.db import Tx
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import Event
from ksi_mcp.events.patterns import check_event_name
from ksi_mcp.ids import EventId
from ksi_mcp.permissions import SYSTEM, Context, fresh_context
from ksi_mcp.routing import governance, safe_mode, store
from ksi_mcp.routing.changing import Change, Removal, Update
from ksi_mcp.routing.editing import Applied, Editor
from ksi_mcp.routing.explaining import Past, foresee, past
from ksi_mcp.routing.governance import Quotas
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.letters import Letters
from ksi_mcp.routing.listeners import React
from ksi_mcp.routing.matching import Match, judge
from ksi_mcp.routing.outbox import Limits, TurnSink
from ksi_mcp.routing.pump import Pump
from ksi_mcp.routing.rules import IsCommand, Rule, RuleDraft
from ksi_mcp.routing.store import RuleFilter, RulePage
from ksi_mcp.routing.targets import AGENT
from ksi_mcp.routing.validating import Verdict, validate
from ksi_mcp.routing.versions import RolledBack, carry_out, plan

__all__ = ["Explanation", "Limits", "Quotas", "Router", "TurnSink"]

SWEEP_LIMIT = 500
MAX_PAGE = 200
_HEARS = frozenset({"fires", "collects"})


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
        hear: React | None = None,
        damping: DampingConfig | None = None,
    ) -> None:
        self._journal = journal
        self._table = RuleTable()
        self._compiled = store.CompiledRows()
        self._stale = True
        """Some transaction has seen another table than the one in memory."""
        self._seen: tuple[Tx | None, RuleTable] = None, self._table
        self._editor = Editor(
            journal,
            table=self._seen_by,
            is_command=is_command,
            quotas=quotas or Quotas(),
            limits=damping or DampingConfig(),
        )
        self._pump = Pump(journal, turns, limits or Limits(), table=self._seen_by, refresh=self.refresh, hear=hear)
        self.letters = Letters(journal, turns, limits or Limits(), table=self._seen_by)

    # ------------------------------------------------------------------------------- the table

    def add_rule(self, tx: Tx, ctx: Context, draft: RuleDraft) -> Rule:
        """Send every event that the draft describes to its target, from now on.

        Raises:
            Refused: it reaches beyond the actor, runs a command, or closes a circle of events.
            NotFound, Conflict: its target or scope is not there, has ended, or its id is taken.
            Exhausted: the actor, or the table, has as many rules as there may be.
        """
        return self._editor.add(tx, ctx, draft)

    def modify_rule(self, tx: Tx, ctx: Context, rule_id: str, updates: Mapping[str, Any]) -> Rule:
        """Change fields of a rule; when it was made stays, and who (but see `governance.author`). `ttl_s`: from now.

        Raises:
            NotFound: there is no such rule.
            Invalid: a field is unknown, or its value cannot be taken.
            Refused: the actor may not change it, or not so.
        """
        return self._editor.modify(tx, ctx, Update(rule_id=rule_id, updates=updates))

    def delete_rule(self, tx: Tx, ctx: Context, rule_id: str, reason: str | None = None) -> Rule:
        """End a rule; the rule as it was.

        Raises:
            NotFound: there is no such rule.
            Refused: the actor may not delete it.
        """
        return self._editor.delete(tx, ctx, Removal(rule_id=rule_id, reason=reason))

    def apply(self, tx: Tx, ctx: Context, changes: Sequence[Change]) -> Applied:
        """Make several changes as one, in one version of the table; later ones see the earlier ones.

        Circles and conflicts are looked for at the end: two rules may change places.

        Raises:
            KsiError: as of the single change; the message begins with its place. Nothing is changed then.
        """
        return self._editor.apply(tx, ctx, changes)

    def validate(self, tx: Tx, ctx: Context, draft: RuleDraft) -> Verdict:
        """Whether `add_rule` would take the draft as the table is now, and what one should know; writes nothing."""
        return validate(tx, ctx, draft, editor=self._editor, table=self._seen_by(tx))

    def roll_back(self, tx: Tx, ctx: Context, to_version: int, *, reason: str, dry_run: bool = False) -> RolledBack:
        """Make the table what it was at a version, in one new version. `dry_run`: only say what would change.

        Raises:
            Invalid: there is no such version.
            NotFound: it is not kept any more.
        """
        found = plan(tx, to_version)
        return found.shown if dry_run else carry_out(tx, self._editor, ctx, found, reason=reason)

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
        found = store.page(tx, wanted, ids=ids, viewer=viewer, limit=min(max(limit, 1), MAX_PAGE), cursor=cursor)
        return replace(found, rules=tuple(_as_of(rule, tx.now_ms) for rule in found.rules))

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
        _exclude(tx, matches)
        seen = [foresee(tx, match) for match in matches if governance.sees(viewer, match.rule)]
        return Explanation(
            event=event.name,
            fires=tuple(match for match in seen if match.outcome in _HEARS),
            losers=tuple(match for match in seen if match.outcome not in _HEARS),
            hidden=len(matches) - len(seen),
            version=table.version,
        )

    def past(self, tx: Tx, ctx: Context, event: Event) -> Past:
        """Where an event went that was recorded, as far as the actor may know of it."""
        table, viewer = self._seen_by(tx), governance.viewer_of(tx, ctx)

        def sees(rule_id: str) -> bool:
            compiled = table.get(rule_id)
            return viewer is None or (compiled is not None and governance.sees(viewer, compiled.rule))

        matches = list(judge(table, event, now_ms=tx.now_ms, name_of=lambda agent_id: _name_of(tx, agent_id)))
        return past(tx, event, matches, sees=sees)

    # -------------------------------------------------------------------------- ends of rules

    def end_scope(self, tx: Tx, scope: str, ctx: Context | None = None) -> int:
        """End the rules of `agent:<id>` or `orchestration:<id>` (its agents' rules too); how many there were."""
        owner = "agent" if scope.startswith(AGENT) else "orchestration"
        rules = store.in_scope(tx, scope)
        for rule in rules:
            self._editor.bury(tx, ctx or fresh_context(SYSTEM), rule, f"its {owner} has ended")
        return len(rules)

    def sweep_expired(self, tx: Tx, limit: int = SWEEP_LIMIT) -> int:
        """Bury rules whose time is over, at most `limit`; how many there were."""
        rules = store.due(tx, limit)
        self._editor.expire(tx, rules)
        return len(rules)

    # --------------------------------------------------------------------------------- the pump

    async def refresh(self) -> None:
        """Take into memory what has been committed; free as long as no transaction has seen anything new."""
        if not self._stale:
            return
        self._stale = False
        table = await self._journal.read(self._seen_by)
        if table.version > self._table.version:
            self._table = table

    async def pump_once(self, limit: int = 100) -> int:
        """Deliver the oldest waiting events, at most `limit`; how many were handled. See `Pump`."""
        return await self._pump.once(limit)

    async def fire_due(self) -> int | None:
        """Fire the joins whose time is up; when the next one is due (ms since the epoch), if any is."""
        return await self._pump.fire_due()

    def set_paused(self, tx: Tx, *, paused: bool) -> bool:
        """Begin or end safe mode, for every process of the data folder; whether that changed anything."""
        return safe_mode.set_paused(tx, self._journal, paused=paused)

    def is_paused(self, tx: Tx) -> bool:
        """Whether nothing is delivered: safe mode."""
        return safe_mode.is_paused(tx)

    def listen(self, names: Collection[str], react: React) -> None:
        """Call `react(tx, event)` once for every event of these names, in the transaction that routes it.

        It runs before the rules are judged. One that raises is undone and left out, and `system:listener_failed`
        says so: it can neither hold up the event nor spoil its delivery.
        """
        self._pump.listeners.add(names, react)

    def _seen_by(self, tx: Tx) -> RuleTable:
        # A transaction that changes rules looks again and again: it goes on from where it was.
        last, table = self._seen
        seen = store.catch_up(tx, table if last is tx else self._table, self._compiled)
        self._stale = self._stale or seen is not self._table
        self._seen = tx, seen
        return seen


def _exclude(tx: Tx, matches: list[Match]) -> None:
    """What exclusive rules keep from firing, if they can deliver."""
    firsts: list[Rule] = []
    for place, match in enumerate(matches):
        if match.outcome != "fires":
            continue
        first = next((each for each in firsts if governance.keeps_from(tx, each, match.rule)), None)
        if first is not None:
            reason = f"rule {first.rule_id!r} is exclusive, and of higher priority"
            matches[place] = replace(match, outcome="excluded", reason=reason, data=None)
        elif match.rule.exclusive:
            firsts.append(match.rule)


def _as_of(rule: Rule, now_ms: int) -> Rule:
    """The rule as one sees it: that it was frozen once does not matter any more."""
    thawed = rule.frozen_until_ms is not None and rule.frozen_until_ms <= now_ms
    return replace(rule, frozen_until_ms=None) if thawed else rule


def _name_of(tx: Tx, agent_id: str) -> str | None:
    row = tx.one("routing.agent", {"agent_id": agent_id})
    return None if row is None else row["name"]
