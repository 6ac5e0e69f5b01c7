"""A rule table that is only thought of: the one that is, or was, with changes that nobody makes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from ksi_mcp.agents import reach
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Conflict, Invalid, NotFound
from ksi_mcp.events.patterns import shorten
from ksi_mcp.ids import OrchestrationId
from ksi_mcp.permissions import Context
from ksi_mcp.routing import governance, store
from ksi_mcp.routing.changing import Change, Removal, Update, in_change, named, rule_of_draft, updated
from ksi_mcp.routing.governance import ORCHESTRATION, Settled
from ksi_mcp.routing.joins import Part, join_of
from ksi_mcp.routing.rules import (
    GLOBAL,
    IsCommand,
    Rule,
    RuleDraft,
    check_not_command,
    compile_source,
)
from ksi_mcp.routing.targets import AGENT, Target, targets_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtTable:
    """Rules by id. `since`: when each became as it is (ms); what is only proposed is not in it."""

    version: int
    rules: Mapping[str, Rule]
    since: Mapping[str, int]


def table_at(tx: Tx, version: int | None) -> ThoughtTable:
    """The table as it is, or as it was at a version.

    Raises:
        Invalid: there is no such version.
        NotFound: it is not kept any more.
    """
    row = tx.one("routing.kept_versions")
    newest, oldest = (0, 0) if row is None else (int(row["newest"]), int(row["oldest"]))
    if version is None:
        rows = tx.all("routing.replay_rules")
        return ThoughtTable(
            version=newest,
            rules={each["rule_id"]: store.rule_of(each) for each in rows},
            since={each["rule_id"]: int(each["changed_at_ms"]) for each in rows},
        )
    if not 0 <= version <= newest:
        raise Invalid(
            f"the table has no version {version}", hint=f"it is at {newest}; routing_audit shows what each one changed"
        )
    if version < oldest:
        raise NotFound(f"version {version} of the table is not kept any more", hint=f"the oldest is {oldest}")
    was = tx.all("routing.replay_rules_at", {"version": version})
    return ThoughtTable(
        version=version,
        rules={each["rule_id"]: _rule(each) for each in was},
        since={each["rule_id"]: int(each["at_ms"]) for each in was},
    )


def _rule(row: Row) -> Rule:
    columns = {
        **json.loads(row["content"]),
        "rule_id": row["rule_id"],
        "version": row["version"],
        "frozen_until_ms": None,
    }
    return store.rule_of(cast("Row", columns))


def with_changes(
    tx: Tx, ctx: Context, table: ThoughtTable, changes: Sequence[Change], *, is_command: IsCommand, began_ms: int
) -> ThoughtTable:
    """The table after changes that are only thought of, later ones seeing earlier ones; nothing is written.

    An agent may think of what it may do. Whoever may do everything may also speak of agents and runs that have
    ended, since a replay looks back. The life of a new rule counts from `began_ms`.

    Raises:
        KsiError: a change cannot be taken; the message says which one.
    """
    rules, since = dict(table.rules), dict(table.since)
    for place, change in enumerate(changes):
        with in_change(place, named(change)):
            if isinstance(change, RuleDraft):
                rule_id = change.rule_id or f"proposed-{place}"
                if rule_id in rules:
                    raise Conflict(f"there is a rule {rule_id!r} already", hint="modify it, or choose another id")
                was, draft = None, change
            else:
                rule_id = change.rule_id
                was = rules.get(rule_id)
                if was is None:
                    raise NotFound(f"unknown rule {shorten(rule_id)}", hint="routing_query_rules lists them")
                action = "delete" if isinstance(change, Removal) else "change"
                governance.check_reach(tx, ctx, was, action=action)
                since.pop(rule_id, None)
                if isinstance(change, Removal):
                    del rules[rule_id]
                    continue
                draft = updated(was, change)
            check_not_command(draft.target, is_command)
            settled = _settled(tx, ctx, draft)
            kept = was is not None and not (isinstance(change, Update) and "ttl_s" in change.updates)
            by = str(ctx.actor) if was is None else governance.author(tx, ctx, was)
            rule = rule_of_draft(settled, draft, was, now_ms=began_ms, rule_id=rule_id, by=by)
            rules[rule_id] = replace(rule, expires_at_ms=was.expires_at_ms) if kept and was is not None else rule
    return replace(table, rules=rules, since=since)


def _settled(tx: Tx, ctx: Context, draft: RuleDraft) -> Settled:
    if ctx.actor.kind == "agent":
        return governance.settle(tx, ctx, draft)
    scope, run = draft.scope or GLOBAL, None
    kind, _, ref = scope.partition(":")
    if kind == "orchestration":
        if tx.one("routing.orchestration", {"orchestration_id": ref}) is None:
            raise NotFound(f"unknown orchestration {shorten(ref)}", hint="orchestration_list shows them")
        run = ref
    elif kind == "agent":
        if not ref:
            raise Invalid("the scope agent says no agent", hint="write agent:<id>")
        owner = reach.find(tx, ctx, ref)
        scope, run = AGENT + owner.agent_id, owner.orchestration_id
    inside = replace(ctx, orchestration_id=OrchestrationId(run)) if run is not None else ctx

    def settled(target: Target) -> Target:
        return target if target.kind == "event" else replace(target, name=reach.find(tx, inside, target.name).agent_id)

    def part_of(part: Part) -> Part:
        if part.pattern is not None:
            return part
        return replace(part, text=AGENT + reach.find(tx, inside, part.text.removeprefix(AGENT)).agent_id)

    join = join_of(draft.join)
    return Settled(
        source_agent=None if draft.source_agent is None else compile_source(draft.source_agent).text,
        target=targets_of(draft.target).renamed(settled),
        join=None if join is None else replace(join, parts=tuple(part_of(part) for part in join.parts)),
        scope=scope if kind != "orchestration" else f"{ORCHESTRATION}{run}",
        orchestration_id=run,
    )
