"""What the worker asks of a model, and what it gets back, whatever the provider."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["user", "assistant"]
StopReason = Literal["end_turn", "tool_use", "max_tokens", "refusal", "stop_sequence", "pause_turn", "context_exceeded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """A tool the model wants run. `id` is the provider's, echoed in the matching `ToolResult`."""

    id: str
    name: str
    input: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool gave back, as the text the model reads."""

    tool_use_id: str
    content: str
    is_error: bool = False


Block = str | ToolUse | ToolResult
"""A part of a message: plain text, a tool call, or a tool's result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation. Roles alternate; tool results ride in user messages."""

    role: Role
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool as the model sees it: `input_schema` is a JSON schema of an object."""

    name: str
    description: str
    input_schema: dict[str, Any]
    size_bytes: int = field(init=False, compare=False)
    """All of it as JSON in UTF-8; counted once, since every request that offers the tool is bounded by it."""
    canonical: str = field(init=False, compare=False, repr=False)
    """All of it as text, the same for the same tool."""

    def __post_init__(self) -> None:
        text = self.name + self.description + json.dumps(self.input_schema, ensure_ascii=False)
        object.__setattr__(self, "size_bytes", len(text.encode("utf-8", "surrogatepass")))
        object.__setattr__(self, "canonical", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One provider attempt, rendered. The same request is sent again on a retry.

    `agent` is the agent's name: it reaches a scripted provider as the thing to match on, and the
    Messages API as `metadata.user_id`.
    """

    model: str
    system: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    max_tokens: int = 4096
    effort: str | None = None
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one attempt. `input_tokens` excludes cache traffic, as in the Messages API."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """All tokens, of every kind."""
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said. `tool_uses` is empty unless `stop_reason` is `tool_use`."""

    text: str
    model: str
    stop_reason: StopReason
    tool_uses: tuple[ToolUse, ...] = ()
    usage: Usage = field(default_factory=Usage)
    request_id: str | None = None


OnText = Callable[[str], None]
"""Told each piece of text as it streams in."""


class Provider(Protocol):
    """A way to reach models.

    `complete` either returns an `Answer` or raises `ProviderError` with its kind, what is known
    of the cost, and the text that had arrived; nothing else escapes but `CancelledError`, on
    which the call is ended at the provider before it propagates. `deadline_s` bounds the whole
    call, not one read. A provider never retries by itself.
    """

    name: str

    async def complete(self, request: Request, *, deadline_s: float, on_text: OnText | None = None) -> Answer:
        """Ask the model once."""
        ...

    async def aclose(self) -> None:
        """Close connections and end processes. No call is under way any more."""
        ...
