"""OpenAI's chat completions as a client writes them, and what servers say when they refuse.

The servers that speak it agree on little but the core. What is known of single hosts is in `Dialect`; everybody else
gets what Ollama, LM Studio, vLLM and OpenRouter all take.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from ksi_mcp.errors import ProviderErrorKind
from ksi_mcp.providers.base import Message, Request, ToolResult, ToolUse
from ksi_mcp.providers.failures import OVERLOADED, kind_of_error

_USER_CHARS: Final = 256
_MODELS: Final = 1_000
_NAME_CHARS: Final = 200
_TAG = re.compile(r"<[^<>]{0,200}>")
_TITLE = re.compile(r"<title[^<>]{0,100}>([^<]{1,200})", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context[_ ](?:length|size|window)|maximum context|prompt is too long|too many (?:input )?tokens", re.IGNORECASE
)
# What an error that comes inside a stream would have been as a status, by its type or code.
_STATUS_OF_TYPE: Final[Mapping[str, int]] = {
    "overloaded_error": OVERLOADED,
    "engine_overloaded": OVERLOADED,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "requests": 429,
    "tokens": 429,
    "timeout": 504,
    "timeout_error": 504,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "context_length_exceeded": 400,
    "billing_error": 402,
}
_FIRST_STATUS: Final = 400
_LAST_STATUS: Final = 599


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What is special about a host."""

    max_tokens: str = "max_tokens"
    """The field for it. OpenAI's own newer models refuse the old name, and everybody else may not know the new one."""
    most_effort: str = "high"
    """The highest effort that it knows."""
    strict: bool = False
    """It refuses fields it does not know: neither `user` nor `stream_options` is sent."""
    says_cost: bool = False
    """Its usage holds what the call cost, in USD."""


_HOSTS: Final[Mapping[str, Dialect]] = {
    "api.openai.com": Dialect(max_tokens="max_completion_tokens", most_effort="xhigh"),
    "api.mistral.ai": Dialect(strict=True),
    "openrouter.ai": Dialect(most_effort="xhigh", says_cost=True),
}
# It takes `stream_options`, but no `user`, and answers 400 to every field that it does not know.
_GEMINI: Final = "generativelanguage.googleapis.com"
_EFFORTS: Final = ("xhigh", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An error as its server words it. `status` is None inside a stream, unless the server says one there."""

    message: str = ""
    type: str | None = None
    code: str | None = None
    status: int | None = None

    def kind(self, status: int | None = None) -> ProviderErrorKind:
        """Why the call failed; `status` is that of the response, if it was one of an error."""
        found = status or self.status
        if found is None:
            names = (self.code, self.type)
            found = next((_STATUS_OF_TYPE[n.lower()] for n in names if n and n.lower() in _STATUS_OF_TYPE), 500)
        return kind_of_error(found, error_type=self.type, code=self.code or self.type, message=self.message)

    @property
    def too_long(self) -> bool:
        """Whether the conversation does not fit into the model."""
        return _TOO_LONG.search(f"{self.code} {self.type} {self.message[:2_000]}") is not None


def dialect_of(base_url: str) -> Dialect:
    """What is special about the host of a URL."""
    return _HOSTS.get((urlsplit(base_url).hostname or "").lower(), Dialect())


def endpoint(base_url: str, path: str) -> str:
    """The URL of a path below the base; a query of the base (an API version) stays."""
    parts = urlsplit(base_url)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}{path}", parts.query, ""))


def request_body(request: Request, base_url: str) -> bytes:
    """The body of a call, as JSON. Empty if there is nothing to say: every message is empty."""
    dialect = dialect_of(base_url)
    messages = chat_messages(request.messages)
    if not messages:
        return b""
    if request.system.strip():
        messages.insert(0, {"role": "system", "content": request.system})
    body: dict[str, Any] = {
        "model": request.model,
        dialect.max_tokens: request.max_tokens,
        "messages": messages,
        "stream": True,
    }
    if not dialect.strict:
        body["stream_options"] = {"include_usage": True}
        if request.agent and urlsplit(base_url).hostname != _GEMINI:
            body["user"] = request.agent[:_USER_CHARS]
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
            }
            for tool in request.tools
        ]
    if request.effort is not None:
        body["reasoning_effort"] = dialect.most_effort if request.effort in _EFFORTS else request.effort
    if request.output_schema is not None:
        form: dict[str, Any] = {"name": "reply", "schema": request.output_schema}
        if _is_strict(request.output_schema):
            form["strict"] = True
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Write messages as the API wants them.

    Empty text is dropped, neighbours of one role become one message (templates of local models insist on taking
    turns), and each tool result is a message of its own, before what the user says.
    """
    written: list[dict[str, Any]] = []
    for message in messages:
        text = "\n".join(block for block in message.blocks if isinstance(block, str) and block.strip())
        if message.role == "user":
            written += [
                {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.content}
                for block in message.blocks
                if isinstance(block, ToolResult)
            ]
            if text:
                _say(written, "user", text)
            continue
        calls = [_call(block) for block in message.blocks if isinstance(block, ToolUse)]
        if text:
            _say(written, "assistant", text)
        if calls:
            if not (written and written[-1]["role"] == "assistant"):
                written.append({"role": "assistant", "content": None})
            written[-1].setdefault("tool_calls", []).extend(calls)
    return written


def input_bound(request: Request) -> int:
    """At most so many input tokens: a token stands for at least one byte."""
    total = len(request.system.encode("utf-8", "replace")) + sum(tool.size_bytes for tool in request.tools)
    for message in request.messages:
        for block in message.blocks:
            if isinstance(block, str):
                total += len(block.encode("utf-8", "replace"))
            elif isinstance(block, ToolResult):
                total += len(block.content.encode("utf-8", "replace"))
            elif isinstance(block, ToolUse):
                total += len(block.name) + len(json.dumps(block.input, ensure_ascii=False).encode("utf-8", "replace"))
    return total


def read_error(raw: bytes) -> Said:
    """Read the body of a refusal, whatever its shape: JSON of several kinds, HTML, or plain text."""
    text = raw.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        title = _TITLE.search(text)
        return Said(message=title[1] if title else _TAG.sub(" ", text))
    return said_of(value) or Said(message=text)


def said_of(value: Any) -> Said | None:
    """The error that a piece of JSON reports: `{"error": {...}}`, `{"error": "text"}`, `{"message": "text"}`, ..."""
    if isinstance(value, list) and value:  # Gemini
        value = value[0]
    if not isinstance(value, dict):
        return None
    error = value.get("error") or value.get("errors")
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, str):
        return Said(message=error, type=_name(value.get("type")), code=_name(value.get("code")), status=_status(value))
    if not isinstance(error, dict):
        if not (value.get("message") or value.get("detail")):
            return None
        error = value
    message = error.get("message") or error.get("detail") or ""
    return Said(
        message=message if isinstance(message, str) else _short_json(message),
        type=_name(error.get("type")) or _name(error.get("status")),
        code=_name(error.get("code")),
        status=_status(error),
    )


