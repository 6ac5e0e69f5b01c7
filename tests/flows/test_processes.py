"""Real processes: killed with -9, two at once on one data folder, and none left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home
from ksi_mcp.permissions import OPERATOR, fresh_context

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes through /proc")

SCRIPT = """
defaults: {latency_s: 0.25}
default: {reply: "{{agent}} answers {{prompt}}"}
"""
CONFIG = """
provider: scripted
scripted: {script: script.yaml}
worker: {concurrency: 4, idle_s: 1}
"""
AGENTS, TURNS = 6, 4


def prepared(home: Path) -> Path:
    home.mkdir()
    (home / "script.yaml").write_text(SCRIPT)
    (home / "config.yaml").write_text(CONFIG)
    return home


@asynccontextmanager
async def client_on(home: Path) -> AsyncIterator[Client]:
    """A real client on a real server process."""
    arguments = ["-m", "ksi_mcp", "serve", "--home", str(home)]
    root = str(Path(__file__).parent.parent.parent)
    server = StdioServerParameters(command=sys.executable, args=arguments, env={"PYTHONPATH": root})
    async with Client(server) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


def processes(home: Path, command: str) -> list[int]:
    """The processes of ours that run `command` on that data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "ksi_mcp" in words and command in words and str(home) in words:
                found.append(int(entry.name))
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def rows(home: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(home / "ksi.db", timeout=30)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def until(condition: Any, *, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  other processes ring no bell here
            await asyncio.sleep(0.05)


async def spawn_and_send(client: Client) -> list[str]:
    """All agents with all their turns queued; the ids of the turns."""
    for i in range(AGENTS):
        await call(client, "agent_spawn", name=f"agent{i}", prompt="answer")
    return [
        (await call(client, "agent_send", agent=f"agent{i}", message=f"question {n}"))["turn"]
        for n in range(TURNS)
        for i in range(AGENTS)
    ]


async def test_after_kill_9_of_server_and_worker_every_queued_turn_is_done_once(tmp_path: Path) -> None:
    home = prepared(tmp_path / "home")
    turns: list[str] = []
    with killed_server():
        async with client_on(home) as client:
            turns = await spawn_and_send(client)
            await until(lambda: rows(home, "SELECT COUNT(*) FROM turn WHERE state = 'done'")[0][0] >= AGENTS)
            kill(processes(home, "worker") + processes(home, "serve"))
            raise ConnectionError("the server was killed")
    finished = rows(home, "SELECT turn_id, attempt, finished_at_ms FROM turn WHERE state = 'done'")
    assert AGENTS <= len(finished) < len(turns)

    async with client_on(home) as client:
        gathered = await call(client, "agent_wait", turns=turns, timeout_s=40)
    assert gathered["census"] == {
        "asked": AGENTS * TURNS, "ok": AGENTS * TURNS, "failed": 0, "cancelled": 0, "timed_out": 0, "pending": 0,
    }  # fmt: skip
    # Finished ones were not touched again, every turn has one stored answer, and order was kept.
    after = {row[0]: row for row in rows(home, "SELECT turn_id, attempt, finished_at_ms FROM turn")}
    assert all(after[row[0]] == row for row in finished)
    answered = rows(home, "SELECT turn_id, COUNT(*) FROM provider_call WHERE state = 'answered' GROUP BY turn_id")
    assert sorted(answered) == sorted((turn, 1) for turn in turns)
    cut_off = rows(home, "SELECT COUNT(*) FROM provider_call WHERE state <> 'answered'")[0][0]
    assert cut_off <= 4
    assert rows(home, "SELECT COUNT(*) FROM hold WHERE state IN ('reserved', 'sent')") == [(0,)]
    assert rows(home, "SELECT SUM(reserved_tokens) FROM account") == [(0,)]
    for (session,) in rows(home, "SELECT session_id FROM session"):
        ends = rows(home, f"SELECT finished_at_ms FROM turn WHERE session_id = '{session}' ORDER BY seq")
        assert ends == sorted(ends)
    await until(lambda: not processes(home, "worker"))


async def test_whoever_enqueues_and_leaves_at_once_leaves_the_work_to_a_worker(tmp_path: Path) -> None:
    home = Home(root=tmp_path)
    home.config.write_text("provider: scripted\nworker: {idle_s: 0.5}\n")
    ctx = fresh_context(OPERATOR)
    async with App(home, AppOptions(worker="none")) as app:
        await app.toolbox.call(ctx, "agent_spawn", {"prompt": "x", "name": "a"})
    async with App(home, AppOptions(worker="detached")) as app:
        sent = (await app.toolbox.call(ctx, "agent_send", {"agent": "a", "message": "hi"})).data
    async with App(home, AppOptions(worker="none")) as app:  # it starts none
        waited = (await app.toolbox.call(ctx, "agent_wait", {"turns": [sent["turn"]], "timeout_s": 30})).data
    assert waited["census"]["ok"] == 1


async def test_whoever_is_told_to_stop_while_it_leaves_still_closes_the_store(tmp_path: Path) -> None:
    home = Home(root=tmp_path)
    home.config.write_text("provider: scripted\nworker: {idle_s: 0.5}\n")
    app, sent = App(home, AppOptions(worker="detached")), asyncio.Event()

    async def enqueue() -> None:
        async with app:
            await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"prompt": "x", "name": "a"})
            await app.toolbox.call(fresh_context(OPERATOR), "agent_send", {"agent": "a", "message": "hi"})
            sent.set()

    leaving = asyncio.create_task(enqueue())
    await sent.wait()
    await asyncio.sleep(0)
    assert not leaving.done()  # it sees to it that a worker begins
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await until(lambda: not any("connection_worker" in thread.name for thread in threading.enumerate()))
    if (worker := app._launcher._child) is not None:
        await asyncio.to_thread(worker.wait, 30)


