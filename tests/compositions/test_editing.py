"""An update writes the next version in place: comments stay, the old version stays, nobody is written over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.compositions import editing
from ksi_mcp.compositions.combining import combine_named
from ksi_mcp.compositions.editing import next_version, rewrite, update
from ksi_mcp.compositions.library import Library
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.testing import FakeClock

_CTX = fresh_context(OPERATOR)
_TEXT = """\
# Mine.
name: p
type: orchestration
version: 1.2.3   # as it is
agents:
  judge: {prompt: "Be fair."}   # the only one
orchestration_logic:
  strategy: |
    Ask the judge.
learnings:
  - {insight: it works}
odd: 2025-01-01
"""


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    clock = FakeClock()
    (tmp_path / "user/mine").mkdir(parents=True)
    (tmp_path / "user/mine/p.yaml").write_text(_TEXT)
    (tmp_path / "builtin").mkdir()
    (tmp_path / "builtin/b.yaml").write_text("name: b\ntype: agent\nprompt: B.\n")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/q.yaml").write_text("name: q\ntype: agent\nprompt: Q.\n")
    db = await open_sqlite(":memory:", clock)
    yield Library(
        Journal(db, clock), builtin=tmp_path / "builtin", user=tmp_path / "user", project=tmp_path / "project"
    )
    await db.close()


def _file(tmp_path: Path) -> Path:
    return tmp_path / "user/mine/p.yaml"


async def _events(library: Library) -> list[tuple[str, dict[str, Any]]]:
    page = await library.journal.query(EventFilter(), limit=100)
    return [(event.name, event.data) for event in page.events]


async def test_an_update_is_the_next_version_in_the_same_file_with_its_comments(
    library: Library, tmp_path: Path
) -> None:
    old = (await library.get("p")).composition
    done = await update(library, _CTX, "p", modifications={"agents.judge.prompt": "Be strict."}, reason=" too soft ")
    text = _file(tmp_path).read_text()
    assert text == _TEXT.replace("1.2.3", "1.2.4").replace("Be fair.", "Be strict.")
    assert done.changed
    assert (await library.get("p")).composition == done.composition
    assert (await library.get(f"p@{old.hash[:8]}")).composition.document == old.document
    assert await _events(library) == [
        (
            "composition:updated",
            {
                "name": "p",
                "hash": done.composition.hash,
                "layer": "user",
                "version": "1.2.4",
                "previous_version": "1.2.3",
                "previous_hash": old.hash,
                "reason": "too soft",
            },
        )
    ]
    assert (await library.refresh()).indexed == 0


async def test_a_dry_run_shows_the_new_version_and_writes_nothing(library: Library, tmp_path: Path) -> None:
    shown = await update(library, _CTX, "p", modifications={"odd": "x"}, dry_run=True)
    assert (shown.changed, shown.composition.document["odd"], shown.composition.version) == (True, "x", "1.2.4")
    assert _file(tmp_path).read_text() == _TEXT
    assert await _events(library) == []
    assert (await library.get("p")).composition == shown.before


async def test_an_update_that_changes_nothing_writes_nothing(library: Library, tmp_path: Path) -> None:
    done = await update(library, _CTX, "p", modifications={"odd": "2025-01-01"})
    assert not done.changed
    assert _file(tmp_path).read_text() == _TEXT
    assert await _events(library) == []


async def test_a_document_replaces_all_but_what_the_library_writes_itself(library: Library, tmp_path: Path) -> None:
    document = {"name": "p", "type": "orchestration", "orchestration_logic": {"strategy": "Think."}, "version": "2.0"}
    done = await update(library, _CTX, "p", document=document)
    assert done.composition.document == {**document, "learnings": [{"insight": "it works"}]}
    assert "# Mine." in _file(tmp_path).read_text()
    assert (await library.get("p")).composition.version == "2.0"


@pytest.mark.parametrize(
    ("wish", "error", "needle"),
    [
        ({}, Invalid, "modifications, or a document"),
        ({"modifications": {}, "document": {}}, Invalid, "modifications, or a document"),
        ({"modifications": {"name": "other"}}, Invalid, "keeps its name"),
        ({"modifications": {"learnings": []}}, Invalid, "cannot be modified"),
        ({"modifications": {"agents.judge.capabilities": ["operator"]}}, Invalid, "not a capability"),
        ({"modifications": {"agents.judge.prompt.x": 1}}, Invalid, "which is text"),
        ({"document": {"name": "other"}}, Invalid, "keeps its name"),
        ({"document": {"name": "p", "performance": {"score": 1}}}, Invalid, "'performance' cannot be changed"),
        ({"document": {"name": "p", "version": "1.2.2"}}, Conflict, "at 1.2.3 by now"),
        ({"document": "- 1"}, Invalid, "not a mapping"),
        ({"document": "name: [", "reason": "r"}, Invalid, "not valid YAML"),
        ({"modifications": {"odd": 1}, "expected_hash": "0123456789"}, Conflict, "has the hash"),
        ({"modifications": {"odd": 1}, "expected_hash": ""}, Conflict, "has the hash"),
        ({"modifications": {"odd": 1}, "reason": "x" * 3_000}, Invalid, "3,000 characters"),
        ({"modifications": {"odd": "x" * 1_100_000}}, KsiError, "large|limit|same"),
    ],
)
async def test_a_refused_update_writes_nothing(
    library: Library, tmp_path: Path, wish: dict[str, Any], error: type[KsiError], needle: str
) -> None:
    with pytest.raises(error, match=needle):
        await update(library, _CTX, "p", **wish)
    assert _file(tmp_path).read_text() == _TEXT
    assert await _events(library) == []


async def test_only_the_writable_layer_and_the_newest_version_can_be_updated(library: Library) -> None:
    for name in ("b", "q"):
        with pytest.raises(Refused, match="not written"):
            await update(library, _CTX, name, modifications={"prompt": "mine"})
    with pytest.raises(NotFound):
        await update(library, _CTX, "nobody", modifications={"prompt": "mine"})
    old = (await library.get("p")).composition.hash
    await update(library, _CTX, "p", modifications={"odd": "new"})
    with pytest.raises(Conflict, match="version of the past"):
        await update(library, _CTX, f"p@{old[:12]}", modifications={"odd": "newer"})


async def test_a_file_that_was_changed_while_the_update_was_made_is_not_written_over(
    library: Library, tmp_path: Path
) -> None:
    def change(document: dict[str, Any]) -> dict[str, Any]:
        _file(tmp_path).write_text(_TEXT.replace("2025-01-01", "by hand"))
        return {**document, "odd": "by tool"}

    with pytest.raises(Conflict, match="changed in the meantime"):
        await rewrite(library, _CTX, "p", change, event=("composition:updated", {}))
    assert "by hand" in _file(tmp_path).read_text()
    assert await _events(library) == []
    assert [path.name for path in (tmp_path / "user/mine").iterdir()] == ["p.yaml"]


async def test_a_change_by_hand_keeps_the_version_before_it_too(library: Library, tmp_path: Path) -> None:
    old = (await library.get("p")).composition
    _file(tmp_path).write_text(_TEXT.replace("Be fair.", "Be kind, and say why."))
    await library.refresh()
    assert (await library.get(f"p@{old.hash[:12]}")).composition.document == old.document
    _file(tmp_path).unlink()
    await library.refresh()
    assert (await library.get(f"p@{old.hash[:12]}")).layer is None


async def test_an_update_cut_off_before_its_row_is_completed_by_repeating_it(library: Library, tmp_path: Path) -> None:
    async def killed(_work: object) -> Any:
        raise ConnectionError

    old = (await library.get("p")).composition
    wish: dict[str, Any] = {"modifications": {"odd": "new"}, "expected_hash": old.hash[:12]}
    with pytest.raises(ConnectionError):
        await update(library, _CTX, "p", **wish, commit=killed)
    text = _file(tmp_path).read_text()
    await library.refresh()  # a restart finds the file
    done = await update(library, _CTX, "p", **wish)
    assert done.composition.version == "1.2.4"
    assert _file(tmp_path).read_text() == text
    assert [name for name, _ in await _events(library)] == ["composition:updated"]
    assert (await library.get(f"p@{old.hash[:12]}")).composition.document == old.document
    with pytest.raises(Conflict):
        await update(library, _CTX, "p", modifications={"odd": "other"}, expected_hash=old.hash[:12])


async def test_a_markdown_component_keeps_its_layout_and_its_text(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "user/mine/m.md"
    path.write_text("---\n# who\ncomponent_type: agent   # type\nname: m\n---\n\n# Text\n\nAs it was.\n")
    await update(library, _CTX, "m", modifications={"tags": ["a"]})
    assert path.read_text() == (
        "---\n# who\ncomponent_type: agent   # type\nname: m\ntags:\n  - a\nversion: 1.0.1\n---\n"
        "\n# Text\n\nAs it was.\n"
    )
    await update(library, _CTX, "m", modifications={"prompt": "Another\n---\ntext."})
    assert path.read_text().endswith("---\n\nAnother\n---\ntext.\n")
    assert (await library.get("m")).composition.document["prompt"] == "Another\n---\ntext."


async def test_a_learning_can_be_written_without_a_new_version(library: Library, tmp_path: Path) -> None:
    def learn(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "learnings": [*document["learnings"], {"insight": "two judges", "evidence": ["o_1"]}]}

    done = await rewrite(library, _CTX, "p", learn, event=("composition:learned", {}))
    assert done.composition.hash == done.before.hash
    added = "  - insight: two judges\n    evidence:\n      - o_1\n"
    assert _file(tmp_path).read_text() == _TEXT.replace(
        "  - {insight: it works}\n", "  - {insight: it works}\n" + added
    )


@pytest.mark.parametrize(
    ("version", "following"),
    [
        ("1.2.3", "1.2.4"),
        ("1.2", "1.2.1"),
        ("2", "2.0.1"),
        ("1.0.9", "1.0.10"),
        ("rc1", "rc2"),
        ("draft", "draft-1"),
        ("1.0.0-beta", "1.0.0-beta-1"),
        ("1.2.3.4", "1.2.3.5"),
        ("9" * 50, "9" * 50 + "-1"),
    ],
)
def test_the_version_goes_up_at_its_last_place(version: str, following: str) -> None:
    assert next_version(version) == following


def test_an_older_document_is_known_by_its_version() -> None:
    assert editing._is_older("1.9.0", "1.10.0")
    assert not editing._is_older("1.10.0", "1.10")
    assert not editing._is_older("draft", "1.0")


# --------------------------------------------------------------------------------------------- combine

_A = {
    "name": "a1",
    "type": "orchestration",
    "tags": ["x"],
    "variables": {"topic": {"default": "bees"}},
    "agents": {"judge": {"prompt": "Of a."}, "clerk": {"prompt": "Same."}},
    "routing": [{"from": "judge", "to": "*", "pattern": "v:*"}],
    "includes": ["rules_of_debate"],
    "budget": {"usd": 1, "turns": 5},
    "orchestration_logic": {"strategy": "## First\nAsk the judge."},
    "metadata": {"by": "a"},
}
_B = {
    "name": "b1",
    "type": "orchestration",
    "tags": ["x", "y"],
    "variables": {"topic": {"default": "bees"}, "depth": 2},
    "agents": [{"role": "judge", "prompt": "Of b."}, {"role": "clerk", "prompt": "Same."}, {"role": "scout"}],
    "routing": {"rules": [{"from": "*", "to": "!self", "pattern": "n:*"}, {"from": "scout", "to": "log:entry"}]},
    "includes": "house_style",
    "budget": {"usd": 2},
    "orchestration_logic": "Send the scout.",
    "metadata": {"by": "b"},
    "odd": 1,
}


async def test_a_combination_has_the_agents_routing_includes_and_strategies_of_both(library: Library) -> None:
    for document in (_A, {**_B, "agents": {"judge": {"prompt": "Of b."}, "clerk": {"prompt": "Same."}, "scout": None}}):
        await library.create(_CTX, document)
    for name in ("rules_of_debate", "house_style"):
        await library.create(_CTX, {"name": name, "type": "component", "content": f"The {name}."})
    made = await combine_named(library, _CTX, "a1", "b1", "both")
    document = (await library.get("both")).composition.document
    assert list(document["agents"]) == ["judge", "clerk", "b1_judge", "scout"]
    assert document["routing"] == [
        {"from": "judge", "to": "clerk", "pattern": "v:*"},
        {"from": "b1_judge", "to": ["clerk", "scout"], "pattern": "n:*"},
        {"from": "clerk", "to": ["b1_judge", "scout"], "pattern": "n:*"},
        {"from": "scout", "to": ["b1_judge", "clerk"], "pattern": "n:*"},
        {"from": "scout", "to": "log:entry"},
    ]
    assert document["variables"] == {"topic": {"default": "bees"}, "depth": 2}
    assert document["includes"] == ["rules_of_debate", "house_style"]
    assert document["budget"] == {"usd": 3, "turns": 5}
    assert document["orchestration_logic"]["strategy"] == (
        "# a1\n\n## First\nAsk the judge.\n\n# b1\n\nIn this part, judge is the agent b1_judge.\n\nSend the scout.\n"
    )
    assert (document["metadata"], document["odd"], document["tags"]) == ({"by": "a"}, 1, ["x", "y"])
    assert document["lineage"]["parent"] == "a1@1.0.0"
    assert document["lineage"]["combined_with"] == "b1@1.0.0"
    assert made.notes == (
        "the role 'judge' of 'b1' is 'b1_judge' here",
        "'metadata' is that of 'a1'",
        "only one of the two limits turns; here that is for both",
    )
    resolved = await library.resolve("both")
    assert set(resolved.includes) == {"rules_of_debate", "house_style"}
    assert {agent.role for agent in resolved.agents} == {"judge", "clerk", "b1_judge", "scout"}


async def test_a_combination_that_would_mean_two_things_is_refused(library: Library, tmp_path: Path) -> None:
    await library.create(_CTX, _A)
    await library.create(_CTX, {**_A, "name": "c1", "variables": {"topic": {"default": "wasps"}}})
    with pytest.raises(Conflict, match="declare in different ways: topic"):
        await combine_named(library, _CTX, "a1", "c1", "both")
    with pytest.raises(Invalid, match="'b' is of type 'agent'"):
        await combine_named(library, _CTX, "a1", "b", "both")
    with pytest.raises(Conflict, match="exists"):
        await combine_named(library, _CTX, "a1", "p", "a1")
    with pytest.raises(Invalid):
        await combine_named(library, _CTX, "a1", "p", "../both")
    shown = await combine_named(library, _CTX, "a1", "p", "both", dry_run=True)
    assert shown.composition.name == "both"
    assert not (tmp_path / "user/orchestrations/both.yaml").exists()


async def test_agents_in_a_list_are_combined_by_their_role(library: Library) -> None:
    await library.create(_CTX, _A)
    await library.create(_CTX, _B)
    made = await combine_named(library, _CTX, "a1", "b1", "both", dry_run=True)
    assert list(made.composition.document["agents"]) == ["judge", "clerk", "b1_judge", "scout"]
    assert yamlio.safe_load(yamlio.dump(made.composition.document), what="it") == made.composition.document
