"""Calls that clients have handed over: taken in, looked at, answered, given up."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ksi_mcp.db import Tx
from ksi_mcp.errors import Exhausted, KsiError, NotFound, StoreError
from ksi_mcp.permissions import Context
from ksi_mcp.queues.model import TakenOver
from ksi_mcp.services import Services
from ksi_mcp.tasks import store
from ksi_mcp.tasks.model import Question, Sight, Task, TaskState, TaskStatus, is_over, parking_of, questions_about
from ksi_mcp.tasks.waits import WAITING_TOOLS, Waits
from ksi_mcp.tools.bounding import bounded
from ksi_mcp.tools.toolbox import Toolbox

RESERVED_MS: Final = 600_000
"""A place is kept so long for a call that is just being made; if the process dies in it, nobody knows of the task."""
SWEPT_AT_ONCE: Final = 50
_ID_BYTES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AtOnce:
    """What a call returns that has nothing to wait for."""

    data: Mapping[str, Any]


class TaskDesk:
    """Tasks, each for whoever made the call, and nobody else.

    A task is a row and nothing besides: no coroutine, no memory of a process. Whoever asks about it looks at what it
    waits for in the store, so it outlasts every server, and any server of the data folder gives the same answer. What
    the call returns is stored once, by whoever sees it first, and read from there ever after.

    Giving a task up gives up the waiting: the turns and runs that the call began go on.
    """

    def __init__(self, services: Services, toolbox: Toolbox) -> None:
        self._journal = services.journal
        self._config = services.config.tasks
        self._waits = Waits(services, toolbox)
        self._toolbox = toolbox

    async def take(self, ctx: Context, name: str, args: dict[str, Any], *, may: frozenset[str]) -> Task | AtOnce | None:
        """Take a call in, if it is one that waits. Without anything to wait for, its result is there at once.

        None: nothing was done, and the call is to be made as always: it does not wait, or the caller has as many tasks
        as are kept. `may`: the kinds of questions (`answer`, `budget`) that the client can be asked.

        Raises:
            KsiError: as the call itself; nothing was done.
            Exhausted: so many calls of the caller are waited for already; nothing was done.
        """
        if name not in WAITING_TOOLS:
            return None
        actor, task_id = str(ctx.actor), f"task_{secrets.token_hex(_ID_BYTES)}"

        def reserve(tx: Tx) -> None:
            if not store.is_reserved(tx, task_id):
                store.drop_expired(tx, limit=SWEPT_AT_ONCE)
                self._check_room(tx, actor)
                store.reserve(tx, task_id, actor=actor, tool=name, for_ms=RESERVED_MS)

        if (await self._journal.read(lambda tx: store.counts(tx, actor)))[1] >= self._config.kept:
            return None
        waits_for = await self._waits.begin(ctx, name, args, reserve)
        if waits_for is None:
            return None
        sight = await self._waits.look(ctx, name, waits_for)
        if is_over(sight, may):
            if self._waits.does_something(name):
                await self._journal.commit(lambda tx: store.drop(tx, task_id))
            return AtOnce(data=sight.data or {})

        def unit(tx: Tx) -> Task | None:
            reserve(tx)
            for_ms = round(self._config.ttl_s * 1000)
            store.begin(tx, task_id, waits_for, message=_said(sight, {}), for_ms=for_ms)
            return store.find(tx, task_id, actor)

        task = await self._journal.commit(unit)
        assert task is not None  # noqa: S101  it was written in the same transaction
        return task

    async def look(self, ctx: Context, task_id: str, *, may: frozenset[str]) -> TaskState:
        """How far a task is, and what its client is asked. `may`: as for `take`.

        Raises:
            NotFound: the caller has no such task, or it has expired.
            StoreError: the store could not be read or written; the task is as it was.
        """
        task = await self._journal.read(lambda tx: self._find(tx, ctx, task_id))
        if task.final:
            return TaskState(task=task)
        try:
            sight = await self._waits.look(ctx, task.tool, task.waits_for)
        except (StoreError, TakenOver):
            raise
        except KsiError as error:  # what the call itself would have come to
            return TaskState(task=await self._end(ctx, task, "completed", error.text(), {"error": error.text()}))
        if is_over(sight, may):
            data, _ = bounded(dict(sight.data or {}))
            return TaskState(task=await self._end(ctx, task, "completed", sight.message, {"data": data}))
        questions = questions_about(task.asked, sight, may)
        status: TaskStatus = "input_required" if questions else "working"
        noted = await self._note(ctx, task, status, _said(sight, task.asked), sight)
        if noted.final:
            return TaskState(task=noted)
        return TaskState(task=_with_tail(noted, sight.tail), questions=questions)

    async def answered(self, ctx: Context, task_id: str, question: Question, *, why: str | None, again: bool) -> None:
        """Note that a question had an answer that changed nothing. `why`: the answer was not taken, for this reason.

        `again`: ask once more, saying why. Otherwise the turn stays parked, and nobody is asked about it again.

        Raises:
            NotFound: the caller has no such task, or it has expired.
        """
        parking = parking_of(question.turn)

        def unit(tx: Tx) -> None:
            task = self._find(tx, ctx, task_id)
            given = int((task.asked.get(parking) or {}).get("given", 0))
            if question.key != f"{parking}.{given}":  # somebody else's answer was first
                return
            known = {"given": given + 1, "closed": not again, "why": None if why is None else why[:1000]}
            store.set_asked(tx, task_id, {**task.asked, parking: known})

        await self._journal.commit(unit)

    async def cancel(self, ctx: Context, task_id: str) -> None:
        """Give a task up; what it waits for goes on. One that has ended stays as it is.

        Raises:
            NotFound: the caller has no such task, or it has expired.
        """

        def unit(tx: Tx) -> None:
            task = self._find(tx, ctx, task_id)
            store.end(tx, task_id, "cancelled", _given_up(task), None)

        await self._journal.commit(unit)

    # --------------------------------------------------------------------------------------- private

    def _find(self, tx: Tx, ctx: Context, task_id: str) -> Task:
        found = store.find(tx, task_id, str(ctx.actor))
        if found is None or not found.waits_for:
            # The same words for a task of somebody else, and for one that was never there.
            raise NotFound(
                f"unknown task {task_id[:60]!r}",
                hint=f"a task is known to whoever made the call, for {self._config.ttl_s / 3600:g} hours",
            )
        return found

    def _check_room(self, tx: Tx, actor: str) -> None:
        waiting, _ = store.counts(tx, actor)
        if waiting >= self._config.open:
            raise Exhausted(
                f"{waiting} calls of {actor} are waited for as tasks, which is the limit",
                hint="wait for one of them or cancel it (tasks/cancel); or make the call without waiting: wait_s=0, "
                "timeout_s=0",
            )

    async def _note(self, ctx: Context, task: Task, status: TaskStatus, message: str, sight: Sight) -> Task:
        if (status, message) == (task.status, task.message) and sight.waits_for is None:
            return task

        def unit(tx: Tx) -> Task:
            store.note(tx, task, status, message, sight.waits_for)
            return self._find(tx, ctx, task.task_id)

        return await self._journal.commit(unit)

    async def _end(self, ctx: Context, task: Task, status: TaskStatus, message: str, result: Mapping[str, Any]) -> Task:
        def unit(tx: Tx) -> Task:
            store.end(tx, task.task_id, status, message[:1000], result)
            return self._find(tx, ctx, task.task_id)

        return await self._journal.commit(unit)


def _said(sight: Sight, asked: Mapping[str, Any]) -> str:
    """How far it is, and who is waited for; what changes all the time is left out."""
    if not sight.parked:
        return sight.message
    first = sight.parked[0]
    waits = f"turn {first['turn']} of {first.get('agent_name') or first['agent']} waits for {_FOR[first['parked_on']]}"
    more = f" (and {len(sight.parked) - 1} more)" if len(sight.parked) > 1 else ""
    why = (asked.get(parking_of(first)) or {}).get("why")
    return f"{sight.message}; {waits}{more}" + ("" if why is None else f"; the last answer was not taken: {why}")


_FOR: Final = {
    "answer": "an answer: completion_answer(turn, text)",
    "budget": "room in its budget: budget_set(account, limits)",
}


def _with_tail(task: Task, tail: str) -> Task:
    return task if not tail else replace(task, message=f"{task.message or ''}{tail}")


def _given_up(task: Task) -> str:
    """Where to find what goes on."""
    held = task.waits_for
    if run := held.get("orchestration") if task.tool == "orchestration_start" else None:
        return f"nobody waits for it any more; run {run} goes on: orchestration_status, orchestration_control"
    if evaluation := held.get("evaluation"):
        return f"nobody waits for it any more; composition_evaluate(evaluation={evaluation!r}) goes on with it"
    if turns := held.get("turns"):
        named = f"{turns[:3]!r}"[:-1] + (", ...]" if len(turns) > 3 else "]")  # noqa: PLR2004  enough to go by
        return f"nobody waits for it any more; the turns go on: agent_wait(turns={named})"
    return "nobody waits for it any more"
