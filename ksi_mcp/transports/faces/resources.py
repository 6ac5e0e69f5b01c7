"""What there is to read: agents, runs, compositions, rules, spend and chains of events, as JSON.

Each resource is the result of a tool that only reads, called as whoever makes the request: who may not see an agent
finds no resource of it either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from mcp import MCPError
from mcp.server import MCPServer
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    Annotations,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from ksi_mcp.errors import Invalid, KsiError, NotFound
from ksi_mcp.permissions import Context
from ksi_mcp.tools.bounding import bounded, compact
from ksi_mcp.tools.toolbox import Toolbox
from ksi_mcp.transports.access import context_for
from ksi_mcp.transports.faces.addresses import FIXED, MADE, MAX_URI_CHARS, SCHEME, Readable, find
from ksi_mcp.transports.faces.paging import PAGE, Handler, Request, page_of, strange_cursor

logger = logging.getLogger(__name__)

JSON: Final = "application/json"
MAX_CHARS: Final = 40_000
"""Of one resource; what is longer is cut and says so."""

_READERS: Final = Annotations(audience=["user", "assistant"], priority=0.5)
_OVERVIEWS: Final = Annotations(audience=["user", "assistant"], priority=0.8)

_LISTS: Final = {"rules": "routing_query_rules lists rules", "events": "event_query shows the roots of events"}
"""Results that are lists: an empty one means that there is no such thing."""
_PHASES: Final = ("agents", "running", "suspended")
"""What is listed after the fixed resources, in this order; a cursor says in which it is."""


class Resources:
    """Answers `resources/list`, `resources/templates/list` and `resources/read`."""

    def __init__(self, toolbox: Toolbox, server: MCPServer[Any]) -> None:
        """`server`: where extensions have put resources of their own, under other schemes."""
        self._toolbox = toolbox
        self._server = server

    def handlers(self) -> tuple[Handler, ...]:
        """What to register with the server."""
        return (
            ("resources/list", PaginatedRequestParams, self.page),
            ("resources/templates/list", PaginatedRequestParams, self.templates),
            ("resources/read", ReadResourceRequestParams, self._read_for(self._server_read())),
        )

    async def page(self, request: Request, params: PaginatedRequestParams) -> ListResourcesResult:
        """The fixed ones, those of extensions, then the living agents and the open runs in the caller's sight."""
        found: list[Resource] = []
        phase, cursor = _PHASES[0], None
        if params.cursor is None:
            found += [_entry(each) for each in FIXED]
            found += await self._server.list_resources()
        else:
            phase, dot, inner = params.cursor.partition(".")
            cursor = inner or None
            if not dot or phase not in _PHASES or not (cursor is None or cursor.isdigit()):
                raise strange_cursor(params.cursor)
        try:
            ctx = context_for(request)
            following = await self._living(ctx, found, phase, cursor)
        except Invalid as wrong:
            raise MCPError(code=INVALID_PARAMS, message=wrong.text()) from wrong
        except KsiError as error:
            raise MCPError(code=INTERNAL_ERROR, message=error.text()) from error
        return ListResourcesResult(resources=found, next_cursor=following)

    async def _living(self, ctx: Context, found: list[Resource], phase: str, cursor: str | None) -> str | None:
        """Fill the page up; where the next begins."""
        for each in _PHASES[_PHASES.index(phase) :]:
            room = PAGE - len(found)
            if room <= 0:
                return f"{each}."
            if each == "agents":
                page = await self._call(ctx, "agent_list", {"limit": room, "cursor": cursor})
                found += [_agent_entry(agent) for agent in page["agents"]]
            else:
                page = await self._call(ctx, "orchestration_list", {"state": each, "limit": room, "cursor": cursor})
                found += [_run_entry(run) for run in page["orchestrations"]]
            cursor = page.get("cursor")
            if cursor is not None:
                return f"{each}.{cursor}"
        return None

    async def templates(self, _: Request, params: PaginatedRequestParams) -> ListResourceTemplatesResult:
        """The kinds of resources that can be asked for one by one."""
        own = [
            ResourceTemplate(
                uri_template=each.uri,
                name=each.name,
                title=each.title,
                description=each.description,
                mime_type=JSON,
                annotations=_READERS,
            )
            for each in MADE
        ]
        every = [*own, *await self._server.list_resource_templates()]
        shown, following = page_of(every, params.cursor)
        return ListResourceTemplatesResult(resource_templates=list(shown), next_cursor=following)

    async def contents(self, ctx: Context, uri: str) -> TextResourceContents:
        """One of our resources.

        Raises:
            MCPError: there is none at that address, in the caller's sight.
        """
        place = find(uri)
        if place is None:
            raise _unknown(uri, f"unknown resource {uri[:80]!r}; resources/list and resources/templates/list show them")
        readable, ref = place
        data = await self._result(ctx, readable, readable.args(ref), uri, ref)
        return TextResourceContents(uri=uri, mime_type=JSON, text=_text(data, readable.rest))

    async def identify(self, ctx: Context, uri: str) -> tuple[str, str]:
        """The path and the true reference behind an address, which may name an agent by its name.

        Raises:
            MCPError: there is no such resource in the caller's sight.
        """
        place = find(uri)
        if place is None:
            raise _unknown(uri, f"unknown resource {uri[:80]!r}; resources/list and resources/templates/list show them")
        readable, ref = place
        data = await self._result(ctx, readable, readable.probe(ref), uri, ref)
        known = data.get(readable.key)
        return readable.path, known if isinstance(known, str) else ref

    async def _result(
        self, ctx: Context, readable: Readable, args: dict[str, Any], uri: str, ref: str
    ) -> dict[str, Any]:
        try:
            data = await self._call(ctx, readable.tool, args)
        except (NotFound, Invalid) as missing:
            raise _unknown(uri, missing.text()) from missing
        except KsiError as error:
            raise MCPError(code=INTERNAL_ERROR, message=error.text(), data={"uri": uri}) from error
        except Exception as failure:
            logger.exception("resource %r could not be read", uri[:80])
            text = "internal error; the server's log has it"
            raise MCPError(code=INTERNAL_ERROR, message=text, data={"uri": uri}) from failure
        if readable.key in _LISTS and not data[readable.key]:
            raise _unknown(uri, f"no {readable.name} {ref[:80]!r} in sight; {_LISTS[readable.key]}")
        if readable.kind == "rule":
            rule: dict[str, Any] = data[readable.key][0]
            return rule
        return data

    async def _call(self, ctx: Context, tool: str, args: dict[str, Any]) -> dict[str, Any]:
        return (await self._toolbox.call(ctx, tool, args)).data

    def _server_read(self) -> Callable[[Request, Any], Any]:
        """The SDK's own handler, for the resources that extensions have registered."""
        entry = self._server._lowlevel_server.get_request_handler("resources/read")  # noqa: SLF001  it has no other name
        assert entry is not None  # noqa: S101  MCPServer always registers it
        return entry.handler

    def _read_for(self, others: Callable[[Request, Any], Any]) -> Callable[[Request, Any], Any]:
        async def read(request: Request, params: ReadResourceRequestParams) -> Any:
            uri = str(params.uri)
            if not uri.startswith(SCHEME):
                return await others(request, params)
            try:
                ctx = context_for(request)
            except KsiError as error:
                raise MCPError(code=INTERNAL_ERROR, message=error.text(), data={"uri": uri}) from error
            return ReadResourceResult(contents=[await self.contents(ctx, uri)])

        return read


