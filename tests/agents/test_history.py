from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.agents.history import (
    PER_MESSAGE_TOKENS,
    PastTurn,
    Round,
    StoredResult,
    conversation,
    encode_answer,
    messages_of,
    round_of,
    tokens_bound,
)
from ksi_mcp.providers.base import Answer, Message, ToolResult, ToolUse


def said(number: int, text: str, *uses: str, results: dict[int, str] | None = None) -> Round:
    return Round(
        number=number,
        text=text,
        tool_uses=tuple(ToolUse(id=f"u{number}{name}", name=name, input={}) for name in uses),
        stop_reason="tool_use" if uses else "end_turn",
        results={i: StoredResult(index=i, text=text, is_error=False) for i, text in (results or {}).items()},
    )


def turn(name: str, *rounds: Round) -> PastTurn:
    return PastTurn(turn_id=name, prompt=f"ask {name}", rounds=rounds, at_ms=0)


def test_a_turn_reads_as_the_model_saw_it() -> None:
    use = ToolUse(id="u1look", name="look", input={})
    messages = messages_of(turn("t", said(1, "wait", "look", results={0: "seen"}), said(2, "done")))
    assert messages == [
        Message(role="user", blocks=("ask t",)),
        Message(role="assistant", blocks=("wait", use)),
        Message(role="user", blocks=(ToolResult(tool_use_id="u1look", content="seen"),)),
        Message(role="assistant", blocks=("done",)),
    ]


def test_every_tool_call_has_a_result_even_if_it_never_ran() -> None:
    messages = messages_of(turn("t", said(1, "", "one", "two", results={1: "second"})))
    assert messages[-1].blocks == (
        ToolResult(tool_use_id="u1one", content="not run", is_error=True),
        ToolResult(tool_use_id="u1two", content="second"),
    )


def test_an_answer_survives_its_storage_and_loses_what_no_store_can_hold() -> None:
    uses = (ToolUse(id="u", name="n", input={"x": "é\ud800", "y": [1, None]}),)
    answer = Answer(text="a\udfffb 漢", model="m", stop_reason="tool_use", tool_uses=uses)
    stored = encode_answer(answer)
    stored.encode()
    back = round_of(3, stored, {})
    assert (back.number, back.text, back.stop_reason) == (3, "a?b 漢", "tool_use")
    assert back.tool_uses == (ToolUse(id="u", name="n", input={"x": "é?", "y": [1, None]}),)
    assert json.loads(stored)["model"] == "m"


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (0, []),
        (1, []),
        (2, ["c"]),
        (5, ["c"]),
        (6, ["b", "c"]),
        (7, ["b", "c"]),
        (8, ["a", "b", "c"]),
        (99, ["a", "b", "c"]),
    ],
)
def test_the_newest_whole_turns_that_fit_are_kept(limit: int, kept: list[str]) -> None:
    earlier = [
        turn("a", said(1, "A")),  # 2 messages
        turn("b", said(1, "", "look", results={0: "seen"}), said(2, "B")),  # 4 messages
        turn("c", said(1, "C")),  # 2 messages
    ]
    prompts = [
        message.blocks[0] for message in conversation(earlier, limit=limit) if isinstance(message.blocks[0], str)
    ]
    assert [text for text in prompts if text.startswith("ask")] == [f"ask {name}" for name in kept]


def test_a_turn_without_a_word_of_the_model_is_left_out() -> None:
    earlier = [turn("a", said(1, "A")), turn("empty", said(1, "  ")), turn("silent"), turn("b", said(1, "B"))]
    assert [message.blocks for message in conversation(earlier, limit=99)] == [("ask a",), ("A",), ("ask b",), ("B",)]


texts = st.sampled_from(["", " ", "text"])
# Every answer but the last asks for tools.
rounds = st.tuples(st.lists(st.tuples(texts, st.integers(1, 3)), max_size=3), texts, st.integers(0, 3)).map(
    lambda made: tuple(
        said(n, text, *(f"tool{i}" for i in range(uses))) for n, (text, uses) in enumerate([*made[0], made[1:]], 1)
    )
)


@given(st.lists(rounds, max_size=6), st.integers(0, 30))
def test_roles_alternate_it_starts_with_the_user_and_ends_with_the_model(
    turns: list[tuple[Round, ...]], limit: int
) -> None:
    messages = conversation([turn(str(n), *items) for n, items in enumerate(turns)], limit=limit)
    assert len(messages) <= limit
    assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    for asked, answered in pairwise(messages):
        uses = [block.id for block in asked.blocks if isinstance(block, ToolUse)]
        results = [block.tool_use_id for block in answered.blocks if isinstance(block, ToolResult)]
        assert uses == results


def test_a_reply_that_was_not_taken_is_followed_by_the_reason() -> None:
    first = Round(number=1, text="no", tool_uses=(), stop_reason="end_turn", results={}, note="say yes")
    messages = messages_of(turn("t", first, said(2, "yes")))
    assert [(message.role, message.blocks) for message in messages] == [
        ("user", ("ask t",)),
        ("assistant", ("no",)),
        ("user", ("say yes",)),
        ("assistant", ("yes",)),
    ]


def test_a_reply_without_a_word_leaves_the_reason_with_the_prompt() -> None:
    empty = Round(number=1, text=" ", tool_uses=(), stop_reason="end_turn", results={}, note="say yes")
    messages = messages_of(turn("t", empty, said(2, "yes")))
    assert [message.blocks for message in messages] == [("ask t", "say yes"), ("yes",)]


@pytest.mark.parametrize(
    ("rounds", "blocks"),
    [
        ((), [("ask t",), ("mine",)]),
        ((said(1, "model's"),), [("ask t",), ("mine",)]),
        ((said(1, "", "look", results={0: "seen"}),), [("ask t",), "uses", "results", ("mine",)]),
    ],
)
def test_an_answer_of_somebody_else_stands_for_the_models_last_reply(
    rounds: tuple[Round, ...], blocks: list[object]
) -> None:
    answered = PastTurn(turn_id="t", prompt="ask t", rounds=rounds, at_ms=0, answer="mine", answered_by="operator")
    messages = messages_of(answered)
    assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    for message, expected in zip(messages, blocks, strict=True):
        assert expected in ("uses", "results") or message.blocks == expected
    assert answered.reply == "mine"


def test_what_was_put_in_stands_around_the_prompt() -> None:
    injected = PastTurn(turn_id="t", prompt="ask", rounds=(said(1, "A"),), at_ms=0, before=("b1", "b2"), after=("c",))
    assert messages_of(injected)[0].blocks == ("b1", "b2", "ask", "c")


def test_a_window_of_tokens_ends_at_the_first_turn_that_does_not_fit() -> None:
    small, large = turn("s", said(1, "x")), turn("l", said(1, "x" * 1_000))
    bound = tokens_bound(small.messages)
    assert bound == 2 * PER_MESSAGE_TOKENS + len("ask s") + 1
    assert len(conversation([small, small], limit=99, max_tokens=2 * bound)) == 4
    assert len(conversation([small, small], limit=99, max_tokens=2 * bound - 1)) == 2
    assert len(conversation([small, large, small], limit=99, max_tokens=3 * bound)) == 2  # no gap
    assert conversation([small], limit=99, max_tokens=-5) == []


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_the_bound_of_messages_is_never_below_their_bytes(words: list[str]) -> None:
    said_all = [Message(role="user", blocks=tuple(words))]
    assert tokens_bound(said_all) >= sum(len(word.encode("utf-8", "surrogatepass")) for word in words)
