"""Results of tools as MCP has them, the same whether a call waited for it or fetched it later."""

from __future__ import annotations

from typing import Any, Final

from mcp.types import CallToolResult, TextContent

from ksi_mcp.tools.bounding import bounded, sendable

ERROR_CODE: Final = "ksi/error"
"""Under this key of its `_meta` a failed result says what kind of failure it is: an `ErrorCode`, or NOT_OFFERED."""
NOT_OFFERED: Final = "not_offered"
"""Whoever calls is not shown that tool."""


def data_result(data: dict[str, Any], packed: str | None = None) -> CallToolResult:
    """A result that is data: as structured content, and as the same JSON in text; cut if it is too long."""
    data, text = bounded(data, text=packed)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=data)


def failed(text: str, code: str | None = None) -> CallToolResult:
    """The result of a call that failed: its text is for the model, its kind for programs."""
    meta = None if code is None else {ERROR_CODE: code}
    return CallToolResult(content=[TextContent(type="text", text=sendable(text))], is_error=True, _meta=meta)
