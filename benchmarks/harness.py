"""What every figure needs: children of their own, runs that take turns, medians, one table.

A script measures nothing in its own process: it starts itself again (`run_child`) or a server, so that no run sees
what an earlier one imported, cached or allocated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = HERE / "peers"
MIN_RUNS = 5
CHILD_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measured number: the median of its runs. `goal` is a bound, `at_most` says of which kind."""

    key: str
    values: list[float]
    unit: str = ""
    goal: float | None = None
    at_most: bool = True

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "ok" if (self.median <= self.goal if self.at_most else self.median >= self.goal) else "MISSED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one script found out. `peers`: what ran beside it in the same run, by name."""

    name: str
    figures: list[Figure]
    setting: str
    peers: dict[str, list[Figure]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "figures": {figure.key: _short(figure.median) for figure in self.figures},
            "peers": {peer: {f.key: _short(f.median) for f in figures} for peer, figures in self.peers.items()},
            "setting": self.setting,
        }

    def as_table(self) -> str:
        head = ("figure", "median", "min", "max", "unit", "goal", "verdict")
        named = [*((f.key, f) for f in self.figures)]
        named += [(f"{peer}: {f.key}", f) for peer, figures in self.peers.items() for f in figures]
        rows = [head]
        for name, figure in named:
            sign = "<=" if figure.at_most else ">="
            goal = "" if figure.goal is None else f"{sign} {_short(figure.goal):,}"
            numbers = (_short(n) for n in (figure.median, min(figure.values), max(figure.values)))
            rows.append((name, *(f"{n:,}" for n in numbers), figure.unit, goal, figure.verdict))
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        numbers_in = range(1, 4)
        lines = [
            "  ".join(cell.rjust(widths[i]) if i in numbers_in else cell.ljust(widths[i]) for i, cell in enumerate(row))
            for row in rows
        ]
        return "\n".join([f"== {self.name}", *(line.rstrip() for line in lines), self.setting])


Measure = Callable[..., Result]
"""`measure(runs, **options)`."""


def main(
    measure: Measure,
    children: dict[str, Callable[[list[str]], object]] | None = None,
    *,
    runs: int = MIN_RUNS,
    least: int = MIN_RUNS,
    options: dict[str, float] | None = None,
) -> None:
    """Be a script: `[--json] [--runs N]`, or one of its own children. `runs`: without `--runs`.

    `least` is for what takes minutes. `options` are numbers of the script's own, `--name N`, with their defaults.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--runs", type=int, default=runs, help=f"of each side, at least {least}")
    for name, default in (options or {}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help="default %(default)s")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        found = (children or {})[args.child[0]](args.child[1:])
        if found is not None:
            print(json.dumps(found), flush=True)
        return
    if args.runs < least:
        parser.error(f"a median wants at least {least} runs")
    result = measure(args.runs, **{name: getattr(args, name) for name in options or {}})
    print(json.dumps(result.as_json()) if args.json else result.as_table(), flush=True)


# ----------------------------------------------------------------------------------------- processes


def environment(home: Path) -> dict[str, str]:
    """What a measured process sees: the project, a data folder of its own, no key, no proxy, nothing of the user's."""
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH")
    return {**{k: v for k, v in python_path().items() if k in kept}, "KSI_HOME": str(home), "HOME": str(home)}


