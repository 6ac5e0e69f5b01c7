"""The worker process of a data folder, as those see it who need one and do not run turns themselves."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from ksi_mcp.clock import Clock
from ksi_mcp.config import Home
from ksi_mcp.locks import is_held

LAUNCH_S = 10.0
"""A worker process that has not taken the lock by then is taken to have failed."""
LAUNCH_LOOK_S = 0.1
LOG_BYTES = 1_000_000
"""A larger log is put aside before the next start; the one put aside before that goes."""
TAIL_BYTES = 16_384
STARTED = "--- worker process started"
"""Begins the line in the log before what a worker process says."""
SHOWN_CHARS = 500
_ERROR = re.compile(r"^error: |\b(ERROR|CRITICAL)\b|^\w*(Error|Exception)\b")
_FOLDER = re.compile(r"(?<![\w<./])(?:~?/|[A-Za-z]:\\)[^\s'\",;:()\]]*[^\s'\",;:().\]]")
_SECRET = re.compile(
    r"\bsk-[\w-]{4,}|\b(?=\w*\d)[\w-]{32,}|(?:\bauthorization[\"']?\s*[=:]\s*[\"']?)?\b(?:bearer|basic)\s+[^\s\"',;]+"
    r"|\b(?:token|password|api[_-]?key|authorization)\b[\"']?\s*[=: ]\s*[\"']?[^\s\"',;]+",
    re.IGNORECASE,
)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class WorkerLauncher:
    """Sees to it that a worker process lives.

    What it says goes to `logs/worker.log`. One that fails to start is tried again after 1, 2, 4, ... 60 s: a
    mistake in the configuration must not cost a process at each commit.
    """

    def __init__(self, home: Home, clock: Clock, *, idle_s: float, project: Path | None) -> None:
        self._home = home
        self._clock = clock
        self._idle_s = idle_s
        self._project = project
        self._pause_s = 0.0
        self._not_before_s = float("-inf")
        self._child: subprocess.Popen[bytes] | None = None

    def lives(self) -> bool:
        """Whether some process holds the worker lock of this data folder."""
        return is_held(self._home.worker_lock)

    async def ensure(self) -> str | None:
        """Start a worker if none lives, and see it take the lock. What it said last, if it failed to; else None."""
        if self._child is not None and self._child.poll() is not None:  # asked so that no zombie stays
            self._child = None
        if self._clock.monotonic_s() < self._not_before_s:
            return None
        launching = FileLock(self._home.launch_lock)
        try:
            launching.acquire(timeout=0)  # also to look: a look holds the worker's lock for a moment
        except Timeout:
            return None
        try:
            return None if self.lives() else await self._start()
        finally:
            launching.release()

    async def _start(self) -> str | None:
        child = self._child = self._launch()
        until_s = self._clock.monotonic_s() + LAUNCH_S
        # No event of this loop says that another process has taken a lock.
        while not self.lives():
            code = child.poll()
            if code == 0:  # another worker was faster, or there was nothing to do any more
                break
            if code is not None or self._clock.monotonic_s() > until_s:
                self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
                self._not_before_s = self._clock.monotonic_s() + self._pause_s
                return last_words(self._home) or f"it ended with code {code}"
            await asyncio.sleep(LAUNCH_LOOK_S)
        self._pause_s = 0.0
        return None

    def let_go(self) -> None:
        """The worker that was started here outlives this process on purpose: nobody need be told that it still runs."""
        if self._child is not None and self._child.poll() is None:
            self._child.returncode = 0
        self._child = None

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start a worker of its own: it outlives this process, and ends when it has had nothing to do for a while."""
        self._home.logs.mkdir(exist_ok=True, mode=0o700)
        command = [sys.executable, "-m", "ksi_mcp", "worker", "--home", str(self._home.root)]
        command += ["--until-idle", f"{self._idle_s:g}", "--launched"]
        if self._project is not None:
            command += ["--project", str(self._project)]
        log = self._home.worker_log
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".old.log"))
        with log.open("ab") as out:
            out.write(f"{STARTED}\n".encode())
            out.flush()
            return subprocess.Popen(  # noqa: S603  our own interpreter and module, a folder and a number
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, close_fds=True
            )


def last_words(home: Home) -> str | None:
    """The last line that the newest worker process has written, if any."""
    return next(iter(reversed(_newest_lines(home))), None)


def last_error(home: Home) -> str | None:
    """The last error that the newest worker process has written, if any; fit to be shown to anybody."""
    found = next((line for line in reversed(_newest_lines(home)) if _ERROR.search(line)), None)
    return None if found is None else shown(found, home)


def shown(line: str, home: Home) -> str:
    """A line of a log without this machine's folders and without anything that may be a credential."""
    line = line.replace(str(home.root), "<data folder>")
    return _SECRET.sub("<hidden>", _FOLDER.sub("<path>", line))[:SHOWN_CHARS]


def _newest_lines(home: Home) -> list[str]:
    try:
        with home.worker_log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [stripped for line in text.rpartition(STARTED)[2].splitlines() if (stripped := line.strip())]
