"""Strict order inside a session, sessions side by side: at a size where a slip would show."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home, WorkerConfig
from ksi_mcp.permissions import OPERATOR, fresh_context

SESSIONS, TURNS, IN_FLIGHT = 200, 10, 50


async def test_two_thousand_turns_keep_their_order_and_never_overlap_inside_a_session(tmp_path: Path) -> None:
    config = Config(provider="scripted", worker=WorkerConfig(concurrency=IN_FLIGHT))
    async with App(Home(root=tmp_path), AppOptions(worker="inside"), config=config) as app:

        async def call(tool: str, **args: Any) -> dict[str, Any]:
            return (await app.toolbox.call(fresh_context(OPERATOR), tool, args)).data

        for i in range(SESSIONS):
            await call("agent_spawn", prompt="count", name=f"agent{i}")
        turns: list[str] = []
        for n in range(TURNS):
            sent = await call("agent_broadcast", filter={"status": "active"}, message=f"number {n}")
            turns += [turn["turn"] for turn in sent["turns"]]
        assert len(turns) == SESSIONS * TURNS
        for start in range(0, len(turns), 1000):
            gathered = await call("agent_wait", turns=turns[start : start + 1000], timeout_s=55)
            assert gathered["census"]["ok"] == gathered["census"]["asked"] == 1000

    calls = _calls(tmp_path / "ksi.db")
    assert len(calls) == SESSIONS * TURNS
    by_session: dict[str, list[sqlite3.Row]] = defaultdict(list)
    for row in calls:
        by_session[row["session_id"]].append(row)
    assert len(by_session) == SESSIONS
    for rows in by_session.values():
        assert [row["prompt"] for row in rows] == [f"number {n}" for n in range(TURNS)]
        assert all(a["ended_at_ms"] <= b["sent_at_ms"] for a, b in pairwise(rows))
    assert IN_FLIGHT // 5 < _most_at_once(calls) <= IN_FLIGHT


def _calls(file: Path) -> list[sqlite3.Row]:
    """Every provider call, in the order in which they left."""
    connection = sqlite3.connect(file)
    connection.row_factory = sqlite3.Row
    rows = connection.execute(
        "SELECT t.session_id, t.prompt, c.sent_at_ms, c.ended_at_ms FROM provider_call c JOIN turn t USING (turn_id) "
        "ORDER BY c.call_id"
    ).fetchall()
    connection.close()
    return rows


def _most_at_once(calls: list[sqlite3.Row]) -> int:
    steps = sorted([(row["sent_at_ms"], 1) for row in calls] + [(row["ended_at_ms"], -1) for row in calls])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most