def python_path() -> dict[str, str]:
    """The environment with this checkout first on the path, installed or not."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards. It lies where the benchmarks lie, so that the disk is the project's."""
    folder = Path(tempfile.mkdtemp(prefix=".scratch-", dir=HERE))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_child(script: str, *args: str, home: Path, timeout_s: float = CHILD_TIMEOUT_S) -> Any:
    """Run a script as one of its children and return what it printed, None if that was nothing.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    return _printed([sys.executable, script, "--child", *args], environment(home), timeout_s)


def _printed(command: list[str], env: dict[str, str], timeout_s: float) -> Any:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        said = f"{done.stdout[-1000:]}{done.stderr[-3000:]}"
        raise SystemExit(f"{' '.join(map(str, command[1:]))} failed with {done.returncode}:\n{said}")
    return json.loads(done.stdout) if done.stdout.strip() else None


class Peer:
    """Something that we are compared with, in an environment of its own under `peers/`, made when first needed.

    `available` is false where its packages cannot be had: then it is left out, and the setting says so.
    """

    def __init__(self, name: str, *requirements: str) -> None:
        self.name = name
        self._requirements = requirements
        self._python = PEERS / f".env-{name}" / "bin" / "python"
        self.available = self._made()

    def run(self, part: str, *args: str, home: Path, timeout_s: float = CHILD_TIMEOUT_S) -> Any:
        """Run `peers/NAME_PART.py` and return what it printed."""
        return _printed(self.command(part, *args), self.environment(home), timeout_s)

    def command(self, part: str, *args: str) -> list[str]:
        return [str(self._python), str(PEERS / f"{self.name}_{part}.py"), *args]

    def environment(self, home: Path) -> dict[str, str]:
        """What it sees: nothing of ours."""
        return {key: value for key, value in environment(home).items() if key not in ("PYTHONPATH", "KSI_HOME")}

    def __str__(self) -> str:
        if not self.available:
            return f"{self.name} could not be installed and is left out"
        asked = f"from importlib.metadata import version; print('{self.name} ' + version('{self.name}'))"
        done = subprocess.run([self._python, "-c", asked], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def _made(self) -> bool:
        if self._python.exists():
            return True
        folder = self._python.parent.parent
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
            pip = [self._python, "-m", "pip", "install", "--quiet", *self._requirements]
            subprocess.run(pip, check=True, capture_output=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(folder, ignore_errors=True)
            return False
        return True


def take_turns(
    runs: int, sides: dict[str, Callable[[], Any]], *, fewer: dict[str, int] | None = None
) -> dict[str, list[Any]]:
    """A B A B ...: what disturbs the machine for a while then disturbs every side alike. `fewer`: runs of slow ones."""
    found: dict[str, list[Any]] = {name: [] for name in sides}
    for number in range(runs):
        for name, run in sides.items():
            if number < (fewer or {}).get(name, runs):
                found[name].append(run())
    return found


def rss_mb(pid: int, *, peak: bool = False) -> float:
    """The resident memory of a process, in MiB; `peak`: the most that it ever was."""
    return process_fact(pid, "VmHWM" if peak else "VmRSS") / 1024


def process_fact(pid: int, key: str) -> int:
    """A number of a process's status, such as `VmRSS` in KiB or `Threads`."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        raise SystemExit("facts of a process are read from /proc/PID/status, which only Linux has") from None
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{key}:"))


class Refusal(Exception):
    """A tool answered with an error."""


class StdioServer:
    """A server's process and as much of an MCP client as it takes: the handshake of any version, lists and calls."""

    def __init__(self, command: list[str], home: Path) -> None:
        self._log = (home / "stderr.log").open("w+b")
        self._process = subprocess.Popen(
            command, env=environment(home), cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        self.pid = self._process.pid
        self._calls = 2

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()  # the way a client says goodbye
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def list_tools(self) -> bytes:
        """Open the session and ask for the tools; the answer as it was sent, one line of JSON-RPC."""
        client = {"name": "benchmark", "version": "1"}
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        self._send({"id": 1, "method": "initialize", "params": hello})
        self._answer(1)
        self._send({"method": "notifications/initialized"})
        self._send({"id": 2, "method": "tools/list", "params": {}})
        return self._answer(2)

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool, once the tools were listed; its structured result."""
        self._calls += 1
        self._send({"id": self._calls, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
        result = json.loads(self._answer(self._calls))["result"]
        if result.get("isError"):
            raise Refusal(result["content"][0]["text"])
        return dict(result["structuredContent"])

    def begin(self, tool: str, **arguments: Any) -> None:
        """Call a tool and do not wait for its answer; it may tell how far it is."""
        self._calls += 1
        asked = {"name": tool, "arguments": arguments, "_meta": {"progressToken": self._calls}}
        self._send({"id": self._calls, "method": "tools/call", "params": asked})

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self, request_id: int) -> bytes:
        assert self._process.stdout
        while line := self._process.stdout.readline():
            message = json.loads(line)
            if message.get("id") == request_id and "result" in message:
                return line
            if "error" in message:
                raise SystemExit(f"the server refused: {message['error']}")
        self._log.seek(0)
        raise SystemExit(f"the server ended without an answer:\n{self._log.read()[-3000:].decode(errors='replace')}")


@contextlib.contextmanager
def api_sim(home: Path, script: str) -> Iterator[str]:
    """`ksi-mcp api-sim` in a process of its own, answering from a script (YAML); its URL."""
    file = home / "api-sim.yaml"
    file.write_text(script, "utf-8")
    command = [sys.executable, "-m", "ksi_mcp", "api-sim", "--script", str(file)]
    with (home / "api-sim.log").open("w+") as log:
        process = subprocess.Popen(command, env=environment(home), cwd=home, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout
        try:
            url = process.stdout.readline().decode().strip()
            if not url:
                log.seek(0)
                raise SystemExit(f"the simulator did not start:\n{log.read()[-3000:]}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


# ------------------------------------------------------------------------------------------- setting


def setting(*facts: str) -> str:
    """Where a figure comes from: its own facts, then the machine and how busy it is."""
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return "; ".join([*facts, machine, load])


def version_of(package: str) -> str:
    return f"{package} {metadata.version(package)}"


def _short(number: float) -> float:
    """Four digits are more than such a measurement has."""
    if number == int(number) or abs(number) >= 1000:
        return round(number)
    return float(f"{number:.4g}")
