"""OpenAI's chat completions on the wire, from the server's side.

Reasons to stop that it has no name for are in `native_finish_reason`, and tokens written to a cache in
`prompt_tokens_details.cache_write_tokens`: that is how OpenRouter adds them. Neither needs a key, as with Ollama.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from ksi_mcp.providers.base import Block, Message, Request, Role, ToolResult, ToolSpec, ToolUse, Usage
from ksi_mcp.providers.script import Planned, pieces
from ksi_mcp.web.sim_wire import MODELS, WireError

_CREATED: Final = 1_790_000_000
_ERROR_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_exceeded",
    529: "overloaded_error",
}
_FIRST_SERVER_STATUS: Final = 500
_FINISH: Final[Mapping[str, str]] = {"tool_use": "tool_calls", "max_tokens": "length", "refusal": "content_filter"}
_NATIVE: Final[Mapping[str, str]] = {"context_exceeded": "model_context_window_exceeded"}
_HEADERS: Final[Mapping[str, str]] = {
    "request-id": "x-request-id",
    "anthropic-ratelimit-requests-limit": "x-ratelimit-limit-requests",
    "anthropic-ratelimit-requests-remaining": "x-ratelimit-remaining-requests",
    "anthropic-ratelimit-requests-reset": "x-ratelimit-reset-requests",
}


class ChatDialect:
    """Chat completions, for one call."""

    def __init__(self) -> None:
        self._counts = False
        self._envelope: dict[str, Any] = {}

    def parse(self, raw: bytes, headers: Mapping[str, str]) -> tuple[Request, bool]:  # noqa: ARG002 - no key is needed
        """Check a request; return it and whether it wants a stream."""
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            raise WireError("We could not parse the JSON body of your request.") from None
        if not isinstance(body, dict):
            raise WireError("We expected a JSON object.")
        model, stream = body.get("model"), body.get("stream") or False
        if not isinstance(model, str) or not model:
            raise WireError("you must provide a model parameter")
        if not isinstance(stream, bool):
            raise WireError("Invalid type for 'stream': expected a boolean.")
        options = body.get("stream_options")
        if options is not None and not (stream and isinstance(options, dict)):
            raise WireError("The 'stream_options' parameter is only allowed when 'stream' is enabled.")
        self._counts = bool(options and options.get("include_usage"))
        system, messages = _messages(body.get("messages"))
        request = Request(
            model=model,
            system=system,
            messages=messages,
            tools=_tools(body.get("tools") or []),
            max_tokens=_max_tokens(body),
            agent=_text(body.get("user") or "", "user"),
        )
        return request, stream

    def headers(self, plain: Mapping[str, str]) -> dict[str, str]:
        """Name the headers of an answer as this API does."""
        return {_HEADERS.get(name, name): value for name, value in plain.items()}

    def whole(self, planned: Planned, message_id: str) -> dict[str, Any]:
        """The answer as one object."""
        message: dict[str, Any] = {"role": "assistant", "content": planned.text or None, "refusal": None}
        if planned.tool_uses:
            message["tool_calls"] = [_call(use, json.dumps(use.input)) for use in planned.tool_uses]
        choice = {"index": 0, "message": message, "logprobs": None, **_finish(planned)}
        self._begin(planned, message_id, "chat.completion")
        return {**self._envelope, "choices": [choice], "usage": _usage(planned.usage)}

    def begin(self, planned: Planned, message_id: str) -> Iterable[bytes]:
        """The chunk that names the role."""
        self._begin(planned, message_id, "chat.completion.chunk")
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})

    def partial(self, text: str) -> Iterable[bytes]:
        """Text in a few chunks."""
        for piece in pieces(text):
            yield self._chunk({"content": piece})

    def rest(self, planned: Planned) -> Iterator[bytes]:
        """The text, the tool calls piece by piece, the reason to stop, the usage if it was asked for, and the end."""
        yield from self.partial(planned.text)
        for index, use in enumerate(planned.tool_uses):
            yield self._chunk({"tool_calls": [{"index": index, **_call(use, "")}]})
            for piece in pieces(json.dumps(use.input)):
                yield self._chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        yield self._chunk({}, **_finish(planned))
        if self._counts:
            yield _event({**self._envelope, "choices": [], "usage": _usage(planned.usage)})
        yield b"data: [DONE]\n\n"

    def error(self, status: int, message: str, request_id: str) -> dict[str, Any]:  # noqa: ARG002 - it is in a header
        """The body of a refusal."""
        kind = _ERROR_TYPES.get(status, "server_error" if status >= _FIRST_SERVER_STATUS else "invalid_request_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}

    def broken(self, status: int, message: str, request_id: str) -> bytes:
        """An error inside a stream, which names its status as OpenRouter and vLLM do."""
        body = self.error(status, message, request_id)
        body["error"]["code"] = status
        return _event(body)

    def _begin(self, planned: Planned, message_id: str, kind: str) -> None:
        self._envelope = {
            "id": f"chatcmpl-{message_id}",
            "object": kind,
            "created": _CREATED,
            "model": planned.model,
        }

    def _chunk(self, delta: Mapping[str, Any], **finish: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **finish}
        chunk: dict[str, Any] = {**self._envelope, "choices": [choice]}
        if self._counts:
            chunk["usage"] = None
        return _event(chunk)


def models_body() -> dict[str, Any]:
    """The list of models."""
    return {"object": "list", "data": [model_body(model) for model in MODELS]}


def model_body(model: str) -> dict[str, Any]:
    """One model."""
    return {"id": model, "object": "model", "created": _CREATED, "owned_by": "sim"}


def _event(data: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _finish(planned: Planned) -> dict[str, str]:
    reason: str = planned.stop_reason
    return {"finish_reason": _FINISH.get(reason, "stop"), "native_finish_reason": _NATIVE.get(reason, reason)}


def _call(use: ToolUse, arguments: str) -> dict[str, Any]:
    return {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": arguments}}


def _usage(usage: Usage) -> dict[str, Any]:
    prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
    }


def _max_tokens(body: Mapping[str, Any]) -> int:
    given = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    if len(given) > 1:
        raise WireError("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
    value = given[0] if given else 4096
    if type(value) is not int or value < 1:
        raise WireError("Invalid value for 'max_tokens': expected an integer of at least 1.")
    return value


def _messages(value: Any) -> tuple[str, tuple[Message, ...]]:
    """Check the messages; what the system says is returned by itself."""
    if not isinstance(value, list) or not value:
        raise WireError("Invalid 'messages': expected an array with at least one message.")
    system: list[str] = []
    messages: list[Message] = []
    open_calls: set[str] = set()  # called, and still without a result
    for number, item in enumerate(value):
        place = f"messages[{number}]"
        role = item.get("role") if isinstance(item, dict) else None
        if role != "tool" and open_calls:
            raise WireError(
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                f"'tool_call_id': {', '.join(sorted(open_calls))[:200]}"
            )
        if role in ("system", "developer"):
            system.append(_content(item, place))
        elif role == "tool":
            call_id = _text(item.get("tool_call_id"), f"{place}.tool_call_id")
            if call_id not in open_calls:
                raise WireError(f"Invalid '{place}': 'tool' must be a response to a preceding 'tool_calls'.")
            open_calls.discard(call_id)
            _add(messages, "user", ToolResult(tool_use_id=call_id, content=_content(item, place)))
        elif role == "assistant":
            uses = [_use(call, f"{place}.tool_calls[{at}]") for at, call in enumerate(item.get("tool_calls") or [])]
            text = _content(item, place) if item.get("content") is not None or not uses else ""
            _add(messages, "assistant", *([text] if text else []), *uses)
            open_calls = {use.id for use in uses}
        elif role == "user":
            _add(messages, "user", _content(item, place))
        else:
            raise WireError(f"Invalid value for '{place}.role': {str(role)[:80]!r}")
    if open_calls:
        raise WireError("An assistant message with 'tool_calls' must be followed by tool messages.")
    return "\n".join(text for text in system if text), tuple(messages)


def _add(messages: list[Message], role: Role, *blocks: Block) -> None:
    """A message of its own, unless it goes on with tool results of the user's."""
    last = messages[-1] if messages else None
    if last is not None and role == last.role == "user" and isinstance(last.blocks[-1], ToolResult):
        messages[-1] = Message(role="user", blocks=(*last.blocks, *blocks))
    else:
        messages.append(Message(role=role, blocks=blocks))


