"""What every provider owes its caller: the scripted one, the real SDK and the raw client against the simulator."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.errors import ProviderError
from ksi_mcp.provider_config import ClaudeCliConfig
from ksi_mcp.providers.anthropic.provider import AnthropicProvider
from ksi_mcp.providers.base import Message, Provider, Request, ToolResult, ToolSpec, ToolUse, Usage
from ksi_mcp.providers.claude.cli import ClaudeCliProvider
from ksi_mcp.providers.openai.compatible import OpenAICompatibleProvider
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.providers.scripted import ScriptedProvider
from ksi_mcp.web.sim import SimServer

KEY = "sk-ant-secret-secret-secret"
CLAUDE = os.environ.get("KSI_TEST_CLAUDE") or shutil.which("claude")


@dataclass
class Opened:
    provider: Provider
    sim: SimServer | None


@asynccontextmanager
async def scripted(script: Script, connections: int) -> AsyncIterator[Opened]:
    yield Opened(ScriptedProvider(script, SystemClock()), None)


@asynccontextmanager
async def anthropic(script: Script, connections: int) -> AsyncIterator[Opened]:
    async with SimServer(script) as sim, aclosing(AnthropicProvider(KEY, sim.url, connections)) as provider:
        yield Opened(provider, sim)


@asynccontextmanager
async def openai_compatible(script: Script, connections: int) -> AsyncIterator[Opened]:
    async with (
        SimServer(script) as sim,
        aclosing(OpenAICompatibleProvider(KEY, f"{sim.url}/v1", connections)) as provider,
    ):
        yield Opened(provider, sim)


@asynccontextmanager
async def claude_cli(script: Script, connections: int) -> AsyncIterator[Opened]:
    """The real program, in an environment of its own, with the simulator as its API."""
    with tempfile.TemporaryDirectory(prefix="ksi-claude-") as folder:
        async with SimServer(script) as sim:
            told = {
                "ANTHROPIC_BASE_URL": sim.url, "ANTHROPIC_API_KEY": KEY, "DISABLE_TELEMETRY": "1",
                "DISABLE_ERROR_REPORTING": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            }  # fmt: skip
            own = {"HOME": folder, "CLAUDE_CONFIG_DIR": f"{folder}/claude", "PATH": os.environ["PATH"]}
            config = ClaudeCliConfig(command=CLAUDE or "claude", env=tuple(told))
            made = ClaudeCliProvider(config, Path(folder) / "data", None, {**own, **told}, SystemClock())
            async with aclosing(made) as provider:
                yield Opened(provider, sim)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a kind of provider is opened here, and why it cannot be, if so."""

    open: Callable[[Script, int], AbstractAsyncContextManager[Opened]]
    missing: str | None = None


KINDS: dict[str, Kind] = {
    "scripted": Kind(open=scripted),
    "anthropic": Kind(open=anthropic),
    "openai_compatible": Kind(open=openai_compatible),
    "claude_cli": Kind(
        open=claude_cli, missing=None if CLAUDE else "there is no Claude Code: see scripts/claude-for-tests"
    ),
}


def every_provider_but(**unlike: str) -> pytest.MarkDecorator:
    """Run a test for every kind; `unlike` says of a kind why what the test shows is none of its business."""
    return pytest.mark.parametrize(
        "kind",
        [
            pytest.param(name, marks=pytest.mark.skip(reason=reason) if reason else ())
            for name, kind in KINDS.items()
            for reason in [unlike.get(name) or kind.missing]
        ],
    )


every_provider = every_provider_but()

LOOP = "Claude Code carries a turn through to its end by itself: see tests/providers/test_claude_cli.py"
START_S = {"claude_cli": 3.0}
"""How long a kind may take before its first request is under way."""


@asynccontextmanager
async def opened(kind: str, script: dict[str, Any], connections: int = 64) -> AsyncIterator[Opened]:
    async with KINDS[kind].open(Script(parse_script(script)), connections) as it:
        yield it


def ask(prompt: str, **more: Any) -> Request:
    given: dict[str, Any] = {"model": "claude-haiku-5-5", "system": "be brief", "agent": "ann", **more}
    return Request(messages=(Message(role="user", blocks=(prompt,)),), **given)


@every_provider
async def test_an_answer_carries_text_usage_model_and_stop_reason(kind: str) -> None:
    usage: dict[str, Any] = {"input_tokens": 11, "output_tokens": 7, "cache_read_tokens": 5, "cache_write_tokens": 3}
    async with opened(kind, {"replies": [{"reply": "you said {{prompt}}", "usage": usage}]}) as it:
        answer = await it.provider.complete(ask("hello"), deadline_s=10)
    assert (answer.text, answer.stop_reason, answer.model) == ("you said hello", "end_turn", "claude-haiku-5-5")
    assert answer.usage == Usage(**usage)
    assert answer.tool_uses == ()
    assert answer.request_id or kind == "claude_cli"


@every_provider
async def test_text_streams_in_order_and_adds_up(kind: str) -> None:
    told: list[str] = []
    async with opened(kind, {"replies": [{"reply": "one two three four five"}]}) as it:
        answer = await it.provider.complete(ask("count"), deadline_s=10, on_text=told.append)
    assert len(told) > 1
    assert "".join(told) == answer.text == "one two three four five"


