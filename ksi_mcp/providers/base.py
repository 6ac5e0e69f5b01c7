"""What the worker asks of a model, and what it gets back, whatever the provider."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ksi_mcp.errors import ProviderError
from ksi_mcp.permissions import Context

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """What a model thought before it called tools, as its provider wants it back in the same turn.

    Nobody else reads it: a provider passes over what is not its own, or of another model.
    """

    provider: str
    model: str
    data: Mapping[str, Any]


Block = str | ToolUse | ToolResult | Thinking
"""A part of a message: plain text, a tool call, a tool's result, or what the model thought."""


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
class Behalf:
    """On whose behalf an agent process works: what it does through our tools, it does in this context."""

    ctx: Context
    """The agent as the actor, because of its turn; its slot names the turn, the attempt and the round."""
    tools: tuple[ToolSpec, ...]
    """What the agent may use."""
    resting: Callable[[], AbstractContextManager[None]]
    """Held while a tool waits for others: the turn gives its place away meanwhile."""


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
    output_schema: Mapping[str, Any] | None = None
    """The JSON schema that the reply must follow, where the provider can see to it."""
    session: Mapping[str, Any] | None = field(default=None, compare=False)
    """What this provider said of its own session with the newest answer, if nothing has happened since."""
    behalf: Behalf | None = field(default=None, compare=False)
    """For a provider that runs tools itself (`Traits.agentic`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one attempt. `input_tokens` excludes cache traffic, as in the Messages API."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    """Of the kind that lives five minutes."""
    cache_write_1h_tokens: int = 0
    web_searches: int = 0
    estimated: bool = False
    """The provider did not count: these are upper bounds, from the bytes that were sent and that came."""

    @property
    def total_tokens(self) -> int:
        """All tokens, of every kind."""
        cached = self.cache_read_tokens + self.cache_write_tokens + self.cache_write_1h_tokens
        return self.input_tokens + self.output_tokens + cached


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said. `tool_uses` is empty unless `stop_reason` is `tool_use`."""

    text: str
    model: str
    stop_reason: StopReason
    tool_uses: tuple[ToolUse, ...] = ()
    usage: Usage = field(default_factory=Usage)
    request_id: str | None = None
    cost_usd_micros: int | None = None
    """What the provider itself says that it cost; None: what the price table says of the usage."""
    thinking: tuple[Thinking, ...] = ()
    session: Mapping[str, Any] | None = None
    """What the provider needs to go on from here. Small JSON without secrets: it is stored with the answer."""


OnText = Callable[[str], None]
"""Told each piece of text as it streams in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a kind of provider is, whatever its settings."""

    agentic: bool = False
    """It runs tools by itself: a request has no `tools`, but a `behalf`."""
    parks: bool = False
    """Nobody is called: the turn waits until somebody answers it."""
    batches: bool = False
    """It is a `BatchProvider`."""
    metered: bool = True
    """A price table bounds what a call costs. If not, the configuration does (`max_usd_per_turn`)."""


class BatchProvider(Protocol):
    """A provider that takes many requests at once for half the price and answers within a day."""

    async def ready(self) -> None:
        """Load what a call needs, so that none of it stands between a batch and its id. Raises `ProviderError`."""
        ...

    async def submit_batch(self, requests: Sequence[tuple[str, Request]]) -> str:
        """Send requests, each under an id of the caller's; the id of the batch. Raises `ProviderError`."""
        ...

    async def batch_results(self, batch_id: str) -> dict[str, Answer | ProviderError] | None:
        """The results by the caller's ids, once all have ended; None before. Raises `ProviderError`.

        A request that was not worked on (errored, canceled, expired) is a `ProviderError` with `billed="no"`.
        """
        ...

    async def cancel_batch(self, batch_id: str) -> None:
        """Ask that what has not begun is left undone; its results come like any others. Raises `ProviderError`."""
        ...


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
