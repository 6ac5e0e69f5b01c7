"""Run a command's coroutine, and end it as a process is asked to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ksi_mcp.agents.model import Agent
    from ksi_mcp.completions.toolcalls import ToolRunner
    from ksi_mcp.providers.door import Door

logger = logging.getLogger(__name__)

T = TypeVar("T")


def open_door(tools: ToolRunner, load: Callable[[str], Awaitable[Agent]]) -> Door:
    """The door through which agents that run as processes use our tools. Called once one of them needs it."""
    from ksi_mcp.transports.agent_door import AgentDoor

    return AgentDoor(tools, load)


def run_until_told(work: Coroutine[Any, Any, T], *, drain: Callable[[], Awaitable[None]] | None = None) -> T | None:
    """Run `work` to its end. SIGTERM cancels it: what it opened is closed, and None is returned.

    With `drain` that is awaited first, so that what is under way can come to a good end. A second SIGTERM
    ends the process at once. Ctrl-C is `KeyboardInterrupt`, as always.
    """
    return asyncio.run(_guarded(work, drain))


async def _guarded(work: Coroutine[Any, Any, T], drain: Callable[[], Awaitable[None]] | None) -> T | None:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    told: asyncio.Task[None] | None = None

    async def end() -> None:
        try:
            if drain is not None and not task.done():
                await drain()
        except Exception:  # then without
            logger.exception("what was under way could not be brought to an end")
        finally:
            task.cancel()

    def hear() -> None:
        nonlocal told
        loop.remove_signal_handler(signal.SIGTERM)
        told = asyncio.create_task(end())

    with contextlib.suppress(NotImplementedError):  # where a loop has no signals, the process is just ended
        loop.add_signal_handler(signal.SIGTERM, hear)
    try:
        return await task
    except asyncio.CancelledError:
        if told is not None:
            return None
        task.cancel()
        await asyncio.wait([task])
        raise
    finally:
        if told is not None:
            told.cancel()
