"""The server as a process of its own, as a client starts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

PROJECT = Path(__file__).parents[2]
HANG_S = 15
"""It ends well within 2 s; the bound only has to be far below the 50 s that a call at work waits."""
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


def command(home, *more: str) -> list[str]:
    return ["-m", "ksi_mcp", "serve", "--home", str(home.root), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT)}


async def ask(process, message: dict | bytes) -> dict:
    line = message if isinstance(message, bytes) else json.dumps(message).encode()
    process.stdin.write(line + b"\n")
    await process.stdin.drain()
    return json.loads(await asyncio.wait_for(process.stdout.readline(), 20))


def call(name: str, arguments: dict, id: int = 2) -> dict:
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


def processes(home) -> dict[int, str]:
    """The processes that were started for this data folder, by id."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(home.root) in line:
                    found[int(folder.name)] = line
    return found


@pytest.mark.parametrize(("era", "script"), [("auto", False), ("legacy", True)], indirect=["era"])
async def test_a_client_starts_the_server_and_has_an_agent_answer(home, era, script):
    args = [str(PROJECT / "server.py")] if script else command(home, "--worker", "inside")
    env = environment() | {"KSI_HOME": str(home.root)}
    async with Client(StdioServerParameters(command=sys.executable, args=args, env=env), mode=era) as client:
        await client.call_tool("agent_spawn", {"prompt": "You answer.", "name": "one"})
        result = await client.call_tool("agent_send", {"agent": "one", "message": "hi", "wait_s": 20})
    assert result.structured_content["status"] == "done"
    assert "hi" in result.structured_content["text"]


@pytest.mark.parametrize("end", ["eof", "SIGTERM", "SIGINT"])
async def test_the_process_ends_promptly_even_while_a_call_waits(start, end):
    async with start("--worker", "inside") as process:
        await ask(process, INITIALIZE)
        await ask(process, call("agent_list", {}))
        process.stdin.write(json.dumps(call("event_wait", {"names": ["note:*"], "timeout_s": 50}, 3)).encode() + b"\n")
        await ask(process, call("agent_list", {}, 4))
        if end == "eof":
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, end))
        rest, errors = await asyncio.wait_for(process.communicate(), HANG_S)
    assert process.returncode == 0
    assert b"Traceback" not in errors
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in rest.splitlines())


async def test_a_detached_worker_finishes_for_another_client_and_then_leaves_nothing(home, start):
    async with start() as process:
        await ask(process, INITIALIZE)
        await ask(process, call("agent_spawn", {"prompt": "x", "name": "one"}))
        sent = await ask(process, call("agent_send", {"agent": "one", "message": "hi"}, 3))
        process.stdin.close()
        await asyncio.wait_for(process.wait(), HANG_S)
    turns = [sent["result"]["structuredContent"]["turn"]]
    async with Client(StdioServerParameters(command=sys.executable, args=command(home), env=environment())) as second:
        result = await second.call_tool("agent_wait", {"turns": turns, "timeout_s": 30})
    assert result.structured_content["census"]["ok"] == 1
    for worker in processes(home):  # idle_s is 1 in the configuration: it may have left before we look
        with contextlib.suppress(ProcessLookupError):
            ending = os.pidfd_open(worker)
            ready, _, _ = await asyncio.to_thread(select.select, [ending], [], [], HANG_S)
            os.close(ending)
            assert ready
    assert processes(home) == {}


async def test_stdout_is_protocol_only_and_bad_lines_do_not_end_it(start):
    async with start("--worker", "none") as process:
        await ask(process, INITIALIZE)
        for bad in (b"not json", b'{"jsonrpc":"2.0"}', b'{"a":"\\ud800"}', b"\xff\xfe", b"", b"[" * 5_000):
            process.stdin.write(bad + b"\n")
        answer = await ask(process, call("agent_list", {}))
        while answer.get("id") != 2:
            answer = json.loads(await asyncio.wait_for(process.stdout.readline(), HANG_S))
        assert answer["result"]["structuredContent"] == {"agents": []}
        big = call("event_emit", {"event": "note:made", "data": {"x": "y" * 10_000_000}}, 3)
        refused = await ask(process, big)
        assert refused["result"]["isError"]
        assert "the limit is" in refused["result"]["content"][0]["text"]


async def test_a_file_name_that_is_no_text_does_not_end_the_connection(home, start):
    home.compositions.mkdir(exist_ok=True)
    broken = os.open(os.fsencode(home.compositions) + b"/bad\xff.yaml", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(broken, b"type: [")
    os.close(broken)
    async with start("--worker", "none") as process:
        await ask(process, INITIALIZE)
        answer = await ask(process, call("composition_discover", {}))
        found = answer["result"]["structuredContent"]
        assert found["problems"][0].startswith("user/bad?.yaml: ")
        assert json.loads(answer["result"]["content"][0]["text"]) == found


async def test_serving_loads_no_model_sdk():
    code = (
        "import sys, ksi_mcp.transports.stdio; "
        "print([name for name in ('anthropic', 'genai_prices', 'typer') if name in sys.modules])"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env=environment()
    )
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert out.strip() == b"[]"
