"""Which compositions have what is looked for, best first, a page at a time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ksi_mcp.compositions.model import shorten
from ksi_mcp.compositions.store import Head
from ksi_mcp.errors import Invalid

MAX_PAGE: Final = 100
_CURSOR_DIGITS: Final = 8
_WORD_CHARS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is looked for: a type, all of the tags, all of the words of `text`."""

    type: str | None = None
    tags: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositionPage:
    """Best matches first. `cursor` asks for the next ones; None when there are none."""

    items: tuple[Head, ...]
    total: int
    cursor: str | None


def page_of(heads: Sequence[Head], wanted: Wanted, *, limit: int, cursor: str | None) -> CompositionPage:
    """The matches from `cursor` on, ranked by how well the words fit, then by name.

    Raises:
        Invalid: the cursor is not one of ours.
    """
    start = _offset(cursor)
    tags = {tag.lower() for tag in wanted.tags}
    words = wanted.text.lower().split()
    ranked: list[tuple[int, Head]] = []
    for head in heads:
        if wanted.type is not None and head.type != wanted.type:
            continue
        if not tags <= {tag.lower() for tag in head.tags}:
            continue
        score = _score(head, words)
        if score is not None:
            ranked.append((-score, head))
    ranked.sort(key=lambda pair: (pair[0], pair[1].name))
    end = start + max(1, min(limit, MAX_PAGE))
    return CompositionPage(
        items=tuple(head for _, head in ranked[start:end]),
        total=len(ranked),
        cursor=str(end) if end < len(ranked) else None,
    )


def is_alike(name: str, reference: str) -> bool:
    """Whether `name` may be what a misspelt `reference` meant."""
    wanted = {part for part in reference.lower().replace("-", "_").split("_") if len(part) >= _WORD_CHARS}
    return any(part in name for part in wanted)


def _score(head: Head, words: list[str]) -> int | None:
    """How well all the words fit: the name counts most, then tags, then the description; None if one is missing."""
    name, description = head.name.lower(), head.description.lower()
    tags = [tag.lower() for tag in head.tags]
    total = 0
    for word in words:
        score = 4 * (word in name) + 3 * (word in tags) + 2 * any(word in tag for tag in tags) + (word in description)
        if not score:
            return None
        total += score
    return total


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= _CURSOR_DIGITS):
        raise Invalid(f"{shorten(cursor)!r} is not a cursor of this list", hint="leave it out to begin again")
    return int(cursor)
