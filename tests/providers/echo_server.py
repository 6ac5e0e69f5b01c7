"""A small real MCP server: `python echo_server.py [http PORT]`, stdio without."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("echo", log_level="ERROR")


@server.tool(structured_output=False)
async def echo(text: str) -> str:
    """Say the same."""
    return text


@server.tool()
async def add(a: int, b: int) -> dict[str, int]:
    """Add two numbers."""
    return {"sum": a + b}


@server.tool()
async def fail(text: str) -> str:
    """Always fails."""
    raise ToolError(text)


@server.tool(structured_output=False)
async def variable(name: str) -> str:
    """What an environment variable holds."""
    return os.environ.get(name, "(not set)")


@server.tool(structured_output=False)
def picture() -> Image:
    """A picture."""
    return Image(data=b"\x89PNG" * 100, format="png")


@server.tool(structured_output=False)
async def note(path: str, text: str) -> str:
    """Write a line, then take as long as it takes until `<path>.go` is there."""
    with Path(path).open("a") as file:  # noqa: ASYNC230
        file.write(f"{text} {os.getpid()}\n")
    while not Path(f"{path}.go").exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.01)
    return f"noted {text}"


@server.tool(structured_output=False)
async def die(words: str) -> str:
    """End at once."""
    sys.stderr.write(words)
    sys.stderr.flush()
    os._exit(3)


@server.tool(structured_output=False)
async def whoami() -> str:
    """The number of its process."""
    return str(os.getpid())


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:
        server.run("streamable-http", port=int(sys.argv[2]))
    else:
        server.run()
