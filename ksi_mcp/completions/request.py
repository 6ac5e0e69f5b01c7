"""From a turn and its stored rounds to the request of the next round: pure, so a retry sends the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from ksi_mcp.agents.history import PastTurn, byte_size, conversation, tokens_bound
from ksi_mcp.agents.model import Agent
from ksi_mcp.providers.base import Block, Request, Thinking, ToolResult, ToolSpec, ToolUse
from ksi_mcp.queues.model import OpClass, Turn

CLASS_TIMEOUT_S: Final[dict[OpClass, float]] = {"simple": 10.0, "analysis": 30.0, "code": 60.0, "multi_step": 120.0}
MAX_TIMEOUT_S: Final = 600.0
"""Of a deadline that nobody asked for."""
MAX_ASKED_S: Final = 3600.0
SLOW_TOKENS_PER_S: Final = 20.0
"""A call that is cut off is paid all the same, so the default deadline leaves room for a full answer at this rate."""

ENVELOPE_TOKENS: Final = 64
TOOLS_TOKENS: Final = 1_000
"""What a provider adds of its own when tools are offered (346 to 804 tokens are documented for Claude)."""

_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def render(
    agent: Agent, now: PastTurn, earlier: Sequence[PastTurn], tools: tuple[ToolSpec, ...], *, model: str
) -> Request:
    """The request for the next round of `now`.

    The window: the prompt of the turn, what was put in with it and all its own rounds are always shown (their
    number is bounded by `max_tool_rounds` and the attempts of `expect`). What then remains of `context_messages`
    and `context_tokens` goes to the newest whole turns before it. A long turn pushes older turns out from round
    to round; they stay stored.
    """
    settings, own = agent.settings, now.messages
    room = max(settings.context_messages - len(own), 0)
    tokens = None if settings.context_tokens is None else settings.context_tokens - tokens_bound(own)
    return Request(
        model=model,
        system="\n\n".join((agent.system, *now.system)) if now.system else agent.system,
        messages=(*conversation(earlier, limit=room, max_tokens=tokens), *own) if earlier else own,
        tools=tools,
        max_tokens=settings.max_tokens,
        effort=settings.effort,
        agent=agent.name,
    )


def input_tokens_bound(request: Request) -> int:
    """An upper bound of the input tokens of a request.

    A byte-pair token stands for at least one byte, so the bytes of everything that is sent bound the
    tokens from above; the constants cover what a provider wraps around messages and tools.
    """
    total = ENVELOPE_TOKENS + byte_size(request.system) + tokens_bound(request.messages)
    if request.tools:
        total += TOOLS_TOKENS + sum(tool.size_bytes for tool in request.tools)
    if request.output_schema is not None:  # a provider makes a prompt of it
        total += TOOLS_TOKENS + 2 * byte_size(_canonical(request.output_schema))
    return total


def request_hash(request: Request, provider: str) -> str:
    """The SHA-256 of all that the model is shown, and of which model it is: equal requests have equal hashes.

    The agent's name is not shown to a model. The ids of tool calls are left out: each provider makes up its
    own, and results stand in the order of their calls; and so is what a model thought, which is nobody else's.
    """
    said = [
        [message.role, [_shown(block) for block in message.blocks if not isinstance(block, Thinking)]]
        for message in request.messages
    ]
    text = _canonical(
        [
            provider,
            request.model,
            request.system,
            said,
            request.max_tokens,
            request.effort,
            _tools_digest(request.tools),
            *(() if request.output_schema is None else (request.output_schema,)),
        ]
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def deadline_s(turn: Turn, agent: Agent) -> tuple[float, bool]:
    """How long one provider attempt of this turn may take, in seconds, and whether somebody asked for that."""
    asked = turn.timeout_s or agent.settings.timeout_s
    if asked is not None:
        return min(asked, MAX_ASKED_S), True
    full_answer = agent.settings.max_tokens / SLOW_TOKENS_PER_S
    return min(max(CLASS_TIMEOUT_S[turn.op_class], full_answer), MAX_TIMEOUT_S), False


def _shown(block: Block) -> Any:
    if isinstance(block, ToolUse):
        return {"tool": block.name, "input": block.input}
    if isinstance(block, ToolResult):
        return {"result": block.content, "error": block.is_error}
    return block


class _Same:
    """Tools by identity: comparing their schemas would cost what the cache saves."""

    __slots__ = ("tools",)

    def __init__(self, tools: tuple[ToolSpec, ...]) -> None:
        self.tools = tools

    def __hash__(self) -> int:
        return id(self.tools)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.tools is self.tools


def _tools_digest(tools: tuple[ToolSpec, ...]) -> str:
    return _digest_of(_Same(tools)) if tools else ""


@lru_cache(maxsize=64)
def _digest_of(same: _Same) -> str:
    text = _canonical([[tool.name, tool.description, tool.input_schema] for tool in same.tools])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
