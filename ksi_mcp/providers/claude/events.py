"""What Claude Code says of a turn (`--output-format stream-json`), read: nothing here runs or waits.

Of its events these matter: `stream_event` (text as it comes), `assistant`, `system` with `init` or `api_retry`,
`rate_limit_event`, and one `result` at the end. `usage` is of the turn alone. `total_cost_usd` and `modelUsage` count
the whole session, also after it was resumed or forked: a turn costs the difference. But a process that was killed has
not written its count down, and the session goes on from nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ksi_mcp.errors import ProviderError, ProviderErrorKind
from ksi_mcp.providers.base import Answer, Message, StopReason, Thinking, ToolResult, ToolUse, Usage
from ksi_mcp.providers.failures import kind_of_error, safe_text

MICROS: Final = 1_000_000
_ROUNDING: Final = 1e-6
"""Micro-dollars that binary fractions may be off."""
_STOPS: Final[dict[str, StopReason]] = {"max_tokens": "max_tokens", "refusal": "refusal"}
_LOGIN: Final = "run `claude` and log in (or `claude setup-token`), or pass an API key on: `claude_cli: {env: [...]}`"
_HINTS: Final[dict[str, str]] = {
    "auth": _LOGIN,
    "budget": "raise the spend limit or the credit of the account, or use another model",
}
_NO_LOGIN: Final = ("not logged in", "please run /login", "invalid api key", "oauth token", "failed to authenticate")
_NO_CONNECTION: Final = ("connection", "econn", "network", "socket", "fetch failed", "timed out", "timeout")
_UNKNOWN_SESSION: Final = ("no conversation found", "no message found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """It was refused by the API and is about to try again. `status` is None if the connection failed."""

    status: int | None
    wait_s: float
    said: str


class Reading:
    """One turn, as far as it was read."""

    def __init__(self) -> None:
        self.session_id: str | None = None
        self.place: str | None = None
        """The id of the newest message in its session."""
        self.model: str | None = None
        self.began = False
        """Whether the model has begun to answer: from then on it costs."""
        self.retry: Retry | None = None
        self.result: Mapping[str, Any] | None = None
        self.resets_at_s: float | None = None
        self._texts: list[str] = []
        self._stop: str | None = None

    @property
    def text(self) -> str:
        """What the model has said so far, in all its answers of this turn."""
        return "".join(self._texts)

    def take(self, event: Mapping[str, Any]) -> str:
        """Take an event in; the text that it adds. What is not known here is passed over."""
        kind = event.get("type")
        main = event.get("parent_tool_use_id") is None
        if kind == "stream_event" and main:
            return self._stream(_object(event.get("event")))
        if kind in ("assistant", "user") and main:
            self.place = _text(event.get("uuid")) or self.place
        if kind == "assistant":
            # Its own words about a failed call come as an answer too, of a model by this name.
            self.began = self.began or _object(event.get("message")).get("model") != "<synthetic>"
        elif kind == "system":
            self._system(event)
        elif kind == "rate_limit_event":
            facts = _object(event.get("rate_limit_info"))
            if facts.get("status") == "rejected":
                self.resets_at_s = _number(facts.get("resetsAt"))
        elif kind == "result":
            self.result = event
            self.session_id = _text(event.get("session_id")) or self.session_id
        return ""

    def _stream(self, event: Mapping[str, Any]) -> str:
        kind = event.get("type")
        if kind == "message_start":
            self.began, self.retry = True, None
            self.model = _text(_object(event.get("message")).get("model")) or self.model
            return self._say("\n\n") if self._texts else ""
        if kind == "content_block_delta":
            delta = _object(event.get("delta"))
            if delta.get("type") == "text_delta":
                return self._say(_text(delta.get("text")))
        return ""

    def _say(self, text: str) -> str:
        text = _plain(text)
        if text:
            self._texts.append(text)
        return text

    def _system(self, event: Mapping[str, Any]) -> None:
        if event.get("subtype") == "init":
            self.session_id = _text(event.get("session_id")) or self.session_id
        elif event.get("subtype") == "api_retry":
            status = event.get("error_status")
            self.retry = Retry(
                status=status if isinstance(status, int) else None,
                wait_s=(_number(event.get("retry_delay_ms")) or 0) / 1000,
                said=_text(event.get("error")),
            )


def cost_usd_micros(result: Mapping[str, Any]) -> int | None:
    """What the whole session has cost by now, rounded up to micro-dollars; None if it does not say."""
    total = _number(result.get("total_cost_usd"))
    if total is None or not math.isfinite(total) or total < 0:
        return None
    return math.ceil(total * MICROS - _ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a session has used so far by its own count."""

    usd_micros: int = 0
    tokens: int = 0


