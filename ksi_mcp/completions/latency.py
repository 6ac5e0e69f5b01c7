"""How long calls of a model take, so that a deadline fits the work: neither cut off early nor waited for in vain."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from ksi_mcp.db import Tx

REMEMBERED: Final = 50
ENOUGH: Final = 10
"""Fewer observations say nothing about the slowest one in twenty."""
LONGEST_S: Final = 600.0
_PERCENTILE: Final = 0.95
_FACTOR: Final = 2.0
_LOOK_BACK: Final = 5_000
"""Calls that `load` looks at."""
_KEYS: Final = 1_000
"""Names of models come from outside; the one not heard of for longest is forgotten."""


class Latencies:
    """The last 50 latencies of each model and class of work, in memory.

    A call that ran into its deadline belongs in here as well, with the time it was given: otherwise a model that has
    become slow would be known by its quick answers alone, and never be given more time.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], deque[float]] = {}

    def load(self, tx: Tx) -> None:
        """Take over what the newest calls in the store took, in place of what is remembered."""
        self._seen.clear()
        for row in tx.all("completions.recent_latencies", {"look_back": _LOOK_BACK}):
            self.observe(row["model"], row["op_class"], row["took_ms"] / 1000)

    def observe(self, model: str, op_class: str, seconds: float) -> None:
        """Remember an answered call, or one that ran out of time. What is no duration is not taken."""
        if not (math.isfinite(seconds) and seconds >= 0):
            return
        key = (model, op_class)
        seen = self._seen.pop(key, None) or deque(maxlen=REMEMBERED)
        seen.append(seconds)
        self._seen[key] = seen
        if len(self._seen) > _KEYS:
            del self._seen[next(iter(self._seen))]

    def p95(self, model: str, op_class: str) -> float | None:
        """The seconds within which 95 % of them ended (nearest rank); None below 10 observations."""
        seen = self._seen.get((model, op_class), ())
        if len(seen) < ENOUGH:
            return None
        return sorted(seen)[math.ceil(_PERCENTILE * len(seen)) - 1]

    def deadline_s(self, model: str, op_class: str, *, floor_s: float) -> float:
        """Twice the 95th percentile, but at least `floor_s`, and never more than 600 s."""
        p95_s = self.p95(model, op_class)
        return min(max(floor_s, _FACTOR * p95_s) if p95_s is not None else floor_s, LONGEST_S)
