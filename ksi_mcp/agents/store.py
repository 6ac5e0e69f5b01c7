"""Rows of agents and of their conversations."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence

from ksi_mcp.agents.history import PastTurn, Round, StoredResult, round_of
from ksi_mcp.db import Tx


def rounds_of(tx: Tx, turn_ids: Sequence[str]) -> dict[str, tuple[Round, ...]]:
    """The stored rounds of these turns, in order."""
    ids = json.dumps(list(turn_ids))
    results: dict[tuple[str, int], dict[int, StoredResult]] = defaultdict(dict)
    for row in tx.all("agents.results", {"turn_ids": ids}):
        results[row["turn_id"], row["round"]][row["idx"]] = StoredResult(
            index=row["idx"], text=row["result"], is_error=bool(row["is_error"])
        )
    found: dict[str, list[Round]] = defaultdict(list)
    for row in tx.all("agents.answers", {"turn_ids": ids}):
        found[row["turn_id"]].append(
            round_of(row["round"], row["answer"], results.get((row["turn_id"], row["round"]), {}))
        )
    return {turn_id: tuple(rounds) for turn_id, rounds in found.items()}


def past_turns(tx: Tx, session_id: str, *, limit: int, before_seq: int = sys.maxsize) -> list[PastTurn]:
    """The newest `limit` finished turns of a session, oldest first."""
    rows = tx.all("agents.done_turns", {"session_id": session_id, "limit": limit, "before": before_seq})
    if not rows:
        return []
    rounds = rounds_of(tx, [row["turn_id"] for row in rows])
    return [
        PastTurn(
            turn_id=row["turn_id"],
            prompt=row["prompt"],
            rounds=rounds.get(row["turn_id"], ()),
            at_ms=row["created_at_ms"],
        )
        for row in reversed(rows)
    ]
