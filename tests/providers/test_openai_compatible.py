from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.errors import Invalid, ProviderError
from ksi_mcp.providers.base import Answer, Message, Request, Thinking, ToolResult, ToolSpec, ToolUse, Usage
from ksi_mcp.providers.openai.compatible import OpenAICompatibleProvider
from ksi_mcp.providers.openai.events import BrokenOff, Unreadable
from ksi_mcp.providers.openai.reading import Reading
from ksi_mcp.providers.openai.wire import chat_messages, endpoint, read_error, request_body
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimServer

KEY = "sk-canary-0123456789"
LOCAL = "http://localhost:11434/v1"
ASK = Request(model="tiny", system="", messages=(Message(role="user", blocks=("hi",)),), agent="ann", max_tokens=50)
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'c1', 'model': 'tiny-1', 'choices': [choice], **more})}\n\n".encode()


def call(arguments: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": more.pop("name", None), "arguments": arguments}
    return {**more, "function": {key: value for key, value in function.items() if value is not None}}


DONE = b"data: [DONE]\n\n"
HELLO = chunk({"role": "assistant", "content": "hel"}) + chunk({"content": "lo"}) + chunk({}, "stop")
COUNTED = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"


def head(status: str = "200 OK", *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "connection: close", *lines, "", ""]).encode()


