"""A conversation, as it follows from the finished turns: nothing is stored twice, so nothing can disagree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ksi_mcp.providers.base import Answer, Block, Message, Role, Thinking, ToolResult, ToolUse

PER_MESSAGE_TOKENS: Final = 16
"""What a provider wraps around a message or a tool call."""

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


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
    note: str | None = None
    """What the model was told after it."""
    thinking: tuple[Thinking, ...] = ()
    """What went before its tool calls, for its provider only."""
    session: dict[str, Any] | None = None
    """What its provider needs to go on from here."""

    @property
    def complete(self) -> bool:
        """Whether every tool call of this round has its result."""
        return len(self.results) == len(self.tool_uses)


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTurn:
    """A prompt and the rounds that answered it, with what was put into the conversation at that place."""

    turn_id: str
    prompt: str
    rounds: tuple[Round, ...]
    at_ms: int
    seq: int = 0
    """Its place in the session."""
    before: tuple[str, ...] = ()
    """Said to the model before the prompt."""
    after: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    """Added to the system prompt of this turn only."""
    answer: str | None = None
    """The final word, if somebody else than the model gave it."""
    answered_by: str | None = None
    _messages: tuple[Message, ...] | None = field(default=None, init=False, compare=False, repr=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turn as the model saw it; made once, since each round of a later turn shows it again."""
        if self._messages is None:
            object.__setattr__(self, "_messages", tuple(messages_of(self)))
        assert self._messages is not None  # noqa: S101  set above
        return self._messages

    @property
    def reply(self) -> str:
        """What was answered in the end."""
        if self.answer is not None:
            return self.answer
        return whole_text(self.rounds)


def whole_text(rounds: Sequence[Round]) -> str:
    """The text of the last round, with what a pause had parted from it."""
    texts: list[str] = []
    for item in reversed(rounds):
        if texts and item.stop_reason != "pause_turn":
            break
        texts.append(item.text)
    return "".join(reversed(texts))


def plain(text: str) -> str:
    """The text without lone surrogates: JSON can smuggle them in, and neither a store nor a wire can hold them."""
    return text.encode("utf-8", "replace").decode()


def encode_answer(answer: Answer) -> str:
    """An answer as stored."""
    said: dict[str, Any] = {
        "text": answer.text,
        "tool_uses": [{"id": use.id, "name": use.name, "input": use.input} for use in answer.tool_uses],
        "stop_reason": answer.stop_reason,
        "model": answer.model,
        "request_id": answer.request_id,
    }
    if answer.thinking and answer.tool_uses:  # nobody asks for it once the turn is over
        said["thinking"] = [{"provider": t.provider, "model": t.model, "data": dict(t.data)} for t in answer.thinking]
    if answer.session is not None:
        said["session"] = dict(answer.session)
    return plain(_compact(said))


def round_of(number: int, stored: str, results: dict[int, StoredResult]) -> Round:
    """A round from its stored answer."""
    answer: dict[str, Any] = json.loads(stored)
    uses = tuple(ToolUse(id=use["id"], name=use["name"], input=use["input"]) for use in answer["tool_uses"])
    thinking = tuple(Thinking(**thought) for thought in answer.get("thinking", ()))
    # A process that calls tools by itself leaves results without calls: its answer has said all there is to say.
    results = {index: result for index, result in results.items() if index < len(uses)}
    return Round(
        number=number,
        text=answer["text"],
        tool_uses=uses,
        stop_reason=answer["stop_reason"],
        results=results,
        thinking=thinking,
        session=answer.get("session"),
    )


def messages_of(turn: PastTurn) -> list[Message]:
    """A turn as the model saw it. Tool calls without a stored result are answered as not run.

    A reply that was not taken is followed by the note that says why. An answer that somebody else gave stands
    in the place of the model's last reply.
    """
    messages = [Message(role="user", blocks=(*turn.before, turn.prompt, *turn.after))]
    last = len(turn.rounds) - 1
    for place, item in enumerate(turn.rounds):
        replaced = turn.answer is not None and place == last and not item.tool_uses and item.note is None
        if not replaced:
            _say(messages, "assistant", (*item.thinking, *((item.text,) if item.text.strip() else ()), *item.tool_uses))
        told: tuple[Block, ...] = tuple(_result(item, i) for i in range(len(item.tool_uses)))
        _say(messages, "user", told if item.note is None else (*told, item.note))
    if turn.answer is not None and turn.answer.strip():
        _say(messages, "assistant", (turn.answer,))
    return messages


def conversation(earlier: Sequence[PastTurn], *, limit: int, max_tokens: int | None = None) -> list[Message]:
    """The newest whole turns that fit into `limit` messages and into `max_tokens` (see `tokens_bound`), oldest first.

    The first turn that does not fit ends it: what is shown has no gap.
    """
    kept: list[tuple[Message, ...]] = []
    room, tokens = limit, max_tokens
    for turn in reversed(earlier):
        messages = turn.messages
        # A history must end with the model's word, or the next prompt would be glued to an old one.
        if messages[-1].role != "assistant":
            continue
        if len(messages) > room:
            break
        if tokens is not None and (tokens := tokens - tokens_bound(messages)) < 0:
            break
        room -= len(messages)
        kept.append(messages)
    return [message for messages in reversed(kept) for message in messages]


def tokens_bound(messages: Sequence[Message]) -> int:
    """An upper bound of the tokens of messages: a byte-pair token stands for at least one byte."""
    total = PER_MESSAGE_TOKENS * len(messages)
    for message in messages:
        for block in message.blocks:
            if isinstance(block, str):
                total += byte_size(block)
            elif isinstance(block, ToolUse):
                total += PER_MESSAGE_TOKENS + byte_size(block.id) + byte_size(block.name)
                total += byte_size(json.dumps(block.input, ensure_ascii=False))
            elif isinstance(block, Thinking):
                total += PER_MESSAGE_TOKENS + byte_size(json.dumps(dict(block.data), ensure_ascii=False))
            else:
                total += PER_MESSAGE_TOKENS + byte_size(block.tool_use_id) + byte_size(block.content)
    return total


def byte_size(text: str) -> int:
    """Bytes of a text in UTF-8; most texts are ASCII, and Python knows that without looking."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _say(messages: list[Message], role: Role, blocks: tuple[Block, ...]) -> None:
    """Add a message; roles alternate, so what the same side says next belongs to the same message."""
    if not blocks:
        return
    if messages[-1].role == role:
        blocks = (*messages.pop().blocks, *blocks)
    messages.append(Message(role=role, blocks=blocks))


def _result(item: Round, index: int) -> ToolResult:
    stored = item.results.get(index)
    if stored is None:
        return ToolResult(tool_use_id=item.tool_uses[index].id, content="not run", is_error=True)
    return ToolResult(tool_use_id=item.tool_uses[index].id, content=stored.text, is_error=stored.is_error)