@every_provider_but(claude_cli=LOOP)
async def test_a_tool_call_and_its_result_make_two_rounds_of_one_turn(kind: str) -> None:
    script = {
        "replies": [
            {
                "match": {"round": 1},
                "reply": "looking",
                "tool_calls": [{"name": "look", "input": {"at": "{{prompt}}"}}],
            },
            {"match": {"round": 2, "turn": 1}, "reply": "it is {{results[0].colour}} and {{results[1]}}"},
        ]
    }
    tools = (ToolSpec(name="look", description="Look.", input_schema={"type": "object", "properties": {}}),)
    async with opened(kind, script) as it:
        first = await it.provider.complete(ask("the sky", tools=tools), deadline_s=10)
        assert (first.stop_reason, first.text) == ("tool_use", "looking")
        (use,) = first.tool_uses
        assert (use.name, use.input) == ("look", {"at": "the sky"})
        again = ToolUse(id="toolu_2", name="look", input={})
        results = (
            ToolResult(tool_use_id=use.id, content='{"colour": "blue"}'),
            ToolResult(tool_use_id="toolu_2", content="wide", is_error=True),
        )
        messages = (
            Message(role="user", blocks=("the sky",)),
            Message(role="assistant", blocks=("looking", "", use, again)),
            Message(role="user", blocks=results),
        )
        request = Request(model="claude-haiku-5-5", system="", messages=messages, tools=tools, agent="ann")
        second = await it.provider.complete(request, deadline_s=10)
    assert (second.text, second.stop_reason) == ("it is blue and wide", "end_turn")


@every_provider_but(claude_cli=LOOP)
@pytest.mark.parametrize(
    "reason", ["end_turn", "max_tokens", "refusal", "stop_sequence", "pause_turn", "context_exceeded"]
)
async def test_every_stop_reason_comes_through(kind: str, reason: str) -> None:
    async with opened(kind, {"replies": [{"reply": "so far", "stop_reason": reason}]}) as it:
        assert (await it.provider.complete(ask("go"), deadline_s=10)).stop_reason == reason


@every_provider_but(claude_cli="it has no such limit but its budget")
async def test_output_ends_at_max_tokens(kind: str) -> None:
    async with opened(kind, {"replies": [{"reply": "x" * 100}]}) as it:
        answer = await it.provider.complete(ask("go", max_tokens=5), deadline_s=10)
    assert (answer.text, answer.stop_reason, answer.usage.output_tokens) == ("x" * 20, "max_tokens", 5)


@every_provider
@pytest.mark.parametrize(
    ("fail", "wanted"),
    [
        ({"kind": "rate", "retry_after_s": 1.5}, ("rate", "no", 1.5)),
        ({"kind": "overload"}, ("overload", "no", None)),
        ({"kind": "server"}, ("server", "no", None)),
        ({"kind": "server", "status": 409}, ("server", "no", None)),
        ({"kind": "server", "status": 503, "retry_after_s": 2}, ("server", "no", 2.0)),
        ({"kind": "auth"}, ("auth", "no", None)),
        ({"kind": "auth", "status": 403}, ("auth", "no", None)),
        ({"kind": "request", "message": "prompt is too long: 9 tokens > 8 maximum"}, ("request", "no", None)),
        ({"kind": "request", "status": 413}, ("request", "no", None)),
        ({"kind": "budget"}, ("budget", "no", None)),
        ({"kind": "transport"}, ("transport", "unknown", None)),
        ({"kind": "drop"}, ("transport", "unknown", None)),
    ],
)
async def test_a_failure_says_its_kind_and_whether_it_was_billed(
    kind: str, fail: dict[str, Any], wanted: tuple[str, str, float | None]
) -> None:
    async with opened(kind, {"replies": [{"reply": "no", "fail": fail}]}) as it:
        with pytest.raises(ProviderError) as caught:
            await it.provider.complete(ask("go"), deadline_s=10)
        if it.sim is not None:
            await it.sim.idle()
            assert len(it.sim.log) == 1  # nobody tries again behind our back
    error = caught.value
    assert (error.kind, error.billed) == wanted[:2]
    if kind == "claude_cli":  # it says in words of its own what was wrong, and a little more than the wait it was told
        assert (error.retry_after_s or 0) >= (wanted[2] or 0)
    else:
        assert error.retry_after_s == wanted[2]
        assert str(fail.get("message", "")) in error.message
    assert error.partial_text == ""
    assert KEY not in error.text()


