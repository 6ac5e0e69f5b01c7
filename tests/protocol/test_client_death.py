"""A client that is killed in the middle of a wait: the work goes on, once, and everybody else finds all of it."""

from __future__ import annotations

import asyncio
import json
import os
import select
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes through /proc")

PROJECT = Path(__file__).parents[2]
HANG_S = 40
SCRIPT = """
replies:
  - {match: {prompt: slow}, reply: "{{agent}} took its time", latency_s: 3}
default: {reply: "{{agent}} was quick"}
"""

CLIENT = """
import asyncio, json, sys
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

era, where = sys.argv[1], json.loads(sys.argv[2])

async def heard(done, total, message):
    print("waiting", flush=True)

async def main():
    async with httpx2.AsyncClient(headers=where.get("headers"), timeout=60) as http:
        over_http = "url" in where
        server = streamable_http_client(where["url"], http_client=http) if over_http else StdioServerParameters(**where)
        async with Client(server, mode=era) as client:
            turns = []
            for name, message in (("one", "slow"), ("two", "quick"), ("three", "slow")):
                await client.call_tool("agent_spawn", {"name": name, "prompt": "You answer."})
                sent = await client.call_tool("agent_send", {"agent": name, "message": message})
                turns.append(sent.structured_content["turn"])
            print(json.dumps(turns), flush=True)
            await client.call_tool("agent_wait", {"turns": turns, "timeout_s": 50}, progress_callback=heard)
            print("answered", flush=True)

asyncio.run(main())
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT)}


def stdio(home) -> dict[str, Any]:
    arguments = ["-m", "ksi_mcp", "serve", "--home", str(home.root)]
    return {"command": sys.executable, "args": arguments, "env": environment()}


@asynccontextmanager
async def over_stdio(home, start) -> AsyncIterator[dict[str, Any]]:
    yield stdio(home)


@asynccontextmanager
async def over_http(home, start) -> AsyncIterator[dict[str, Any]]:
    async with start("--transport", "http", "--port", "0") as server:
        line = (await asyncio.wait_for(server.stderr.readline(), HANG_S)).decode()
        url = next(word for word in line.split() if word.startswith("http://"))
        yield {"url": url, "headers": {"Authorization": f"Bearer {home.token.read_text().strip()}"}}
        assert server.returncode is None


@asynccontextmanager
async def another(where: dict[str, Any], era: str) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        if "url" in where:
            http = await stack.enter_async_context(httpx2.AsyncClient(headers=where["headers"], timeout=60))
            yield await stack.enter_async_context(
                Client(streamable_http_client(where["url"], http_client=http), mode=era)
            )
        else:
            yield await stack.enter_async_context(Client(StdioServerParameters(**where), mode=era))


def processes(home, command: str) -> set[int]:
    """Ours that run `command` on that data folder."""
    found = set()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            words = (
                (folder / "cmdline").read_bytes().decode(errors="replace").split("\0") if folder.name.isdigit() else []
            )
            if command in words and str(home.root) in words:
                found.add(int(folder.name))
    return found


async def ended(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            ending = os.pidfd_open(pid)
            ready, _, _ = await asyncio.to_thread(select.select, [ending], [], [], HANG_S)
            os.close(ending)
            assert ready, "it still runs"


async def by_command_line(home, turns: list[str]) -> dict[str, Any]:
    call = ["-m", "ksi_mcp", "call", "agent_wait", json.dumps({"turns": turns, "timeout_s": 40}), "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *call, "--home", str(home.root), stdout=asyncio.subprocess.PIPE, env=environment()
    )
    out, _ = await asyncio.wait_for(process.communicate(), HANG_S)
    assert process.returncode == 0
    return json.loads(out)


def rows(home, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(home.database) as connection:
        found = connection.execute(sql).fetchall()
    connection.close()
    return found


def replies(waited: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {reply["turn"]: (reply["status"], reply["text"]) for reply in waited["turns"]}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("way", [over_stdio, over_http], ids=["stdio", "http"])
async def test_a_client_killed_in_the_middle_of_a_wait_loses_nothing(home, start, era, way):
    (home.root / "script.yaml").write_text(SCRIPT)
    (home.root / "config.yaml").write_text("provider: scripted\nscripted: {script: script.yaml}\nworker: {idle_s: 2}\n")
    async with way(home, start) as where:
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, era, json.dumps(where), stdout=asyncio.subprocess.PIPE, env=environment()
        )
        try:
            turns = json.loads(await asyncio.wait_for(client.stdout.readline(), HANG_S))
            assert await asyncio.wait_for(client.stdout.readline(), HANG_S) == b"waiting\n"
            workers, servers = processes(home, "worker"), processes(home, "serve")
            assert len(workers) == 1
        finally:
            client.kill()
            rest, _ = await client.communicate()
        assert b"answered" not in rest
        if way is over_stdio:
            await ended(servers)  # the server belongs to its client; the worker does not
        async with another(where, era) as second:
            result, waited = await asyncio.gather(
                second.call_tool("agent_wait", {"turns": turns, "timeout_s": 40}), by_command_line(home, turns)
            )
        assert not result.is_error
        seen = result.structured_content
        one, two, three = turns
        assert replies(seen) == {
            one: ("done", "one took its time"), two: ("done", "two was quick"), three: ("done", "three took its time")
        }  # fmt: skip
        assert replies(waited) == replies(seen)
        assert waited["census"] == seen["census"]
        assert (seen["census"]["ok"], seen["census"].get("pending", 0)) == (3, 0)
        assert processes(home, "worker") in (workers, set())  # the very same, or it had nothing more to do
    # Nothing ran twice: claimed once, asked once, answered once.
    assert rows(home, "SELECT turn_id, state, attempt FROM turn ORDER BY n") == [(turn, "done", 1) for turn in turns]
    calls = rows(home, "SELECT turn_id, state, COUNT(*) FROM provider_call GROUP BY turn_id, state")
    assert sorted(calls) == sorted((turn, "answered", 1) for turn in turns)
    ends = rows(home, "SELECT COUNT(*) FROM event WHERE name = 'completion:result'")
    assert ends == [(3,)]
    await ended(processes(home, "worker"))
