"""Message Batches through the real SDK: against the simulator, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.errors import ProviderError
from ksi_mcp.providers.anthropic.provider import AnthropicProvider
from ksi_mcp.providers.base import Answer, BatchProvider, Message, Request, Usage
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimServer

KEY = "sk-ant-secret-secret-secret"


class SteppedClock(SystemClock):
    """Time passes when a test says so."""

    now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s


def ask(prompt: str, **more: Any) -> Request:
    given: dict[str, Any] = {"model": "claude-haiku-5-5", "system": "", "agent": "ann", **more}
    return Request(messages=(Message(role="user", blocks=(prompt,)),), **given)


@asynccontextmanager
async def opened(script: dict[str, Any], **more: Any) -> AsyncIterator[AnthropicProvider]:
    async with SimServer(Script(parse_script(script)), **more) as sim:
        provider = AnthropicProvider(KEY, sim.url)
        try:
            yield provider
        finally:
            await provider.aclose()


async def test_a_batch_comes_back_once_all_of_it_has_ended() -> None:
    clock = SteppedClock()
    usage = {"input_tokens": 11, "output_tokens": 7, "cache_write_tokens": 3, "cache_write_1h_tokens": 2}
    script = {
        "replies": [
            {"match": {"prompt": "look"}, "reply": "hm", "thinking": "where", "tool_calls": [{"name": "look"}]},
            {"match": {"prompt": "slow"}, "reply": "{{agent}} is late", "latency_s": 60, "usage": usage},
        ]
    }
    async with opened(script, clock=clock) as provider:
        batches: BatchProvider = provider
        batch_id = await batches.submit_batch([("turn_1-a", ask("look")), ("turn_2", ask("slow"))])
        assert await batches.batch_results(batch_id) is None
        clock.now_s += 60
        results = await batches.batch_results(batch_id)
        assert results is not None
        assert await batches.batch_results(batch_id) == results
    assert set(results) == {"turn_1-a", "turn_2"}
    look, slow = results["turn_1-a"], results["turn_2"]
    assert isinstance(look, Answer)
    assert isinstance(slow, Answer)
    assert (look.stop_reason, look.text, [use.name for use in look.tool_uses]) == ("tool_use", "hm", ["look"])
    assert [(thought.model, thought.data["thinking"]) for thought in look.thinking] == [("claude-haiku-5-5", "where")]
    assert (slow.text, slow.usage, slow.model) == ("ann is late", Usage(**usage), "claude-haiku-5-5")
    assert slow.request_id


async def test_what_was_not_worked_on_is_told_apart_and_was_not_billed() -> None:
    kinds = {"rate": "rate", "overload": "overload", "budget": "budget", "request": "request", "drop": "server"}
    script = {"replies": [{"match": {"prompt": kind}, "fail": {"kind": kind}} for kind in (*kinds, "timeout")]}
    async with opened(script) as provider:
        batch_id = await provider.submit_batch([(kind, ask(kind)) for kind in (*kinds, "timeout", "fine")])
        results = await provider.batch_results(batch_id)
    assert results is not None
    assert isinstance(results.pop("fine"), Answer)
    failed = {name: error for name, error in results.items() if isinstance(error, ProviderError)}
    assert {name: error.kind for name, error in failed.items()} == {**kinds, "timeout": "server"}
    assert {error.billed for error in failed.values()} == {"no"}
    assert "expired" in failed["timeout"].message


async def test_a_canceled_batch_gives_what_was_ready() -> None:
    script = {"replies": [{"match": {"prompt": "slow"}, "reply": "late", "latency_s": 60}]}
    async with opened(script, clock=SteppedClock()) as provider:
        batch_id = await provider.submit_batch([("s", ask("slow")), ("q", ask("quick"))])
        await provider.cancel_batch(batch_id)
        results = await provider.batch_results(batch_id)
        await provider.cancel_batch(batch_id)  # it has ended meanwhile, which is no failure
    assert results is not None
    left, done = results["s"], results["q"]
    assert isinstance(left, ProviderError)
    assert isinstance(done, Answer)
    assert (left.kind, left.billed, done.text) == ("server", "no", "[ann] quick")


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([], "empty"),
        ([("a b", ask("x"))], "'a b'"),
        ([("", ask("x"))], "''"),
        ([("a" * 65, ask("x"))], "'aaa"),
        ([("a/../b", ask("x"))], "cannot name"),
        ([("a\n", ask("x"))], "cannot name"),
        ([("a", ask("x")), ("a", ask("y"))], "two requests"),
        ([("a", ask(" "))], "nothing to send"),
    ],
)
async def test_a_batch_that_the_api_would_refuse_is_not_sent(requests: list[tuple[str, Request]], said: str) -> None:
    async with opened({}) as provider:
        with pytest.raises(ProviderError, match=said) as caught:
            await provider.submit_batch(requests)
    assert (caught.value.kind, caught.value.billed) == ("request", "no")


async def test_a_batch_that_is_gone_is_said_so() -> None:
    async with opened({}) as provider:
        with pytest.raises(ProviderError, match="knows no batch 'msgbatch_gone'") as caught:
            await provider.batch_results("msgbatch_gone")
        assert (caught.value.kind, caught.value.billed) == ("request", "unknown")
        with pytest.raises(ProviderError, match="404"):
            await provider.cancel_batch("msgbatch_gone")
        for call in (provider.batch_results, provider.cancel_batch):
            with pytest.raises(ProviderError, match="is not the id of a batch"):
                await call("../models")


Reply = tuple[int, bytes]


@asynccontextmanager
async def server(answer: Callable[[str], Reply], **more: Any) -> AsyncIterator[tuple[AnthropicProvider, list[bytes]]]:
    """A provider whose host answers each request line as `answer` says and hangs up, and what it was sent."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")]
        seen.append(head + await reader.readexactly(sum(lengths)))
        status, body = answer(head.split(b"\r\n")[0].decode())
        writer.write(f"HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n".encode())
        writer.write(body)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    provider = AnthropicProvider(KEY, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", **more)
    try:
        yield provider, seen
    finally:
        await provider.aclose()
        listening.close()


def batch_object(**more: Any) -> dict[str, Any]:
    counts = {"processing": 0, "succeeded": 1, "errored": 0, "canceled": 0, "expired": 0}
    return {
        "id": "msgbatch_1",
        "type": "message_batch",
        "processing_status": "ended",
        "request_counts": counts,
        "results_url": "http://127.0.0.1:1/elsewhere",
        **more,
    }


def line(custom_id: str, **result: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "result": result}).encode() + b"\n"


