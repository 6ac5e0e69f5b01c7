"""Signs of life: the worker gives them, and whoever waits for it ends one that gives none while it holds the lock.

A dead worker needs none of this, its lock is free. This is for the one that hangs: stopped, or stuck in a call
that does not come back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from ksi_mcp.clock import Clock
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Conflict, StoreError
from ksi_mcp.events.journal import Journal
from ksi_mcp.ids import WorkerId
from ksi_mcp.permissions import SYSTEM, fresh_context

logger = logging.getLogger(__name__)

LOOKS = 4
"""A worker is taken to hang after so many looks at least, so that an observer that slept itself does not judge."""
_PS_S = 5.0
_TICKS = 19
"""Place of the start time in `/proc/<pid>/stat`, counted after the name in brackets."""


class Heartbeat:
    """What the holder of the worker's lock says of itself: one row, whose number grows every `every_s` seconds."""

    def __init__(self, journal: Journal, worker_id: WorkerId, *, every_s: float, lost: Callable[[], None]) -> None:
        self._journal = journal
        self._worker_id = worker_id
        self._every_s = every_s
        self._lost = lost

    async def begin(self) -> None:
        """Say who holds the lock from now on; what others said before is gone, and they notice it."""
        values = {
            "worker_id": self._worker_id,
            "pid": os.getpid(),
            "host": platform.node(),
            "process_start": process_start(os.getpid()) or "unknown",
        }

        def unit(tx: Tx) -> None:
            tx.run("completions.worker_clear")
            tx.run("completions.worker_begin", {**values, "now_ms": tx.now_ms})

        await self._journal.commit(unit)

    async def run(self) -> None:
        """Give signs of life until cancelled.

        Raises:
            Conflict: another worker has taken over; `lost` was called.
        """
        while True:
            await asyncio.sleep(self._every_s)
            try:
                beaten = await self._journal.commit(self._beat)
            except StoreError:
                logger.exception("the worker's sign of life could not be stored; trying again")
                continue
            if not beaten:
                self._lost()
                raise Conflict("another worker has taken over this data folder", hint="this one runs nothing any more")

    def _beat(self, tx: Tx) -> int:
        return tx.run("completions.worker_beat", {"worker_id": self._worker_id, "now_ms": tx.now_ms})


class HungWorkerWatch:
    """Ends a worker that holds the lock and gave no sign of life for `hung_s` seconds of the observer's own time.

    The observer counts only the time between its looks, and of that at most a part at once: a machine that slept,
    or an observer that was stopped, has seen nothing. A worker on another host, or a process that only has its
    number, is left alone.
    """

    def __init__(self, journal: Journal, clock: Clock, *, hung_s: float, held: Callable[[], bool]) -> None:
        self._journal = journal
        self._clock = clock
        self._hung_s = hung_s
        self._held = held
        self._sign: tuple[str, int] | None = None
        self._seen_s = 0.0
        self._silent_s = 0.0

    @property
    def look_s(self) -> float:
        """How long the observer may leave it unobserved."""
        return self._hung_s / LOOKS

    async def look(self) -> bool:
        """Note whether the worker gave a sign; True if it hung and was ended."""
        row = await self._journal.read(lambda tx: tx.one("completions.worker_sign"))
        now_s = self._clock.monotonic_s()
        sign = None if row is None else (str(row["worker_id"]), int(row["beat"]))
        self._silent_s = self._silent_s + min(now_s - self._seen_s, self.look_s) if sign == self._sign else 0.0
        self._sign, self._seen_s = sign, now_s
        if row is None or self._silent_s < self._hung_s:
            return False
        self._silent_s = 0.0
        if not (_same_process(row) and self._held()):
            return False
        return await self._end(row)

    async def _end(self, row: Row) -> bool:
        try:
            os.kill(row["pid"], signal.SIGKILL)
        except (ProcessLookupError, PermissionError) as failure:
            logger.warning("the worker process %d hangs and cannot be ended: %s", row["pid"], failure)
            return False
        logger.error("the worker process %d gave no sign of life for %g s and was ended", row["pid"], self._hung_s)
        facts = {"worker": row["worker_id"], "silent_s": self._hung_s, "beats": row["beat"]}

        def unit(tx: Tx) -> None:
            self._journal.record(tx, "system:worker_killed", facts, fresh_context(SYSTEM))

        await self._journal.commit(unit)
        return True


def process_start(pid: int) -> str | None:
    """When a process of this host began, in whatever form the host tells; None if there is none, or it cannot tell."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}:{stat.read_text('ascii', 'replace').rpartition(')')[2].split()[_TICKS]}"
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        ps = subprocess.run(  # noqa: S603  a fixed program, and a number
            ["/bin/ps", "-o", "lstart=", "-p", str(int(pid))], capture_output=True, timeout=_PS_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ps.stdout.decode("ascii", "replace").strip() or None


def _same_process(row: Row) -> bool:
    pid = int(row["pid"])
    here = bool(row["host"] == platform.node()) and pid != os.getpid()
    return here and process_start(pid) == str(row["process_start"])
