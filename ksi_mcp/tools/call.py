"""One call of one tool: who calls, and the only way for a tool to change anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ksi_mcp.agents import reach
from ksi_mcp.completions import store as completions_store
from ksi_mcp.db import Tx
from ksi_mcp.db.database import Work
from ksi_mcp.errors import Conflict
from ksi_mcp.permissions import Context
from ksi_mcp.services import Services
from ksi_mcp.tools.bounding import result_text
from ksi_mcp.tools.tool import Tool, View

T = TypeVar("T")
V = TypeVar("V", bound=View)


class Progress(Protocol):
    """Told how far a call that waits is; does nothing where the caller did not ask."""

    async def __call__(self, done: float, total: float | None, message: str) -> None:
        """`done` of `total`."""
        ...


async def no_progress(done: float, total: float | None, message: str) -> None:
    """For callers that did not ask."""


Guard = Callable[[Tx], None]
"""Run first inside the call's transaction; it raises if the call must not take effect any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A call that took effect: its result, and the text that was stored with the effect (in a turn).

    `text`: the result for a reader, where it is prose or a picture and no data. `packed`: the data as exact JSON, where
    that was needed to see how long it is.
    """

    data: dict[str, Any]
    committed: bool
    stored_text: str | None
    text: str | None = None
    packed: str | None = None


class Door(Protocol):
    """What a tool needs of the toolbox that called it: the other tools. `Toolbox` in the application."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Every tool."""
        ...

    def get(self, name: str) -> Tool:
        """A tool by its name."""
        ...

    def command(self, event: str) -> Tool | None:
        """The tool that an event of this name runs."""
        ...

    def nearest_command(self, event: str) -> str | None:
        """The command whose name is most like `event`."""
        ...

    async def dispatch(
        self, ctx: Context, tool: Tool, args: dict[str, Any], *, progress: Progress, guard: Guard | None
    ) -> Done:
        """Run another tool as the same actor."""
        ...


class Call:
    """What the body of a tool is given.

    `commit` is one transaction that: asks the guard, reads the actor's grants again, answers a repeated
    idempotency key, runs the work, and stores the result in its place of the turn, all or nothing.
    """

    def __init__(
        self,
        toolbox: Door,
        svc: Services,
        ctx: Context,
        tool: Tool,
        args: dict[str, Any],
        *,
        progress: Progress = no_progress,
        guard: Guard | None = None,
    ) -> None:
        self.toolbox = toolbox
        self.svc = svc
        self.ctx = ctx
        self.tool = tool
        self.args = args
        self.progress = progress
        self.guard = guard
        self.committed = False
        self.stored_text: str | None = None

    async def read(self, work: Work[T]) -> T:
        """Look at a consistent snapshot."""
        return await self.svc.journal.read(work)

    async def commit(self, work: Callable[[Tx], V], *, key: str | None = None, again: type[V] | None = None) -> V:
        """Run `work` and store the view it returns. With `key`, a repeated call returns the first one's view."""

        def unit(tx: Tx) -> tuple[V, str | None]:
            self._admit(tx)
            # An empty key is what some clients fill in for none: it must not make one call of all of them.
            if key and again is not None:
                first = self._first_result(tx, key)
                if first is not None:
                    return again.model_validate_json(first), None
            view = work(tx)
            if key:
                self._remember(tx, key, view)
            return view, self._store(tx, view)

        view, self.stored_text = await self.svc.journal.commit(unit)
        self.committed = True
        return view

    async def step(self, work: Work[T]) -> T:
        """Change something on the way to the result, admitted like `commit`; the result itself is stored by that."""

        def unit(tx: Tx) -> T:
            self._admit(tx)
            return work(tx)

        return await self.svc.journal.commit(unit)

    def committer(self, view: Callable[[Any], View]) -> Callable[[Work[T]], Awaitable[T]]:
        """`commit` for a role object that makes its own transaction; `view` is what is stored as the result."""

        async def commit(work: Work[T]) -> T:
            def unit(tx: Tx) -> tuple[T, str | None]:
                self._admit(tx)
                result = work(tx)
                return result, self._store(tx, view(result))

            result, self.stored_text = await self.svc.journal.commit(unit)
            self.committed = True
            return result

        return commit

    def _admit(self, tx: Tx) -> None:
        slot = self.ctx.slot
        if slot is not None:
            self.svc.queues.require_owned(tx, slot.turn_id, slot.attempt, slot.owner)
        if self.guard is not None:
            self.guard(tx)
        reach.require(tx, self.ctx, self.tool.needs, action=self.tool.name)

    def _store(self, tx: Tx, view: View) -> str | None:
        if self.ctx.slot is None:
            return None
        text = result_text(view.as_json())
        completions_store.store_result(
            tx, self.ctx.slot, tool=self.tool.name, args=self.args, result=text, is_error=False
        )
        return text

    def _first_result(self, tx: Tx, key: str) -> str | None:
        row = tx.one("tools.keyed", {"actor": str(self.ctx.actor), "key": key})
        if row is None:
            return None
        if row["tool"] != self.tool.name or row["digest"] != self._digest():
            raise Conflict(
                f"idempotency_key {key[:60]!r} was used for another call ({row['tool']})",
                hint="use a new key for a new call, and the same key only to repeat the very same one",
            )
        return str(row["result"])

    def _remember(self, tx: Tx, key: str, view: View) -> None:
        tx.run(
            "tools.remember",
            {
                "actor": str(self.ctx.actor),
                "key": key,
                "tool": self.tool.name,
                "digest": self._digest(),
                "result": view.model_dump_json(),
                "now_ms": tx.now_ms,
            },
        )

    def _digest(self) -> str:
        # How long a caller is willing to wait does not make it another call.
        named = {name: value for name, value in self.args.items() if name not in ("wait_s", "idempotency_key")}
        text = json.dumps([self.tool.name, named], sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()
