"""The Messages API on the wire, from the server's side: checking requests, writing answers and errors.

The checks and their texts follow the public API reference (version 2026-10-21), for the mistakes that clients make.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from ksi_mcp.providers.base import Block, Message, Request, Role, Thinking, ToolResult, ToolSpec, ToolUse, Usage
from ksi_mcp.providers.script import Planned, pieces

ERROR_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
MODELS: Final = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-haiku-4-5")
_REMOVED: Final = ("temperature", "top_p", "top_k")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_OTHER_BLOCKS: Final = frozenset({"image", "document", "server_tool_use", "web_search_tool_result", "search_result"})
_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_SCHEMA_DEPTH: Final = 100

Tier = Literal["standard", "batch"]


class WireError(Exception):
    """A request that the API refuses."""

    def __init__(self, message: str, *, status: int = 400, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s


def parse_request(raw: bytes, *, counting: bool = False) -> tuple[Request, bool]:
    """Check a request body; return it and whether it wants a stream. With `counting`, `max_tokens` is not needed.

    Raises `WireError`.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise WireError("The request body is not valid JSON") from None
    if not isinstance(body, dict):
        raise WireError("The request body must be a JSON object")
    model = _required(body, "model")
    if not isinstance(model, str) or not model:
        raise WireError("model: Input should be a valid string")
    for name in _REMOVED:
        if name in body:
            raise WireError(f"{name}: Extra inputs are not permitted")
    max_tokens = 1 if counting else _required(body, "max_tokens")
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
        raise WireError("max_tokens: Input should be a valid integer")
    if max_tokens < 1:
        raise WireError("max_tokens: must be greater than or equal to 1")
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise WireError("stream: Input should be a valid boolean")
    messages, said_by_system = _messages(_required(body, "messages"))
    _check_cache_control(body.get("cache_control"))
    effort, schema = _output_config(body.get("output_config"))
    request = Request(
        model=model,
        system="\n".join([*_texts(body.get("system", []), "system"), *said_by_system]),
        messages=messages,
        tools=_tools(body.get("tools", [])),
        max_tokens=max_tokens,
        agent=_agent(body.get("metadata")),
        effort=effort,
        output_schema=schema,
    )
    return request, stream


def error_body(status: int, message: str, request_id: str) -> dict[str, Any]:
    """The body of an error, which is also the data of an error event in a stream."""
    kind = ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def message_body(planned: Planned, message_id: str, *, tier: Tier = "standard") -> dict[str, Any]:
    """The answer as one object."""
    content: list[dict[str, Any]] = []
    if planned.thinking:
        content.append({"type": "thinking", "thinking": planned.thinking, "signature": signature_of(planned.thinking)})
    if planned.text:
        content.append({"type": "text", "text": planned.text})
    content += [{"type": "tool_use", "id": u.id, "name": u.name, "input": u.input} for u in planned.tool_uses]
    return {
        **_envelope(planned, message_id),
        "content": content,
        "stop_reason": _stop(planned),
        "usage": _usage(planned.usage, planned.usage.output_tokens, tier),
    }


def signature_of(thinking: str) -> str:
    """What vouches that the model thought so; a thought that comes back with another one is refused."""
    return f"sim{hashlib.sha256(thinking.encode('utf-8', 'replace')).hexdigest()}"


def stream_start(planned: Planned, message_id: str) -> Iterator[bytes]:
    """The events before the content. The output tokens in them are a placeholder, as in the real API."""
    start = {**_envelope(planned, message_id), "content": [], "usage": _usage(planned.usage, 1, "standard")}
    yield event("message_start", {"message": start})
    yield event("ping", {})


def stream_text(text: str, *, index: int = 0, stop: bool = True) -> Iterator[bytes]:
    """The events of a text block; without `stop` it stays open."""
    yield event("content_block_start", {"index": index, "content_block": {"type": "text", "text": ""}})
    for piece in pieces(text):
        yield event("content_block_delta", {"index": index, "delta": {"type": "text_delta", "text": piece}})
    if stop:
        yield event("content_block_stop", {"index": index})


def stream_content(planned: Planned) -> Iterator[bytes]:
    """The events of the whole content, and the end of the message."""
    index = 0
    if planned.thinking:
        yield from _stream_thinking(planned.thinking)
        index = 1
    if planned.text:
        yield from stream_text(planned.text, index=index)
        index += 1
    for number, use in enumerate(planned.tool_uses, start=index):
        block = {"type": "tool_use", "id": use.id, "name": use.name, "input": {}}
        yield event("content_block_start", {"index": number, "content_block": block})
        for piece in pieces(json.dumps(use.input)):
            delta = {"type": "input_json_delta", "partial_json": piece}
            yield event("content_block_delta", {"index": number, "delta": delta})
        yield event("content_block_stop", {"index": number})
    end = {"stop_reason": _stop(planned), "stop_sequence": None}
    yield event("message_delta", {"delta": end, "usage": _totals(planned.usage, planned.usage.output_tokens)})
    yield event("message_stop", {})


