from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ksi_mcp.errors import RETRYABLE_KINDS, ProviderError
from ksi_mcp.providers.anthropic.provider import AnthropicProvider
from ksi_mcp.providers.base import Message, Request
from ksi_mcp.providers.failures import kind_of_error

ASK = Request(model="claude-haiku-5-5", system="", messages=(Message(role="user", blocks=("hi",)),))
RATE, INPUT = "rate_limit_error", "invalid_request_error"


async def answered_with(status: int, body: bytes, *, stream: bool = False) -> ProviderError:
    """What becomes of a call that a server on a real socket answers like that."""
    kind = "text/event-stream" if stream else "application/json"
    head = f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in asked.lower().splitlines() if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    provider = AnthropicProvider("sk-ant-secret-key-123", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        with pytest.raises(ProviderError) as caught:
            await provider.complete(ASK, deadline_s=10)
    finally:
        await provider.aclose()
        server.close()
    return caught.value


def body_of(error_type: str, message: str, code: str | None = None) -> bytes:
    error: dict[str, Any] = {"type": error_type, "message": message}
    if code is not None:
        error["details"] = {"error_code": code}
    return json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()


@pytest.mark.parametrize(
    ("status", "error_type", "message", "code", "kind"),
    [
        # Limits on a span of time: wait, and try again.
        (
            429,
            RATE,
            "It would exceed your organization's rate limit of 30,000 input tokens per minute; raise your spend limit.",
            None,
            "rate",
        ),
        (429, RATE, "Number of request tokens has exceeded your per-minute rate limit.", None, "rate"),
        (429, RATE, "Number of requests has exceeded your daily rate limit.", None, "rate"),
        (429, RATE, "Your account has hit its concurrent connections limit.", None, "rate"),
        (429, RATE, "Usage grew too fast.", "ramp_limit_exceeded", "rate"),
        # The provider's own trouble.
        (529, "overloaded_error", "Overloaded", None, "overload"),
        (500, "api_error", "Internal server error", None, "server"),
        (503, "api_error", "Service unavailable", None, "server"),
        (504, "timeout_error", "Request timed out", None, "server"),
        (408, "timeout_error", "Request timed out", None, "server"),
        # Money: waiting does not help, whatever the status is.
        (402, "billing_error", "There is an issue with your billing.", None, "budget"),
        (402, "billing_error", "Not billable.", "linked_organization_billing_unavailable", "budget"),
        (402, "billing_error", "Limit.", "linked_organization_spend_limit_reached", "budget"),
        (429, RATE, "You have reached a limit.", "enforced_spend_limit_reached", "budget"),
        (429, RATE, "You have reached a limit.", "contract_spend_limit_reached", "budget"),
        (
            400,
            INPUT,
            "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade.",
            None,
            "budget",
        ),
        (
            400,
            INPUT,
            "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
            None,
            "budget",
        ),
        (
            400,
            INPUT,
            "You have reached your specified workspace API usage limits. You will regain access on 2026-12-01.",
            None,
            "budget",
        ),
        # The key.
        (401, "authentication_error", "invalid x-api-key", None, "auth"),
        (403, "permission_error", "Your API key does not have permission to use the specified resource.", None, "auth"),
        # The request itself.
        (400, INPUT, "messages: at least one message is required", None, "request"),
        (400, INPUT, "prompt is too long: 210000 tokens > 200000 maximum", None, "request"),
        (400, INPUT, "max_tokens: 200000 > 128000, which is the maximum allowed", None, "request"),
        (400, INPUT, "This organization has been disabled.", "organization_on_hold", "request"),
        (404, "not_found_error", "model: claude-none", None, "request"),
        (413, "request_too_large", "Request exceeds the maximum size", None, "request"),
        (422, INPUT, "Unprocessable", None, "request"),
    ],
)
async def test_what_the_messages_api_says_is_understood(status, error_type, message, code, kind) -> None:
    error = await answered_with(status, body_of(error_type, message, code))
    assert (error.kind, error.billed, error.retryable) == (kind, "no", kind in RETRYABLE_KINDS)
    assert message[:40] in error.message


@pytest.mark.parametrize(
    ("error_type", "message", "kind"),
    [
        ("overloaded_error", "Overloaded", "overload"),
        (RATE, "This request would exceed the rate limit of 8,000 output tokens per minute", "rate"),
        ("api_error", "Internal server error", "server"),
        ("timeout_error", "Timed out", "server"),
        ("billing_error", "No credit", "budget"),
        (INPUT, "Your credit balance is too low to access the Anthropic API.", "budget"),
        ("authentication_error", "expired", "auth"),
        ("permission_error", "no", "auth"),
        (INPUT, "odd", "request"),
        ("something_new_error", "odd", "request"),
    ],
)
async def test_an_error_inside_the_stream_is_what_it_would_have_been_before_it(error_type, message, kind) -> None:
    frame = b"event: error\ndata: " + body_of(error_type, message) + b"\n\n"
    error = await answered_with(200, frame, stream=True)
    assert (error.kind, error.billed) == (kind, "unknown")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (502, b"<html>Bad gateway</html>", "server"),
        (503, b"", "server"),
        (529, b"", "overload"),
        (429, b"<html>slow down</html>", "rate"),
        (429, b'{"error": "per minute"}', "rate"),
        (403, b"<html>blocked</html>", "auth"),
        (418, b"null", "request"),
        # Nothing that a body holds gets past the classification.
        (500, b'{"error": {"type": ["a"], "message": {"b": 1}, "details": {"error_code": 7}}}', "server"),
        (429, b'{"error": {"type": {"c": 2}, "message": ["d"], "details": []}}', "rate"),
        (400, b'{"error": {"type": null, "message": 5}}', "request"),
        (400, b"[" * 5_000, "request"),
    ],
)
async def test_a_gateway_or_a_hostile_body_is_judged_by_its_status(status, body, kind) -> None:
    error = await answered_with(status, body)
    assert (error.kind, error.billed) == (kind, "no")


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        # As the OpenAI-compatible ones say it: the code tells the two kinds of quota apart, the words do not.
        (429, "rate_limit_exceeded", "Rate limit reached for gpt-6 on tokens per min. Try again in 1.2s.", "rate"),
        (429, "insufficient_quota", "You exceeded your current quota, check your plan and billing details.", "budget"),
        (429, None, "You exceeded your current quota, check your plan and billing details. Retry in 12 s.", "rate"),
        (429, "billing_hard_limit_reached", "Billing hard limit has been reached", "budget"),
        (429, None, "You have reached your spend limit.", "budget"),
        (500, None, "spend limit service unavailable", "server"),
    ],
)
def test_a_quota_of_money_and_a_quota_of_time_are_told_apart(status, code, message, kind) -> None:
    assert kind_of_error(status, code=code, message=message) == kind
