"""A composition's next state under the same name, wherever it stands: in our file, or above one that is not ours."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ksi_mcp.compositions import editing, files
from ksi_mcp.compositions.granting import refuse_beyond
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.model import LAYERS, Composition, Layer
from ksi_mcp.compositions.planning import Plan, planned
from ksi_mcp.compositions.records import Commit, CompositionRecord
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid
from ksi_mcp.permissions import Context


async def supersede(
    library: Library,
    ctx: Context,
    document: dict[str, Any],
    *,
    expected: Composition,
    event: tuple[str, dict[str, Any]],
    dry_run: bool = False,
    commit: Commit | None = None,
) -> CompositionRecord:
    """Put `document` in the place of `expected`, whose name it has, and report it as `event`.

    A file of the writable layer is replaced, comments and layout kept as far as they stay true. A built-in one is left
    alone: the document is written to the writable layer, above it.

    Raises:
        Conflict: it was changed in the meantime.
        Invalid, NotFound: the document could not be used, or what it would replace lies above the writable layer.
    """
    layer, root = library.writable()
    await library.fresh()

    def look(tx: Tx) -> tuple[Layer, Plan]:
        found = library.found(tx, expected.name)
        _check_still(found.composition.document, expected)
        return found.layer, planned(tx, document)

    standing, plan = await library.journal.read(look)
    if LAYERS.index(standing) > LAYERS.index(layer):
        raise Invalid(
            f"{expected.name!r} is in the {standing} library, above the {layer} library that is written",
            hint="change the file there by hand, or work on a fork",
        )
    if standing == layer:

        def change(current: dict[str, Any]) -> dict[str, Any]:
            _check_still(current, expected)
            return document

        revised = await editing.rewrite(
            library, ctx, expected.name, change, event=event, dry_run=dry_run, commit=commit, vouched=True
        )
        return CompositionRecord(composition=revised.composition, layer=revised.layer)
    await library.journal.read(lambda tx: refuse_beyond(tx, ctx, plan.composition, expected))
    if not dry_run:
        await asyncio.to_thread(files.create_file, root, plan.path, plan.text)
        await library.index(ctx, layer, plan, event=event, commit=commit)
    return CompositionRecord(composition=plan.composition, layer=layer)


def _check_still(document: dict[str, Any], expected: Composition) -> None:
    if json.dumps(document, sort_keys=True) != json.dumps(expected.document, sort_keys=True):
        raise Conflict(f"{expected.name!r} was changed in the meantime", hint="read it again, then repeat the call")
