from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.config import Config
from ksi_mcp.errors import Invalid
from ksi_mcp.providers import choosing
from ksi_mcp.providers.choosing import Default, models_of
from ksi_mcp.providers.registry import ProviderRegistry, ProviderSettings

MODELS = {"object": "list", "data": [{"id": "text-embedding-nomic"}, {"id": "qwen3:8b"}, {"id": "gemma-3"}]}


def registry_of(environ: dict[str, str], root: Path | None = None, **config: Any) -> ProviderRegistry:
    return ProviderRegistry(ProviderSettings(config=Config(**config), root=root), SystemClock(), environ)


def claude_at(tmp_path: Path, **files: str) -> dict[str, str]:
    """An environment whose PATH has a `claude`, and whose home these files."""
    program = tmp_path / "bin" / "claude"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    for name, text in files.items():
        file = tmp_path / {"tokens": ".claude/.credentials.json", "state": ".claude.json"}[name]
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return {"PATH": str(program.parent), "HOME": str(tmp_path)}


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: bytes | Answer) -> AsyncIterator[str]:
    """A server on this machine that says that to whoever comes."""

    at_work: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        at_work.add(task)
        with suppress(OSError):  # whoever asked has hung up
            await reader.readuntil(b"\r\n\r\n")
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                await answer(reader, writer)
        with suppress(OSError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        await asyncio.gather(*at_work)
        server.close()
        await server.wait_closed()


def ok(body: Any) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + json.dumps(body).encode()


async def test_what_the_configuration_says_is_not_questioned() -> None:
    default = await registry_of({"ANTHROPIC_API_KEY": "x"}, provider="scripted", model="m").default()
    assert (default.provider, default.model, default.why) == ("scripted", "m", "config.yaml says so")


async def test_a_key_means_the_api(tmp_path: Path) -> None:
    environ = claude_at(tmp_path, tokens='{"claudeAiOauth": {"accessToken": "t"}}') | {"ANTHROPIC_API_KEY": "canary"}
    registry = registry_of(environ)
    default = await registry.default()
    assert (default.provider, default.why) == ("anthropic", "there is a key in ANTHROPIC_API_KEY (environment)")
    assert await registry.names.model_at("anthropic") == "claude-sonnet-5-5"


async def test_a_kept_key_means_the_api_too(tmp_path: Path) -> None:
    registry = registry_of({"KSI_CREDENTIALS_KEY": "a long enough passphrase"}, tmp_path)
    registry.credentials.set("ANTHROPIC_API_KEY", "canary")
    assert (await registry.default()).why == "there is a key in ANTHROPIC_API_KEY (file)"


@pytest.mark.parametrize(
    "files",
    [
        {"tokens": '{"claudeAiOauth": {"accessToken": "t"}}'},
        {"state": '{"userID": "u", "oauthAccount" : {"emailAddress": "e"}}'},
    ],
)
async def test_a_claude_code_that_is_logged_in_answers(tmp_path: Path, files: dict[str, str]) -> None:
    registry = registry_of(claude_at(tmp_path, **files))
    default = await registry.default()
    assert (default.provider, default.found) == ("claude_cli", True)
    assert await registry.names.model_at("claude_cli") == "sonnet"


@pytest.mark.parametrize("files", [{}, {"state": '{"userID": "u", "oauthAccount": null}'}, {"tokens": "{}"}])
async def test_a_claude_code_that_is_not_logged_in_does_not(tmp_path: Path, files: dict[str, str]) -> None:
    default = await registry_of(claude_at(tmp_path, **files)).default()
    assert (default.provider, default.found) == ("external", False)
    assert "claude is on PATH, but not logged in" in default.why


async def test_where_claude_code_keeps_its_login_can_be_said(tmp_path: Path) -> None:
    environ = claude_at(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / ".claude.json").write_text('{"oauthAccount": {"a": 1}}')
    assert (
        await registry_of(environ | {"CLAUDE_CONFIG_DIR": str(tmp_path / "own")}).default()
    ).provider == "claude_cli"
    assert (await registry_of(environ).default()).provider == "external"


async def test_a_server_for_local_models_answers_with_its_first_model_for_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "LOCAL", {"ollama": "Ollama", "lm_studio": "LM Studio"})
    async with serving(ok({"data": None})) as empty, serving(ok(MODELS)) as full:
        (tmp_path / "profiles.yaml").write_text(f"ollama: {{base_url: '{empty}'}}\nlm_studio: {{base_url: '{full}'}}\n")
        registry = registry_of({}, tmp_path)
        assert await registry.default() == Default(
            provider="openai_compatible@lm_studio", model="qwen3:8b", why="LM Studio runs on this machine"
        )
        named = await registry.names.named("lm_studio")
        assert named is not None
        assert (named.provider(None), named.model) == ("openai_compatible@lm_studio", "qwen3:8b")
        with pytest.raises(Invalid, match="no model is named for provider 'openai_compatible@ollama'"):
            await registry.names.named("ollama")


async def test_a_configured_base_url_comes_before_what_is_found(tmp_path: Path) -> None:
    environ = claude_at(tmp_path, tokens='{"accessToken": "t"}')
    async with serving(ok(MODELS)) as url:
        registry = registry_of(environ, openai_compatible={"base_url": url})
        default = await registry.default()
        assert (default.provider, default.model) == ("openai_compatible", None)
        assert await registry.names.model_at("openai_compatible") == "qwen3:8b"
    far = registry_of(environ, openai_compatible={"base_url": "https://far.example/v1"})
    with pytest.raises(Invalid, match="no model is named"):
        await far.names.model_at("openai_compatible")


async def test_nobody_is_said_once_and_to_whoever_spawns(caplog: pytest.LogCaptureFixture) -> None:
    registry = registry_of({})
    assert registry.note("external") is None  # nobody has asked yet
    with caplog.at_level(logging.INFO):
        first, second = await asyncio.gather(registry.default(), registry.default())
    assert first is second
    assert (first.provider, first.found) == ("external", False)
    assert len(caplog.records) == 1
    assert "completion_answer" in str(registry.note("external"))
    assert registry.note("anthropic") is None
    named = registry_of({}, provider="external")
    await named.default()
    assert named.note("external") is None  # the operator wanted it so


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b"HTTP/1.1 500 No\r\n\r\n" + json.dumps(MODELS).encode(),
        b"HTTP/1.1 200 OK\r\n\r\n[1]",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
        _silent,
    ],
)
async def test_a_server_that_says_nothing_usable_is_none(answer: bytes | Answer) -> None:
    async with serving(answer) as url:
        assert await models_of(url) is None


async def test_names_that_could_be_no_model_are_left_out() -> None:
    async with serving(ok({"data": [{"id": "a\nb"}, {"id": 7}, {}, "x", {"id": "y" * 201}, {"id": "fine"}]})) as url:
        assert await models_of(url) == ["fine"]
    async with serving(ok({"data": 7})) as url:
        assert await models_of(url) == []


@pytest.mark.parametrize("url", ["https://127.0.0.1:1/v1", "http://example.com/v1", "http://10.0.0.1/v1"])
async def test_only_this_machine_is_asked(url: str) -> None:
    assert await models_of(url) is None
