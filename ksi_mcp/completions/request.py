"""From a turn and its stored rounds to the request of the next round: pure, so a retry sends the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from ksi_mcp.agents.history import PastTurn, Round, conversation, messages_of
from ksi_mcp.agents.model import Agent
from ksi_mcp.providers.base import Message, Request, ToolResult, ToolSpec, ToolUse
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
PER_MESSAGE_TOKENS: Final = 16


def render(
    agent: Agent, turn: Turn, earlier: Sequence[PastTurn], rounds: Sequence[Round], tools: tuple[ToolSpec, ...]
) -> Request:
    """The request for the round after `rounds`."""
    now = PastTurn(turn_id=turn.turn_id, prompt=turn.prompt, rounds=tuple(rounds), at_ms=turn.created_at_ms)
    own = messages_of(now)
    room = max(agent.settings.context_messages - len(own), 0)
    return Request(
        model=agent.model,
        system=agent.system,
        messages=(*conversation(earlier, limit=room), *own),
        tools=tools,
        max_tokens=agent.settings.max_tokens,
        effort=agent.settings.effort,
        agent=agent.name,
    )


def input_tokens_bound(request: Request) -> int:
    """An upper bound of the input tokens of a request.

    A byte-pair token stands for at least one byte, so the bytes of everything that is sent bound the
    tokens from above; the constants cover what a provider wraps around messages and tools.
    """
    total = ENVELOPE_TOKENS + _size(request.system)
    for message in request.messages:
        total += PER_MESSAGE_TOKENS + _message_size(message)
    if request.tools:
        total += TOOLS_TOKENS + sum(tool.size_bytes for tool in request.tools)
    return total


def deadline_s(turn: Turn, agent: Agent) -> float:
    """How long one provider attempt of this turn may take, in seconds."""
    asked = turn.timeout_s or agent.settings.timeout_s
    if asked is not None:
        return min(asked, MAX_ASKED_S)
    full_answer = agent.settings.max_tokens / SLOW_TOKENS_PER_S
    return min(max(CLASS_TIMEOUT_S[turn.op_class], full_answer), MAX_TIMEOUT_S)


def _message_size(message: Message) -> int:
    total = 0
    for block in message.blocks:
        if isinstance(block, ToolUse):
            total += PER_MESSAGE_TOKENS + _size(block.id) + _size(block.name) + _json_size(block.input)
        elif isinstance(block, ToolResult):
            total += PER_MESSAGE_TOKENS + _size(block.tool_use_id) + _size(block.content)
        else:
            total += _size(block)
    return total


def _json_size(value: object) -> int:
    return _size(json.dumps(value, ensure_ascii=False))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
