"""The text of a running call, stored now and then as it arrives: those who wait see it, and no failure loses it."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final, Self

from ksi_mcp.agents.history import plain
from ksi_mcp.completions.model import Loaded
from ksi_mcp.completions.units import TurnUnits
from ksi_mcp.errors import StoreError
from ksi_mcp.events.journal import Journal

EVERY_S: Final = 1.0
"""Calls that take less are never stored before their end."""
MAX_CHARS: Final = 100_000
"""Of a text that is stored while it grows: its end."""

logger = logging.getLogger(__name__)


class Streaming:
    """One call; use it as a context manager around it, and give `told` to the provider."""

    def __init__(self, journal: Journal, units: TurnUnits, item: Loaded) -> None:
        self._journal = journal
        self._units = units
        self._item = item
        self._pieces: list[str] = []
        self._chars = 0
        self._later: asyncio.TimerHandle | None = None
        self._storing: asyncio.Task[None] | None = None

    def told(self, text: str) -> None:
        """A piece of text has arrived."""
        self._pieces.append(text)
        self._chars += len(text)
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(EVERY_S, self._begin)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._later is not None:
            self._later.cancel()
        if self._storing is not None:  # what is on its way to the store may arrive: the turn's end stands above it
            self._storing.cancel()

    def _begin(self) -> None:
        self._storing = asyncio.create_task(self._store(), name="ksi-streaming")

    async def _store(self) -> None:
        stored = 0
        try:
            while True:
                if stored != self._chars:
                    stored = self._chars
                    text = plain("".join(self._pieces)[-MAX_CHARS:])
                    await self._journal.commit(
                        lambda tx, text=text, chars=stored: self._units.streamed(tx, self._item, text, chars)  # type: ignore[misc]
                    )
                await asyncio.sleep(EVERY_S)
        except StoreError:
            logger.exception("the text of turn %s is not shown as it arrives", self._item.turn.turn_id)
