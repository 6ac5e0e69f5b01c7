"""A task: a call that waits, handed over by its client, to be asked about later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

TaskStatus = Literal["working", "input_required", "completed", "failed", "cancelled"]
"""The protocol's words. No task of ours is `failed`: a tool's error is a result, and any other is told to who asks."""

FINAL: Final[frozenset[str]] = frozenset({"completed", "failed", "cancelled"})
MAX_QUESTIONS: Final = 10
"""How often somebody is asked about one parked turn, each time with what was wrong with the answer before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as it stands. Times in milliseconds since 1970.

    `waits_for` is all that is needed to see how far it is; it is empty while the call is just being made. `asked`
    holds, by parked turn, what was answered. `result` is `{"data": ...}` or `{"error": text}`.
    """

    task_id: str
    actor: str
    tool: str
    waits_for: Mapping[str, Any]
    asked: Mapping[str, Any]
    status: TaskStatus
    message: str | None
    result: Mapping[str, Any] | None
    created_at_ms: int
    updated_at_ms: int
    expires_at_ms: int

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A turn that waits for somebody, as `agent_wait` shows it. `key` is never used for another question of its task.

    `why`: the last answer was not taken, for this reason.
    """

    key: str
    turn: Mapping[str, Any]
    why: str | None = None

    @property
    def kind(self) -> str:
        """What the turn waits for: `answer` or `budget`."""
        return str(self.turn["parked_on"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a call that waits would see at this moment.

    `ended`: it would return, with `data`. `stuck`: it would return too, with `data`, but only because nothing goes on
    before somebody does something about turns in `parked`. `tail` changes all the time, `message` when something
    happens. `waits_for` is what to look at from now on, if that has changed.
    """

    ended: bool
    message: str
    stuck: bool = False
    tail: str = ""
    parked: tuple[Mapping[str, Any], ...] = ()
    data: Mapping[str, Any] | None = None
    waits_for: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """A task and what its client is asked at this moment."""

    task: Task
    questions: tuple[Question, ...] = ()


def parking_of(turn: Mapping[str, Any]) -> str:
    """One stay of a turn: it is parked anew only after another attempt."""
    return f"{turn['turn']}.{turn.get('attempts') or 1}"


def questions_about(asked: Mapping[str, Any], sight: Sight, may: frozenset[str]) -> tuple[Question, ...]:
    """What to ask now. `asked`: what was answered before; `may`: the kinds of questions the client can be asked."""
    questions: list[Question] = []
    for turn in sight.parked:
        known = asked.get(parking_of(turn)) or {}
        given = int(known.get("given", 0))
        if turn["parked_on"] in may and not known.get("closed") and given < MAX_QUESTIONS:
            questions.append(Question(key=f"{parking_of(turn)}.{given}", turn=turn, why=known.get("why")))
    return tuple(questions)


def is_over(sight: Sight, may: frozenset[str]) -> bool:
    """Whether the call would return: there is nothing more to wait for, and nobody who could be asked."""
    return sight.ended or (sight.stuck and not any(turn["parked_on"] in may for turn in sight.parked))