def _stream_thinking(thinking: str) -> Iterator[bytes]:
    block = {"type": "thinking", "thinking": "", "signature": ""}
    yield event("content_block_start", {"index": 0, "content_block": block})
    for piece in pieces(thinking):
        yield event("content_block_delta", {"index": 0, "delta": {"type": "thinking_delta", "thinking": piece}})
    signed = {"type": "signature_delta", "signature": signature_of(thinking)}
    yield event("content_block_delta", {"index": 0, "delta": signed})
    yield event("content_block_stop", {"index": 0})


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """One server-sent event; its data names its type again."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def models_body() -> dict[str, Any]:
    """The list of models."""
    listed = [model_body(model) for model in MODELS]
    return {"data": listed, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}


def model_body(model: str) -> dict[str, Any]:
    """One model."""
    return {"type": "model", "id": model, "display_name": model, "created_at": "2026-01-01T00:00:00Z"}


def _envelope(planned: Planned, message_id: str) -> dict[str, Any]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": planned.model,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop(planned: Planned) -> str:
    return "model_context_window_exceeded" if planned.stop_reason == "context_exceeded" else planned.stop_reason


def _totals(usage: Usage, output_tokens: int) -> dict[str, Any]:
    """The usage as it ends a stream, where it does not say of which kind cache writes were."""
    searches = {"web_search_requests": usage.web_searches, "web_fetch_requests": 0}
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": output_tokens,
        "server_tool_use": searches if usage.web_searches else None,
    }


def _usage(usage: Usage, output_tokens: int, tier: Tier) -> dict[str, Any]:
    return {
        **_totals(usage, output_tokens),
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "service_tier": tier,
    }


def _required(body: Mapping[str, Any], name: str) -> Any:
    if name not in body:
        raise WireError(f"{name}: Field required")
    return body[name]


def _check_cache_control(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or value.get("type") != "ephemeral":
        raise WireError("cache_control.type: Input should be 'ephemeral'")
    if value.get("ttl", "5m") not in ("5m", "1h"):
        raise WireError("cache_control.ttl: Input should be '5m' or '1h'")


def _output_config(value: Any) -> tuple[str | None, dict[str, Any] | None]:
    """The effort, and the schema that the output must follow."""
    if value is None:
        return None, None
    if not isinstance(value, dict):
        raise WireError("output_config: Input should be a valid dictionary")
    effort, shape = value.get("effort"), value.get("format")
    if effort is not None and effort not in _EFFORTS:
        raise WireError(f"output_config.effort: Input should be one of {', '.join(_EFFORTS)}")
    if shape is None:
        return effort, None
    if not isinstance(shape, dict) or shape.get("type") != "json_schema":
        raise WireError("output_config.format.type: Input should be 'json_schema'")
    schema = shape.get("schema")
    if not isinstance(schema, dict):
        raise WireError("output_config.format.schema: Input should be a valid dictionary")
    _check_closed(schema, depth=0)
    return effort, schema


def _check_closed(schema: Any, *, depth: int) -> None:
    if depth > _SCHEMA_DEPTH:
        raise WireError("output_config.format.schema: Schema is too complex")
    if isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            raise WireError(
                "output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly set to false"
            )
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            _check_closed(part, depth=depth + 1)


def _agent(metadata: Any) -> str:
    if metadata is None:
        return ""
    if not isinstance(metadata, dict):
        raise WireError("metadata: Input should be a valid dictionary")
    user_id = metadata.get("user_id") or ""
    if not isinstance(user_id, str):
        raise WireError("metadata.user_id: Input should be a valid string")
    return user_id


def _tools(value: Any) -> tuple[ToolSpec, ...]:
    if not isinstance(value, list):
        raise WireError("tools: Input should be a valid list")
    tools: list[ToolSpec] = []
    for number, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise WireError(f"tools.{number}: Input should be a valid dictionary")
        name, schema = tool.get("name"), tool.get("input_schema", {})
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            raise WireError(f"tools.{number}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if tool.get("type", "custom") == "custom" and (not isinstance(schema, dict) or schema.get("type") != "object"):
            raise WireError(f"tools.{number}.custom.input_schema.type: Input should be 'object'")
        tools.append(ToolSpec(name=name, description=str(tool.get("description") or ""), input_schema=schema))
    if len({tool.name for tool in tools}) != len(tools):
        raise WireError("tools: Tool names must be unique.")
    return tuple(tools)


def _messages(value: Any) -> tuple[tuple[Message, ...], list[str]]:
    """Check the messages; what role `system` says is returned by itself."""
    if not isinstance(value, list):
        raise WireError("messages: Input should be a valid list")
    if not value:
        raise WireError("messages: at least one message is required")
    messages: list[Message] = []
    said: list[str] = []
    open_uses: set[str] = set()  # called in the message before, still without a result
    for number, item in enumerate(value):
        place = f"messages.{number}"
        role = item.get("role") if isinstance(item, dict) else None
        if role == "system":
            said += _texts(item.get("content"), f"{place}.content")
            continue
        if role not in ("user", "assistant"):
            raise WireError(f"{place}.role: Input should be 'user', 'assistant' or 'system'")
        if not messages and role != "user":
            raise WireError('messages: first message must use the "user" role')
        if "content" not in item:
            raise WireError(f"{place}.content: Field required")
        message = Message(role=role, blocks=_blocks(item["content"], role, place))
        results = [block.tool_use_id for block in message.blocks if isinstance(block, ToolResult)]
        for tool_use_id in results:
            if tool_use_id not in open_uses:
                raise WireError(
                    f"{place}: unexpected `tool_use_id` found in `tool_result` blocks: {tool_use_id[:80]}. Each "
                    "`tool_result` block must have a corresponding `tool_use` block in the previous message."
                )
        if missing := sorted(open_uses - set(results)):
            raise WireError(
                f"{place}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(missing)[:200]}. Each `tool_use` block must have a corresponding `tool_result` block in "
                "the next message."
            )
        open_uses = {block.id for block in message.blocks if isinstance(block, ToolUse)}
        messages.append(message)
    if not messages:
        raise WireError("messages: at least one message is required")
    if open_uses:
        raise WireError(
            f"messages: `tool_use` ids were found without `tool_result` blocks: {', '.join(open_uses)[:200]}"
        )
    return tuple(messages), said


def _blocks(content: Any, role: Role, place: str) -> tuple[Block, ...]:
    if isinstance(content, str):
        if not content.strip():
            raise WireError(f"{place}: messages must have non-empty content")
        return (content,)
    if not isinstance(content, list) or not content:
        raise WireError(f"{place}: messages must have non-empty content")
    blocks = [_block(item, role, f"{place}.content.{number}") for number, item in enumerate(content)]
    return tuple(block for block in blocks if block is not None)


def _block(item: Any, role: Role, place: str) -> Block | None:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "text":
        text = item.get("text")
        if not isinstance(text, str) or not text.strip():
            raise WireError(f"{place}.text: text content blocks must contain non-whitespace text")
        return text
    if kind == "tool_use" and role == "assistant":
        use_id, name, tool_input = item.get("id"), item.get("name"), item.get("input")
        if not isinstance(use_id, str) or not isinstance(name, str) or not isinstance(tool_input, dict):
            raise WireError(f"{place}.tool_use: id and name should be strings, input a dictionary")
        return ToolUse(id=use_id, name=name, input=tool_input)
    if kind == "tool_result" and role == "user":
        use_id = item.get("tool_use_id")
        if not isinstance(use_id, str):
            raise WireError(f"{place}.tool_result.tool_use_id: Field required")
        text = "\n".join(_texts(item.get("content") or [], f"{place}.content"))
        return ToolResult(tool_use_id=use_id, content=text, is_error=bool(item.get("is_error")))
    if kind in ("thinking", "redacted_thinking") and role == "assistant":
        return _thinking(item, place)
    if kind in _OTHER_BLOCKS:
        return None
    raise WireError(f"{place}.type: Input tag {str(kind)[:80]!r} does not match any of the expected tags")


def _thinking(item: Mapping[str, Any], place: str) -> Thinking:
    names = ("thinking", "signature") if item["type"] == "thinking" else ("data",)
    for name in names:
        if not isinstance(item.get(name), str):
            raise WireError(f"{place}.{item['type']}.{name}: Field required")
    if item["type"] == "thinking" and item["signature"] != signature_of(item["thinking"]):
        raise WireError(f"{place}: Invalid `signature` in `thinking` block")
    return Thinking(provider="anthropic", model="", data=item)


def _texts(content: Any, place: str) -> list[str]:
    if isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise WireError(f"{place}: Input should be a valid string or list")
    # A `tool_reference`, by which a client loads a tool that it had named only, reads as the name.
    return [text for item in content if isinstance(text := item.get("text", item.get("tool_name")), str)]
