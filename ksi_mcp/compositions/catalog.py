"""The heads of the library, kept in memory for as long as the index is the same.

Reading and decoding every row takes longer than choosing among them. The index counts its changes, whoever makes
them, so one look at a number tells whether what is kept still holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ksi_mcp.compositions import store
from ksi_mcp.compositions.store import Head
from ksi_mcp.db import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The library at one version of its index. Shared: what is in it must not be changed."""

    version: int
    heads: tuple[Head, ...]
    documents: dict[str, dict[str, Any]] | None = None
    """By name; None until somebody asked for them."""


class Catalog:
    """Keeps the newest snapshot. To be read in a read-only transaction: what a writer sees may yet be taken back."""

    def __init__(self) -> None:
        self._held: Snapshot | None = None

    def heads(self, tx: Tx) -> tuple[Head, ...]:
        """Every name once, from its highest layer, in the order of names."""
        return self._at(tx).heads

    def documents(self, tx: Tx) -> dict[str, dict[str, Any]]:
        """Every name's document, from its highest layer."""
        held = self._at(tx)
        if held.documents is not None:
            return held.documents
        documents = store.documents(tx)
        self._held = replace(held, documents=documents)
        return documents

    def _at(self, tx: Tx) -> Snapshot:
        version, held = store.version(tx), self._held
        if held is None or held.version != version:
            held = self._held = Snapshot(version=version, heads=tuple(store.heads(tx)))
        return held
