from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import Any

import pytest

from ksi_mcp.errors import Invalid, ProviderError
from ksi_mcp.providers.anthropic import AnthropicProvider, api_messages
from ksi_mcp.providers.base import Message, Request, ToolResult, ToolUse
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
    provider = AnthropicProvider("sk-ant-secret-key-123", f"http://127.0.0.1:{port}")
    try:
        with pytest.raises(ProviderError) as caught:
            await provider.complete(request, deadline_s=10)
    finally:
        await provider.aclose()
        server.close()
    return caught.value, seen[0]


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
    frames = (
        FRAMES_TO_HALF + b'event: content_block_start\ndata: {"type":"content_block_start","index":1,"content_block":'
        b'{"type":"tool_use","id":"t","name":"n","input":{}}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":1,"delta":'
        b'{"type":"input_json_delta","partial_json":"{\\"a\\": "}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use"},'
        b'"usage":{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    error, _ = await fails_with(response(frames))
    assert (error.kind, error.billed, error.partial_text) == ("bug", "unknown", "half")


async def test_an_unknown_stop_reason_is_named() -> None:
    frames = (
        FRAMES_TO_HALF + b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"bored"},'
        b'"usage":{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    error, _ = await fails_with(response(frames))
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
    assert b"cache_control" not in body


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
        provider = AnthropicProvider(None, sim.url, prompt_caching=True)
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
