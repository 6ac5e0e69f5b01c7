"""What is kept in memory of the library is what the index says, whoever changed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ksi_mcp.compositions import store
from ksi_mcp.compositions.catalog import Catalog
from ksi_mcp.compositions.files import FoundFile
from ksi_mcp.compositions.model import parse_composition
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.events.journal import Journal
from ksi_mcp.testing import FakeClock


def _put(tx: Tx, name: str, size: int = 1) -> None:
    file = FoundFile(path=f"{name}.yaml", mtime_ns=1, size=size)
    store.put(tx, "user", file, parse_composition({"name": name, "size": size}, what="it"))


async def test_the_catalog_follows_other_processes_and_forgets_what_was_taken_back(tmp_path: Path) -> None:
    clock = FakeClock()
    ours = await open_sqlite(tmp_path / "ksi.db", clock)
    theirs = await open_sqlite(tmp_path / "ksi.db", clock)
    mine, other = Journal(ours, clock), Journal(theirs, clock)
    catalog = Catalog()

    async def names() -> list[str]:
        return [head.name for head in await mine.read(catalog.heads)]

    assert await names() == []
    await mine.commit(lambda tx: _put(tx, "a"))
    first = await mine.read(catalog.heads)
    assert await mine.read(catalog.heads) is first
    await other.commit(lambda tx: _put(tx, "b"))
    assert await names() == ["a", "b"]
    assert (await mine.read(catalog.documents))["b"]["size"] == 1

    def taken_back(tx: Tx) -> None:
        _put(tx, "c")
        raise LookupError

    with pytest.raises(LookupError):
        await mine.commit(taken_back)
    assert await names() == ["a", "b"]
    await other.commit(lambda tx: _put(tx, "b", size=2))
    assert (await mine.read(catalog.documents))["b"]["size"] == 2
    await other.commit(lambda tx: store.drop(tx, "user", "a.yaml"))
    assert await names() == ["b"]
    await ours.close()
    await theirs.close()
