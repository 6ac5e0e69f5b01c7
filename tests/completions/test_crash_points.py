"""A worker may die at any moment. What it had committed is all that is left, so every commit of a run is tried."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

CALLS = [
    {"name": "event_emit", "input": {"event": "note:one", "data": {"n": 1}}},
    {"name": "event_query", "input": {"names": ["note:*"]}},
    {"name": "event_emit", "input": {"event": "note:two", "data": {"n": 2}}},
]
USAGE = {"input_tokens": 100, "output_tokens": 10}
SCRIPT = {
    "replies": [
        {"match": {"round": 1}, "reply": "first", "tool_calls": CALLS, "usage": USAGE},
        {"match": {"round": 2}, "reply": "last", "usage": USAGE},
    ]
}


class Snapshots:
    """Copies the database's files whenever a transaction begins: what a power cut would leave at that moment."""

    def __init__(self, database: Path, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self.taken: list[Path] = []

    def __call__(self, statement: str) -> None:
        if statement != "BEGIN IMMEDIATE":
            return
        home = self._folder / f"crash{len(self.taken)}"
        home.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{self._database}{suffix}", home / f"ksi.db{suffix}")
        self.taken.append(home)


def looked_at(home: Path) -> dict[str, Any]:
    with sqlite3.connect(home / "ksi.db") as connection:
        turn = connection.execute("SELECT state FROM turn").fetchone()
        calls = connection.execute("SELECT call_id, round, state FROM provider_call ORDER BY call_id").fetchall()
        results = connection.execute("SELECT COUNT(*) FROM tool_call").fetchone()[0]
    connection.close()
    return {"state": turn and turn[0], "calls": calls, "results": results}


async def test_a_run_cut_off_after_any_of_its_commits_ends_as_if_nothing_had_happened(open_house, tmp_path) -> None:
    first = tmp_path / "first"
    async with open_house(SCRIPT, root=first) as house:
        await house.spawn("a", ("base",))
        snapshots = Snapshots(house.home.database, tmp_path)
        await house.app._db._writer._connection.set_trace_callback(snapshots)
        assert (await house.ask("a"))["status"] == "done"
        await house.app._db.write(lambda tx: None)  # one more transaction, to see the end of the last one
        await house.app._db._writer._connection.set_trace_callback(None)

    stages = set()
    for home in snapshots.taken:
        left = looked_at(home)
        if left["state"] is None:
            continue  # the message itself was not in yet
        stages.add((left["state"], tuple(state for _, _, state in left["calls"]), left["results"]))
        async with open_house(SCRIPT, root=home) as house:
            await house.until(lambda house=house: house.rows("SELECT state FROM turn") == [("done",)])
            await house.until(lambda house=house: not house.app.worker.busy)
            where = f"cut off at {left}"
            assert house.rows("SELECT result FROM turn") == [("last",)], where
            # What was stored is not bought again; what was under way is paid in full and bought once more.
            was_answered = [call for call in left["calls"] if call[2] == "answered"]
            was_open = [call_id for call_id, _, state in left["calls"] if state == "sent"]
            calls = house.rows("SELECT call_id, round, state FROM provider_call ORDER BY call_id")
            assert [call for call in calls if call in was_answered] == was_answered, where
            assert [number for _, number, state in calls if state == "answered"] == [1, 2], where
            assert [call_id for call_id, _, state in calls if state == "uncertain"] == was_open, where
            assert len(calls) == 2 + len(was_open), where
            # Effects once, and each with its result.
            assert house.events("note:one", "note:two") == [{"n": 1}, {"n": 2}], where
            assert house.rows("SELECT idx, is_error FROM tool_call ORDER BY idx") == [(0, 0), (1, 0), (2, 0)], where
            assert len(house.events("completion:result")) == 1, where
            holds = house.rows("SELECT uncertain, cost_tokens FROM hold WHERE state = 'settled' ORDER BY rowid")
            assert [tokens for uncertain, tokens in holds if not uncertain] == [110, 110], where
            assert len([1 for uncertain, _ in holds if uncertain]) == len(was_open), where
            house.books()
    # The moments that matter were all among them.
    assert {
        ("ready", (), 0),
        ("running", ("sent",), 0),
        ("running", ("answered",), 0),
        ("running", ("answered",), 1),
        ("running", ("answered",), 3),
        ("running", ("answered", "sent"), 3),
        ("done", ("answered", "answered"), 3),
    } <= stages


CHILD = """
import asyncio, sys, pathlib
from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.permissions import OPERATOR, fresh_context

async def main():
    config = Config(provider="scripted", scripted={"script": "script.yaml"})
    async with App(Home(root=pathlib.Path(sys.argv[1])), AppOptions(worker="inside"), config=config) as app:
        async def call(tool, **args):
            return (await app.toolbox.call(fresh_context(OPERATOR), tool, args)).data
        await call("agent_spawn", name="a", prompt="p", model="m", capabilities=["base"])
        async with app.services.journal.subscribe(lambda event: event.name == "note:one") as live:
            await call("agent_send", agent="a", message="go")
            await live.next(20)
        print("working", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def work_until_killed(home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, str(home)], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "working\n"
        finally:
            child.kill()


async def test_a_killed_process_leaves_its_turn_to_the_next(open_house, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # The second round hangs in the first process; the next one gets another script.
    slow = json.loads(json.dumps(SCRIPT))
    slow["replies"][1]["latency_s"] = 600
    (home / "script.yaml").write_text(json.dumps(slow))
    work_until_killed(home)
    async with open_house(SCRIPT, root=home) as house:
        await house.until(lambda: house.rows("SELECT state, result FROM turn") == [("done", "last")])
        await house.until(lambda: not house.app.worker.busy)
        assert house.events("note:one", "note:two") == [{"n": 1}, {"n": 2}]
        assert [state for _, state in house.calls() if state == "answered"] == ["answered"] * 2
        assert house.rows("SELECT attempt FROM turn") == [(2,)]
        house.books()
