"""The tools of other MCP servers, for agents: which there are, and the way to call one.

One connection per server and process, opened when an agent that may use it is about to speak, shared by all agents.
Servers that cannot be reached are left out, and tried again after a pause that grows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ksi_mcp.clock import Clock
from ksi_mcp.errors import KsiError
from ksi_mcp.provider_config import McpServerConfig
from ksi_mcp.providers.mcp.connection import Connection, Lost, Result, Surroundings
from ksi_mcp.providers.mcp.listing import (
    MAX_TOOLS_PER_AGENT,
    OutsideTool,
    check_server_name,
    matches,
    usable,
)
from ksi_mcp.providers.mcp.reach import Lookup, check_server
from ksi_mcp.providers.processes import Processes

logger = logging.getLogger(__name__)

Wanted = Mapping[str, list[str] | None]
"""Servers by name, and which of their tools (names or globs); None: all that the operator permits."""

IN_FLIGHT: Final = 32
"""Calls at once at one server; the others wait for their turn."""
OLD_S: Final = 600.0
"""A list of tools is asked for again after so long, or when the server says that it has changed."""
CHANGED_S: Final = 30.0
"""But not sooner than that: what a model is shown should stay the same while it works."""
LONGEST_PAUSE_S: Final = 300.0
HUNG_CALLS: Final = 3
"""So many calls in a row without an answer, and the connection is given up."""
_KEPT: Final = 256

_UNKNOWN = "whether it took effect is unknown: look before you repeat it"


class McpTools:
    """The servers of the operator's configuration. Nothing is started before an agent needs it."""

    def __init__(self, servers: Mapping[str, McpServerConfig], *, clock: Clock, lookup: Lookup, home: Path) -> None:
        """`lookup` finds what `${NAME}` stands for; `home` is where servers run and their processes are recorded.

        Raises:
            Invalid: a server has a name that cannot be used, or cannot be reached as it is written.
        """
        self._processes = Processes(home / "processes")
        outer = Surroundings(lookup=lookup, processes=self._processes, cwd=home)
        self._servers: dict[str, _Server] = {}
        for name, config in servers.items():
            check_server_name(name)
            check_server(name, config)
            self._servers[name] = _Server(name, config, clock, outer)
        self._offered: dict[object, tuple[tuple[int, ...], tuple[OutsideTool, ...]]] = {}

    def offered(self, wanted: Wanted) -> tuple[OutsideTool, ...] | None:
        """The tools that these servers have, the same object as long as they are the same.

        None: some server must be asked first; see `ready`.
        """
        servers = [self._servers[name] for name in wanted if name in self._servers]
        if not all(server.known for server in servers):
            return None
        key = tuple((name, None if globs is None else tuple(globs)) for name, globs in wanted.items())
        versions = tuple(server.version for server in servers)
        kept = self._offered.get(key)
        if kept is not None and kept[0] == versions:
            return kept[1]
        tools = tuple(tool for server in servers for tool in server.tools if matches(tool.name, wanted[server.name]))
        if len(tools) > MAX_TOOLS_PER_AGENT:
            logger.warning(
                "%d tools of MCP servers %s are too many for one agent: it gets the first %d",
                len(tools), ", ".join(wanted), MAX_TOOLS_PER_AGENT,
            )  # fmt: skip
        if len(self._offered) >= _KEPT:
            self._offered.clear()
        self._offered[key] = (versions, tools[:MAX_TOOLS_PER_AGENT])
        return self._offered[key][1]

    async def ready(self, wanted: Wanted) -> None:
        """Connect to these servers and ask for their tools, all at once; what cannot be reached is left out."""
        servers = [self._servers[name] for name in wanted if name in self._servers]
        await asyncio.gather(*(server.ask() for server in servers if not server.known))

    async def call(self, tool: OutsideTool, args: dict[str, Any]) -> Result:
        """Run a tool once, at most; whatever goes wrong is a result that says so."""
        return await self._servers[tool.server].call(tool.name, args)

    async def aclose(self) -> None:
        """Close all connections and end the processes behind them."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))
        await self._processes.aclose()


class _Server:
    """One server: its connection, if there is one, and what it listed last."""

    def __init__(self, name: str, config: McpServerConfig, clock: Clock, outer: Surroundings) -> None:
        self.name = name
        self.tools: tuple[OutsideTool, ...] = ()
        self.version = 0
        """Of its list: another number, other tools."""
        self._config = config
        self._clock = clock
        self._outer = outer
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._asked_at_s: float | None = None
        self._failures = 0
        self._pause_until_s = 0.0
        self._reachable = True
        self._hung = 0

    @property
    def known(self) -> bool:
        """Whether its tools need not be asked for now."""
        now_s = self._clock.monotonic_s()
        if self._asked_at_s is None:
            return False
        if not self._reachable:
            return now_s < self._pause_until_s
        changed = self._connection is not None and self._connection.list_changed
        return now_s - self._asked_at_s < (CHANGED_S if changed else OLD_S)

    # ------------------------------------------------------------------------------ its tools

    async def ask(self) -> None:
        """Find out which tools it has; never raises what the server is to blame for."""
        if self._asking is None:
            self._asking = _shared(self._ask(), lambda: setattr(self, "_asking", None))
        await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        try:
            connection = await self._connected()
            listed = await connection.tools()
        except (Lost, TimeoutError, KsiError) as failure:
            if not isinstance(failure, _Paused):
                self._failed()
                logger.warning("MCP server %r cannot be used: %s", self.name, _said(failure))
            self._reachable = False
            self._pause_until_s = max(self._pause_until_s, self._clock.monotonic_s() + 1)
            self._asked_at_s = self._clock.monotonic_s()
            self._have(())
            return
        tools, left_out = await asyncio.to_thread(usable, self.name, listed, self._config.tools)
        self._reachable, self._failures = True, 0
        self._asked_at_s = self._clock.monotonic_s()
        if left_out and self._have(tools):
            logger.warning("tools of MCP server %r that agents do not get: %s", self.name, ", ".join(left_out))
        self._have(tools)

    def _have(self, tools: tuple[OutsideTool, ...]) -> bool:
        if tools == self.tools and self.version:
            return False
        self.tools = tools
        self.version += 1
        return True

    # -------------------------------------------------------------------------- its connection

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.ended:
            return self._connection
        if self._connecting is None:
            wait_s = self._pause_until_s - self._clock.monotonic_s()
            if wait_s > 0:
                raise _Paused(
                    f"it could not be used {self._failures} times in a row; it is tried again in {wait_s:.0f} s"
                )
            self._connecting = _shared(self._connect(), lambda: setattr(self, "_connecting", None))
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Connection:
        if self._connection is not None:
            await self._connection.close()
        self._connection = await Connection.open(self.name, self._config, self._outer)
        self._connection.list_changed = self._asked_at_s is not None  # it may be another program by now
        self._hung = 0
        return self._connection

    def _failed(self) -> None:
        """The next try is at once, the one after that after a pause."""
        self._failures += 1
        pause_s = 0.0 if self._failures == 1 else min(2.0**self._failures, LONGEST_PAUSE_S)
        self._pause_until_s = self._clock.monotonic_s() + pause_s

    # -------------------------------------------------------------------------------- its use

    async def call(self, tool: str, args: dict[str, Any]) -> Result:
        """See `McpTools.call`."""
        async with self._room:
            try:
                connection = await self._connected()
            except (Lost, KsiError) as failure:
                if not isinstance(failure, _Paused):
                    self._failed()
                return Result(text=f"not done: MCP server {self.name!r}: {_said(failure)}", is_error=True)
            try:
                result = await connection.call(tool, args)
            except TimeoutError as failure:
                self._hung += 1
                if self._hung >= HUNG_CALLS:
                    self._failed()
                    await connection.close()
                return Result(text=f"MCP server {self.name!r}: {failure}; {_UNKNOWN}", is_error=True)
            except Lost as failure:
                self._failed()
                await connection.close()
                said = f"MCP server {self.name!r} was lost during the call: {failure}"
                return Result(text=f"{said}; {_UNKNOWN}", is_error=True)
        self._hung = self._failures = 0
        return result

    async def close(self) -> None:
        """End whatever is open or opening."""
        for task in (self._asking, self._connecting):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._connection is not None:
            await self._connection.close()


class _Paused(KsiError):
    """It is not tried now."""


def _shared(work: Any, over: Callable[[], None]) -> asyncio.Task[Any]:
    """A task that several wait for and none of them ends; what it raises may be nobody's by then."""

    def done(task: asyncio.Task[Any]) -> None:
        over()
        if not task.cancelled():
            task.exception()

    task = asyncio.create_task(work)
    task.add_done_callback(done)
    return task


def _said(failure: BaseException) -> str:
    return failure.text() if isinstance(failure, KsiError) else str(failure)
