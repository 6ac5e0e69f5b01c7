"""The other end of `stdio.py`: a server process of our own, and an MCP client on it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.types import TextContent

from ksi_mcp.errors import KsiError


class ToolFailed(KsiError):
    """A tool answered with an error; the message is the server's."""


class ToolClient:
    """Calls tools and returns their structured results."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def protocol_version(self) -> str:
        """What client and server agreed on."""
        return str(self._client.protocol_version)

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool.

        Raises:
            ToolFailed: its answer is an error, or not structured.
        """
        result = await self._client.call_tool(tool, arguments)
        if result.is_error or not isinstance(result.structured_content, dict):
            said = " ".join(block.text for block in result.content if isinstance(block, TextContent))
            raise ToolFailed(f"{tool}: {said or 'no structured result'}")
        return result.structured_content

    async def command(self, name: str, /, **data: Any) -> dict[str, Any]:
        """Run a tool that is not listed by default, by its command name."""
        done = (await self.call("event_emit", event=name, data=data))["result"]
        if not isinstance(done, dict):
            raise ToolFailed(f"{name}: {json.dumps(done)[:200]}")
        return done


@asynccontextmanager
async def connect_stdio(command: Sequence[str], environ: Mapping[str, str]) -> AsyncIterator[ToolClient]:
    """Start `command` as an MCP server and talk to it over its stdin and stdout; it ends with the context.

    `environ` is what the process gets beyond the few variables that the SDK passes on.
    """
    program, *arguments = command
    async with Client(StdioServerParameters(command=program, args=arguments, env=dict(environ))) as client:
        yield ToolClient(client)
