"""Lists in pages, in both eras: a cursor is a place in the list, and one that we did not make is an error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.types import INVALID_PARAMS, ListToolsResult, PaginatedRequestParams
from mcp.types import Tool as ListedTool

from ksi_mcp.transports.access import actor_of

PAGE: Final = 100

T = TypeVar("T")
Request = ServerRequestContext[Any, Any]
Handler = tuple[str, type[Any], Callable[[Request, Any], Awaitable[Any]]]
"""A method of the protocol, its parameters, and who answers it."""


def page_of(items: Sequence[T], cursor: str | None, *, size: int = PAGE) -> tuple[Sequence[T], str | None]:
    """One page of a list that is known whole, and where the next begins.

    Raises:
        MCPError: the cursor is not one of ours.
    """
    start = 0
    if cursor is not None:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= len(str(len(items)))):
            raise strange_cursor(cursor)
        start = int(cursor)
        if not 0 < start < len(items):
            raise strange_cursor(cursor)
    end = start + size
    return items[start:end], str(end) if end < len(items) else None


def strange_cursor(cursor: str) -> MCPError:
    """The error for a cursor that we did not make, or that belongs to another list."""
    return MCPError(
        code=INVALID_PARAMS, message=f"cursor {cursor[:40]!r} is not one of ours; pass the nextCursor of the last page"
    )


def tools_handler(list_tools: Callable[[], Awaitable[Sequence[ListedTool]]], *, size: int = PAGE) -> Handler:
    """`tools/list` in pages; whoever may only look is shown what only looks."""

    async def handle(request: Request, params: PaginatedRequestParams) -> ListToolsResult:
        tools = await list_tools()
        if actor_of(request).kind == "reader":
            tools = [tool for tool in tools if tool.annotations is not None and tool.annotations.read_only_hint]
        tools, following = page_of(tools, params.cursor, size=size)
        return ListToolsResult(tools=list(tools), next_cursor=following)

    return "tools/list", PaginatedRequestParams, handle
