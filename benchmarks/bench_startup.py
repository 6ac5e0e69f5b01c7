"""`startup`: from the spawn of `serve` on stdio to the answer to the first `tools/list`.

Beside it the least that an MCP server can be (`peers/bare_mcp.py`): one tool, the same interpreter and packages. The
ratio is what we add to the SDK. The data folder exists and modules are compiled, as on every start but the first.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from harness import HERE, Figure, Result, StdioServer, main, scratch, setting, take_turns, version_of

SERVE = [sys.executable, "-m", "ksi_mcp", "serve"]
BARE = [sys.executable, str(HERE / "peers" / "bare_mcp.py")]

RUNS = 11
"""A start is short, and a ratio of two short times is noisy."""


def seconds(command: list[str], home: Path) -> float:
    started = time.perf_counter()
    with StdioServer(command, home) as server:
        server.list_tools()
        return time.perf_counter() - started


def measure(runs: int) -> Result:
    with scratch() as home:
        sides = {"ours": lambda: seconds(SERVE, home), "bare": lambda: seconds(BARE, home)}
        take_turns(1, sides)  # the first start compiles modules and makes the data folder
        found = take_turns(runs, sides)
    ratios = [ours / bare for ours, bare in zip(found["ours"], found["bare"], strict=True)]
    return Result(
        name="startup",
        figures=[
            Figure(key="seconds", values=found["ours"], unit="s"),
            Figure(key="ratio_to_bare_mcp", values=ratios, goal=1.3),
        ],
        peers={"bare_mcp": [Figure(key="seconds", values=found["bare"], unit="s")]},
        setting=setting(
            f"{runs} runs; spawn to the first tools/list over stdio; existing data folder, modules compiled",
            version_of("mcp"),
        ),
    )


if __name__ == "__main__":
    main(measure, runs=RUNS)
