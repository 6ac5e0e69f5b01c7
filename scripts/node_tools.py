"""What `conformance` and `inspector` share: programs from npm with a Node of their own, and a server to try them on."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NODE = "node@22.23.3"
"""Both programs want Node 22; it is fetched like them, so any older one that can run npx is enough."""

FETCH_S = 240
START_S = 60


class Missing(Exception):
    """The programs cannot be had here. Nothing is known about the server then, good or bad."""


def fetch(package: str, command: str) -> dict[str, str]:
    """The environment in which `command` of a pinned npm package is first on PATH, with its Node beside it.

    Raises:
        Missing: there is no npx, or the package cannot be fetched.
    """
    npx = shutil.which("npx")
    if npx is None:
        raise Missing("there is no npx on PATH; install Node.js")
    quiet = {"npm_config_loglevel": "error", "npm_config_update_notifier": "false", "npm_config_fetch_retries": "1"}
    try:
        # npx puts what it fetched first on the PATH of the command line that it runs.
        asked = [
            npx,
            "-y",
            "-p",
            NODE,
            "-p",
            package,
            "-c",
            f'node --version && {command} --version && printf %s "$PATH"',
        ]
        done = subprocess.run(
            asked, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=FETCH_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"npx did not fetch {package} within {FETCH_S} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise Missing(f"npx cannot fetch {NODE} and {package}: {said[-1][:300]}")
    return {**os.environ, "PATH": done.stdout.splitlines()[-1], "NO_COLOR": "1"}


def python() -> str:
    """An interpreter that has what the server needs: this one, else the project's."""
    if importlib.util.find_spec("mcp"):
        return sys.executable
    own = ROOT / os.environ.get("VENV", ".venv") / "bin" / "python"
    if own.exists():
        return str(own)
    raise SystemExit("the server's packages are not installed; run `make setup`, or this script with their python")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A data folder that is gone afterwards, answered by a script instead of a model."""
    made = Path(tempfile.mkdtemp(prefix="ksi-"))
    (made / "config.yaml").write_text("provider: scripted\nworker: {idle_s: 1}\n", "utf-8")
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def environment(home: Path) -> dict[str, str]:
    """What the server sees: this checkout and its data folder, nothing of the user's."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "KSI_HOME": str(home), "HOME": str(home)}


@contextlib.contextmanager
def served(home: Path, *options: str) -> Iterator[str]:
    """`ksi-mcp serve` over HTTP on a free port of loopback; its base URL. What it logged is shown if it fails."""
    command = [python(), "-m", "ksi_mcp", "serve", "--port", "0", *options]
    log = home / "serve.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment(home), cwd=home, stdin=subprocess.DEVNULL, stderr=sink)
    try:
        yield _address(process, log)
        if process.poll() is not None:
            raise SystemExit(f"the server ended by itself with {process.returncode}:\n{_end(log)}")
    finally:
        process.terminate()
        # The time that it takes is its own affair; only that it hangs is not.
        reaper = threading.Timer(20, process.kill)
        reaper.start()
        process.wait()
        reaper.cancel()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        words = log.read_text("utf-8", "replace").split()
        if found := [word for word in words if word.startswith("http://")]:
            return found[0].rpartition("/")[0]
        time.sleep(0.05)
    raise SystemExit(f"the server did not start:\n{_end(log)}")


def _end(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-3000:]
