"""How a process that works for an agent reaches our tools, as seen from the provider that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ksi_mcp.providers.base import Behalf, ToolSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Where the tools are, and the credential that opens them to one process."""

    url: str
    token: str


class Door(Protocol):
    """Where agent processes use our tools. `AgentDoor` in the application."""

    async def admit(self, agent_id: str, tools: Sequence[ToolSpec]) -> Grant:
        """Make a token for a process of that agent, which sees these tools. It can call them in a turn only."""
        ...

    def enter(self, token: str, behalf: Behalf, taken_over: Callable[[], None]) -> None:
        """A turn begins. `taken_over` is called when a tool finds that the turn is somebody else's by now."""
        ...

    async def leave(self, token: str) -> None:
        """The turn is over; what is under way for it is stopped, and nothing more is let in."""
        ...

    def close(self, token: str) -> None:
        """The process has ended; its token is worth nothing any more."""
        ...

    async def aclose(self) -> None:
        """Close the door for good."""
        ...


class LazyDoor:
    """A door that is built when the first process asks for it: most servers never need one, and it is heavy."""

    def __init__(self, build: Callable[[], Door]) -> None:
        self._build = build
        self._door: Door | None = None
        self._building = asyncio.Lock()

    async def admit(self, agent_id: str, tools: Sequence[ToolSpec]) -> Grant:
        """Make a token for a process of that agent."""
        async with self._building:
            if self._door is None:
                self._door = await asyncio.to_thread(self._build)  # a second of imports: not on the loop
        return await self._door.admit(agent_id, tools)

    def enter(self, token: str, behalf: Behalf, taken_over: Callable[[], None]) -> None:
        """A turn begins."""
        if self._door is not None:
            self._door.enter(token, behalf, taken_over)

    async def leave(self, token: str) -> None:
        """The turn is over."""
        if self._door is not None:
            await self._door.leave(token)

    def close(self, token: str) -> None:
        """The process has ended."""
        if self._door is not None:
            self._door.close(token)

    async def aclose(self) -> None:
        """Close the door for good, if it was ever built."""
        if self._door is not None:
            await self._door.aclose()
