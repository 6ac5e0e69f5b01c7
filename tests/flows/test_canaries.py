"""No credential gets anywhere: a run with keys that can be recognised, good calls and bad ones, then a look at all."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.doctor import _look
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import KsiError
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimServer

CANARIES = {
    "ANTHROPIC_API_KEY": "sk-ant-canary-4f1d9a7be02c5d38",
    "OPENROUTER_KEY": "orkey_canary_93bd20c1aa77e1f0",
    "TOOLS_TOKEN": "toolcanary5512fe90b7c34d8a",
}
ECHO = str(Path(__file__).parents[1] / "providers" / "echo_server.py")
# What a careless server may do: quote the key that it was given.
GIVEN = {"claude*": CANARIES["ANTHROPIC_API_KEY"], "local": CANARIES["OPENROUTER_KEY"]}
SCRIPT = {
    "replies": [
        entry
        for model, key in GIVEN.items()
        for entry in (
            {"match": {"prompt": "bad key", "model": model}, "fail": {"kind": "auth", "message": f"invalid key {key}"}},
            {"match": {"prompt": "too much", "model": model}, "fail": {"kind": "request", "message": f"not {key}!"}},
        )
    ]
    + [{"match": {"prompt": "break off"}, "reply": "once upon", "fail": {"kind": "drop", "after_chars": 4}}],
    "default": {"reply": "fine"},
}
PROMPTS = ("hello", "bad key", "too much", "break off")


def leaks(text: str | bytes) -> list[str]:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    return [name for name, canary in CANARIES.items() if canary.encode() in raw]


def leaks_in_files(root: Path) -> dict[str, list[str]]:
    return {str(path.relative_to(root)): leaks(path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def arguments_of_children() -> bytes:
    """The command lines of all processes below this one."""
    found = b""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                found += (folder / "cmdline").read_bytes() + b"\n"
        except (OSError, ValueError):
            continue
    return found


async def test_no_key_is_found_anywhere_after_calls_of_every_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[str] = []
    async with SimServer(Script(parse_script(SCRIPT))) as sim:
        config = Config(
            provider="anthropic",
            model="claude-haiku-5-5",
            anthropic={"base_url": sim.url},  # type: ignore[arg-type]
            openai_compatible={"base_url": f"{sim.url}/v1", "api_key_env": "OPENROUTER_KEY"},  # type: ignore[arg-type]
            mcp_servers={  # type: ignore[arg-type]
                "echo": {"command": sys.executable, "args": [ECHO], "env": {"TOKEN": "${TOOLS_TOKEN}"}}
            },
            prices={"local": "free"},
            log_level="DEBUG",
        )
        home = Home(root=tmp_path / "home")
        home.root.mkdir()
        environ = {**CANARIES, "PATH": os.environ["PATH"]}
        async with App(home, AppOptions(worker="inside", environ=environ), config=config) as app:

            async def call(tool: str, **args: Any) -> dict[str, Any]:
                try:
                    return (await app.toolbox.call(fresh_context(OPERATOR), tool, args)).data
                except KsiError as error:
                    errors.append(error.text())
                    return {}

            document = {
                "name": "worker", "type": "agent", "prompt": "You help.", "capabilities": ["base"],
                "mcp_servers": ["echo"],
            }  # fmt: skip
            await call("composition_create", document=document)
            for number, prompt in enumerate(PROMPTS):
                for kind, model in (("anthropic", "claude-haiku-5-5"), ("openai_compatible", "local")):
                    name = f"{kind}{number}"
                    await call("agent_spawn", composition="worker", name=name, provider=kind, model=model)
                    turn = await call("agent_send", agent=name, message=prompt)
                    if prompt != "break off":
                        await call("agent_wait", turns=[turn["turn"]], timeout_s=20)
            async with asyncio.timeout(20):
                while not (await call("event_query", names=["completion:retrying"]))["events"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            seen = arguments_of_children()
            said = json.dumps([await call(tool) for tool in ("agent_list", "event_query", "budget_status", "help")])
            shown = json.dumps(await _look(home, config, None), default=str)
    assert b"echo_server" in seen  # its process was there to be looked at
    assert "[key]" in said  # the servers did quote them
    assert leaks(seen) == leaks(said) == leaks(shown) == leaks("\n".join(errors)) == []
    written = leaks_in_files(tmp_path)
    assert "home/ksi.db" in written
    assert {name: found for name, found in written.items() if found} == {}
    assert leaks("\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)) == []
    out, err = capfd.readouterr()
    assert leaks(out + err) == []
