"""A fork: a parent's document, changed at dotted paths, with its descent written into it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp import yamlio
from ksi_mcp.compositions.model import DEFAULT_VERSION, Composition, shorten
from ksi_mcp.compositions.reading import kind_of
from ksi_mcp.errors import Invalid

MAX_MODIFICATIONS: Final = 200
MAX_PATH_STEPS: Final = 20
MAX_PATH_CHARS: Final = 400

_STEP = re.compile(r"((?:[^.\[\]\\]|\\.)+)|\[(\d{1,4})\]")
_INDEX_DIGITS: Final = 6
_FIXED: Final = {
    "name": "a composition keeps its name, and that of a fork is an argument of its own",
    "lineage": "the lineage is written by the library",
    "performance": "performance is measured from runs",
    "learnings": "learnings are added with their evidence",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Whom a fork descends from, by whom and why. `date` is ISO 8601 in UTC."""

    parent: Composition
    date: str
    reason: str
    author: str

    def as_document(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "parent": f"{self.parent.name}@{self.parent.version}",
            "parent_hash": self.parent.hash,
            "fork_date": self.date,
            "fork_reason": self.reason,
            "fork_author": self.author,
            "improvements": [],
        }


def forked_document(name: str, lineage: Lineage, modifications: dict[str, Any]) -> dict[str, Any]:
    """The parent's document under a new name, with the modifications and the lineage in it.

    What was measured or learned of the parent is not the fork's, so it starts without.

    Raises:
        Invalid: a path leads nowhere, through something that is neither mapping nor list, or to a fixed key.
    """
    document: dict[str, Any] = yamlio.plain(lineage.parent.document)
    document["name"] = name
    document["version"] = DEFAULT_VERSION
    for key, empty in (("performance", {}), ("learnings", [])):
        if key in document:
            document[key] = empty
    document = modified(document, modifications)
    document["lineage"] = lineage.as_document()
    return document


def modified(document: dict[str, Any], modifications: dict[str, Any]) -> dict[str, Any]:
    """A copy of `document` with values set at dotted paths.

    Raises:
        Invalid: a path leads nowhere, through something that is neither mapping nor list, or to a fixed key.
    """
    if len(modifications) > MAX_MODIFICATIONS:
        raise Invalid(f"{len(modifications)} modifications, the limit is {MAX_MODIFICATIONS}")
    changed: dict[str, Any] = yamlio.plain(document)
    for path, value in modifications.items():
        _set(changed, path, yamlio.plain(value))
    return changed


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    steps = _steps(path)
    if steps[0] in _FIXED:
        raise Invalid(f"{shorten(path)!r} cannot be modified: {_FIXED[steps[0]]}")
    here: Any = document
    for depth, step in enumerate(steps[:-1]):
        here = _enter(here, step, path, ".".join(steps[:depth]))
    last = steps[-1]
    if isinstance(here, dict):
        here[last] = value
    elif isinstance(here, list):
        index = _index(here, last, path, may_append=True)
        here[index : index + 1] = [value]
    else:
        raise _no_way(path, ".".join(steps[:-1]), here)


def _enter(here: Any, step: str, path: str, before: str) -> Any:
    if isinstance(here, dict):
        if here.get(step) is None:
            here[step] = {}
        return here[step]
    if isinstance(here, list):
        return here[_index(here, step, path, may_append=False)]
    raise _no_way(path, before, here)


def _index(here: list[Any], step: str, path: str, *, may_append: bool) -> int:
    if step.isascii() and step.isdecimal() and len(step) <= _INDEX_DIGITS:
        index = int(step)
    else:  # agents and rules may be lists of named entries
        index = next((n for n, item in enumerate(here) if isinstance(item, dict) and _names(item, step)), -1)
        if index < 0:
            raise Invalid(f"{shorten(path)!r}: {shorten(step)!r} is not a position in the list, which has {len(here)}")
    if index > len(here) - (not may_append):
        raise Invalid(f"{shorten(path)!r}: there is no position {index}, the list has {len(here)}")
    return index


def _names(item: dict[str, Any], step: str) -> bool:
    return step in (item.get("id"), item.get("name"), item.get("role"))


def _no_way(path: str, before: str, here: Any) -> Invalid:
    return Invalid(
        f"{shorten(path)!r} leads through {shorten(before)!r}, which is {kind_of(here)}",
        hint="set that path itself to a mapping, or shorten the path",
    )


def _steps(path: str) -> list[str]:
    r"""The keys and positions of `a.b.0.c` or `a.b[0].c`; a dot inside a key is written `\\.`."""
    steps: list[str] = []
    at = 0
    while at < len(path) <= MAX_PATH_CHARS:
        if steps and path[at] == ".":
            at += 1
        match = _STEP.match(path, at)
        if match is None:
            break
        steps.append(re.sub(r"\\(.)", r"\1", match[1]) if match[1] else match[2])
        at = match.end()
    if at < len(path) or not steps or len(steps) > MAX_PATH_STEPS:
        raise Invalid(
            f"{shorten(path)!r} is not a dotted path", hint="write it like agents.judge.prompt or routing.0.to"
        )
    return steps
