"""Prefetching in a running server: what it saves, what ends it, and that every micro-dollar of it is in the books."""

from __future__ import annotations

import asyncio
import os
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
USAGE = {"input_tokens": 100, "output_tokens": 10}
COST_USD = 0.00012
QUICK = {"default": {"reply": "{{agent}}: {{prompt}} ({{turn}})", "usage": USAGE}}
SLOW = {"default": {"reply": "{{prompt}}", "latency_s": 60, "usage": USAGE}}


def states(house: Any) -> list[str]:
    return [state for (state,) in house.rows("SELECT state FROM prefetch ORDER BY prefetch_id")]


async def test_a_prompt_that_was_foreseen_is_answered_for_nothing(open_house) -> None:
    async with open_house(QUICK) as house:
        await house.spawn("a")
        assert (await house.ask("a", "first"))["text"] == "a: first (1)"
        await house.call("completion_prefetch", agent="a", prompts=["second", "or this"])
        await house.until(lambda: states(house) == ["answered", "answered"])
        turn = await house.ask("a", "second")
        assert (turn["status"], turn["text"], turn["reused"]) == ("done", "a: second (2)", True)
        assert turn.get("cost_usd", 0) == 0
        assert house.rows("SELECT COUNT(*) FROM provider_call WHERE reused_from IS NULL") == [(1,)]
        assert house.events("completion:result")[-1]["reused"] is True
        # The answer is part of the conversation like any other, and the guess that was wrong is of no use any more.
        assert (await house.ask("a", "or this"))["text"] == "a: or this (3)"
        assert states(house) in (["used", "answered"], ["used", "stale"])
        shown = (await house.call("completion_prefetch", agent="a"))["prefetches"]
        assert [one["status"] for one in shown] == ["stale", "used"]
        assert shown[1]["used_by"] == turn["turn"]
        house.books()


async def test_a_turn_waits_for_the_answer_that_is_on_its_way_instead_of_buying_it_again(open_house) -> None:
    script = {"replies": [{"match": {"prompt": "soon"}, "reply": "here", "latency_s": 1, "usage": USAGE}]}
    async with open_house(script) as house:
        await house.spawn("a")
        await house.call("completion_prefetch", agent="a", prompts=["soon"])
        await house.started()
        turn = (await house.call("agent_send", agent="a", message="soon"))["turn"]
        await house.until(lambda: house.rows("SELECT state FROM turn") == [("retrying",)])
        house.gate.opened.set()
        (done,) = (await house.call("agent_wait", turns=[turn], timeout_s=20))["turns"]
        assert (done["status"], done["text"], done["reused"], done["cost_usd"]) == ("done", "here", True, 0)
        assert house.rows("SELECT COUNT(*) FROM provider_call WHERE reused_from IS NULL") == [(0,)]
        house.books()


async def test_another_prompt_is_answered_by_the_model(open_house) -> None:
    async with open_house(QUICK) as house:
        await house.spawn("a")
        await house.call("completion_prefetch", agent="a", prompts=["this"])
        await house.until(lambda: states(house) == ["answered"])
        turn = await house.ask("a", "that")
        assert turn["text"] == "a: that (1)"
        assert "reused" not in turn
        assert (await house.ask("a", "this"))["text"] == "a: this (2)"
        shown = (await house.call("completion_prefetch", agent="a"))["prefetches"]
        assert [one["status"] for one in shown] == ["stale"]
        house.books()


async def test_a_turn_that_waits_for_a_place_takes_that_of_a_prefetch(open_house) -> None:
    async with open_house(SLOW, worker={"concurrency": 3}) as house:
        await house.spawn("a")
        await house.call("completion_prefetch", agent="a", prompts=["one"])
        await house.started()
        for number in range(4):
            await house.spawn(f"b{number}")
            await house.call("agent_send", agent=f"b{number}", message="go")
        await house.until(lambda: states(house) == ["cancelled"])
        house.gate.opened.set()
        await house.call("agent_wait", agents=[f"b{number}" for number in range(4)], timeout_s=20)
        (told,) = house.events("completion:prefetched")
        assert told["reason"] == "a turn waited for its place"
        assert told["cost_usd_micros"] > 120
        house.books()