def turn_cost(result: Mapping[str, Any], before: Spent, *, resumed: bool) -> tuple[int | None, Spent]:
    """What this turn cost in micro-dollars, None if that is not said; and what the session has used by now.

    A session that was `resumed` may have begun to count anew: then all its tokens are fewer than those before and
    those of this turn together.
    """
    total, tokens = cost_usd_micros(result), _all_tokens(result)
    if total is None:
        return None, before
    now = Spent(usd_micros=total, tokens=tokens)
    anew = total < before.usd_micros or (resumed and tokens < before.tokens + usage_of(result).total_tokens)
    return (total if anew else total - before.usd_micros), now


def _all_tokens(result: Mapping[str, Any]) -> int:
    kinds = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
    models = _object(result.get("modelUsage")).values()
    return sum(_count(_object(model).get(kind)) for model in models for kind in kinds)


def usage_of(result: Mapping[str, Any]) -> Usage:
    """The tokens of this turn, all its calls together."""
    said = _object(result.get("usage"))
    written = _object(said.get("cache_creation"))
    hour = _count(written.get("ephemeral_1h_input_tokens"))
    return Usage(
        input_tokens=_count(said.get("input_tokens")),
        output_tokens=_count(said.get("output_tokens")),
        cache_read_tokens=_count(said.get("cache_read_input_tokens")),
        cache_write_tokens=max(_count(said.get("cache_creation_input_tokens")) - hour, 0),
        cache_write_1h_tokens=hour,
        web_searches=_count(_object(said.get("server_tool_use")).get("web_search_requests")),
    )


def answer_of(reading: Reading, *, model: str, cost: int | None, wants_object: bool) -> Answer:
    """The answer of a turn that ended well. `cost` is this turn's, in micro-dollars."""
    result = reading.result or {}
    text = _plain(_text(result.get("result")))
    if wants_object and result.get("structured_output") is not None:
        text = json.dumps(result["structured_output"], ensure_ascii=False)
    return Answer(
        text=text,
        model=reading.model or model,
        stop_reason=_STOPS.get(_text(result.get("stop_reason")), "end_turn"),
        usage=usage_of(result),
        cost_usd_micros=cost,
    )


def failure_of(reading: Reading, *, now_s: float) -> ProviderError | None:
    """Why a turn whose result has come failed, or None if it did not."""
    result = reading.result or {}
    subtype = _text(result.get("subtype"))
    if not result.get("is_error") and subtype == "success":
        return None
    said = _text(result.get("result")) or "; ".join(map(str, _list(result.get("errors")))) or subtype
    hint: str | None = None
    kind: ProviderErrorKind
    status = result.get("api_error_status")
    if subtype == "error_max_budget_usd":
        kind, hint = "budget", "raise claude_cli.max_usd_per_turn, or ask for less in one turn"
    elif subtype == "error_max_turns":
        kind, hint = "request", "raise claude_cli.model_turns, or ask for less in one turn"
    elif isinstance(status, int):
        kind = kind_of_error(status, message=said)
    elif _has(said, _NO_LOGIN):
        kind = "auth"
    elif _has(said, _NO_CONNECTION):
        kind = "transport"
    else:
        kind = "request" if subtype.startswith("error_max") or not reading.began else "server"
    wait_s = None
    if kind == "rate" and reading.resets_at_s is not None:
        wait_s = max(reading.resets_at_s - now_s, 0.0)
    elif kind == "rate" and reading.retry is not None:
        wait_s = reading.retry.wait_s
    return failed(f"Claude Code: {safe_text(said)}", kind=kind, reading=reading, hint=hint, retry_after_s=wait_s)


def check(reading: Reading, *, now_s: float) -> None:
    """Raise what `failure_of` says of a turn whose result has come."""
    failure = failure_of(reading, now_s=now_s)
    if failure is not None:
        raise failure


