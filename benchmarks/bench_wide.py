"""`wide`: ten thousand agents that all wait for their models at once, in one worker.

Each agent has three messages waiting when the worker's process starts. The scripted model takes ten seconds for each
answer, so thirty seconds is the ideal, and what is above it is ours: from the start of the process to the end of the
last turn. Every step is stored at `synchronous=FULL`.

    python benchmarks/bench_wide.py --agents 500 --latency 2 --runs 1      # in a quarter of a minute
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from harness import Figure, Result, environment, main, rss_mb, run_child, scratch, setting

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home
from ksi_mcp.permissions import OPERATOR, fresh_context

AGENTS = 10_000
LATENCY_S = 10.0
TURNS = 3
GOAL = 1.3
AT_ONCE = 200
LOOK_S = 0.5
SEED_TIMEOUT_S = 900
PATIENCE = 10
"""A run that takes so many times the ideal is given up."""


async def seed(home: Path, agents: int) -> None:
    """Make the agents and put their messages in; nobody runs them yet."""
    async with App(Home(root=home), AppOptions(worker="none", environ={})) as app:

        async def make(number: int) -> None:
            spawned = {"name": f"agent{number}", "prompt": "You answer briefly.", "message": "What is the first part?"}
            made = await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", spawned)
            for part in range(1, TURNS):
                message = {"agent": made.data["agent"], "message": f"And what comes after part {part}?"}
                await app.toolbox.call(fresh_context(OPERATOR), "agent_send", message)

        for first in range(0, agents, AT_ONCE):
            await asyncio.gather(*(make(number) for number in range(first, min(first + AT_ONCE, agents))))


def child_seed(args: list[str]) -> None:
    asyncio.run(seed(Path(args[0]), int(args[1])))


def one_run(home: Path, agents: int, latency_s: float) -> tuple[float, float, int]:
    """Seconds, MiB at most, and turns that did not end as done."""
    command = [sys.executable, "-m", "ksi_mcp", "worker"]
    ideal_s = TURNS * latency_s
    with (home / "log").open("w") as log:
        began_s = time.time()
        worker = subprocess.Popen(command, env=environment(home), cwd=home, stdin=subprocess.DEVNULL, stderr=log)
    try:
        time.sleep(ideal_s)
        while _open_turns(home):
            if worker.poll() is not None or time.time() - began_s > PATIENCE * ideal_s + 60:
                raise SystemExit(f"{_open_turns(home)} turns are not done:\n{(home / 'log').read_text()[-3000:]}")
            time.sleep(LOOK_S)
        peak_mb = rss_mb(worker.pid, peak=True)
    finally:
        worker.kill()
        worker.wait()
    with closing(sqlite3.connect(home / "ksi.db")) as db:
        done, last_ms = db.execute("SELECT SUM(state = 'done'), MAX(finished_at_ms) FROM turn").fetchone()
    return last_ms / 1000 - began_s, peak_mb, agents * TURNS - done


def _open_turns(home: Path) -> int:
    with closing(sqlite3.connect(home / "ksi.db", timeout=30)) as db:
        return int(db.execute("SELECT COUNT(*) FROM session WHERE pending > 0").fetchone()[0])


def measure(runs: int, agents: int, latency: float) -> Result:
    elapsed, ratios, peaks, failures = [], [], [], []
    with scratch() as folder:
        seeded = folder / "seeded"
        seeded.mkdir()
        (seeded / "script.yaml").write_text(f"defaults: {{latency_s: {latency}}}\ndefault: {{reply: done}}\n", "utf-8")
        worker = f"worker: {{concurrency: {agents}}}\n"
        (seeded / "config.yaml").write_text(f"provider: scripted\nscripted: {{script: script.yaml}}\n{worker}", "utf-8")
        run_child(__file__, "seed", str(seeded), str(agents), home=seeded, timeout_s=SEED_TIMEOUT_S)
        for number in range(runs):
            home = Path(shutil.copytree(seeded, folder / f"run{number}"))
            seconds, peak_mb, failed = one_run(home, agents, latency)
            elapsed.append(seconds)
            ratios.append(seconds / (TURNS * latency))
            peaks.append(peak_mb)
            failures.append(failed)
            shutil.rmtree(home)
    return Result(
        name="wide",
        figures=[
            Figure(key="ratio_to_ideal", values=ratios, goal=GOAL),
            Figure(key="rss_mb", values=peaks, unit="MiB"),
            Figure(key="failures", values=failures, goal=0),
        ],
        peers={"ideal": [Figure(key="seconds", values=[TURNS * latency], unit="s")]},
        setting=setting(
            f"{runs} runs; {agents} agents x {TURNS} turns, {latency:g} s for each answer, worker.concurrency "
            f"{agents}; from the start of the worker's process to the end of the last turn, {min(elapsed):.1f} to "
            f"{max(elapsed):.1f} s; rss_mb: VmHWM; WAL, synchronous=FULL"
        ),
    )


if __name__ == "__main__":
    main(measure, {"seed": child_seed}, runs=3, least=1, options={"agents": AGENTS, "latency": LATENCY_S})
