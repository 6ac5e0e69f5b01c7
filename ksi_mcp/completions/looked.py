"""What a look into the semantic cache has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["served", "would_serve", "guarded", "below"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """An answered prompt near the one that is asked. `reason`: why the guard does not take them for one."""

    call_id: int
    prompt: str
    score: float
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What a look has found, and what is needed to learn the answer if nothing is served."""

    scope: str
    vector: bytes
    nearest: Nearest | None
    verdict: Verdict | None
    """None: nothing was near enough to be noted."""

    @property
    def serve(self) -> int | None:
        """The call whose answer may be served, if it is still there (`SemanticCache.note` says)."""
        return self.nearest.call_id if self.nearest is not None and self.verdict == "served" else None

    @property
    def similarity(self) -> float | None:
        """Of the nearest prompt: the cosine."""
        return None if self.nearest is None else self.nearest.score
