"""What a model is shown, how much of it, and how it is known again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ksi_mcp.completions.request import input_tokens_bound, request_hash
from ksi_mcp.providers.base import Message, Request, ToolResult, ToolSpec, ToolUse

LOOK = ToolSpec(name="look", description="looks", input_schema={"type": "object", "properties": {"b": {}, "a": {}}})
USE = ToolUse(id="u1", name="look", input={"a": 1, "b": "ü"})
REQUEST = Request(
    model="m",
    system="You help.",
    messages=(
        Message(role="user", blocks=("hello", "there")),
        Message(role="assistant", blocks=("wait", USE)),
        Message(role="user", blocks=(ToolResult(tool_use_id="u1", content="seen"),)),
    ),
    tools=(LOOK,),
    agent="one",
)


def saying(*messages: Message) -> Request:
    return replace(REQUEST, messages=messages)


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, model="n"),
        replace(REQUEST, system="You help!"),
        replace(REQUEST, max_tokens=1),
        replace(REQUEST, effort="high"),
        replace(REQUEST, tools=()),
        replace(REQUEST, tools=(replace(LOOK, description="looks again"),)),
        replace(REQUEST, tools=(replace(LOOK, input_schema={"type": "object"}),)),
        saying(*REQUEST.messages[:1]),
        saying(Message(role="user", blocks=("hellothere",)), *REQUEST.messages[1:]),
        saying(Message(role="user", blocks=('hello", "there',)), *REQUEST.messages[1:]),
        saying(*REQUEST.messages[:2], Message(role="user", blocks=(ToolResult(tool_use_id="u1", content="s"),))),
        saying(
            *REQUEST.messages[:2],
            Message(role="user", blocks=(ToolResult(tool_use_id="u1", content="seen", is_error=True),)),
        ),
        saying(
            REQUEST.messages[0],
            Message(role="assistant", blocks=("wait", replace(USE, input={"a": 2, "b": "ü"}))),
            REQUEST.messages[2],
        ),
    ],
)
def test_whatever_the_model_is_shown_tells_requests_apart(other: Request) -> None:
    assert request_hash(other, "p") != request_hash(REQUEST, "p")


def test_the_provider_tells_requests_apart_and_the_agents_name_does_not() -> None:
    known = request_hash(REQUEST, "p")
    assert len(known) == 64
    assert request_hash(REQUEST, "q") != known
    assert request_hash(replace(REQUEST, agent="two"), "p") == known


def test_equal_requests_have_equal_hashes_whatever_the_provider_calls_its_tool_calls() -> None:
    same = replace(
        REQUEST,
        tools=(replace(LOOK, input_schema={"properties": {"a": {}, "b": {}}, "type": "object"}),),
        messages=(
            REQUEST.messages[0],
            Message(role="assistant", blocks=("wait", ToolUse(id="x9", name="look", input={"b": "ü", "a": 1}))),
            Message(role="user", blocks=(ToolResult(tool_use_id="x9", content="seen"),)),
        ),
    )
    assert request_hash(same, "p") == request_hash(REQUEST, "p")


def test_half_a_character_is_no_obstacle() -> None:
    odd = saying(Message(role="user", blocks=("\ud800",)))
    assert request_hash(odd, "p") != request_hash(REQUEST, "p")
    assert input_tokens_bound(odd) > 0


def test_the_bound_covers_every_byte_that_is_sent() -> None:
    sent = "You help." + "hello" + "there" + "wait" + "u1" + "look" + '{"a": 1, "b": "ü"}' + "u1" + "seen"
    assert input_tokens_bound(REQUEST) >= len(sent.encode()) + LOOK.size_bytes
