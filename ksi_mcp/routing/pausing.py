"""The rules of a suspended run: their life stands still, goes on with what remained, or goes back to what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ksi_mcp.db import Tx
from ksi_mcp.events.journal import Recorder
from ksi_mcp.permissions import Context
from ksi_mcp.routing import store
from ksi_mcp.routing.collecting import forget
from ksi_mcp.routing.rules import Rule, facts_of
from ksi_mcp.routing.targets import AGENT

_ADDED: Final = {"exclusive": 0, "rate": None, "join_spec": None, "modifiable": 1}
"""What a snapshot of an earlier version does not say of its rules."""


def pause_rules(tx: Tx, orchestration_id: str) -> int:
    """Stop the clocks of a run's rules and joins; how many rules have one. They match on; what they deliver waits."""
    values = {"orchestration_id": orchestration_id, "now_ms": tx.now_ms}
    tx.run("routing.join_pause", values)
    return tx.run("routing.pause_life", {**values, "version": store.next_version(tx)})


def resume_rules(tx: Tx, orchestration_id: str) -> int:
    """Let their clocks go on; how many rules have one."""
    values = {"orchestration_id": orchestration_id, "now_ms": tx.now_ms}
    tx.run("routing.join_resume", values)
    return tx.run("routing.resume_life", {**values, "version": store.next_version(tx)})


def restore_rules(
    tx: Tx, journal: Recorder, ctx: Context, orchestration_id: str, wanted: Sequence[Mapping[str, Any]], *, reason: str
) -> int:
    """Make the rules of a suspended run those of a snapshot; how many had to be changed. Each change is audited.

    They are rows of the table with `remaining_ms` of their life. The rights of whoever made them were checked then.
    """
    now = {rule.rule_id: rule for rule in store.in_scope(tx, f"orchestration:{orchestration_id}")}
    changes = 0
    for rule_id in sorted(set(now) - {row["rule_id"] for row in wanted}):
        store.bury(tx, rule_id, store.next_version(tx))
        _audit(tx, journal, ctx, "routing:rule_deleted", now[rule_id], reason=reason)
        changes += 1
    for row in wanted:
        version = store.next_version(tx)
        values = {**_ADDED, **row, "orchestration_id": orchestration_id, "version": version, "since": version}
        values["now_ms"] = tx.now_ms
        if tx.run("routing.restore", values) == 0:
            continue
        rule, old = store.get(tx, row["rule_id"]), now.get(row["rule_id"])
        if old is not None and {**facts_of(old), "expires_at_ms": None} == facts_of(rule):
            continue
        name = "routing:rule_added" if old is None else "routing:rule_modified"
        _audit(tx, journal, ctx, name, rule, reason=reason)
        changes += 1
    return changes


def restore_joins(tx: Tx, orchestration_id: str, wanted: Sequence[Mapping[str, Any]]) -> int:
    """Make what the joins of a suspended run have collected that of a snapshot; how many collections there are then.

    Its rules are there already. A collection has the columns `rule_id`, `key`, `age_ms`, `remaining_ms` (-1: for ever)
    and `parts`, what has arrived, oldest first.
    """
    joins = {rule.rule_id for rule in store.in_scope(tx, f"orchestration:{orchestration_id}") if rule.join is not None}
    for rule_id in joins:
        forget(tx, rule_id)
    restored = [each for each in wanted if each["rule_id"] in joins]
    for each in restored:
        own = {"rule_id": each["rule_id"], "key": each["key"], "orchestration_id": orchestration_id}
        times = {"age_ms": each["age_ms"], "remaining_ms": each["remaining_ms"]}
        tx.run("routing.join_restore", {**own, **times})
        for part in each["parts"]:
            tx.run("routing.join_restore_part", {**own, **part})
    return len(restored)


def _audit(tx: Tx, journal: Recorder, ctx: Context, name: str, rule: Rule, *, reason: str) -> None:
    owner = rule.scope.removeprefix(AGENT) if rule.scope.startswith(AGENT) else None
    facts = {"rule_id": rule.rule_id, "version": rule.version, "rule": facts_of(rule), "reason": reason}
    journal.record(tx, name, facts, ctx, agent_id=owner, orchestration_id=rule.orchestration_id, routable=False)