@dataclass
class Heard:
    url: str
    requests: list[bytes] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def server(*answers: bytes, hold: bool = False) -> AsyncIterator[Heard]:
    """Send `answers` to whatever comes, then hang up, or with `hold` stay silent until the client has left."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        lengths = [int(x.split(b":")[1]) for x in asked.splitlines() if x.lower().startswith(b"content-length")]
        heard.requests.append(asked + (await reader.readexactly(lengths[0]) if lengths else b""))
        try:
            for answer in answers:
                writer.write(answer)
                await writer.drain()
            if hold:
                await reader.read()
        except ConnectionError:
            pass
        heard.left.set()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    heard = Heard(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1")
    try:
        yield heard
    finally:
        listening.close()


async def answer_to(*answers: bytes, request: Request = ASK) -> Answer:
    async with server(*answers) as it, aclosing(OpenAICompatibleProvider(KEY, it.url)) as provider:
        return await provider.complete(request, deadline_s=10)


async def failure_of(*answers: bytes, hold: bool = False, deadline_s: float = 10) -> ProviderError:
    async with server(*answers, hold=hold) as it, aclosing(OpenAICompatibleProvider(KEY, it.url)) as provider:
        with pytest.raises(ProviderError) as caught:
            await provider.complete(ASK, deadline_s=deadline_s)
        async with asyncio.timeout(10):
            await it.left.wait()  # the connection is gone, whatever happened
    assert KEY not in caught.value.text()
    return caught.value


def read(*pieces: bytes, says_cost: bool = False) -> Answer:
    reading = Reading("tiny", None)
    for piece in pieces:
        reading.feed(piece)
    reading.end()
    return reading.answer(max_tokens=50, input_bound=20, says_cost=says_cost)


async def test_an_answer_is_read_with_its_usage_and_its_names() -> None:
    answer = await answer_to(head("200 OK", "x-request-id: r1"), HELLO + COUNTED + DONE)
    assert (answer.text, answer.model, answer.stop_reason, answer.request_id) == ("hello", "tiny-1", "end_turn", "r1")
    assert answer.usage == Usage(input_tokens=9, output_tokens=4)
    assert answer.cost_usd_micros is None


async def test_the_request_carries_what_it_was_given_and_only_our_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-0123456789")
    tool = ToolSpec(name="look", description="Look.", input_schema={"type": "object", "properties": {}})
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    request = Request(
        model="tiny",
        system="be brief",
        messages=ASK.messages,
        tools=(tool,),
        max_tokens=7,
        effort="low",
        agent="ann",
        output_schema=schema,
    )
    async with server(head(), HELLO) as it, aclosing(OpenAICompatibleProvider(KEY, it.url)) as provider:
        await provider.complete(request, deadline_s=10)
    (raw,) = it.requests
    top, _, body = raw.partition(b"\r\n\r\n")
    lines = top.decode().lower().split("\r\n")
    assert lines[0] == "post /v1/chat/completions http/1.1"
    assert [line for line in lines if line.startswith("authorization:")] == [f"authorization: bearer {KEY}"]
    assert "accept-encoding: identity" in lines
    assert json.loads(body) == {
        "model": "tiny",
        "max_tokens": 7,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "ann",
        "tools": [
            {
                "type": "function",
                "function": {"name": "look", "description": "Look.", "parameters": tool.input_schema},
            }
        ],
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}},
    }


async def test_without_a_key_none_is_sent() -> None:
    async with server(head(), HELLO) as it, aclosing(OpenAICompatibleProvider(" ", it.url)) as provider:
        await provider.complete(ASK, deadline_s=10)
    assert b"authorization" not in it.requests[0].lower()


async def test_a_key_that_is_none_is_not_sent_and_not_shown() -> None:
    provider = OpenAICompatibleProvider("sk-canary\n0123456789", LOCAL)
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ASK, deadline_s=10)
    assert (caught.value.kind, caught.value.billed) == ("auth", "no")
    assert "canary" not in caught.value.text()


def test_a_host_gets_what_it_takes() -> None:
    high = Request(model="m", system="", messages=ASK.messages, effort="max", agent="ann")

    def sent(url: str) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(request_body(high, url))
        return body

    assert sent("https://api.openai.com/v1")["max_completion_tokens"] == high.max_tokens
    assert "max_tokens" not in sent("https://api.openai.com/v1")
    assert sent("https://api.openai.com/v1")["reasoning_effort"] == "xhigh"
    assert sent(LOCAL)["reasoning_effort"] == "high"
    assert not {"user", "stream_options"} & sent("https://api.mistral.ai/v1").keys()
    gemini = sent("https://generativelanguage.googleapis.com/v1beta/openai")
    assert "user" not in gemini
    assert "stream_options" in gemini


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
        ({"type": "array", "items": {"type": "string"}}, False),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {}}}},
                "required": ["a"],
                "additionalProperties": False,
            },
            False,
        ),
    ],
)
def test_only_a_schema_that_can_be_enforced_is_called_strict(schema: dict[str, Any], strict: bool) -> None:
    request = Request(model="m", system="", messages=ASK.messages, output_schema=schema)
    form = json.loads(request_body(request, LOCAL))["response_format"]["json_schema"]
    assert form.get("strict", False) is strict


def test_messages_are_written_as_the_api_wants_them() -> None:
    use = ToolUse(id="t1", name="look", input={"at": "the sky"})
    thought = Thinking(provider="anthropic", model="m", data={"type": "thinking"})
    messages = (
        Message(role="user", blocks=("", "one")),
        Message(role="user", blocks=("two",)),
        Message(role="assistant", blocks=("  ",)),
        Message(role="assistant", blocks=(thought, "three", use)),
        Message(role="user", blocks=("also", ToolResult(tool_use_id="t1", content="r", is_error=True))),
        Message(role="assistant", blocks=(use,)),
        Message(role="user", blocks=(ToolResult(tool_use_id="t1", content=""),)),
    )
    called = [{"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at":"the sky"}'}}]
    assert chat_messages(messages) == [
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three", "tool_calls": called},
        {"role": "tool", "tool_call_id": "t1", "content": "r"},
        {"role": "user", "content": "also"},
        {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "tool_call_id": "t1", "content": ""},
    ]


async def test_nothing_to_send_is_said() -> None:
    request = Request(model="m", system="", messages=(Message(role="user", blocks=(" ",)),))
    with pytest.raises(ProviderError, match="nothing to send") as caught:
        await OpenAICompatibleProvider(None, LOCAL).complete(request, deadline_s=1)
    assert caught.value.billed == "no"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {1, 2}}},
        {"type": "object", "properties": {"a": {}}, "required": [1, "a"], "additionalProperties": False},
    ],
)
async def test_what_cannot_be_written_is_not_sent(schema: dict[str, Any]) -> None:
    request = Request(model="m", system="", messages=ASK.messages, output_schema=schema)
    with pytest.raises(ProviderError, match="cannot be written") as caught:
        await OpenAICompatibleProvider(None, LOCAL).complete(request, deadline_s=1)
    assert (caught.value.kind, caught.value.billed) == ("request", "no")


def test_a_query_of_the_base_url_stays() -> None:
    assert endpoint("https://h/v1/?api-version=1", "/models") == "https://h/v1/models?api-version=1"


@pytest.mark.parametrize("url", ["http://example.com/v1", "https://bob:secret@example.com", "ftp://x", "https://", ""])
def test_a_base_url_that_would_give_something_away_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        OpenAICompatibleProvider(KEY, url, name="openai_compatible@box")
    assert "secret" not in caught.value.text()
    assert caught.value.hint


# ------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize(
    "stream",
    [
        (HELLO + COUNTED + DONE).replace(b"\n", b"\r\n"),
        (HELLO + COUNTED + DONE).replace(b"\n\n", b"\n"),
        (HELLO + COUNTED).replace(b"data: ", b"data:"),
        b"\xef\xbb\xbf\n: a comment\n\nevent: message\nid: 7\nretry: 3\n" + HELLO + b"data:\n\n" + COUNTED + DONE,
        (HELLO + COUNTED).rstrip(b"\n"),
        (HELLO + COUNTED).replace(b', "choices"', b'\ndata: , "choices"'),
    ],
    ids=["crlf", "no-blank-lines", "no-space-no-done", "bom-comments-fields", "no-last-line-end", "data-in-two-lines"],
)
@given(data=st.data())
def test_a_stream_may_be_written_and_cut_in_many_ways(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    answer = read(*pieces)
    assert (answer.text, answer.usage) == ("hello", Usage(input_tokens=9, output_tokens=4))


async def test_a_server_that_does_not_stream_is_understood_whatever_it_calls_its_answer() -> None:
    message = {"role": "assistant", "content": "whole", "tool_calls": [call('{"a": 1}', id="x", name="f")]}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}).encode()
    answer = await answer_to(head(), body[:20], body[20:])
    assert (answer.text, answer.stop_reason, answer.usage.output_tokens) == ("whole", "tool_use", 4)
    assert answer.tool_uses == (ToolUse(id="x", name="f", input={"a": 1}),)


@pytest.mark.parametrize("ending", [b"", COUNTED, COUNTED + DONE])
async def test_a_server_that_never_hangs_up_does_not_hold_an_answer_back(ending: bytes) -> None:
    async with (
        server(head(), HELLO + ending, hold=True) as it,
        aclosing(OpenAICompatibleProvider(None, it.url)) as provider,
    ):
        answer = await provider.complete(ASK, deadline_s=5 if ending else 1)
        assert answer.text == "hello"
        assert answer.usage.estimated is not bool(ending)
        async with asyncio.timeout(10):
            await it.left.wait()


@pytest.mark.parametrize("rest", [COUNTED[:20], b"data: {nonsense\n\n", b"x" * 9_000_000])
async def test_an_answer_that_was_finished_stays_one_whatever_comes_after(rest: bytes) -> None:
    answer = await answer_to(head(), HELLO, rest)
    assert (answer.text, answer.stop_reason, answer.usage.estimated) == ("hello", "end_turn", True)


async def test_a_connection_that_breaks_after_the_answer_breaks_nothing() -> None:
    answer = await answer_to(head("200 OK", "content-length: 9999"), HELLO + COUNTED)
    assert (answer.text, answer.usage.input_tokens) == ("hello", 9)


@pytest.mark.parametrize("stream", [b"", b": hello\n\n", chunk({"content": "half"}), chunk({"content": "half"}) + DONE])
async def test_a_stream_without_a_reason_to_stop_is_no_answer(stream: bytes) -> None:
    error = await failure_of(head(), stream)
    assert (error.kind, error.billed) == ("transport", "unknown")
    assert error.partial_text == ("half" if b"half" in stream else "")


def test_reasoning_is_passed_over() -> None:
    answer = read(chunk({"reasoning_content": "hm"}), chunk({"reasoning": "hm"}), HELLO)
    assert answer.text == "hello"
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "said"}]
    assert read(chunk({"content": parts}), chunk({}, "stop")).text == "said"


# -------------------------------------------------------------------------------------------- usage


def test_without_a_count_the_usage_is_a_bound_from_the_bytes_and_says_so() -> None:
    called = chunk({"tool_calls": [call("{}", index=0, name="f")]}, "stop")
    answer = read(chunk({"reasoning_content": "hmm"}), chunk({"content": "größer"}), called)
    assert answer.usage == Usage(input_tokens=20, output_tokens=3 + 8 + 3, estimated=True)
    assert read(chunk({"content": "x" * 99}, "length")).usage.output_tokens == 50  # `max_tokens`


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": "9", "completion_tokens": 2},
        {"prompt_tokens": 9, "completion_tokens": True},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": 100_000_001, "completion_tokens": 1},
        {"prompt_tokens": 0, "completion_tokens": 2},
        {"prompt_tokens": 9, "completion_tokens": 0},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        [],
        7,
    ],
)
def test_a_count_that_is_none_is_not_believed(usage: Any) -> None:
    assert read(HELLO, chunk(usage=usage)).usage.estimated


@pytest.mark.parametrize(
    ("usage", "wanted"),
    [
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": 6}}, (3, 4, 6, 0)),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 5}}, (2, 4, 2, 5)),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": 99}}, (0, 4, 9, 0)),
        ({**USAGE, "prompt_tokens_details": None}, (9, 4, 0, 0)),
        ({**USAGE, "prompt_cache_hit_tokens": 5}, (4, 4, 5, 0)),
        ({**USAGE, "total_tokens": 33}, (9, 24, 0, 0)),
    ],
)
def test_cached_tokens_are_not_counted_twice_and_hidden_ones_are_counted(
    usage: dict[str, Any], wanted: tuple[int, int, int, int]
) -> None:
    got = read(HELLO, chunk(usage=usage)).usage
    assert (got.input_tokens, got.output_tokens, got.cache_read_tokens, got.cache_write_tokens) == wanted


def test_a_count_of_no_output_is_not_believed_where_a_tool_was_called() -> None:
    called = chunk({"tool_calls": [call("{}", index=0, name="f")]}, "tool_calls")
    counted = chunk(usage={"prompt_tokens": 9, "completion_tokens": 0})
    assert read(called, counted).usage == Usage(input_tokens=20, output_tokens=3, estimated=True)
    assert read(chunk({}, "stop"), counted).usage == Usage(input_tokens=9)  # where nothing was said, there is none


def test_a_count_that_the_text_outgrows_is_not_believed() -> None:
    early = chunk({"content": "x" * 10}, usage={"prompt_tokens": 9, "completion_tokens": 3})
    more = chunk({"content": "x" * 30}, "stop")
    assert read(early, chunk({"content": "x" * 38}, "stop")).usage == Usage(input_tokens=9, output_tokens=3)
    assert read(early, more, more[:-2]).usage == Usage(input_tokens=20, output_tokens=50, estimated=True)
    assert read(early, more, more, chunk(usage={**USAGE, "completion_tokens": 20})).usage.output_tokens == 20


async def test_a_server_that_repeats_the_key_in_its_names_does_not_have_it_stored() -> None:
    key = "Canary/Mixed+Case_0123456789"  # like no usual key, so that nothing but its own mask finds it

    async def outcome_of(*answers: bytes) -> Answer | ProviderError:
        async with server(*answers) as it, aclosing(OpenAICompatibleProvider(key, it.url)) as provider:
            try:
                return await provider.complete(ASK, deadline_s=10)
            except ProviderError as error:
                return error

    named = call("{}", index=0, name=key, id="x" * 190 + key)
    answer = await outcome_of(
        head("200 OK", f"x-request-id: {'r' * 190}{key}"),
        chunk({"tool_calls": [named]}, "tool_calls", model=key, native_finish_reason=key) + COUNTED + DONE,
    )
    assert isinstance(answer, Answer)
    assert (answer.model, answer.tool_uses[0].name) == ("[key]", "[key]")
    body = chunk({"tool_calls": [call("{", index=0, name=key)]}, "tool_calls", id=key)
    for outcome in (answer, await outcome_of(head(), chunk({}, f"no {key}")), await outcome_of(head(), body)):
        said = repr(outcome) + (outcome.text() if isinstance(outcome, ProviderError) else "")
        assert not any(piece in said.lower() for piece in ("canary", "mixed", "0123456789"))


def test_usage_is_found_where_others_put_it() -> None:
    in_choice = {"choices": [{"delta": {}, "finish_reason": "stop", "usage": USAGE}]}
    assert read(f"data: {json.dumps(in_choice)}\n\n".encode()).usage.input_tokens == 9
    assert read(chunk({}, "stop", x_groq={"usage": USAGE})).usage.input_tokens == 9
    assert read(chunk({"content": "a"}, usage={**USAGE, "prompt_tokens": 1}), HELLO, COUNTED).usage.input_tokens == 9


@pytest.mark.parametrize(
    ("usage", "wanted"),
    [
        ({"cost": 0.0012345}, 1235),
        ({"cost": 0.000002}, 2),
        ({"cost": 1e-9}, 1),
        ({"cost": 0}, None),  # what that costs is for the price table to say
        ({"cost": 0.0}, None),
        ({"cost": True}, None),
        ({"cost": float("nan")}, None),
        ({"cost": float("inf")}, None),
        ({"cost": -1}, None),
        ({"cost": "1"}, None),
        ({"cost": 1e30}, None),
        ({"cost": 0.1, "is_byok": True}, None),
        ({}, None),
    ],
)
def test_a_cost_is_taken_only_from_where_it_means_dollars(usage: dict[str, Any], wanted: int | None) -> None:
    stream = HELLO + chunk(usage={**USAGE, **usage})
    assert read(stream, says_cost=True).cost_usd_micros == wanted
    assert read(stream).cost_usd_micros is None


# --------------------------------------------------------------------------------------- tool calls


@pytest.mark.parametrize(
    "deltas",
    [
        [
            [call("", index=0, id="a", name="f"), call("", index=1, id="b", name="g")],
            [call('{"x"', index=0)],
            [call("{", index=1), call(": 1}", index=0)],
            [call("}", index=1)],
        ],
        [[call('{"x": 1}', id="a", name="f"), call("{}", id="b", name="g")]],
        [[call('{"x": 1}', id="a", name="f", index=0)], [call("{}", id="b", name="g", index=0)]],
        [[call({"x": 1}, id="a", name="f")], [call({}, id="b", name="g")]],
        [[call('{"x"', id="a", name="f")], [call(": 1}")], [call(None, id="b", name="g")]],
        [[call('"{\\"x\\": 1}"', id="a", name="f", index=0), call("null", id="b", name="g", index=1)]],
        [
            [call('{"x": ', id="a", name="f", index=0)],
            [call("1}", id="a", name="f", index=0)],
            [call(id="b", name="g")],
        ],
    ],
    ids=["streamed", "whole", "one-index-for-all", "objects", "without-index", "json-of-json", "named-again"],
)
@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_tool_calls_come_in_many_shapes(deltas: list[list[dict[str, Any]]], finish: str) -> None:
    answer = read(*(chunk({"tool_calls": delta}) for delta in deltas), chunk({}, finish))
    assert answer.stop_reason == "tool_use"
    assert answer.tool_uses == (ToolUse(id="a", name="f", input={"x": 1}), ToolUse(id="b", name="g", input={}))


def test_ids_are_made_up_where_they_are_missing_or_the_same() -> None:
    calls = [call("{}", name="f"), call("{}", name="f", id="same"), call("{}", name="g", id="same", index=3)]
    uses = read(chunk({"tool_calls": calls}, "tool_calls")).tool_uses
    assert [use.name for use in uses] == ["f", "f", "g"]
    assert len({use.id for use in uses}) == 3
    assert all(use.id for use in uses)


def test_the_old_way_of_calling_is_understood() -> None:
    deltas = [{"function_call": {"name": "f", "arguments": '{"x":'}}, {"function_call": {"arguments": "1}"}}]
    answer = read(*map(chunk, deltas), chunk({}, "function_call"))
    assert [(use.name, use.input) for use in answer.tool_uses] == [("f", {"x": 1})]


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "7", '"text"', '{"a": NaN}', "[" * 100_000])
def test_arguments_that_are_no_object_fail_the_call_and_it_may_be_tried_again(arguments: str) -> None:
    stream = chunk({"content": "so"}) + chunk({"tool_calls": [call(arguments, index=0, id="a", name="f")]})
    with pytest.raises(ProviderError) as caught:
        read(stream, chunk({}, "tool_calls"))
    assert (caught.value.kind, caught.value.billed, caught.value.partial_text) == ("server", "unknown", "so")
    assert caught.value.hint
    answer = read(stream, chunk({}, "length"))  # half a call is none
    assert (answer.stop_reason, answer.tool_uses) == ("max_tokens", ())


@pytest.mark.parametrize(
    ("finish", "native", "wanted"),
    [
        ("stop", None, "end_turn"),
        ("STOP", None, "end_turn"),
        ("stop", "stop_sequence", "stop_sequence"),
        ("stop", "pause_turn", "pause_turn"),
        ("length", None, "max_tokens"),
        ("length", "model_context_window_exceeded", "context_exceeded"),
        ("model_length", None, "context_exceeded"),
        ("content_filter", None, "refusal"),
        ("tool_calls", None, "end_turn"),
    ],
)
def test_reasons_to_stop_are_told_apart(finish: str, native: str | None, wanted: str) -> None:
    choice = {"index": 0, "delta": {}, "finish_reason": finish, "native_finish_reason": native}
    assert read(f"data: {json.dumps({'choices': [choice]})}\n\n".encode()).stop_reason == wanted


@pytest.mark.parametrize(("finish", "kind"), [("bored", "bug"), ("error", "server"), ("abort", "server")])
def test_a_reason_that_is_none_is_named(finish: str, kind: str) -> None:
    with pytest.raises(ProviderError, match=finish) as caught:
        read(chunk({"content": "half"}), chunk({}, finish))
    assert (caught.value.kind, caught.value.billed, caught.value.partial_text) == (kind, "unknown", "half")


def test_a_refusal_is_one_whatever_the_reason_to_stop() -> None:
    answer = read(chunk({"refusal": "I "}), chunk({"refusal": "can't"}), chunk({}, "stop"))
    assert (answer.text, answer.stop_reason) == ("I can't", "refusal")


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "too bad", "type": "t", "code": "c"}}', "too bad"),
        (b'{"error": "too bad"}', "too bad"),
        (b'{"message": "too bad", "object": "error"}', "too bad"),
        (b'{"detail": "too bad"}', "too bad"),
        (b'{"detail": [{"msg": "too bad"}]}', "too bad"),
        (b'{"errors": [{"message": "too bad"}]}', "too bad"),
        (b'[{"error": {"message": "too bad", "status": "INVALID_ARGUMENT"}}]', "too bad"),
        (b"<html><head><title>too bad</title></head><body>nginx</body></html>", "too bad"),
        (b"<p>too bad</p>", "too bad"),
        (b"too bad", "too bad"),
        (b'{"other": "too bad"}', "too bad"),
    ],
)
async def test_whatever_an_error_looks_like_its_text_is_said(body: bytes, said: str) -> None:
    error = await failure_of(head("418 Teapot"), body)
    assert (error.kind, error.billed) == ("request", "no")
    assert "status 418" in error.message
    assert said in error.message
    assert "<" not in error.message


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        ("429 Too Many Requests", b'{"error": {"code": "insufficient_quota", "message": "x"}}', "budget"),
        ("429 Too Many Requests", b'{"error": {"type": "insufficient_quota", "message": "x"}}', "budget"),
        ("429 Too Many Requests", b'{"error": {"code": "rate_limit_exceeded", "message": "x"}}', "rate"),
        ("402 Payment Required", b'{"error": {"code": 402, "message": "x"}}', "budget"),
        ("401 Unauthorized", b"", "auth"),
        ("503 Service Unavailable", b'{"error": "server busy"}', "server"),
        ("529 Overloaded", b"{}", "overload"),
        ("500 Internal Server Error", b"\xff\x00" * 100, "server"),
        ("400 Bad Request", b"[" * 100_000, "request"),
        ("307 Temporary Redirect", b"", "request"),
    ],
)
async def test_the_kind_of_an_error_comes_from_its_status_and_its_body(status: str, body: bytes, kind: str) -> None:
    error = await failure_of(head(status, "location: http://127.0.0.1:1/"), body)
    assert (error.kind, error.billed) == (kind, "no")
    if kind in ("auth", "budget") or status.startswith("307"):
        assert error.hint


async def test_a_wait_that_the_server_asks_for_is_passed_on() -> None:
    assert (await failure_of(head("429 Slow", "retry-after: 7"), b"{}")).retry_after_s == 7.0
    assert (await failure_of(head("429 Slow", "retry-after-ms: 250"), b"{}")).retry_after_s == 0.25
    assert (await failure_of(head("429 Slow", "retry-after: nan"), b"{}")).retry_after_s is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"code": "context_length_exceeded", "message": "x"}}',
        b'{"error": {"type": "exceed_context_size_error", "message": "the request exceeds the context size"}}',
        b'{"error": {"message": "This model\'s maximum context length is 8 tokens"}}',
    ],
)
async def test_a_conversation_that_does_not_fit_is_said_to_be_that(body: bytes) -> None:
    error = await failure_of(head("400 Bad Request"), body)
    assert (error.kind, error.retryable) == ("request", False)
    assert "does not fit" in (error.hint or "")


async def test_a_model_that_is_not_there_has_a_hint() -> None:
    error = await failure_of(head("404 Not Found"), b'{"error": {"message": "model \\"tiny\\" not found"}}')
    assert error.kind == "request"
    assert "/v1" in (error.hint or "")


async def test_a_refusal_without_an_end_is_a_refusal() -> None:
    error = await failure_of(head("429 Slow", "retry-after: 1"), b'{"error": "slow down"}' + b" " * 100_000, hold=True)
    assert (error.kind, error.billed, error.retry_after_s) == ("rate", "no", 1.0)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'data: {"error": {"message": "x", "code": 429}}', "rate"),
        (b'data: {"error": {"message": "x", "code": "429"}}', "rate"),
        (b'data: {"error": {"message": "x", "type": "overloaded_error"}}', "overload"),
        (b'data: {"error": {"message": "x", "code": "insufficient_quota"}}', "budget"),
        (b'data: {"error": {"message": "x", "type": "server_error"}}', "server"),
        (b'data: {"error": {"message": "x", "type": "invalid_request_error"}}', "request"),
        (b'data: {"error": "x", "choices": [{"delta": {}, "finish_reason": "error"}]}', "server"),
        (b'data: {"object": "error", "message": "x", "code": 500}', "server"),
        (b'event: error\ndata: {"message": "x", "code": 400}', "request"),
        (b'error: {"message": "x", "code": 500}', "server"),
    ],
)
async def test_an_error_in_the_middle_says_its_kind_and_keeps_the_text(line: bytes, kind: str) -> None:
    error = await failure_of(head(), chunk({"content": "half"}) + line + b"\n\n" + DONE)
    assert (error.kind, error.billed, error.partial_text) == (kind, "unknown", "half")
    assert "broke off" in error.message


async def test_a_secret_that_the_server_repeats_does_not_reach_the_message() -> None:
    text = f"bad key {KEY} for https://bob:pw12345@host/ Bearer abcdefghijkl"
    for answer in (
        (head("401 Unauthorized"), json.dumps({"error": {"message": text}}).encode()),
        (head(), b"data: " + json.dumps({"error": {"message": text, "code": 401}}).encode() + b"\n\n"),
    ):
        error = await failure_of(*answer)
        assert error.kind == "auth"
        for secret in ("canary", "bob", "pw12345", "abcdefghijkl"):
            assert secret not in error.text()


async def test_a_host_that_does_not_answer_was_not_billed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connecting is refused
        provider = OpenAICompatibleProvider(None, f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        with pytest.raises(ProviderError) as caught:
            await provider.complete(ASK, deadline_s=10)
        await provider.aclose()
    assert (caught.value.kind, caught.value.billed) == ("transport", "no")
    assert "running" in (caught.value.hint or "")


# ------------------------------------------------------------------------------------ hostile servers


@pytest.mark.parametrize(
    "stream",
    [
        b"data: {nonsense\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: [1, 2]\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"choices": [7]}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": [7]}}]}\n\n',
        b'data: {"n": ' + b"9" * 10_000 + b"}\n\n",
        b"data: {\n" * 300 + b"\n",
        b"{" * 100_000,
        b"{}",
        b"[]",
        b"<!doctype html><title>Log in</title>",
    ],
    ids=lambda stream: repr(stream[:24]),
)
async def test_nonsense_is_no_answer_and_is_quoted_nowhere(stream: bytes) -> None:
    error = await failure_of(head(), stream, hold=stream[:1] == b"<")
    assert (error.kind, error.billed, error.retryable) == ("bug", "unknown", False)
    assert "could not be read" in error.message
    assert len(error.text()) < 300


async def test_a_line_without_an_end_is_cut_off() -> None:
    error = await failure_of(head(), b"data: ", *[b"x" * 1_000_000] * 20, hold=True)
    assert (error.kind, error.billed) == ("bug", "unknown")
    assert "line" in error.message


def test_an_answer_that_grows_without_end_is_cut_off() -> None:
    text = chunk({"content": "x" * 1_000_000})
    arguments = chunk({"tool_calls": [call("x" * 1_000_000, index=0, id="a", name="f")]})
    for part in (text, arguments):
        reading = Reading("tiny", None)
        for _ in range(4):
            reading.feed(part)
        with pytest.raises(Unreadable, match="longer"):
            reading.feed(part)
        assert len(reading.text()) <= 4_000_000
    with pytest.raises(Unreadable, match="tool calls"):
        Reading("tiny", None).feed(chunk({"tool_calls": [call("", name="f")] * 1_000}))


async def test_an_answer_that_is_compressed_unasked_is_not_unpacked() -> None:
    error = await failure_of(head("200 OK", "content-encoding: gzip"), b"\x1f\x8b" * 100)
    assert error.kind == "bug"
    assert "compressed" in error.message


@given(st.binary(max_size=300), st.sampled_from([b"", b"data: ", b'data: {"choices": [', b"{"]))
def test_any_bytes_are_an_answer_or_an_error_that_is_expected(data: bytes, before: bytes) -> None:
    with suppress(Unreadable, BrokenOff, ProviderError):
        read(before + data)
    read_error(data)


_FIELDS = ("content", "tool_calls", "function_call", "refusal", "reasoning")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {
            "choices": st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "delta": st.fixed_dictionaries(
                            {},
                            optional=dict.fromkeys(_FIELDS, _JSON),
                        ),
                        "finish_reason": _JSON | st.sampled_from(["stop", "tool_calls"]),
                        "usage": _JSON,
                    },
                ),
                max_size=2,
            )
            | _JSON
        },
        optional={"usage": _JSON, "error": _JSON, "id": _JSON, "model": _JSON, "x_groq": _JSON},
    )
)
def test_any_chunk_is_an_answer_or_an_error_that_is_expected(value: Any) -> None:
    try:
        answer = read(b"data: " + json.dumps(value).encode() + b"\n\n", says_cost=True)
    except (Unreadable, BrokenOff, ProviderError):
        return
    assert isinstance(answer.text, str)
    assert answer.usage.total_tokens >= 0


# ------------------------------------------------------------------------------------ many, and models


async def test_more_calls_than_connections_wait_for_one_another() -> None:
    async with (
        SimServer(Script(parse_script({"default": {"reply": "{{agent}}"}}))) as sim,
        aclosing(OpenAICompatibleProvider(None, f"{sim.url}/v1", 20)) as provider,
    ):
        agents = [f"a{n}" for n in range(100)]
        asked = [Request(model="m", system="", messages=ASK.messages, agent=agent) for agent in agents]
        answers = await asyncio.gather(*(provider.complete(each, deadline_s=30) for each in asked))
        assert [answer.text for answer in answers] == agents
        assert 1 < sim.max_in_flight <= 20
        assert sim.open_connections <= 20


async def test_a_call_that_is_given_up_while_it_waits_for_a_connection_leaves_no_trace() -> None:
    stall = {"replies": [{"match": {"prompt": "hi"}, "reply": "hello", "fail": {"kind": "stall", "after_chars": 1}}]}
    async with (
        asyncio.timeout(20),
        SimServer(Script(parse_script(stall))) as sim,
        aclosing(OpenAICompatibleProvider(None, f"{sim.url}/v1", 1)) as provider,
    ):
        began = asyncio.Event()
        first = asyncio.create_task(provider.complete(ASK, deadline_s=20, on_text=lambda _: began.set()))
        await began.wait()
        with pytest.raises(ProviderError, match="within"):
            await provider.complete(ASK, deadline_s=0.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        well = Request(model="m", system="", messages=(Message(role="user", blocks=("well",)),), agent="ann")
        assert (await provider.complete(well, deadline_s=10)).text == "[ann] well"
        await sim.idle()
        assert [seen.outcome for seen in sim.log] == ["left", "ok"]


async def test_a_remote_host_is_reached_through_the_proxy_of_the_environment_without_showing_it_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with server(head("502 No")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.removesuffix("/v1"))
        async with aclosing(OpenAICompatibleProvider(KEY, "https://model.example/v1")) as provider:
            with pytest.raises(ProviderError) as caught:
                await provider.complete(ASK, deadline_s=10)
    assert caught.value.kind == "transport"
    assert proxy.requests[0].startswith(b"CONNECT model.example:443 ")
    assert KEY.encode() not in proxy.requests[0]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'{"object": "list", "data": [{"id": "b"}, {"id": "a"}, {"id": 7}, "c", null]}', ["b", "a", "c"]),
        (b'{"models": [{"name": "a:latest"}]}', ["a:latest"]),
        (b'[{"id": "a"}]', ["a"]),
        (b'{"data": null}', []),
        (b"7", []),
    ],
)
async def test_the_models_of_a_server_are_listed(body: bytes, wanted: list[str]) -> None:
    async with server(head(), body) as it, aclosing(OpenAICompatibleProvider(None, it.url)) as provider:
        assert await provider.models() == wanted
    assert it.requests[0].startswith(b"GET /v1/models ")


async def test_a_list_of_models_that_does_not_come_is_an_error() -> None:
    async with server(head(), hold=True) as it, aclosing(OpenAICompatibleProvider(None, it.url)) as provider:
        with pytest.raises(ProviderError) as slow:
            await provider.models(within_s=0.05)
    async with server(head(), b"{nonsense") as it, aclosing(OpenAICompatibleProvider(None, it.url)) as provider:
        with pytest.raises(ProviderError) as nonsense:
            await provider.models()
    async with server(head("401 No"), b"") as it, aclosing(OpenAICompatibleProvider(None, it.url)) as provider:
        with pytest.raises(ProviderError) as refused:
            await provider.models()
    assert [error.value.kind for error in (slow, nonsense, refused)] == ["timeout", "bug", "auth"]


def test_importing_the_provider_imports_no_http_client() -> None:
    code = "import sys, ksi_mcp.providers.openai.compatible; print('httpx2' in sys.modules, 'ssl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
