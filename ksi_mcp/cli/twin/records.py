"""A result for a person: tables for lists of records, aligned lines for one; plain text where nobody has a terminal."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ksi_mcp.cli.escaping import one_line, visible
from ksi_mcp.cli.twin.wording import as_commands

if TYPE_CHECKING:
    from rich.console import Console

_HINTS: Final = ("next", "how")
"""What to do next: for the person, and no part of the data."""
_LONG_CHARS: Final = 200
"""A longer text gets lines of its own, and makes no cell of a table."""
_MOST_COLUMNS: Final = 12
_INDENT: Final = 2
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_COUNTED: Final = re.compile(r"(^|_)(tokens|chars|bytes|size|turns|events|runs|delivered|count)$")
_STATES: Final = frozenset({"status", "state"})
_MONEY_DIGITS: Final = 4


def show(data: Mapping[str, Any]) -> None:
    """Print a result to stdout, and what to do next to stderr."""
    on_terminal = sys.stdout.isatty()
    _tolerate(sys.stdout)
    _tolerate(sys.stderr)
    body = {key: value for key, value in data.items() if key not in _HINTS}
    if on_terminal:
        from ksi_mcp.cli.showing import make_console

        _Terminal(make_console()).result(body)
    else:
        text = "\n".join(_plain_lines(body, top=True))
        if text:
            sys.stdout.write(text + "\n")
    sys.stdout.flush()
    for key in _HINTS:
        if isinstance(hint := data.get(key), str):
            print(f"{key}: {one_line(as_commands(hint))}", file=sys.stderr)
        elif isinstance(hint, list):
            for each in hint:
                print(f"{key}: {as_commands(_cell(key, each))}", file=sys.stderr)


def _tolerate(stream: Any) -> None:
    """What the terminal has no sign for is written out, and no failure."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


# ----------------------------------------------------------------------------------------- values


def _cell(key: str, value: Any) -> str:
    """A value on one line."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int() | float() if key.endswith("_usd") or key == "usd":
            return _money(value)
        case int() if _COUNTED.search(key):
            return f"{value:,}"
        case float():
            return f"{value:,.6g}" if abs(value) < 1e15 else repr(value)  # noqa: PLR2004  what six digits can say
        case int():
            return str(value)
        case str():
            text = value if _MOMENT.fullmatch(value) is None else f"{value[:10]} {value[11:19]}Z"
            return one_line(text)
        case list() if all(isinstance(each, str | int | float) for each in value):
            return ", ".join(_cell(key, each) for each in value)
        case dict() if all(isinstance(each, str | int | float | bool) for each in value.values()):
            return ", ".join(f"{one_line(str(name))} {_cell(str(name), each)}" for name, each in value.items())
    return one_line(json.dumps(value, ensure_ascii=False))


def _money(amount: float) -> str:
    if amount == 0:
        return "$0"
    digits = 2 if amount == round(amount, 2) else _MONEY_DIGITS if amount == round(amount, _MONEY_DIGITS) else 6
    return f"${amount:,.{digits}f}"


def census_line(census: Mapping[str, Any]) -> str:
    """`2 of 3 ok, 1 pending`."""
    whole = next((key for key in ("asked", "planned") if key in census), None)
    parts = {key: value for key, value in census.items() if key != whole}
    named = [f"{value} {key.replace('_', ' ')}" for key, value in parts.items() if value]
    if whole is None:
        return ", ".join(named) or "nothing"
    good = next((key for key in ("ok", "passed") if key in parts), None)
    rest = [f"{value} {key.replace('_', ' ')}" for key, value in parts.items() if value and key != good]
    first = f"{parts.get(good, 0) if good else 0} of {census[whole]} {good or ''}".rstrip()
    return ", ".join([first, *rest])


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _is_long(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) > _LONG_CHARS or "\n" in value.strip()
    if isinstance(value, list | dict):
        return len(_cell("", value)) > _LONG_CHARS
    return False


def _are_events(records: Sequence[Mapping[str, Any]]) -> bool:
    return all({"event_id", "event", "source", "at"} <= each.keys() for each in records)


def event_line(event: Mapping[str, Any]) -> str:
    """A recorded event on one line, as `ksi-mcp events` has them; what says nothing is left out."""
    data = one_line(json.dumps(_said(event.get("data") or {}), ensure_ascii=False))
    at, name, source = (_cell(key, event[key]) for key in ("at", "event", "source"))
    return f"{at}  {event['event_id']:>6}  {name:<26}  {source:<20}  {data}"


def _said(data: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _said(value) if isinstance(value, dict) else value for key, value in data.items()}
    return {key: value for key, value in kept.items() if value is not None}


def _columns(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every key that some record has, in the order in which they appear."""
    return list(dict.fromkeys(key for each in records for key in each))


