"""A Messages API on this machine that answers from a script: for tests, for benchmarks, for a try without a key.

    async with SimServer(Script(spec)) as sim:
        provider = AnthropicProvider("any key", sim.url)

It speaks OpenAI's chat completions too: `OpenAICompatibleProvider(None, f"{sim.url}/v1")`.

Answers, tool calls, latency and faults come from `ksi_mcp/providers/script_format.py`; the agent is the request's
`metadata.user_id`. The simulator records what it was asked: `SimServer.log`, or `GET /_sim/log`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Self

from starlette.applications import Starlette
from starlette.types import Scope

from ksi_mcp.clock import Clock, SystemClock
from ksi_mcp.errors import Invalid
from ksi_mcp.providers.script import Script
from ksi_mcp.web.sim_app import SimLimits, SimRequest, Simulator

if TYPE_CHECKING:
    from types import TracebackType

    import uvicorn

__all__ = ["SimLimits", "SimRequest", "SimServer", "build_sim", "serve_sim"]

LOOPBACK: Final = "127.0.0.1"


class SimServer:
    """The simulator behind a real socket, inside the running loop. Port 0 takes a free one.

    It binds to the loopback address unless told otherwise: whoever reaches it can use it. `heard` is told the body of
    every call of a model, as it came.
    """

    def __init__(
        self,
        script: Script,
        *,
        clock: Clock | None = None,
        limits: SimLimits | None = None,
        host: str = LOOPBACK,
        port: int = 0,
        heard: Callable[[bytes], None] | None = None,
    ) -> None:
        self._simulator = Simulator(script, clock=clock or SystemClock(), limits=limits or SimLimits())
        self._simulator.cut = self._cut
        if heard is not None:
            self._simulator.heard = heard
        self._host = host
        self._port = port
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def log(self) -> list[SimRequest]:
        """The requests that ended, oldest first."""
        return list(self._simulator.log.requests)

    @property
    def max_in_flight(self) -> int:
        """The most requests that were under way at once."""
        return self._simulator.log.max_in_flight

    @property
    def open_connections(self) -> int:
        """How many connections clients hold."""
        return len(self._server.server_state.connections) if self._server is not None else 0

    async def idle(self) -> None:
        """Wait until no request is under way."""
        await self._simulator.log.idle()

    async def __aenter__(self) -> Self:
        import uvicorn

        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # The protocol is named because asyncio sets TCP_NODELAY on no other socket: 40 ms an answer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
        except (OSError, OverflowError) as error:
            listener.close()
            reason = getattr(error, "strerror", None) or "no such port"
            raise Invalid(
                f"cannot listen on {self._host} port {self._port}: {reason}", hint="choose another port, or 0"
            ) from None
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._simulator.app(),
            lifespan="off",
            log_config=None,
            access_log=False,
            http="h11",
            ws="none",
            loop="asyncio",
        )
        config.load()
        # Not `serve()`: it takes over the process's signals and polls. Start-up and the end are all we need of it.
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        self._server = server
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        for listening in server.servers:
            listening.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        while server.server_state.connections or server.server_state.tasks:
            await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
            await asyncio.sleep(0)

    def _cut(self, scope: Scope) -> bool:
        client = scope.get("client")
        for connection in list(self._server.server_state.connections if self._server else ()):
            if client is not None and connection.transport.get_extra_info("peername")[:2] == tuple(client):
                connection.transport.close()  # what was written still goes out first
                return True
        return False


def build_sim(script: Script, *, clock: Clock | None = None, limits: SimLimits | None = None) -> Starlette:
    """Build the simulator as an ASGI app, to be served by something else than `SimServer`."""
    return Simulator(script, clock=clock or SystemClock(), limits=limits or SimLimits()).app()


async def serve_sim(
    script: Script,
    host: str = LOOPBACK,
    port: int = 0,
    *,
    limits: SimLimits | None = None,
    on_ready: Callable[[str], None] | None = None,
    heard: Callable[[bytes], None] | None = None,
) -> None:
    """Serve until cancelled. `on_ready` is told the URL once requests are taken; `heard`, the bodies of the calls."""
    async with SimServer(script, host=host, port=port, limits=limits, heard=heard) as server:
        if on_ready is not None:
            on_ready(server.url)
        await asyncio.Event().wait()