def _use(call: Any, place: str) -> ToolUse:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise WireError(f"Missing required parameter: '{place}.function'.")
    try:
        arguments = json.loads(_text(function.get("arguments"), f"{place}.function.arguments"))
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise WireError(f"Invalid '{place}.function.arguments': expected the JSON of an object.")
    name = _text(function.get("name"), f"{place}.function.name")
    return ToolUse(id=_text(call.get("id"), f"{place}.id"), name=name, input=arguments)


def _tools(value: Any) -> tuple[ToolSpec, ...]:
    if not isinstance(value, list):
        raise WireError("Invalid type for 'tools': expected an array.")
    tools: list[ToolSpec] = []
    for number, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict):
            raise WireError(f"Missing required parameter: 'tools[{number}].function'.")
        schema = function.get("parameters") or {}
        if not isinstance(schema, dict):
            raise WireError(f"Invalid type for 'tools[{number}].function.parameters': expected an object.")
        name = _text(function.get("name"), f"tools[{number}].function.name")
        tools.append(ToolSpec(name=name, description=str(function.get("description") or ""), input_schema=schema))
    return tuple(tools)


def _content(item: Mapping[str, Any], place: str) -> str:
    content = item.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        return "\n".join(_text(part, f"{place}.content") for part in parts)
    return _text(content, f"{place}.content")


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise WireError(f"Invalid type for '{place}': expected a string.")
    return value
