"""How things look on a terminal: money, times, sizes, bars, tables. What others wrote goes through `escaping` first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.box import ASCII2, SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ksi_mcp.cli.escaping import one_line

PIPED_WIDTH: Final = 100
"""A pipe has no width of its own."""
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400


def make_console(*, error: bool = False) -> Console:
    """Where a command writes. What the terminal cannot show is replaced, never a failure."""
    stream = sys.stderr if error else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console


def plain_lines(text: str, *, limit: int = 200) -> list[str]:
    """Text that others wrote, made harmless line by line, with the indentation kept."""
    found = []
    for line in text.splitlines()[:limit]:
        body = line.expandtabs(4)
        found.append(" " * min(len(body) - len(body.lstrip(" ")), 40) + one_line(body))
    return found


def clip(text: str, width: int, *, tail: bool = False) -> str:
    """`text` in so many columns at most; what does not fit is cut at its end, or (`tail`) at its beginning."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return text
    if width == 1:
        return "…"
    if not tail:
        return set_cell_size(text, width - 1).rstrip(" ") + "…"
    end = text[-width:]
    while cell_len(end) > width - 1:
        end = end[1:]
    return "…" + end


def usd(amount: float | None) -> str:
    """US dollars: exact while they are small, and never longer than eight characters below a million."""
    if amount is None:
        return "-"
    if amount == 0:
        return "$0"
    size = abs(amount)
    digits = 2 if size >= 100 else 3 if size >= 1 else 4 if size >= 0.001 else 6  # noqa: PLR2004  significant digits
    return f"${amount:,.{digits}f}"


def count(number: float) -> str:
    """A number in four or five characters: 950, 12.1k, 3.4M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            size = number / (1e3 if unit == "k" else limit)
            return f"{size:.1f}{unit}" if abs(size) < 100 else f"{size:.0f}{unit}"  # noqa: PLR2004  three digits
    return f"{number:,.0f}"


def many(number: int, what: str) -> str:
    """`1 turn`, `2 turns`."""
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """0.4s, 12s, 3m05s, 2h07m, 4d03h."""
    if seconds < 0:
        seconds = 0.0
    if seconds < 9.95:  # noqa: PLR2004  from here on 10s
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m{whole % _MINUTE_S:02}s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S:02}m"
    return f"{whole // _DAY_S}d{whole % _DAY_S // _HOUR_S:02}h"


def clock_time(stamp: str) -> str:
    """A moment of a result (ISO 8601 in UTC) as the time of day here."""
    return f"{moment(stamp).astimezone():%H:%M:%S}"


def moment(stamp: str) -> datetime:
    """A moment of a result."""
    return datetime.fromisoformat(stamp)


def bar(share: float, width: int, *, style: str = "") -> Text:
    """How far something is, as a bar: yellow from 80 per cent on, red at the limit, unless a style is given."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    if share > 0 and eighths == 0:
        eighths = 1
    full, part = divmod(eighths, 8)
    colour = style or ("red" if share >= 1 else "yellow" if share >= 0.8 else "green")  # noqa: PLR2004  as reported
    done = "█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return Text.assemble((done, f"{colour} on grey23" if part else colour), (" " * (width - len(done)), "on grey23"))


def spark(values: Sequence[float], width: int) -> str:
    """The newest values as a line of small bars."""
    shown = list(values)[-width:]
    most = max(shown, default=0.0)
    if most <= 0:
        return "▁" * len(shown)
    return "".join("▁▂▃▄▅▆▇█"[min(int(value / most * 7.999), 7)] for value in shown)


class Tail(str):
    """A text of which the end is what matters: where it is too long, its beginning is left out."""

    __slots__ = ()


Cell = str | tuple[str, str] | Text
"""Text, text and its style, or a piece that is as wide as it should be already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of lines that fit exactly. `width` 0: what is left.

    The one with the highest `leaves` goes first where the terminal is narrow; 0 stays.
    """

    title: str
    width: int = 0
    right: bool = False
    leaves: int = 0


def lines_of(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    width: int,
    *,
    selected: int | None = None,
    room: int = 28,
) -> list[Text]:
    """The rows as lines of exactly `width` columns below their titles; the selected one stands out.

    What is too long is cut. The column without a width gets `room` at least, as long as another can leave.
    """
    kept = list(range(len(columns)))
    while _rest(columns, kept, width) < room and (leaving := [n for n in kept if columns[n].leaves]):
        kept.remove(max(leaving, key=lambda n: columns[n].leaves))
    rest = max(_rest(columns, kept, width), 0)
    sizes = {n: columns[n].width or rest for n in kept}
    lines = [_line(columns, kept, sizes, [(each.title, "bold bright_black") for each in columns])]
    lines += [_line(columns, kept, sizes, row) for row in rows]
    if selected is not None and 0 <= selected < len(rows):
        chosen = lines[selected + 1].plain
        lines[selected + 1] = Text(chosen + " " * max(width - cell_len(chosen), 0), "reverse", no_wrap=True)
    for line in lines:
        line.truncate(width)
    return lines


def _rest(columns: Sequence[Column], kept: Sequence[int], width: int) -> int:
    return width - sum(columns[n].width for n in kept) - 2 * max(len(kept) - 1, 0)


def _line(columns: Sequence[Column], kept: Sequence[int], sizes: dict[int, int], row: Sequence[Cell]) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    for place, n in enumerate(kept):
        cell, size = row[n], sizes[n]
        if place:
            line.append("  ")
        if isinstance(cell, Text):
            line.append_text(cell)
            line.append(" " * max(size - cell.cell_len, 0))
            continue
        text, style = (cell, "") if isinstance(cell, str) else cell
        text = clip(text, size, tail=isinstance(text, Tail))
        gap = " " * max(size - cell_len(text), 0)
        line.append(gap + text if columns[n].right else text + gap, style or None)
    return line


def make_table(console: Console, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the style of the house; the columns named in `right` hold numbers."""
    box = SIMPLE_HEAD if console.encoding.startswith("utf") else ASCII2
    table = Table(box=box, pad_edge=True, show_edge=False, header_style="bold", padding=(0, 1))
    for name in columns:
        if name in right:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    return table


STATE_STYLES: Final[dict[str, Style]] = {
    name: Style.parse(style)
    for names, style in (
        ("running busy", "green"),
        ("queued ready idle waiting", "bright_black"),
        ("retrying blocked suspended draining", "yellow"),
        ("parked", "bold magenta"),
        ("done completed", "green"),
        ("failed timed_out stopped", "red"),
        ("cancelled terminated", "bright_black"),
    )
    for name in names.split()
}
"""The one colour each state has everywhere."""


def state(name: str) -> Text:
    """A state in its colour."""
    return Text(name, STATE_STYLES.get(name, Style()))