def refused_at_first(reading: Reading) -> ProviderError | None:
    """The API refused the turn's first call and it would try again: that is for the worker to decide."""
    retry = reading.retry
    if retry is None or reading.began:
        return None
    if retry.status is None:
        return failed("Claude Code could not reach the API", kind="transport", reading=reading, billed="unknown")
    return failed(
        f"Claude Code: the API answered with status {retry.status} ({safe_text(retry.said)})",
        kind=kind_of_error(retry.status),
        reading=reading,
        retry_after_s=retry.wait_s if retry.wait_s >= 1 else None,
    )


def died(reading: Reading, *, asked: bool, code: int | None, said: str) -> ProviderError:
    """It ended without a result. `asked`: the prompt had been handed to it; `said` is what it left behind."""
    said = safe_text(said)
    kind: ProviderErrorKind = "server"
    if _has(said, _NO_LOGIN):
        kind = "auth"
    elif "unknown option" in said.lower():
        kind = "request"
    return failed(
        f"Claude Code ended without an answer (exit code {code})" + (f": {said}" if said else ""),
        kind=kind,
        reading=reading,
        billed="unknown" if asked and kind == "server" else "no",
        hint="update it: claude update" if kind == "request" else None,
    )


def is_unknown_session(reading: Reading) -> bool:
    """Whether the session to go on from is not there any more; nothing was asked of a model then."""
    said = " ".join(map(str, _list((reading.result or {}).get("errors"))))
    return not reading.began and _has(said, _UNKNOWN_SESSION)


def failed(
    message: str,
    *,
    kind: ProviderErrorKind,
    reading: Reading,
    billed: Literal["no", "unknown"] | None = None,
    hint: str | None = None,
    retry_after_s: float | None = None,
) -> ProviderError:
    """A failure with what had come before it. Unless told otherwise it cost nothing if no model had begun."""
    return ProviderError(
        message,
        kind=kind,
        billed=billed or ("unknown" if reading.began else "no"),
        retry_after_s=retry_after_s,
        partial_text=reading.text,
        hint=hint or _HINTS.get(kind),
    )


# --------------------------------------------------------------------------------- a conversation


def digest_of(messages: Iterable[Message]) -> str:
    """The SHA-256 of a conversation as it is shown to a model."""
    shown = [[message.role, [_shown(block) for block in _blocks(message)]] for message in messages]
    text = json.dumps(shown, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def prompt_of(message: Message) -> str:
    """A message as text that Claude Code takes as nothing but text: a slash at the start would be a command."""
    text = _plain("\n\n".join(map(_written, _blocks(message))))
    return f" {text}" if text.startswith("/") else text


def transcript(history: Sequence[Message], last: Message) -> str:
    """A conversation that somebody else has held so far, and the message that is to be answered now."""
    if not history:
        return prompt_of(last)
    parts = ["This conversation is under way; you are its assistant. All of it so far, oldest first:"]
    for message in history:
        who = "assistant" if message.role == "assistant" else "user"
        said = _plain("\n\n".join(map(_written, _blocks(message))))
        parts.append(f"<{who}>\n{said}\n</{who}>")
    parts.append(f"The user's next message, which you now answer:\n\n{prompt_of(last)}")
    return "\n\n".join(parts)


def _blocks(message: Message) -> list[str | ToolUse | ToolResult]:
    return [
        block
        for block in message.blocks
        if not isinstance(block, Thinking) and (not isinstance(block, str) or block.strip())
    ]


def _shown(block: str | ToolUse | ToolResult) -> Any:
    if isinstance(block, ToolUse):
        return {"tool": block.name, "input": block.input}
    if isinstance(block, ToolResult):
        return {"result": block.content, "error": block.is_error}
    return block


def _written(block: str | ToolUse | ToolResult) -> str:
    if isinstance(block, ToolUse):
        return f"[called the tool {block.name} with {json.dumps(block.input, ensure_ascii=False)}]"
    if isinstance(block, ToolResult):
        return f"[the tool {'failed' if block.is_error else 'answered'}: {block.content}]"
    return block


# ------------------------------------------------------------------------ what may be anything


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) and not isinstance(value, bool) else 0


def _has(text: str, words: Iterable[str]) -> bool:
    lower = text.lower()
    return any(word in lower for word in words)


def _plain(text: str) -> str:
    """Without lone surrogates, which JSON can smuggle in and no store can hold."""
    return text.encode("utf-8", "replace").decode()
