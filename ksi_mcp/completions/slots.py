"""Room for model calls: how many may be under way at each provider, as the worker keeps it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

from ksi_mcp.clock import Clock
from ksi_mcp.completions.limiter import Limits
from ksi_mcp.errors import ProviderError

LONGEST_LOOK_S = 5.0


class Slots:
    """Who holds a slot may call; the outcome of the call moves the limit.

    A turn is claimed only where its provider has room, so that what cannot run yet stays in the queue, where
    it is seen and can be cancelled; `claimed` keeps that room until the turn's first call begins.
    """

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._claimed: Counter[str] = Counter()
        self._moved = asyncio.Event()
        self._tell: Callable[[], None] | None = None

    def on_room(self, tell: Callable[[], None]) -> None:
        """Call `tell` when a provider that was full has room again: turns may wait for it in the queue."""
        self._tell = tell

    def free(self, provider: str) -> int:
        """How many more turns for that provider may be claimed."""
        return self._limits.free(provider) - self._claimed[provider]

    def opens_in_s(self, provider: str) -> float | None:
        """When a provider that asked for patience may be tried again; None if it did not."""
        at_s = self._limits.opens_at_s(provider)
        return None if at_s is None else max(at_s - self._clock.monotonic_s(), 0.0)

    def claim(self, provider: str) -> None:
        """Keep room for the first call of a turn."""
        self._claimed[provider] += 1

    def unclaim(self, provider: str) -> None:
        """The room is used now, or not needed after all."""
        self._claimed[provider] -= 1
        self._wake()

    def take(self, provider: str) -> bool:
        """Take a slot at once, if there is one."""
        if self._limits.free(provider) <= 0:
            return False
        self._limits.started(provider)
        return True

    async def enter(self, provider: str) -> None:
        """Wait for a slot and take it."""
        while self._limits.free(provider) <= 0:
            moved = self._moved
            nap_s = self.opens_in_s(provider)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_LOOK_S if nap_s is None else min(nap_s, LONGEST_LOOK_S) + 0.001):
                    await moved.wait()
        self._limits.started(provider)

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

    def leave(self, provider: str) -> None:
        """A slot that was entered is not needed: no call was made."""
        self._ended(provider, ok=False, kind=None, latency_s=0.0, retry_after_s=None)

    def _ended(
        self, provider: str, *, ok: bool, kind: str | None, latency_s: float, retry_after_s: float | None
    ) -> None:
        was_full = self._limits.free(provider) <= 0
        self._limits.ended(provider, ok=ok, kind=kind, latency_s=latency_s, retry_after_s=retry_after_s)
        self._wake()
        if was_full and self._tell is not None and self._limits.free(provider) > 0:
            self._tell()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
