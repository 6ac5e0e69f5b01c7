"""A run of a pattern."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from ksi_mcp.agents.model import AgentSpec
from ksi_mcp.budgets.model import Limits
from ksi_mcp.compositions.resolve import Resolved
from ksi_mcp.compositions.routes import StaticRule
from ksi_mcp.db import Row
from ksi_mcp.ids import OrchestrationId

OrchestrationState = Literal["running", "suspended", "completed", "failed", "stopped"]
ENDED: frozenset[str] = frozenset({"completed", "failed", "stopped"})
Mode = Literal["drain", "now"]
"""`drain` lets turns stop by themselves, `now` stops them at once."""
Orchestrator = Literal["client", "agent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPlan:
    """Everything a start needs, made before its transaction: nothing is read from files inside one."""

    resolved: Resolved
    agents: tuple[AgentSpec, ...]
    rules: tuple[StaticRule, ...]
    limits: Limits
    orchestrator: Orchestrator
    max_depth: int
    checkpoint_every: int | None = None
    """Turns between two automatic checkpoints; None: none are made."""
    account: str | None = None
    """The account it is paid from; None: that of the agent that starts it, or everybody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orchestration:
    """A run as it stands. `n` is its place in the order of starts."""

    n: int
    orchestration_id: OrchestrationId
    pattern: str
    pattern_hash: str
    state: OrchestrationState
    orchestrator: Orchestrator
    vars: dict[str, Any]
    max_depth: int
    created_by: str
    started_at_ms: int
    ended_at_ms: int | None
    outcome: str | None
    score: float | None
    metrics: dict[str, Any] | None
    summary: str | None
    suspended_at_ms: int | None
    origin_id: str | None
    """The run whose checkpoint it was made from."""
    draining: Ending | None
    """How it will end once its turns have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended, as whoever ends it says."""

    state: Literal["completed", "failed", "stopped"]
    outcome: str | None = None
    score: float | None = None
    metrics: dict[str, Any] | None = None
    summary: str | None = None
    reported_by: str | None = None
    """Who said so, where the run ends later than that; never from an argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """The turns of a run by state, and what they cost."""

    turns: dict[str, int]
    usd_micros: int
    tokens: int


def orchestration_of(row: Row) -> Orchestration:
    """The record behind a row."""
    fields = {name: row[name] for name in Orchestration.__slots__}
    fields["vars"] = json.loads(row["vars"])
    fields["metrics"] = None if row["metrics"] is None else json.loads(row["metrics"])
    fields["draining"] = None if row["draining"] is None else Ending(**json.loads(row["draining"]))
    return Orchestration(**fields)
