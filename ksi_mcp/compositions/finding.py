"""Finding compositions: by what they have (`discover`), or by what is to be done (`select`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.compositions import runs
from ksi_mcp.compositions.asks import ancestors_of, capabilities_of
from ksi_mcp.compositions.catalog import Catalog
from ksi_mcp.compositions.filters import matcher
from ksi_mcp.compositions.fitting import Index
from ksi_mcp.compositions.model import parse_reference
from ksi_mcp.compositions.paging import CompositionPage, Wanted, page_of
from ksi_mcp.compositions.requirements import checks_of, filtered_document
from ksi_mcp.compositions.runs import Performance
from ksi_mcp.compositions.select import STARTABLE, Selection, choose, learn
from ksi_mcp.compositions.store import Head
from ksi_mcp.db import Tx
from ksi_mcp.events.journal import Journal

_STALE_FACTOR: Final = 4
_STALE_SPARE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sieve:
    """What else a composition must have than words: capabilities its agents ask for, an ancestor, metadata."""

    capabilities: tuple[str, ...] = ()
    descends_from: str | None = None
    metadata: Mapping[str, Any] | None = None

    def __bool__(self) -> bool:
        return bool(self.capabilities or self.descends_from or self.metadata)


class Finder:
    """Looks for compositions in the catalog. Remembers what it has taken apart."""

    def __init__(self, journal: Journal, catalog: Catalog) -> None:
        self._journal = journal
        self._catalog = catalog
        self._index = Index()
        self._learning = asyncio.Lock()

    async def discover(self, wanted: Wanted, sieve: Sieve, *, limit: int, cursor: str | None) -> CompositionPage:
        """Those that have everything that is asked for, ranked by how well the words fit.

        Raises:
            Invalid: the filter, the ancestor's name or the cursor is none.
        """
        passes = _passing(sieve)

        def look(tx: Tx) -> Sequence[Head]:
            heads = self._catalog.heads(tx)
            if not sieve:
                return heads
            documents = self._catalog.documents(tx)
            measured = runs.performance(tx, names=[head.name for head in heads]) if sieve.metadata else {}
            return [head for head in heads if passes(documents.get(head.name, {}), documents, measured.get(head.name))]

        return page_of(await self._journal.read(look), wanted, limit=limit, cursor=cursor)

    async def select(
        self, task: str, requirements: Mapping[str, Any] | None = None, *, type: str | None = None, limit: int = 5
    ) -> Selection:
        """What to take for a task, best first with reasons, or that none fits. Without a type: what can be started.

        Raises:
            Invalid: the task is empty, or a requirement is unknown or malformed.
        """
        checks = checks_of(requirements or {})
        types = STARTABLE if type is None else (type,)

        def look(tx: Tx) -> tuple[list[Head], dict[str, dict[str, Any]], dict[str, Performance], int]:
            heads = [head for head in self._catalog.heads(tx) if head.type in types]
            names = [head.name for head in heads]
            return heads, self._catalog.documents(tx), runs.performance(tx, names=names), tx.now_ms

        async with self._learning:
            heads, documents, measured, now_ms = await self._journal.read(look)

            if len(self._index) > _STALE_FACTOR * len(heads) + _STALE_SPARE:
                self._index = Index()  # most of what it knows is old

            def work() -> Selection:
                learn(self._index, heads, documents)
                return choose(
                    self._index,
                    task,
                    heads,
                    checks=checks,
                    documents=documents,
                    performance=measured,
                    limit=limit,
                    now_ms=now_ms,
                )

            return await asyncio.to_thread(work)


Passes = Callable[[Mapping[str, Any], Mapping[str, Mapping[str, Any]], Performance | None], bool]


def _passing(sieve: Sieve) -> Passes:
    matches = matcher(dict(sieve.metadata)) if sieve.metadata else None
    ancestor = parse_reference(sieve.descends_from, what="descends_from")[0] if sieve.descends_from else None

    def passes(
        document: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]], measured: Performance | None
    ) -> bool:
        if sieve.capabilities and not set(sieve.capabilities) <= capabilities_of(document, documents):
            return False
        if ancestor is not None and ancestor not in ancestors_of(document, documents):
            return False
        return matches is None or matches(filtered_document(document, measured))

    return passes
