"""`turns`: how many durable turns a second go the whole way, when the model takes no time at all.

Fifty agents, each with a client that sends a message, waits for the reply and sends the next: tool call, queue, claim,
reservation, provider call, settlement, reply, events and their routing, every step stored at `synchronous=FULL`. A
real model takes seconds; this is what the house itself costs.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import sys
import time
from pathlib import Path

from harness import Figure, Result, main, run_child, scratch, setting, take_turns

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home, WorkerConfig
from ksi_mcp.permissions import OPERATOR, fresh_context

AT_ONCE = 50
TURNS_EACH = 20
WAIT_S = 50


async def per_second(home: Path) -> float:
    config = Config(provider="scripted", worker=WorkerConfig(concurrency=AT_ONCE))
    async with App(Home(root=home), AppOptions(worker="inside", environ={}), config=config) as app:
        names = [f"agent{n}" for n in range(AT_ONCE)]
        for name in names:
            await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"name": name, "prompt": "Count."})
        await asyncio.gather(*(talk(app, name, 1) for name in names))  # everything is loaded and open now
        started = time.perf_counter()
        await asyncio.gather(*(talk(app, name, TURNS_EACH) for name in names))
        return AT_ONCE * TURNS_EACH / (time.perf_counter() - started)


async def talk(app: App, name: str, turns: int) -> None:
    for number in range(turns):
        message = {"agent": name, "message": f"How far are you with part {number}?", "wait_s": WAIT_S}
        done = await app.toolbox.call(fresh_context(OPERATOR), "agent_send", message)
        if done.data["status"] != "done":
            raise SystemExit(f"a turn of {name} ended as {done.data}")


def child_turns(args: list[str]) -> float:
    return asyncio.run(per_second(Path(args[0])))


def child_profile(args: list[str]) -> None:
    """`bench_turns.py --child profile DIR`: where the time of the event loop's thread goes."""
    profile = cProfile.Profile()
    profile.runcall(child_turns, args)
    pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(15)


def one_run() -> float:
    with scratch() as home:
        return run_child(__file__, "turns", str(home), home=home)


def measure(runs: int) -> Result:
    found = take_turns(runs, {"ours": one_run})["ours"]
    return Result(
        name="turns",
        figures=[Figure(key="per_second_at_50", values=found, unit="1/s", at_most=False)],
        setting=setting(
            f"{runs} runs; {AT_ONCE} agents x {TURNS_EACH} turns, each client waits for its reply; scripted provider "
            f"without latency; worker inside; synchronous=FULL"
        ),
    )


if __name__ == "__main__":
    main(measure, {"turns": child_turns, "profile": child_profile})
