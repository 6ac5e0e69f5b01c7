"""`ksi-mcp usage`: real processes on a data folder in which something was spent."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ksi_mcp.config import Config
from ksi_mcp.testing import open_test_app

ROOT = Path(__file__).parent.parent.parent
ENV = {
    **{
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANTHROPIC_", "OPENAI_", "KSI_")) and name not in ("COLUMNS", "LINES", "NO_COLOR")
    },
    "PYTHONPATH": str(ROOT),
}
PRICES = {"m": {"input_usd_per_mtok": 1000, "output_usd_per_mtok": 2000}}
REPLIES = [
    {
        "match": {"agent": "ada"},
        "reply": "ok",
        "usage": {"input_tokens": 300, "output_tokens": 100, "cache_read_tokens": 40},
    },
    {
        "match": {"agent": "bob"},
        "reply": "ok",
        "usage": {"input_tokens": 10, "output_tokens": 5},
        "fail": {"kind": "overload", "status": 529, "retry_after_s": 0, "times": 1},
    },
]


def usage(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ksi_mcp", "usage", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60, check=False)


@pytest.fixture
async def spent(tmp_path: Path) -> str:
    """ada and bob were asked once each; bob's first try failed."""
    config = Config(provider="scripted", prices=PRICES)
    async with open_test_app(home=tmp_path, replies=REPLIES, config=config) as app:
        for name in ("ada", "bob"):
            await app.call("agent_spawn", name=name, prompt="You answer.", model="m")
            await app.call("agent_send", agent=name, message="go", wait_s=20)
    return str(tmp_path)


async def test_the_tables_say_who_spent_what_and_what_failed(spent: str) -> None:
    shown = await asyncio.to_thread(usage, "--home", spent)
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [line.split() for line in shown.stdout.splitlines()]
    ada = next(line for line in lines if line[:1] == ["ada"])
    assert (ada[2], ada[-6:]) == ("$0.5400", ["1", "1", "0", "300", "100", "40"])
    assert next(line for line in lines if line[:1] == ["bob"])[-6:] == ["1", "2", "1", "10", "5", "0"]
    assert any(line[:2] == ["together", "$0.5600"] for line in lines)
    assert "outside of any run" in shown.stdout
    assert "scripted:m" in shown.stdout
    assert "1 of 3 calls failed, and were tried again or given up" in shown.stdout
    assert "40 tokens of input went through the provider's cache" in shown.stdout


async def test_json_has_the_report_and_what_must_be_known_to_read_it(spent: str) -> None:
    report = json.loads(
        (await asyncio.to_thread(usage, "--by", "day", "--since", "7d", "--json", "--home", spent)).stdout
    )
    assert report["total"]["usd_micros"] == 560_000
    assert [day["calls"] for day in report["days"]] == [3]
    assert report["unpriced_models"] == []
    assert "agents" not in report


async def test_what_is_not_known_is_said_and_not_shown_as_nothing(spent: str) -> None:
    with sqlite3.connect(Path(spent) / "ksi.db") as connection:
        connection.execute(
            "UPDATE provider_call SET provider = 'openai_compatible', model = 'odd', cost_usd_micros = 0"
            " WHERE input_tokens = 10"
        )
        connection.execute("UPDATE provider_call SET state = 'uncertain' WHERE input_tokens = 300")
        connection.execute("UPDATE provider_call SET provider = 'claude_cli' WHERE input_tokens = 300")
    connection.close()
    shown = (await asyncio.to_thread(usage, "--by", "model", "--home", spent)).stdout
    assert "unknown" in next(line for line in shown.splitlines() if line.startswith("openai_compatible:odd"))
    assert "no price is known for openai_compatible:odd: its calls count as $0" in shown
    assert "$0.5400 of it is uncertain: the cost of 1 calls was not learned, and booked in full" in shown
    assert "with a subscription's login it bills nothing for them" in shown


def test_nothing_spent_is_said_and_a_bad_moment_is_a_mistake(tmp_path: Path) -> None:
    assert "nothing was asked of a model in this time" in usage("--home", str(tmp_path)).stdout
    ended = usage("--since", "yesterday", "--home", str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "yesterday" in ended.stderr
