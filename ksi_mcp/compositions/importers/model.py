"""What an importer makes of a file, and what it tells about it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Final, Literal

from ksi_mcp.compositions.model import MAX_NAME_CHARS, name_problem, shorten

Format = Literal["ksi_mcp", "ksi", "llm_orc", "claude_agents"]
"""This program's own, and three others."""

_LINE = re.compile(r"(?:at|near) line (\d+)")
_NOT_SLUG = re.compile(r"[^a-z0-9_.-]+")
MAX_NOTES: Final = 60


class Notes:
    """Gathered while a file is mapped: what became what, and what is kept without having an effect here."""

    def __init__(self) -> None:
        self.mapped: list[str] = []
        self.unused: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A composition made of a file. `text` is its YAML: the file's own where nothing in it had to change."""

    path: str
    format: Format
    document: dict[str, Any]
    text: str
    mapped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def as_document(self) -> dict[str, Any]:
        """As it is reported; a long list is cut."""
        found = {"file": self.path, "format": self.format, "name": self.document.get("name")}
        for key, notes in (("mapped", self.mapped), ("without_effect", self.unused)):
            if notes:
                more = [f"and {len(notes) - MAX_NOTES} more"] if len(notes) > MAX_NOTES else []
                found[key] = [*notes[:MAX_NOTES], *more]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A file that could not be taken, or part of one: the line, where it shows, and why."""

    path: str
    reason: str
    line: int | None = None

    @classmethod
    def of(cls, path: str, reason: str) -> Unread:
        """With the line that the reason mentions."""
        found = _LINE.search(reason)
        return cls(path=path, reason=reason, line=int(found[1]) if found else None)

    def as_document(self) -> dict[str, Any]:
        """As it is reported."""
        line = {} if self.line is None else {"line": self.line}
        return {"file": self.path, **line, "reason": self.reason}


def slug(text: object) -> str | None:
    """The name that a composition can have, nearest to what another program calls it; None if there is none."""
    if not isinstance(text, str | int | float) or isinstance(text, bool):
        return None
    plain = unicodedata.normalize("NFKD", str(text)[: 4 * MAX_NAME_CHARS]).encode("ascii", "ignore").decode().lower()
    found = _NOT_SLUG.sub("_", plain.strip()).strip("_.-")
    while ".." in found:
        found = found.replace("..", ".")
    found = found[:MAX_NAME_CHARS]
    return None if name_problem(found) else found


def named(document: dict[str, Any], fallback: str, notes: Notes) -> str | None:
    """The name for a composition, noting what had to be changed of its own."""
    given = document.get("name")
    own = slug(str(given).rsplit("/", 1)[-1]) if isinstance(given, str) and given else slug(given)
    name = own or slug(fallback)
    if name is not None and given is None:
        notes.mapped.append(f"name: from the file's name, {name!r}")
    elif name is not None and name != given:
        notes.mapped.append(f"name: {shorten(str(given))!r} became {name!r}")
    return name
