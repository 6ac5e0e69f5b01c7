"""Records of rows that are read again and again and hardly change: the same row gives the same record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

from ksi_mcp.db.database import Row

R = TypeVar("R")


class Kept(Generic[R]):
    """The records of the newest `size` different rows. They are shared by all who ask, so they must not be changed."""

    def __init__(self, make: Callable[[Row], R], *, size: int) -> None:
        @lru_cache(maxsize=size)
        def made(names: tuple[str, ...], values: tuple[Any, ...]) -> R:
            return make(cast("Row", dict(zip(names, values, strict=True))))

        self._made = made

    def of(self, rows: Sequence[Row]) -> list[R]:
        """The records of rows of one statement."""
        if not rows:
            return []
        names = tuple(rows[0].keys())
        return [self._made(names, tuple(row)) for row in rows]
