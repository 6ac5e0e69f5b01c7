"""The door for agent processes: MCP on loopback, where each token stands for one agent and opens only in its turns.

Who calls follows from the token alone. What is offered is what the agent may use in the turn that is at work; what is
called runs as the agent, in its turn, with the same checks and the same audit as any other call of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from mcp.server.lowlevel import Server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
)

from ksi_mcp import __version__
from ksi_mcp.agents.model import Agent
from ksi_mcp.completions.toolcalls import ToolOutcome, ToolRunner
from ksi_mcp.errors import KsiError, Refused
from ksi_mcp.providers.base import Behalf, ToolSpec
from ksi_mcp.providers.door import Grant
from ksi_mcp.queues.model import TakenOver
from ksi_mcp.transports.auth import AsgiApp, Receive, Scope, Send, answer, refuse
from ksi_mcp.transports.http import MAX_BODY_BYTES, listen
from ksi_mcp.transports.results import NOT_OFFERED, failed

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

TOKEN_BYTES: Final = 32
PATH: Final = "/mcp"
PROGRESS_S: Final = 10.0
"""A tool that waits says so often that it does: clients give up on a silent one."""

_HOST: Final = "127.0.0.1"
_GRANT: Final = "ksi.admitted"
_NO_TURN: Final = "refused: no turn of yours is at work"
_LOST: Final = "refused: this turn was taken over by another worker"


class _Admitted:
    """One process of an agent, and the turn it works on, if it does."""

    def __init__(self, agent_id: str, token: str, tools: tuple[ToolSpec, ...]) -> None:
        self.agent_id = agent_id
        self.token = token
        self.tools = tools
        self.turn: _Turn | None = None


class _Turn:
    """A turn at work, and its calls that are under way."""

    def __init__(self, behalf: Behalf, taken_over: Callable[[], None]) -> None:
        self.behalf = behalf
        self.taken_over = taken_over
        self.calls: set[asyncio.Task[ToolOutcome]] = set()
        self.used = 0
        """Places for tool calls that are taken."""
        self._waiting = 0
        self._rest: AbstractContextManager[None] | None = None

    @contextlib.contextmanager
    def resting(self) -> Any:
        """Calls may run side by side: the turn's place is given away once, by the first of them that waits."""
        if self._waiting == 0:
            self._rest = self.behalf.resting()
            self._rest.__enter__()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if self._waiting == 0 and self._rest is not None:
                rest, self._rest = self._rest, None
                rest.__exit__(None, None, None)