def _text(data: dict[str, Any], rest: str) -> str:
    """The result as JSON; if it had to be cut, or is the first of several pages, with the way to the rest."""
    smaller, text = bounded(data, MAX_CHARS - len(rest) - 20)
    return text if smaller is data and "cursor" not in data else compact({**smaller, "rest": rest})


def _unknown(uri: str, message: str) -> MCPError:
    return MCPError(code=INVALID_PARAMS, message=message, data={"uri": uri[:MAX_URI_CHARS]})


def _entry(each: Readable) -> Resource:
    return Resource(
        uri=each.uri,
        name=each.name,
        title=each.title,
        description=each.description,
        mime_type=JSON,
        annotations=_OVERVIEWS,
    )


def _agent_entry(agent: dict[str, Any]) -> Resource:
    run = f", in run {agent['orchestration']}" if agent.get("orchestration") else ""
    return Resource(
        uri=f"{SCHEME}agents/{agent['agent']}",
        name=agent["agent"],
        title=agent["name"],
        description=f"agent {agent['name']}: {agent['status']}, {agent['model']}{run}",
        mime_type=JSON,
        annotations=_READERS,
    )


def _run_entry(run: dict[str, Any]) -> Resource:
    return Resource(
        uri=f"{SCHEME}orchestrations/{quote(run['orchestration'])}",
        name=run["orchestration"],
        title=run["pattern"],
        description=f"run of {run['pattern']}: {run['state']} since {run['started_at']}",
        mime_type=JSON,
        annotations=_READERS,
    )
