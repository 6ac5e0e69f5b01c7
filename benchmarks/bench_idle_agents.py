"""`idle_agents`: what an agent costs that has nothing to do, in memory and on the disk.

The data folder holds many agents, each with a conversation of one turn behind it. `serve` with the worker inside is
started on it and on an empty folder; the difference of their resident memory after the first `tools/list` and a look
at the agents, divided by their number, is the figure. Threads and the tasks of the event loop must be as many as on
the empty folder: an agent is rows, and nothing else until it has something to do.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Figure, Result, StdioServer, main, process_fact, rss_mb, run_child, scratch, setting, take_turns

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home
from ksi_mcp.permissions import OPERATOR, fresh_context

AGENTS = 10_000
CONFIG = "provider: scripted\nworker: {concurrency: 64}\n"
SERVE = [sys.executable, "-m", "ksi_mcp", "serve", "--worker", "inside"]
SETTLE_S = 1.0
"""The pumps have looked by then."""
SEED_TIMEOUT_S = 600
AT_ONCE = 200


async def seed(home: Path, agents: int) -> None:
    """Make the agents and let each of them answer once."""
    async with App(Home(root=home), AppOptions(worker="inside", environ={})) as app:

        async def make(number: int) -> None:
            made = {"name": f"agent{number}", "prompt": "You answer briefly.", "message": "Who are you?"}
            await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", made)

        for numbers in _batches(range(agents), AT_ONCE):
            await asyncio.gather(*(make(number) for number in numbers))
        while await app.unfinished():  # noqa: ASYNC110  the worker says nothing when all is done
            await asyncio.sleep(0.05)


def _batches(numbers: range, size: int) -> Iterator[range]:
    return (numbers[at : at + size] for at in range(0, len(numbers), size))


def child_seed(args: list[str]) -> None:
    asyncio.run(seed(Path(args[0]), int(args[1])))


def child_tasks(args: list[str]) -> int:
    """How many tasks the event loop has with the folder open and nothing to do."""

    async def count() -> int:
        async with App(Home(root=Path(args[0])), AppOptions(worker="inside", environ={})):
            await asyncio.sleep(SETTLE_S)
            return len(asyncio.all_tasks())

    return asyncio.run(count())


def resident(home: Path) -> tuple[float, int]:
    """MiB and threads of a server that has just started on the folder."""
    with StdioServer(SERVE, home) as server:
        server.list_tools()
        server.call("agent_list", limit=10)
        time.sleep(SETTLE_S)
        return rss_mb(server.pid), process_fact(server.pid, "Threads")


def measure(runs: int, agents: int) -> Result:
    with scratch() as folder:
        empty, full = folder / "empty", folder / "full"
        for home in (empty, full):
            home.mkdir()
            (home / "config.yaml").write_text(CONFIG, "utf-8")
        run_child(__file__, "seed", str(empty), "0", home=empty)
        run_child(__file__, "seed", str(full), str(agents), home=full, timeout_s=SEED_TIMEOUT_S)
        disk = (_bytes(full) - _bytes(empty)) / agents
        found = take_turns(runs, {"empty": lambda: resident(empty), "full": lambda: resident(full)})
        tasks = [run_child(__file__, "tasks", str(home), home=home) for home in (empty, full)]
    threads = {count for side in found.values() for _, count in side}
    if len(threads) > 1 or len(set(tasks)) > 1:
        raise SystemExit(f"idle agents are not only rows: threads {json.dumps(sorted(threads))}, tasks {tasks}")
    pairs = zip(found["full"], found["empty"], strict=True)
    each = [(more - less) * 1024 * 1024 / agents for (more, _), (less, _) in pairs]
    return Result(
        name="idle_agents",
        figures=[
            Figure(key="bytes_per_agent", values=each, unit="B", goal=2048),
            Figure(key="disk_bytes_per_agent", values=[disk], unit="B"),
        ],
        peers={"empty": [Figure(key="rss_mb", values=[mb for mb, _ in found["empty"]], unit="MiB")]},
        setting=setting(
            f"{runs} pairs of starts; {agents} agents with one finished turn each against an empty folder; `serve "
            f"--worker inside`, VmRSS {SETTLE_S:g} s after tools/list and agent_list; {threads.pop()} threads and "
            f"{tasks[0]} tasks in both; disk: the folder's files, one seeding"
        ),
    )


def _bytes(home: Path) -> int:
    return sum(path.stat().st_size for path in home.rglob("ksi.db*"))


if __name__ == "__main__":
    main(measure, {"seed": child_seed, "tasks": child_tasks}, options={"agents": AGENTS})
