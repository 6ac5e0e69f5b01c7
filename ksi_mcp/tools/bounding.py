"""No result is larger than a reader can take: what is too long is cut where it says so, and stays valid JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pydantic_core import PydanticSerializationError, to_json

MAX_RESULT_CHARS: Final = 40_000
"""Of a result as a model reads it: about 10,000 tokens."""

PAGE_CHARS: Final = MAX_RESULT_CHARS * 9 // 10
"""Of the entries of one page; the rest of the room is for what is around them."""

_TEXTS: Final = (16_000, 8_000, 4_000, 2_000, 1_000, 500, 250)
"""What is left of longer texts, tried in turn until the whole is small enough."""
_LISTS: Final = (200, 100, 50, 25, 12, 6, 3, 1, 0)
"""The same for what a list or an object holds."""
_FIELDS: Final = 20
_NAMED: Final = 5
_NOTE: Final = "cut"


def result_text(data: dict[str, Any], limit: int = MAX_RESULT_CHARS) -> str:
    """A result as a model reads it: compact JSON of at most `limit` characters."""
    text = compact(data)
    return text if len(text) <= limit else compact(cut(data, len(text), limit))


def bounded(
    data: dict[str, Any], limit: int = MAX_RESULT_CHARS, *, text: str | None = None
) -> tuple[dict[str, Any], str]:
    """A result, cut if it has to be, and its text. Both can go out: no half of a surrogate is left in them.

    `text`: what `exact` says of it, where somebody has asked that already.
    """
    if text is None:
        text = exact(data)
    if text is None:
        text = compact(data)
        data = json.loads(text)
    if len(text) <= limit:
        return data, text
    smaller = cut(data, len(text), limit)
    return smaller, compact(smaller)


def compact(data: Any) -> str:
    """JSON without a space too many."""
    text = exact(data)
    return sendable(json.dumps(data, ensure_ascii=False, separators=(",", ":"))) if text is None else text


def sendable(text: str) -> str:
    """The text without halves of surrogates: one of them in an answer would end the whole connection."""
    return text.encode("utf-8", "replace").decode()


def exact(data: Any) -> str | None:
    """JSON without a space too many; None: half a surrogate is in it, which is no text. A file's name can hold one."""
    try:
        return to_json(data, inf_nan_mode="constants").decode()
    except PydanticSerializationError:
        return None


def fitting(items: Sequence[Any], room: int = PAGE_CHARS) -> int:
    """How many of these, from the first, are no longer together than `room`: one at least, if there is one."""
    left = room
    for count, item in enumerate(items):
        left -= len(compact(item)) + 1
        if left < 0:
            return max(count, 1)
    return len(items)


def cut(data: dict[str, Any], size: int, limit: int) -> dict[str, Any]:
    """The result with its longest texts cut and then its longest lists, until it fits; it says so under `cut`."""
    for texts, items in [*((texts, None) for texts in _TEXTS), *((_TEXTS[-1], items) for items in _LISTS)]:
        shorter = _Shorter(texts, items)
        smaller = shorter.of(data, "")
        note = (
            f"this result has {size:,} characters, {limit:,} are shown: texts that were cut say so; "
            "ask for less at a time (limit), or for one thing by its id"
        )
        if shorter.lists:
            note += f"; cut as well: {', '.join(shorter.lists[:_NAMED])}"
        if shorter.entries:
            smaller.pop("cursor", None)  # the next page would not begin where this one was cut
        if len(compact(smaller | {_NOTE: note})) <= limit:
            return {**smaller, _NOTE: note}
    return {
        _NOTE: f"this result has {size:,} characters, {limit:,} can be shown; ask for less at a time, or one by its id"
    }


class _Shorter:
    """Cuts texts at `texts` characters and lists and objects at `items` entries, and remembers which lists."""

    def __init__(self, texts: int, items: int | None) -> None:
        self._texts = texts
        self._items = items
        self.lists: list[str] = []
        self.entries = False
        """Whether some of the result's own entries are gone; what is cut inside of an entry leaves its place."""

    def of(self, node: Any, path: str) -> Any:
        if isinstance(node, str):
            if len(node) <= self._texts:
                return node
            return f"{node[: self._texts]} ... [cut: {self._texts:,} of {len(node):,} characters]"
        if isinstance(node, list):
            return [self.of(each, path) for each in self._some(node, self._items, path)]
        if isinstance(node, dict):
            # The fields of a record are few, and stay.
            most = None if self._items is None else max(self._items, _FIELDS)
            kept = self._some(list(node.items()), most, path)
            return {key: self.of(each, f"{path}.{key}" if path else key) for key, each in kept}
        return node

    def _some(self, entries: list[Any], most: int | None, path: str) -> list[Any]:
        if most is None or len(entries) <= most:
            return entries
        self.entries = self.entries or "." not in path
        self.lists.append(f"{path[:80] or 'the result'} ({most:,} of {len(entries):,})")
        return entries[:most]