class AgentDoor:
    """Admits processes of agents. It opens at the first `admit`, and listens on loopback only.

    `tools` runs what they call; `load` gives the record of an agent by its id.
    """

    def __init__(self, tools: ToolRunner, load: Callable[[str], Awaitable[Agent]]) -> None:
        self._tools = tools
        self._load = load
        self._admitted: dict[str, _Admitted] = {}
        self._opening = asyncio.Lock()
        self._port: int | None = None
        self._work: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def admit(self, agent_id: str, tools: Sequence[ToolSpec]) -> Grant:
        """Make a token for a process of that agent, which sees these tools. It can call them in a turn only."""
        async with self._opening:
            if self._port is None:
                await self._open()
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._admitted[token] = _Admitted(agent_id, token, tuple(tools))
        return Grant(url=f"http://{_HOST}:{self._port}{PATH}", token=token)

    def enter(self, token: str, behalf: Behalf, taken_over: Callable[[], None]) -> None:
        """A turn begins: from now on its tools are there."""
        admitted = self._admitted[token]
        if behalf.ctx.actor.agent_id != admitted.agent_id:
            raise ValueError("the turn is of another agent")
        admitted.tools = behalf.tools
        admitted.turn = _Turn(behalf, taken_over)

    async def leave(self, token: str) -> None:
        """The turn is over: calls under way are cancelled, and nothing more is let in."""
        admitted = self._admitted.get(token)
        if admitted is None or admitted.turn is None:
            return
        turn, admitted.turn = admitted.turn, None
        for call in turn.calls:
            call.cancel()
        if turn.calls:
            await asyncio.wait(turn.calls)

    def close(self, token: str) -> None:
        """The process has ended."""
        self._admitted.pop(token, None)

    async def aclose(self) -> None:
        """Close the listener and end all connections."""
        self._admitted.clear()
        if self._work is not None:
            self._stop.set()
            work, self._work = self._work, None
            await work

    # ------------------------------------------------------------------------------- listening

    async def _open(self) -> None:
        listener = await listen(_HOST, 0)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work = asyncio.create_task(self._serve(listener, ready), name="ksi-agent-door")
        await ready
        self._port = listener.getsockname()[1]

    async def _serve(self, listener: socket.socket, ready: asyncio.Future[None]) -> None:
        import uvicorn

        from ksi_mcp.transports.connections import Connection  # noqa: PLC0415  it imports uvicorn

        server = Server(
            "ksi", title="KSI", version=__version__, on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )
        hosts = [f"{_HOST}:{listener.getsockname()[1]}"]
        app = server.streamable_http_app(
            streamable_http_path=PATH,
            stateless_http=True,  # who calls is decided by each request, never by a session that somebody may know of
            max_request_body_size=MAX_BODY_BYTES,
            transport_security=TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=[]),
        )
        config = uvicorn.Config(
            self._checked(cast("AsgiApp", app)),
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            http=Connection,
            proxy_headers=False,
            server_header=False,
        )
        config.load()
        # Not `serve()`, which takes over the process's signals: its start and its end are all that is needed.
        web = uvicorn.Server(config)
        web.lifespan = config.lifespan_class(config)
        try:
            async with server.session_manager.run():
                await web.startup(sockets=[listener])
                ready.set_result(None)
                await self._stop.wait()
                await _shut(web)
        except BaseException as failure:
            if not ready.done():
                ready.set_exception(failure)
                return
            raise
        finally:
            listener.close()

    def _checked(self, app: AsgiApp) -> AsgiApp:
        async def check(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return
            if scope["path"] != PATH:
                await answer(send, 404, {"error": "not found"})
                return
            admitted = self._who(scope)
            if admitted is None:
                await refuse(send)
                return
            scope[_GRANT] = admitted
            await app(scope, receive, send)

        return check

    def _who(self, scope: Scope) -> _Admitted | None:
        """Whose token the request carries. All are compared, each in constant time."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return None
        scheme, _, credentials = given[0].partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        found = None
        for token, admitted in self._admitted.items():
            if hmac.compare_digest(credentials.strip(), token.encode()):
                found = admitted
        return found

    # ----------------------------------------------------------------------------- the protocol

    async def _list_tools(self, ctx: Any, _params: PaginatedRequestParams | None) -> ListToolsResult:
        admitted: _Admitted = ctx.request.scope[_GRANT]
        return ListToolsResult(
            tools=[
                Tool(name=spec.name, description=spec.description, input_schema=spec.input_schema)
                for spec in admitted.tools
            ]
        )

    async def _call_tool(self, ctx: Any, params: CallToolRequestParams) -> CallToolResult:
        admitted: _Admitted = ctx.request.scope[_GRANT]
        turn = admitted.turn
        if turn is None or self._admitted.get(admitted.token) is not admitted:
            return failed(_NO_TURN, Refused.code)
        if all(spec.name != params.name for spec in turn.behalf.tools):
            return failed(f"refused: {params.name[:80]!r} is not one of your tools", NOT_OFFERED)
        call = asyncio.create_task(self._run(turn, admitted.agent_id, params), name=f"ksi-door-{params.name[:40]}")
        turn.calls.add(call)
        call.add_done_callback(turn.calls.discard)
        try:
            outcome = await _patiently(call, ctx)
        except TakenOver:
            turn.taken_over()
            return failed(_LOST, Refused.code)
        except KsiError as error:
            return failed(error.text(), error.code)
        except asyncio.CancelledError:
            if admitted.turn is turn:  # the client has left; the call goes with it
                call.cancel()
                raise
            return failed(_NO_TURN, Refused.code)
        except Exception:
            logger.exception("tool %s failed for a process of agent %s", params.name[:80], admitted.agent_id)
            return failed("internal error; the server's log has it")
        if outcome.is_error:
            return failed(outcome.text, outcome.code)
        return CallToolResult(content=[TextContent(type="text", text=outcome.text)])

    async def _run(self, turn: _Turn, agent_id: str, params: CallToolRequestParams) -> ToolOutcome:
        slot = turn.behalf.ctx.slot
        if slot is not None:
            slot = replace(slot, index=turn.used)
            turn.used += 1
        ctx = replace(turn.behalf.ctx, slot=slot)
        agent = await self._load(agent_id)
        args = dict(params.arguments or {})
        if not self._tools.waits(params.name):
            return await self._tools.run(ctx, agent, params.name, args)
        with turn.resting():
            return await self._tools.run(ctx, agent, params.name, args)


async def _patiently(call: asyncio.Task[ToolOutcome], ctx: Any) -> ToolOutcome:
    """Wait for a call, and say now and then that it is under way."""
    times = 0
    while True:
        done, _ = await asyncio.wait((call,), timeout=PROGRESS_S)
        if done:
            return call.result()
        times += 1
        with contextlib.suppress(Exception):  # who does not listen is no reason to stop
            await ctx.session.report_progress(times, None, "waiting")


async def _shut(web: uvicorn.Server) -> None:
    for listening in web.servers:
        listening.close()
    for connection in list(web.server_state.connections):
        connection.transport.abort()
    tasks = list(web.server_state.tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
