r"""The script format: what the scripted provider and the API simulator answer.

    defaults: {latency_s: 0.05, model: "..."}
    replies:                              # the first entry that matches answers
      - match: {agent: "analyst*", prompt: "text or /regex/i", system: "...", model: "glob", turn: 1, round: 1}
        reply: "{{agent}} says {{results[0].agent_id}}"      # text, or an object that becomes JSON
        tool_calls: [{name: agent_spawn, input: {name: "helper-{{turn}}"}}]
        latency_s: 0.2
        usage: {input_tokens: 10, output_tokens: 5, cache_read_tokens: 0, cache_write_tokens: 0,
                cache_write_1h_tokens: 0, web_searches: 0}
        thinking: "what the model thinks first; a template too"
        stop_reason: max_tokens
        times: 2                          # answers at most twice, then later entries do
        fail: {kind: overload, status: 529, retry_after_s: 1, times: 1}
    default: {reply: "ok"}                # without it: "[agent] prompt", shortened

Everything in `match` is optional and all of it must hold. Templates (`ksi_mcp/templates.py`) see `agent, model,
prompt, system, turn, round`, `results` (of this turn's tool calls, in their order, parsed where they are JSON) and
`groups` (of the prompt's regular expression; `groups[0]` is all of it).

`turn` counts the user messages that hold text and no tool results; `round` is one more than the assistant messages
since the last of them. Both come from the request alone, so the same request gets the same answer in any process. Only
`times` has a memory, in the `Script` object (`ksi_mcp/providers/script.py`): it counts what this process answered, and
starts anew with it.

`fail` without `times` is the entry's answer, every time. With `times` it fails so often and then answers with its
reply, or lets later entries answer if it has none; such failures do not use up the entry's own `times`.
The kinds `rate, overload, server, auth, request, budget` are refusals with an HTTP status. `transport` and `drop` cut
the connection, `stall` and `timeout` fall silent, `mid_stream` reports an error: each after `after_chars` characters
of the reply (`drop`, `stall`: none unless given; `mid_stream`: half of it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ksi_mcp.errors import Invalid
from ksi_mcp.providers.base import StopReason
from ksi_mcp.templates import names
from ksi_mcp.yamlio import safe_load

MAX_ENTRIES: Final = 2_000
# A repeated group that itself ends in a repeat is how a pattern comes to take for ever.
_NESTED_REPEAT = re.compile(r"[*+}]\)[*+{]")

FailKind = Literal[
    "rate", "overload", "server", "auth", "request", "budget", "transport", "timeout", "drop", "stall", "mid_stream"
]
_STATUSES: Final[Mapping[str, tuple[int, ...]]] = {
    "rate": (429,),
    "overload": (529,),
    "server": (500, 502, 503, 504, 408, 409),
    "auth": (401, 403),
    "request": (400, 404, 413, 422),
    "budget": (402,),
    "mid_stream": (529, 500, 429, 504, 402),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Glob = Annotated[str, Field(max_length=200)]
Pattern = Annotated[str, Field(max_length=500)]
Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0, le=100_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Match(_Strict):
    """What a request must be like."""

    agent: Glob | None = None
    model: Glob | None = None
    prompt: Pattern | None = None
    system: Pattern | None = None
    turn: Count | None = None
    round: Count | None = None

    @model_validator(mode="after")
    def _patterns_compile(self) -> Self:
        for pattern in (self.prompt, self.system):
            if pattern is not None:
                pattern_regex(pattern)
        return self


class ToolCall(_Strict):
    """A tool the reply calls; strings of `input` are templates."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    input: dict[str, Any] = Field(default_factory=dict)


class UsageSpec(_Strict):
    """Tokens to report instead of a count of the characters."""

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cache_read_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    cache_write_1h_tokens: Tokens = 0
    web_searches: Tokens = 0


