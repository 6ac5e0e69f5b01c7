"""Named statements made ready for sqlite3."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any

from ksi_mcp.db.sql import load_queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A named statement with numbered parameters: sqlite3 binds a tuple several times faster than names."""

    sql: str
    values: Callable[[dict[str, Any]], tuple[Any, ...]]


_PARAMETER = re.compile(r"'[^']*'|(?<![:\w]):([a-z_][a-z0-9_]*)")


def prepare(sql: str) -> Statement:
    """Number the `:name` parameters of a statement, each name once."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:  # a text in quotes
            return found[0]
        if name not in names:
            names.append(name)
        return f"?{names.index(name) + 1}"

    numbered = _PARAMETER.sub(number, sql)
    if len(names) == 1:
        return Statement(sql=numbered, values=lambda given, name=names[0]: (given[name],))  # type: ignore[misc]
    return Statement(sql=numbered, values=itemgetter(*names) if names else lambda _given: ())


class Statements(dict[str, Statement]):
    """The named statements of the package, each made ready to be bound when it is first asked for."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        super().__init__()
        self._texts = texts

    def __missing__(self, name: str) -> Statement:
        statement = self[name] = prepare(self._texts[name])
        return statement


@cache
def load_statements() -> Statements:
    """Every named statement of the package. The files do not change while it runs."""
    return Statements(load_queries())
