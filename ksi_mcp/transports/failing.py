"""A tool call that failed, as a result: its text is for the model, its kind for programs."""

from __future__ import annotations

from typing import Final

from mcp.types import CallToolResult, TextContent

from ksi_mcp.tools.bounding import sendable

ERROR_CODE: Final = "ksi/error"
"""Under this key of its `_meta` a failed result says what kind of failure it is: an `ErrorCode`, or NOT_OFFERED."""
NOT_OFFERED: Final = "not_offered"
"""Whoever calls is not shown that tool."""


def failed(text: str, code: str | None = None) -> CallToolResult:
    """The result of a call that failed."""
    meta = None if code is None else {ERROR_CODE: code}
    return CallToolResult(content=[TextContent(type="text", text=sendable(text))], is_error=True, _meta=meta)
