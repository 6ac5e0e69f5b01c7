"""Run benchmarks by name: `python benchmarks/run.py NAME... [--json] [--runs N]`; without a name, all of them.

Each figure has a script of its own, `bench_NAME.py`, which can be run alone just as well. With `--json` each prints
one line, `{"name", "figures": {key: number}, "peers": {...}, "setting": "..."}`; names and keys do not change, so
that figures can be compared over time. Options that are not known here go to the script, if one is named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from harness import HERE, ROOT, python_path

NAMES = (
    "startup",
    "memory",
    "tools_list",
    "mcp_latency",
    "queue",
    "turns",
    "latency",
    "idle_agents",
    "wide",
    "resume",
    "overshoot",
    "route_match",
    "route_durable",
    "add_rule",
    "index",
    "provider_overhead",
    "cli_parallel",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--json", action="store_true", help="one JSON object a name instead of tables")
    parser.add_argument("--runs", type=int, help="runs of each side, at least 5")
    args, more = parser.parse_known_args()
    if unknown := [name for name in args.names if name not in NAMES]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if more and len(args.names) != 1:
        parser.error(f"{' '.join(more)}: options of one benchmark, but not one is named")
    options = [*more, *(["--json"] if args.json else []), *(["--runs", str(args.runs)] if args.runs else [])]
    failed = 0
    for position, name in enumerate(args.names or NAMES):
        if position and not args.json:
            print(flush=True)
        # A process each: what one imports or allocates is nothing to the next.
        command = [sys.executable, str(HERE / f"bench_{name}.py"), *options]
        failed |= subprocess.run(command, cwd=ROOT, env=python_path(), check=False).returncode
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
