"""The changes of one composition taken into another: the common ancestor found, the target's next version written.

While conflicts are left, and on a dry run, nothing is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ksi_mcp import yamlio
from ksi_mcp.compositions import files
from ksi_mcp.compositions.changes import Diff
from ksi_mcp.compositions.diff import diff
from ksi_mcp.compositions.editing import next_version, rewrite
from ksi_mcp.compositions.fork import Lineage
from ksi_mcp.compositions.granting import refuse_beyond
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.lineage import Base, common_ancestor
from ksi_mcp.compositions.merge import Conflict as MergeConflict
from ksi_mcp.compositions.merge import Strategy, merge_compositions
from ksi_mcp.compositions.model import DEFAULT_VERSION, Composition, Layer, check_name, shorten
from ksi_mcp.compositions.planning import Plan, planned, refuse_taken
from ksi_mcp.compositions.records import Commit
from ksi_mcp.compositions.store import Indexed
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid, Refused
from ksi_mcp.permissions import Context

EVENT: Final = "composition:merged"
MAX_SHOWN: Final = 50
MAX_SHOWN_CHARS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeWish:
    """What is to be merged. `name`: write to a new composition of that name, and leave the target as it is."""

    source: str
    target: str
    strategy: Strategy = "three_way"
    fields: Sequence[str] | None = None
    resolve: Mapping[str, Any] | None = None
    name: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge made, or would make of the target (`document`). Nothing is written while there are `conflicts`."""

    name: str
    version: str
    hash: str
    document: dict[str, Any]
    base: Base | None
    changes: Diff
    conflicts: tuple[MergeConflict, ...]
    written: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    target: Indexed
    source: Indexed
    base: Base | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    library: Library
    ctx: Context
    wish: MergeWish
    sides: _Sides
    commit: Commit | None


async def merge_versions(
    library: Library, ctx: Context, wish: MergeWish, *, commit: Commit | None = None
) -> MergeResult:
    """Take into the target what the source changed since both were one.

    Raises:
        NotFound: no such composition. Refused: the target cannot be written to. Conflict: the name is taken, or the
            file changed in the meantime. Invalid: a path of `fields` or `resolve` is wrong, or the result could not
            be used.
    """
    await library.fresh()
    sides = await library.journal.read(lambda tx: _sides(tx, library, wish))
    target, source = sides.target.composition, sides.source.composition
    _refuse_unwritable(library, sides.target, wish)
    base = sides.base.composition.document if sides.base is not None else {}
    # What both sides hold may take a second to compare: not on the loop that everybody else waits for.
    merged = await asyncio.to_thread(
        merge_compositions,
        base,
        target.document,
        source.document,
        strategy=wish.strategy,
        fields=wish.fields,
        resolve=wish.resolve,
    )
    changes = await asyncio.to_thread(diff, target.document, merged.document)
    job = _Job(library=library, ctx=ctx, wish=wish, sides=sides, commit=commit)
    made, written = target, False
    if wish.name is not None or changes:
        if not merged.conflicts:
            document = _signed(merged.document, sides, wish, date=_date(library), author=str(ctx.actor))
            made = await _write(job, document, len(changes.changes))
            written = not wish.dry_run
    elif not wish.dry_run and _is_merged(target.document, source.hash):
        # Merged already; if a crash left the file without its event, that is told now.
        await _write(job, target.document, 0)
    return MergeResult(
        name=made.name,
        version=made.version,
        hash=made.hash,
        document=merged.document if merged.conflicts else made.document,
        base=sides.base,
        changes=changes,
        conflicts=merged.conflicts,
        written=written,
    )


