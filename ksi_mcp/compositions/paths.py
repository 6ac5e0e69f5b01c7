r"""Dotted paths into a document, written so that every key has one. Pure.

`agents.judge.prompt` goes through mappings, and through lists whose entries have a name (`id`, `name` or `role`);
`routing[0].to` names a position. Inside a key `.`, `[`, `]` and `\` are written with a backslash before them, and an
empty key is written `""`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from ksi_mcp.compositions.model import shorten
from ksi_mcp.errors import Invalid

Step = str | int
"""A key or an entry's name; a number is a position."""

LONG_PATH: Final = 2_000
"""Characters. What lies below a longer path is taken as a whole: or a long key would be repeated for each entry."""

IDENTITIES: Final = ("id", "name", "role")
"""The keys by which entries of a list are told apart, first that all of them have."""

_EMPTY: Final = '""'
_SPECIAL = re.compile(r"[.\[\]\\]")
_STEP = re.compile(r"((?:[^.\[\]\\]|\\.)+)|\[(\d{1,9})\]", re.DOTALL)


class Missing:
    """The one value that is not there: a key or an entry that a side does not have."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


def write_path(steps: Sequence[Step]) -> str:
    """The steps as one text; the document itself is the empty one."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + _written(step)
    return text


def is_long(steps: Sequence[Step]) -> bool:
    """Whether what lies at `steps` is not looked into any more."""
    return sum(len(step) if isinstance(step, str) else 1 for step in steps) > LONG_PATH


def read_path(path: str) -> tuple[Step, ...]:
    """The steps of a path that `write_path` wrote.

    Raises:
        Invalid: it is no path.
    """
    steps: list[Step] = []
    at = 0
    while at < len(path):
        if steps and path[at] == ".":
            at += 1
        elif steps and path[at] != "[":
            break
        match = _STEP.match(path, at)
        if match is None:
            break
        at = match.end()
        if match[2]:
            steps.append(int(match[2]))
        else:
            steps.append("" if match[1] == _EMPTY else re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL))
    if at < len(path):
        raise Invalid(f"{shorten(path)!r} is not a dotted path", hint="write it like agents.judge.prompt")
    return tuple(steps)


def names_in(*lists: list[Any]) -> tuple[list[str], ...] | None:
    """The names of the entries of lists that belong together; None if not every entry has one of its own.

    No other naming key of an entry may hold the name of a different one: a name then means one entry, in each of the
    lists and in whatever is made of them.
    """
    entries = [entry for entries in lists for entry in entries]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        return None
    for key in IDENTITIES:
        if not all(isinstance(entry.get(key), str) and entry[key] for entry in entries):
            continue
        names = tuple([entry[key] for entry in each] for each in lists)
        known = {name for each in names for name in each}
        clear = all(
            entry.get(other) == entry[key] or not _is_among(entry.get(other), known)
            for entry in entries
            for other in IDENTITIES
        )
        if clear and all(len(set(each)) == len(each) for each in names):
            return names
    return None


def position_of(entries: list[Any], step: Step) -> int | None:
    """Where in a list the entry of that name or position is."""
    if isinstance(step, int):
        return step if step < len(entries) else None
    named = (
        position
        for key in IDENTITIES
        for position, entry in enumerate(entries)
        if isinstance(entry, dict) and entry.get(key) == step
    )
    return next(named, None)


def positions(entries: list[Any]) -> dict[str, int]:
    """Where in a list the entry of each name is; `id` counts before `name`, and that before `role`."""
    found: dict[str, int] = {}
    for key in IDENTITIES:
        for position, entry in enumerate(entries):
            if isinstance(entry, dict) and isinstance(name := entry.get(key), str):
                found.setdefault(name, position)
    return found


def value_at(document: Any, steps: Sequence[Step]) -> Any:
    """What stands at a path, or MISSING."""
    here = document
    for step in steps:
        if isinstance(here, dict) and isinstance(step, str):
            here = here.get(step, MISSING)
        elif isinstance(here, list) and (position := position_of(here, step)) is not None:
            here = here[position]
        else:
            return MISSING
    return here


def _written(key: str) -> str:
    if not key:
        return _EMPTY
    if key == _EMPTY:
        return "\\" + _EMPTY
    return _SPECIAL.sub(lambda match: "\\" + match[0], key)


def _is_among(value: object, known: set[str]) -> bool:
    return isinstance(value, str) and value in known
