"""Rows of tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from ksi_mcp.db import Row, Tx
from ksi_mcp.tasks.model import Task, TaskStatus

MAX_ID_CHARS: Final = 100
"""A longer id, or one with other letters, is none of ours, and is not looked for."""


def reserve(tx: Tx, task_id: str, *, actor: str, tool: str, for_ms: int) -> None:
    """A place that goes again after `for_ms`, unless the call is made."""
    values = {"task_id": task_id, "actor": actor, "tool": tool, "now_ms": tx.now_ms}
    tx.run("tasks.insert", {**values, "expires_at_ms": tx.now_ms + for_ms})


def is_reserved(tx: Tx, task_id: str) -> bool:
    """Whether there is a place for it."""
    return tx.one("tasks.exists", {"task_id": task_id}) is not None


def counts(tx: Tx, actor: str) -> tuple[int, int]:
    """How many tasks somebody has that have not ended, and how many in all."""
    row = tx.one("tasks.counts", {"actor": actor, "now_ms": tx.now_ms})
    return (0, 0) if row is None else (int(row["open"]), int(row["kept"]))


def find(tx: Tx, task_id: str, actor: str) -> Task | None:
    """A task of `actor`; one that has expired is not there."""
    if len(task_id) > MAX_ID_CHARS or not task_id.isascii():
        return None
    row = tx.one("tasks.one", {"task_id": task_id, "actor": actor, "now_ms": tx.now_ms})
    return None if row is None else _task_of(row)


def begin(tx: Tx, task_id: str, waits_for: Mapping[str, Any], *, message: str, for_ms: int) -> None:
    """The call is made: what it waits for, and how long after its making it is kept."""
    values = {"task_id": task_id, "waits_for": _json(waits_for), "message": message, "for_ms": for_ms}
    tx.run("tasks.begin", values)


def note(tx: Tx, task: Task, status: TaskStatus, message: str, waits_for: Mapping[str, Any] | None) -> None:
    """How far it is. Nothing happens if it has ended meanwhile."""
    stored = None if waits_for is None else _json(waits_for)
    values = {"task_id": task.task_id, "status": status, "message": message, "waits_for": stored}
    tx.run("tasks.note", {**values, "now_ms": tx.now_ms})


def end(tx: Tx, task_id: str, status: TaskStatus, message: str, result: Mapping[str, Any] | None) -> bool:
    """The last word on it; False if there was one."""
    stored = None if result is None else json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    values = {"task_id": task_id, "status": status, "message": message, "result": stored, "now_ms": tx.now_ms}
    return tx.run("tasks.end", values) > 0


def set_asked(tx: Tx, task_id: str, asked: Mapping[str, Any]) -> None:
    """What was answered to its questions."""
    tx.run("tasks.set_asked", {"task_id": task_id, "asked": _json(asked)})


def drop(tx: Tx, task_id: str) -> None:
    """Nobody was told of it."""
    tx.run("tasks.drop", {"task_id": task_id})


def drop_expired(tx: Tx, *, limit: int) -> None:
    """Let some go that nobody finds any more."""
    if tx.one("tasks.expired", {"now_ms": tx.now_ms}) is not None:
        tx.run("tasks.drop_expired", {"now_ms": tx.now_ms, "limit": limit})


def goes_on(tx: Tx, orchestration_id: str, *, quiet_ms: int) -> bool:
    """Whether anything of a run will happen without anybody doing something, or has happened within `quiet_ms`."""
    row = tx.one("tasks.goes_on", {"orchestration_id": orchestration_id, "recent_ms": tx.now_ms - quiet_ms})
    return row is not None and bool(row["goes_on"])


def _task_of(row: Row) -> Task:
    return Task(
        task_id=row["task_id"],
        actor=row["actor"],
        tool=row["tool"],
        waits_for={} if row["waits_for"] is None else json.loads(row["waits_for"]),
        asked=json.loads(row["asked"]),
        status=row["status"],
        message=row["status_message"],
        result=None if row["result"] is None else json.loads(row["result"]),
        created_at_ms=row["created_at_ms"],
        updated_at_ms=row["updated_at_ms"],
        expires_at_ms=row["expires_at_ms"],
    )


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