@every_provider
@pytest.mark.parametrize(
    ("fail", "wanted"),
    [
        ({"kind": "drop", "after_chars": 9}, "transport"),
        ({"kind": "drop", "after_chars": 10_000}, "transport"),
        ({"kind": "mid_stream", "after_chars": 9}, "overload"),
        ({"kind": "mid_stream", "after_chars": 9, "status": 500}, "server"),
        ({"kind": "mid_stream", "after_chars": 9, "status": 429}, "rate"),
        ({"kind": "mid_stream", "after_chars": 9, "status": 402}, "budget"),
    ],
)
async def test_text_that_arrived_before_a_failure_is_kept(kind: str, fail: dict[str, Any], wanted: str) -> None:
    told: list[str] = []
    async with opened(kind, {"replies": [{"reply": "once upon a time", "fail": fail}]}) as it:
        with pytest.raises(ProviderError) as caught:
            await it.provider.complete(ask("go"), deadline_s=10, on_text=told.append)
        if it.sim is not None:
            await it.sim.idle()
            assert len(it.sim.log) <= (
                3 if kind == "claude_cli" else 1
            )  # it tries a cut stream again, within its budget
    error = caught.value
    partial = "once upon a time"[: fail["after_chars"]]
    if kind == "claude_cli":  # it does not tell an error event's kind of money, and says again what it asks for again
        wanted = "server" if wanted == "budget" else wanted
        partial = "".join(told) if fail["kind"] == "drop" else partial
    assert (error.kind, error.billed) == (wanted, "unknown")
    assert error.partial_text == "".join(told) == partial


@every_provider
@pytest.mark.parametrize(
    ("entry", "partial"),
    [
        ({"reply": "slow", "latency_s": 60}, ""),
        ({"reply": "mute", "fail": {"kind": "timeout"}}, ""),
        ({"reply": "stalled", "fail": {"kind": "stall"}}, ""),
        ({"reply": "stalled", "fail": {"kind": "stall", "after_chars": 5}}, "stall"),
    ],
)
async def test_the_deadline_bounds_the_whole_call(kind: str, entry: dict[str, Any], partial: str) -> None:
    script = {"replies": [{"match": {"prompt": "warm up"}, "reply": "warm"}, entry]}
    async with opened(kind, script) as it:
        await it.provider.complete(ask("warm up"), deadline_s=10)  # the SDK's first import is not what is measured
        with pytest.raises(ProviderError) as caught:
            await it.provider.complete(ask("go"), deadline_s=START_S.get(kind, 0.1))
        if it.sim is not None:
            await it.sim.idle()
            assert [request.outcome for request in it.sim.log] == ["ok", "left"]
    error = caught.value
    assert (error.kind, error.billed, error.partial_text) == ("timeout", "unknown", partial)
    assert error.retryable


@every_provider
async def test_a_cancel_ends_the_call_and_the_next_one_works(kind: str) -> None:
    stall = {"kind": "stall", "after_chars": 3, "times": 1}
    async with opened(kind, {"replies": [{"reply": "hello", "fail": stall}]}) as it:
        began = asyncio.Event()
        call = asyncio.create_task(it.provider.complete(ask("go"), deadline_s=30, on_text=lambda _: began.set()))
        async with asyncio.timeout(10):
            await began.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            if it.sim is not None:
                await it.sim.idle()
                assert [request.outcome for request in it.sim.log] == ["left"]
        assert (await it.provider.complete(ask("go"), deadline_s=10)).text == "hello"


@every_provider
async def test_calls_that_fail_keep_no_connection(kind: str) -> None:
    fails: list[dict[str, Any]] = [
        {"kind": "rate"},
        {"kind": "drop", "after_chars": 3},
        {"kind": "mid_stream", "after_chars": 3},
        {"kind": "stall", "after_chars": 3},
    ]
    script = {"replies": [{"match": {"prompt": f["kind"]}, "reply": "hello", "fail": f} for f in fails]}
    async with opened(kind, script, connections=2) as it:
        for fail in fails * (1 if kind == "claude_cli" else 3):
            deadline_s = START_S.get(kind, 0.05) if fail["kind"] == "stall" else 10
            with pytest.raises(ProviderError):
                await it.provider.complete(ask(str(fail["kind"])), deadline_s=deadline_s)
        assert (await it.provider.complete(ask("well"), deadline_s=10)).text.endswith("] well")
        await it.provider.aclose()
        if it.sim is not None:
            async with asyncio.timeout(10):
                await it.sim.idle()
                while it.sim.open_connections:  # noqa: ASYNC110 - the server learns of it from the socket
                    await asyncio.sleep(0)


@every_provider
async def test_calls_run_side_by_side(kind: str) -> None:
    count = 4 if kind == "claude_cli" else 20
    script = {"replies": [{"match": {"prompt": f"of a{n}!"}, "reply": f"reply {n}"} for n in range(count)]}
    async with opened(kind, script) as it:
        calls = [it.provider.complete(ask(f"of a{n}!", agent=f"a{n}"), deadline_s=30) for n in range(count)]
        answers = await asyncio.gather(*calls)
    assert [answer.text for answer in answers] == [f"reply {n}" for n in range(count)]


@every_provider
async def test_a_script_that_cannot_be_filled_fails_the_call(kind: str) -> None:
    async with opened(kind, {"replies": [{"reply": "{{results[0]}}"}]}) as it:
        with pytest.raises(ProviderError, match="replies\\[0\\]") as caught:
            await it.provider.complete(ask("go"), deadline_s=10)
    assert (caught.value.kind, caught.value.billed) == ("request", "no")
