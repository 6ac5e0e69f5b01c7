"""Rows of decisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from ksi_mcp.compositions.model import shorten
from ksi_mcp.db import Row, Tx
from ksi_mcp.decisions.model import Decision, DecisionPage, Resolved
from ksi_mcp.errors import Invalid
from ksi_mcp.ids import DecisionId


def insert(tx: Tx, decision: Decision) -> bool:
    """Store a new decision; False if there is one of that id."""
    inserted = tx.run(
        "decisions.insert",
        {
            "decision_id": decision.decision_id,
            "pattern": decision.pattern,
            "decision": decision.decision,
            "context": None if decision.context is None else json.dumps(decision.context, ensure_ascii=False),
            "reasoning": decision.reasoning,
            "confidence": decision.confidence,
            "outcome": decision.outcome,
            "score": decision.score,
            "agent": decision.agent,
            "orchestration_id": decision.orchestration_id,
            "at_ms": decision.at_ms,
            "resolved_at_ms": decision.resolved_at_ms,
            "resolved_by": decision.resolved_by,
        },
    )
    return inserted > 0


def resolve(tx: Tx, said: Resolved) -> bool:
    """Say how a decision turned out; False if that was said before, or there is none."""
    return tx.run("decisions.resolve", asdict(said)) > 0


def page(tx: Tx, wanted: dict[str, str | float | None], *, limit: int, cursor: str | None) -> DecisionPage:
    """Decisions that fit every given field, newest first."""
    before_ms, before_id = _position(cursor)
    params = {**wanted, "before_ms": before_ms, "before_id": before_id, "limit": limit + 1}
    found = [_decision(row) for row in tx.all("decisions.page", params)]
    shown = found[:limit]
    more = len(found) > limit
    return DecisionPage(
        decisions=tuple(shown), cursor=f"{shown[-1].at_ms}-{shown[-1].decision_id}" if more and shown else None
    )


def ids_by_pattern(tx: Tx) -> dict[str, list[tuple[str, bool]]]:
    """The ids of all decisions, oldest first, by pattern, each with whether it was resolved."""
    grouped: dict[str, list[tuple[str, bool]]] = {}
    for row in tx.all("decisions.ids"):
        grouped.setdefault(row["pattern"], []).append((row["decision_id"], bool(row["resolved"])))
    return grouped


def by_ids(tx: Tx, ids: Sequence[str]) -> list[Decision]:
    """Those decisions, oldest first."""
    return [_decision(row) for row in tx.all("decisions.by_ids", {"ids": json.dumps(list(ids))})]


def _position(cursor: str | None) -> tuple[int | None, str | None]:
    if cursor is None:
        return None, None
    before_ms, _, before_id = cursor.partition("-")
    if not (before_ms.isascii() and before_ms.isdecimal() and len(before_ms) < 16 and before_id):  # noqa: PLR2004
        raise Invalid(f"{shorten(cursor)!r} is not a cursor of this list", hint="leave it out to begin again")
    return int(before_ms), before_id


def _decision(row: Row) -> Decision:
    return Decision(
        decision_id=DecisionId(row["decision_id"]),
        pattern=row["pattern"],
        decision=row["decision"],
        context=None if row["context"] is None else json.loads(row["context"]),
        reasoning=row["reasoning"],
        confidence=row["confidence"],
        outcome=row["outcome"],
        score=row["score"],
        agent=row["agent"],
        orchestration_id=row["orchestration_id"],
        at_ms=row["at_ms"],
        resolved_at_ms=row["resolved_at_ms"],
        resolved_by=row["resolved_by"],
    )