async def test_an_account_that_is_used_up_answers_no_more_and_the_run_goes_on(open_house) -> None:
    async with open_house(QUICK, prefetch={"usd_share": 0.5}) as house:
        agent = await house.spawn("a", budget={"usd": 0.02})
        await house.call("completion_prefetch", agent="a", prompts=["one", "two"])
        # The worst case of a call is more than half of the limit: the second waits until the first has cost less.
        await house.until(lambda: states(house) == ["answered", "answered"])
        await house.call("budget_set", account=f"p_{agent}", limits={"usd": 0.005})
        await house.call("completion_prefetch", agent="a", prompts=["three"])
        await house.until(lambda: states(house)[-1] == "failed")
        assert (await house.ask("a", "three"))["status"] == "done"
        accounts = {
            each["account"]: each["spent_usd"]
            for each in (await house.call("budget_status", account=f"p_{agent}"))["accounts"]
        }
        assert accounts == {"global": 3 * COST_USD, agent: 3 * COST_USD, f"p_{agent}": 2 * COST_USD}
        house.books()


async def test_tools_are_for_turns_so_an_answer_that_asks_for_them_is_not_kept(open_house) -> None:
    script = {
        "replies": [
            {
                "match": {"round": 1},
                "tool_calls": [{"name": "event_emit", "input": {"event": "note:x", "data": {}}}],
                "usage": USAGE,
            }
        ],
        "default": {"reply": "done", "usage": USAGE},
    }
    async with open_house(script) as house:
        await house.spawn("a", ("base", "messaging"))
        await house.call("completion_prefetch", agent="a", prompts=["go"])
        await house.until(lambda: states(house) == ["failed"])
        assert house.events("note:x") == []
        assert (await house.ask("a", "go"))["text"] == "done"
        assert len(house.events("note:x")) == 1
        house.books()


SLOW_SCRIPT = 'default: {reply: "{{prompt}}", latency_s: 60}\n'
CONFIG = """
provider: scripted
scripted: {script: script.yaml}
worker: {concurrency: 8, idle_s: 0}
prices: {m: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}
"""


@pytest.mark.timeout(60)
async def test_a_prefetch_of_a_killed_worker_is_paid_in_full_once(tmp_path: Path) -> None:
    (tmp_path / "script.yaml").write_text(SLOW_SCRIPT)
    (tmp_path / "config.yaml").write_text(CONFIG)
    async with App(Home(root=tmp_path), AppOptions(worker="none")) as app:

        async def call(tool: str, **args: Any) -> None:
            await app.toolbox.call(fresh_context(OPERATOR), tool, args)

        await call("agent_spawn", name="a", prompt="help", model="m", capabilities=[])
        await call("completion_prefetch", agent="a", prompts=["one"])
        assert await app.unfinished()
    worker = start_worker(tmp_path)
    async with asyncio.timeout(30):
        while asked(tmp_path, "SELECT state FROM prefetch") != [("sent",)]:  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait(10)
    ((reserved,),) = asked(tmp_path, "SELECT reserved_usd_micros FROM hold WHERE state = 'sent'")
    for _ in range(2):
        assert await asyncio.to_thread(start_worker(tmp_path).wait, 30) == 0
    assert asked(tmp_path, "SELECT state, error, cost_usd_micros FROM prefetch") == [
        ("cancelled", "the worker was lost", reserved)
    ]
    assert asked(tmp_path, "SELECT spent_usd_micros, reserved_usd_micros FROM account") == [(reserved, 0)] * 3


def asked(home: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(home / "ksi.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def start_worker(home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ksi_mcp", "worker", "--home", str(home), "--until-idle", "0"]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
