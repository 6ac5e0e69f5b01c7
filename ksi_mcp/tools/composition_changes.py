"""Compositions side by side: what differs, what one takes from the other, and whom they descend from."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, Literal

from ksi_mcp.compositions import lineage
from ksi_mcp.compositions.changes import Change, Diff
from ksi_mcp.compositions.diff import diff
from ksi_mcp.compositions.lineage import Descent
from ksi_mcp.compositions.merge import Conflict
from ksi_mcp.compositions.merging import MergeWish, merge_versions
from ksi_mcp.compositions.model import shorten
from ksi_mcp.compositions.paths import MISSING
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.tools.bounding import MAX_RESULT_CHARS
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool

ROOM: Final = MAX_RESULT_CHARS * 3 // 4
"""Characters for a list of changes or conflicts."""
MAX_VALUE_CHARS: Final = 2_000


class DiffView(View):
    """The changes that make b of a, by path; a text's hunks are in unified form. `sections` counts them all."""

    a: str
    b: str
    sections: dict[str, int]
    changes: list[dict[str, Any]]
    total: int
    cursor: str | None = None


class MergeView(View):
    """What was written, or would be. With conflicts nothing was: each goes into `resolve` by its path."""

    name: str
    version: str | None = None
    hash: str | None = None
    written: bool
    base: str | None = None
    changes: list[dict[str, Any]] | None = None
    changed: int | None = None
    conflicts: list[dict[str, Any]] | None = None
    left_out: int | None = None
    note: str | None = None


class LineView(View):
    """Ancestors, nearest first, and descendants; `state` says whether that very version is retrievable."""

    name: str
    version: str
    hash: str
    ancestors: list[dict[str, Any]]
    merged: list[dict[str, Any]] | None = None
    descendants: list[dict[str, Any]]
    left_out: int | None = None


@tool("composition_diff", needs="base", effects="reads", title="Diff", idempotent=True)
async def composition_diff(call: Call, *, a: str, b: str, cursor: str | None = None) -> DiffView:
    """Compare a with b (name or name@hash): every change."""
    one, other = [(await call.svc.library.get(name)).composition for name in (a, b)]
    found = await asyncio.to_thread(diff, one.document, other.document)
    versions = f"{one.hash[:8]}-{other.hash[:8]}"
    start = _start(cursor, versions, len(found.changes))
    shown = _fitting((change_view(change) for change in found.changes[start:]), ROOM)
    end = start + len(shown)
    return DiffView(
        a=f"{one.name}@{one.hash[:12]}",
        b=f"{other.name}@{other.hash[:12]}",
        sections=dict(Counter(change.section for change in found.changes)),
        changes=shown,
        total=len(found.changes),
        cursor=f"{versions}-{end}" if end < len(found.changes) else None,
    )


@tool("composition_merge", needs="compositions", effects="writes", title="Merge")
async def composition_merge(
    call: Call,
    *,
    source: str,
    target: str,
    strategy: Literal["three_way", "ours", "theirs", "fields"] | None = None,
    fields: list[str] | None = None,
    resolve: dict[str, Any] | None = None,
    name: str | None = None,
    dry_run: bool = False,
) -> MergeView:
    """Merge source's changes into target; conflicts wait for resolve {path: ours|theirs|value}. ours: target's."""
    wish = MergeWish(
        source=source,
        target=target,
        strategy=strategy or ("fields" if fields else "three_way"),
        fields=fields,
        resolve=resolve,
        name=name,
        dry_run=dry_run,
    )
    stored = MergeView(name=name or target, written=True)
    done = await merge_versions(call.svc.library, call.ctx, wish, commit=call.committer(lambda _: stored))
    conflicts = _fitting((conflict_view(each) for each in done.conflicts), ROOM)
    changes = _fitting((change_view(each) for each in done.changes.changes), ROOM) if dry_run else []
    if dry_run and conflicts:
        changes = []
    return MergeView(
        name=done.name,
        version=done.version,
        hash=done.hash[:12],
        written=done.written,
        base=done.base.reference if done.base is not None else None,
        changes=changes or None,
        changed=len(done.changes.changes),
        conflicts=conflicts or None,
        left_out=_left_out(len(done.conflicts), conflicts, done.changes, changes),
        note=_note(done.base is None and wish.strategy != "fields", bool(done.conflicts), bool(done.changes)),
    )


