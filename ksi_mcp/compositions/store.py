"""Rows of the index. Each can be made again from its file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.compositions.files import FoundFile
from ksi_mcp.compositions.flatten import Lookup
from ksi_mcp.compositions.model import (
    LAYERS,
    Composition,
    CompositionType,
    Layer,
    parse_composition,
    parse_reference,
)
from ksi_mcp.db import Row, Tx

MIN_HASH_PREFIX: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """A composition and the file it comes from."""

    composition: Composition
    layer: Layer
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """How a file was when it was indexed."""

    name: str
    mtime_ns: int
    size: int

    def is_still(self, file: FoundFile) -> bool:
        """Whether the file has not been touched since."""
        return (self.mtime_ns, self.size) == (file.mtime_ns, file.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What is shown of a composition in a list. `layer` is the highest one that has the name."""

    name: str
    type: CompositionType
    version: str
    description: str
    tags: tuple[str, ...]
    hash: str
    layer: Layer


def put(tx: Tx, layer: Layer, file: FoundFile, composition: Composition) -> None:
    """Index a file's composition, replacing what was known of that file. The version before stays retrievable."""
    place = {"layer": layer, "path": file.path}
    tx.run("compositions.keep_replaced", {**place, "hash": composition.hash, "now_ms": tx.now_ms})
    tx.run(
        "compositions.put",
        {
            **place,
            "name": composition.name,
            "hash": composition.hash,
            "type": composition.type,
            "version": composition.version,
            "description": composition.description,
            "tags": json.dumps(composition.tags, ensure_ascii=False),
            "document": encode(composition.document),
            "mtime_ns": file.mtime_ns,
            "size": file.size,
        },
    )
    tx.run("compositions.changed", {})


def drop(tx: Tx, layer: str, path: str) -> None:
    """Forget a file."""
    tx.run("compositions.keep_replaced", {"layer": layer, "path": path, "hash": "", "now_ms": tx.now_ms})
    tx.run("compositions.drop", {"layer": layer, "path": path})
    tx.run("compositions.changed", {})


def version(tx: Tx) -> int:
    """Counts the changes of the index: the same number, the same index."""
    row = tx.one("compositions.version", {})
    return 0 if row is None else int(row["version"])


def files(tx: Tx) -> dict[tuple[str, str], Known]:
    """What is known of every indexed file, by (layer, path)."""
    return {
        (row["layer"], row["path"]): Known(name=row["name"], mtime_ns=row["mtime_ns"], size=row["size"])
        for row in tx.all("compositions.files")
    }


def documents(tx: Tx) -> dict[str, dict[str, Any]]:
    """Every name's document, from its highest layer."""
    best: dict[str, Row] = {}
    for row in tx.all("compositions.documents"):
        known = best.get(row["name"])
        if known is None or _rank(row["layer"]) > _rank(known["layer"]):
            best[row["name"]] = row
    return {name: json.loads(row["document"]) for name, row in best.items()}


def heads(tx: Tx) -> list[Head]:
    """Every name once, from its highest layer, in the order of names."""
    best: dict[str, Row] = {}
    for row in tx.all("compositions.heads"):
        known = best.get(row["name"])
        if known is None or _rank(row["layer"]) > _rank(known["layer"]):
            best[row["name"]] = row
    return [
        Head(
            name=row["name"],
            type=row["type"],
            version=row["version"],
            description=row["description"],
            tags=tuple(json.loads(row["tags"])),
            hash=row["hash"],
            layer=row["layer"],
        )
        for _, row in sorted(best.items())
    ]


def named(tx: Tx, name: str) -> list[Indexed]:
    """The compositions of that name, highest layer first."""
    return _highest_first(tx.all("compositions.named", {"name": name}))


def pick(candidates: list[Indexed], version: str | None) -> Indexed | None:
    """The highest of `candidates` that is the version or has the hash asked for."""
    for indexed in candidates:
        found = indexed.composition
        by_hash = version is not None and len(version) >= MIN_HASH_PREFIX and found.hash.startswith(version)
        if version is None or version == found.version or by_hash:
            return indexed
    return None


def remember(tx: Tx, *, hash: str, name: str, document: dict[str, Any]) -> None:
    """Keep a version that is about to be used, for good."""
    tx.run("compositions.remember", {"hash": hash, "name": name, "document": encode(document), "now_ms": tx.now_ms})


def remembered(tx: Tx, name: str, prefix: str) -> Composition | None:
    """A version that was used, if the prefix of its hash fits exactly one."""
    if len(prefix) < MIN_HASH_PREFIX:
        return None
    rows = tx.all("compositions.remembered", {"name": name, "prefix": prefix})
    if len(rows) != 1:
        return None
    return parse_composition(json.loads(rows[0]["document"]), what=f"{name}@{prefix}")


def lookup_in(tx: Tx) -> Lookup:
    """References looked up in the index, then among the versions that were used."""

    def lookup(reference: str) -> Composition | None:
        found = find(tx, reference)
        return found.composition if found is not None else None

    return lookup


def find(tx: Tx, reference: str) -> Indexed | None:
    """The composition of a reference. `path` is empty for a version whose file has changed since.

    Raises:
        Invalid: it is no name.
    """
    name, version = parse_reference(reference)
    indexed = pick(named(tx, name), version)
    if indexed is None and version is not None and (kept := remembered(tx, name, version)) is not None:
        return Indexed(composition=kept, layer="builtin", path="")
    return indexed


def was_reported(tx: Tx, event: str, name: str) -> bool:
    """Whether `event` was recorded for the composition `name`."""
    return tx.one("compositions.was_reported", {"event": event, "name": name}) is not None


def was_hash_reported(tx: Tx, name: str, hash: str) -> bool:
    """Whether this version of `name` was ever reported as made here."""
    return tx.one("compositions.was_hash_reported", {"name": name, "hash": hash}) is not None


def has_others(tx: Tx, name: str, hash: str) -> bool:
    """Whether other versions of `name` are kept."""
    return tx.one("compositions.has_others", {"name": name, "hash": hash}) is not None


def encode(document: dict[str, Any]) -> str:
    """A document as JSON, in its own order."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _highest_first(rows: Iterable[Row]) -> list[Indexed]:
    return [_indexed(row) for row in sorted(rows, key=lambda row: -_rank(row["layer"]))]


def _indexed(row: Row) -> Indexed:
    composition = Composition(
        name=row["name"],
        type=row["type"],
        version=row["version"],
        description=row["description"],
        tags=tuple(json.loads(row["tags"])),
        document=json.loads(row["document"]),
        hash=row["hash"],
    )
    return Indexed(composition=composition, layer=row["layer"], path=row["path"])


def _rank(layer: str) -> int:
    return [str(known) for known in LAYERS].index(layer)
