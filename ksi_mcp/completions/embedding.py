"""Texts as points: the operator's embedder, called where it can do no harm."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import math
import re
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

from ksi_mcp.providers.failures import safe_text

Embed = Callable[[list[str]], Sequence[Sequence[float]]]

LIMIT_S: Final = 5.0
"""A turn waits so long for its vector. An embedder that loads longer goes on loading; turns go without meanwhile."""
MAX_DIMENSIONS: Final = 8_192

_NAME: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class NoVector(Exception):
    """The embedder gave none; the text says why."""


class Embedder:
    """One function of the configuration, imported when it is first needed.

    It runs in a thread of its own that ends with the process, one call at a time: one that hangs holds up nothing but
    the look-ups, and nobody waits for it.
    """

    def __init__(self, name: str, *, limit_s: float = LIMIT_S) -> None:
        self._name = name
        self._limit_s = limit_s
        self._function: Embed | None = None
        self._one_at_a_time = asyncio.Lock()
        self._busy = False

    async def vector(self, text: str) -> array[float]:
        """The text as a vector of length 1.

        Raises:
            NoVector: it could not be imported, failed, took too long, or gave something else than one vector.
        """
        try:
            async with asyncio.timeout(self._limit_s), self._one_at_a_time:
                if self._busy:  # with the text of somebody who has gone
                    raise NoVector("the embedder is still busy with an earlier text")
                found = await self._call(text)
        except TimeoutError:
            raise NoVector(f"the embedder took longer than {self._limit_s:g} s") from None
        return unit_vector(found)

    async def _call(self, text: str) -> Any:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()

        def deliver(found: Any, failure: NoVector | None) -> None:
            if answered.done():  # nobody waits any more
                return
            if failure is None:
                answered.set_result(found)
            else:
                answered.set_exception(failure)

        def work() -> None:
            found, failure = None, None
            try:
                found = _only(self._load()([text]))
            except NoVector as wrong:
                failure = wrong
            except BaseException as wrong:  # noqa: BLE001  whatever somebody else's code raises, a turn goes on
                failure = NoVector(f"the embedder failed: {type(wrong).__name__}: {safe_text(str(wrong))[:200]}")
            self._busy = False
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(deliver, found, failure)

        self._busy = True
        threading.Thread(target=work, name="embedder", daemon=True).start()
        return await answered

    def _load(self) -> Embed:
        if self._function is None:
            if not _NAME.fullmatch(self._name):
                raise NoVector("semantic_cache.embedder is not of the form package.module:function")
            module, _, path = self._name.partition(":")
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
            self._function = found
        assert self._function is not None  # noqa: S101  set above
        return self._function


def _only(found: Any) -> list[float]:
    """The one vector, as numbers of Python's own."""
    vectors = list(found)
    if len(vectors) != 1:
        raise NoVector(f"the embedder gave {len(vectors)} vectors for 1 text")
    return [float(value) for value in vectors[0]]


def unit_vector(values: Sequence[float]) -> array[float]:
    """The same direction with length 1.

    Raises:
        NoVector: it has no direction: no numbers, too many, none but noughts, or one that is not finite.
    """
    if not 1 <= len(values) <= MAX_DIMENSIONS:
        raise NoVector(f"the embedder gave a vector of {len(values):,} numbers; 1 to {MAX_DIMENSIONS:,} are taken")
    length = math.hypot(*values)
    if not (math.isfinite(length) and length > 0):
        raise NoVector("the embedder gave a vector without a direction: nought, infinite or not a number")
    return array("f", [value / length for value in values])
