"""What goes into a bundle: compositions, what they need, whom they descend from, and what came of their runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ksi_mcp import yamlio
from ksi_mcp.compositions import files, store
from ksi_mcp.compositions.flatten import MAX_DEPTH
from ksi_mcp.compositions.manifest import Role
from ksi_mcp.compositions.model import Composition, Layer, parse_composition, parse_reference, shorten
from ksi_mcp.compositions.references import references_of
from ksi_mcp.compositions.runrows import MAX_METRICS, MAX_RUNS, RunRow
from ksi_mcp.compositions.store import Indexed
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Invalid, KsiError, NotFound

MAX_NAMES: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What will go into a bundle; texts of files are still to be read. `requires` come with the program."""

    members: tuple[tuple[Role, Indexed], ...]
    requires: tuple[tuple[str, str], ...]
    runs: tuple[RunRow, ...]
    missing: tuple[str, ...]
    """What something refers to and the library does not have."""


@dataclass(slots=True)
class _Walk:
    tx: Tx
    members: dict[str, tuple[Role, Indexed]] = field(default_factory=dict)
    ancestors: dict[str, Indexed] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)


def gather(tx: Tx, names: Sequence[str], *, with_dependencies: bool, with_runs: bool) -> Gathered:
    """Look everything up that a bundle of `names` holds.

    Raises:
        NotFound: one of the names is unknown; Invalid: there are none or too many.
    """
    if not 0 < len(names) <= MAX_NAMES:
        raise Invalid(f"a bundle is of 1 to {MAX_NAMES} compositions, not {len(names)}")
    walk = _Walk(tx)
    for name in dict.fromkeys(names):
        found = store.find(tx, name)
        if found is None or parse_reference(name)[1] is not None:
            raise NotFound(f"there is no composition {shorten(name)!r} to export", hint="see composition_discover")
        walk.members[found.composition.name] = ("composition", found)
    if with_dependencies:
        _add_dependencies(walk)
    for _role, member in list(walk.members.values()):
        _add_ancestors(walk, member.composition)
    exported = list(walk.members)
    return Gathered(
        members=(*walk.members.values(), *(("ancestor", found) for found in walk.ancestors.values())),
        requires=tuple(sorted(walk.requires.items())),
        runs=own_runs(tx, exported) if with_runs else (),
        missing=tuple(walk.missing),
    )


def own_runs(tx: Tx, names: Sequence[str]) -> tuple[RunRow, ...]:
    """What was measured here of these compositions, the newest, without tests and without what others claim."""
    rows = tx.all("compositions.own_runs", {"names": json.dumps(list(names)), "limit": MAX_RUNS})
    return tuple(_run(row) for row in rows)


def claims(tx: Tx, names: Sequence[str]) -> list[dict[str, Any]]:
    """What bundles claim of these compositions' runs, by name and bundle. None of it was measured here."""
    return [dict(row) for row in tx.all("compositions.claimed_runs", {"names": json.dumps(list(names))})]


def text_of_file(roots: dict[Layer, Path], found: Indexed) -> str:
    """Blocking: the YAML that a composition travels as: its own file where that says just this, comments and all."""
    composition = found.composition
    if found.path.endswith((".yaml", ".yml")) and found.layer in roots:
        try:
            text = files.read_text(roots[found.layer], found.path)
            loaded = parse_composition(yamlio.safe_load(text, what="the file"), what="the file")
        except KsiError:
            return yamlio.dump(composition.document)
        if loaded.document == composition.document:
            return text
    return yamlio.dump(composition.document)


def _add_dependencies(walk: _Walk) -> None:
    waiting = [found.composition for _role, found in walk.members.values()]
    while waiting:
        for name, version in references_of(waiting.pop().document):
            reference = name if version is None else f"{name}@{version}"
            if name in walk.members or reference in walk.missing:
                continue
            found = store.find(walk.tx, reference)
            if found is None:
                walk.missing[reference] = None
            elif not found.path:  # a version that was used and has no file any more
                walk.ancestors[found.composition.hash] = found
                waiting.append(found.composition)
            elif found.layer == "builtin":
                walk.requires[found.composition.name] = found.composition.hash
            else:
                walk.members[found.composition.name] = ("dependency", found)
                waiting.append(found.composition)


def _add_ancestors(walk: _Walk, composition: Composition) -> None:
    """Those of whom it descends that can still be had, each as it was when it was forked."""
    seen = {composition.hash}
    for _ in range(MAX_DEPTH):
        lineage = composition.document.get("lineage")
        parent, hash = (
            (lineage.get("parent"), lineage.get("parent_hash")) if isinstance(lineage, dict) else (None, None)
        )
        if not isinstance(parent, str) or not isinstance(hash, str):
            return
        name = parent.partition("@")[0]
        try:
            found = store.find(walk.tx, f"{name}@{hash}")
        except Invalid:
            return
        if found is None or found.composition.hash in seen:
            return
        seen.add(found.composition.hash)
        member = walk.members.get(name)
        if member is None or member[1].composition.hash != found.composition.hash:
            walk.ancestors[found.composition.hash] = found
        composition = found.composition


def _run(row: Row) -> RunRow:
    fields: dict[str, Any] = {name: row[name] for name in RunRow.__dataclass_fields__}
    fields["success"] = None if row["success"] is None else bool(row["success"])
    metrics = None if row["metrics"] is None else json.loads(row["metrics"])
    fields["metrics"] = None if not metrics else dict(list(metrics.items())[:MAX_METRICS])
    fields["outcome"] = None if row["outcome"] is None else str(row["outcome"])[:500]
    return RunRow(**fields)
