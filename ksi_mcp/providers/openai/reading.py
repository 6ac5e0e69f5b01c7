"""Reading an answer of OpenAI's chat completions, chunk by chunk, from a server that nobody vouches for."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from typing import Any, Final

from ksi_mcp.errors import ProviderError
from ksi_mcp.providers.base import Answer, OnText, StopReason, ToolUse, Usage
from ksi_mcp.providers.failures import masked, safe_text
from ksi_mcp.providers.openai.events import BrokenOff, Events, Unreadable
from ksi_mcp.providers.openai.wire import said_of

MAX_TEXT_CHARS: Final = 4_000_000
MAX_CALLS: Final = 200
_NAME_CHARS: Final = 200
_MOST_TOKENS: Final = 100_000_000
_MOST_USD: Final = 1_000_000
_TOKEN_BYTES: Final = 16
"""What a token stands for at most, on the average of an answer: it is four bytes in most texts."""
_STOP_REASONS: Final[Mapping[str, StopReason]] = {
    "stop": "end_turn",
    "eos": "end_turn",
    "eos_token": "end_turn",
    "end_turn": "end_turn",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "tool_use": "tool_use",
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "content_filter": "refusal",
    "refusal": "refusal",
    "safety": "refusal",
    "stop_sequence": "stop_sequence",
    "pause_turn": "pause_turn",
    "model_length": "context_exceeded",
    "context_length_exceeded": "context_exceeded",
    "model_context_window_exceeded": "context_exceeded",
}
# A server may give up in the middle and call that a reason to stop.
_BROKEN: Final = frozenset({"error", "abort", "insufficient_system_resource"})
# Where the shared names say less than the upstream's own, which OpenRouter adds.
_FINER: Final = frozenset({"stop_sequence", "pause_turn", "refusal", "model_length", "model_context_window_exceeded"})


class _Call:
    """A tool call as far as it came."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


