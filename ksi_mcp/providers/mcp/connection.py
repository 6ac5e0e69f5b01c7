"""One connection to another MCP server, in a task of its own. The SDK is loaded when the first one is opened."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ksi_mcp.errors import Invalid
from ksi_mcp.provider_config import McpServerConfig
from ksi_mcp.providers.failures import safe_text
from ksi_mcp.providers.mcp.listing import Listed, result_text
from ksi_mcp.providers.mcp.reach import Lookup, filled, http_client
from ksi_mcp.providers.mcp.stdio import TooLong, environment, messages, stop, unreadable
from ksi_mcp.providers.processes import MAX_LINE_BYTES, Processes, Running

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

START_S: Final = 30.0
MAX_PAGES: Final = 10
MAX_LISTED: Final = 10_000
_CLOSE_S: Final = 8.0
_LEAVE_S: Final = 6.0
"""A call that was given up may take so long to say so to its server."""


class Lost(Exception):
    """The connection could not be opened, or has ended."""


class _TooSlow(Lost):
    """It said nothing in time, and would not say more if it were asked in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What connections need of the process that they are in."""

    lookup: Lookup
    processes: Processes
    cwd: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a tool gave back."""

    text: str
    is_error: bool


class Connection:
    """An open connection. Made by `Connection.open`, ended by `close` or by the other side (`ended`)."""

    def __init__(self, name: str, config: McpServerConfig, outer: Surroundings) -> None:
        self._name = name
        self._config = config
        self._lookup = outer.lookup
        self._processes = outer.processes
        self._cwd = outer.cwd
        self._secrets: set[str] = set()
        self._stop = asyncio.Event()
        self._process: Running | None = None
        self._session: Any = None
        self._task: asyncio.Task[None] | None = None
        self.list_changed = False
        """The server has said that it has other tools by now."""

    @classmethod
    async def open(cls, name: str, config: McpServerConfig, outer: Surroundings) -> Connection:
        """Connect, in whichever era the server speaks.

        Raises:
            Lost: it could not be reached in time, or refused.
            Invalid: a name that its settings hold is not set.
        """
        await asyncio.to_thread(_load)
        # Some old servers end when their first message is not `initialize`.
        modes: tuple[Literal["auto", "legacy"], ...] = ("auto", "legacy") if config.command else ("auto",)
        for mode in modes:
            connection = cls(name, config, outer)
            try:
                await connection._begin(mode)
            except Lost as lost:
                if connection._process is None or mode == modes[-1] or isinstance(lost, _TooSlow):
                    raise
            else:
                return connection
        raise AssertionError

    @property
    def ended(self) -> bool:
        """Whether it can be used no more."""
        if self._process is not None and self._process.process.returncode is not None:
            return True
        return self._stop.is_set() or self._task is None or self._task.done()

    @property
    def pid(self) -> int | None:
        """Of its process, if it has one."""
        return None if self._process is None else self._process.pid

    async def _begin(self, mode: str) -> None:
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # The SDK's cancel scopes must be left in the task that entered them.
        self._task = asyncio.create_task(self._hold(opened, mode), name=f"ksi-mcp-{self._name}")
        try:
            async with asyncio.timeout(START_S):
                self._session = await asyncio.shield(opened)
        except BaseException as failure:
            self._task.cancel()  # nobody hears `_stop` yet
            await self.close()
            if isinstance(failure, TimeoutError):
                raise _TooSlow(f"it did not answer within {START_S:g} s{self._words()}") from None
            raise

    async def _hold(self, opened: asyncio.Future[Any], mode: str) -> None:
        try:
            async with self._client(mode) as client:
                if not opened.done():
                    opened.set_result(client.session)
                await self._stop.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as failure:  # noqa: BLE001  groups of anything come out of the SDK; the opener is told
            if not opened.done():
                told = failure if isinstance(failure, Invalid) else Lost(self._why(failure) + self._words())
                opened.set_exception(told)
        finally:
            self._stop.set()
            if not opened.done():
                opened.cancel()

    def _client(self, mode: str) -> Any:
        from mcp import Client  # noqa: PLC0415  most workers need no SDK
        from mcp.types import Implementation  # noqa: PLC0415

        transport = self._stdio() if self._config.command else self._http()
        return Client(
            transport,
            mode=mode,
            cache=None,
            message_handler=self._hear,
            client_info=Implementation(name="ksi-mcp", version="1"),
        )

    async def _hear(self, message: Any) -> None:
        self.list_changed |= getattr(message, "method", "") == "notifications/tools/list_changed"

    # ------------------------------------------------------------------------------- the wires

    @contextlib.asynccontextmanager
    async def _stdio(self) -> AsyncIterator[TransportStreams]:
        import anyio  # noqa: PLC0415  the SDK's own streams
        from mcp.shared.message import SessionMessage  # noqa: PLC0415

        config = self._config
        own = filled(config.env, self._lookup, server=self._name, secrets=self._secrets)
        running = await self._processes.start((config.command or "", *config.args), cwd=self._cwd, env=environment(own))
        self._process, process = running, running.process
        assert process.stdin is not None  # noqa: S101  pipes
        assert process.stdout is not None  # noqa: S101
        stdin, stdout = process.stdin, process.stdout
        to_us, from_them = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        to_them, from_us = anyio.create_memory_object_stream[SessionMessage](0)

        async def read() -> None:
            async with to_us:
                async for line in messages(stdout):
                    if (message := _parsed(line)) is not None:
                        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                            await to_us.send(message)
            self._stop.set()

        async def write() -> None:
            with contextlib.suppress(OSError):
                async with from_us:
                    async for sent in from_us:
                        stdin.write(sent.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                        await stdin.drain()
            await to_us.aclose()

        tasks = {asyncio.create_task(read()), asyncio.create_task(write())}
        try:
            yield from_them, to_them
        finally:
            self._stop.set()
            for task in tasks:
                task.cancel()
            stopping = asyncio.create_task(_after(tasks, running))
            while not stopping.done():  # whoever is in a hurry may not leave the process behind
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({stopping})
            for stream in (to_us, from_them, to_them, from_us):
                stream.close()

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[TransportStreams]:
        from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415

        client = http_client(self._name, self._config, self._lookup, self._secrets)
        wires = streamable_http_client(self._config.url or "", http_client=client, max_sse_event_size=MAX_LINE_BYTES)
        async with client, wires as streams:
            yield streams

    # --------------------------------------------------------------------------------- the use

    async def tools(self) -> list[Listed]:
        """What the server lists; at most so many pages, and tools, as anybody would look through.

        Raises:
            Lost: it does not answer as a server should.
        """
        from mcp.types import PaginatedRequestParams  # noqa: PLC0415

        self.list_changed = False
        found: list[Listed] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await self._ask(
                self._session.list_tools(params=PaginatedRequestParams(cursor=cursor)), timeout_s=START_S
            )
            if isinstance(page, _Refusal):
                raise Lost(f"it does not list its tools: {self._plain(page.message)}")
            found += [
                Listed(name=tool.name, description=tool.description or "", input_schema=tool.input_schema)
                for tool in page.tools
            ]
            if page.next_cursor in (None, cursor) or len(found) >= MAX_LISTED:
                break
            cursor = page.next_cursor
        return found

    async def call(self, tool: str, args: dict[str, Any]) -> Result:
        """Run a tool.

        Raises:
            Lost: the connection ended, or no answer came in time.
        """
        from mcp.types import CallToolRequest, CallToolRequestParams, CallToolResult  # noqa: PLC0415

        # Not `call_tool`: that compares results with the server's own schema, whose expressions may never end.
        request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=args))
        answer = await self._ask(self._session.send_request(request, _answers()), timeout_s=self._config.timeout_s)
        if isinstance(answer, _Refusal):
            return Result(text=f"the call failed: {self._plain(answer.message)}", is_error=True)
        if not isinstance(answer, CallToolResult):
            return Result(text="the server asks its caller for more, and agents are asked by nobody", is_error=True)
        text = result_text(answer.content, answer.structured_content)
        return Result(text=self._hidden(text), is_error=bool(answer.is_error))

    async def _ask(self, asking: Awaitable[Any], *, timeout_s: float) -> Any:
        task = asyncio.ensure_future(asking)
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout_s)
        except asyncio.CancelledError:
            task.cancel()
            task.add_done_callback(_retrieve)
            raise
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=_LEAVE_S)
            task.add_done_callback(_retrieve)
            raise TimeoutError(f"it gave no answer within {timeout_s:g} s")
        return self._outcome(task)

    def _outcome(self, task: asyncio.Future[Any]) -> Any:
        from mcp.shared.exceptions import MCPError  # noqa: PLC0415
        from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST  # noqa: PLC0415

        if task.cancelled():  # by its connection, as it ended
            raise Lost(f"its connection ended{self._words()}")
        if (failure := task.exception()) is None:
            return task.result()
        code = failure.code if isinstance(failure, MCPError) else None
        # A session over HTTP that its server has forgotten can be used no more than a broken pipe.
        if self.ended or code == CONNECTION_CLOSED or (code == INVALID_REQUEST and "terminated" in str(failure)):
            raise Lost(self._why(failure) + self._words()) from None
        return _Refusal(message=self._why(failure))

    async def close(self) -> None:
        """End it, and its process; returns when it is gone, or will not go."""
        self._stop.set()
        if self._task is None:
            return
        done, _ = await asyncio.wait({self._task}, timeout=_CLOSE_S)
        if not done:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CLOSE_S)
        self._task.add_done_callback(_retrieve)

    # ----------------------------------------------------------------------------- its words

    def _why(self, failure: BaseException) -> str:
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        if isinstance(failure, FileNotFoundError):
            return "there is no such program"
        if isinstance(failure, OSError) and self._config.command and failure.strerror:
            return f"its program could not be run: {failure.strerror}"
        if isinstance(failure, ValueError):  # the SDK's own words about it are long, and its server's are in them
            return "its answer is not as the protocol wants it"
        return self._plain(str(failure)) or type(failure).__name__

    def _words(self) -> str:
        words = self._plain(self._process.errors[-300:]) if self._process is not None else ""
        return f" (its last words: {words})" if words else ""

    def _plain(self, text: str) -> str:
        return safe_text(self._hidden(text))

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    message: str


async def _after(tasks: set[asyncio.Task[None]], running: Running) -> None:
    await asyncio.wait(tasks)
    await stop(running)


def _retrieve(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


@cache
def _load() -> None:
    """Import the SDK: half a second of work, for which nobody else need stand still."""
    import mcp.client.streamable_http  # noqa: F401, PLC0415  most workers need no SDK


@cache
def _answers() -> Any:
    from mcp.types import CallToolResult, InputRequiredResult  # noqa: PLC0415
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(CallToolResult | InputRequiredResult)


def _parsed(line: bytes | TooLong) -> Any:
    from mcp.shared.message import SessionMessage  # noqa: PLC0415
    from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter  # noqa: PLC0415

    said = f"its answer is longer than {MAX_LINE_BYTES:,} bytes"
    if isinstance(line, bytes):
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError:  # whatever it prints besides, or an answer that nobody can read
            passed_over, said = unreadable(line), "its answer cannot be read"
    else:
        passed_over = line
    if passed_over.request_id is None:
        return None
    error = ErrorData(code=INTERNAL_ERROR, message=said)
    return SessionMessage(JSONRPCError(jsonrpc="2.0", id=passed_over.request_id, error=error))
