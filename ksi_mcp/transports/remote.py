"""Our tools over HTTP, as whoever a token stands for: how the command line acts for an agent.

Who acts is decided at the other end, by the token alone.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent

from ksi_mcp.errors import Conflict, Exhausted, Invalid, KsiError, NotFound, Refused
from ksi_mcp.providers.bearer import Bearer, is_timeout, is_transport
from ksi_mcp.tools.call import Progress
from ksi_mcp.transports.results import ERROR_CODE, NOT_OFFERED

_MOST_PAGES: Final = 50
_REFUSALS: Final = ("refused", "system:refused")
_KINDS: Final[Mapping[str, type[KsiError]]] = {
    "refused": Refused,
    "invalid": Invalid,
    "not_found": NotFound,
    "conflict": Conflict,
    "exhausted": Exhausted,
}
_EMIT: Final = "event_emit"


class NotOffered(Refused):
    """Whoever the token stands for is not offered that tool."""


class RemoteFailed(KsiError):
    """The call could not be made, or failed for a reason that the other end does not name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTool:
    """A tool that the other end offers."""

    name: str
    description: str
    schema: Mapping[str, Any]


class RemoteTools:
    """What is offered to the holder of the token, and how to call it."""

    def __init__(self, client: Client, bearer: Bearer) -> None:
        self._client = client
        self._bearer = bearer

    async def offered(self) -> tuple[RemoteTool, ...]:
        """Every tool of `tools/list`.

        Raises:
            KsiError: it cannot be asked.
        """
        found: list[RemoteTool] = []
        cursor: str | None = None
        with _plainly(self._bearer):
            for _ in range(_MOST_PAGES):
                page = await self._client.list_tools(cursor=cursor)
                found += [
                    RemoteTool(name=each.name, description=each.description or "", schema=each.input_schema)
                    for each in page.tools
                ]
                cursor = page.next_cursor
                if cursor is None:
                    break
        return tuple(found)

    async def command(self, event: str, args: dict[str, Any], watch: Progress) -> dict[str, Any]:
        """Run a tool that is not offered by itself by its command's name; raises as `call`."""
        done = (await self.call(_EMIT, {"event": event, "data": args}, watch)).get("result")
        return done if isinstance(done, dict) else {}

    async def call(self, name: str, args: dict[str, Any], watch: Progress) -> dict[str, Any]:
        """Call a tool; `watch` is told how far it is.

        Raises:
            KsiError: the other end's refusal or failure, in its words.
        """

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            await watch(progress, total, message or "")

        with _plainly(self._bearer):
            result = await self._client.call_tool(name, args, progress_callback=tell)
        return _data_of(name, result)


@asynccontextmanager
async def connect(url: str, token: str) -> AsyncIterator[RemoteTools]:
    """Connect to `url` with `token`.

    Raises:
        Invalid: the address or the token is none.
        KsiError: nobody answers there, or the token opens nothing.
    """
    bearer = Bearer(url, token)
    try:
        async with (
            bearer.http as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            yield RemoteTools(client, bearer)
    except (BaseExceptionGroup, Exception) as failure:  # noqa: BLE001  most of them leave as they came
        raise _plain(failure, bearer) from None


def _plain(failure: BaseException, bearer: Bearer) -> BaseException:
    """A failure in our words; as it is, if it is none of the connection or of the other end."""
    leaves = list(_leaves(failure))
    for leaf in leaves:
        if isinstance(leaf, KsiError):
            return leaf
    for leaf in leaves:
        if isinstance(leaf, MCPError) or is_transport(leaf):
            return _said_of(leaf, bearer)
    return failure


def _said_of(cause: BaseException, bearer: Bearer) -> KsiError:
    if bearer.refused:
        return Refused("the token is not good here, or not any more", hint="it ends with its process, or was revoked")
    if isinstance(cause, MCPError):
        return RemoteFailed(f"the tools answered: {str(cause)[:300]}")
    if is_timeout(cause):
        return RemoteFailed("the tools did not answer in time", hint="what was begun there goes on")
    return RemoteFailed(
        f"the tools cannot be reached ({type(cause).__name__})", hint="a token is good while its process or server runs"
    )


class _plainly:  # noqa: N801  reads as what it is
    """Turns failures of the connection into ours, also those that come in a group."""

    def __init__(self, bearer: Bearer) -> None:
        self._bearer = bearer

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        if value is None:
            return
        plain = _plain(value, self._bearer)
        if plain is not value:
            raise plain from None


def _data_of(name: str, result: CallToolResult) -> dict[str, Any]:
    text = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    if result.is_error:
        said = text.removeprefix(f"Error executing tool {name}: ") or "no reason was given"
        code = (result.meta or {}).get(ERROR_CODE)
        kind = _KINDS.get(code, RemoteFailed) if isinstance(code, str) else RemoteFailed
        if code == NOT_OFFERED:
            kind = NotOffered
        if kind is RemoteFailed and said.startswith(_REFUSALS):
            kind = Refused
        raise kind(said)
    if isinstance(result.structured_content, dict):
        return result.structured_content
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"text": text}


def _leaves(failure: BaseException) -> Iterator[Any]:
    if isinstance(failure, BaseExceptionGroup):
        for inner in failure.exceptions:
            yield from _leaves(inner)
    else:
        yield failure
