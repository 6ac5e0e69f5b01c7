"""`kill -9` of the worker at random moments of a busy run: nothing lost, nothing twice, every micro-dollar booked."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home
from ksi_mcp.permissions import OPERATOR, fresh_context

ROOT = Path(__file__).parent.parent.parent
AGENTS, TURNS, KILLS = 15, 20, 8
SEEDS = 20 if os.environ.get("KSI_TEST_THOROUGH") else 1
"""CI tries twenty; each takes some seconds."""

SCRIPT = """
defaults: {latency_s: 0.02}
replies:
  - match: {prompt: "/fail/", round: 1}
    reply: "after failing {{prompt}}"
    fail: {kind: overload, retry_after_s: 0.05, times: 3}
  - match: {prompt: "/tool/", round: 1}
    tool_calls:
      - {name: event_emit, input: {event: "note:first", data: {of: "{{prompt}}"}}}
      - {name: event_emit, input: {event: "note:second", data: {of: "{{prompt}}"}}}
  - match: {prompt: "/tool/", round: 2}
    tool_calls: [{name: agent_send, input: {agent: "{{agent}}", message: "extra"}}]
  - match: {prompt: "/tool/", round: 3}
    reply: "done {{prompt}}"
default: {reply: "{{agent}} answers {{prompt}}"}
"""
CONFIG = """
provider: scripted
scripted: {script: script.yaml}
worker: {concurrency: 12, idle_s: 0}
budget: {usd: 1000}
prices: {claude-sonnet-5-5: {input_usd_per_mtok: 2, output_usd_per_mtok: 10}}
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
async def test_a_worker_killed_at_random_moments_loses_nothing_and_repeats_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    (tmp_path / "script.yaml").write_text(SCRIPT)
    (tmp_path / "config.yaml").write_text(CONFIG)
    kinds = [chance.choice(["plain", "plain", "tool", "fail"]) for _ in range(AGENTS * TURNS)]
    async with App(Home(root=tmp_path), AppOptions(worker="none")) as app:

        async def call(tool: str, **args: Any) -> dict[str, Any]:
            return (await app.toolbox.call(fresh_context(OPERATOR), tool, args)).data

        for i in range(AGENTS):
            await call("agent_spawn", name=f"agent{i}", prompt="work", capabilities=["base", "messaging"])
        await call("routing_add_rule", source_pattern="note:first", target="note:routed")
        for n, kind in enumerate(kinds):
            await call("agent_send", agent=f"agent{n % AGENTS}", message=f"{kind} {n}")

    for _ in range(KILLS):
        worker = start_worker(tmp_path)
        await begun(tmp_path, worker)
        await asyncio.sleep(chance.random() * 0.5)
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
    last = start_worker(tmp_path)
    await asyncio.to_thread(last.wait, 90)
    assert last.returncode == 0

    tools = kinds.count("tool")
    ask = sqlite3.connect(tmp_path / "ksi.db").execute
    assert ask("SELECT COUNT(*) FROM turn WHERE state IN ('done', 'failed')").fetchone() == (len(kinds) + tools,)
    # A retry that the kills brought to its last try may fail; nothing else may.
    assert ask("SELECT COUNT(*) FROM turn WHERE state = 'failed' AND prompt NOT LIKE 'fail%'").fetchone() == (0,)
    assert ask(
        "SELECT 1 FROM provider_call WHERE state = 'answered' GROUP BY turn_id, round HAVING COUNT(*) > 1"
    ).fetchall() == []  # fmt: skip
    for name in ("note:first", "note:second", "note:routed"):
        assert ask("SELECT COUNT(*), COUNT(DISTINCT data) FROM event WHERE name = ?", (name,)).fetchone() == (
            tools,
            tools,
        )
    assert ask("SELECT COUNT(*) FROM turn WHERE prompt = 'extra'").fetchone() == (tools,)
    assert ask("SELECT COUNT(*) FROM outbox").fetchone() == (0,)
    for (session,) in ask("SELECT session_id FROM session").fetchall():
        ends = ask("SELECT finished_at_ms FROM turn WHERE session_id = ? ORDER BY seq", (session,)).fetchall()
        assert ends == sorted(ends)

    spent, tokens, turns = ask(
        "SELECT spent_usd_micros, spent_tokens, spent_turns FROM account WHERE account_id = 'global'"
    ).fetchone()
    assert turns == len(kinds) + tools
    assert ask("SELECT SUM(reserved_usd_micros), SUM(reserved_tokens) FROM account").fetchone() == (0, 0)
    assert ask("SELECT COUNT(*) FROM hold WHERE state IN ('reserved', 'sent')").fetchone() == (0,)
    assert ask("SELECT SUM(cost_usd_micros), SUM(cost_tokens) FROM hold").fetchone() == (spent, tokens)
    assert ask("SELECT SUM(cost_usd_micros) FROM provider_call").fetchone() == (spent,)
    assert ask("SELECT SUM(cost_usd_micros), SUM(tokens) FROM turn").fetchone() == (spent, tokens)
    assert ask("SELECT COUNT(*) FROM provider_call WHERE state = 'uncertain'").fetchone()[0] > 0  # some were cut off
    assert ask("PRAGMA integrity_check").fetchone() == ("ok",)


async def begun(home: Path, worker: subprocess.Popen[bytes]) -> None:
    """Until that worker is at work; a kill before would cut nothing off."""
    ask = sqlite3.connect(home / "ksi.db").execute
    async with asyncio.timeout(30):
        while worker.poll() is None and not ask("SELECT 1 FROM worker WHERE pid = ?", (worker.pid,)).fetchall():  # noqa: ASYNC110  a row
            await asyncio.sleep(0.01)


def start_worker(home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ksi_mcp", "worker", "--home", str(home), "--until-idle", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
