"""What is answered on stdio to a line that is no message: the SDK drops it, and whoever sent it would wait for ever."""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic_core import from_json

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602

_SHOWN = 200


def refusal_of(line: str) -> str | None:
    """The line to answer with; None for a message, and for what is never answered: notifications and answers."""
    try:
        message = from_json(line)
    except ValueError as fault:
        return _refusal(PARSE_ERROR, f"Parse error: {str(fault)[:_SHOWN]}", _id_in(line))
    if not isinstance(message, dict):
        return _refusal(INVALID_REQUEST, "Invalid request: a message is one JSON object, and there are no batches")
    if "method" not in message and ("result" in message or "error" in message):
        return None
    asked = message.get("id")
    if "id" in message and not _is_id(asked):
        return _refusal(INVALID_REQUEST, "Invalid request: id is a text or a whole number")
    if message.get("jsonrpc") != "2.0" or not isinstance(message.get("method"), str):
        return _refusal(INVALID_REQUEST, 'Invalid request: a message has "jsonrpc": "2.0" and a method', asked)
    if asked is not None and not isinstance(message.get("params"), dict | None):
        return _refusal(INVALID_PARAMS, "Invalid params: params is an object", asked)
    return None


def _refusal(code: int, text: str, asked: Any = None) -> str:
    error = {"jsonrpc": "2.0", "id": asked, "error": {"code": code, "message": text}}
    return json.dumps(error) + "\n"


def _id_in(line: str) -> Any:
    """The id of something that only a more patient reader takes for JSON, so that its sender need not wait."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = message.get("id") if isinstance(message, dict) else None
    return found if _is_id(found) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
