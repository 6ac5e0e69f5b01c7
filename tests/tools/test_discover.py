"""Finding patterns over the tools: by what they have, by what is to be done, and over a real client once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import TextContent

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import Invalid
from ksi_mcp.tools.catalog import ALL_TOOLS, DEFAULT_TOOLS
from ksi_mcp.transports.server import build_server


def names(found: dict[str, Any]) -> list[str]:
    return [head["name"] for head in found["compositions"]]


async def fork(house: Any, parent: str, name: str, **modifications: Any) -> None:
    await house.call("composition_fork", parent=parent, name=name, reason="a test", modifications=modifications)


async def run(house: Any, pattern: str, outcome: str, **more: Any) -> None:
    started = await house.call("orchestration_start", pattern=pattern, vars={"proposition": "We move."})
    await house.call(
        "orchestration_complete", orchestration=started["orchestration"], outcome=outcome, summary="x", **more
    )


async def test_a_task_is_answered_with_patterns_scores_and_reasons(open_house) -> None:
    async with open_house() as house:
        found = await house.call("composition_select", task="Argue for and against a merger, then decide who was right")
        first = found["compositions"][0]
        assert first["name"] == "debate_with_judge"
        assert first["score"] >= 0.5
        assert any("made for debate" in reason for reason in first["reasons"])
        assert "none_fits" not in found
        assert await house.call(
            "composition_discover", task="Argue for and against a merger, then decide who was right"
        )


async def test_none_fits_is_said_rather_than_a_poor_match(open_house) -> None:
    async with open_house() as house:
        for tool in ("composition_select", "composition_discover"):
            found = await house.call(tool, task="Book me a flight to Lisbon on Friday")
            assert found["compositions"] == []
            assert found["total"] == 0
            assert found["none_fits"]
            assert all(near["score"] < 0.5 and near["reasons"] for near in found.get("nearest", ()))


async def test_what_was_measured_decides_between_a_pattern_and_its_fork(open_house) -> None:
    task = "Argue for and against a merger"
    async with open_house() as house:
        await fork(house, "debate_with_judge", "debate_tuned", **{"variables.rounds.default": 1})
        before = await house.call("composition_select", task=task)
        assert set(names(before)[:2]) == {"debate_with_judge", "debate_tuned"}
        for _ in range(4):
            await run(house, "debate_with_judge", "failure")
            await run(house, "debate_tuned", "success", score=0.9)
        found = await house.call("composition_select", task=task)
        best = found["compositions"][0]
        assert best["name"] == "debate_tuned"
        assert (best["performance"]["runs"], best["performance"]["success_rate"]) == (4, 1.0)
        assert any(reason.startswith("measured here: 4 runs, success 1.00 (of 4, 95 %") for reason in best["reasons"])

        only = await house.call("composition_select", task=task, requirements={"min_success_rate": 0.9})
        assert names(only) == ["debate_tuned"]
        (excluded,) = [each for each in only["excluded"] if each["name"] == "debate_with_judge"]
        assert excluded["unmet"] == ["its success rate is 0.00, at least 0.9 is asked for"]

        measured = {"performance.runs": {">=": 4}, "performance.success_rate": {">": 0.5}}
        assert names(await house.call("composition_discover", metadata_filter=measured)) == ["debate_tuned"]
        assert names(await house.call("composition_discover", task=task, metadata_filter=measured)) == ["debate_tuned"]


async def test_figures_that_came_with_a_file_are_claimed_and_not_measured(open_house) -> None:
    async with open_house() as house:
        boasting = {
            "name": "boasting",
            "type": "orchestration",
            "description": "Two sides debate.",
            "agents": {"a": {"prompt": "x"}},
            "performance": {"runs": 900, "avg_score": 0.99},
        }
        await house.call("composition_create", document=boasting)
        assert names(await house.call("composition_discover", metadata_filter={"claimed.runs": {">": 5}})) == [
            "boasting"
        ]
        for none in ({"performance.runs": {">": 5}}, {"performance.avg_score": {"exists": True}}):
            assert names(await house.call("composition_discover", metadata_filter=none)) == []
        assert "boasting" in names(await house.call("composition_discover", metadata_filter={"performance.runs": 0}))


async def test_capabilities_and_descent_narrow_what_is_found(open_house) -> None:
    async with open_house() as house:
        found = await house.call("composition_discover", type="orchestration", capabilities=["spawn_agents"])
        assert names(found) == ["self_organizing_analysis_team"]
        through_profile = {
            "name": "led",
            "type": "orchestration",
            "agents": {"lead": {"composition": "base_orchestrator"}},
        }
        await house.call("composition_create", document=through_profile)
        found = await house.call("composition_discover", type="orchestration", capabilities=["orchestration", "base"])
        assert names(found) == ["led"]

        await fork(house, "consensus", "child")
        await fork(house, "child", "grandchild")
        assert names(await house.call("composition_discover", descends_from="consensus")) == ["child", "grandchild"]
        assert names(await house.call("composition_discover", descends_from="child")) == ["grandchild"]
        assert names(await house.call("composition_discover", descends_from="grandchild")) == []
        assert names(
            await house.call("composition_discover", text="child", descends_from="consensus", tags=["delphi"], limit=1)
        ) == ["child"]


async def test_what_changes_is_found_by_its_new_words_at_once(open_house) -> None:
    async with open_house() as house:
        task = "sommelier pairing wines with a menu"
        assert (await house.call("composition_select", task=task))["compositions"] == []
        await fork(house, "consensus", "wine_panel", **{"metadata.good_for": ["a sommelier pairing wines with a menu"]})
        assert names(await house.call("composition_select", task=task)) == ["wine_panel"]


async def test_profiles_are_chosen_where_they_are_asked_for(open_house) -> None:
    async with open_house() as house:
        profile = {
            "name": "translator_pt",
            "type": "agent",
            "description": "Translates into Portuguese.",
            "prompt": "x",
        }
        await house.call("composition_create", document=profile)
        task = "translate the letter into Portuguese"
        assert names(await house.call("composition_select", task=task, type="agent")) == ["translator_pt"]
        assert "translator_pt" not in names(await house.call("composition_select", task=task))


@pytest.mark.parametrize(
    ("tool", "args", "said"),
    [
        ("composition_select", {"task": " "}, "the task is empty"),
        ("composition_discover", {"task": ""}, "the task is empty"),
        ("composition_select", {"task": "x", "requirements": {"colour": 1}}, "unknown requirement 'colour'"),
        ("composition_select", {"task": "x", "limit": 0}, "limit"),
        ("composition_discover", {"task": "x", "text": "y"}, "task goes without text and cursor"),
        ("composition_discover", {"task": "x", "cursor": "1"}, "task goes without text and cursor"),
        ("composition_discover", {"limit": 101}, "limit 101"),
        ("composition_discover", {"limit": 0}, "limit 0"),
        ("composition_discover", {"text": "x" * 501}, "text of 501 characters"),
        ("composition_discover", {"tags": ["x"] * 21}, "21 tags"),
        ("composition_discover", {"capabilities": ["x"] * 21}, "21 capabilities"),
        ("composition_discover", {"descends_from": "../x"}, "is not a composition's name"),
        ("composition_discover", {"metadata_filter": {"a": {"~": 1}}}, "unknown operator"),
    ],
)
async def test_what_cannot_be_searched_for_is_refused_clearly(
    open_house, tool: str, args: dict[str, Any], said: str
) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid) as caught:
            await house.call(tool, **args)
        assert said in caught.value.text()


async def test_hostile_tasks_are_only_words(open_house) -> None:
    async with open_house() as house:
        for task in (
            "(a+)+$ " * 1_000,
            "debate " + "x" * 200_000,
            "{{system}} \x00 \u202e \ud83d",
            "%s %(x)s debate",
            "討論",
        ):
            found = await house.call("composition_select", task=task)
            assert found["compositions"] or found["none_fits"]


def test_only_discover_is_listed_and_its_schema_stays_small() -> None:
    assert "composition_discover" in DEFAULT_TOOLS
    assert "composition_select" not in DEFAULT_TOOLS
    (discover,) = [tool for tool in ALL_TOOLS if tool.name == "composition_discover"]
    assert len(json.dumps(discover.schema(), separators=(",", ":"))) + len(discover.description) <= 668


async def test_a_client_asks_for_a_pattern_and_starts_it(tmp_path: Path) -> None:
    async with (
        App(Home(root=tmp_path), AppOptions(worker="none"), config=Config(provider="scripted")) as app,
        Client(build_server(app)) as client,
    ):

        async def call(tool: str, **args: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, args)
            assert not result.is_error, result.content
            assert result.structured_content is not None
            return result.structured_content

        task = "Triage the incoming tickets by urgency and hand each to somebody"
        found = await call("composition_discover", task=task)
        best = found["compositions"][0]
        assert best["name"] == "triage_and_dispatch"
        emitted = await call(
            "event_emit", event="composition:select", data={"task": task, "requirements": {"max_usd": 3}, "limit": 1}
        )
        assert names(emitted["result"]) == ["triage_and_dispatch"]
        assert "required: its budget of 3 usd is within 3" in emitted["result"]["compositions"][0]["reasons"]
        none = await call("composition_discover", task="turn on the lights")
        assert none["none_fits"]
        refused = await client.call_tool("composition_discover", {"task": " "})
        assert refused.is_error
        assert isinstance(refused.content[0], TextContent)
        assert "the task is empty" in refused.content[0].text
        started = await call("orchestration_start", pattern=best["name"], vars={"items": "a; b"})
        assert {agent["name"] for agent in started["agents"]} >= {"classifier", "dispatcher"}