@tool("composition_lineage", needs="base", effects="reads", title="Show whom a composition descends from")
async def composition_lineage(call: Call, *, name: str) -> LineView:
    """Return a composition's ancestors up to the root and its descendants, with reasons, dates and hashes.

    A link whose version is not there any more is said to be missing.
    """
    library = call.svc.library
    await library.fresh()

    def look(tx: Tx) -> LineView:
        own = library.found(tx, name).composition
        above = lineage.ancestors(tx, own)
        below = lineage.descendants(library.catalog.documents(tx), own.name)
        hashes = {head.name: head.hash[:12] for head in library.catalog.heads(tx)}
        up = [
            {"child": each.child, **_descent_view(each.descent), "state": each.state, "note": each.note}
            for each in above
        ]
        down = [
            {
                "name": each.name,
                "hash": hashes.get(each.name),
                "parent": each.parent,
                "parent_hash": each.descent.hash[:12] if each.descent.hash else None,
                **{key: getattr(each.descent, key) for key in ("date", "reason", "author")},
            }
            for each in below
        ]
        taken = [_descent_view(each) for each in lineage.descents(own.document) if each.merged]
        shown = [_fitting((_said(entry) for entry in entries), ROOM // 3) for entries in (up, taken, down)]
        left_out = len(up) + len(taken) + len(down) - sum(map(len, shown))
        return LineView(
            name=own.name,
            version=own.version,
            hash=own.hash[:12],
            ancestors=shown[0],
            merged=shown[1] or None,
            descendants=shown[2],
            left_out=left_out or None,
        )

    return await call.read(look)


def change_view(change: Change) -> dict[str, Any]:
    """A change as it is shown: long values are cut, and say so."""
    view: dict[str, Any] = {"path": _cut(change.path), "kind": change.kind, "section": change.section}
    if change.kind == "text":
        view["hunk"] = _cut(change.hunk)
        return view
    if change.kind != "added":
        view["before"] = _cut(change.before)
    if change.kind != "removed":
        view["after"] = _cut(change.after)
    if change.index is not None:
        view["index"] = change.index
    return view


def conflict_view(conflict: Conflict) -> dict[str, Any]:
    """A conflict as it is shown; a side that has no value there is left out."""
    values = (("base", conflict.base), ("ours", conflict.ours), ("theirs", conflict.theirs))
    return {"path": _cut(conflict.path), **{side: _cut(value) for side, value in values if value is not MISSING}}


def _descent_view(descent: Descent) -> dict[str, Any]:
    return {
        "name": descent.name,
        "version": descent.version,
        "hash": descent.hash[:12] if descent.hash else None,
        "date": descent.date,
        "reason": descent.reason,
        "author": descent.author,
    }


def _said(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def _cut(value: Any) -> Any:
    """`value`, or its beginning as text where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= MAX_VALUE_CHARS:
        return value
    return f"{text[:MAX_VALUE_CHARS]} ... [cut at {MAX_VALUE_CHARS:,} of {len(text):,} characters]"


def _fitting(entries: Iterable[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """As many entries as there is room for, one at least."""
    shown: list[dict[str, Any]] = []
    for entry in entries:
        room -= len(json.dumps(entry, ensure_ascii=False)) + 1
        if shown and room < 0:
            break
        shown.append(entry)
    return shown


def _start(cursor: str | None, versions: str, total: int) -> int:
    if cursor is None:
        return 0
    known, _, place = cursor.rpartition("-")
    if known == versions and place.isascii() and place.isdecimal() and len(place) <= len(str(total)):
        return min(int(place), total)
    raise Invalid(f"{shorten(cursor)!r} is no cursor of these two versions", hint="begin without one")


def _left_out(conflicts: int, shown: list[dict[str, Any]], changes: Diff, listed: list[dict[str, Any]]) -> int | None:
    if conflicts:
        return conflicts - len(shown) or None
    return (len(changes.changes) - len(listed) or None) if listed else None


def _note(baseless: bool, conflicting: bool, changing: bool) -> str | None:
    if baseless:
        return "no common ancestor is known: what only one side has is kept, and every difference is a conflict"
    if not changing and not conflicting:
        return "target has all of it already"
    return None


TOOLS = (composition_diff, composition_merge, composition_lineage)
