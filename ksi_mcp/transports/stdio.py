"""MCP on stdin and stdout, one client, until it hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import cast

from anyio import AsyncFile

from ksi_mcp.app import App
from ksi_mcp.transports.server import ToolSet, build_server
from ksi_mcp.transports.signals import stopping

_CHUNK = 65_536
_AHEAD = 64
"""Lines read before the server has taken them."""


async def serve_stdio(app: App, *, tools: ToolSet = "default") -> None:
    """Serve until stdin closes, or SIGINT or SIGTERM comes; calls that still wait are cancelled, nothing is lost.

    Stdout carries the protocol and nothing else: what anything else prints goes to stderr.
    """
    server = build_server(app, tools=tools)
    with _own_stdin() as fd:
        lines = _Lines(fd)
        with stopping(lines.close):
            await server.serve_stdio(cast("AsyncFile[str]", lines))  # it only iterates


class _Lines:
    """Lines of a file descriptor, read by a daemon thread: a read that never returns cannot hold up the exit."""

    def __init__(self, fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue(_AHEAD)
        self._closed = asyncio.Event()
        threading.Thread(target=self._read, args=(fd,), name="ksi-stdin", daemon=True).start()

    def close(self) -> None:
        """End the iteration, as if the client had hung up."""
        self._closed.set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[str]:
        closed = asyncio.create_task(self._closed.wait())
        try:
            while not self._closed.is_set():
                taken = asyncio.create_task(self._lines.get())
                try:
                    await asyncio.wait((taken, closed), return_when=asyncio.FIRST_COMPLETED)
                    line = taken.result() if taken.done() else None
                finally:
                    taken.cancel()
                if line is None:
                    return
                yield line
        finally:
            closed.cancel()

    def _read(self, fd: int) -> None:
        parts: list[bytes] = []
        with contextlib.suppress(OSError):  # the descriptor is gone: the same as its end
            while chunk := os.read(fd, _CHUNK):
                first, *lines = chunk.split(b"\n")
                parts.append(first)
                for line in lines:
                    self._put(parts)
                    parts = [line]
        self._put(parts)
        self._put(None)

    def _put(self, parts: list[bytes] | None) -> None:
        line = None if parts is None else b"".join(parts).decode("utf-8", "replace")
        if line == "":
            return
        put = self._lines.put(line)
        try:
            # Waits while the queue is full: a client that sends faster than it is served is slowed down.
            asyncio.run_coroutine_threadsafe(put, self._loop).result()
        except RuntimeError:  # the loop has ended
            put.close()


@contextmanager
def _own_stdin() -> Iterator[int]:
    """Stdin for the protocol alone: code and child processes that read descriptor 0 find it empty."""
    original = sys.stdin.fileno()
    private = os.dup(original)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, original)
    os.close(empty)
    try:
        yield private
    finally:
        os.dup2(private, original)  # `private` stays open: a read may still be waiting on it
