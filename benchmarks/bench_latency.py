"""`latency`: how long a message to an idle agent waits until the model is asked.

From the call of `agent_send` to the moment in which the provider is called: the message, the claim, and the round
that leaves are each on the disk by then, which makes two commits at `synchronous=FULL`. Nothing else is going on.

Beside it what the disk needs for one such commit by itself (4 KiB, appended, `fdatasync`), and the same way through
two processes: sent in one, run by a worker in the other, woken by the doorbell.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Figure, Result, environment, main, run_child, scratch, setting, take_turns

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.permissions import OPERATOR, fresh_context

MESSAGES = 300
"""Of a run; the 99th percentile is the third largest."""
AGENTS = 20
PAUSE_S = (0.005, 0.025)
"""Between a reply and the next message, so that no pump is still awake by design."""
BLOCK = b"x" * 4096
CONFIG = Config(provider="scripted")


async def in_one_process(home: Path) -> list[float]:
    asked: dict[str, float] = {}
    async with App(Home(root=home), AppOptions(worker="inside", environ={}), config=CONFIG) as app:
        await _watch(app, asked.setdefault)
        return _waits(await _send_all(app), asked)


async def in_two_processes(home: Path) -> list[float]:
    async with App(Home(root=home), AppOptions(worker="none", environ={}), config=CONFIG) as app:
        worker = _worker(home)
        assert worker.stdout
        try:
            worker.stdout.readline()  # it is ready
            sent = await _send_all(app)
        finally:
            out, _ = worker.communicate()  # closing its stdin ends it
    return _waits(sent, dict(json.loads(line) for line in out.splitlines()))


def _worker(home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--child", "work", str(home)]
    return subprocess.Popen(command, env=environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def child_work(args: list[str]) -> None:
    """The worker's process: says on stdout when each prompt reached the provider, until stdin is closed."""

    async def work() -> None:
        async with App(Home(root=Path(args[0])), AppOptions(worker="inside", environ={}), config=CONFIG) as app:
            await _watch(app, lambda prompt, at_s: print(json.dumps([prompt, at_s])))
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.read)

    asyncio.run(work())


async def _watch(app: App, note: Callable[[str, float], object]) -> None:
    """Note when each prompt reaches the provider; the clock is the machine's, the same in every process."""
    provider: Any = await app.services.registry.get("scripted")
    complete = provider.complete

    async def noted(request: Any, **more: Any) -> Any:
        note(request.messages[-1].blocks[0], time.monotonic())
        return await complete(request, **more)

    provider.complete = noted


async def _send_all(app: App) -> dict[str, float]:
    """Send one message after the other to idle agents; when each was sent."""
    sent: dict[str, float] = {}
    for n in range(AGENTS):
        await _call(app, "agent_spawn", name=f"agent{n}", prompt="Answer.")
    for number in range(-AGENTS, MESSAGES):  # the first ones load what loads once
        await asyncio.sleep(random.uniform(*PAUSE_S))
        message = f"message {number}"
        began_s = time.monotonic()
        done = await _call(app, "agent_send", agent=f"agent{number % AGENTS}", message=message, wait_s=20)
        if done["status"] != "done":
            raise SystemExit(f"a turn ended as {done}")
        if number >= 0:
            sent[message] = began_s
    return sent


async def _call(app: App, tool: str, **arguments: Any) -> dict[str, Any]:
    return (await app.toolbox.call(fresh_context(OPERATOR), tool, arguments)).data


def _waits(sent: dict[str, float], asked: dict[str, float]) -> list[float]:
    """In ms: [median, 99th percentile]."""
    return _percentiles([(asked[message] - began_s) * 1000 for message, began_s in sent.items()])


def _percentiles(waits: list[float]) -> list[float]:
    return [statistics.median(waits), statistics.quantiles(waits, n=100)[98]]


def fsync(home: Path) -> list[float]:
    """How long the disk needs to keep 4 KiB."""
    waits = []
    file = os.open(home / "raw", os.O_WRONLY | os.O_CREAT)
    with contextlib.closing(os.fdopen(file, "wb", buffering=0)) as raw:
        for _ in range(MESSAGES):
            time.sleep(random.uniform(*PAUSE_S))
            began = time.perf_counter()
            raw.write(BLOCK)
            getattr(os, "fdatasync", os.fsync)(raw.fileno())
            waits.append((time.perf_counter() - began) * 1000)
    return _percentiles(waits)


def measure(runs: int) -> Result:
    def side(name: str) -> list[float]:
        with scratch() as home:
            return list(run_child(__file__, name, str(home), home=home))

    sides = {"one": lambda: side("one"), "two": lambda: side("two"), "fsync": lambda: side("fsync")}
    found = take_turns(runs, sides)

    def figures(name: str, *goals: float) -> list[Figure]:
        keys = zip(("p50_ms", "p99_ms"), goals or (None, None), strict=True)
        return [
            Figure(key=key, values=[run[column] for run in found[name]], unit="ms", goal=goal)
            for column, (key, goal) in enumerate(keys)
        ]

    return Result(
        name="latency",
        figures=figures("one", 3, 15),
        peers={"fsync": figures("fsync"), "two_processes": figures("two")},
        setting=setting(
            f"{runs} runs of {MESSAGES} messages to {AGENTS} idle agents, {PAUSE_S[0] * 1000:g} to "
            f"{PAUSE_S[1] * 1000:g} ms apart; from the call of agent_send to the call of the provider, two commits; "
            f"scripted provider; worker inside; WAL, synchronous=FULL; fsync: 4 KiB appended and fdatasync; "
            f"two_processes: the worker in another one"
        ),
    )


CHILDREN: dict[str, Callable[[list[str]], object]] = {
    "one": lambda args: asyncio.run(in_one_process(Path(args[0]))),
    "two": lambda args: asyncio.run(in_two_processes(Path(args[0]))),
    "fsync": lambda args: fsync(Path(args[0])),
    "work": child_work,
}

if __name__ == "__main__":
    main(measure, CHILDREN)
