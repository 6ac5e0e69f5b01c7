"""Changes to a document, one by one, and how they are carried out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ksi_mcp import yamlio
from ksi_mcp.compositions.paths import Step, positions, read_path
from ksi_mcp.errors import Invalid

ChangeKind = Literal["added", "removed", "changed", "moved", "text"]
Section = Literal["agents", "routing", "dsl", "text", "variables", "metadata", "other"]

_SECTIONS: Final[dict[str, Section]] = {
    "agents": "agents",
    "routing": "routing",
    "orchestration_logic": "dsl",
    "prompt": "text",
    "system_prompt": "text",
    "content": "text",
    "text": "text",
    "variables": "variables",
    "name": "metadata",
    "type": "metadata",
    "component_type": "metadata",
    "version": "metadata",
    "description": "metadata",
    "author": "metadata",
    "tags": "metadata",
    "metadata": "metadata",
    "lineage": "metadata",
    "performance": "metadata",
    "learnings": "metadata",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change at a path (see `paths`).

    Positions in a path are those of the document before the change; only the last step of what was added is a position
    in the document after it.

    moved: `before` and `after` are positions in the list.
    text: the lines from `line` on (counted from 1) were `before` and are `after`, which stand from `new_line` on;
    None: no lines, which differs from one empty line.
    added to a list: `index` is the position it has in the end.
    """

    path: str
    kind: ChangeKind
    section: Section
    before: Any = None
    after: Any = None
    index: int | None = None
    line: int | None = None
    new_line: int | None = None

    @property
    def hunk(self) -> str:
        """A change of text as a unified diff without context."""
        old, new = _lines(self.before), _lines(self.after)
        head = f"@@ -{self.line},{len(old)} +{self.new_line},{len(new)} @@"
        return "\n".join([head, *(f"-{line}" for line in old), *(f"+{line}" for line in new)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Every change that makes one document of another, in the order of the documents."""

    changes: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)


def section_of(steps: tuple[Step, ...]) -> Section:
    """Which part of a composition a path belongs to."""
    return _SECTIONS.get(str(steps[0]), "other") if steps else "other"


def apply(changes: Diff | Iterable[Change], document: dict[str, Any]) -> Any:
    """A copy of `document` with the changes made.

    Raises:
        Invalid: a change does not fit the document: it was made from another one.
    """
    root = _Node()
    for change in changes.changes if isinstance(changes, Diff) else changes:
        node = root
        for step in read_path(change.path):
            node = node.children.setdefault(step, _Node())
        # What is added has a position of its own kind: it must not meet a change of what stands there now.
        (node.added if change.kind == "added" else node.changes).append(change)
    return _made(yamlio.plain(document), root)


@dataclass(slots=True)
class _Node:
    changes: list[Change] = field(default_factory=list)
    added: list[Change] = field(default_factory=list)
    children: dict[Step, _Node] = field(default_factory=dict)


def _made(value: Any, node: _Node) -> Any:
    if node.changes:
        if node.children:
            raise Invalid(f"{node.changes[0].path!r} is changed whole and in parts")
        return _changed(value, node.changes)
    if isinstance(value, dict):
        _make_in_mapping(value, node)
    elif isinstance(value, list):
        return _made_list(value, node)
    elif node.children:
        raise _unfit(node)
    return value


def _make_in_mapping(value: dict[str, Any], node: _Node) -> None:
    for key, child in node.children.items():
        if not isinstance(key, str) or (child.added and key in value) or not (child.added or key in value):
            raise _unfit(child)
        if child.added:
            value[key] = yamlio.plain(child.added[-1].after)
        elif child.changes and child.changes[0].kind == "removed":
            del value[key]
        else:
            value[key] = _made(value[key], child)


def _made_list(value: list[Any], node: _Node) -> list[Any]:
    inserted: dict[int, Any] = {}
    gone: set[int] = set()
    entries, named = list(value), positions(value)
    for step, child in node.children.items():
        for change in child.added:
            if change.index is None:
                raise _unfit(child)
            inserted[change.index] = yamlio.plain(change.after)
        if not child.changes and not child.children:
            continue
        position = named.get(step) if isinstance(step, str) else step
        if position is None or position >= len(value):
            raise _unfit(child)
        moves = [change for change in child.changes if change.kind == "moved"]
        rest = _Node(changes=[c for c in child.changes if c.kind != "moved"], children=child.children)
        if rest.changes and rest.changes[0].kind == "removed":
            gone.add(position)
            continue
        entries[position] = _made(entries[position], rest)
        if moves:
            gone.add(position)
            inserted[int(moves[-1].after)] = entries[position]
    made = [entry for position, entry in enumerate(entries) if position not in gone]
    return _with_inserted(made, inserted)


def _with_inserted(kept: list[Any], inserted: dict[int, Any]) -> list[Any]:
    """`kept` in its order, and everything inserted at the position that it has in the end."""
    total = len(kept) + len(inserted)
    if any(index >= total for index in inserted):
        raise Invalid("the changes were made from another document: a position lies beyond the end of its list")
    rest = iter(kept)
    return [inserted[index] if index in inserted else next(rest) for index in range(total)]


def _changed(value: Any, changes: list[Change]) -> Any:
    last = changes[-1]
    if all(change.kind == "text" for change in changes):
        if not isinstance(value, str):
            raise Invalid(f"there is no text at {last.path!r}")
        return _patched(value, changes)
    if last.kind != "changed":
        raise Invalid(f"{last.path!r} cannot be {last.kind}")
    return yamlio.plain(last.after)


def _patched(text: str, hunks: list[Change]) -> str:
    lines = text.split("\n")
    made: list[str] = []
    at = 0
    for hunk in hunks:
        start, old = (hunk.line or 1) - 1, _lines(hunk.before)
        if start < at or lines[start : start + len(old)] != old:
            raise Invalid(f"the lines from {hunk.line} on of {hunk.path!r} are not those that were changed")
        made += [*lines[at:start], *_lines(hunk.after)]
        at = start + len(old)
    return "\n".join([*made, *lines[at:]])


def _lines(text: str | None) -> list[str]:
    return [] if text is None else text.split("\n")


def _unfit(node: _Node) -> Invalid:
    while not node.changes and not node.added and node.children:
        node = next(iter(node.children.values()))
    path = (node.changes or node.added)[0].path
    return Invalid(f"the document does not have, or has already, what is changed at {path!r}")
