"""Where compositions come from: parents by name and hash, what was merged in, who descends from whom.

Bounded, and proof against lineages that lie: circles end, links that lead nowhere are said to.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ksi_mcp.compositions import store
from ksi_mcp.compositions.model import Composition, parse_reference, shorten
from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError

MAX_ANCESTORS: Final = 100
MAX_DESCENDANTS: Final = 200
MAX_LOOKUPS: Final = 500
"""Of links followed for one lineage; a document may name many more."""

Kept = Literal["current", "kept", "missing"]
"""current: the library has this version. kept: it was replaced since, and is retrievable by its hash."""

_HASH = re.compile(r"[0-9a-f]{6,64}")
_SHOWN: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """A step back, as a document tells it. `hash` is None where it does not say; texts are shortened."""

    name: str
    version: str | None
    hash: str | None
    date: str | None
    reason: str | None
    author: str | None
    merged: bool = False
    """Not the parent: a version whose changes were merged in, or that took the place of this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A version that another came from. `composition` is None if nothing of that name is left."""

    descent: Descent
    child: str
    depth: int
    state: Kept
    composition: Composition | None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Descendant:
    """A composition of the library that was forked from `parent`, directly or not."""

    name: str
    parent: str
    descent: Descent


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The version that two compositions have in common."""

    composition: Composition

    @property
    def reference(self) -> str:
        """`name@hash`."""
        return f"{self.composition.name}@{self.composition.hash[:12]}"


def descents(document: Mapping[str, Any]) -> list[Descent]:
    """The parent of a document, and what was merged into it, as far as its lineage can be read."""
    lineage = document.get("lineage")
    if not isinstance(lineage, dict):
        return []
    parent = _descent(
        lineage.get("parent"),
        lineage.get("parent_hash"),
        lineage.get("fork_date"),
        lineage.get("fork_reason"),
        lineage.get("fork_author"),
    )
    found = [parent] if parent is not None else []
    asked = (lineage.get(key) for key in ("promoted_from", "promoted_hash", "promotion_date", "reason", "promoted_by"))
    promoted = _descent(*asked, merged=True)
    found += [promoted] if promoted is not None else []
    improvements = lineage.get("improvements")
    for entry in improvements[-MAX_ANCESTORS:] if isinstance(improvements, list) else []:
        if isinstance(entry, dict) and "merged" in entry:
            asked = (entry.get(key) for key in ("merged", "hash", "date", "reason", "author"))
            merged = _descent(*asked, merged=True)
            found += [merged] if merged is not None else []
    return found


def ancestors(tx: Tx, composition: Composition, *, merged: bool = False) -> list[Ancestor]:
    """The versions that a composition came from, nearest first; with `merged`, also through what was merged in.

    Where a version is not retrievable, its note says so and the way goes on through what has its name now.
    """
    found: list[Ancestor] = []
    seen = {(composition.name, composition.hash)}
    todo = deque([(composition, 1)])
    versions: dict[str, list[Composition]] = {}
    lookups = 0
    while todo and len(found) < MAX_ANCESTORS:
        child, depth = todo.popleft()
        for descent in descents(child.document):
            lookups += 1
            if (descent.merged and not merged) or lookups > MAX_LOOKUPS:
                continue
            if descent.name not in versions:
                versions[descent.name] = [each.composition for each in store.named(tx, descent.name)]
            ancestor = _ancestor(tx, descent, child.name, depth, versions[descent.name])
            known = ancestor.composition
            key = (descent.name, known.hash if known is not None else descent.hash or "")
            if key in seen:
                if not descent.merged:
                    found.append(_circle(ancestor))
                continue
            seen.add(key)
            found.append(ancestor)
            if known is not None:
                todo.append((known, depth + 1))
    return found[:MAX_ANCESTORS]


def descendants(documents: Mapping[str, Mapping[str, Any]], name: str) -> list[Descendant]:
    """Whatever was forked from `name` and from its forks, nearest first. `documents` are those of the library."""
    children: dict[str, list[Descendant]] = {}
    for own_name, document in documents.items():
        for descent in descents(document)[:1]:
            if not descent.merged:
                made = Descendant(name=own_name, parent=descent.name, descent=descent)
                children.setdefault(descent.name, []).append(made)
    found: list[Descendant] = []
    seen = {name}
    todo = deque([name])
    while todo and len(found) < MAX_DESCENDANTS:
        for child in sorted(children.get(todo.popleft(), ()), key=lambda each: (each.descent.date or "", each.name)):
            if child.name not in seen:
                seen.add(child.name)
                found.append(child)
                todo.append(child.name)
    return found[:MAX_DESCENDANTS]


