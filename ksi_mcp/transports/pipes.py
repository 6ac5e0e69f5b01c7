"""The two ends of a stdio connection, on the event loop itself: a thread for each line doubles what a call costs."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
from collections import deque
from collections.abc import AsyncIterator

_CHUNK = 65_536
_AHEAD = 64
"""Lines read before the server has taken them; then reading rests, and a client that sends faster is slowed down."""
_SURE = getattr(select, "PIPE_BUF", 512)
"""Bytes that a pipe which is writable at all takes without waiting."""


class LinesIn:
    """The lines of a descriptor, without their ends. Only this object may read it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._lines: deque[str] = deque()
        self._parts: list[bytes] = []
        self._wake = asyncio.Event()
        self._watching = False
        self._ended = self._closed = False

    def close(self) -> None:
        """End the iteration, as if the client had hung up."""
        self._closed = True
        self._rest()
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[str]:
        try:
            while not self._closed:
                if self._lines:
                    yield self._lines.popleft()
                elif self._ended:
                    return
                else:
                    await self._more()
        finally:
            self._rest()

    async def _more(self) -> None:
        self._wake.clear()
        if not self._watching:
            try:
                self._loop.add_reader(self._fd, self._read)
                self._watching = True
            except PermissionError:  # a file: always ready, and nothing to wait for
                self._read()
                return
        await self._wake.wait()

    def _read(self) -> None:
        try:
            chunk = os.read(self._fd, _CHUNK)
        except BlockingIOError:  # somebody made it non-blocking, and it was not for us
            return
        except OSError:  # the descriptor is gone: the same as its end
            chunk = b""
        first, *lines = chunk.split(b"\n")
        self._parts.append(first)
        for line in lines:
            self._put()
            self._parts = [line]
        if not chunk:
            self._put()
            self._ended = True
        if self._ended or len(self._lines) >= _AHEAD:
            self._rest()
        if self._ended or self._lines:
            self._wake.set()

    def _put(self) -> None:
        if line := b"".join(self._parts).decode("utf-8", "replace"):
            self._lines.append(line)
        self._parts = []

    def _rest(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._fd)


class TextOut:
    """Text to a descriptor, each piece whole, in the order of the calls; they wait while the client does not read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        # A writable socket promises no room, but can be asked not to wait; a pipe cannot be, but does promise.
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(os.fstat(fd).st_mode) else None

    async def write(self, text: str) -> None:
        """Write all of it.

        Raises:
            OSError: the client has closed its end.
        """
        rest = memoryview(text.encode("utf-8", "replace"))
        async with self._turn:
            while rest:
                if not self._poll.poll(0):
                    await self._writable()
                rest = rest[self._send(rest) :]

    async def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Give up what this object opened; the descriptor is its owner's."""
        if self._socket is not None:
            self._socket.close()

    def _send(self, data: memoryview) -> int:
        try:
            if self._socket is None:
                return os.write(self._fd, data[:_SURE])
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    async def _writable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_writer(self._fd)
