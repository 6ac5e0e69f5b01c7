"""Two patterns of the library made into one, and written."""

from __future__ import annotations

from dataclasses import dataclass

from ksi_mcp.compositions import store
from ksi_mcp.compositions.combine import combine
from ksi_mcp.compositions.flatten import Flattener
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.model import Composition, check_name
from ksi_mcp.compositions.records import Commit
from ksi_mcp.db import Tx
from ksi_mcp.permissions import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinedRecord:
    """The new pattern; `notes` say what was renamed or chosen."""

    composition: Composition
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


async def combine_named(
    library: Library, ctx: Context, a: str, b: str, name: str, *, dry_run: bool = False, commit: Commit | None = None
) -> CombinedRecord:
    """Write a pattern `name` of the patterns `a` and `b`, whose parents are merged in. See `combine`.

    Raises:
        NotFound: one of them, or a parent, is not there.
        Conflict: the name is taken, or both declare a variable in different ways.
        Invalid: one is no orchestration, or the result could not be used.
    """
    check_name(name, what="the new pattern's name")
    await library.fresh()

    def flat(tx: Tx) -> tuple[tuple[Composition, Composition], tuple[Composition, Composition]]:
        found = library.found(tx, a).composition, library.found(tx, b).composition
        flattener = Flattener(store.lookup_in(tx))
        return found, (flattener.flatten(found[0]), flattener.flatten(found[1]))

    originals, (one, other) = await library.journal.read(flat)
    made = combine(one, other, name, originals=originals)
    checked = await library.validate(made.document)
    record = await library.create(ctx, made.document, dry_run=dry_run, commit=commit, made_of=originals)
    return CombinedRecord(composition=record.composition, notes=made.notes, warnings=checked.warnings)