def succeeded(custom_id: str = "a", **more: Any) -> bytes:
    content = [{"type": "text", "text": "hi"}]
    said = {"id": "msg_1", "model": "m", "content": content, "stop_reason": "end_turn", "usage": {"input_tokens": 1}}
    return line(custom_id, type="succeeded", message={**said, **more})


def ended_with(results: bytes, **more: Any) -> Callable[[str], Reply]:
    return lambda asked: (200, results if "/results" in asked else json.dumps(batch_object(**more)).encode())


async def test_the_batch_on_the_wire_is_the_request_as_it_would_be_sent_alone() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    request = ask("hello", effort="low", output_schema=schema, model="claude-sonnet-4-5")
    made = json.dumps(batch_object(processing_status="in_progress")).encode()
    async with server(lambda _: (200, made), prompt_cache="1h") as (provider, seen):
        assert await provider.submit_batch([("t-1", request)]) == "msgbatch_1"
    head, body = seen[0].split(b"\r\n\r\n", 1)
    assert b"authorization: bearer sk-ant-secret-secret-secret" in head.lower()
    (entry,) = json.loads(body)["requests"]
    assert entry["custom_id"] == "t-1"
    params = entry["params"]
    assert (params["model"], params["max_tokens"], "stream" in params) == ("claude-sonnet-4-5", 4096, False)
    assert params["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert params["metadata"] == {"user_id": "ann"}
    assert params["output_config"]["effort"] == "low"
    assert params["output_config"]["format"]["schema"]["additionalProperties"] is False


async def test_the_results_are_asked_of_our_host_whatever_url_the_batch_names() -> None:
    async with server(ended_with(succeeded())) as (provider, seen):
        results = await provider.batch_results("msgbatch_1")
    assert results is not None
    assert isinstance(results["a"], Answer)
    assert [sent.split(b" ")[1] for sent in seen] == [
        b"/v1/messages/batches/msgbatch_1",
        b"/v1/messages/batches/msgbatch_1/results",
    ]
    assert b"bearer sk-ant" in seen[1].lower()


@pytest.mark.parametrize(
    "more",
    [
        {"content": None},
        {"content": [7]},
        {"content": [{"type": "text", "text": 7}]},
        {"content": [{"type": "tool_use", "id": "t", "name": "n", "input": "{"}], "stop_reason": "tool_use"},
        {"stop_reason": "bored"},
        {"stop_reason": None},
        {"usage": {"input_tokens": -5}},
        {"_fields_set": 7},
    ],
)
async def test_an_answer_that_cannot_be_read_does_not_spoil_the_others(more: dict[str, Any]) -> None:
    async with server(ended_with(succeeded("bad", **more) + succeeded("good"))) as (provider, _):
        results = await provider.batch_results("msgbatch_1")
    assert results is not None
    bad = results["bad"]
    assert isinstance(results["good"], Answer)
    assert isinstance(bad, ProviderError)
    assert bad.billed == "unknown"


@pytest.mark.parametrize(
    "results",
    [
        b"{\n",
        b"[]\n",
        b"\xff\n",
        line("a/b", type="expired"),
        line("a", type="lost"),
        b'{"custom_id": 7, "result": {"type": "expired"}}\n',
        b'{"custom_id": "a"}\n',
    ],
)
async def test_results_that_are_none_are_a_bug_and_no_answer(results: bytes) -> None:
    async with server(ended_with(succeeded() + results)) as (provider, _):
        with pytest.raises(ProviderError) as caught:
            await provider.batch_results("msgbatch_1")
    assert (caught.value.kind, caught.value.billed) == ("bug", "unknown")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b'{"type": "error", "error": {"type": "not_found_error", "message": "gone"}}', "request"),
        (404, b"<h1>nginx</h1>", "server"),
        (307, b"", "server"),
        (400, b"{}", "server"),
        (401, b"{}", "auth"),
        (429, b"{}", "rate"),
    ],
)
async def test_only_the_api_itself_can_say_that_a_batch_is_gone(status: int, body: bytes, kind: str) -> None:
    ended = json.dumps(batch_object()).encode()
    for at_once in (True, False):

        def answer(asked: str, *, at_once: bool = at_once) -> Reply:
            return (status, body) if at_once or "/results" in asked else (200, ended)

        async with server(answer) as (provider, _):
            with pytest.raises(ProviderError) as caught:
                await provider.batch_results("msgbatch_1")
        assert caught.value.kind == kind


