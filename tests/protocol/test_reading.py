from __future__ import annotations

import json

import pytest
from mcp import MCPError

from ksi_mcp.transports.guide import INSTRUCTIONS


async def read(client, uri: str):
    [content] = (await client.read_resource(uri)).contents
    assert content.mime_type == "application/json"
    return json.loads(content.text)


async def test_the_resources_are_listed(serve):
    async with serve() as (_, client):
        fixed = [str(each.uri) for each in (await client.list_resources()).resources]
        made = [each.uri_template for each in (await client.list_resource_templates()).resource_templates]
    assert fixed == ["ksi://agents", "ksi://orchestrations", "ksi://compositions", "ksi://routing/graph"]
    assert made == [
        "ksi://agents/{id}",
        "ksi://orchestrations/{id}",
        "ksi://compositions/{name}",
        "ksi://events/{root}",
    ]


async def test_resources_show_what_the_tools_made(serve):
    async with serve() as (_, client):
        agent = (await client.call_tool("agent_spawn", {"prompt": "x", "name": "one"})).structured_content["agent"]
        run = await client.call_tool("orchestration_start", {"pattern": "consensus", "vars": {"question": "tea?"}})
        run_id = run.structured_content["orchestration"]
        assert agent in [each["agent"] for each in (await read(client, "ksi://agents"))["agents"]]
        assert (await read(client, f"ksi://agents/{agent}"))["name"] == "one"
        assert (await read(client, "ksi://agents/one"))["agent"] == agent
        assert [each["orchestration"] for each in (await read(client, "ksi://orchestrations"))["orchestrations"]] == [
            run_id
        ]
        assert (await read(client, f"ksi://orchestrations/{run_id}"))["state"] == "running"
        names = [each["name"] for each in (await read(client, "ksi://compositions"))["compositions"]]
        assert "debate_with_judge" in names
        assert (await read(client, "ksi://compositions/debate_with_judge"))["type"] == "orchestration"
        root = (await client.call_tool("event_query", {"limit": 1})).structured_content["events"][0]["root"]
        assert (await read(client, f"ksi://events/{root}"))["events"]


async def test_the_routing_table_is_there_to_read_as_a_graph(serve):
    async with serve() as (_, client):
        assert await read(client, "ksi://routing/graph") == {"rules": 0, "nodes": [], "edges": []}
        await client.call_tool("routing_add_rule", {"source_pattern": "task:*", "target": "log:seen"})
        drawn = await read(client, "ksi://routing/graph")
    assert [node["label"] for node in drawn["nodes"]] == ["task:*", "log:seen"]
    assert [(edge["start"], edge["end"]) for edge in drawn["edges"]] == [("n0", "n1")]


@pytest.mark.parametrize(
    "uri",
    [
        "ksi://agents/nobody",
        "ksi://orchestrations/o_nothing",
        "ksi://compositions/nowhere",
        "ksi://compositions/..%2Fsecret",
        "ksi://events/x_nothing",
        "ksi://elsewhere",
        "file:///etc/passwd",
    ],
)
async def test_an_unknown_resource_is_not_found(serve, uri):
    async with serve() as (_, client):
        with pytest.raises(MCPError) as failure:
            await client.read_resource(uri)
    assert failure.value.code == -32602
    assert failure.value.data == {"uri": uri}


async def test_the_prompt_names_the_goal_and_the_pattern(serve):
    async with serve() as (_, client):
        [prompt] = (await client.list_prompts()).prompts
        assert [(each.name, each.required) for each in prompt.arguments] == [("goal", True), ("pattern", False)]
        free = await client.get_prompt("orchestrate", {"goal": "ship it"})
        fixed = await client.get_prompt("orchestrate", {"goal": "ship it", "pattern": "consensus"})
    assert "ship it" in free.messages[0].content.text
    assert "composition_discover" in free.messages[0].content.text
    assert "'consensus'" in fixed.messages[0].content.text


async def test_the_instructions_are_short_and_name_tools_that_exist(serve):
    assert len(INSTRUCTIONS.encode()) < 2_000
    async with serve(tools="full") as (_, client):
        assert client.instructions == INSTRUCTIONS
        names = {each.name for each in (await client.list_tools()).tools}
    words = {word.strip("`.,:;()[]{}\"'?=") for word in INSTRUCTIONS.replace("(", " ").split()}
    mentioned = {
        word for word in words if "_" in word and word.partition("_")[0] in {n.partition("_")[0] for n in names}
    }
    assert mentioned - {"a_", "t_", "o_", "r_"} <= names
