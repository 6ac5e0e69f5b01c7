"""Rows of the rule table. Every change takes a new table version and stamps its rows with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.db import Row, Tx
from ksi_mcp.db.kept import Kept
from ksi_mcp.errors import Conflict, Invalid, NotFound, StoreError
from ksi_mcp.events.patterns import shorten
from ksi_mcp.ids import RuleId
from ksi_mcp.routing.collecting import forget
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.joins import join_of
from ksi_mcp.routing.rates import rate_of
from ksi_mcp.routing.rules import CompiledRule, Rule, compile_rule, encode_metadata
from ksi_mcp.routing.targets import read_targets

COMPILED_ROWS = 20_000
"""Compiled rules remembered; then the memory starts anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFilter:
    """Which rules a query is for; None does not restrict. `event`: rules whose pattern hears that name."""

    event: str | None = None
    rule_id: str | None = None
    source_pattern: str | None = None
    source_agent: str | None = None
    target: str | None = None
    created_by: str | None = None
    scope: str | None = None
    orchestration_id: str | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """An agent that looks: it sees what is global, of its orchestration, or concerns it or those below it."""

    agents: frozenset[str]
    orchestration_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePage:
    """Rules in the order in which they fire. `cursor` asks for the rest; None when there is none."""

    rules: tuple[Rule, ...]
    cursor: str | None


