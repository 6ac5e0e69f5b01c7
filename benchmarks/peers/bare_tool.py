"""The least that a call can cost: an MCP server with one asynchronous tool. What `mcp_latency` is compared with."""

from __future__ import annotations

from mcp.server import MCPServer

server = MCPServer("bare", log_level="WARNING")


@server.tool()
async def ping() -> str:
    """Answer."""
    return "pong"


if __name__ == "__main__":
    server.run()