async def test_whoever_is_told_to_stop_while_it_closes_closes_all_the_same(tmp_path: Path) -> None:
    for turns in range(30):  # of the loop: at every moment of the closing
        opened = asyncio.Event()

        async def look(opened: asyncio.Event) -> None:
            async with App(Home(root=tmp_path), AppOptions(worker="none")):
                opened.set()

        closing = asyncio.create_task(look(opened))
        await opened.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
    await until(lambda: not any("connection_worker" in thread.name for thread in threading.enumerate()))


async def test_two_servers_share_one_worker_and_a_run_outlives_both(tmp_path: Path) -> None:
    home = prepared(tmp_path / "home")
    with killed_server():
        async with client_on(home) as one, client_on(home) as two:
            turns = await spawn_and_send(one)
            listed = await call(two, "agent_list")
            assert len(listed["agents"]) == AGENTS
            first = await call(two, "agent_wait", turns=turns[:1], timeout_s=20)
            assert first["census"]["ok"] == 1
            assert len(processes(home, "worker")) == 1
            assert len(processes(home, "serve")) == 2
            kill(processes(home, "serve"))
            raise ConnectionError("both servers were killed")
    assert processes(home, "serve") == []
    async with client_on(home) as third:
        gathered = await call(third, "agent_wait", turns=turns, timeout_s=40)
        assert gathered["census"]["ok"] == AGENTS * TURNS
        assert len(processes(home, "worker")) <= 1
    calls = rows(home, "SELECT turn_id, COUNT(*), MAX(attempt) FROM provider_call GROUP BY turn_id")
    assert sorted(calls) == sorted((turn, 1, 1) for turn in turns)
    await until(lambda: not processes(home, "worker"))
    assert processes(home, "serve") == []
    assert processes(home, "worker") == []


class killed_server:  # noqa: N801  reads as what it is
    """A client whose server was killed ends with errors of its own; what we raised is among them."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> bool:
        assert value is not None
        return _holds_connection_error(value)


def _holds_connection_error(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_holds_connection_error(each) for each in error.exceptions)
    return isinstance(error, ConnectionError)
