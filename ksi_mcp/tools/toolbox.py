"""The one door in: validate, authorize, run, record."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from ksi_mcp.agents import reach
from ksi_mcp.completions.toolcalls import ToolOutcome
from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError, NotFound, Refused, StoreError
from ksi_mcp.permissions import Context
from ksi_mcp.providers.base import ToolSpec
from ksi_mcp.queues.model import TakenOver
from ksi_mcp.services import Services
from ksi_mcp.tools.bounding import MAX_RESULT_CHARS, PAGE_CHARS, compact, exact, result_text
from ksi_mcp.tools.call import Call, Done, Guard, Progress, no_progress
from ksi_mcp.tools.tool import Tool

logger = logging.getLogger(__name__)

_NAMES_KEPT = 1_000
"""Events that nobody hears are asked about each time they are emitted, and are the same few names over and over."""


class Toolbox:
    """All tools, and the way to call one.

    `call` is for every caller: MCP clients, agents in their turns, command events, the command line. The
    context is made by the server; nothing in the arguments can change who acts.
    """

    def __init__(self, services: Services, tools: Sequence[Tool], *, shown: Collection[str] | None = None) -> None:
        """`shown`: the tools that agents are told of, as far as they may use them; None: all of them."""
        self._services = services
        self._shown = shown
        self._tools = {tool.name: tool for tool in tools}
        self._commands = {command: tool for tool in tools for command in (tool.command, *tool.commands)}
        self._specs: dict[frozenset[str], tuple[ToolSpec, ...]] = {}
        self._nearest = lru_cache(maxsize=_NAMES_KEPT)(self._find_nearest)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Every tool, in the order of declaration."""
        return tuple(self._tools.values())

    @property
    def commands(self) -> frozenset[str]:
        """The names of all command events."""
        return frozenset(self._commands)

    def command(self, event: str) -> Tool | None:
        """The tool that an event of this name runs, if it is a command."""
        return self._commands.get(event)

    def nearest_command(self, event: str) -> str | None:
        """The command whose name is most like `event`."""
        return self._nearest(event)

    def _find_nearest(self, event: str) -> str | None:
        close = difflib.get_close_matches(event, self._commands, n=1, cutoff=0.8)
        return close[0] if close else None

    def get(self, name: str) -> Tool:
        """A tool by its name.

        Raises:
            NotFound: there is none; the hint has the nearest.
        """
        found = self._tools.get(name)
        if found is None:
            close = difflib.get_close_matches(name, self._tools, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(close)}?" if close else "`help` lists the tools"
            raise NotFound(f"unknown tool {name[:80]!r}", hint=hint)
        return found

    async def call(
        self,
        ctx: Context,
        name: str,
        args: dict[str, Any],
        *,
        progress: Progress = no_progress,
        guard: Guard | None = None,
    ) -> Done:
        """Run a tool.

        Raises:
            KsiError: what was wrong and what to do next; nothing was changed.
        """
        return await self.dispatch(ctx, self.get(name), args, progress=progress, guard=guard)

    async def dispatch(
        self, ctx: Context, tool: Tool, args: dict[str, Any], *, progress: Progress, guard: Guard | None
    ) -> Done:
        """Run a declared tool; see `call`."""
        try:
            _check_reader(ctx, tool)
            await tool.load()
            checked = tool.validate(args)
            if ctx.actor.kind == "agent":
                await self._services.journal.read(lambda tx: reach.require(tx, ctx, tool.needs, action=tool.name))
            call = Call(self, self._services, ctx, tool, args, progress=progress, guard=guard)
            view = await tool.body(call, **checked)
        except Refused as refusal:
            if not refusal.audited:  # a command's refusal passes through event_emit as well
                refusal.audited = True
                await self._audit(ctx, tool, refusal)
            raise
        data, packed = view.as_json(), None
        if tool.pages():
            data, packed = await self._page(call, tool, checked, data)
        return Done(
            data=data, committed=call.committed, stored_text=call.stored_text, text=view.as_text(), packed=packed
        )

    async def _page(
        self, call: Call, tool: Tool, checked: dict[str, Any], data: dict[str, Any]
    ) -> tuple[dict[str, Any], str | None]:
        """A page as long as a reader can take: asked for again, with fewer entries, where it is longer."""
        limit = checked["limit"]
        while True:
            packed = exact(data)
            if limit is None or limit <= 1:
                return data, packed
            size = len(compact(data) if packed is None else packed)
            if size <= MAX_RESULT_CHARS:
                return data, packed
            limit = max(1, min(limit - 1, limit * PAGE_CHARS // size))
            data = (await tool.body(call, **{**checked, "limit": limit})).as_json()

    async def _audit(self, ctx: Context, tool: Tool, refusal: Refused) -> None:
        """Every refusal leaves a trace, in a transaction of its own: the refused one left nothing."""

        def unit(tx: Tx) -> None:
            facts = {"tool": tool.name, "actor": str(ctx.actor), "reason": refusal.text()[:1000]}
            self._services.journal.record(tx, "system:refused", facts, ctx, routable=False)

        await self._services.journal.commit(unit)

    # ------------------------------------------------------------------- for the worker's turns

    def specs(self, capabilities: frozenset[str]) -> tuple[ToolSpec, ...]:
        """The tools that somebody with these capabilities is shown; each costs tokens in every round.

        The others can be called all the same: by name, or by `event_emit` of their command.
        """
        if capabilities not in self._specs:
            self._specs[capabilities] = tuple(
                ToolSpec(name=tool.name, description=tool.description, input_schema=tool.schema())
                for tool in self._tools.values()
                if tool.needs in capabilities and (self._shown is None or tool.name in self._shown)
            )
        return self._specs[capabilities]

    def waits(self, name: str) -> bool:
        """Whether the tool may wait for others."""
        tool = self._tools.get(name)
        return tool is not None and tool.waits

    async def run(self, ctx: Context, name: str, args: dict[str, Any]) -> ToolOutcome:
        """Run one tool call of a turn; expected failures are an outcome, not an exception."""
        try:
            done = await self.call(ctx, name, args)
        except (TakenOver, StoreError):
            raise  # what the store could not take left nothing: the worker comes back to this very call
        except KsiError as error:
            return ToolOutcome(text=error.text(), is_error=True, code=error.code)
        except Exception:
            logger.exception("tool %s failed in turn %s", name, ctx.slot.turn_id if ctx.slot else "-")
            return ToolOutcome(text="internal error; the server's log has it", is_error=True)
        return ToolOutcome(text=done.text or result_text(done.data), is_error=False, stored_text=done.stored_text)


def _check_reader(ctx: Context, tool: Tool) -> None:
    if ctx.actor.kind == "reader" and tool.effects != "reads":
        raise Refused(
            f"{tool.name} changes something, and a read-only token may only look",
            hint="`help` lists the tools that only look",
        )
