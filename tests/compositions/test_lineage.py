"""Lineage goes up to the root and down to every fork, says what is missing, and ends in a circle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.clock import SystemClock
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.lineage import (
    MAX_ANCESTORS,
    MAX_DESCENDANTS,
    Ancestor,
    ancestors,
    common_ancestor,
    descendants,
    descents,
)
from ksi_mcp.compositions.model import content_hash
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import OPERATOR, fresh_context


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    clock = SystemClock()
    db = await open_sqlite(":memory:", clock)
    yield Library(Journal(db, clock), builtin=tmp_path / "builtin", user=tmp_path / "user", project=None)
    await db.close()


_CTX = fresh_context(OPERATOR)


def _put(library: Library, name: str, **document: Any) -> dict[str, Any]:
    whole = {"name": name, "type": "component", **document}
    folder = library.roots["user"]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(yamlio.dump(whole))
    return whole


def _forked(parent: str, hash: str | None = None, **more: Any) -> dict[str, Any]:
    return {"lineage": {"parent": parent, **({"parent_hash": hash} if hash else {}), **more}}


async def _up(library: Library, name: str) -> list[Ancestor]:
    await library.refresh()
    return await library.journal.read(lambda tx: ancestors(tx, library.found(tx, name).composition))


async def _base(library: Library, one: str, other: str) -> dict[str, Any] | None:
    await library.refresh()
    found = await library.journal.read(
        lambda tx: common_ancestor(tx, library.found(tx, one).composition, library.found(tx, other).composition)
    )
    return found.composition.document if found is not None else None


async def test_ancestors_go_up_to_the_root_by_hash(library):
    _put(library, "root", content="1")
    await library.refresh()
    await library.fork(_CTX, "root", "middle", "shorter", {"content": "2"})
    await library.fork(_CTX, "middle", "leaf", "faster", {"content": "3"})
    found = await _up(library, "leaf")
    assert [(each.descent.name, each.child, each.state, each.descent.reason) for each in found] == [
        ("middle", "leaf", "current", "faster"),
        ("root", "middle", "current", "shorter"),
    ]


async def test_a_parent_that_was_changed_since_is_still_found_by_its_hash(library):
    _put(library, "root", content="1")
    await library.refresh()
    await library.fork(_CTX, "root", "leaf", "x", {"content": "2"})
    _put(library, "root", content="changed by hand")
    (found,) = await _up(library, "leaf")
    assert (found.state, found.composition.document["content"]) == ("kept", "1")
    assert (await _base(library, "root", "leaf"))["content"] == "1"
    (library.roots["user"] / "root.yaml").unlink()
    (found,) = await _up(library, "leaf")
    assert found.state == "kept"


@pytest.mark.parametrize(
    ("lineage", "state", "note"),
    [
        (_forked("gone", "ab" * 32), "missing", "not in the library"),
        (_forked("root@9.9.9", "ab" * 32), "missing", "was not kept; the library has root@"),
        (_forked("root@9.9.9"), "missing", "not there, and its hash is not given"),
        (_forked("root"), "current", "its hash is not given"),
        (_forked("orchestrations/root.yaml", "%_%_%_%_"), "current", "its hash is not given"),
    ],
)
async def test_a_link_that_leads_nowhere_is_said_to(library, lineage, state, note):
    _put(library, "root")
    _put(library, "leaf", **lineage)
    (found,) = await _up(library, "leaf")
    assert found.state == state
    assert note in found.note


@pytest.mark.parametrize(
    "lineage",
    [
        None,
        [],
        "root",
        7,
        {},
        {"parent": None},
        {"parent": "../../etc"},
        {"parent": ["root"]},
        {"parent": "a" * 10_000},
    ],
)
def test_a_lineage_that_is_none_is_no_descent(lineage):
    assert descents({"lineage": lineage}) == []


async def test_a_circle_ends_and_is_said_to_be_one(library):
    _put(library, "a", **_forked("b"))
    _put(library, "b", **_forked("c"))
    _put(library, "c", **_forked("a"))
    found = await _up(library, "a")
    assert [each.descent.name for each in found] == ["b", "c", "a"]
    assert "circle" in found[-1].note
    documents = {name: {"lineage": {"parent": parent}} for name, parent in ("ab", "bc", "ca", "dd")}
    assert [each.name for each in descendants(documents, "a")] == ["c", "b"]
    assert descendants(documents, "d") == []
    # Whom both claim to come from is found, although the way there never ends.
    assert await _base(library, "a", "b") is not None


async def test_a_long_line_is_cut(library):
    _put(library, "n0")
    for n in range(1, MAX_ANCESTORS + 20):
        _put(library, f"n{n}", **_forked(f"n{n - 1}"))
    assert len(await _up(library, f"n{MAX_ANCESTORS + 19}")) == MAX_ANCESTORS
    _put(library, "wide", lineage={"improvements": [{"merged": f"m{n}", "hash": "ab" * 9} for n in range(9_000)]})
    await library.refresh()
    found = await library.journal.read(lambda tx: ancestors(tx, library.found(tx, "wide").composition, merged=True))
    assert len(found) == MAX_ANCESTORS
    many = {f"f{n}": {"lineage": {"parent": "n0"}} for n in range(MAX_DESCENDANTS + 50)}
    assert len(descendants(many, "n0")) == MAX_DESCENDANTS


def test_descendants_are_all_forks_of_forks_nearest_first():
    documents = {
        "root": {},
        "late": _forked("root", fork_date="2026-02-01"),
        "early": _forked("root", fork_date="2026-01-01", fork_reason="why"),
        "grandchild": _forked("late"),
        "other": _forked("elsewhere"),
    }
    found = descendants(documents, "root")
    assert [(each.name, each.parent) for each in found] == [("early", "root"), ("late", "root"), ("grandchild", "late")]
    assert found[0].descent.reason == "why"


async def test_two_forks_have_the_earlier_version_of_their_parent_in_common(library):
    first = _put(library, "root", content="1")
    await library.refresh()
    second = _put(library, "root", content="2")
    await library.refresh()
    _put(library, "root", content="3")
    _put(library, "a", **_forked("root", content_hash(second), fork_date="2026-01-02T00:00:00Z"))
    _put(library, "b", **_forked("root", content_hash(first), fork_date="2026-01-01T00:00:00Z"))
    assert await _base(library, "a", "b") == first
    assert await _base(library, "b", "a") == first


async def test_what_was_merged_or_promoted_is_the_nearest_ancestor(library):
    _put(library, "root", content="0")
    await library.refresh()
    await library.fork(_CTX, "root", "fork", "x", {"content": "1"})
    merged = (await library.get("fork")).composition
    for lineage in (
        {"improvements": [{"merged": "fork@1.0.0", "hash": merged.hash, "date": "2999-01-01T00:00:00Z"}]},
        {"promoted_from": "fork@1.0.0", "promoted_hash": merged.hash, "promotion_date": "2999-01-01T00:00:00Z"},
    ):
        _put(library, "root", content=f"mine {len(lineage)}", lineage=lineage)
        _put(library, "fork", content=f"2 {len(lineage)}", lineage=merged.document["lineage"])
        assert (await _base(library, "root", "fork"))["content"] == "1"
        assert (await _base(library, "fork", "root"))["content"] == "1"
    assert await _up(library, "root") == []


async def test_strangers_have_no_ancestor(library):
    _put(library, "a")
    _put(library, "b", **_forked("gone"))
    assert await _base(library, "a", "b") is None
