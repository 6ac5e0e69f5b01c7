"""The rules of an agent that was replaced go on as those of its successor."""

from __future__ import annotations

import json
from typing import Any

from ksi_mcp.db import Row, Tx
from ksi_mcp.events.journal import Recorder
from ksi_mcp.permissions import Context
from ksi_mcp.routing import store
from ksi_mcp.routing.targets import AGENT


def hand_on_rules(tx: Tx, journal: Recorder, ctx: Context, *, old: str, new: str) -> tuple[str, ...]:
    """Let every living rule that hears, reaches, belongs to or was made by `old` do so with `new`; their ids.

    All of them in one new version of the table; what each was is in its audit event.
    """
    rows = tx.all("routing.of_agent", {"agent_id": old})
    if not rows:
        return ()
    version = store.next_version(tx)
    for row in rows:
        was = _places(row)
        now = {
            "source_agent": new if was["source_agent"] == old else was["source_agent"],
            "target": _renamed(was["target"], AGENT + old, AGENT + new),
            "scope": AGENT + new if was["scope"] == AGENT + old else was["scope"],
            "created_by": AGENT + new if was["created_by"] == AGENT + old else was["created_by"],
            "join": _renamed(was["join"], AGENT + old, AGENT + new),
        }
        stored = {**now, "target": json.dumps(now["target"]), "now_ms": tx.now_ms}
        stored["join_spec"] = None if now["join"] is None else json.dumps(now["join"])
        tx.run("routing.hand_on", {"rule_id": row["rule_id"], "version": version, **stored})
        if row["join_spec"] is not None:
            tx.run("routing.join_hand_on", {"rule_id": row["rule_id"], "old": old, "new": new})
        facts = {
            "rule_id": row["rule_id"],
            "version": version,
            "rule": {"source_pattern": row["source_pattern"], **{k: v for k, v in now.items() if v is not None}},
            "was": {key: value for key, value in was.items() if now[key] != value},
        }
        owner = now["scope"].removeprefix(AGENT) if now["scope"].startswith(AGENT) else None
        journal.record(
            tx, "routing:rule_modified", facts, ctx, agent_id=owner, orchestration_id=row["orchestration_id"]
        )
    return tuple(row["rule_id"] for row in rows)


def _places(row: Row) -> dict[str, Any]:
    return {
        "source_agent": row["source_agent"],
        "target": json.loads(row["target"]),
        "scope": row["scope"],
        "created_by": row["created_by"],
        "join": None if row["join_spec"] is None else json.loads(row["join_spec"]),
    }


def _renamed(value: Any, old: str, new: str) -> Any:
    """A target with one agent in the place of another, also inside a list of targets."""
    if isinstance(value, dict):
        return {key: _renamed(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, old, new) for inner in value]
    return new if value == old else value