def _makes_table(records: Sequence[Mapping[str, Any]]) -> bool:
    return len(_columns(records)) <= _MOST_COLUMNS and not any(
        _is_long(value) for each in records for value in each.values()
    )


# ------------------------------------------------------------------------------------- in a pipe


def _plain_lines(data: Mapping[str, Any], depth: int = 0, *, top: bool = False) -> list[str]:
    """Aligned keys and values, then what is too long for a line; nothing is cut."""
    if top and (sole := _sole_text(data)) is not None:
        return [visible(sole)]
    margin = " " * _INDENT * depth
    short = {key: value for key, value in data.items() if not _stands_apart(key, value)}
    width = max((len(one_line(key)) for key in short), default=0)
    lines = [f"{margin}{one_line(key).ljust(width)}  {_cell(key, value)}".rstrip() for key, value in short.items()]
    for key, value in data.items():
        if key in short:
            continue
        if key == "census":
            lines.append(f"{margin}{key}: {census_line(value)}")
        elif value in ([], {}):
            lines.append(f"{margin}{one_line(key)}: none")
        elif isinstance(value, str):
            inner = textwrap.indent(visible(value.strip("\n")), margin + " " * _INDENT, lambda _line: True)
            lines += [f"{margin}{one_line(key)}:", *(line.rstrip() for line in inner.split("\n"))]
        elif isinstance(value, dict):
            lines += [f"{margin}{one_line(key)}:", *_plain_lines(value, depth + 1)]
        elif _is_records(value):
            alone = top and not short and sum(map(_is_records, data.values())) == 1
            lines += _plain_records(value, margin if alone else margin + " " * _INDENT, key, alone=alone)
        else:
            lines += [f"{margin}{one_line(key)}:", *(f"{margin}  - {_cell(key, each)}" for each in value)]
    return lines


def _stands_apart(key: str, value: Any) -> bool:
    """Whether it gets lines of its own."""
    if key == "census" and isinstance(value, dict):
        return True
    return _is_records(value) or value in ([], {}) or (isinstance(value, str | list | dict) and _is_long(value))


def _sole_text(data: Mapping[str, Any]) -> str | None:
    """A drawing or a document by itself, so that it can be piped on."""
    if len(data) == 1:
        (value,) = data.values()
        if isinstance(value, str):
            return value.rstrip("\n")
    return None


def _plain_records(records: Sequence[Mapping[str, Any]], margin: str, key: str, *, alone: bool) -> list[str]:
    head = [] if alone else [f"{margin[_INDENT:]}{one_line(key)}:"]
    if _are_events(records):
        return [*head, *(margin + event_line(each) for each in records)]
    if not _makes_table(records):
        lines: list[str] = []
        for number, each in enumerate(records):
            lines += [""] if number else []
            lines += [margin + line for line in _plain_lines(each)]
        return [*head, *lines]
    columns = _columns(records)
    rows = [columns, *([_cell(column, each.get(column)) for column in columns] for each in records)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(columns))]
    table = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*head, *(margin + line for line in table)]


# --------------------------------------------------------------------------------- on a terminal


