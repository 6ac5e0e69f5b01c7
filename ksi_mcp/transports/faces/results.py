"""Results of tools as MCP has them, the same whether a call waited for it or fetched it later."""

from __future__ import annotations

from typing import Any

from mcp.types import CallToolResult, TextContent

from ksi_mcp.tools.bounding import bounded


def data_result(data: dict[str, Any]) -> CallToolResult:
    """A result that is data: as structured content, and as the same JSON in text; cut if it is too long."""
    data, text = bounded(data)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=data)