class Reading:
    """One answer, as far as it was read: server-sent events, or one JSON object if the server does not stream.

    `secret` is the key that the server was given: where it repeats that in a name, the name is told without it.
    """

    def __init__(self, model: str, on_text: OnText | None, *, secret: str = "") -> None:
        self.finished = False
        """The model has said why it stopped: what may still come is the usage."""
        self.request_id: str | None = None
        """The server's name for the call, if a header of it said one."""
        self._secret = secret
        self._model = model
        self._on_text = on_text
        self._texts: list[str] = []
        self._chars = 0
        self._passed_over = 0
        self._calls: list[_Call] = []
        self._at_index: dict[Any, _Call] = {}
        self._usage: Mapping[str, Any] | None = None
        self._reason = ""
        self._native = ""
        self._refused = False
        self._id: str | None = None
        self._events = Events(self._take)

    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    @property
    def over(self) -> bool:
        """The server has said that nothing comes after this."""
        return self._events.over

    def short(self, value: Any) -> str | None:
        """A name of the server's as it is kept: without the key, and not too long."""
        return masked(value, self._secret)[:_NAME_CHARS] if type(value) is str and value else None

    def feed(self, data: bytes) -> None:
        """Take in what has arrived. Raises `Unreadable`, `BrokenOff`."""
        self._events.feed(data)

    def end(self) -> None:
        """Nothing comes any more: take in what is left. Raises as `feed` does."""
        self._events.end()

    def answer(self, *, max_tokens: int, input_bound: int, says_cost: bool) -> Answer:
        """The answer, if it is one. Raises `ProviderError`."""
        if not self.finished:
            raise ProviderError(
                "the answer ended before it was complete", kind="transport", billed="unknown", partial_text=self.text()
            )
        stop = self._stop()
        usage = self._counted() or Usage(
            input_tokens=input_bound, output_tokens=min(max_tokens, self._output_bound()), estimated=True
        )
        return Answer(
            text=self.text(),
            model=self._model,
            stop_reason=stop,
            tool_uses=self._tool_uses() if stop == "tool_use" else (),  # elsewhere they may be half a call
            usage=usage,
            request_id=self.request_id or self._id,
            cost_usd_micros=self._cost() if says_cost else None,
        )

    # ------------------------------------------------------------------------------------ chunks

    def _take(self, value: Any) -> None:
        whole = self._events.is_whole
        if type(value) is not dict:
            if whole and (said := said_of(value)) is not None:
                raise BrokenOff(said)
            raise Unreadable("a chunk is no JSON object")
        choices = value.get("choices")
        if value.get("error") or not choices:
            if (said := said_of(value)) is not None:
                raise BrokenOff(said)
            if whole:
                raise Unreadable("it is no chat completion")
        if choices:
            self._choice(choices)
        if self._id is None:
            self._id = self.short(value.get("id"))
            self._model = self.short(value.get("model")) or self._model
        usage = value.get("usage")
        if type(usage) is dict:
            self._usage = usage  # the counts are totals: the newest stand
        elif self.finished and self._usage is None:
            self._usage = _elsewhere(value)

    def _choice(self, choices: Any) -> None:
        choice = choices[0] if type(choices) is list else None
        if type(choice) is not dict:
            raise Unreadable("its choices are no list of objects")
        delta = choice.get("delta") or choice.get("message")
        if type(delta) is dict:
            content = delta.get("content")
            if content:
                self._say(content if type(content) is str else _text_of(content))
            else:
                passed = delta.get("reasoning_content") or delta.get("reasoning")
                if type(passed) is str:
                    self._passed_over += len(passed.encode("utf-8", "replace"))
            if calls := delta.get("tool_calls"):
                self._called(calls)
            elif function := delta.get("function_call"):
                self._called([{"index": 0, "function": function}])
            if (refusal := delta.get("refusal")) and type(refusal) is str:
                self._refused = True
                self._say(refusal)
        reason = choice.get("finish_reason")
        if reason:
            # Without the key first: in other letters it would not be found any more.
            self._reason = (self.short(str(reason)) or "").lower()
            self._native = (self.short(str(choice.get("native_finish_reason") or "")) or "").lower()
            self.finished = True
            self._usage = self._usage or _elsewhere(choice)

    def _say(self, text: str) -> None:
        self._chars += len(text)
        if self._chars > MAX_TEXT_CHARS:
            raise Unreadable(f"it is longer than {MAX_TEXT_CHARS:,} characters")
        if text:
            self._texts.append(text)
            if self._on_text is not None:
                self._on_text(text)

    def _called(self, parts: Any) -> None:
        """Take in parts of tool calls: by index as OpenAI streams them, or whole, without index, id or both."""
        for part in parts if type(parts) is list else ():
            function = part.get("function") if type(part) is dict else None
            if type(function) is not dict:
                raise Unreadable("a tool call is no object")
            index, given = part.get("index"), self.short(part.get("id")) or ""
            name, arguments = self.short(function.get("name")) or "", function.get("arguments")
            if type(index) is int:
                call = self._at_index.get(index)
            else:
                index = None
                call = None if given or name else (self._calls[-1] if self._calls else None)
            if call is None or (name and given and call.id and given != call.id):
                call = _Call()
                self._calls.append(call)
                if len(self._calls) > MAX_CALLS:
                    raise Unreadable(f"it has more than {MAX_CALLS} tool calls")
                if index is not None:
                    self._at_index[index] = call
            call.id = call.id or given
            call.name = call.name or name
            if arguments:
                written = arguments if type(arguments) is str else json.dumps(arguments)
                self._chars += len(written)
                if self._chars > MAX_TEXT_CHARS:
                    raise Unreadable(f"it is longer than {MAX_TEXT_CHARS:,} characters")
                call.arguments.append(written)

    # ---------------------------------------------------------------------------------- the whole

    def _stop(self) -> StopReason:
        reason = self._native if self._native in _FINER else self._reason
        if reason in _BROKEN:
            overloaded = reason == "insufficient_system_resource"
            raise ProviderError(
                f"the model server gave up on the answer ({reason})",
                kind="overload" if overloaded else "server",
                billed="unknown",
                partial_text=self.text(),
            )
        stop = _STOP_REASONS.get(reason)
        if stop is None:
            raise ProviderError(
                f"the model stopped for a reason this version does not know: {safe_text(reason)!r}",
                kind="bug",
                billed="unknown",
                partial_text=self.text(),
                hint="upgrade the server",
            )
        if self._refused:
            return "refusal"
        if stop == "end_turn" and self._calls:  # so do Ollama and others
            return "tool_use"
        return "end_turn" if stop == "tool_use" and not self._calls else stop

    def _tool_uses(self) -> tuple[ToolUse, ...]:
        uses: list[ToolUse] = []
        seen: set[str] = set()
        for call in self._calls:
            value = _arguments("".join(call.arguments))
            if value is None or not call.name:
                # Another sample of the same model may well be right: worth another try.
                raise ProviderError(
                    f"the model called {safe_text(call.name)[:80] or 'a tool without a name'!r} with arguments that "
                    "are no JSON object",
                    kind="server",
                    billed="unknown",
                    partial_text=self.text(),
                    hint="use a model that is made for calling tools",
                )
            use_id = call.id if call.id and call.id not in seen else f"call_{uuid.uuid4().hex[:24]}"
            seen.add(use_id)
            uses.append(ToolUse(id=use_id, name=call.name, input=value))
        return tuple(uses)

    def _counted(self) -> Usage | None:
        """What the server counted; None if it did not, not in numbers, or less than what was there."""
        usage = self._usage
        if usage is None:
            return None
        prompt, output = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        if prompt is None or output is None:
            return None
        total = _count(usage.get("total_tokens"))
        if total is not None:  # Gemini leaves what it thought out of the output, but not out of the total
            output = max(output, total - prompt)
        # There is no request without a token, and no text without one. What was said before the last of the text may
        # be less than it all; a server that says it at the end may be wrong as well.
        if prompt == 0 or self._output_bound() > output * _TOKEN_BYTES:
            return None
        details = usage.get("prompt_tokens_details")
        details = details if type(details) is dict else {}
        read = _count(details.get("cached_tokens")) or _count(usage.get("prompt_cache_hit_tokens")) or 0
        read = min(read, prompt)
        written = min(_count(details.get("cache_write_tokens")) or 0, prompt - read)
        return Usage(
            input_tokens=prompt - read - written,
            output_tokens=output,
            cache_read_tokens=read,
            cache_write_tokens=written,
        )

    def _output_bound(self) -> int:
        """At most so many output tokens: a token stands for at least one byte of what came."""
        parts = [*self._texts, *(part for call in self._calls for part in (call.name, *call.arguments))]
        return self._passed_over + sum(len(part.encode("utf-8", "replace")) for part in parts)

    def _cost(self) -> int | None:
        cost = self._usage.get("cost") if self._usage is not None and not self._usage.get("is_byok") else None
        # Nothing at all is for the price of the model to say. True is an int of Python's.
        if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 < cost <= _MOST_USD:
            return None
        return max(math.ceil(round(cost * 1_000_000, 3)), 1)


def _arguments(text: str) -> dict[str, Any] | None:
    """A tool's input; None if it is no JSON object. Some models write it as a JSON text of JSON."""
    value: Any = text
    for _ in range(2):
        if not isinstance(value, str):
            break
        if not value.strip():
            return {}
        try:
            value = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return None
    if value is None:
        return {}
    return value if isinstance(value, dict) else None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _elsewhere(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The usage, where some put it: Moonshot in the choice, Groq in a field of its own."""
    usage = value.get("usage")
    if type(usage) is not dict:
        own = value.get("x_groq")
        usage = own.get("usage") if type(own) is dict else None
    return usage if type(usage) is dict else None


def _text_of(content: Any) -> str:
    """The text of content in parts, as Mistral's thinking models write it."""
    parts = content if type(content) is list else ()
    texts = (part.get("text") for part in parts if type(part) is dict and part.get("type") in ("text", "output_text"))
    return "".join(text for text in texts if type(text) is str)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None
