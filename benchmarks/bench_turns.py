"""`turns`: how many durable turns a second go the whole way, when the model takes no time at all.

One, fifty and five hundred agents, each with a client that sends a message, waits for the reply and sends the next:
tool call, queue, claim, reservation, provider call, settlement, reply, events and their routing, every step stored at
`synchronous=FULL`. A real model takes seconds; this is what the house itself costs.

Beside it what others need for less: DBOS for a workflow with one step, without queue, budget or conversation (its
SQLite set to WAL and FULL by hand), and huey for a task that does nothing (WAL and FULL, as it comes).
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness import Figure, Peer, Result, main, run_child, scratch, setting, take_turns

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home, WorkerConfig
from ksi_mcp.db.sqlite import SqliteTx
from ksi_mcp.permissions import OPERATOR, fresh_context

AT_ONCE = (1, 50, 500)
TURNS = {1: 300, 50: 1_000, 500: 2_000}
"""Of all agents together, a run."""
PEER_TURNS = {1: 50, 50: 300, 500: 500}
"""Enough for a rate: a second or two each."""
PEER_RUNS = 5
WAIT_S = 50
PROFILED = 50


async def per_second(home: Path, at_once: int, started: Any = None) -> float:
    config = Config(provider="scripted", worker=WorkerConfig(concurrency=at_once))
    async with App(Home(root=home), AppOptions(worker="inside", environ={}), config=config) as app:
        names = [f"agent{n}" for n in range(at_once)]
        for name in names:
            await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"name": name, "prompt": "Count."})
        await asyncio.gather(*(talk(app, name, 1) for name in names))  # everything is loaded and open now
        if started is not None:
            started()
        began = time.perf_counter()
        await asyncio.gather(*(talk(app, name, TURNS[at_once] // at_once) for name in names))
        return TURNS[at_once] / (time.perf_counter() - began)


async def talk(app: App, name: str, turns: int) -> None:
    for number in range(turns):
        message = {"agent": name, "message": f"How far are you with part {number}?", "wait_s": WAIT_S}
        done = await app.toolbox.call(fresh_context(OPERATOR), "agent_send", message)
        if done.data["status"] != "done":
            raise SystemExit(f"a turn of {name} ended as {done.data}")


def child_turns(args: list[str]) -> float:
    return asyncio.run(per_second(Path(args[0]), int(args[1])))


def child_profile(args: list[str]) -> None:
    """`bench_turns.py --child profile DIR`: where the time of the event loop's thread goes."""
    profile = cProfile.Profile()
    profile.runcall(child_turns, [*args, str(PROFILED)])
    pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)


def child_statements(args: list[str]) -> None:
    """`bench_turns.py --child statements DIR`: what the database's threads do for a turn, in processor time."""
    count, spent_ns = Counter[str](), Counter[str]()

    def watched(run: Any) -> Any:
        def timed(tx: SqliteTx, name: str, params: dict[str, Any] | None = None, /) -> Any:
            began_ns = time.thread_time_ns()
            try:
                return run(tx, name, params)
            finally:
                count[name] += 1
                spent_ns[name] += time.thread_time_ns() - began_ns

        return timed

    for name in ("run", "one", "all"):
        setattr(SqliteTx, name, watched(getattr(SqliteTx, name)))
    began_ns = [0]

    def started() -> None:
        count.clear()
        spent_ns.clear()
        began_ns[0] = time.process_time_ns()

    asyncio.run(per_second(Path(args[0]), PROFILED, started))
    turns, whole_ns = TURNS[PROFILED], time.process_time_ns() - began_ns[0]
    print(f"{whole_ns / turns / 1000:.0f} us of processor a turn, {spent_ns.total() / turns / 1000:.0f} of them in")
    print(f"{count.total() / turns:.1f} statements:")
    for name, nanoseconds in spent_ns.most_common():
        of_each, of_turn = nanoseconds / count[name] / 1000, nanoseconds / turns / 1000
        print(f"{name:32}{count[name] / turns:7.2f} a turn{of_each:9.1f} us each{of_turn:8.1f} us a turn")


def measure(runs: int) -> Result:
    peers = [Peer("dbos", "dbos==3.4.*"), Peer("huey", "huey==3.5.*")]
    sides = {}
    for at_once in AT_ONCE:
        sides[f"ours {at_once}"] = lambda n=at_once: _ours(n)
        for peer in peers:
            if peer.available:
                sides[f"{peer.name} {at_once}"] = lambda n=at_once, peer=peer: _peer(peer, n)
    found = take_turns(runs, sides, fewer={side: PEER_RUNS for side in sides if not side.startswith("ours")})

    def figures(side: str) -> list[Figure]:
        return [
            Figure(
                key=f"per_second_at_{n}",
                values=found[f"{side} {n}"],
                unit="1/s",
                goal=2_000 if (side, n) == ("ours", 50) else None,
                at_most=False,
            )
            for n in AT_ONCE
        ]

    return Result(
        name="turns",
        figures=figures("ours"),
        peers={peer.name: figures(peer.name) for peer in peers if peer.available},
        setting=setting(
            f"{runs} runs; {', '.join(f'{TURNS[n]} turns of {n}' for n in AT_ONCE)} agents, each client waits for its "
            f"reply; scripted provider without latency; worker inside; WAL, synchronous=FULL",
            f"{peers[0]}: a workflow with one step a turn, WAL set by hand, synchronous=FULL",
            f"{peers[1]}: a task that does nothing, SqliteHuey as it comes: WAL, synchronous=FULL; 8 threads",
            f"peers: {min(runs, PEER_RUNS)} runs of {', '.join(str(PEER_TURNS[n]) for n in AT_ONCE)}",
        ),
    )


def _ours(at_once: int) -> float:
    with scratch() as home:
        return float(run_child(__file__, "turns", str(home), str(at_once), home=home))


def _peer(peer: Peer, at_once: int) -> float:
    with scratch() as home:
        return float(peer.run("turns", str(home), str(at_once), str(PEER_TURNS[at_once]), home=home))


if __name__ == "__main__":
    main(measure, {"turns": child_turns, "profile": child_profile, "statements": child_statements})