class _Terminal:
    """The same with tables and colours, in the terminal's width."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def result(self, data: Mapping[str, Any], depth: int = 0) -> None:
        if depth == 0 and (sole := _sole_text(data)) is not None:
            self._line(visible(sole))
            return
        short = {key: value for key, value in data.items() if not _stands_apart(key, value)}
        if short:
            self._pairs(short, depth)
        for key, value in data.items():
            if key in short:
                continue
            if key == "census":
                self._line(f"{' ' * _INDENT * depth}census: {census_line(value)}", "bold")
            elif value in ([], {}):
                self._line(f"{' ' * _INDENT * depth}{one_line(key)}: none", "bright_black")
            elif isinstance(value, str):
                self._text(key, value, depth)
            elif isinstance(value, dict):
                self._line(" " * _INDENT * depth + one_line(key), "bold")
                self.result(value, depth + 1)
            elif _is_records(value):
                self._records(key, value, depth, alone=depth == 0 and not short)
            else:
                self._line(" " * _INDENT * depth + one_line(key), "bold")
                for each in value:
                    self._line(f"{' ' * _INDENT * (depth + 1)}- {_cell(key, each)}")

    def _line(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(text, style), soft_wrap=False)

    def _pairs(self, pairs: Mapping[str, Any], depth: int) -> None:
        from rich.padding import Padding
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bright_black", no_wrap=True)
        grid.add_column(overflow="fold")
        for key, value in pairs.items():
            grid.add_row(self._styled("", one_line(key)), self._styled(key, _cell(key, value)))
        self._console.print(Padding(grid, (0, 0, 0, _INDENT * depth)))

    def _text(self, key: str, value: str, depth: int) -> None:
        from rich.padding import Padding
        from rich.text import Text

        self._line(" " * _INDENT * depth + one_line(key), "bright_black")
        self._console.print(Padding(Text(visible(value.strip("\n"))), (0, 0, 0, _INDENT * (depth + 1))))

    def _records(self, key: str, records: Sequence[Mapping[str, Any]], depth: int, *, alone: bool) -> None:
        if not alone:
            self._line(" " * _INDENT * depth + one_line(key), "bold")
        if _are_events(records):
            for each in records:
                self._line(" " * _INDENT * (depth + (not alone)) + event_line(each))
            return
        if _makes_table(records) and self._table(records, depth):
            return
        for number, each in enumerate(records):
            if number:
                self._console.print()
            self.result(each, depth + 1)

    def _table(self, records: Sequence[Mapping[str, Any]], depth: int) -> bool:
        """Whether the records fit a table; then it is printed."""
        from rich.padding import Padding
        from rich.table import Table

        from ksi_mcp.cli.showing import make_table
        from ksi_mcp.cli.twin.tables import fit

        columns = _columns(records)
        rows = [[_cell(column, each.get(column)) for column in columns] for each in records]
        room = self._console.width - _INDENT * depth
        fitted = fit([one_line(column) for column in columns], rows, room, keep=_STATES)
        if fitted is None:
            return False
        table: Table = make_table(self._console)
        for place in fitted.shown:
            values = [each.get(columns[place]) for each in records]
            is_figure = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
            table.add_column(
                self._styled("", one_line(columns[place])),
                justify="right" if is_figure else "left",
                no_wrap=place != fitted.wrapped,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(self._styled(columns[place], row[place]) for place in fitted.shown))
        self._console.print(Padding(table, (0, 0, 0, _INDENT * depth)))
        if fitted.same:
            said = ", ".join(f"{one_line(columns[place])} {rows[0][place]}" for place in fitted.same if rows[0][place])
            self._line(f"{' ' * _INDENT * depth} in all of them: {said}", "bright_black")
        if fitted.dropped:
            said = ", ".join(one_line(columns[place]) for place in fitted.dropped)
            self._line(f"{' ' * _INDENT * depth} no room for: {said} (--json has all)", "bright_black")
        return True

    @staticmethod
    def _styled(key: str, text: str) -> Any:
        from rich.text import Text

        from ksi_mcp.cli.showing import state

        if key in _STATES:
            return state(text)
        return Text(text, "red" if key == "error" else "")
