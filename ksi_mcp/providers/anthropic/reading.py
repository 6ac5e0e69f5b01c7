"""Answers of the Messages API as they are read: from a stream, piece by piece, or from a whole message."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, get_args

from ksi_mcp.errors import ProviderError
from ksi_mcp.providers.anthropic.sdk import text_of
from ksi_mcp.providers.anthropic.wire import PromptCache
from ksi_mcp.providers.base import Answer, OnText, StopReason, Thinking, ToolUse, Usage
from ksi_mcp.providers.failures import masked, safe_text

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

_MAX_CHARS: Final = 32_000_000
_MAX_TOKENS: Final = 10**8
_ID_CHARS: Final = 200
_MODEL_CHARS: Final = 200
_STOP_REASONS: Final[dict[str, StopReason]] = {
    "model_context_window_exceeded": "context_exceeded",
    **{reason: reason for reason in get_args(StopReason)},
}
_COUNTS: Final = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class Reading:
    """One answer, as far as it was read.

    The SDK's own accumulator accepts a cut stream and half a tool call; this one wants the end to be there.
    `cache` and `max_tokens` are what was asked for: they say what a cache write was, and how long the answer can be,
    where the answer itself does not. `secret` is the key: where a name repeats it, the name is told without it.
    """

    def __init__(
        self,
        *,
        model: str,
        provider: str,
        cache: PromptCache,
        max_tokens: int | None = None,
        secret: str = "",
        on_text: OnText | None = None,
    ) -> None:
        self._asked = model
        self._model = model
        self._provider = provider
        self._cache = cache
        self._max_tokens = max_tokens
        self._secret = secret
        self._on_text = on_text
        self._chars = 0
        self._texts: list[str] = []
        self._tools: dict[int, tuple[str, str, list[str]]] = {}
        self._thoughts: dict[int, dict[str, str]] = {}
        self._usage: dict[str, int] = {}
        self._stop: str | None = None
        self._ended = False
        self._request_id: str | None = None

    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    async def run(self, client: AsyncAnthropic, body: dict[str, Any]) -> None:
        """Ask, and read the stream to its end."""
        stream = await client.messages.create(**body, stream=True)
        async with stream:
            self._request_id = self._name(stream.response.headers.get("request-id")) or None
            async for event in stream:
                self._take(event)

    def take_whole(self, message: Any) -> None:
        """Take in a message that comes as one object of the SDK's."""
        self._begin(message)
        for index, block in enumerate(message.content):
            self._open(index, block)
        self._request_id = self._name(message.id) or None
        self._stop = message.stop_reason
        self._ended = True

    def answer(self) -> Answer:
        """The whole answer. Raises `ProviderError` if its end is missing or not understood."""
        if not self._ended or self._stop is None:
            raise ProviderError(
                "the answer ended before it was complete", kind="transport", billed="unknown", partial_text=self.text()
            )
        stop = _STOP_REASONS.get(self._stop)
        if stop is None:
            raise ProviderError(
                f"the model stopped for a reason this version does not know: "
                f"{safe_text(text_of(self._stop), secret=self._secret)!r}",
                kind="bug",
                billed="unknown",
                partial_text=self.text(),
                hint="upgrade the server",
            )
        tools = sorted(self._tools.items()) if stop == "tool_use" else ()  # elsewhere they may be half a call
        return Answer(
            text=self.text(),
            model=self._model,
            stop_reason=stop,
            tool_uses=tuple(ToolUse(id=i, name=n, input=_input(parts)) for _, (i, n, parts) in tools),
            usage=self._used(),
            request_id=self._request_id,
            thinking=tuple(
                Thinking(provider=self._provider, model=self._asked, data=thought)
                for _, thought in sorted(self._thoughts.items())
            ),
        )

    def _take(self, event: Any) -> None:
        """Take one event in. Kinds that are not known here are passed over."""
        if event.type == "message_start":
            self._begin(event.message)
        elif event.type == "content_block_start":
            self._open(event.index, event.content_block)
        elif event.type == "content_block_delta":
            self._add(event.index, event.delta)
        elif event.type == "message_delta":
            self._stop = event.delta.stop_reason
            self._count(getattr(event, "usage", None))
        elif event.type == "message_stop":
            self._ended = True

    def _begin(self, message: Any) -> None:
        self._model = self._name(message.model, _MODEL_CHARS) or self._model
        self._count(getattr(message, "usage", None))

    def _open(self, index: int, block: Any) -> None:
        if block.type == "text":
            self._say(block.text)
        elif block.type == "tool_use":
            start = [self._bounded(json.dumps(block.input))] if block.input else []
            self._tools[index] = (self._name(block.id), self._name(block.name), start)
        elif block.type == "thinking":
            said, signed = self._bounded(block.thinking or ""), self._bounded(block.signature or "")
            self._thoughts[index] = {"type": "thinking", "thinking": said, "signature": signed}
        elif block.type == "redacted_thinking":
            self._thoughts[index] = {"type": "redacted_thinking", "data": self._bounded(block.data)}

    def _add(self, index: int, delta: Any) -> None:
        if delta.type == "text_delta":
            self._say(delta.text)
        elif delta.type == "input_json_delta" and index in self._tools:
            self._tools[index][2].append(self._bounded(delta.partial_json))
        elif delta.type == "thinking_delta" and index in self._thoughts:
            self._thoughts[index]["thinking"] += self._bounded(delta.thinking)
        elif delta.type == "signature_delta" and index in self._thoughts:
            self._thoughts[index]["signature"] = self._bounded(delta.signature)

    def _say(self, text: str) -> None:
        if text:
            self._texts.append(self._bounded(text))
            if self._on_text is not None:
                self._on_text(text)

    def _bounded(self, text: str) -> str:
        self._chars += len(text)
        if self._chars > _MAX_CHARS:
            raise ValueError("the answer is longer than any model's")
        return text

    def _count(self, usage: Any) -> None:
        # The counts of later events are totals, not additions; what they leave out, or count less of, stands.
        for name in _COUNTS:
            self._note(name, getattr(usage, name, None))
        written = getattr(usage, "cache_creation", None)
        self._note("write_5m", getattr(written, "ephemeral_5m_input_tokens", None))
        self._note("write_1h", getattr(written, "ephemeral_1h_input_tokens", None))
        self._note("searches", getattr(getattr(usage, "server_tool_use", None), "web_search_requests", None))

    def _note(self, name: str, value: object) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_TOKENS:
            raise ValueError("a count of tokens is none")  # what such an answer cost is not known
        self._usage[name] = max(self._usage.get(name, 0), value)

    def _name(self, value: object, most_chars: int = _ID_CHARS) -> str:
        """A name of the other side's as it is kept: without the key, and not too long."""
        return masked(text_of(value), self._secret)[:most_chars]

    def _output_bound(self) -> int:
        """At most so many output tokens: a token stands for at least one byte of what came."""
        inputs = (part for _, name, parts in self._tools.values() for part in (name, *parts))
        thoughts = (part for thought in self._thoughts.values() for part in thought.values())
        came = sum(len(part.encode("utf-8", "replace")) for part in (*self._texts, *inputs, *thoughts))
        return came if self._max_tokens is None else min(came, self._max_tokens)

    def _used(self) -> Usage:
        """What was counted. There is no request without a token, and no text without one.

        Where the other side says so, the output is a bound from the bytes that came, and of the input nothing is known.
        """
        count = self._usage.get
        short, long = count("write_5m", 0), count("write_1h", 0)
        # A later total may not say of which kind it is, and others than the API do not: then as it was asked for.
        rest = max(count("cache_creation_input_tokens", 0) - short - long, 0)
        if self._cache == "1h":
            long += rest
        else:
            short += rest
        read, output = count("cache_read_input_tokens", 0), count("output_tokens", 0)
        bound = 0 if output else self._output_bound()
        uncounted = count("input_tokens", 0) + read + short + long == 0
        return Usage(
            input_tokens=count("input_tokens", 0),
            output_tokens=output or bound,
            cache_read_tokens=read,
            cache_write_tokens=short,
            cache_write_1h_tokens=long,
            web_searches=count("searches", 0),
            estimated=uncounted or bound > 0,
        )


def _input(parts: list[str]) -> dict[str, Any]:
    text = "".join(parts)
    value = json.loads(text) if text.strip() else {}
    if not isinstance(value, dict):
        raise TypeError("a tool's input is no object")
    return value
