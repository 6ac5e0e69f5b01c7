"""Programs that work for agents: each in a process group of its own, and none outlives the worker.

Three nets, one below the other: whoever starts a group ends it; if the worker is killed, the guard process ends all
groups at once; if the guard is gone too, the next worker ends what is recorded in the data folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ksi_mcp.provider_config import ClaudeCliConfig
from ksi_mcp.providers import guard

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Of what a program says in one line."""
GRACE_S: Final = 1.0
"""How long a program may take to end by itself once it is told to."""
MB_PER_PROCESS: Final = 250
"""What a Claude Code process takes, with room to spare."""

_GONE_S: Final = 5.0
_LOOK_S: Final = 0.02
_FEWEST, _MOST = 1, 64
_MB: Final = 1024 * 1024
_WITHOUT_MEMINFO: Final = 4
_ERROR_BYTES: Final = 4096


class Running:
    """A program at work, and the group it leads. `stdout` is read by whoever started it; stderr is kept short."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str, start: str, owner: Processes) -> None:
        self.process = process
        self.pid = process.pid
        self.mark = mark
        self.start = start
        self._owner = owner
        self._errors = b""
        self._draining = asyncio.create_task(self._drain(), name=f"ksi-stderr-{self.pid}")
        self._ending: asyncio.Task[None] | None = None

    @property
    def errors(self) -> str:
        """The end of what it said on stderr."""
        return self._errors.decode("utf-8", "replace")

    async def end(self) -> None:
        """End the whole group and wait until nobody of it is left. A caller that is cancelled leaves it to go on."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name=f"ksi-end-{self.pid}")
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._signal(signal.SIGTERM)
        if not await self._is_gone(GRACE_S):
            for _ in range(3):
                self._signal(signal.SIGKILL)
                await asyncio.to_thread(guard.kill_marked, (self.mark,))
                if await self._is_gone(_GONE_S / 3):
                    break
        with contextlib.suppress(TimeoutError):  # a stranger may hold its pipes open
            async with asyncio.timeout(GRACE_S):
                await self.process.wait()
        self._draining.cancel()
        await asyncio.gather(self._draining, return_exceptions=True)
        await self._owner.ended(self)

    async def _is_gone(self, within_s: float) -> bool:
        until_s = time.monotonic() + within_s
        while await asyncio.to_thread(guard.alive, self.pid, self.mark):
            if time.monotonic() >= until_s:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    def _signal(self, number: signal.Signals) -> None:
        # As long as it is not waited for, its number is nobody else's; afterwards only if others are in its group.
        if self.process.returncode is None or guard.started(self.pid) is None:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, number)

    async def _drain(self) -> None:
        assert self.process.stderr is not None  # noqa: S101  it was started with one
        while chunk := await self.process.stderr.read(65536):
            self._errors = (self._errors + chunk)[-_ERROR_BYTES:]


class Processes:
    """Starts programs. What runs is recorded in `folder`, without their arguments or environment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, Running] = {}
        self._guard: asyncio.subprocess.Process | None = None
        self._starting_guard = asyncio.Lock()

    @property
    def count(self) -> int:
        """How many run, those that are being ended included."""
        return len(self._running)

    async def start(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Running:
        """Start a program in a new session. When this returns, the guard knows of it.

        Raises:
            OSError: it, or its guard, could not be started.
        """
        await self.watch()
        mark = secrets.token_hex(16)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env={**env, guard.MARK: mark},
            start_new_session=True,
            limit=MAX_LINE_BYTES,
        )
        running = Running(process, mark, guard.started(process.pid) or "gone", self)
        self._running[running.pid] = running
        try:
            self._record(running)
            await self.watch()
            await self._tell(f"+{running.pid} {running.start.replace(' ', '_')} {mark}")
        except BaseException:
            await running.end()
            raise
        return running

    async def ended(self, running: Running) -> None:
        """Forget a group that is gone."""
        self._running.pop(running.pid, None)
        with contextlib.suppress(OSError):
            await self._tell(f"-{running.pid}")
        self._file(running.pid).unlink(missing_ok=True)

    async def aclose(self) -> None:
        """End all that runs, then the guard."""
        await asyncio.gather(*(running.end() for running in list(self._running.values())))
        guarding, self._guard = self._guard, None
        if guarding is not None:
            assert guarding.stdin is not None  # noqa: S101  it was started with one
            guarding.stdin.close()
            await guarding.wait()

    async def watch(self) -> None:
        """See to it that the guard lives and knows of all groups."""
        async with self._starting_guard:
            if self._guard is not None and self._guard.returncode is None:
                return
            self._guard = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guard.__file__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,
            )
            for running in self._running.values():
                await self._tell(f"+{running.pid} {running.start.replace(' ', '_')} {running.mark}")

    async def _tell(self, line: str) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.write(line.encode() + b"\n")
            await self._guard.stdin.drain()

    def _record(self, running: Running) -> None:
        file = self._file(running.pid)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = {"pid": running.pid, "pgid": running.pid, "start": running.start, "mark": running.mark}
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as out:
            json.dump(facts, out)

    def _file(self, pid: int) -> Path:
        return self._folder / f"{pid}.json"


def end_recorded(folder: Path) -> int:
    """Kill what an earlier worker left running, by its records in `folder`; how many groups were still there.

    Only for the holder of the data folder's lock. A number that belongs to somebody else by now is left alone.
    """
    ended = 0
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        facts = _read(file)
        if facts is not None:
            pgid, start, mark = facts
            led = guard.started(pgid) == start and guard.alive(pgid, mark) and guard.kill_group(pgid, start)
            strayed = guard.kill_marked((mark,))
            ended += bool(led or strayed)
            until_s = time.monotonic() + _GONE_S
            while guard.started(pgid) == start and guard.alive(pgid, mark) and time.monotonic() < until_s:
                time.sleep(_LOOK_S)
        file.unlink(missing_ok=True)
    return ended


def any_recorded(folder: Path) -> bool:
    """Whether something that is recorded in `folder` still runs. Anybody may ask; nothing is changed."""
    found = [facts for file in folder.glob("*.json") if (facts := _read(file)) is not None]
    return any(guard.started(pgid) == start and guard.alive(pgid, mark) for pgid, start, mark in found)


def _read(file: Path) -> tuple[int, str, str] | None:
    try:
        facts: Any = json.loads(file.read_bytes())
        pgid, start, mark = int(facts["pgid"]), str(facts["start"]), str(facts["mark"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (pgid, start, mark) if pgid > 1 and mark else None


def process_cap(config: ClaudeCliConfig) -> int:
    """How many processes may run at once: as configured, else as many as half of the free memory holds, at least 1."""
    if config.processes is not None:
        return config.processes
    free_mb = _free_mb()
    if free_mb is None:
        return _WITHOUT_MEMINFO
    return min(max(free_mb // 2 // MB_PER_PROCESS, _FEWEST), _MOST)


def _free_mb() -> int | None:
    """What the machine has to spare, or the container, if that is less; None where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free_mb = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None
    with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
        free_mb = min(free_mb, max(limit - used, 0) // _MB)
    return free_mb
