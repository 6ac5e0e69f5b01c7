"""What the worker needs from whatever runs tools: the cut in the circle toolbox -> worker -> toolbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ksi_mcp.agents.model import Agent
from ksi_mcp.permissions import Context
from ksi_mcp.providers.base import ToolSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """What a tool gave back.

    `stored_text` is what was committed together with the tool's effect, None if nothing was (a tool that
    only reads, or a call that failed and therefore left nothing). `code` says what kind of failure it was.
    """

    text: str
    is_error: bool
    stored_text: str | None = None
    code: str | None = None


class ToolRunner(Protocol):
    """Runs tools as an actor. `AgentTools` in the application."""

    def specs(self, agent: Agent) -> tuple[ToolSpec, ...] | None:
        """The tools that an agent may use, in a stable order; None if some must be asked for first: see `ready`."""
        ...

    async def ready(self, agent: Agent) -> None:
        """Find out what the agent's tools are; what cannot be reached is left out, and logged."""
        ...

    def waits(self, name: str) -> bool:
        """Whether the tool may wait for others, so that the turn should give its place away meanwhile."""
        ...

    async def run(self, ctx: Context, agent: Agent, name: str, args: dict[str, Any]) -> ToolOutcome:
        """Run one tool call of a turn of that agent; expected failures are an outcome, not an exception.

        Raises:
            TakenOver: the turn belongs to somebody else by now.
            StoreError: the store could not take it; nothing was done, and the call can be made again.
        """
        ...
