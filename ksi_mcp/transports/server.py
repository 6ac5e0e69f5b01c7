"""The MCP server: the declared tools, resources and prompts, in both protocol eras."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

from anyio import AsyncFile
from mcp.server import CacheHint, MCPServer
from mcp.server.caching import CacheableMethod
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.request_state import RequestStateSecurity
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, Icon, InputRequiredResult, TextContent
from mcp.types import Tool as ListedTool

from ksi_mcp import __version__
from ksi_mcp.app import App
from ksi_mcp.errors import KsiError
from ksi_mcp.tools.bounding import sendable
from ksi_mcp.tools.catalog import DEFAULT_TOOLS
from ksi_mcp.transports.access import actor_of, context_for
from ksi_mcp.transports.faces.apps import app_extension
from ksi_mcp.transports.faces.confirm import confirm_destruction
from ksi_mcp.transports.faces.guide import INSTRUCTIONS
from ksi_mcp.transports.faces.listing import listed
from ksi_mcp.transports.faces.offering import offer
from ksi_mcp.transports.faces.questions import ask_for_answer, take_answer
from ksi_mcp.transports.faces.tasks import TaskExtension
from ksi_mcp.transports.results import data_result, failed

logger = logging.getLogger(__name__)

ToolSet = Literal["default", "full"]
"""Which tools are listed. A tool that is not listed can still be called by its name."""

CallContext = Context[dict[str, Any], Any]

LIST_TTL_MS = 3_600_000
_FIXED_LISTS: tuple[CacheableMethod, ...] = ("tools/list", "prompts/list", "resources/templates/list")
"""They do not change while the server runs."""

_KEY_BYTES = 32
_STEP = 0.001
"""The protocol wants every notice of progress to be above the one before, also when only its message is news."""

_ICON = (
    "data:image/svg+xml,%3Csvg%20xmlns='http://www.w3.org/2000/svg'%20viewBox='0%200%208%208'%3E"
    "%3Cpath%20d='M1%201l6%203-6%203z'/%3E%3C/svg%3E"
)
"""Small: it travels with every result of the modern era."""


class KsiServer(MCPServer[dict[str, Any]]):
    """The tools of an open `App` as an MCP server; the App outlives every connection.

    Lists and runs the declarations in `ksi_mcp.tools`, instead of functions registered here: compact input
    schemas, no output schemas, results as structured content and as the same JSON in text.
    """

    def __init__(self, app: App, *, tools: ToolSet = "default") -> None:
        super().__init__(
            "ksi",
            title="KSI",
            version=__version__,
            instructions=INSTRUCTIONS,
            icons=[Icon(src=_ICON, mime_type="image/svg+xml")],
            cache_hints=dict.fromkeys(_FIXED_LISTS, CacheHint(ttl_ms=LIST_TTL_MS)),
            extensions=[app_extension(), TaskExtension(app)],
            log_level="WARNING",
            # A question is answered by whoever was asked. The SDK itself would know only callers that it let in.
            request_state_security=RequestStateSecurity(
                keys=[os.urandom(_KEY_BYTES)], bind_principal=lambda request: str(actor_of(request))
            ),
        )
        self._app = app
        toolbox = app.toolbox
        shown = toolbox.tools if tools == "full" else tuple(toolbox.get(name) for name in DEFAULT_TOOLS)
        self._listed = [listed(tool) for tool in shown]
        self.notices = offer(self, self._lowlevel_server, app)

    async def list_tools(self) -> list[ListedTool]:
        """The tools of the chosen set, always in the same order."""
        return self._listed

    def _tool_input_schema(self, name: str) -> dict[str, Any] | None:
        # What the HTTP transport checks `Mcp-Param-*` headers against; the SDK would ask its own registry.
        try:
            return self._app.toolbox.get(name).schema()
        except KsiError:
            return None

    async def serve_stdio(self, stdin: AsyncFile[str], stdout: AsyncFile[str]) -> None:
        """Serve one client, until the lines of `stdin` end."""
        server = self._lowlevel_server
        async with stdio_server(stdin, stdout) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: CallContext | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Run any tool by its name, listed or not, as whoever the connection or its token stands for.

        Raises:
            ToolError: the user did not agree, or could not be asked.
            UnexpectedToolError: anything else; the SDK logs the cause, the client learns nothing of it.
        """
        told = -_STEP

        async def progress(done: float, total: float | None, message: str) -> None:
            nonlocal told
            if context is not None:
                told = max(done, round(told + _STEP, 3))
                await context.report_progress(told, total, message)

        try:
            if context is not None:
                question = await confirm_destruction(self._app.toolbox, name, arguments, context)
                if question is not None:
                    return question
            asked = context is not None and await take_answer(self._app.toolbox, name, context)
            done = await self._app.toolbox.call(context_for(context), name, arguments, progress=progress)
            if context is not None and not asked:
                answered = await ask_for_answer(self._app.toolbox, name, done.data, context)
                if isinstance(answered, InputRequiredResult):
                    return answered
                if answered:
                    done = await self._app.toolbox.call(context_for(context), name, arguments, progress=progress)
        except KsiError as error:
            logger.info("%s failed: %r", name, error.text())  # %r keeps what others wrote on one line
            return failed(error.text(), error.code)
        except ToolError:
            raise
        except Exception as failure:
            raise UnexpectedToolError("internal error; the server's log has it") from failure
        if done.text is not None:  # a client that is given data as well shows its model only that
            return CallToolResult(content=[TextContent(type="text", text=sendable(done.text))])
        return data_result(done.data, done.packed)


def build_server(app: App, *, tools: ToolSet = "default") -> KsiServer:
    """An MCP server for an open application. Configure logging first: the SDK sets up its own if nobody has."""
    return KsiServer(app, tools=tools)
