"""Two hundred agents in mid-conversation, a suspension, `kill -9` of everything, and a new start."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from ksi_mcp.yamlio import dump

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes through /proc")

AGENTS, TURNS, AT_ONCE = 200, 3, 50
SCRIPT = """
defaults: {latency_s: 0.05}
replies:
  - {match: {round: 1}, reply: "", tool_calls: [{name: event_query, input: {limit: 1}}]}
  - {match: {round: 2}, reply: "{{agent}} answers {{prompt}}"}
"""
CONFIG = f"""
provider: scripted
model: m
scripted: {{script: script.yaml}}
worker: {{concurrency: {AT_ONCE}, idle_s: 1}}
"""


def prepared(home: Path) -> Path:
    (home / "compositions").mkdir(parents=True)
    (home / "script.yaml").write_text(SCRIPT)
    (home / "config.yaml").write_text(CONFIG)
    pattern = {
        "name": "crowd", "type": "orchestration", "version": "1.0.0", "description": "many",
        "agents": {f"agent{number}": {"prompt": "answer"} for number in range(AGENTS // 2)},
        "orchestration_logic": {"strategy": "ask all of them"},
    }  # fmt: skip
    (home / "compositions" / "crowd.yaml").write_text(dump(pattern), "utf-8")
    return home


@asynccontextmanager
async def client_on(home: Path) -> AsyncIterator[Client]:
    arguments = ["-m", "ksi_mcp", "serve", "--home", str(home)]
    root = str(Path(__file__).parent.parent.parent)
    async with Client(
        StdioServerParameters(command=sys.executable, args=arguments, env={"PYTHONPATH": root})
    ) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


def processes(home: Path) -> list[int]:
    """The processes of ours on that data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "ksi_mcp" in words and str(home) in words:
                found.append(int(entry.name))
    return found


def rows(home: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(home / "ksi.db", timeout=30)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  other processes ring no bell here
            await asyncio.sleep(0.05)


def count(home: Path, where: str) -> int:
    return int(rows(home, f"SELECT COUNT(*) FROM turn WHERE {where}")[0][0])


@contextmanager
def killed() -> Iterator[None]:
    """A client whose server was killed ends with errors of its own; what we raised is among them."""
    try:
        yield
    except BaseException as error:
        if not _holds_ours(error):
            raise


def _holds_ours(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_holds_ours(each) for each in error.exceptions)
    return isinstance(error, ConnectionError)


@pytest.mark.parametrize("mode", ["drain", "now"])
async def test_two_hundred_agents_are_suspended_killed_and_go_on(tmp_path: Path, mode: str) -> None:
    home = prepared(tmp_path / "home")
    run = ""
    with killed():
        async with client_on(home) as client:
            run = (await call(client, "orchestration_start", pattern="crowd"))["orchestration"]
            for number in range(AGENTS // 2, AGENTS):
                await call(client, "agent_spawn", name=f"agent{number}", prompt="answer", orchestration=run)
            for number in range(TURNS):
                asked = {"filter": {"orchestration": run}, "message": f"question {number}"}
                await call(client, "event_emit", event="agent:broadcast", data=asked)
            await until(lambda: count(home, "state = 'done'") >= AGENTS // 2)
            held = await call(client, "orchestration_control", orchestration=run, action="suspend", mode=mode)
            assert held["state"] == "suspended"
            for pid in processes(home):
                os.kill(pid, signal.SIGKILL)
            raise ConnectionError("everything was killed")
    await until(lambda: not processes(home))
    finished = rows(home, "SELECT turn_id, attempt, finished_at_ms FROM turn WHERE state = 'done'")
    assert AGENTS // 2 <= len(finished) < AGENTS * TURNS
    answered = rows(home, "SELECT call_id, answer FROM provider_call WHERE state = 'answered'")
    assert rows(home, "SELECT COUNT(*) FROM session WHERE pending > 0 AND suspended = 0") == [(0,)]

    async with client_on(home) as client:
        status = await call(client, "orchestration_status", orchestration=run)
        assert status["state"] == "suspended"
        assert (await call(client, "orchestration_control", orchestration=run, action="resume"))["state"] == "running"
        await until(lambda: count(home, "state = 'done'") == AGENTS * TURNS)
        status = await call(client, "orchestration_status", orchestration=run)
        assert status["census"]["ok"] == AGENTS * TURNS
    after = {row[0]: row for row in rows(home, "SELECT turn_id, attempt, finished_at_ms FROM turn")}
    assert all(after[row[0]] == row for row in finished)
    kept = dict(rows(home, "SELECT call_id, answer FROM provider_call WHERE state = 'answered'"))
    assert all(kept[call_id] == answer for call_id, answer in answered)
    calls = rows(home, "SELECT turn_id, round, COUNT(*) FROM provider_call WHERE state = 'answered' GROUP BY 1, 2")
    assert len(calls) == AGENTS * TURNS * 2
    assert {made for *_, made in calls} == {1}
    assert rows(home, "SELECT COUNT(*) FROM provider_call WHERE state <> 'answered'")[0][0] <= AT_ONCE
    assert rows(home, "SELECT COUNT(*) FROM hold WHERE state IN ('reserved', 'sent')") == [(0,)]
    order = rows(home, "SELECT session_id, finished_at_ms FROM turn ORDER BY session_id, seq")
    assert order == sorted(order)
    await until(lambda: not processes(home))