async def test_results_that_end_early_are_asked_for_again_later() -> None:
    counts = {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 0}
    async with server(ended_with(succeeded(), request_counts=counts)) as (provider, _):
        with pytest.raises(ProviderError) as caught:
            await provider.batch_results("msgbatch_1")
    assert (caught.value.kind, caught.value.billed, caught.value.retryable) == ("transport", "unknown", True)


async def test_blank_lines_and_a_missing_last_line_end_are_no_matter() -> None:
    results = b"\n" + succeeded("a") + b"\r\n" + succeeded("b").rstrip() + b""
    async with server(ended_with(results)) as (provider, _):
        found = await provider.batch_results("msgbatch_1")
    assert found is not None
    assert set(found) == {"a", "b"}


async def test_an_error_in_a_batch_names_no_secret_and_finds_a_spend_limit() -> None:
    error = {
        "type": "invalid_request_error",
        "message": f"spent, says {KEY}",
        "details": {"error_code": "enforced_spend_limit_reached"},
    }
    failed = line("a", type="errored", error={"type": "error", "error": error}) + line("b", type="errored", error={})
    async with server(ended_with(failed)) as (provider, _):
        results = await provider.batch_results("msgbatch_1")
    assert results is not None
    spent, unknown = results["a"], results["b"]
    assert isinstance(spent, ProviderError)
    assert isinstance(unknown, ProviderError)
    assert (spent.kind, spent.billed, unknown.kind) == ("budget", "no", "request")
    assert KEY not in spent.text()


async def test_a_submission_without_an_answer_may_have_been_taken() -> None:
    for answer, kind in ((b"", "bug"), (b"{}", "bug"), (json.dumps(batch_object(id="../x")).encode(), "bug")):
        async with server(lambda _, said=answer: (200, said)) as (provider, _):
            with pytest.raises(ProviderError) as caught:
                await provider.submit_batch([("a", ask("x"))])
        assert (caught.value.kind, caught.value.billed) == (kind, "unknown")


@pytest.mark.parametrize(("status", "kind"), [(429, "rate"), (529, "overload"), (401, "auth"), (413, "request")])
async def test_a_refused_submission_was_not_billed(status: int, kind: str) -> None:
    async with server(lambda _: (status, b"{}")) as (provider, seen):
        with pytest.raises(ProviderError) as caught:
            await provider.submit_batch([("a", ask("x"))])
    assert (caught.value.kind, caught.value.billed, len(seen)) == (kind, "no", 1)
    assert KEY not in caught.value.text()


async def test_many_requests_come_back_each_under_its_id() -> None:
    async with opened({"default": {"reply": "to {{prompt}}"}}) as provider:
        batch_id = await provider.submit_batch([(f"t{n}", ask(f"p{n}")) for n in range(300)])
        results = await provider.batch_results(batch_id)
    assert results is not None
    assert {name: isinstance(said, Answer) and said.text for name, said in results.items()} == {
        f"t{n}": f"to p{n}" for n in range(300)
    }
