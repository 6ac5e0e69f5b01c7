"""A conversation, as it follows from the finished turns: nothing is stored twice, so nothing can disagree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ksi_mcp.providers.base import Answer, Block, Message, ToolResult, ToolUse


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """The result of one tool call as it was stored."""

    index: int
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One stored answer and the tool results stored for it so far."""

    number: int
    text: str
    tool_uses: tuple[ToolUse, ...]
    stop_reason: str
    results: dict[int, StoredResult]

    @property
    def complete(self) -> bool:
        """Whether every tool call of this round has its result."""
        return len(self.results) == len(self.tool_uses)


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTurn:
    """A prompt and the rounds that answered it."""

    turn_id: str
    prompt: str
    rounds: tuple[Round, ...]
    at_ms: int


def plain(text: str) -> str:
    """The text without lone surrogates: JSON can smuggle them in, and neither a store nor a wire can hold them."""
    return text.encode("utf-8", "replace").decode()


def encode_answer(answer: Answer) -> str:
    """An answer as stored."""
    stored = json.dumps(
        {
            "text": answer.text,
            "tool_uses": [{"id": use.id, "name": use.name, "input": use.input} for use in answer.tool_uses],
            "stop_reason": answer.stop_reason,
            "model": answer.model,
            "request_id": answer.request_id,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return plain(stored)


def round_of(number: int, stored: str, results: dict[int, StoredResult]) -> Round:
    """A round from its stored answer."""
    answer: dict[str, Any] = json.loads(stored)
    uses = tuple(ToolUse(id=use["id"], name=use["name"], input=use["input"]) for use in answer["tool_uses"])
    return Round(number=number, text=answer["text"], tool_uses=uses, stop_reason=answer["stop_reason"], results=results)


def messages_of(turn: PastTurn) -> list[Message]:
    """A turn as the model saw it. Tool calls without a stored result are answered as not run."""
    messages = [Message(role="user", blocks=(turn.prompt,))]
    for item in turn.rounds:
        said: tuple[Block, ...] = ((item.text,) if item.text.strip() else ()) + item.tool_uses
        if not said:
            continue
        messages.append(Message(role="assistant", blocks=said))
        if item.tool_uses:
            messages.append(Message(role="user", blocks=tuple(_result(item, i) for i in range(len(item.tool_uses)))))
    return messages


def conversation(earlier: Sequence[PastTurn], *, limit: int) -> list[Message]:
    """The newest whole turns that fit into `limit` messages, oldest first."""
    kept: list[list[Message]] = []
    room = limit
    for turn in reversed(earlier):
        messages = messages_of(turn)
        # A history must end with the model's word, or the next prompt would be glued to an old one.
        if messages[-1].role != "assistant":
            continue
        if len(messages) > room:
            break
        room -= len(messages)
        kept.append(messages)
    return [message for messages in reversed(kept) for message in messages]


def _result(item: Round, index: int) -> ToolResult:
    stored = item.results.get(index)
    if stored is None:
        return ToolResult(tool_use_id=item.tool_uses[index].id, content="not run", is_error=True)
    return ToolResult(tool_use_id=item.tool_uses[index].id, content=stored.text, is_error=stored.is_error)
