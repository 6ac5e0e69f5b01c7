"""The MCP server: the declared tools, resources and prompts, in both protocol eras."""

from __future__ import annotations

import json
import logging
from typing import Any, Literal

from anyio import AsyncFile
from mcp.server import CacheHint, MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, Icon, InputRequiredResult, TextContent
from mcp.types import Tool as ListedTool

from ksi_mcp import __version__
from ksi_mcp.app import App
from ksi_mcp.errors import KsiError
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.tools.catalog import DEFAULT_TOOLS
from ksi_mcp.transports.confirm import confirm_destruction
from ksi_mcp.transports.guide import INSTRUCTIONS, add_prompts
from ksi_mcp.transports.listing import listed
from ksi_mcp.transports.questions import ask_for_answer, take_answer
from ksi_mcp.transports.resources import add_resources

logger = logging.getLogger(__name__)

ToolSet = Literal["default", "full"]
"""Which tools are listed. A tool that is not listed can still be called by its name."""

CallContext = Context[dict[str, Any], Any]

LIST_TTL_MS = 3_600_000
"""The list of tools does not change while the server runs."""

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Cpath d='M1 1l6 3-6 3z'/%3E%3C/svg%3E"
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
            cache_hints={"tools/list": CacheHint(ttl_ms=LIST_TTL_MS)},
            log_level="WARNING",
        )
        self._app = app
        toolbox = app.toolbox
        shown = toolbox.tools if tools == "full" else tuple(toolbox.get(name) for name in DEFAULT_TOOLS)
        self._listed = [listed(tool) for tool in shown]
        add_resources(self, toolbox)
        add_prompts(self)

    async def list_tools(self) -> list[ListedTool]:
        """The tools of the chosen set, always in the same order."""
        return self._listed

    def _tool_input_schema(self, name: str) -> dict[str, Any] | None:
        # What the HTTP transport checks `Mcp-Param-*` headers against; the SDK would ask its own registry.
        try:
            return self._app.toolbox.get(name).schema()
        except KsiError:
            return None

    async def serve_stdio(self, stdin: AsyncFile[str]) -> None:
        """Serve one client on `stdin` and this process's stdout, until the lines end."""
        server = self._lowlevel_server
        async with stdio_server(stdin=stdin) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: CallContext | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Run any tool by its name, listed or not, as the operator.

        Raises:
            ToolError: an expected failure; its text is for the model.
            UnexpectedToolError: anything else; the SDK logs the cause, the client learns nothing of it.
        """

        async def progress(done: float, total: float | None, message: str) -> None:
            if context is not None:
                await context.report_progress(done, total, message)

        try:
            if context is not None:
                question = await confirm_destruction(self._app.toolbox, name, arguments, context)
                if question is not None:
                    return question
            asked = context is not None and await take_answer(self._app.toolbox, name, context)
            done = await self._app.toolbox.call(fresh_context(OPERATOR), name, arguments, progress=progress)
            if context is not None and not asked:
                answered = await ask_for_answer(self._app.toolbox, name, done.data, context)
                if isinstance(answered, InputRequiredResult):
                    return answered
                if answered:
                    done = await self._app.toolbox.call(fresh_context(OPERATOR), name, arguments, progress=progress)
        except KsiError as error:
            raise ToolError(error.text()) from error
        except ToolError:
            raise
        except Exception as failure:
            raise UnexpectedToolError("internal error; the server's log has it") from failure
        text = json.dumps(done.data, ensure_ascii=False, separators=(",", ":"))
        return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=done.data)


def build_server(app: App, *, tools: ToolSet = "default") -> KsiServer:
    """An MCP server for an open application. Configure logging first: the SDK sets up its own if nobody has."""
    return KsiServer(app, tools=tools)
