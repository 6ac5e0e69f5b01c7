"""Rows of provider calls and tool results."""

from __future__ import annotations

import json
from typing import Any

from ksi_mcp.agents.history import StoredResult
from ksi_mcp.db import Tx
from ksi_mcp.ids import new_id
from ksi_mcp.permissions import Slot
from ksi_mcp.providers.base import Answer


def first_call(tx: Tx, turn_id: str) -> bool:
    """Whether no call was made for this turn yet."""
    row = tx.one("completions.calls_of", {"turn_id": turn_id})
    return row is None or row["calls"] == 0


def sent(
    tx: Tx, *, turn_id: str, number: int, attempt: int, hold_id: str, provider: str, model: str, request_hash: str
) -> int:
    """Write that a call is about to leave; its id."""
    row = tx.one(
        "completions.sent",
        {
            "turn_id": turn_id,
            "round": number,
            "attempt": attempt,
            "hold_id": hold_id,
            "provider": provider,
            "model": model,
            "request_hash": request_hash,
            "now_ms": tx.now_ms,
        },
    )
    assert row is not None  # noqa: S101  RETURNING always has a row
    return int(row["call_id"])


def batch_waits(tx: Tx, call_id: int) -> None:
    """The call goes with a batch that is still to be sent."""
    tx.run("completions.batch_waits", {"call_id": call_id})


def answered(tx: Tx, call_id: int, answer: Answer, *, stored: str, cost_usd_micros: int) -> None:
    """Store an answer, encoded as `stored`."""
    usage = answer.usage
    values = {
        "call_id": call_id,
        "answer": stored,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_tokens": usage.cache_read_tokens + usage.cache_write_tokens + usage.cache_write_1h_tokens,
        "cost_usd_micros": cost_usd_micros,
        "now_ms": tx.now_ms,
    }
    tx.run("completions.answered", values)


def ended(tx: Tx, call_id: int, *, state: str, error_kind: str, error: str, cost_usd_micros: int) -> None:
    """Store how a call without an answer ended."""
    values = {"call_id": call_id, "state": state, "error_kind": error_kind, "error": error[:2000]}
    tx.run("completions.ended", {**values, "cost_usd_micros": cost_usd_micros, "now_ms": tx.now_ms})


def mark_uncertain(tx: Tx, turn_id: str) -> None:
    """Close the calls that a lost worker left open."""
    tx.run("completions.uncertain_calls", {"turn_id": turn_id, "now_ms": tx.now_ms})


def store_note(tx: Tx, turn_id: str, number: int, text: str) -> None:
    """Store what the model is told after a round."""
    tx.run("completions.store_note", {"turn_id": turn_id, "round": number, "text": text, "now_ms": tx.now_ms})


def take_reusable(tx: Tx, orchestration_id: str, agent_name: str, request_hash: str, *, turn_id: str) -> int | None:
    """The call whose answer that agent of that run may have again, taken by this turn; None if there is none."""
    values = {"orchestration_id": orchestration_id, "agent_name": agent_name, "request_hash": request_hash}
    row = tx.one("completions.take_reusable", {**values, "turn_id": turn_id})
    return None if row is None else int(row["call_id"])


def cached(tx: Tx, request_hash: str) -> int | None:
    """The newest call that answered an equal request in words; None if there is none."""
    row = tx.one("completions.cached", {"request_hash": request_hash})
    return None if row is None else int(row["call_id"])


def reuse(
    tx: Tx,
    call_id: int,
    *,
    turn_id: str,
    number: int,
    attempt: int,
    account_id: str,
    request_hash: str,
    similarity: float | None = None,
) -> str:
    """Give a round the answer of another call, for nothing; the answer as stored. `similarity`: of what it answered."""
    hold_id = new_id("h")
    tx.run("completions.free_hold", {"hold_id": hold_id, "account_id": account_id, "turn_id": turn_id})
    values = {"turn_id": turn_id, "round": number, "attempt": attempt, "hold_id": hold_id, "call_id": call_id}
    row = tx.one(
        "completions.reuse", {**values, "request_hash": request_hash, "similarity": similarity, "now_ms": tx.now_ms}
    )
    assert row is not None  # noqa: S101  RETURNING always has a row
    return str(row["answer"])


def store_result(tx: Tx, slot: Slot, *, tool: str, args: dict[str, Any], result: str, is_error: bool) -> None:
    """Store a tool's result in its place of the turn."""
    tx.run(
        "completions.store_result",
        {
            "turn_id": slot.turn_id,
            "round": slot.round,
            "idx": slot.index,
            "tool": tool[:200],
            "args": json.dumps(args, ensure_ascii=False),
            "result": result,
            "is_error": int(is_error),
            "now_ms": tx.now_ms,
        },
    )


def give_kept_results(tx: Tx, call_id: int, *, turn_id: str, number: int) -> dict[int, StoredResult]:
    """Give a round that was answered by another call the results of its tools whose effect stays; by index."""
    values = {"call_id": call_id, "turn_id": turn_id, "number": number, "now_ms": tx.now_ms}
    rows = tx.all("completions.give_kept_results", values)
    return {
        row["idx"]: StoredResult(index=row["idx"], text=row["result"], is_error=bool(row["is_error"])) for row in rows
    }
