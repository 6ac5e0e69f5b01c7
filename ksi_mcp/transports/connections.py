"""Connections to the HTTP server: so many at once, and none for a client that never says what it wants.

Imports uvicorn; for `http.py`, when it serves.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: TID253  this module loads at first use

HEAD_S: Final = 20.0
"""How long the head of a request may take to come, and the rest of one that was answered before it was whole."""
MAX_CONNECTIONS: Final = 800
"""Most systems give a process 1,024 descriptors, and the store and the providers need some of them."""

_ANSWERED = (h11.IDLE, h11.DONE, h11.MUST_CLOSE)
_UNFINISHED = (h11.IDLE, h11.SEND_BODY)


class Connection(H11Protocol):
    """One connection. uvicorn itself waits for ever for the end of a head, and to begin one takes no token."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for the first request, unless there are too many connections already."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self.logger.warning("%d connections are open, the most there can be", MAX_CONNECTIONS)
            transport.abort()
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come; what is still missing of it must come in the time that is left."""
        super().data_received(data)
        if self.conn.our_state in _ANSWERED and self.conn.their_state in _UNFINISHED:
            self._wait()
        else:  # it is with the application, which has its own patience with bodies
            self._rest()

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.abort)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
