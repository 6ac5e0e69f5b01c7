"""Room for model calls: how many may be under way at each provider, as the worker keeps it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator

from ksi_mcp.clock import Clock
from ksi_mcp.completions.limiter import Limits
from ksi_mcp.errors import ProviderError

LONGEST_LOOK_S = 5.0
"""Whoever waits for room looks so often, whatever was heard."""
_LATE_S = 0.0001
"""A timer may fire a little early."""


class Slots:
    """Who holds a slot may call; the outcome of the call moves the limit.

    A turn is claimed only where its provider has room, so that what cannot run yet stays in the queue, where
    it is seen and can be cancelled; `claimed` keeps that room until the turn's first call begins.
    """

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._claimed: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By provider, oldest first. A slot is handed to them, so that none wakes in vain."""
        self._looks: dict[str, asyncio.TimerHandle] = {}
        """Where somebody waits: when room is next to be looked for, if no call ends before."""
        self._tell: Callable[[], None] | None = None

    def on_room(self, tell: Callable[[], None]) -> None:
        """Call `tell` when a provider that was full has room again: turns may wait for it in the queue."""
        self._tell = tell

    def free(self, provider: str) -> int:
        """How many more turns for that provider may be claimed."""
        return self._limits.free(provider) - self._claimed[provider] - len(self._waiting.get(provider, ()))

    def opens_in_s(self, provider: str) -> float | None:
        """When a full provider has room though no call ended; None if it is not full or only an end makes room.

        Either it asked for patience, which is over then, or nothing was refused for so long that more may be tried.
        """
        at_s = self._limits.opens_at_s(provider)
        if at_s is None:
            at_s = self._limits.grows_at_s(provider)
        return None if at_s is None else max(at_s - self._clock.monotonic_s(), 0.0)

    def claim(self, provider: str) -> None:
        """Keep room for the first call of a turn."""
        self._claimed[provider] += 1

    def unclaim(self, provider: str) -> None:
        """The room is used now, or not needed after all."""
        self._claimed[provider] -= 1

    def take(self, provider: str) -> bool:
        """Take a slot at once, if there is one."""
        if self._limits.free(provider) <= 0:
            return False
        self._limits.started(provider)
        return True

    async def enter(self, provider: str) -> None:
        """Wait for a slot and take it. Whoever came first is served first."""
        waiting = self._waiting.get(provider)
        if not waiting and self.take(provider):
            return
        place = asyncio.get_running_loop().create_future()
        if waiting is None:
            waiting = self._waiting[provider] = deque()
        waiting.append(place)
        self._serve(provider)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was handed over in the same moment
                self.leave(provider)
            elif place in waiting:
                waiting.remove(place)
            raise

    @contextlib.asynccontextmanager
    async def call(self, provider: str) -> AsyncIterator[None]:
        """The call itself, made in a slot that was entered; how it ends moves the limit."""
        began_s = self._clock.monotonic_s()
        ok, kind, retry_after_s = False, None, None
        try:
            yield
            ok = True
        except ProviderError as error:
            kind, retry_after_s = error.kind, error.retry_after_s
            raise
        finally:
            self._ended(
                provider, ok=ok, kind=kind, latency_s=self._clock.monotonic_s() - began_s, retry_after_s=retry_after_s
            )

    @contextlib.contextmanager
    def resting(self, provider: str) -> Iterator[None]:
        """A call that is under way waits for others of its provider: they may have its place meanwhile."""
        self._ended(provider, ok=False, kind=None, latency_s=0.0, retry_after_s=None)
        try:
            yield
        finally:
            self._limits.started(provider)

    def leave(self, provider: str) -> None:
        """A slot that was entered is not needed: no call was made."""
        self._ended(provider, ok=False, kind=None, latency_s=0.0, retry_after_s=None)

    def _ended(
        self, provider: str, *, ok: bool, kind: str | None, latency_s: float, retry_after_s: float | None
    ) -> None:
        was_full = self._limits.free(provider) <= 0
        self._limits.ended(provider, ok=ok, kind=kind, latency_s=latency_s, retry_after_s=retry_after_s)
        self._serve(provider)
        if was_full and self._tell is not None and self._limits.free(provider) > 0:
            self._tell()

    def _serve(self, provider: str) -> None:
        """Hand what room there is to those who wait, oldest first, and look again when there may be more."""
        waiting = self._waiting.get(provider)
        while waiting:
            if waiting[0].done():  # whoever it was has been cancelled
                waiting.popleft()
            elif self.take(provider):
                waiting.popleft().set_result(None)
            else:
                break
        if waiting:
            self._look_again(provider)

    def _look_again(self, provider: str) -> None:
        opens_in_s = self.opens_in_s(provider)
        nap_s = _LATE_S + (LONGEST_LOOK_S if opens_in_s is None else min(opens_in_s, LONGEST_LOOK_S))
        loop, known = asyncio.get_running_loop(), self._looks.get(provider)
        if known is not None:
            if known.when() <= loop.time() + nap_s:
                return
            known.cancel()
        self._looks[provider] = loop.call_later(nap_s, self._look, provider)

    def _look(self, provider: str) -> None:
        del self._looks[provider]
        self._serve(provider)