def rule_of(row: Row) -> Rule:
    """The record behind a row."""
    return Rule(
        rule_id=RuleId(row["rule_id"]),
        source_pattern=row["source_pattern"],
        source_agent=row["source_agent"],
        condition=row["condition"],
        target=read_targets(row["target"]),
        mapping=None if row["mapping"] is None else json.loads(row["mapping"]),
        priority=row["priority"],
        scope=row["scope"],
        orchestration_id=row["orchestration_id"],
        enabled=bool(row["enabled"]),
        created_by=row["created_by"],
        version=row["version"],
        created_at_ms=row["created_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        metadata={} if row["metadata"] == "{}" else json.loads(row["metadata"]),
        exclusive=bool(row["exclusive"]),
        rate=None if row["rate"] is None else rate_of(json.loads(row["rate"])),
        join=None if row["join_spec"] is None else join_of(json.loads(row["join_spec"])),
        modifiable=bool(row["modifiable"]),
        since=row["since"],
        frozen_until_ms=row["frozen_until_ms"],
    )


_SEEN: Final = Kept(rule_of, size=1_000)
"""Clients look at the table again and again, and it hardly changes."""


def columns(rule: Rule) -> dict[str, Any]:
    """The row of a record."""
    return {
        "rule_id": rule.rule_id,
        "source_pattern": rule.source_pattern,
        "source_agent": rule.source_agent,
        "condition": rule.condition,
        "target": json.dumps(rule.target.shown),
        "mapping": None if rule.mapping is None else json.dumps(rule.mapping, ensure_ascii=False),
        "priority": rule.priority,
        "scope": rule.scope,
        "orchestration_id": rule.orchestration_id,
        "enabled": int(rule.enabled),
        "created_by": rule.created_by,
        "version": rule.version,
        "created_at_ms": rule.created_at_ms,
        "expires_at_ms": rule.expires_at_ms,
        "metadata": encode_metadata(rule.metadata),
        "exclusive": int(rule.exclusive),
        "rate": None if rule.rate is None else json.dumps(rule.rate.shown),
        "join_spec": None if rule.join is None else json.dumps(rule.join.shown, ensure_ascii=False),
        "modifiable": int(rule.modifiable),
        "frozen_until_ms": rule.frozen_until_ms,
    }


def next_version(tx: Tx) -> int:
    """A new version of the table."""
    row = tx.one("routing.bump")
    if row is None:
        raise StoreError("the table of versions is empty", hint="the database file is damaged")
    return int(row["routing_version"])


def get(tx: Tx, rule_id: str) -> Rule:
    """A living rule.

    Raises:
        NotFound: there is none of that id.
    """
    row = tx.one("routing.one", {"rule_id": rule_id})
    if row is None:
        raise NotFound(f"unknown rule {shorten(rule_id)}", hint="routing_query_rules lists them")
    return rule_of(row)


def find(tx: Tx, rule_id: str) -> Rule | None:
    """A living rule, or None."""
    row = tx.one("routing.one", {"rule_id": rule_id})
    return None if row is None else rule_of(row)


def put(tx: Tx, rule: Rule) -> None:
    """Store a new rule.

    Raises:
        Conflict: a living rule has that id.
    """
    if tx.run("routing.put", {**columns(rule), "now_ms": tx.now_ms}) == 0:
        raise Conflict(f"there is a rule {rule.rule_id!r} already", hint="change it with routing_modify_rule")


def change(tx: Tx, rule: Rule, *, new_life: bool) -> None:
    """Store new contents of a living rule. Its life is that of `rule` with `new_life`, or if it is no paused one's.

    Raises:
        NotFound: it was deleted.
    """
    if tx.run("routing.change", {**columns(rule), "new_life": int(new_life), "now_ms": tx.now_ms}) == 0:
        raise NotFound(f"unknown rule {shorten(rule.rule_id)}", hint="routing_query_rules lists them")


def bury(tx: Tx, rule_id: str, version: int) -> None:
    """Leave a tombstone; what the rule remembered goes."""
    tx.run("routing.bury", {"rule_id": rule_id, "version": version, "now_ms": tx.now_ms})
    tx.run("routing.forget_state", {"rule_id": rule_id})
    forget(tx, rule_id)


def bring_back(tx: Tx, rule_id: str, content: Mapping[str, Any], version: int) -> None:
    """Store a rule as its history has it, whatever became of it since; what it remembered goes."""
    tx.run("routing.bring_back", {**content, "rule_id": rule_id, "version": version, "now_ms": tx.now_ms})
    tx.run("routing.forget_state", {"rule_id": rule_id})
    forget(tx, rule_id)


def exclusive_like(tx: Tx, rule: Rule) -> Rule | None:
    """Another exclusive rule that hears the same with the same right to be first."""
    same = {"source_pattern": rule.source_pattern, "priority": rule.priority, "scope": rule.scope}
    row = tx.one("routing.exclusive_like", {**same, "rule_id": rule.rule_id, "now_ms": tx.now_ms})
    return None if row is None else rule_of(row)


def count(tx: Tx, created_by: str | None = None) -> int:
    """Living rules, of everybody or of one creator."""
    name = "routing.count" if created_by is None else "routing.count_of_creator"
    row = tx.one(name, {"created_by": created_by, "now_ms": tx.now_ms})
    return 0 if row is None else int(row["rules"])


def due(tx: Tx, limit: int) -> list[Rule]:
    """Rules whose time is over."""
    return [rule_of(row) for row in tx.all("routing.due", {"now_ms": tx.now_ms, "limit": limit})]


def in_scope(tx: Tx, scope: str) -> list[Rule]:
    """The rules that end with `agent:<id>` or `orchestration:<id>`."""
    kind, _, owner = scope.partition(":")
    if kind == "orchestration":
        rows = tx.all("routing.in_orchestration", {"orchestration_id": owner})
    else:
        rows = tx.all("routing.in_scope", {"scope": scope})
    return [rule_of(row) for row in rows]


class CompiledRows:
    """Rules by the whole content of their row: what is the same need not be compiled again.

    A version alone would not do as a key, since a transaction that is rolled back gives its number to the next.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], CompiledRule] = {}

    def compile(self, row: Row) -> CompiledRule:
        """The rule of a row, ready to be matched."""
        key = tuple(row[name] for name in row.keys())  # noqa: SIM118  a row iterates over its values
        known = self._known.get(key)
        if known is None:
            known = compile_rule(rule_of(row))
            if len(self._known) >= COMPILED_ROWS:
                self._known = {}
            self._known[key] = known
        return known


def catch_up(tx: Tx, table: RuleTable, compiled: CompiledRows) -> RuleTable:
    """The table as this transaction sees it: what `table` holds, with the rows changed since."""
    row = tx.one("routing.version")
    version = 0 if row is None else int(row["routing_version"])
    if version == table.version:
        return table
    changed: dict[str, CompiledRule | None] = {}
    for changed_row in tx.all("routing.changed", {"version": table.version}):
        dead = changed_row["deleted_at_ms"] is not None
        changed[changed_row["rule_id"]] = None if dead else compiled.compile(changed_row)
    return table.with_changes(version, changed)


def page(
    tx: Tx, wanted: RuleFilter, *, ids: list[str] | None, viewer: Viewer | None, limit: int, cursor: str | None
) -> RulePage:
    """Living rules in the order in which they fire; at most `limit`."""
    after_priority, after_id = _after(cursor)
    rows = tx.all(
        "routing.page",
        {
            "now_ms": tx.now_ms,
            "ids": None if ids is None else json.dumps(ids),
            "source_pattern": wanted.source_pattern,
            "source_agent": wanted.source_agent,
            "target": wanted.target,
            "created_by": wanted.created_by,
            "scope": wanted.scope,
            "orchestration_id": wanted.orchestration_id,
            "enabled": None if wanted.enabled is None else int(wanted.enabled),
            "viewers": None if viewer is None else json.dumps(sorted(viewer.agents)),
            "viewer_orchestration": None if viewer is None else viewer.orchestration_id,
            "after_priority": after_priority,
            "after_id": after_id,
            "limit": limit + 1,
        },
    )
    rules = _SEEN.of(rows[:limit])
    more = len(rows) > limit and rules
    return RulePage(rules=tuple(rules), cursor=f"{rules[-1].priority}:{rules[-1].rule_id}" if more else None)


def _after(cursor: str | None) -> tuple[int | None, str]:
    if cursor is None:
        return None, ""
    priority, colon, rule_id = cursor.partition(":")
    if not (colon and priority.isascii() and priority.isdigit() and len(priority) <= len("10000")):
        raise Invalid(f"cursor {shorten(cursor)} is not one of ours", hint="pass the `cursor` of the last page")
    return int(priority), rule_id
