"""A turn: one request to an agent, from `queued` to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ksi_mcp.db import Row
from ksi_mcp.errors import KsiError
from ksi_mcp.ids import TurnId, WorkerId

TurnState = Literal["queued", "running", "retrying", "blocked", "done", "failed", "cancelled", "timed_out"]
FINAL: frozenset[str] = frozenset({"done", "failed", "cancelled", "timed_out"})
ErrorClass = Literal["infra", "task", "budget", "refused"]
OpClass = Literal["simple", "analysis", "code", "multi_step"]

INJECTED = 10
"""Priority of a turn that goes before those that wait already."""


class TakenOver(KsiError):
    """The turn belongs to somebody else by now; what this owner still had to say is discarded."""

    code = "conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDraft:
    """A turn to put into a session."""

    session_id: str
    provider: str
    prompt: str
    orchestration_id: str | None
    created_by: str
    cause_id: str | None
    root_id: str
    hops: int
    depth: int
    reply_event: str | None = None
    timeout_s: float | None = None
    op_class: OpClass = "analysis"
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn as it stands. `attempt` counts claims, `tries` failed provider attempts of the round at hand."""

    turn_id: TurnId
    session_id: str
    seq: int
    state: TurnState
    run_at_ms: int
    orchestration_id: str | None
    provider: str
    prompt: str
    reply_event: str | None
    timeout_s: float | None
    op_class: OpClass
    created_by: str
    cause_id: str | None
    root_id: str
    hops: int
    depth: int
    attempt: int
    owner: WorkerId | None
    tries: int
    result: str | None
    partial_text: str | None
    error_class: ErrorClass | None
    error: str | None
    cost_usd_micros: int
    tokens: int
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """How a group of turns stands; the parts add up to `asked`."""

    asked: int
    ok: int
    failed: int
    cancelled: int
    timed_out: int
    pending: int


def census_of(turns: list[Turn]) -> Census:
    """Count turns by how they ended."""
    states = [turn.state for turn in turns]
    return Census(
        asked=len(states),
        ok=states.count("done"),
        failed=states.count("failed"),
        cancelled=states.count("cancelled"),
        timed_out=states.count("timed_out"),
        pending=sum(not turn.final for turn in turns),
    )


def turn_of(row: Row) -> Turn:
    """The record behind a row; `ready` is how the store says "queued, and first in line"."""
    fields = {name: row[name] for name in Turn.__slots__}
    if fields["state"] == "ready":
        fields["state"] = "queued"
    return Turn(**fields)
