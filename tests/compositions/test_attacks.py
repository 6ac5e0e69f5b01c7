"""Hostile names, files and documents: refused clearly, nothing is written, nothing outside is read."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.compositions.combining import combine_named
from ksi_mcp.compositions.editing import update
from ksi_mcp.compositions.library import Library
from ksi_mcp.config import Config, Home
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Invalid, KsiError, NotFound
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context
from ksi_mcp.testing import FakeClock

_CTX = fresh_context(OPERATOR)
_NAMES = [
    "../x",
    "../../etc/passwd",
    "a/../../x",
    "/etc/passwd",
    "/x",
    "a/b",
    "..",
    ".",
    ".hidden",
    "a\\b",
    "a\0b",
    "a\nb",
    "~root",
    "C:x",
    "x" * 5_000,
    "%2e%2e%2fx",
    "$(id)",
    "A",
    "é",
    "",
]
_BOMB = "name: bomb\nl0: &l0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
_HOSTILE = {
    "bomb": (_BOMB, "aliases expand to more than 100,000 nodes"),
    "endless": ("name: x\na: &a [*a]\n", "inside its own anchor"),
    "huge": ("name: x\nprompt: " + "x" * 50_000_000, "too large|larger"),
    "object": ("name: x\nprompt: !!python/object/apply:os.system [touch /tmp/owned]\n", "tag .* is not allowed"),
    "module": ("!!python/module:os\nname: x\n", "tag .* is not allowed"),
    "new": ("name: !!python/object/new:subprocess.Popen [id]\n", "tag .* is not allowed"),
    "name": ("name: !!python/name:os.system ''\n", "tag .* is not allowed"),
    "deep": ("name: x\na: " + "[" * 100_000, "nested deeper"),
    "deep_map": ("name: x\na: " + "{a: " * 5_000, "nested deeper"),
    "digits": ("name: x\na: " + "9" * 100_000, "not a number that can be stored"),
    "keys": ("name: x\n? [a, b]\n: c\n", "key must be plain text"),
    "control": ("name: x\na: \x07\n", "not allowed|not valid"),
    "path": ("name: ../../../tmp/owned\n", "not a plain name"),
}


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    clock = FakeClock()
    (tmp_path / "user").mkdir()
    (tmp_path / "user/good.yaml").write_text("name: good\ntype: orchestration\norchestration_logic: {strategy: Go.}\n")
    db = await open_sqlite(":memory:", clock)
    yield Library(Journal(db, clock), builtin=tmp_path / "builtin", user=tmp_path / "user", project=None)
    await db.close()


def _tree(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(root.rglob("*"))
    }


async def _is_refused(library: Library, tmp_path: Path, attempts: list[Any]) -> None:
    before = _tree(tmp_path)
    for attempt in attempts:
        with pytest.raises(KsiError) as caught:
            await attempt()
        assert str(tmp_path) not in caught.value.text()
        assert len(caught.value.text()) < 2_000
    assert _tree(tmp_path) == before
    assert (await library.journal.query(EventFilter(), limit=10)).events == ()


@pytest.mark.parametrize("name", _NAMES)
async def test_a_name_that_is_a_path_is_refused_everywhere_and_nothing_is_written(
    library: Library, tmp_path: Path, name: str
) -> None:
    document = {"name": name, "type": "agent", "prompt": "p"}
    await _is_refused(
        library,
        tmp_path,
        [
            lambda: library.create(_CTX, document),
            lambda: library.fork(_CTX, "good", name, "why"),
            lambda: update(library, _CTX, "good", modifications={"name": name}),
            lambda: update(library, _CTX, "good", document=document),
            lambda: combine_named(library, _CTX, "good", "good", name),
        ],
    )
    assert not (await library.validate(document)).valid


@pytest.mark.parametrize("name", ["../good", "/good", "a/../good", "..", "good/..", "good@../x", "good\0", "./good"])
async def test_a_reference_never_leads_out_of_the_library(library: Library, tmp_path: Path, name: str) -> None:
    (tmp_path / "good.yaml").write_text("name: outside\n")
    await _is_refused(
        library,
        tmp_path,
        [
            lambda: library.get(name),
            lambda: library.fork(_CTX, name, "copy", "why"),
            lambda: update(library, _CTX, name, modifications={"x": 1}),
            lambda: library.create(_CTX, {"name": "y", "extends": name}),
            lambda: library.create(_CTX, {"name": "y", "includes": [name]}),
            lambda: library.create(_CTX, {"name": "y", "agents": {"a": {"composition": name}}}),
        ],
    )


@pytest.mark.parametrize("kind", _HOSTILE)
async def test_a_hostile_document_is_refused_and_nothing_is_written(
    library: Library, tmp_path: Path, kind: str
) -> None:
    text, needle = _HOSTILE[kind]
    with pytest.raises(Invalid, match=needle):
        await library.create(_CTX, text)
    await _is_refused(
        library,
        tmp_path,
        [lambda: library.create(_CTX, text), lambda: update(library, _CTX, "good", document=text)],
    )
    found = await library.validate(text)
    assert not found.valid
    assert found.problems


@pytest.mark.parametrize("kind", _HOSTILE)
@pytest.mark.parametrize("ending", ["yaml", "md"])
async def test_a_hostile_file_is_reported_and_the_others_load(
    library: Library, tmp_path: Path, kind: str, ending: str
) -> None:
    text = _HOSTILE[kind][0]
    (tmp_path / f"user/bad.{ending}").write_text(f"---\n{text}\n---\nBody\n" if ending == "md" else text)
    (problem,) = (await library.refresh()).problems
    assert problem.path == f"bad.{ending}"
    assert str(tmp_path) not in problem.message
    assert [head.name for head in (await library.journal.read(library.catalog.heads))] == ["good"]


async def test_a_link_that_leads_out_is_neither_read_nor_written_through(library: Library, tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("name: secret\ntype: agent\nprompt: the secret\n")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "user/link.yaml").symlink_to(secret)
    (tmp_path / "user/agents").symlink_to(outside)
    report = await library.refresh()
    assert [(problem.path, problem.message) for problem in report.problems] == [
        ("link.yaml", "a symbolic link that leads out of the library")
    ]
    with pytest.raises(NotFound):
        await library.get("secret")
    with pytest.raises(Invalid, match="leads out of the library"):
        await library.create(_CTX, {"name": "x", "type": "agent", "prompt": "p"})
    assert list(outside.iterdir()) == []


async def test_a_file_that_becomes_a_link_before_the_update_is_not_followed(library: Library, tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("name: good\nprompt: the secret\n")
    await library.refresh()
    (tmp_path / "user/good.yaml").unlink()
    (tmp_path / "user/good.yaml").symlink_to(secret)
    with pytest.raises(KsiError) as caught:
        await update(library, _CTX, "good", modifications={"prompt": "mine"})
    assert "secret" not in caught.value.text()
    assert secret.read_text() == "name: good\nprompt: the secret\n"


async def test_a_pipe_in_the_library_hangs_nothing(library: Library, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "user/pipe.yaml")
    assert [problem.message for problem in (await library.refresh()).problems] == ["not a regular file"]


async def test_a_file_that_grants_itself_capabilities_gets_none_that_its_starter_lacks(tmp_path: Path) -> None:
    home = Home(root=tmp_path / "home")
    home.compositions.mkdir(parents=True)
    (home.compositions / "greedy.yaml").write_text(
        "name: greedy\ntype: orchestration\nagents:\n"
        "  one: {capabilities: [base, spawn_agents, routing_control], routing_level: global, prompt: Mine.}\n"
        "orchestration_logic: {strategy: Take all.}\n"
    )
    (home.compositions / "operator.yaml").write_text(
        "name: operator\ntype: agent\ncapabilities: [operator, admin, '*']\nprompt: Mine.\n"
    )
    async with App(home, AppOptions(worker="none", environ={}), config=Config(provider="scripted")) as app:
        with pytest.raises(KsiError, match="not a capability of an agent"):
            await app.toolbox.call(_CTX, "agent_spawn", {"composition": "operator", "name": "o"})
        made = await app.toolbox.call(
            _CTX, "agent_spawn", {"name": "small", "prompt": "p", "capabilities": ["base", "orchestration"]}
        )
        small = fresh_context(agent_actor(made.data["agent"]))
        with pytest.raises(KsiError) as caught:
            await app.toolbox.call(small, "orchestration_start", {"pattern": "greedy"})
        assert "routing_control" in caught.value.text()
        listed = await app.toolbox.call(_CTX, "agent_list", {})
        assert [agent["name"] for agent in listed.data["agents"]] == ["small"]
