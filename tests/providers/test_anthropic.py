from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from typing import Any

import pytest

from ksi_mcp.errors import Invalid, ProviderError
from ksi_mcp.providers.anthropic.provider import AnthropicProvider, api_messages
from ksi_mcp.providers.base import Answer, Message, Request, Thinking, ToolResult, ToolSpec, ToolUse, Usage
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimServer

ASK = Request(model="claude-haiku-5-5", system="", messages=(Message(role="user", blocks=("hi",)),), agent="ann")
FRAMES_TO_HALF = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
    b'"model":"x","content":[],"stop_reason":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":'
    b'{"type":"text","text":""}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
    b'{"type":"text_delta","text":"half"}}\n\n'
)


async def fails_with(answer: bytes, request: Request = ASK) -> tuple[ProviderError, bytes]:
    """Ask a server that sends `answer` to whatever comes and hangs up; return the error and what it was sent."""
    outcome, sent = await hears(answer, request)
    assert isinstance(outcome, ProviderError)
    return outcome, sent


async def hears(
    answer: bytes, request: Request = ASK, *, api_key: str = "sk-ant-secret-key-123", **more: Any
) -> tuple[Answer | ProviderError, bytes]:
    """The same, whether it fails or not. `more` is for the provider."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length")
        )
        seen.append(head + await reader.readexactly(length))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    provider = AnthropicProvider(api_key, f"http://127.0.0.1:{port}", **more)
    outcome: Answer | ProviderError
    try:
        outcome = await provider.complete(request, deadline_s=10)
    except ProviderError as error:
        outcome = error
    finally:
        await provider.aclose()
        server.close()
    (sent,) = seen  # nothing is tried twice
    return outcome, sent


def body_of(sent: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(sent.split(b"\r\n\r\n", 1)[1])
    return body


def frames(*events: dict[str, Any]) -> bytes:
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def message(*blocks: tuple[dict[str, Any], list[dict[str, Any]]], **usage: Any) -> bytes:
    """A whole stream: blocks with their deltas, and the usage as it begins."""
    start = {"id": "m", "type": "message", "role": "assistant", "model": "claude-haiku-5-5", "content": []}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {**start, "usage": usage}}]
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    events += [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 2}}, {"type": "message_stop"}]
    return response(frames(*events))


def response(body: bytes, status: str = "200 OK", kind: str = "text/event-stream", extra: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{extra}\r\n"
    )
    return head.encode() + body


async def test_a_stream_that_ends_early_without_an_error_is_no_answer() -> None:
    error, _ = await fails_with(response(FRAMES_TO_HALF))
    assert (error.kind, error.billed, error.partial_text) == ("transport", "unknown", "half")


async def test_an_answer_that_is_no_stream_is_a_bug_and_not_an_answer() -> None:
    error, _ = await fails_with(response(b"event: message_start\ndata: {nonsense\n\n"))
    assert (error.kind, error.billed) == ("bug", "unknown")


async def test_a_tool_call_with_half_its_input_is_no_answer() -> None:
    stream = (
        FRAMES_TO_HALF + b'event: content_block_start\ndata: {"type":"content_block_start","index":1,"content_block":'
        b'{"type":"tool_use","id":"t","name":"n","input":{}}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":1,"delta":'
        b'{"type":"input_json_delta","partial_json":"{\\"a\\": "}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use"},'
        b'"usage":{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    error, _ = await fails_with(response(stream))
    assert (error.kind, error.billed, error.partial_text) == ("bug", "unknown", "half")


async def test_an_unknown_stop_reason_is_named() -> None:
    stream = (
        FRAMES_TO_HALF + b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"bored"},'
        b'"usage":{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    error, _ = await fails_with(response(stream))
    assert "'bored'" in error.message


async def test_a_spend_limit_that_comes_as_429_or_400_is_a_matter_of_budget() -> None:
    body = (
        b'{"type":"error","error":{"type":"rate_limit_error","message":"spend limit",'
        b'"details":{"error_code":"enforced_spend_limit_reached"}}}'
    )
    for status in ("429 Too Many Requests", "400 Bad Request"):
        error, _ = await fails_with(response(body, status, "application/json"))
        assert (error.kind, error.billed, error.retryable) == ("budget", "no", False)


async def test_retry_after_may_be_a_date() -> None:
    extra = "date: Sat, 21 Nov 2026 10:00:00 GMT\r\nretry-after: Sat, 21 Nov 2026 10:00:30 GMT\r\n"
    error, _ = await fails_with(response(b"{}", "429 Too Many Requests", "application/json", extra))
    assert (error.kind, error.retry_after_s) == ("rate", 30.0)


@pytest.mark.parametrize("value", ["nan", "-1", "inf", "soon", "9" * 400])
async def test_a_nonsense_retry_after_is_ignored(value: str) -> None:
    extra = f"retry-after: {value}\r\n"
    error, _ = await fails_with(response(b"{}", "429 Too Many Requests", "application/json", extra))
    assert error.retry_after_s is None


async def test_a_redirect_is_not_followed() -> None:
    error, _ = await fails_with(response(b"", "307 Temporary Redirect", extra="location: http://127.0.0.1:1/\r\n"))
    assert (error.kind, error.billed) == ("request", "no")
    assert "307" in error.message


async def test_a_secret_that_the_server_repeats_does_not_reach_the_message() -> None:
    body = (
        b'{"type":"error","error":{"type":"authentication_error","message":"bad key sk-ant-secret-key-123 '
        b'for https://bob:pw12345@host/ Bearer abcdefghijkl"}}'
    )
    error, _ = await fails_with(response(body, "401 Unauthorized", "application/json"))
    assert error.kind == "auth"
    assert error.hint
    for secret in ("sk-ant", "bob", "pw12345", "abcdefghijkl"):
        assert secret not in error.text()


async def test_a_host_that_does_not_answer_was_not_billed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connecting is refused
        provider = AnthropicProvider("k", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ProviderError) as caught:
            await provider.complete(ASK, deadline_s=10)
        await provider.aclose()
    assert (caught.value.kind, caught.value.billed) == ("transport", "no")


async def test_the_request_carries_what_it_was_given_and_only_our_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "other-token")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "other-key")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "Authorization: Bearer other-still\nx-api-key: other-too")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    request = Request(model="m", system="sys", messages=ASK.messages, max_tokens=9, effort="low", agent="ann")
    _, sent = await fails_with(response(b"{}", "400 Bad Request", "application/json"), request)
    head, body = sent.split(b"\r\n\r\n", 1)
    assert b"authorization: bearer sk-ant-secret-key-123" in head.lower()
    assert b"other" not in sent
    for part in (b'"effort":"low"', b'"user_id":"ann"', b'"max_tokens":9', b'"system":"sys"', b'"stream":true'):
        assert part in body
    assert b"tools" not in body


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ({}, {"type": "ephemeral"}),
        ({"prompt_cache": "5m"}, {"type": "ephemeral"}),
        ({"prompt_cache": "1h"}, {"type": "ephemeral", "ttl": "1h"}),
        ({"prompt_cache": "off"}, None),
    ],
)
async def test_the_cache_is_asked_for_unless_it_is_off(more: dict[str, Any], asked: dict[str, str] | None) -> None:
    _, sent = await hears(message(), **more)
    assert body_of(sent).get("cache_control") == asked


async def test_every_kind_of_usage_is_told_apart() -> None:
    usage = {
        "input_tokens": 11,
        "output_tokens": 7,
        "cache_read_tokens": 5,
        "cache_write_tokens": 3,
        "cache_write_1h_tokens": 2,
        "web_searches": 1,
    }
    async with SimServer(Script(parse_script({"default": {"reply": "ok", "usage": usage}}))) as sim:
        provider = AnthropicProvider(None, sim.url)
        assert (await provider.complete(ASK, deadline_s=10)).usage == Usage(**usage)
        await provider.aclose()


@pytest.mark.parametrize(
    ("cache", "usage", "short", "long"),
    [
        ("5m", {"cache_creation_input_tokens": 9}, 9, 0),
        ("1h", {"cache_creation_input_tokens": 9}, 0, 9),
        ("1h", {"cache_creation_input_tokens": 9, "cache_creation": None}, 0, 9),
        ("1h", {"cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_5m_input_tokens": 9}}, 9, 0),
        ("5m", {"cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 6}}, 4, 6),
    ],
)
async def test_a_cache_write_of_no_kind_is_what_was_asked_for(
    cache: str, usage: dict[str, Any], short: int, long: int
) -> None:
    answer, _ = await hears(message(**usage), prompt_cache=cache)
    assert isinstance(answer, Answer)
    assert (answer.usage.cache_write_tokens, answer.usage.cache_write_1h_tokens) == (short, long)


@pytest.mark.parametrize("count", [-1, True, "9", 10**10, 10**8 + 1])
async def test_a_usage_that_is_no_count_makes_the_cost_unknown(count: object) -> None:
    outcome, _ = await hears(message(input_tokens=count))
    assert isinstance(outcome, ProviderError)
    assert (outcome.kind, outcome.billed) == ("bug", "unknown")


TEXT = ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "größer"}])


@pytest.mark.parametrize(
    ("begins", "ends", "wanted"),
    [
        ({}, {}, Usage(output_tokens=8, estimated=True)),
        ({"input_tokens": 0, "output_tokens": 0}, {"output_tokens": 0}, Usage(output_tokens=8, estimated=True)),
        ({"input_tokens": 7}, {}, Usage(input_tokens=7, output_tokens=8, estimated=True)),
        ({"output_tokens": 1}, {"output_tokens": 3}, Usage(output_tokens=3, estimated=True)),
        ({"input_tokens": 7, "output_tokens": 5}, {"output_tokens": 2}, Usage(input_tokens=7, output_tokens=5)),
        ({"cache_read_input_tokens": 4}, {"output_tokens": 2}, Usage(output_tokens=2, cache_read_tokens=4)),
    ],
)
async def test_what_cannot_have_been_used_is_bounded_from_the_bytes_and_says_so(
    begins: dict[str, Any], ends: dict[str, Any], wanted: Usage
) -> None:
    stream = message(TEXT, **begins).replace(b'{"output_tokens": 2}', json.dumps(ends).encode())
    answer, _ = await hears(stream.replace(b"content-length", b"x-old"))
    assert isinstance(answer, Answer)
    assert answer.usage == wanted


async def test_the_bound_of_an_answer_is_what_was_asked_for_at_most() -> None:
    request = Request(model="m", system="", messages=ASK.messages, max_tokens=3)
    without = message(TEXT).replace(b', "usage": {"output_tokens": 2}', b"").replace(b', "usage": {}', b"")
    answer, _ = await hears(without.replace(b"content-length", b"x-old"), request)
    assert isinstance(answer, Answer)
    assert answer.usage == Usage(output_tokens=3, estimated=True)


async def test_a_server_that_repeats_the_key_in_its_names_does_not_have_it_stored() -> None:
    key = "Canary/Mixed+Case_0123456789"
    use = ({"type": "tool_use", "id": "x" * 190 + key, "name": key, "input": {}}, [])
    called = message(use, input_tokens=1).replace(b'"end_turn"', b'"tool_use"')
    called = called.replace(b"claude-haiku-5-5", key.encode())
    headed = called.replace(b"content-length", b"request-id: " + b"r" * 190 + key.encode() + b"\r\nx-old")
    answer, _ = await hears(headed, api_key=key)
    assert isinstance(answer, Answer)
    assert (answer.model, answer.tool_uses[0].name) == ("[key]", "[key]")
    stopped = message(TEXT).replace(b'"end_turn"', f'"{key}"'.encode()).replace(b"content-length", b"x-old")
    error, _ = await hears(stopped, api_key=key)
    assert isinstance(error, ProviderError)
    assert "'[key]'" in error.message
    said = repr(answer) + error.text()
    assert not any(piece in said for piece in ("Canary", "Mixed", "0123456789"))


async def test_what_was_thought_is_kept_in_order() -> None:
    signed = {"type": "signature_delta", "signature": "c2ln"}
    answer, _ = await hears(
        message(
            ({"type": "thinking", "thinking": "", "signature": ""}, [*thinks("hm"), *thinks("\u00fc \n"), signed]),
            ({"type": "redacted_thinking", "data": "b64"}, []),
            ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "so"}]),
            ({"type": "thinking", "thinking": "more", "signature": "x"}, []),
        ),
        name="anthropic@gateway",
    )
    assert isinstance(answer, Answer)
    assert answer.text == "so"
    assert {(thought.provider, thought.model) for thought in answer.thinking} == {("anthropic@gateway", ASK.model)}
    assert [thought.data for thought in answer.thinking] == [
        {"type": "thinking", "thinking": "hm\u00fc \n", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "b64"},
        {"type": "thinking", "thinking": "more", "signature": "x"},
    ]


def thinks(text: str) -> list[dict[str, str]]:
    return [{"type": "thinking_delta", "thinking": text}]


def second_round(first: Answer, model: str) -> Request:
    said = Message(role="assistant", blocks=(first.text, *first.tool_uses, *first.thinking))
    results = tuple(ToolResult(tool_use_id=use.id, content="seen") for use in first.tool_uses)
    return Request(
        model=model,
        system="",
        messages=(*ASK.messages, said, Message(role="user", blocks=results)),
        tools=(ToolSpec(name="look", description="", input_schema={"type": "object"}),),
    )


async def test_what_was_thought_goes_back_as_it_was_before_the_text_and_only_to_the_same_model() -> None:
    script = {
        "replies": [
            {
                "match": {"round": 1},
                "reply": "let me",
                "thinking": "a \u2028 b\n\t\u00e9",
                "tool_calls": [{"name": "look"}],
            },
            {"reply": "done"},
        ]
    }
    async with SimServer(Script(parse_script(script))) as sim:
        provider = AnthropicProvider(None, sim.url)
        first = await provider.complete(ASK, deadline_s=10)
        # The simulator refuses a thought that is not signed as it was.
        assert (await provider.complete(second_round(first, ASK.model), deadline_s=10)).text == "done"
        await provider.aclose()
    (thought,) = first.thinking
    _, sent = await hears(message(), second_round(first, ASK.model))
    _, told, _ = body_of(sent)["messages"]
    assert told["content"][0] == thought.data
    assert [block["type"] for block in told["content"]] == ["thinking", "text", "tool_use"]
    assert json.dumps(thought.data["thinking"], ensure_ascii=False).encode() in sent
    for other in (second_round(first, "claude-opus-5-5"), second_round(first, ASK.model)):
        name = "anthropic" if other.model != ASK.model else "anthropic@elsewhere"
        _, sent = await hears(message(), other, name=name)
        _, told, _ = body_of(sent)["messages"]
        assert [block["type"] for block in told["content"]] == ["text", "tool_use"]


def test_a_model_is_the_same_with_the_day_of_its_version() -> None:
    data = {"type": "redacted_thinking", "data": "x"}
    thought = Thinking(provider="anthropic", model="claude-haiku-4-5-20251001", data=data)
    said = (Message(role="user", blocks=("a",)), Message(role="assistant", blocks=(thought,)))
    assert api_messages(said, model="claude-haiku-4-5")[1]["content"] == [data]
    assert len(api_messages(said, model="claude-haiku-4")) == 1


CITY = {"type": "object", "properties": {"city": {"type": "string", "minLength": 2}}, "required": ["city"]}


async def test_a_schema_goes_along_with_the_effort_as_the_api_takes_it() -> None:
    request = Request(model="m", system="", messages=ASK.messages, effort="low", output_schema=CITY)
    async with SimServer(Script(parse_script({"default": {"reply": '{"city": "Bern"}'}}))) as sim:
        provider = AnthropicProvider(None, sim.url)
        assert (await provider.complete(request, deadline_s=10)).text == '{"city": "Bern"}'
        await provider.aclose()
    _, sent = await hears(message(), request)
    config = body_of(sent)["output_config"]
    assert (config["effort"], config["format"]["type"]) == ("low", "json_schema")
    schema = config["format"]["schema"]
    assert (schema["required"], schema["additionalProperties"]) == (["city"], False)
    assert "minLength: 2" in schema["properties"]["city"]["description"]
    assert CITY["properties"] == {"city": {"type": "string", "minLength": 2}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "array", "items": {"type": "object", "patternProperties": {"^a": {}}, "properties": {"a": CITY}}},
        {"type": "object", "properties": {"a": CITY}, "required": ["b"]},
        {"type": ["string", "null"]},
        {"type": "array", "items": True},
        {"anyOf": [CITY, {"type": "object"}]},
    ],
)
async def test_a_schema_that_the_api_would_narrow_is_left_to_whoever_checks_the_reply(schema: dict[str, Any]) -> None:
    request = Request(model="m", system="", messages=ASK.messages, effort="low", output_schema=schema)
    _, sent = await hears(message(), request)
    assert body_of(sent)["output_config"] == {"effort": "low"}


@pytest.mark.parametrize(
    ("said", "stop"),
    [
        ("refusal", "refusal"),
        ("pause_turn", "pause_turn"),
        ("model_context_window_exceeded", "context_exceeded"),
        ("max_tokens", "max_tokens"),
    ],
)
async def test_a_stop_before_the_end_is_an_answer_without_tool_calls(said: str, stop: str) -> None:
    use = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    half = ({**use}, [{"type": "input_json_delta", "partial_json": '{"a": '}])
    answer, _ = await hears(
        message(half).replace(b'"end_turn"', f'"{said}"'.encode()).replace(b"content-length", b"x-old")
    )
    assert isinstance(answer, Answer)
    assert (answer.stop_reason, answer.tool_uses, answer.usage.output_tokens) == (stop, (), 2)


@pytest.mark.parametrize(
    ("error_type", "kind"),
    [
        ("invalid_request_error", "request"),
        ("overloaded_error", "overload"),
        ("rate_limit_error", "rate"),
        ("timeout_error", "server"),
        ("api_error", "server"),
        ("billing_error", "budget"),
        ("authentication_error", "auth"),
        ("some_new_error", "request"),
    ],
)
async def test_an_error_in_a_stream_is_what_its_type_says_and_names_the_request(error_type: str, kind: str) -> None:
    broken = frames({"type": "error", "error": {"type": error_type, "message": "went wrong"}})
    error, _ = await fails_with(response(FRAMES_TO_HALF + broken, extra="request-id: req_007\r\n"))
    assert (error.kind, error.billed, error.partial_text) == (kind, "unknown", "half")
    assert "req_007" in error.message
    assert "went wrong" in error.message


async def test_a_refusal_that_comes_as_a_stream_was_not_billed() -> None:
    body = frames({"type": "error", "error": {"type": "invalid_request_error", "message": "too long"}})
    error, _ = await fails_with(response(body, "400 Bad Request", extra="request-id: req_008\r\n"))
    assert (error.kind, error.billed) == ("request", "no")
    assert "(request req_008)" in error.message


async def test_nothing_is_tried_again_even_if_the_server_says_so() -> None:
    extra = "x-should-retry: true\r\nretry-after: 0\r\n"
    error, _ = await fails_with(response(b"{}", "500 Internal Server Error", "application/json", extra))
    assert (error.kind, error.retry_after_s) == ("server", 0)


async def test_a_model_that_ends_soon_is_named_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    asked = Request(model="claude-sonnet-4-5", system="", messages=ASK.messages)
    async with SimServer(Script(parse_script({"default": {"reply": "still here"}}))) as sim:
        provider = AnthropicProvider(None, sim.url)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                answer = await provider.complete(asked, deadline_s=10)
                assert (answer.text, answer.model) == ("still here", "claude-sonnet-4-5")
        await provider.aclose()
    assert [record.getMessage() for record in caplog.records if "claude-sonnet-4-5" in record.getMessage()] == [
        "the model claude-sonnet-4-5 is deprecated and ends on November 30th, 2026: choose another"
    ]


async def test_the_key_is_in_no_log_however_much_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for status in ("200 OK", "401 Unauthorized"):
            _, sent = await hears(response(FRAMES_TO_HALF, status))
            assert b"sk-ant-secret-key-123" in sent
    assert caplog.records
    assert "sk-ant" not in caplog.text


async def test_an_answer_longer_than_any_models_is_broken_off() -> None:
    delta = {"type": "text_delta", "text": "x" * 32_000_001}
    outcome, _ = await hears(message(({"type": "text", "text": ""}, [delta])))
    assert isinstance(outcome, ProviderError)
    assert (outcome.kind, outcome.billed) == ("bug", "unknown")


async def test_a_missing_key_is_said_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "from-the-environment")
    provider = AnthropicProvider(None)
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ASK, deadline_s=10)
    assert (caught.value.kind, caught.value.billed) == ("auth", "no")
    assert "ANTHROPIC_API_KEY" in caught.value.text()


async def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with pytest.raises(ProviderError, match="not installed") as caught:
        await AnthropicProvider("key").complete(ASK, deadline_s=10)
    assert "pip install" in caught.value.text()
    assert caught.value.billed == "no"


async def test_nothing_to_send_is_said() -> None:
    request = Request(model="m", system="", messages=(Message(role="user", blocks=(" ",)),))
    with pytest.raises(ProviderError, match="nothing to send"):
        await AnthropicProvider("key").complete(request, deadline_s=1)


@pytest.mark.parametrize(
    "url", ["http://example.com", "https://bob:secret@example.com", "ftp://example.com", "https://", "https://[", "x"]
)
def test_a_base_url_that_would_give_something_away_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        AnthropicProvider("key", url)
    assert "secret" not in caught.value.text()
    assert caught.value.hint


async def test_a_program_on_this_machine_needs_no_key() -> None:
    async with SimServer(Script(parse_script({"default": {"reply": "local"}}))) as sim:
        provider = AnthropicProvider(None, sim.url)
        assert (await provider.complete(ASK, deadline_s=10)).text == "local"
        await provider.aclose()


def test_messages_are_merged_cleaned_and_ordered_as_the_api_wants_them() -> None:
    use = ToolUse(id="t1", name="look", input={"a": 1})
    messages = (
        Message(role="user", blocks=("", "one")),
        Message(role="user", blocks=("two",)),
        Message(role="assistant", blocks=("  ",)),
        Message(role="assistant", blocks=("three", use)),
        Message(role="user", blocks=("also", ToolResult(tool_use_id="t1", content="r", is_error=True))),
    )
    expected: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "three"},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "r", "is_error": True},
                {"type": "text", "text": "also"},
            ],
        },
    ]
    assert api_messages(messages) == expected


def test_importing_the_provider_does_not_import_the_sdk() -> None:
    code = "import sys, ksi_mcp.providers.registry; print('anthropic' in sys.modules, 'httpx2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