def model_names(value: Any) -> list[str]:
    """The models of a list, in its order: OpenAI's shape, or Ollama's own."""
    listed = (value.get("data") or value.get("models")) if isinstance(value, dict) else value
    names: list[str] = []
    for entry in listed[:_MODELS] if isinstance(listed, list) else ():
        name = entry.get("id") or entry.get("name") if isinstance(entry, dict) else entry
        if isinstance(name, str) and name and len(name) <= _NAME_CHARS and name.isprintable():
            names.append(name)
    return names


def _say(written: list[dict[str, Any]], role: str, text: str) -> None:
    last = written[-1] if written else None
    if last is not None and last["role"] == role and "tool_calls" not in last:
        last["content"] = f"{last['content']}\n{text}"
    else:
        written.append({"role": role, "content": text})


def _call(use: ToolUse) -> dict[str, Any]:
    arguments = json.dumps(use.input, ensure_ascii=False, separators=(",", ":"))
    return {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": arguments}}


def _is_strict(schema: Mapping[str, Any]) -> bool:
    """Whether a schema is of the kind that OpenAI can enforce: no object may leave out or add a property."""
    if schema.get("type") != "object":
        return False
    stack: list[Any] = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack += part
        elif isinstance(part, Mapping):
            if part.get("type") == "object" or "properties" in part:
                properties, required = part.get("properties") or {}, part.get("required") or []
                if part.get("additionalProperties") is not False or sorted(properties) != sorted(required):
                    return False
                stack += properties.values()
            stack += [part[name] for name in ("items", "anyOf", "prefixItems") if name in part]
            for name in ("$defs", "definitions"):
                stack += (part.get(name) or {}).values()
    return True


def _name(value: Any) -> str | None:
    return value[:_NAME_CHARS] if isinstance(value, str) else None


def _status(error: Mapping[str, Any]) -> int | None:
    """The status that an error names: OpenRouter, vLLM and llama.cpp write it as its code."""
    for name in ("code", "status_code", "status"):
        value = error.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == len("429"):
            value = int(value)
        if isinstance(value, int) and _FIRST_STATUS <= value <= _LAST_STATUS:
            return value
    return None


def _short_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:2_000]
