"""Which columns of a table fit a terminal, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len

_BETWEEN: Final = 3
_PROSE_CHARS: Final = 26
"""So narrow may a column of prose become, which is wrapped between words."""
_FEWEST: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The columns that are shown, by their places, and the one of them that is wrapped.

    `same` are those left out because all rows say the same; `dropped` those that have no room.
    """

    shown: tuple[int, ...]
    wrapped: int | None
    same: tuple[int, ...]
    dropped: tuple[int, ...]


def fit(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, keep: Collection[str] = ()) -> Fitted | None:
    """Choose columns for a terminal of that width; None if a table would show too little of it.

    The first column and those in `keep` stay, also if all rows say the same there.
    """
    widths = [max(cell_len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    same = tuple(
        place
        for place in range(1, len(head))
        if len(rows) > 1 and head[place] not in keep and len({row[place] for row in rows}) == 1
    )
    if (found := _fitted(rows, widths, range(len(head)), width)) is not None:
        return found
    kept = [place for place in range(len(head)) if place not in same]
    for count in range(len(kept), min(_FEWEST, len(kept)) - 1, -1):
        found = _fitted(rows, widths, kept[:count], width)
        if found is not None:
            return Fitted(shown=found.shown, wrapped=found.wrapped, same=same, dropped=tuple(kept[count:]))
    return None


def _fitted(rows: Sequence[Sequence[str]], widths: Sequence[int], places: Sequence[int], width: int) -> Fitted | None:
    needed = sum(widths[place] + _BETWEEN for place in places)
    shown = tuple(places)
    if needed <= width:
        return Fitted(shown=shown, wrapped=None, same=(), dropped=())
    prose = [place for place in places if any(" " in row[place] for row in rows)]
    if prose:
        longest = max(prose, key=lambda place: widths[place])
        if needed - widths[longest] + min(_PROSE_CHARS, widths[longest]) <= width:
            return Fitted(shown=shown, wrapped=longest, same=(), dropped=())
    return None
