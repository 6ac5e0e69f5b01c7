"""How processes end: on the signal, in good order, with nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home
from ksi_mcp.permissions import OPERATOR, fresh_context

ROOT = Path(__file__).parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
HANG_S = 30
RUNNING = "SELECT COUNT(*) FROM turn WHERE state = 'running'"


def rows(home: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(home / "ksi.db", timeout=30)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():  # noqa: ASYNC110  another process rings no bell here
            await asyncio.sleep(0.02)


async def two_turns_each_for_two_agents(home: Path, *, latency_s: float) -> None:
    (home / "script.yaml").write_text(f"defaults: {{latency_s: {latency_s}}}\ndefault: {{reply: ok}}\n")
    (home / "config.yaml").write_text("provider: scripted\nscripted: {script: script.yaml}\n")
    async with App(Home(root=home), AppOptions(worker="none")) as app:
        for name in ("one", "two"):
            await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"name": name, "prompt": "x"})
            for _ in range(2):
                await app.toolbox.call(fresh_context(OPERATOR), "agent_send", {"agent": name, "message": "go"})


async def worker(home: Path) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "ksi_mcp", "worker", "--home", str(home)]
    return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=ENV)


async def test_a_worker_that_is_told_to_end_finishes_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    await two_turns_each_for_two_agents(tmp_path, latency_s=1)
    process = await worker(tmp_path)
    await until(lambda: rows(tmp_path, RUNNING) == [(2,)])
    process.send_signal(signal.SIGTERM)
    _, said = await asyncio.wait_for(process.communicate(), HANG_S)
    assert (process.returncode, said) == (0, b"")
    turns = rows(tmp_path, "SELECT seq, state, attempt FROM turn ORDER BY seq")
    assert turns == [(1, "done", 1), (1, "done", 1), (2, "ready", 0), (2, "ready", 0)]
    assert rows(tmp_path, "SELECT state FROM provider_call") == [("answered",), ("answered",)]
    assert rows(tmp_path, "SELECT COUNT(*) FROM hold WHERE state IN ('reserved', 'sent')") == [(0,)]


async def test_a_worker_that_is_told_twice_ends_at_once_and_the_next_one_takes_over(tmp_path: Path) -> None:
    await two_turns_each_for_two_agents(tmp_path, latency_s=600)
    process = await worker(tmp_path)
    await until(lambda: rows(tmp_path, RUNNING) == [(2,)])
    process.send_signal(signal.SIGTERM)
    while process.returncode is None:  # the first has to arrive before the second
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 0.2)
        except TimeoutError:
            continue
    await process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert rows(tmp_path, RUNNING) == [(2,)]
    (tmp_path / "script.yaml").write_text("default: {reply: ok}\n")
    async with App(Home(root=tmp_path), AppOptions(worker="inside")) as app:
        asked = {"agents": ["one", "two"], "timeout_s": 30}
        done = (await app.toolbox.call(fresh_context(OPERATOR), "agent_wait", asked)).data
    assert done["census"]["ok"] == 2


async def test_a_worker_with_nothing_to_do_ends_on_the_first_signal(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("provider: scripted\n")
    process = await worker(tmp_path)
    await until(lambda: (tmp_path / "ksi.db").exists() and "account" in _tables(tmp_path))
    await until(lambda: rows(tmp_path, "SELECT COUNT(*) FROM account") == [(1,)])
    process.send_signal(signal.SIGTERM)
    _, said = await asyncio.wait_for(process.communicate(), HANG_S)
    assert (process.returncode, said) == (0, b"")


def _tables(home: Path) -> set[str]:
    return {row[0] for row in rows(home, "SELECT name FROM sqlite_master")}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds children through /proc")
async def test_a_server_whose_client_hangs_up_in_the_middle_of_a_turn_leaves_no_child(tmp_path: Path) -> None:
    await two_turns_each_for_two_agents(tmp_path, latency_s=600)
    command = [sys.executable, "-m", "ksi_mcp", "serve", "--worker", "inside", "--home", str(tmp_path)]
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=ENV)
    await until(lambda: rows(tmp_path, RUNNING) == [(2,)])
    assert server.stdin is not None
    server.stdin.close()
    _, said = await asyncio.wait_for(server.communicate(), HANG_S)
    assert server.returncode == 0
    assert b"Traceback" not in said
    assert processes_that_name(str(tmp_path)) == []


def processes_that_name(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
            if text in line:
                found.append(line)
    return found
