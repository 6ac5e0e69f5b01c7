from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ksi_mcp.agents.model import Agent
from ksi_mcp.permissions import agent_actor, fresh_context
from ksi_mcp.provider_config import McpServerConfig
from ksi_mcp.providers.mcp.tools import McpTools
from ksi_mcp.tools.agent_tools import AgentTools, Outside, bounded

SERVERS = Path(__file__).parents[1] / "providers"


@asynccontextmanager
async def at_hand(house: Any, how: str = "plain") -> AsyncIterator[tuple[AgentTools, Agent]]:
    config = McpServerConfig(command=sys.executable, args=("-S", str(SERVERS / "hostile_server.py"), how))
    services = house.app.services
    servers = McpTools({"s": config}, clock=services.clock, lookup=lambda _: None, home=house.home.root)
    name = await house.spawn("a", ("base",))
    agent = await services.journal.read(lambda tx: services.roster.get(tx, name))
    try:
        outside = Outside(servers, services.journal, services.queues)
        given = replace(agent, settings=replace(agent.settings, mcp_servers={"s": None}))
        yield AgentTools(house.app.toolbox, outside), given
    finally:
        await servers.aclose()


async def test_an_agent_without_servers_has_our_tools_at_once(open_house) -> None:
    async with open_house() as house, at_hand(house) as (tools, agent):
        plain = replace(agent, settings=replace(agent.settings, mcp_servers=None))
        assert tools.specs(plain) is house.app.toolbox.specs(agent.capabilities)
        assert AgentTools(house.app.toolbox).specs(agent) is house.app.toolbox.specs(agent.capabilities)


async def test_one_with_servers_has_both_once_they_were_asked_and_always_the_same(open_house) -> None:
    async with open_house() as house, at_hand(house) as (tools, agent):
        assert tools.specs(agent) is None
        await tools.ready(agent)
        found = tools.specs(agent)
        assert found is not None
        assert [spec.name for spec in found][-1] == "s__go"
        assert found[:-1] == house.app.toolbox.specs(agent.capabilities)
        assert tools.specs(replace(agent, name="another")) is found
        fewer = tools.specs(replace(agent, capabilities=frozenset()))
        assert [spec.name for spec in fewer or ()] == ["s__go"]


async def test_no_server_can_put_itself_in_the_place_of_a_tool_of_ours(open_house) -> None:
    async with open_house() as house, at_hand(house, "names") as (tools, agent):
        await tools.ready(agent)
        own = {tool.name for tool in house.app.toolbox.tools}
        theirs = [spec.name for spec in tools.specs(agent) or () if spec.name not in own]
        assert all(name.startswith("s__") for name in theirs)
        assert not any("__" in name for name in own)
        ctx = fresh_context(agent_actor(agent.agent_id))
        outcome = await tools.run(ctx, agent, "agent_spawn", {"name": "b", "prompt": "p"})
        assert outcome.is_error
        assert "spawn_agents" in outcome.text


async def test_a_turn_that_waits_for_another_server_gives_its_place_away(open_house) -> None:
    async with open_house() as house, at_hand(house) as (tools, _):
        assert tools.waits("s__go")
        assert tools.waits("agent_wait")
        assert not tools.waits("event_query")
        assert not AgentTools(house.app.toolbox).waits("s__go")


async def test_an_unknown_tool_is_an_error_with_the_nearest_and_leaves_no_trace(open_house) -> None:
    async with open_house() as house, at_hand(house) as (tools, agent):
        ctx = fresh_context(agent_actor(agent.agent_id))
        outcome = await tools.run(ctx, agent, "s__goo", {})
        assert (outcome.text, outcome.is_error) == ("unknown tool 's__goo'; did you mean s__go?", True)
        without = replace(agent, settings=replace(agent.settings, mcp_servers=None))
        outcome = await tools.run(ctx, without, "s__go", {})
        assert outcome.is_error
        assert "unknown tool 's__go'" in outcome.text
        narrow = replace(agent, settings=replace(agent.settings, mcp_servers={"s": ["else"]}))
        assert "unknown tool 's__go'" in (await tools.run(ctx, narrow, "s__go", {})).text
        assert house.events("agent:tool_called") == []


async def test_each_call_is_in_the_journal_before_it_leaves_and_when_it_is_back(open_house) -> None:
    async with open_house() as house, at_hand(house) as (tools, agent):
        outcome = await tools.run(fresh_context(agent_actor(agent.agent_id)), agent, "s__go", {})
        assert (outcome.text, outcome.is_error, outcome.stored_text) == ("done", False, None)
        facts = {"server": "s", "tool": "go", "agent": agent.agent_id, "agent_name": "a"}
        assert house.events("agent:tool_called") == [facts]
        ((came),) = house.events("agent:tool_answered")
        assert came == {**facts, "is_error": False, "took_ms": came["took_ms"]}
        audited = house.rows("SELECT agent_id, source FROM event WHERE name LIKE 'agent:tool_%'")
        assert audited == [(agent.agent_id, f"agent:{agent.agent_id}")] * 2


async def test_what_comes_back_is_text_that_every_model_and_the_store_take(open_house) -> None:
    async with open_house() as house, at_hand(house, "halves") as (tools, agent):
        outcome = await tools.run(fresh_context(agent_actor(agent.agent_id)), agent, "s__go", {})
        assert outcome.text == "a b"


def test_a_long_result_is_cut_and_says_so() -> None:
    assert bounded("x" * 40_000) == "x" * 40_000
    assert bounded("x" * 50_000) == "x" * 40_000 + " ... [cut at 40,000 of 50,000 characters]"
