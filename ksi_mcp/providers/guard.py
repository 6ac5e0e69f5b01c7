"""Ends the processes of a worker that is no more. A script of its own: it knows nothing of the package.

    python -I -S guard.py < pipe

Each line on stdin is `+PGID START MARK` (this process group is mine) or `-PGID` (it has ended). When the pipe
closes, whatever the reason, the groups that are left are killed at once, and so is every process that carries one of
their marks in its environment, wherever it has moved to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

MARK = "KSI_PROCESS"
"""The environment variable by which a process and all that it starts are known again."""

_PROC = Path("/proc")
_STATE, _GROUP, _START = 0, 2, 19
_PASSES = 50
_PAUSE_S = 0.01


def started(pid: int) -> str | None:
    """When a process was started, as text to compare; None if there is none. A number may be used again."""
    if _PROC.joinpath("self", "stat").exists():
        fields = _fields(str(pid))
        return None if fields is None else fields[_START]
    said = subprocess.run(  # noqa: S603 - a number is all that is handed over
        ["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or None


def alive(pgid: int, mark: str) -> list[int]:
    """The processes that still run in a group or carry its mark. Zombies, which only wait to be buried, do not count.

    Where there is no /proc, the group's number stands for all of them.
    """
    if not _PROC.joinpath("self", "stat").exists():
        try:
            os.killpg(pgid, 0)
        except OSError:
            return []
        return [pgid]
    return [pid for pid, group in _processes() if group == pgid or _carries(pid, (mark,))]


def kill_marked(marks: Iterable[str]) -> int:
    """Kill what carries one of these marks; how many there were. Needs /proc."""
    wanted = tuple(marks)
    killed = 0
    for pid, _ in _processes():
        if pid != os.getpid() and _carries(pid, wanted):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def kill_group(pgid: int, start: str) -> bool:
    """Kill a group, unless its number belongs to somebody else by now; whether there was anybody in it."""
    now = started(pgid)
    if now is not None and now != start:
        return False
    try:
        os.killpg(pgid, signal.SIGKILL)
    except OSError:
        return False
    return True


def kill_all(groups: dict[int, tuple[str, str]]) -> None:
    """Kill groups, each with its start and mark, and what has left them, until nothing is found any more."""
    marks = [mark for _, mark in groups.values()]
    for _ in range(_PASSES):
        for pgid, (start, _mark) in groups.items():
            kill_group(pgid, start)
        if not kill_marked(marks):
            return
        time.sleep(_PAUSE_S)  # what was being forked meanwhile is found by the next look


def _processes() -> Iterator[tuple[int, int]]:
    """Every living process and its group."""
    if not _PROC.is_dir():
        return
    for entry in os.listdir(_PROC):  # noqa: PTH208 - a hundred times as fast as building paths
        if entry.isdecimal():
            fields = _fields(entry)
            if fields is not None and fields[_STATE] not in ("Z", "X"):
                yield int(entry), int(fields[_GROUP])


def _fields(pid: str) -> list[str] | None:
    """What /proc says of a process, from its state on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
            return file.read().rpartition(b")")[2].decode("ascii", "replace").split()
    except OSError:
        return None


def _carries(pid: int, marks: tuple[str, ...]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - as above
            variables = file.read().split(b"\0")
    except OSError:  # gone, or of another user
        return False
    return any(f"{MARK}={mark}".encode() in variables for mark in marks)


def main() -> None:
    """Listen until the pipe closes, then kill what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, tuple[str, str]] = {}
    for line in sys.stdin.buffer:
        words = line.decode("ascii", "replace").split()
        if len(words) == 3 and words[0].startswith("+"):  # noqa: PLR2004 - as the module's text says
            groups[int(words[0])] = (words[1].replace("_", " "), words[2])
        elif len(words) == 1 and words[0].startswith("-"):
            groups.pop(-int(words[0]), None)
    if groups:
        kill_all(groups)


if __name__ == "__main__":
    main()
