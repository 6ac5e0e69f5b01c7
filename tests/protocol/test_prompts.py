"""Prompts as clients of both eras get them."""

from __future__ import annotations

import json
import re

import pytest
from mcp import MCPError

from ksi_mcp.tools.catalog import ALL_TOOLS
from ksi_mcp.transports.faces.prompts import MAX_ARGUMENT_CHARS


async def a_run(client) -> dict:
    started = await client.call_tool("orchestration_start", {"pattern": "consensus", "vars": {"question": "tea?"}})
    return started.structured_content


async def test_three_prompts_are_listed_with_their_arguments(serve):
    async with serve() as (_, client):
        prompts = (await client.list_prompts()).prompts
    assert {each.name: [(arg.name, arg.required) for arg in each.arguments] for each in prompts} == {
        "orchestrate": [("goal", True), ("pattern", False)],
        "evolve": [("pattern", True), ("goal", False), ("variant", False)],
        "review_run": [("run", True), ("agent", False)],
    }
    for each in prompts:
        assert each.title
        assert each.description
        assert all(arg.description for arg in each.arguments)


async def test_orchestrate_names_the_goal_and_the_pattern(serve):
    async with serve() as (_, client):
        free = await client.get_prompt("orchestrate", {"goal": "ship it"})
        fixed = await client.get_prompt("orchestrate", {"goal": "ship it", "pattern": "consensus"})
    assert "ship it" in free.messages[0].content.text
    assert "composition_discover" in free.messages[0].content.text
    assert "'consensus'" in fixed.messages[0].content.text


async def test_a_goal_that_the_client_has_cut_at_its_spaces_is_put_together_again(serve):
    async with serve() as (_, client):
        begun = await client.get_prompt("orchestrate", {"goal": "compare", "pattern": "tea"})
        better = await client.get_prompt("evolve", {"pattern": "consensus", "goal": "fewer", "variant": "turns"})
    assert "Goal: compare tea ..." in begun.messages[0].content.text
    assert "Choose a pattern" in begun.messages[0].content.text
    assert "fewer turns ..." in better.messages[0].content.text
    assert "a fork that you will make" in better.messages[0].content.text


async def test_evolve_brings_the_pattern_its_runs_and_its_decisions(serve):
    async with serve() as (_, client):
        run = (await a_run(client))["orchestration"]
        decided = {"pattern": "consensus", "decision": "asked twice", "confidence": 0.5}
        await client.call_tool("composition_track_decision", {**decided, "reasoning": "no answer"})
        done = {"orchestration": run, "outcome": "success", "score": 0.75, "summary": "agreed"}
        await client.call_tool("orchestration_complete", done)
        got = await client.get_prompt("evolve", {"pattern": "consensus", "goal": "fewer turns"})
        await client.call_tool("composition_fork", {"parent": "consensus", "name": "consensus_two", "reason": "a try"})
        with_fork = await client.get_prompt("evolve", {"pattern": "consensus", "variant": "consensus_two"})
    said, pattern, runs, decisions = got.messages
    assert "fewer turns" in said.content.text
    assert str(pattern.content.resource.uri) == "ksi://compositions/consensus"
    assert json.loads(pattern.content.resource.text)["type"] == "orchestration"
    assert run in runs.content.text
    assert '"score":0.75' in runs.content.text
    assert "asked twice" in decisions.content.text
    assert "composition_fork(" in said.content.text
    assert 'composition_diff(a="consensus", b="consensus_two")' in with_fork.messages[0].content.text


async def test_review_run_brings_the_runs_true_status_what_it_cost_and_what_was_decided(serve):
    async with serve() as (_, client):
        started = await a_run(client)
        run = started["orchestration"]
        agent = started["agents"][0]
        got = await client.get_prompt("review_run", {"run": run, "agent": agent["agent"]})
    said, status, cost, decided, about = got.messages
    assert run in said.content.text
    assert str(status.content.resource.uri) == f"ksi://orchestrations/{run}"
    shown = json.loads(status.content.resource.text)
    assert (shown["orchestration"], shown["state"]) == (run, "running")
    assert len(shown["agents"]) == len(started["agents"])
    assert '"total"' in cost.content.text
    assert '"decisions":[]' in decided.content.text
    assert json.loads(about.content.resource.text)["name"] == agent["name"]


async def test_prompts_name_tools_and_commands_that_exist(serve):
    async with serve() as (app, client):
        run = (await a_run(client))["orchestration"]
        got = [
            await client.get_prompt("orchestrate", {"goal": "x"}),
            await client.get_prompt("evolve", {"pattern": "consensus"}),
            await client.get_prompt("review_run", {"run": run}),
        ]
        commands = app.toolbox.commands
    text = " ".join(each.messages[0].content.text for each in got)
    assert set(re.findall(r'event_emit\("([a-z_:]+)"', text)) - commands == set()
    families = {tool.name.partition("_")[0] for tool in ALL_TOOLS}
    named = {word for word in re.findall(r"\b[a-z]+_[a-z_]+\b", text) if word.partition("_")[0] in families}
    assert named
    assert named - {tool.name for tool in ALL_TOOLS} == {"decision_id"}


WRONG = [
    ("nothing", {}, "unknown prompt 'nothing'; there are orchestrate, evolve, review_run"),
    ("orchestrate", {}, "prompt orchestrate needs goal; its arguments are goal, pattern?"),
    ("orchestrate", {"goal": "   "}, "needs goal"),
    ("orchestrate", {"goal": "x", "style": "terse"}, "has no argument 'style'"),
    ("orchestrate", {"goal": "x" * (MAX_ARGUMENT_CHARS + 1)}, "at most 10,000"),
    ("evolve", {"pattern": "../../etc/passwd"}, "unknown resource"),
    ("evolve", {"pattern": "nowhere"}, "nowhere"),
    ("evolve", {"pattern": "consensus", "variant": "nowhere"}, "nowhere"),
    ("evolve", {"pattern": "a\0b"}, "which is no name"),
    ("review_run", {}, "needs run"),
    ("review_run", {"run": "o_nothing"}, "o_nothing"),
    ("review_run", {"run": "x" * 9_000}, "unknown resource"),
]


async def test_a_prompt_that_cannot_be_made_is_the_callers_error_and_says_why(serve):
    async with serve() as (_, client):
        for name, arguments, message in WRONG:
            with pytest.raises(MCPError) as failure:
                await client.get_prompt(name, arguments)
            assert failure.value.code == -32602
            assert message in failure.value.message
            assert len(failure.value.message) < 1_000
