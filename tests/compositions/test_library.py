"""The library follows its files, resolves the highest layer first, and forks with descent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.compositions import store
from ksi_mcp.compositions.fork import Lineage, forked_document
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.model import parse_composition
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context


class _Clock:
    """Stands still unless it is moved."""

    ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000

    async def sleep(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    clock = _Clock()
    db = await open_sqlite(":memory:", clock)
    yield Journal(db, clock)
    await db.close()


def _write(root: Path, path: str, document: Any) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(document if isinstance(document, str) else yamlio.dump(document))


def _library(journal: Journal, tmp_path: Path, *, user: bool = True) -> Library:
    return Library(
        journal, builtin=tmp_path / "builtin", user=tmp_path / "user" if user else None, project=tmp_path / "project"
    )


async def _events(journal: Journal) -> list[tuple[str, dict[str, Any]]]:
    page = await journal.query(EventFilter(), limit=100)
    return [(event.name, event.data) for event in page.events]


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


_PARENT = {
    "name": "parent",
    "type": "orchestration",
    "version": "2.1.0",
    "agents": {"a": {"prompt": "p", "vars": {"list": [1, {"x": 1}]}}, "b": {"prompt": "q"}},
    "routing": [{"from": "a", "to": "b", "pattern": "x:y"}],
    "orchestration_logic": {"strategy": "one\n  two\n"},
    "performance": {"avg_score": 0.9},
    "learnings": ["l"],
    "unheard_of": {"kept": "2024-01-01"},
}
_CTX = fresh_context(OPERATOR)


async def test_the_index_follows_the_files(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "builtin/a.yaml", {"name": "a"})
    _write(tmp_path, "user/sub/b.yaml", {"name": "b", "version": "1"})
    assert (await library.refresh()).indexed == 2
    assert (await library.refresh()).indexed == 0
    _write(tmp_path, "user/sub/b.yaml", {"name": "b", "version": "2.22"})
    (tmp_path / "builtin/a.yaml").unlink()
    report = await library.refresh()
    assert (report.indexed, report.removed, report.total) == (1, 1, 1)
    assert (await library.get("b")).composition.version == "2.22"
    with pytest.raises(NotFound, match="unknown composition 'a'"):
        await library.get("a")


async def test_a_file_dropped_in_is_found_without_a_restart(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    await library.refresh()
    _write(tmp_path, "user/late.yaml", {"name": "late"})
    await journal.clock.sleep(2)
    assert (await library.get("late")).layer == "user"


async def test_the_highest_layer_wins_and_the_lower_one_returns(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    for layer in ("builtin", "user", "project"):
        _write(tmp_path, f"{layer}/x.yaml", {"name": "x", "type": "agent", "version": layer, "prompt": layer})
    await library.refresh()
    assert (await library.get("x")).layer == "project"
    assert (await library.get("x@builtin")).layer == "builtin"
    assert [head.layer for head in (await library.discover()).items] == ["project"]
    (tmp_path / "project/x.yaml").unlink()
    await library.refresh()
    assert (await library.resolve("x")).agents[0].prompt == "user"


async def test_a_bad_file_is_reported_and_the_rest_loads(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    bomb = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    bad = {
        "syntax.yaml": "name: x\n  bad: [",
        "bomb.yaml": bomb,
        "huge.yaml": "x" * 10_000_000,
        "name.yaml": "name: ../../etc/passwd\n",
        "list.yaml": "- 1\n",
        "python.yaml": "name: !!python/object/apply:os.system [x]\n",
    }
    for path, text in bad.items():
        _write(tmp_path, f"user/{path}", text)
    _write(tmp_path, "user/good.yaml", {"name": "good"})
    for _ in range(2):
        report = await library.refresh()
        assert {problem.path for problem in report.problems} == set(bad)
        assert not any(str(tmp_path) in problem.message for problem in report.problems)
    assert [head.name for head in (await library.discover()).items] == ["good"]
    assert "line 2" in next(problem.message for problem in report.problems if problem.path == "syntax.yaml")


async def test_a_name_twice_in_a_layer_is_reported(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "user/a.yaml", {"name": "same"})
    _write(tmp_path, "user/b.yaml", {"name": "same"})
    for _ in range(2):
        (problem,) = (await library.refresh()).problems
        assert (problem.path, problem.message) == ("b.yaml", "the name 'same' is already that of a.yaml")


async def test_a_file_that_turns_bad_leaves_the_index(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "user/a.yaml", {"name": "a"})
    await library.refresh()
    _write(tmp_path, "user/a.yaml", "name: [")
    assert (await library.refresh()).removed == 1
    with pytest.raises(NotFound):
        await library.get("a")


async def test_discovery_ranks_all_words_and_pages(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "user/1.yaml", {"name": "review", "type": "agent", "tags": ["code", "x"]})
    _write(
        tmp_path, "user/2.yaml", {"name": "other", "type": "agent", "description": "A Review of CODE", "tags": ["x"]}
    )
    _write(tmp_path, "user/3.yaml", {"name": "unrelated", "tags": ["X", "y"]})
    page = await library.discover(text="code review")
    assert [head.name for head in page.items] == ["review", "other"]
    assert [head.name for head in (await library.discover(tags=["x", "y"])).items] == ["unrelated"]
    assert [head.name for head in (await library.discover(type="agent")).items] == ["other", "review"]
    first = await library.discover(limit=2)
    assert (len(first.items), first.total) == (2, 3)
    second = await library.discover(limit=2, cursor=first.cursor)
    assert (len(second.items), second.cursor) == (1, None)
    for cursor in ("x", "-1", "9" * 50, "²"):
        with pytest.raises(Invalid):
            await library.discover(cursor=cursor)


async def test_a_used_version_stays_retrievable_when_its_file_changes(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "user/base.yaml", {"name": "base", "type": "agent", "prompt": "old base"})
    _write(tmp_path, "user/p.yaml", {"name": "p", "agents": {"a": {"composition": "base", "prompt": "old"}}})
    resolved = await library.resolve("p")
    await journal.commit(lambda tx: library.remember(tx, resolved))
    await journal.commit(lambda tx: library.remember(tx, resolved))
    _write(tmp_path, "user/p.yaml", {"name": "p", "agents": {"a": {"prompt": "changed"}}})
    (tmp_path / "user/base.yaml").unlink()
    await library.refresh()
    kept = await library.get(resolved.reference)
    assert kept.layer is None
    assert kept.composition.document["agents"]["a"]["prompt"] == "old"
    agent = resolved.agents[0].composition
    assert agent is not None
    assert (await library.get(agent)).composition.document["prompt"] == "old base"
    with pytest.raises(NotFound):
        await library.get(f"p@{resolved.hash[:3]}")


async def test_get_resolves_without_asking_for_variables(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    _write(
        tmp_path, "user/p.yaml", {"name": "p", "variables": {"topic": {}}, "agents": {"a": {"prompt": "On {{topic}}"}}}
    )
    record = await library.get("p", resolve=True)
    assert record.resolved is not None
    assert record.resolved.agents[0].prompt == "On {{topic}}"
    assert record.resolved.warnings == ("variables to be given: topic",)
    with pytest.raises(Invalid, match="topic"):
        await library.resolve("p")


async def test_a_fork_carries_its_changes_its_lineage_and_every_unknown_key(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "builtin/parent.yaml", _PARENT)
    ctx = fresh_context(agent_actor("a_1234567890"))
    changes = {
        "agents.a.vars.list.1.x": 5,
        "agents.b.prompt": "better\nlonger",
        "agents.c": {"prompt": "new"},
        "routing[1]": {"from": "b", "to": "c", "pattern": "y:z"},
        "deep.new.key": True,
    }
    record = await library.fork(ctx, "parent", "child", "it was slow", changes)
    on_disk = yamlio.safe_load((tmp_path / "user/orchestrations/child.yaml").read_text(), what="x")
    parent_hash = (await library.get("parent")).composition.hash
    assert on_disk["lineage"] == {
        "parent": "parent@2.1.0",
        "parent_hash": parent_hash,
        "fork_date": "2023-11-14T22:13:20Z",
        "fork_reason": "it was slow",
        "fork_author": "agent:a_1234567890",
        "improvements": [],
    }
    assert on_disk["agents"]["a"]["vars"]["list"] == [1, {"x": 5}]
    assert [rule["to"] for rule in on_disk["routing"]] == ["b", "c"]
    assert on_disk["unheard_of"] == {"kept": "2024-01-01"}
    assert (on_disk["performance"], on_disk["learnings"], on_disk["deep"]) == ({}, [], {"new": {"key": True}})
    found = await library.get("child")
    assert found.composition == record.composition
    ((name, data),) = await _events(journal)
    assert name == "composition:forked"
    assert data == {
        "name": "child",
        "hash": record.composition.hash,
        "layer": "user",
        "parent": "parent@2.1.0",
        "parent_hash": parent_hash,
        "reason": "it was slow",
    }
    assert (await library.refresh()).indexed == 0


@pytest.mark.parametrize(
    ("path", "value", "needle"),
    [
        ("agents.a.prompt.deeper", 1, "leads through 'agents.a.prompt', which is text"),
        ("agents.a.vars.list.7", 1, "no position 7"),
        ("agents.a.vars.list.x", 1, "not a position"),
        ("name", "other", "cannot be modified"),
        ("lineage.parent", "me", "cannot be modified"),
        ("performance.score", 1, "cannot be modified"),
        ("", 1, "not a dotted path"),
        ("a..b", 1, "not a dotted path"),
        (".".join("a" * 30), 1, "not a dotted path"),
        ("agents.a.capabilities", ["operator"], "not a capability"),
        ("routing.0.to", "nobody", "not a role"),
        ("odd", float("nan"), "cannot be stored"),
        ("odd", _nested(5_000), "nested deeper"),
        ("odd", "x" * 1_100_000, "limit|large"),
    ],
)
async def test_a_bad_modification_writes_nothing(
    journal: Journal, tmp_path: Path, path: str, value: Any, needle: str
) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "builtin/parent.yaml", _PARENT)
    with pytest.raises(KsiError, match=needle):
        await library.fork(_CTX, "parent", "child", "why", {path: value})
    assert not (tmp_path / "user").exists()
    assert await _events(journal) == []


@pytest.mark.parametrize("name", ["../x", "/x", "A", "x_decisions", "", "x" * 200])
async def test_a_fork_under_a_bad_name_writes_nothing(journal: Journal, tmp_path: Path, name: str) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "builtin/parent.yaml", _PARENT)
    with pytest.raises(Invalid):
        await library.fork(_CTX, "parent", name, "why")
    assert not (tmp_path / "user").exists()


async def test_a_dry_run_shows_the_fork_and_writes_nothing(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "builtin/parent.yaml", _PARENT)
    record = await library.fork(_CTX, "parent", "child", "why", {"agents.b.prompt": "r"}, dry_run=True)
    assert record.composition.document["agents"]["b"]["prompt"] == "r"
    assert not (tmp_path / "user").exists()
    with pytest.raises(NotFound):
        await library.get("child")


async def test_a_name_that_any_layer_has_is_a_conflict(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "builtin/parent.yaml", _PARENT)
    _write(tmp_path, "project/mine.yaml", {"name": "mine"})
    for name in ("parent", "mine"):
        with pytest.raises(Conflict, match="taken"):
            await library.fork(_CTX, "parent", name, "why")
    await library.fork(_CTX, "parent", "child", "why")
    with pytest.raises(Conflict):
        await library.fork(_CTX, "parent", "child", "why")
    with pytest.raises(Conflict):
        await library.create(_CTX, {"name": "child"})
    assert len(await _events(journal)) == 1


async def test_a_fork_cut_off_between_file_and_row_is_completed_by_repeating_it(
    journal: Journal, tmp_path: Path
) -> None:
    library = _library(journal, tmp_path)
    _write(tmp_path, "builtin/parent.yaml", _PARENT)

    async def killed(_work: object) -> Any:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await library.fork(_CTX, "parent", "child", "why", {"x": 1}, commit=killed)
    text = (tmp_path / "user/orchestrations/child.yaml").read_text()
    assert await _events(journal) == []
    await journal.clock.sleep(3600)
    with pytest.raises(Conflict):
        await library.fork(_CTX, "parent", "child", "another reason", {"x": 1})
    record = await library.fork(_CTX, "parent", "child", "why", {"x": 1})
    assert (tmp_path / "user/orchestrations/child.yaml").read_text() == text
    assert (await library.get("child")).composition == record.composition
    assert [name for name, _ in await _events(journal)] == ["composition:forked"]
    with pytest.raises(Conflict):
        await library.fork(_CTX, "parent", "child", "why", {"x": 1})


async def test_a_creation_cut_off_between_file_and_row_is_completed_by_repeating_it(
    journal: Journal, tmp_path: Path
) -> None:
    library = _library(journal, tmp_path)

    async def killed(_work: object) -> Any:
        raise ConnectionError

    document = {"name": "a", "type": "agent", "prompt": "p"}
    with pytest.raises(ConnectionError):
        await library.create(_CTX, document, commit=killed)
    await library.refresh()  # a restart finds the file
    with pytest.raises(Conflict):
        await library.create(_CTX, {**document, "prompt": "another"})
    await library.create(_CTX, document)
    assert [name for name, _ in await _events(journal)] == ["composition:created"]
    with pytest.raises(Conflict):
        await library.create(_CTX, document)


async def test_the_index_heals_rows_without_file_and_files_without_row(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    await library.create(_CTX, {"name": "a", "type": "agent", "prompt": "p"})
    (tmp_path / "user/agents/a.yaml").rename(tmp_path / "user/agents/moved.yaml")
    report = await _library(journal, tmp_path).refresh()
    assert (report.indexed, report.removed) == (1, 1)
    await journal.commit(lambda tx: store.drop(tx, "user", "agents/moved.yaml"))
    assert (await library.refresh()).indexed == 1
    assert (await library.get("a")).layer == "user"


async def test_create_takes_yaml_text_and_keeps_unknown_keys(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path, user=False)
    record = await library.create(_CTX, "name: new\ntype: agent\nprompt: |\n  one\n  two\nodd: 2024-01-01\n")
    assert record.layer == "project"
    assert (tmp_path / "project/agents/new.yaml").read_text() == (
        "name: new\ntype: agent\nprompt: |\n  one\n  two\nodd: '2024-01-01'\n"
    )
    assert [name for name, _ in await _events(journal)] == ["composition:created"]
    for bad in ("name: [", "name: ../x", "- 1", "name: y\nagents: {a: {model: [1]}}", "x" * 10_000_000):
        with pytest.raises(KsiError):
            await library.create(_CTX, bad)
    assert [path.name for path in (tmp_path / "project").rglob("*.yaml")] == ["new.yaml"]


async def test_validation_says_what_is_wrong_and_writes_nothing(journal: Journal, tmp_path: Path) -> None:
    library = _library(journal, tmp_path)
    good = await library.validate({"name": "x", "type": "agent", "prompt": "p"})
    assert (good.valid, good.problem, good.warnings) == (True, None, ())
    assert (await library.validate({"name": "x", "type": "agent"})).warnings
    dangling = await library.validate({"name": "x", "extends": "gone", "agents": {"a": {"composition": "lost"}}})
    assert dangling.valid
    assert [warning.split(":")[0] for warning in dangling.warnings[:2]] == ["x -> gone", "agents.a"]
    refused: list[Any] = [
        "a: [",
        {"name": "x", "agents": 3},
        {"name": "x", "extends": "x y"},
        {"name": "x", "odd": _nested(5_000)},
        [],
    ]
    for bad in refused:
        found = await library.validate(bad)
        assert not found.valid
        assert found.problem
    assert not (tmp_path / "user").exists()


async def test_without_a_layer_to_write_to_the_refusal_says_so(journal: Journal, tmp_path: Path) -> None:
    library = Library(journal, builtin=tmp_path, user=None, project=None)
    with pytest.raises(Invalid, match="no layer that can be written"):
        await library.create(_CTX, {"name": "x"})
    assert library.decisions_root is None


def test_a_fork_never_touches_its_parent() -> None:
    parent = parse_composition(_PARENT, what="it")
    before = repr(parent.document)
    lineage = Lineage(parent=parent, date="d", reason="r", author="operator")
    value = {"prompt": "x"}
    fork = forked_document("child", lineage, {"agents.a": value, "agents.b.vars.k\\.dotted": 1})
    fork["agents"]["a"]["prompt"] = "changed"
    assert fork["agents"]["b"]["vars"] == {"k.dotted": 1}
    assert repr(parent.document) == before
    assert value == {"prompt": "x"}
