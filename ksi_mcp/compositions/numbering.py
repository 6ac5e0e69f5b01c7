"""Values by number: two have the same one if and only if they are the same, type and all. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any


class Numbering:
    """Each different value gets a number once, so that comparing whole branches costs nothing.

    Unlike `==` it tells `1`, `1.0` and `true` apart. The values numbered must not change while it is used.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._seen: dict[int, tuple[Any, int]] = {}

    def of(self, value: Any) -> int:
        """The number of a value that JSON can hold."""
        if not isinstance(value, dict | list):
            return self._number((type(value), value))
        known = self._seen.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, dict):
            number = self._number((dict, frozenset((key, self.of(item)) for key, item in value.items())))
        else:
            number = self._number((list, tuple(self.of(item) for item in value)))
        self._seen[id(value)] = (value, number)  # held, so that its id stays its own
        return number

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))
