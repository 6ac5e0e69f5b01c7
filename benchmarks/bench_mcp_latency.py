"""`mcp_latency`: what a call of a tool costs a client on stdio, above what the SDK itself takes.

Two servers are asked in turns, call by call: ours, with some agents and rules in its store, and the least there is
(`peers/bare_tool.py`: one asynchronous tool). The ratio is that of the worst of three tools. `event_emit` is on the
disk when its answer comes; what the disk takes for that by itself stands beside it.

The second ratio is ours against ours: with 50 waits for replies open on the same connection, each told every two
seconds that it still waits, and with none.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import HERE, Figure, Result, StdioServer, main, scratch, setting, take_turns, version_of

SERVE = [sys.executable, "-m", "ksi_mcp", "serve", "--worker", "none"]
BARE = [sys.executable, str(HERE / "peers" / "bare_tool.py")]
AGENTS = 20
RULES = 100
WAITERS = 50
ROUNDS = 300
FIRST = 30
"""Calls that load what loads once."""
BLOCK = b"x" * 4096
TOOLS = ("agent_list", "routing_query_rules", "event_emit")


def filled(server: StdioServer) -> None:
    server.list_tools()
    for number in range(AGENTS):
        server.call("agent_spawn", name=f"agent{number}", prompt="You help.")
    for number in range(RULES):
        server.call("routing_add_rule", source_pattern=f"task{number}:*", target=f"agent:agent{number % AGENTS}")


def against_bare() -> dict[str, float]:
    """The median of each side, in ms."""
    with scratch() as home, StdioServer(SERVE, home) as ours, StdioServer(BARE, home) as bare, disk(home) as keep:
        filled(ours)
        bare.list_tools()
        sides: dict[str, Callable[[], Any]] = {
            "bare": lambda: bare.call("ping"),
            "agent_list": lambda: ours.call("agent_list"),
            "routing_query_rules": lambda: ours.call("routing_query_rules"),
            "event_emit": lambda: ours.call("event_emit", event="note:made", data={"text": "x" * 40}),
            "fsync": keep,
        }
        return medians(sides)


def with_waiters() -> dict[str, float]:
    """The same, of our servers with and without waits."""
    with scratch() as one, scratch() as two, StdioServer(SERVE, one) as quiet, StdioServer(SERVE, two) as waited:
        for server in (quiet, waited):
            filled(server)
        for number in range(WAITERS):
            # Nobody works: a turn waits for ever, and so does who waits for it.
            sent = waited.call("agent_send", agent=f"agent{number % AGENTS}", message="hi")
            waited.begin("agent_wait", turns=[sent["turn"]], timeout_s=55)
        return medians({"quiet": lambda: quiet.call("agent_list"), "waited": lambda: waited.call("agent_list")})


def medians(sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-FIRST, ROUNDS):
        for name, call in sides.items():
            began_s = time.perf_counter()
            call()
            if number >= 0:
                taken[name].append((time.perf_counter() - began_s) * 1000)
    return {name: statistics.median(each) for name, each in taken.items()}


@contextlib.contextmanager
def disk(home: Path) -> Any:
    """Appends 4 KiB and waits until the disk has them."""
    with (home / "raw").open("wb", buffering=0) as raw:

        def keep() -> None:
            raw.write(BLOCK)
            getattr(os, "fdatasync", os.fsync)(raw.fileno())

        yield keep


def measure(runs: int) -> Result:
    found = take_turns(runs, {"bare": against_bare, "waiters": with_waiters})
    bare, waiters = found["bare"], found["waiters"]
    worst = [max(run[name] for name in TOOLS) / run["bare"] for run in bare]
    return Result(
        name="mcp_latency",
        figures=[
            Figure(key="ratio_to_bare_tool", values=worst, goal=1.5),
            *(Figure(key=f"ratio_{name}", values=[run[name] / run["bare"] for run in bare]) for name in TOOLS),
            *(Figure(key=f"p50_ms_{name}", values=[run[name] for run in bare], unit="ms") for name in TOOLS),
            Figure(
                key=f"ratio_with_{WAITERS}_waiters", values=[run["waited"] / run["quiet"] for run in waiters], goal=2
            ),
        ],
        peers={
            "bare_tool": [Figure(key="p50_ms", values=[run["bare"] for run in bare], unit="ms")],
            "fsync": [Figure(key="p50_ms", values=[run["fsync"] for run in bare], unit="ms")],
        },
        setting=setting(
            f"{runs} runs of {ROUNDS} calls of each side in turns; stdio, handshake of 2025; {AGENTS} agents, {RULES} "
            f"rules; event_emit with WAL, synchronous=FULL; fsync: 4 KiB appended and fdatasync; {WAITERS} calls of "
            f"agent_wait on the same connection",
            version_of("mcp"),
        ),
    )


if __name__ == "__main__":
    main(measure)
