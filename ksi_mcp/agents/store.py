"""Rows of agents and of their conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ksi_mcp.agents.history import PastTurn, Round, StoredResult, round_of
from ksi_mcp.db import Row, Tx


def turn_at_work(tx: Tx, turn_id: str, *, prompt: str, at_ms: int, seq: int) -> PastTurn:
    """A turn that is being carried on: what was put in, and the rounds that are stored of it."""
    parts = _parts(tx, [turn_id]).get(turn_id)
    return _turn(parts, {"turn_id": turn_id, "prompt": prompt, "at_ms": at_ms, "seq": seq})


def past_turns(tx: Tx, session_id: str, *, limit: int) -> list[PastTurn]:
    """The newest `limit` finished turns of a session, oldest first.

    They are in the order in which they ran: that of their places, unless some were put in front of others.
    """
    rows = list(reversed(tx.all("agents.done_turns", {"session_id": session_id, "limit": limit})))
    if not rows:
        return []
    if any(row["priority"] for row in rows):
        rows.sort(key=lambda row: (row["finished_at_ms"], row["seq"]))
    parts = _parts(tx, [row["turn_id"] for row in rows])
    return [
        _turn(
            parts.get(row["turn_id"]),
            {
                "turn_id": row["turn_id"],
                "prompt": row["prompt"],
                "at_ms": row["created_at_ms"],
                "seq": row["seq"],
                "answer": row["given_answer"],
                "answered_by": row["answered_by"],
            },
        )
        for row in rows
    ]


def _parts(tx: Tx, turn_ids: Sequence[str]) -> dict[str, list[Row]]:
    """All that was said in these turns, in order, by turn: one statement, for it runs with every claim."""
    found: dict[str, list[Row]] = {}
    for row in tx.all("agents.parts", {"turn_ids": json.dumps(list(turn_ids))}):
        found.setdefault(row["turn_id"], []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: (row["round"], row["idx"]))
    return found


def _turn(parts: list[Row] | None, fields: dict[str, Any]) -> PastTurn:
    if not parts:
        return PastTurn(rounds=(), **fields)
    injected: dict[str, Any] = {
        position: tuple(row["text"] for row in parts if row["kind"] == position)
        for position in ("before", "after", "system")
    }
    return PastTurn(rounds=_rounds(parts), **injected, **fields)


def _rounds(parts: list[Row]) -> tuple[Round, ...]:
    results: dict[int, dict[int, StoredResult]] = {}
    notes: dict[int, str] = {}
    for row in parts:
        if row["kind"] == "result":
            stored = StoredResult(index=row["idx"], text=row["text"], is_error=bool(row["is_error"]))
            results.setdefault(row["round"], {})[row["idx"]] = stored
        elif row["kind"] == "note":
            notes[row["round"]] = row["text"]
    return tuple(
        found if (note := notes.get(found.number)) is None else replace(found, note=note)
        for row in parts
        if row["kind"] == "answer"
        for found in (round_of(row["round"], row["text"], results.get(row["round"], {})),)
    )
