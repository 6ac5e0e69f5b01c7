"""Requests that stay open, of those who came with a token that can be taken away: they end when it lets nobody in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ksi_mcp.permissions import Actor
from ksi_mcp.transports.auth import Message, Receive

logger = logging.getLogger(__name__)

RECHECK_S: Final = 5.0
"""So long a stream or a call may outlast its token."""
MAX_OPEN: Final = 200
"""Requests with one token that are open at a time: who waits with all connections there are leaves none to others."""


class Guest:
    """One open request. Once its token lets nobody in, it goes on as if its client had hung up."""

    def __init__(self, token: str | None) -> None:
        self.token = token
        self._out = asyncio.Event()

    @property
    def gone(self) -> bool:
        """Whether it was put out."""
        return self._out.is_set()

    def put_out(self) -> None:
        """End the request."""
        self._out.set()

    async def hear(self, receive: Receive) -> Message:
        """What its client says next, after the body: that it hangs up, whenever that is."""
        if self.token is None:
            return await receive()
        said, out = asyncio.ensure_future(receive()), asyncio.ensure_future(self._out.wait())
        try:
            await asyncio.wait((said, out), return_when=asyncio.FIRST_COMPLETED)
            return said.result() if said.done() else {"type": "http.disconnect"}
        finally:
            said.cancel()
            out.cancel()


class Guests:
    """Looks at the tokens of all open requests again and again, each once; does nothing while there are none."""

    def __init__(self, who: Callable[[str], Awaitable[Actor | None]]) -> None:
        self._who = who
        self._inside: set[Guest] = set()
        self._rounds: asyncio.Task[None] | None = None

    def is_full(self, token: str | None) -> bool:
        """Whether there is no room for another request with this token."""
        return token is not None and sum(guest.token == token for guest in self._inside) >= MAX_OPEN

    @contextmanager
    def inside(self, token: str | None) -> Iterator[Guest]:
        """For as long as a request is open. Without a token it is the operator's, which lasts as long as the server."""
        guest = Guest(token)
        if token is not None:
            self._inside.add(guest)
            if self._rounds is None:
                self._rounds = asyncio.create_task(self._go_round(), name="ksi-guests")
        try:
            yield guest
        finally:
            self._inside.discard(guest)

    async def _go_round(self) -> None:
        try:
            while self._inside:
                await asyncio.sleep(RECHECK_S)
                for token in {guest.token for guest in self._inside if guest.token is not None and not guest.gone}:
                    await self._look_at(token)
        finally:
            self._rounds = None

    async def _look_at(self, token: str) -> None:
        try:
            known = await self._who(token)
        except Exception:
            logger.exception("a token cannot be looked at; its requests go on")
            return
        if known is None:
            for guest in [each for each in self._inside if each.token == token and not each.gone]:
                guest.put_out()

    def close(self) -> None:
        """Go round no more."""
        if self._rounds is not None:
            self._rounds.cancel()