class Fail(_Strict):
    """How the call fails, see the module's text."""

    kind: FailKind
    status: int | None = None
    retry_after_s: Seconds | None = None
    message: Annotated[str, Field(max_length=500)] | None = None
    times: Count | None = None
    after_chars: Annotated[int, Field(ge=0, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _status_fits(self) -> Self:
        allowed = _STATUSES.get(self.kind, ())
        if self.status is not None and self.status not in allowed:
            wanted = f"one of {', '.join(map(str, allowed))}" if allowed else "no status"
            raise ValueError(f"status {self.status} does not go with kind {self.kind}, which takes {wanted}")
        if self.after_chars is not None and self.kind not in ("drop", "stall", "mid_stream"):
            raise ValueError(f"after_chars goes with drop, stall and mid_stream, not with {self.kind}")
        return self

    @property
    def http_status(self) -> int | None:
        """The status to answer or report; None where the connection just fails."""
        allowed = _STATUSES.get(self.kind)
        return self.status or (allowed[0] if allowed else None)


class Reply(_Strict):
    """What is answered. A `reply` that is not text, such as an object, becomes JSON text."""

    reply: Any = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=50)] = Field(default_factory=list)
    latency_s: Seconds | None = None
    usage: UsageSpec = UsageSpec()
    stop_reason: StopReason | None = None
    thinking: Annotated[str, Field(max_length=100_000)] | None = None
    fail: Fail | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.reply is None and not self.tool_calls and self.fail is None:
            raise ValueError("an entry needs reply, tool_calls or fail")
        if (self.stop_reason or "tool_use") != "tool_use" and self.tool_calls:
            raise ValueError(f"tool_calls go with stop_reason tool_use, not with {self.stop_reason}")
        if self.stop_reason == "tool_use" and not self.tool_calls:
            raise ValueError("stop_reason tool_use needs tool_calls")
        try:
            # Malformed templates fail here, not in a run.
            names([self.reply, self.thinking, [call.input for call in self.tool_calls]])
        except Invalid as error:
            raise ValueError(error.message) from None
        return self


class Entry(Reply):
    """One of `replies`."""

    match: Match = Match()
    times: Count | None = None


class Defaults(_Strict):
    """What holds where an entry says nothing."""

    latency_s: Seconds = 0.0
    model: Annotated[str, Field(max_length=200)] | None = None


class ScriptSpec(_Strict):
    """A parsed script. It has no state; `Script` runs it."""

    defaults: Defaults = Defaults()
    replies: Annotated[list[Entry], Field(max_length=MAX_ENTRIES)] = Field(default_factory=list)
    default: Reply | None = None

    @property
    def has_regex(self) -> bool:
        """Whether something in it is matched by a regular expression, of which some never end."""
        patterns = [each for entry in self.replies for each in (entry.match.prompt, entry.match.system) if each]
        return any(pattern_regex(each) is not None for each in patterns)


def parse_script(data: Any) -> ScriptSpec:
    """Check a script given as data. `Invalid` names the entry and what is wrong with it."""
    if data is None:
        return ScriptSpec()
    try:
        return ScriptSpec.model_validate(data)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
        more = f" (and {len(others)} more)" if others else ""
        raise Invalid(
            f"the script is wrong at {_place(first['loc'])}: {first['msg'].removeprefix('Value error, ')}{more}",
            hint="an entry has match, reply, tool_calls, latency_s, usage, stop_reason, thinking, times and fail",
        ) from None


def load_script(text: str | bytes) -> ScriptSpec:
    """Read a script from YAML. Raises `Invalid`."""
    return parse_script(safe_load(text, what="the script"))


def pattern_regex(pattern: str) -> re.Pattern[str] | None:
    """The expression between slashes, or None for plain text. `re` keeps what it compiled."""
    body, ignore_case = (pattern[:-1], re.IGNORECASE) if pattern.endswith("/i") else (pattern, re.NOFLAG)
    if len(body) < 3 or not (body.startswith("/") and body.endswith("/")):  # noqa: PLR2004 - both slashes and a body
        return None
    if _NESTED_REPEAT.search(body):
        raise ValueError(f"the pattern {pattern!r} repeats a repeat, which may never end")
    try:
        return re.compile(body[1:-1], ignore_case | re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from None


def _place(loc: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.lstrip(".") or "its top"
