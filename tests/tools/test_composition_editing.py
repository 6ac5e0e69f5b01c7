"""Update and combine as tools: dry runs show the changes, agents need the capability, a repeated call is one change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import KsiError
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context

_CTX = fresh_context(OPERATOR)
_TEXT = "# By hand.\nname: mine\ntype: agent\nversion: 0.9.0\nprompt: |\n  One.\n  Two.\n"


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    home = Home(root=tmp_path / "home")
    home.compositions.mkdir(parents=True)
    (home.compositions / "mine.yaml").write_text(_TEXT)
    async with App(home, AppOptions(worker="none", environ={}), config=Config(provider="scripted")) as app:
        yield app


def _file(app: App) -> Path:
    return app.home.compositions / "mine.yaml"


async def test_a_dry_run_shows_every_change_and_the_update_then_makes_them(app: App) -> None:
    args = {"name": "mine", "modifications": {"prompt": "One.\nThree.\n"}}
    shown = (await app.toolbox.call(_CTX, "composition_update", {**args, "dry_run": True})).data
    assert {change["path"] for change in shown["changes"]} == {"version", "prompt"}
    assert shown["document"]["version"] == "0.9.1"
    assert _file(app).read_text() == _TEXT
    done = (await app.toolbox.call(_CTX, "composition_update", args)).data
    assert (done["version"], done["changed"], done["previous_hash"]) == ("0.9.1", True, shown["previous_hash"])
    assert _file(app).read_text() == _TEXT.replace("Two.", "Three.").replace("0.9.0", "0.9.1")
    old = (await app.toolbox.call(_CTX, "composition_get", {"name": f"mine@{done['previous_hash']}"})).data
    assert old["document"]["prompt"] == "One.\nTwo.\n"
    again = (await app.toolbox.call(_CTX, "composition_update", args)).data
    assert (again["changed"], again["version"]) == (False, "0.9.1")


async def test_an_agent_needs_the_capability_and_a_command_event_does_the_same(app: App) -> None:
    made = await app.toolbox.call(
        _CTX, "agent_spawn", {"name": "a", "prompt": "p", "capabilities": ["base", "messaging"]}
    )
    agent = fresh_context(agent_actor(made.data["agent"]))
    args = {"name": "mine", "modifications": {"prompt": "Taken over."}}
    with pytest.raises(KsiError, match="compositions"):
        await app.toolbox.call(agent, "composition_update", args)
    with pytest.raises(KsiError, match="compositions"):
        await app.toolbox.call(agent, "event_emit", {"event": "composition:update", "data": args})
    assert _file(app).read_text() == _TEXT
    await app.toolbox.call(_CTX, "event_emit", {"event": "composition:update", "data": args})
    assert "prompt: Taken over." in _file(app).read_text()


async def test_two_builtin_patterns_become_one_that_can_be_started(app: App) -> None:
    args = {"a": "consensus", "b": "debate_with_judge", "name": "both"}
    shown = (await app.toolbox.call(_CTX, "composition_combine", {**args, "dry_run": True})).data
    assert shown["document"]["orchestration_logic"]["strategy"].startswith("# consensus\n")
    made = (await app.toolbox.call(_CTX, "composition_combine", args)).data
    assert made["hash"] == shown["hash"]
    whole = (await app.toolbox.call(_CTX, "composition_get", {"name": "both", "resolve": True})).data
    assert whole["document"]["lineage"]["combined_with"].startswith("debate_with_judge@")


async def test_validation_tells_all_that_is_wrong_at_once(app: App) -> None:
    document = {
        "name": "No Slug",
        "type": "orchestration",
        "extends": "gone",
        "agents": {"a": {"model": 3}, "b": {"composition": "lost"}},
        "routing": [{"from": "a", "to": "zz"}, {"from": "x_*", "to": "b", "pattern": "no pattern"}],
        "budget": {"usd": "much"},
    }
    found = (await app.toolbox.call(_CTX, "composition_validate", {"document": document})).data
    assert not found["valid"]
    paths = [problem.split(": ")[0] for problem in found["problems"]]
    assert paths == ["name", "agents.a.model", "routing.0.to", "routing.1.from", "routing.1.pattern", "budget.usd"]
    assert len(found["warnings"]) == 3
