"""Run a command's coroutine, and end it as a process is asked to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_until_told(work: Coroutine[Any, Any, T]) -> T | None:
    """Run `work` to its end. SIGTERM cancels it: what it opened is closed, and None is returned.

    A second SIGTERM ends the process at once. Ctrl-C is `KeyboardInterrupt`, as always.
    """
    return asyncio.run(_guarded(work))


async def _guarded(work: Coroutine[Any, Any, T]) -> T | None:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    told = False

    def end() -> None:
        nonlocal told
        told = True
        loop.remove_signal_handler(signal.SIGTERM)
        task.cancel()

    with contextlib.suppress(NotImplementedError):  # where a loop has no signals, the process is just ended
        loop.add_signal_handler(signal.SIGTERM, end)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            return None
        task.cancel()
        await asyncio.wait([task])
        raise
