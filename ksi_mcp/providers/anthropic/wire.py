"""Requests as the Messages API wants them. Nothing here needs the SDK but the schema of structured output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from ksi_mcp.errors import ProviderError
from ksi_mcp.providers.anthropic.sdk import load
from ksi_mcp.providers.base import Block, Message, Request, Thinking, ToolUse

PromptCache = Literal["off", "5m", "1h"]
"""How long the API keeps what requests begin with; `off` asks for nothing."""

_USER_ID_CHARS: Final = 256
_DATED = re.compile(r"-20\d{6}$")
_SCHEMA_DEPTH: Final = 40


def request_body(request: Request, *, provider: str, cache: PromptCache) -> dict[str, Any]:
    """The body of a request, but for the schema of its output.

    `provider` is the name under which what a model thought was noted. Raises `ProviderError` if nothing is to be sent.
    """
    messages = api_messages(request.messages, provider=provider, model=request.model)
    if not messages:
        raise ProviderError("there is nothing to send: every message is empty", kind="request", billed="no")
    body: dict[str, Any] = {"model": request.model, "max_tokens": request.max_tokens, "messages": messages}
    if request.system.strip():
        body["system"] = request.system
    if request.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
            for tool in request.tools
        ]
    if request.effort is not None:
        body["output_config"] = {"effort": request.effort}
    if request.agent:
        body["metadata"] = {"user_id": request.agent[:_USER_ID_CHARS]}
    if cache != "off":  # the API marks the end of the request by itself, and five minutes are its default
        body["cache_control"] = {"type": "ephemeral", **({"ttl": "1h"} if cache == "1h" else {})}
    return body


def with_format(body: dict[str, Any], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The body with the schema that the reply must follow; without it where the API knows no such thing.

    The API takes a part of JSON Schema only. What it leaves open whoever asked must check; what it would rule out,
    such as an object with free keys, is not asked of it.
    """
    if schema is None or not _expressible(schema, depth=0):
        return body
    anthropic, _ = load()
    try:
        strict = anthropic.transform_schema(dict(schema))
    except Exception:  # noqa: BLE001 - whatever is in a schema of somebody else's: it is checked afterwards anyway
        return body
    shape = {"type": "json_schema", "schema": strict}
    return {**body, "output_config": {**body.get("output_config", {}), "format": shape}}


def api_messages(messages: Sequence[Message], *, provider: str = "anthropic", model: str = "") -> list[dict[str, Any]]:
    """Write messages as the API wants them, for a model of that provider.

    Empty text is dropped, neighbours of one role become one message, and tool results come first in theirs: the API
    refuses anything else. What was thought comes first too, as it was; what another model thought is left out.
    """
    merged: list[dict[str, Any]] = []
    for message in messages:
        kept = [block for block in message.blocks if _goes(block, provider, model)]
        kept.sort(key=lambda block: not isinstance(block, Thinking))
        content = [_api_block(block) for block in kept]
        if not content:
            continue
        if merged and merged[-1]["role"] == message.role:
            merged[-1]["content"] += content
        else:
            merged.append({"role": message.role, "content": content})
    for entry in merged:
        if entry["role"] == "user":
            entry["content"].sort(key=lambda block: block["type"] != "tool_result")
    return merged


def _goes(block: Block, provider: str, model: str) -> bool:
    if isinstance(block, str):
        return bool(block.strip())
    if isinstance(block, Thinking):
        return block.provider == provider and _undated(block.model) == _undated(model)
    return True


def _undated(model: str) -> str:
    """A model's name without the day of its version, which an answer may add."""
    return _DATED.sub("", model)


def _api_block(block: Block) -> dict[str, Any]:
    if isinstance(block, str):
        return {"type": "text", "text": block}
    if isinstance(block, ToolUse):
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": block.input}
    if isinstance(block, Thinking):
        return dict(block.data)
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": block.tool_use_id, "content": block.content}
    if block.is_error:
        result["is_error"] = True
    return result


def _expressible(schema: object, *, depth: int) -> bool:
    """Whether the API's closed objects allow all that a schema does, so far as keys go."""
    if depth > _SCHEMA_DEPTH:
        return False
    if isinstance(schema, list):
        return all(_expressible(part, depth=depth + 1) for part in schema)
    if not isinstance(schema, Mapping):
        return True
    properties = schema.get("properties", {})
    if schema.get("type") == "object":
        named = isinstance(properties, Mapping) and bool(properties)
        free = "patternProperties" in schema or schema.get("additionalProperties", False) not in (True, False)
        if not named or free or not set(_strings(schema.get("required"))) <= set(properties):
            return False
    parts = [schema.get(key) for key in ("items", "anyOf", "oneOf", "allOf")]
    parts += [
        part for group in (properties, schema.get("$defs")) if isinstance(group, Mapping) for part in group.values()
    ]
    return all(_expressible(part, depth=depth + 1) for part in parts)


def _strings(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
