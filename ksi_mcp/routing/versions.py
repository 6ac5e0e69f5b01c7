"""The table as it was: what became different since a version of it, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.permissions import Context
from ksi_mcp.routing import store
from ksi_mcp.routing.changing import MAX_REASON_CHARS
from ksi_mcp.routing.editing import Editor, differences
from ksi_mcp.routing.rules import Rule
from ksi_mcp.routing.targets import AGENT

SHOWN_SKIPPED = 100
"""So many of the rules that cannot come back are named in the event of a rollback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A rule that does not come back, and why."""

    rule_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """What a rollback changed, or would change; `version` is the table's number then."""

    version: int
    to_version: int
    added: tuple[str, ...]
    modified: tuple[str, ...]
    deleted: tuple[str, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What has to become of one rule: from what it is (None: it is not there) to the columns that it had (None)."""

    rule_id: str
    now: Rule | None
    then: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The way back to a version."""

    version: int
    to_version: int
    steps: tuple[Step, ...]
    skipped: tuple[Skipped, ...]

    @property
    def shown(self) -> RolledBack:
        """What it comes to, nothing being written yet."""
        return RolledBack(
            version=self.version,
            to_version=self.to_version,
            added=tuple(step.rule_id for step in self.steps if step.now is None),
            modified=tuple(step.rule_id for step in self.steps if step.now and step.then),
            deleted=tuple(step.rule_id for step in self.steps if step.then is None),
            skipped=self.skipped,
        )


def plan(tx: Tx, to_version: int) -> Plan:
    """Find out what has to change for the table to be what it was at a version. Nothing is written.

    A rule whose time is over by now, or whose agent or run has ended since, does not come back. One that was handed
    on to an agent's successor stays as it is. Of rules that only had their clock stopped or started, nothing changes.

    Raises:
        Invalid: there is no such version.
        NotFound: it is not kept any more.
    """
    row = tx.one("routing.kept_versions")
    newest, oldest = (0, 0) if row is None else (int(row["newest"]), int(row["oldest"]))
    if not 0 <= to_version <= newest:
        raise Invalid(
            f"the table has no version {to_version}",
            hint=f"it is at {newest}; routing_audit shows what each one changed",
        )
    if to_version < oldest:
        raise NotFound(
            f"version {to_version} of the table is not kept any more",
            hint=f"it can go back to {oldest}, and no further",
        )
    marked = tx.one("routing.when", {"version": to_version})
    since_ms = 0 if marked is None else int(marked["at_ms"])
    steps: list[Step] = []
    skipped: list[Skipped] = []
    for touched in tx.all("routing.changed_since", {"version": to_version}):
        rule_id, now = touched["rule_id"], store.find(tx, touched["rule_id"])
        content: dict[str, Any] | None = None if touched["content"] is None else json.loads(touched["content"])
        if content is not None and now is not None and now.since == content["since"]:
            continue
        then = content
        if content is not None:
            gone = _gone(tx, content, since_ms)
            life = _life(tx, content)
            if gone is not None or life is None:
                reason = gone.reason if gone is not None else "its time is over"
                if gone is not None and gone.handed_on and now is not None:
                    skipped.append(Skipped(rule_id=rule_id, reason=f"{reason}; it stays as it is"))
                    continue
                skipped.append(Skipped(rule_id=rule_id, reason=reason))
                then = None
            else:
                then = {**content, **life}
        if now is not None or then is not None:
            steps.append(Step(rule_id=rule_id, now=now, then=then))
    return Plan(version=newest, to_version=to_version, steps=tuple(steps), skipped=tuple(skipped))


def carry_out(tx: Tx, editor: Editor, ctx: Context, wanted: Plan, *, reason: str) -> RolledBack:
    """Go the way back, in one new version; what the rules that change remembered is forgotten."""
    found = wanted.shown
    if not wanted.steps:
        return found
    version = store.next_version(tx)
    facts = {"reason": reason[:MAX_REASON_CHARS], "rolled_back_to": wanted.to_version}
    for step in wanted.steps:
        if step.then is None:
            assert step.now is not None  # noqa: S101  a step leads somewhere
            editor.bury(tx, ctx, step.now, reason, version, rolled_back_to=wanted.to_version)
            continue
        store.bring_back(tx, step.rule_id, step.then, version)
        rule = store.get(tx, step.rule_id)
        if step.now is None:
            editor.audit(tx, ctx, "routing:rule_added", rule, facts)
        else:
            editor.audit(tx, ctx, "routing:rule_modified", rule, {**facts, "was": differences(step.now, rule)})
    editor.report(
        tx,
        ctx,
        "routing:rolled_back",
        {
            "version": version,
            "to_version": wanted.to_version,
            "added": len(found.added),
            "modified": len(found.modified),
            "deleted": len(found.deleted),
            "skipped": len(found.skipped),
            "skipped_rules": [
                {"rule_id": each.rule_id, "reason": each.reason} for each in found.skipped[:SHOWN_SKIPPED]
            ],
            "reason": reason[:MAX_REASON_CHARS],
        },
    )
    return RolledBack(
        version=version,
        to_version=wanted.to_version,
        added=found.added,
        modified=found.modified,
        deleted=found.deleted,
        skipped=found.skipped,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gone:
    reason: str
    handed_on: bool = False


def _gone(tx: Tx, content: Mapping[str, Any], since_ms: int) -> _Gone | None:
    """Who of those that a rule speaks of has ended since."""
    run = content["orchestration_id"]
    row = None if run is None else tx.one("routing.life_of_run", {"orchestration_id": run})
    if row is not None and row["state"] not in ("running", "suspended"):
        return _Gone(reason=f"its orchestration {run} has ended")
    rule = store.rule_of(cast("Row", {**content, "rule_id": "", "version": 0, "frozen_until_ms": None}))
    heard = [part.text for part in (rule.join.parts if rule.join else ()) if part.pattern is None]
    for what, ref in (
        ("its agent", rule.scope if rule.scope.startswith(AGENT) else None),
        ("its source agent", rule.source_agent),
        *(("its target agent", target) for target in rule.target.agents),
        *(("the agent that its join waits for,", part) for part in heard),
    ):
        found = None if ref is None else tx.one("routing.life_of_agent", {"agent_id": ref.removeprefix(AGENT)})
        if found is None or found["status"] == "active":
            continue
        if found["ended_at_ms"] is not None and found["ended_at_ms"] < since_ms:
            continue  # it had ended then already, and the rule was there all the same
        handed_on = found["successor_id"] is not None
        what_now = f" (its successor is {found['successor_id']})" if handed_on else ""
        return _Gone(reason=f"{what} {found['name']!r} ({ref}) has ended{what_now}", handed_on=handed_on)
    return None


def _life(tx: Tx, content: Mapping[str, Any]) -> dict[str, int | None] | None:
    """What is left of a rule's life; None if that is nothing. In a suspended run its clock stands still."""
    expires_ms, left_ms = content["expires_at_ms"], content["remaining_ms"]
    if expires_ms is None and left_ms is None:
        return {}
    run = content["orchestration_id"]
    row = None if run is None else tx.one("routing.life_of_run", {"orchestration_id": run})
    if row is not None and row["state"] == "suspended":
        if left_ms is None:
            left_ms = expires_ms - (tx.now_ms if row["suspended_at_ms"] is None else row["suspended_at_ms"])
        expires_ms = None
    elif left_ms is not None:
        expires_ms, left_ms = tx.now_ms + left_ms, None
    over = expires_ms <= tx.now_ms if expires_ms is not None else left_ms <= 0
    return None if over else {"expires_at_ms": expires_ms, "remaining_ms": left_ms}
