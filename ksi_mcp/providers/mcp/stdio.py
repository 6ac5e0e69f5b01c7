"""An MCP server as a process of its own: lines in, lines out, all of it bounded, and an end that is certain.

The SDK's own way to start one keeps whatever arrives before the end of a line in memory, and looks at it anew with
each piece: fifty megabytes without a line break would hold the worker for many seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from ksi_mcp.providers.processes import Running

MAX_MESSAGES_PER_S: Final = 2_000
"""One that says more is read more slowly."""
GRACE_S: Final = 2.0
"""To end by itself once nobody talks to it any more."""
_PIECE: Final = 65_536
_ENDS: Final = 256
_LOOK_S: Final = 0.01
# What every program needs; none of it is a secret.
_PASSED_ON: Final = (
    "PATH", "HOME", "LOGNAME", "USER", "SHELL", "TERM", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR",
)  # fmt: skip
# Where an answer says whose it is: at its beginning, or at its end.
_ID_FIRST = re.compile(rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,18})\s*,')
_ID_LAST = re.compile(rb'[,{]\s*"id"\s*:\s*(\d{1,18})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLong:
    """A message that could not be taken; `request_id` says whose answer it was, if it could be told."""

    request_id: int | None


def environment(own: Mapping[str, str], outer: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What such a process is given of the environment: what every program needs, and what is set for it."""
    return {name: outer[name] for name in _PASSED_ON if name in outer} | dict(own)


async def messages(stdout: asyncio.StreamReader) -> AsyncIterator[bytes | TooLong]:
    """The lines of a server, until it closes its output. What is longer than the reader's limit is passed over."""
    said, since_s = 0, time.monotonic()
    while True:
        line: bytes | TooLong
        try:
            line = await stdout.readuntil(b"\n")
        except asyncio.LimitOverrunError as over:
            line = await _pass_over(stdout, over.consumed)
        except (asyncio.IncompleteReadError, OSError):
            return
        if (said := said + 1) >= MAX_MESSAGES_PER_S:
            await asyncio.sleep(max(0.0, since_s + 1 - time.monotonic()))
            said, since_s = 0, time.monotonic()
        yield line


async def _pass_over(stdout: asyncio.StreamReader, consumed: int) -> TooLong:
    """Read to the end of a line that is too long, and keep only where it may say whose answer it is."""
    first, last = b"", b""
    while True:
        piece = await stdout.read(consumed) if consumed else b""
        first = first or piece[:_ENDS]
        last = (last + piece[-_ENDS:])[-_ENDS:]
        try:
            rest = await stdout.readuntil(b"\n")
        except asyncio.LimitOverrunError as over:
            consumed = over.consumed
            continue
        except (asyncio.IncompleteReadError, OSError):
            return TooLong(request_id=None)
        return _whose(first or rest[:_ENDS], (last + rest[-_ENDS:])[-_ENDS:])


def unreadable(line: bytes) -> TooLong:
    """The same for a line that is no message."""
    return _whose(line[:_ENDS], line[-_ENDS:])


def _whose(first: bytes, last: bytes) -> TooLong:
    found = _ID_FIRST.match(first) or _ID_LAST.search(last)
    return TooLong(request_id=int(found.group(1)) if found else None)


async def stop(running: Running) -> None:
    """Close its input, and end it and all that it has started if that does not do; returns when it is gone.

    Nobody else may read its output any more: one that is busy writing cannot see that its input is closed.
    """
    process = running.process
    if process.stdin is not None:
        process.stdin.close()
    draining = asyncio.create_task(_drain(process.stdout))
    until_s = time.monotonic() + GRACE_S
    # `wait` would also wait for the pipes, which somebody else may hold.
    while process.returncode is None and time.monotonic() < until_s:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
    await running.end()
    draining.cancel()
    await asyncio.wait({draining})


async def _drain(stdout: asyncio.StreamReader | None) -> None:
    with contextlib.suppress(OSError):
        while stdout is not None and await stdout.read(_PIECE):
            pass
