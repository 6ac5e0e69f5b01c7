"""A turn: one request to an agent, from `queued` to its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any, Literal, cast

from ksi_mcp.db import Row
from ksi_mcp.errors import KsiError
from ksi_mcp.ids import TurnId, WorkerId

TurnState = Literal["queued", "running", "retrying", "blocked", "parked", "done", "failed", "cancelled", "timed_out"]
FINAL: frozenset[str] = frozenset({"done", "failed", "cancelled", "timed_out"})
ErrorClass = Literal["infra", "task", "budget", "refused"]
OpClass = Literal["simple", "analysis", "code", "multi_step"]
ParkedOn = Literal["answer", "budget", "breaker", "batch"]
NEVER_MS = 2**62
"""When a parked turn runs again by itself."""

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
    expect: str | None = None
    cache: str | None = None
    batched: bool = False
    turn_id: TurnId | None = None
    """Fresh, from whoever wants to know it before the turn is made; None: a new one."""


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
    held: int
    parked_on: ParkedOn | None
    question: str | None
    expect: str | None
    checks: int
    cache: str | None
    link: int
    first_error: str | None
    reused: int
    answered_by: str | None
    moved_from: str | None
    rescues: int
    batched: int
    streamed_chars: int
    similarity: float | None

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


def queued_turn(draft: TurnDraft, *, turn_id: TurnId, seq: int, now_ms: int, held: int) -> Turn:
    """The turn that a draft becomes when it enters its lane."""
    return Turn(
        turn_id=turn_id,
        session_id=draft.session_id,
        seq=seq,
        state="queued",
        run_at_ms=now_ms,
        orchestration_id=draft.orchestration_id,
        provider=draft.provider,
        prompt=draft.prompt,
        reply_event=draft.reply_event,
        timeout_s=draft.timeout_s,
        op_class=draft.op_class,
        created_by=draft.created_by,
        cause_id=draft.cause_id,
        root_id=draft.root_id,
        hops=draft.hops,
        depth=draft.depth,
        attempt=0,
        owner=None,
        tries=0,
        result=None,
        partial_text=None,
        error_class=None,
        error=None,
        cost_usd_micros=0,
        tokens=0,
        created_at_ms=now_ms,
        started_at_ms=None,
        finished_at_ms=None,
        held=held,
        parked_on=None,
        question=None,
        expect=draft.expect,
        checks=0,
        cache=draft.cache,
        link=0,
        first_error=None,
        reused=0,
        answered_by=None,
        moved_from=None,
        rescues=0,
        batched=int(draft.batched),
        streamed_chars=0,
        similarity=None,
    )


def turn_of(row: Row) -> Turn:
    """The record behind a row; `ready` is how the store says "queued, and first in line"."""
    columns = tuple(row.keys())
    fields = dict(zip(Turn.__slots__, _picker(columns)(row), strict=True))
    if fields["state"] == "ready":
        fields["state"] = "queued"
    return Turn(**fields)


def changed(turn: Turn, **changes: Any) -> Turn:
    """The turn with some fields changed; twice as fast as `dataclasses.replace`, on the hottest path there is."""
    return Turn(**{**dict(zip(Turn.__slots__, _ALL(turn), strict=True)), **changes})


_ALL = attrgetter(*Turn.__slots__)


@cache
def _picker(columns: tuple[str, ...]) -> Callable[[Row], tuple[Any, ...]]:
    """Where the fields of a turn stand in a row: a look-up by name costs a search through all columns."""
    places = {name: place for place, name in enumerate(columns)}
    return cast("Callable[[Row], tuple[Any, ...]]", itemgetter(*(places[name] for name in Turn.__slots__)))