async def _write(job: _Job, document: dict[str, Any], changes: int) -> Composition:
    """The new version, written unless it is a dry run."""
    library, ctx, wish, sides = job.library, job.ctx, job.wish, job.sides
    target, source = sides.target.composition, sides.source.composition
    facts = {
        "target": f"{target.name}@{target.version}",
        "target_hash": target.hash,
        "source": f"{source.name}@{source.version}",
        "source_hash": source.hash,
        "base": sides.base.reference if sides.base is not None else None,
        "strategy": wish.strategy,
        "changes": changes,
        "resolved": sorted(shorten(path, MAX_SHOWN_CHARS) for path in wish.resolve or ())[:MAX_SHOWN],
    }
    if wish.name is None:

        def change(current: dict[str, Any]) -> dict[str, Any]:
            if diff(current, target.document):
                raise Conflict(
                    f"{target.name!r} was changed in the meantime", hint="look at it again, then repeat the call"
                )
            return document

        revised = await rewrite(
            library, ctx, target.name, change, event=(EVENT, facts), dry_run=wish.dry_run, commit=job.commit
        )
        return revised.composition
    layer, root = library.writable()
    plan = await library.journal.read(lambda tx: _new_plan(tx, document, layer))
    await library.journal.read(lambda tx: refuse_beyond(tx, ctx, plan.composition, target))
    if not wish.dry_run:
        await asyncio.to_thread(files.create_file, root, plan.path, plan.text)
        told = {"version": plan.composition.version, **facts}
        await library.index(ctx, layer, plan, event=(EVENT, told), commit=job.commit)
    return plan.composition


def _sides(tx: Tx, library: Library, wish: MergeWish) -> _Sides:
    target, source = library.found(tx, wish.target), library.found(tx, wish.source)
    one, other = target.composition, source.composition
    if one.name == other.name and one.hash == other.hash:
        raise Invalid(f"{one.name!r} cannot be merged with itself", hint="name two compositions, or two versions")
    if one.type != other.type:
        raise Invalid(
            f"{other.name!r} is of type {other.type}, {one.name!r} is of type {one.type}",
            hint="only compositions of one type can be merged",
        )
    if wish.name is not None:
        check_name(wish.name, what="the new name")
    return _Sides(target=target, source=source, base=common_ancestor(tx, one, other))


def _refuse_unwritable(library: Library, target: Indexed, wish: MergeWish) -> None:
    """Said before anything is compared: a dry run tells it, too."""
    layer, _ = library.writable()
    if wish.name is not None or (target.path and target.layer == layer):
        return
    what = target.composition.name
    if not target.path:
        raise Refused(
            f"{shorten(wish.target)!r} is an earlier version of {what!r}, which stays as it is",
            hint=f"merge into {what!r}, or give name= for a new composition",
        )
    raise Refused(
        f"{what!r} is in the {target.layer} library, which is not written",
        hint=f"composition_fork {what!r} and merge into the fork, or give name= for a new composition",
    )


def _signed(document: dict[str, Any], sides: _Sides, wish: MergeWish, *, date: str, author: str) -> dict[str, Any]:
    """The merged document as the next version, with what was merged written into its lineage."""
    made: dict[str, Any] = yamlio.plain(document)
    target, source = sides.target.composition, sides.source.composition
    entry = {
        "merged": f"{source.name}@{source.version}",
        "hash": source.hash,
        "base": sides.base.composition.hash if sides.base is not None else None,
        "strategy": wish.strategy,
        "date": date,
        "author": author,
    }
    lineage = made.get("lineage")
    if wish.name is not None:
        made["name"], made["version"] = wish.name, DEFAULT_VERSION
        made.update({key: {} for key in ("performance",) if key in made})
        reason = f"merge of {entry['merged']} into {target.name}@{target.version}"
        lineage = Lineage(parent=target, date=date, reason=reason, author=author).as_document()
    else:
        made["version"] = next_version(target.version)
    if lineage is not None and not isinstance(lineage, dict):
        lineage = {"text": lineage}  # somebody wrote it in his own words: kept
    before = (lineage or {}).get("improvements")
    kept = before if isinstance(before, list) else [] if before is None else [before]
    made["lineage"] = {**(lineage or {}), "improvements": [*kept, entry]}
    return made


def _is_merged(document: dict[str, Any], source_hash: str) -> bool:
    lineage = document.get("lineage")
    improvements = lineage.get("improvements") if isinstance(lineage, dict) else None
    last = improvements[-1] if isinstance(improvements, list) and improvements else None
    return isinstance(last, dict) and "merged" in last and last.get("hash") == source_hash


def _new_plan(tx: Tx, document: dict[str, Any], layer: Layer) -> Plan:
    plan = planned(tx, document)
    refuse_taken(tx, plan.composition.name, (layer, plan.path))
    return plan


def _date(library: Library) -> str:
    now = datetime.fromtimestamp(library.journal.clock.now_ms() / 1000, UTC)
    return now.isoformat(timespec="seconds").replace("+00:00", "Z")
