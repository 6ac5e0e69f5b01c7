"""Scripts at work: which entry answers a request, and with what. The format is in `script_format.py`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from ksi_mcp.errors import Invalid
from ksi_mcp.providers.base import Message, Request, StopReason, ToolResult, ToolUse, Usage
from ksi_mcp.providers.script_format import (
    Fail,
    Match,
    Reply,
    ScriptSpec,
    UsageSpec,
    load_script,
    parse_script,
    pattern_regex,
)
from ksi_mcp.templates import render_tree

__all__ = ["Planned", "Script", "Situation", "load_script", "parse_script", "pieces", "request_tokens"]

SEARCHED_CHARS: Final = 20_000
"""How much of a prompt a pattern looks at."""
_ECHO_CHARS: Final = 200
_CHARS_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a script sees of a request."""

    agent: str
    model: str
    system: str
    prompt: str
    turn: int
    round: int
    results: tuple[Any, ...]

    @classmethod
    def of(cls, request: Request) -> Situation:
        """Read turn, round and prompt off the messages."""
        texts = [(position, text) for position, m in enumerate(request.messages) if (text := _user_text(m)) is not None]
        since = request.messages[texts[-1][0] :] if texts else request.messages
        calls = [block.id for m in since for block in m.blocks if isinstance(block, ToolUse)]
        results = [block for m in since for block in m.blocks if isinstance(block, ToolResult)]
        # Clients may run calls side by side, and tell what ended first: a script counts calls.
        results.sort(key=lambda block: calls.index(block.tool_use_id) if block.tool_use_id in calls else len(calls))
        return cls(
            agent=request.agent,
            model=request.model,
            system=request.system,
            prompt=texts[-1][1] if texts else "",
            turn=len(texts),
            round=1 + sum(m.role == "assistant" for m in since),
            results=tuple(_parsed(block.content) for block in results),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What to answer, with everything filled in. With `fail`, the text is what `after_chars` counts in."""

    rule: str
    text: str
    tool_uses: tuple[ToolUse, ...]
    stop_reason: StopReason
    usage: Usage
    model: str
    latency_s: float
    request_id: str
    fail: Fail | None
    thinking: str = ""

    def partial(self) -> str:
        """The text that arrives before the failure."""
        if self.fail is None or self.fail.kind not in ("drop", "stall", "mid_stream"):
            return ""
        after = self.fail.after_chars
        if after is None:
            after = (len(self.text) + 1) // 2 if self.fail.kind == "mid_stream" else 0
        return self.text[:after]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What an entry says, with its templates filled in."""

    text: str
    thinking: str = ""
    tool_uses: tuple[ToolUse, ...] = ()


class Script:
    """A script at work: the spec, and how often each entry has answered in this process."""

    def __init__(self, spec: ScriptSpec) -> None:
        self.spec = spec
        self._answered = [0] * len(spec.replies)
        self._failed = [0] * (len(spec.replies) + 1)  # the last one counts for `default`

    def answer(self, request: Request) -> Planned:
        """Decide what to answer. Raises `Invalid` if a template of the entry cannot be filled."""
        seen = Situation.of(request)
        for number, entry in enumerate(self.spec.replies):
            if entry.times is not None and self._answered[number] >= entry.times:
                continue
            groups = _match(entry.match, seen)
            if groups is None:
                continue
            failing = self._fails(number, entry)
            if failing is None and entry.reply is None and not entry.tool_calls:
                continue
            planned = self._fill(request, rule=f"replies[{number}]", reply=entry, fail=failing, groups=groups)
            if failing is None or failing.times is None:
                self._answered[number] += 1
            else:
                self._failed[number] += 1
            return planned
        default = self.spec.default
        if default is not None:
            failing = self._fails(-1, default)
            if failing is not None:
                self._failed[-1] += 1
            if failing is not None or default.reply is not None or default.tool_calls:
                return self._fill(request, rule="default", reply=default, fail=failing)
        prompt = seen.prompt if len(seen.prompt) <= _ECHO_CHARS else f"{seen.prompt[: _ECHO_CHARS - 3]}..."
        return self._planned(request, _Said(text=f"[{seen.agent}] {prompt}"), rule="echo", reply=Reply(reply=""))

    def _fails(self, number: int, reply: Reply) -> Fail | None:
        fail = reply.fail
        return None if fail is None or (fail.times is not None and self._failed[number] >= fail.times) else fail

    def _fill(
        self, request: Request, *, rule: str, reply: Reply, fail: Fail | None, groups: tuple[Any, ...] = ()
    ) -> Planned:
        seen = Situation.of(request)
        scope = {
            "agent": seen.agent,
            "model": seen.model,
            "prompt": seen.prompt,
            "system": seen.system,
            "turn": seen.turn,
            "round": seen.round,
            "results": list(seen.results),
            "groups": list(groups),
        }
        try:
            filled = render_tree("" if reply.reply is None else reply.reply, scope)
            inputs = [render_tree(call.input, scope) for call in reply.tool_calls]
            thought = render_tree(reply.thinking or "", scope)
        except Invalid as error:
            raise Invalid(f"{rule} of the script: {error.message}", hint=error.hint) from error
        uses = tuple(
            ToolUse(id=f"toolu_t{seen.turn}r{seen.round}n{number}", name=call.name, input=filled_input)
            for number, (call, filled_input) in enumerate(zip(reply.tool_calls, inputs, strict=True))
        )
        said = _Said(text=_as_text(filled), thinking=_as_text(thought), tool_uses=uses)
        return self._planned(request, said, rule=rule, reply=reply, fail=fail)

    def _planned(self, request: Request, said: _Said, *, rule: str, reply: Reply, fail: Fail | None = None) -> Planned:
        defaults = self.spec.defaults
        planned = Planned(
            rule=rule,
            text=said.text,
            tool_uses=said.tool_uses,
            stop_reason=reply.stop_reason or ("tool_use" if said.tool_uses else "end_turn"),
            usage=Usage(),
            model=defaults.model or request.model,
            latency_s=defaults.latency_s if reply.latency_s is None else reply.latency_s,
            request_id=_request_id(request),
            fail=fail,
            thinking=said.thinking,
        )
        return _with_usage(planned, reply.usage, request)


def request_tokens(request: Request) -> int:
    """Estimate the input tokens: a quarter of the characters of everything sent, rounded up, at least 1."""
    texts = [request.system]
    texts += [tool.canonical for tool in request.tools]
    for message in request.messages:
        for block in message.blocks:
            if isinstance(block, str):
                texts.append(block)
            elif isinstance(block, ToolResult):
                texts.append(block.content)
            elif isinstance(block, ToolUse):
                texts.append(block.name + json.dumps(block.input))
    return _tokens(texts)


def pieces(text: str, count: int = 4) -> list[str]:
    """Cut text into a few pieces, as streaming does."""
    size = max(1, -(-len(text) // count))
    return [text[at : at + size] for at in range(0, len(text), size)]


def _with_usage(planned: Planned, spec: UsageSpec, request: Request) -> Planned:
    """Count the tokens, and stop at `max_tokens` as a real model does unless the script says what to report."""
    text, stop = planned.text, planned.stop_reason
    output = _tokens([text, planned.thinking, *(use.name + json.dumps(use.input) for use in planned.tool_uses)])
    if spec.output_tokens is not None:
        output = spec.output_tokens
    elif output > request.max_tokens:
        output = request.max_tokens
        if not planned.tool_uses:
            text, stop = text[: output * _CHARS_PER_TOKEN], "max_tokens"
    usage = Usage(
        input_tokens=request_tokens(request) if spec.input_tokens is None else spec.input_tokens,
        output_tokens=output,
        cache_read_tokens=spec.cache_read_tokens,
        cache_write_tokens=spec.cache_write_tokens,
        cache_write_1h_tokens=spec.cache_write_1h_tokens,
        web_searches=spec.web_searches,
    )
    return replace(planned, text=text, stop_reason=stop, usage=usage)


def _match(match: Match, seen: Situation) -> tuple[Any, ...] | None:
    """The groups of the prompt's pattern if all of `match` holds, else None."""
    if match.turn not in (None, seen.turn) or match.round not in (None, seen.round):
        return None
    if match.agent is not None and not fnmatchcase(seen.agent, match.agent):
        return None
    if match.model is not None and not fnmatchcase(seen.model, match.model):
        return None
    if match.system is not None and _found(match.system, seen.system) is None:
        return None
    return () if match.prompt is None else _found(match.prompt, seen.prompt)


def _found(pattern: str, text: str) -> tuple[Any, ...] | None:
    regex = pattern_regex(pattern)
    if regex is None:
        return (pattern,) if pattern in text else None
    found = regex.search(text[:SEARCHED_CHARS])
    return (found[0], *found.groups()) if found else None


def _user_text(message: Message) -> str | None:
    """The prompt in a message; what stands beside tool results is a remark of the client's, and no turn."""
    if message.role != "user" or any(isinstance(block, ToolResult) for block in message.blocks):
        return None
    texts = [block for block in message.blocks if isinstance(block, str) and block.strip()]
    return "\n".join(texts) if texts else None


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _tokens(texts: Iterable[str]) -> int:
    return max(1, -(-sum(map(len, texts)) // _CHARS_PER_TOKEN))


def _request_id(request: Request) -> str:
    """The same for the same request, so that a replay repeats it."""
    said = [block if isinstance(block, str) else repr(block) for m in request.messages for block in (m.role, *m.blocks)]
    digest = hashlib.sha256("\x1f".join((request.agent, request.model, *said)).encode("utf-8", "replace"))
    return f"req_{digest.hexdigest()[:16]}"
