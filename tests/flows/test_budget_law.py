"""The budget law under load: no account is ever over its limit, and what is left at the end is less than one reserve.

Two hundred agents work at once against a limit that pays for 37 calls at their worst. This file is also the program
that each of the four processes runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import GLOBAL, Amount, Denied, Hold, Limits
from ksi_mcp.clock import SystemClock
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import SYSTEM, fresh_context

AGENTS = 200
PROCESSES = 4
WORST = Amount(usd_micros=1_000, tokens=500)
LIMIT = 37 * WORST.usd_micros
ROOT = Path(__file__).resolve().parents[2]


async def test_200_agents_at_once_never_overshoot_a_limit_that_pays_for_37_calls(open_house) -> None:
    script = {"default": {"reply": "done", "latency_s": 1, "usage": {"input_tokens": 10, "output_tokens": 3_000}}}
    async with open_house(script) as house:
        await house.run("o_1")
        await house.spawn("probe")
        house.gate.opened.set()
        await house.ask("probe")
        await house.started()
        house.gate.opened.clear()
        ((reserve,),) = house.rows("SELECT reserved_usd_micros FROM hold")
        for number in range(AGENTS):
            await house.spawn(f"a{number:04}", orchestration="o_1")
        limit = 37 * reserve
        await house.call("budget_set", account="o_1", limits={"usd": limit / 1e6})
        sent = [await house.call("agent_send", agent=f"a{n:04}", message="go") for n in range(AGENTS)]
        for _ in range(37):
            await house.started()
        blocked = "SELECT COUNT(*) FROM turn WHERE state = 'blocked'"
        await house.until(lambda: house.rows(blocked) == [(AGENTS - 37,)])  # they wait for what the 37 leave over
        account = "SELECT spent_usd_micros, reserved_usd_micros FROM account WHERE account_id = 'o_1'"
        assert house.rows(account) == [(0, limit)]
        house.gate.opened.set()
        done = await house.call("agent_wait", turns=[turn["turn"] for turn in sent], timeout_s=55)
        census = done["census"]
        assert census["ok"] + census["failed"] == AGENTS
        # What a call truly costs is less than its reserve, so more than 37 are paid for.
        assert 37 <= census["ok"] < AGENTS
        ((spent, reserved),) = house.rows(account)
        assert reserved == 0
        assert limit - reserve < spent <= limit
        assert {turn["error_class"] for turn in done["turns"] if turn["status"] == "failed"} == {"budget"}
        house.books()


async def test_four_processes_on_one_file_never_overshoot(tmp_path: Path) -> None:
    path = tmp_path / "ksi.db"
    db = await open_sqlite(path, SystemClock())
    ledger = Ledger(Journal(db, SystemClock()))

    def prepare(tx: Tx) -> None:
        ledger.open_global(tx, Limits())
        ledger.open(tx, "o_1", parent_id=GLOBAL, limits=Limits(usd_micros=LIMIT))
        for number in range(AGENTS):
            ledger.open(tx, f"a_{number}", parent_id="o_1", limits=Limits())

    await db.write(prepare)
    await db.close()
    children = [start(path, first) for first in range(0, AGENTS, AGENTS // PROCESSES)]
    for child in children:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == b"ready\n"
    answers = await asyncio.gather(*(asyncio.to_thread(child.communicate, b"go\n", 50) for child in children))
    told = [json.loads(out) for out, _ in answers]
    assert [child.returncode for child in children] == [0] * PROCESSES
    connection = sqlite3.connect(path)
    spent, reserved, tokens = connection.execute(
        "SELECT spent_usd_micros, reserved_usd_micros, spent_tokens FROM account WHERE account_id = 'o_1'"
    ).fetchone()
    holds = connection.execute(
        "SELECT COUNT(*), SUM(cost_usd_micros), SUM(cost_tokens), MAX(state) FROM hold"
    ).fetchone()
    shares = connection.execute("SELECT data FROM event WHERE name = 'budget:threshold' ORDER BY event_id").fetchall()
    connection.close()
    assert reserved == 0
    assert LIMIT - WORST.usd_micros < spent <= LIMIT
    assert holds == (sum(each["calls"] for each in told), spent, tokens, "settled")
    assert sum(each["denied"] for each in told) == AGENTS  # each went on until there was nothing left for it
    assert max(each["most"] for each in told) <= LIMIT  # at every commit that somebody made
    assert [json.loads(data)["percent"] for (data,) in shares] == [50, 80]


def start(path: Path, first: int) -> subprocess.Popen[bytes]:
    """A process with its share of the agents; it says when it is ready and waits for the word."""
    command = [sys.executable, __file__, str(path), str(first), str(AGENTS // PROCESSES)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=env)


class Crowd:
    """The agents of one process: each calls, at random costs, until it is denied."""

    def __init__(self, db: Any, first: int, count: int) -> None:
        self.db = db
        self.ledger = Ledger(Journal(db, SystemClock()))
        self.chance = random.Random(first)
        self.names = [f"a_{number}" for number in range(first, first + count)]
        self.told = {"calls": 0, "denied": 0, "most": 0}

    async def work(self) -> dict[str, int]:
        await asyncio.gather(*(self.agent(name) for name in self.names))
        return self.told

    async def agent(self, name: str) -> None:
        ctx = fresh_context(SYSTEM)
        while True:
            got = await self.db.write(lambda tx: self.reserve(tx, name))
            if isinstance(got, Denied):
                self.told["denied"] += 1
                return
            if not isinstance(got, Hold):
                await asyncio.sleep(0.005)  # what it waits for may happen in another process
                continue
            self.told["calls"] += 1
            await asyncio.sleep(self.chance.random() / 50)  # the call itself: others come and go meanwhile
            cost = Amount(usd_micros=self.chance.randint(0, WORST.usd_micros), tokens=self.chance.randint(0, 500))
            if self.chance.random() < 0.2:
                await self.db.write(lambda tx, got=got: self.ledger.settle_in_full(tx, got.hold_id, ctx))
            else:
                await self.db.write(lambda tx, got=got, cost=cost: self.ledger.settle(tx, got.hold_id, cost, ctx))

    def reserve(self, tx: Tx, name: str) -> Any:
        got = self.ledger.reserve(tx, name, turn_id=f"t_{name}", wanted=WORST, new_turn=False, sent=True)
        run = self.ledger.account(tx, "o_1")
        self.told["most"] = max(self.told["most"], run.spent_usd_micros + run.reserved_usd_micros)
        return got


async def main(path: str, first: int, count: int) -> None:
    db = await open_sqlite(path, SystemClock())
    try:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        told = await Crowd(db, first, count).work()
    finally:
        await db.close()
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
