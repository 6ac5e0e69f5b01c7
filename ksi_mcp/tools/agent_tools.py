"""What agents are given to work with in their turns: our tools, and those of other MCP servers."""

from __future__ import annotations

import difflib
from typing import Any, Final

from ksi_mcp.agents.history import plain
from ksi_mcp.agents.model import Agent
from ksi_mcp.completions.store import store_result
from ksi_mcp.completions.toolcalls import ToolOutcome
from ksi_mcp.db import Tx
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import Context
from ksi_mcp.providers.base import ToolSpec
from ksi_mcp.providers.mcp.listing import SEPARATOR, OutsideTool
from ksi_mcp.providers.mcp.tools import McpTools
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.tools.bounding import MAX_RESULT_CHARS
from ksi_mcp.tools.toolbox import Toolbox

UNKNOWN_OUTCOME: Final = (
    "its outcome is unknown: the worker was lost while this call was under way; look before you repeat it"
)
_KEPT: Final = 256


class Outside:
    """Calls tools of other MCP servers for agents: each call leaves once at most, and is in the journal."""

    def __init__(self, servers: McpTools, journal: Journal, queues: SessionQueues) -> None:
        self.servers = servers
        self._journal = journal
        self._queues = queues

    async def call(self, ctx: Context, agent: Agent, tool: OutsideTool, args: dict[str, Any]) -> ToolOutcome:
        """Run a tool of another server. No transaction is open meanwhile.

        Before the call leaves, its place in the turn says that the outcome is unknown; a turn that is taken over then
        goes on with that, and never calls again.

        Raises:
            TakenOver: the turn belongs to somebody else by now.
            StoreError: the store could not take it. If the call had left, its place in the turn says so.
        """
        facts = {"server": tool.server, "tool": tool.name, "agent": agent.agent_id, "agent_name": agent.name}
        if ctx.slot is not None:
            facts["turn"] = ctx.slot.turn_id

        def leaves(tx: Tx) -> None:
            self._store(tx, ctx, tool, args, text=UNKNOWN_OUTCOME, is_error=True)
            self._journal.record(tx, "agent:tool_called", facts, ctx, agent_id=agent.agent_id, routable=False)

        await self._journal.commit(leaves)
        began_s = self._journal.clock.monotonic_s()
        result = await self.servers.call(tool, args)
        took_ms = round((self._journal.clock.monotonic_s() - began_s) * 1000)
        text = bounded(plain(result.text))

        def answered(tx: Tx) -> None:
            self._store(tx, ctx, tool, args, text=text, is_error=result.is_error)
            outcome = {**facts, "is_error": result.is_error, "took_ms": took_ms}
            self._journal.record(tx, "agent:tool_answered", outcome, ctx, agent_id=agent.agent_id, routable=False)

        await self._journal.commit(answered)
        return ToolOutcome(text=text, is_error=result.is_error, stored_text=None if ctx.slot is None else text)

    def _store(
        self, tx: Tx, ctx: Context, tool: OutsideTool, args: dict[str, Any], *, text: str, is_error: bool
    ) -> None:
        slot = ctx.slot
        if slot is not None:
            self._queues.require_owned(tx, slot.turn_id, slot.attempt, slot.owner)
            store_result(tx, slot, tool=tool.spec.name, args=args, result=text, is_error=is_error)


class AgentTools:
    """The tools of the toolbox that an agent's capabilities allow, and those of the servers that it was given."""

    def __init__(self, toolbox: Toolbox, outside: Outside | None = None) -> None:
        self._toolbox = toolbox
        self._outside = outside
        self._own = frozenset(tool.name for tool in toolbox.tools)
        self._specs: dict[tuple[frozenset[str], int], tuple[tuple[OutsideTool, ...], tuple[ToolSpec, ...]]] = {}

    def specs(self, agent: Agent) -> tuple[ToolSpec, ...] | None:
        """The tools that an agent may use, in a stable order; None if its servers must be asked first.

        The same object as long as they are the same, whichever agent asks.
        """
        own = self._toolbox.specs(agent.capabilities)
        if self._outside is None or not agent.settings.mcp_servers:
            return own
        offered = self._outside.servers.offered(agent.settings.mcp_servers)
        if not offered:
            return None if offered is None else own
        key = (agent.capabilities, id(offered))
        kept = self._specs.get(key)
        if kept is None:
            if len(self._specs) >= _KEPT:
                self._specs.clear()
            theirs = tuple(tool.spec for tool in offered if tool.spec.name not in self._own)
            # What is offered is kept along, so that no other object can come to have its id.
            kept = self._specs[key] = (offered, own + theirs)
        return kept[1]

    async def ready(self, agent: Agent) -> None:
        """Ask the agent's servers for their tools; what cannot be reached is left out, and logged."""
        if self._outside is not None and agent.settings.mcp_servers:
            await self._outside.servers.ready(agent.settings.mcp_servers)

    def waits(self, name: str) -> bool:
        """Whether the tool may wait for others: a turn that waits for another server has nothing to do meanwhile."""
        return self._toolbox.waits(name) or self._is_outside(name)

    async def run(self, ctx: Context, agent: Agent, name: str, args: dict[str, Any]) -> ToolOutcome:
        """Run one tool call of a turn; expected failures are an outcome, not an exception."""
        wanted = agent.settings.mcp_servers
        if self._outside is None or not wanted or not self._is_outside(name):
            return await self._toolbox.run(ctx, name, args)
        if (offered := self._outside.servers.offered(wanted)) is None:
            await self._outside.servers.ready(wanted)
            offered = self._outside.servers.offered(wanted) or ()
        tool = next((tool for tool in offered if tool.spec.name == name), None)
        if tool is None:
            close = difflib.get_close_matches(name, [tool.spec.name for tool in offered], n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}?" if close else "its server may be out of reach"
            return ToolOutcome(text=f"unknown tool {name[:80]!r}; {hint}", is_error=True)
        return await self._outside.call(ctx, agent, tool, args)

    def _is_outside(self, name: str) -> bool:
        return self._outside is not None and SEPARATOR in name and name not in self._own


def bounded(text: str) -> str:
    """A result of another server, as long as those of ours may be."""
    if len(text) <= MAX_RESULT_CHARS:
        return text
    return f"{text[:MAX_RESULT_CHARS]} ... [cut at {MAX_RESULT_CHARS:,} of {len(text):,} characters]"
