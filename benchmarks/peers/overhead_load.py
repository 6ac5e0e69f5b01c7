"""What `provider_overhead` does with each client, ours and the others: all it knows is a function that makes a call.

A call is given the name of a model, streams the answer to the end and returns its text; the simulator knows three
models: `quick` answers at once, `second` after a second, `patient` after a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

Call = Callable[[str], Awaitable[str]]

MODELS = ("quick", "second", "patient")
SYSTEM = "You answer briefly."
PROMPT = "Which of the parts that are left should be done first, and why?"
MAX_TOKENS = 256
AT_ONCE = 8
CALLS = 400
CROWD = 512
QUIET_S = 0.3
QUIET_CPU_S = 0.01


async def cpu_ms(call: Call) -> float:
    """Processor time of this process for one call, in milliseconds, a few at a time."""
    await _rounds(call, 10)
    began_s = time.process_time()
    await _rounds(call, CALLS // AT_ONCE)
    return (time.process_time() - began_s) / CALLS * 1000


async def crowd(call: Call) -> dict[str, float]:
    """Many calls of a second at once: how long until the last has ended, in seconds, and how many failed."""
    await call("quick")
    began_s = time.perf_counter()
    ended = await asyncio.gather(*(call("second") for _ in range(CROWD)), return_exceptions=True)
    seconds = time.perf_counter() - began_s
    return {"seconds": seconds, "failures": sum(not isinstance(text, str) or not text for text in ended)}


async def waiting_kb(call: Call) -> float:
    """Resident memory of a call that waits for its answer, in KiB: that of many, divided."""
    await _rounds(call, 10)
    before_kb = _rss_kb()
    calls = [asyncio.ensure_future(call("patient")) for _ in range(CROWD)]
    await _until_quiet()
    grown_kb = _rss_kb() - before_kb
    if any(made.done() for made in calls):
        raise SystemExit(f"a call did not wait: {next(made for made in calls if made.done())}")
    for made in calls:
        made.cancel()
    with contextlib.suppress(Exception):
        await asyncio.gather(*calls, return_exceptions=True)
    return grown_kb / CROWD


PARTS: dict[str, Callable[[Call], Awaitable[object]]] = {"cpu": cpu_ms, "crowd": crowd, "memory": waiting_kb}


async def _rounds(call: Call, rounds: int) -> None:
    for _ in range(rounds):
        await asyncio.gather(*(call("quick") for _ in range(AT_ONCE)))


async def _until_quiet() -> None:
    """All have been sent once this process has nothing left to do."""
    while True:
        began_s = time.process_time()
        await asyncio.sleep(QUIET_S)
        if time.process_time() - began_s < QUIET_CPU_S:
            return


def _rss_kb() -> int:
    status = Path("/proc/self/status").read_text("utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
