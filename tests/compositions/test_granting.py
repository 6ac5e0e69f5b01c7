from __future__ import annotations

from pathlib import Path

import pytest

from ksi_mcp import yamledit, yamlio
from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import KsiError, Refused
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context

HELPER = "name: helper\ntype: agent\nprompt: be kind\ncapabilities: [base, spawn_agents]\n"
PATTERN = (
    "name: pair\ntype: orchestration\nagents:\n  w: {profile: plain, prompt: work}\n"
    "orchestration_logic: {strategy: go}\n"
)
PLAIN = "name: plain\ntype: agent\nprompt: be kind\ncapabilities: [base]\n"


@pytest.mark.parametrize(
    ("tool", "args"),
    [
        ("composition_update", {"name": "plain", "modifications": {"capabilities": ["base", "spawn_agents"]}}),
        ("composition_update", {"name": "plain", "modifications": {"routing_level": "global"}}),
        ("composition_update", {"name": "plain", "modifications": {"mcp_servers": {"files": None}}}),
        ("composition_update", {"name": "helper", "modifications": {"prompt": "be mine"}}),
        ("composition_update", {"name": "pair", "modifications": {"agents.w.profile": "helper"}}),
        ("composition_merge", {"source": "helper", "target": "plain", "strategy": "theirs"}),
        ("composition_merge", {"source": "helper", "target": "plain", "strategy": "theirs", "name": "third"}),
        ("composition_create", {"document": {"name": "not_yet", "type": "agent", "capabilities": ["spawn_agents"]}}),
        ("composition_create", {"document": {"name": "heir", "type": "orchestration", "agents": {"w": "helper"}}}),
    ],
)
async def test_an_agent_writes_nothing_that_asks_for_more_than_it_holds(
    tmp_path: Path, tool: str, args: dict[str, object]
) -> None:
    async with App(Home(root=tmp_path), AppOptions(worker="none"), config=Config()) as app:
        operator = fresh_context(OPERATOR)
        for document in (HELPER, PLAIN, PATTERN):
            await app.toolbox.call(operator, "composition_create", {"document": document})
        spawned = {"prompt": "x", "name": "writer", "capabilities": ["base", "compositions"]}
        agent = (await app.toolbox.call(operator, "agent_spawn", spawned)).data["agent"]
        files = {path: path.read_bytes() for path in (tmp_path / "compositions").rglob("*.yaml")}
        with pytest.raises(Refused) as refused:
            await app.toolbox.call(fresh_context(agent_actor(agent)), tool, args)
        assert "does not hold" in refused.value.text()
        assert files == {path: path.read_bytes() for path in (tmp_path / "compositions").rglob("*.yaml")}


async def test_a_composition_keeps_its_type(tmp_path: Path) -> None:
    async with App(Home(root=tmp_path), AppOptions(worker="none"), config=Config()) as app:
        operator = fresh_context(OPERATOR)
        await app.toolbox.call(operator, "composition_create", {"document": PLAIN})
        args = {"name": "plain", "modifications": {"type": "component"}}
        with pytest.raises(KsiError, match="keeps its type"):
            await app.toolbox.call(operator, "composition_update", args)


def test_what_is_added_to_a_file_with_windows_line_ends_has_them_too() -> None:
    text = "# c\r\nname: a # n\r\nlist:\r\n- 1 # one\r\n"
    after = {**yamlio.safe_load(text, what="it"), "version": "1"}
    assert yamledit.edited(text, after, what="it") == text + "version: '1'\r\n"
    changed = {"name": "b", "list": [1]}
    assert yamledit.edited(text, changed, what="it") == text.replace("name: a", "name: b")
    plain = "name: a\r\nx: 1\r\n"
    assert yamledit.edited(plain, {"name": "b", "x": 1}, what="it") == "name: b\r\nx: 1\r\n"
    assert yamledit.edited(plain, {"x": 1}, what="it") == "x: 1\r\n"


def test_a_key_beside_a_merged_one_is_changed_in_place() -> None:
    text = "d: &d {k: v} # d\ns:\n  <<: *d\n  e: 1 # e\n"
    found = yamlio.safe_load(text, what="it")
    found["s"]["e"] = 2
    assert yamledit.edited(text, found, what="it") == text.replace("e: 1", "e: 2")
    found["s"]["k"] = "w"
    assert yamledit.edited(text, found, what="it") == text.replace("e: 1 # e\n", "e: 2 # e\n  k: w\n")