def common_ancestor(tx: Tx, one: Composition, other: Composition) -> Base | None:
    """The nearest version that both come from and that is retrievable.

    Versions of one name follow each other: of two that were branched from, the earlier is common to both, and
    `other` is taken to be an earlier version of `one` where the name is the same.
    """
    if one.name == other.name:
        return Base(composition=other)  # two versions of one composition: the other one is the earlier
    lines = [tuple(_line(tx, each)) for each in (one, other)]
    by_name: dict[str, list[_Node]] = {}
    for node in lines[1]:
        by_name.setdefault(node.name, []).append(node)
    pairs = [(a, b) for a in lines[0] for b in by_name.get(a.name, ())]
    # The nearest; of two as near, the later: what was merged in has more in common than what was forked.
    pairs.sort(key=lambda pair: max(pair[0].when, pair[1].when), reverse=True)
    pairs.sort(key=lambda pair: pair[0].depth + pair[1].depth)
    for a, b in pairs:
        common = _earlier(a, b)
        if common.composition is not None:
            return Base(composition=common.composition)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A version on the way back. `when` it was branched from: empty if nobody says; a merge is the later one."""

    name: str
    depth: int
    when: tuple[str, bool, int]
    composition: Composition | None


def _line(tx: Tx, composition: Composition) -> Iterator[_Node]:
    yield _Node(name=composition.name, depth=0, when=("", False, 0), composition=composition)
    for order, ancestor in enumerate(ancestors(tx, composition, merged=True)):
        yield _Node(
            name=ancestor.descent.name,
            depth=ancestor.depth,
            when=(ancestor.descent.date or "", ancestor.descent.merged, order),
            composition=ancestor.composition if ancestor.state != "missing" else None,
        )


def _earlier(a: _Node, b: _Node) -> _Node:
    if a.depth == 0 or b.depth == 0:  # what stands there now is later than what was branched from
        return b if a.depth == 0 else a
    return min(a, b, key=lambda node: node.when)


def _ancestor(tx: Tx, descent: Descent, child: str, depth: int, versions: list[Composition]) -> Ancestor:
    now = versions[0] if versions else None
    state: Kept = "missing"
    note = None
    if descent.hash is not None:
        same = [each for each in versions if each.hash.startswith(descent.hash)]
        kept = None if same else _remembered(tx, descent.name, descent.hash)
        if same or kept is not None:
            found = same[0] if same else kept
            return Ancestor(
                descent=descent,
                child=child,
                depth=depth,
                state="current" if same else "kept",
                composition=found,
            )
        note = "this version was not kept" if now is not None else "not in the library"
    elif now is not None and descent.version in (None, now.version):
        state = "current"
        note = "its hash is not given; taken to be the version that is there now"
    else:
        note = "this version is not there, and its hash is not given" if now is not None else "not in the library"
    if state == "missing" and now is not None:
        note += f"; the library has {now.name}@{now.hash[:12]} now"
    return Ancestor(descent=descent, child=child, depth=depth, state=state, composition=now, note=note)


def _remembered(tx: Tx, name: str, hash: str) -> Composition | None:
    try:
        return store.remembered(tx, name, hash)
    except KsiError:  # kept, but not readable by the rules of today
        return None


def _circle(ancestor: Ancestor) -> Ancestor:
    return Ancestor(
        descent=ancestor.descent,
        child=ancestor.child,
        depth=ancestor.depth,
        state=ancestor.state,
        composition=ancestor.composition,
        note="the lineage goes in a circle here",
    )


def _descent(
    reference: object, hash: object, date: object, reason: object, author: object, *, merged: bool = False
) -> Descent | None:
    try:
        name, version = parse_reference(reference)
    except KsiError:
        return None
    known = hash.strip().lower() if isinstance(hash, str) else ""
    return Descent(
        name=name,
        version=version,
        hash=known if _HASH.fullmatch(known) else None,
        date=_text(date),
        reason=_text(reason),
        author=_text(author),
        merged=merged,
    )


def _text(value: object) -> str | None:
    return shorten(value, _SHOWN) if isinstance(value, str) and value.strip() else None
