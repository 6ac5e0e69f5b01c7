"""Resources as clients of both eras read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ResourceTemplateReference

from ksi_mcp.app import App, AppOptions
from ksi_mcp.permissions import OPERATOR, Context, fresh_context
from ksi_mcp.transports.faces.addresses import FIXED, MADE, find
from ksi_mcp.transports.faces.paging import page_of
from ksi_mcp.transports.faces.resources import MAX_CHARS
from ksi_mcp.transports.http import serve_http

FIXED_URIS = ["ksi://agents", "ksi://orchestrations", "ksi://compositions", "ksi://routing/graph", "ksi://usage"]


def me() -> Context:
    return fresh_context(OPERATOR)


async def read(client, uri: str):
    [content] = (await client.read_resource(uri)).contents
    assert content.mime_type == "application/json"
    assert len(content.text) <= MAX_CHARS
    return json.loads(content.text)


async def every_page(listing, pages: int | None = None) -> list[list]:
    found, cursor = [], None
    while True:
        page = await listing(cursor=cursor)
        found.append(page)
        cursor = page.next_cursor
        if cursor is None:
            return found


@asynccontextmanager
async def as_somebody(home, era: str, *, agent: str | None) -> AsyncIterator[tuple[App, Client]]:
    """A client over HTTP with a token of that agent, made first if there is none, or with a read-only one."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with App(home, AppOptions(worker="none")) as app:
        if agent is not None:
            await app.toolbox.call(me(), "agent_spawn", {"prompt": "x", "name": agent})
        token, _ = await app.services.access.make(me(), agent=agent)
        serving = asyncio.create_task(
            serve_http(app, host="127.0.0.1", port=0, token="x" * 30, on_ready=ready.set_result)
        )
        try:
            url = await asyncio.wait_for(ready, 10)
            async with (
                httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http,
                Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=era) as client,
            ):
                yield app, client
        finally:
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving


async def test_the_fixed_resources_come_first_and_say_what_they_are(serve):
    async with serve() as (_, client):
        listed = (await client.list_resources()).resources
        made = (await client.list_resource_templates()).resource_templates
    assert [str(each.uri) for each in listed][: len(FIXED_URIS)] == FIXED_URIS
    assert [each.uri_template for each in made] == [
        "ksi://agents/{id}",
        "ksi://orchestrations/{id}",
        "ksi://compositions/{name}",
        "ksi://rules/{id}",
        "ksi://events/{root}",
    ]
    for each in (*listed[: len(FIXED_URIS)], *made):
        assert each.title
        assert each.description
        assert each.mime_type == "application/json"
        assert each.annotations.audience == ["user", "assistant"]


async def test_living_agents_and_open_runs_are_listed_page_by_page_each_once(serve):
    async with serve() as (app, client):
        names = [f"agent{n}" for n in range(150)]
        for name in names:
            await app.toolbox.call(me(), "agent_spawn", {"prompt": "x", "name": name})
        run = await app.toolbox.call(
            me(), "orchestration_start", {"pattern": "consensus", "vars": {"question": "tea?"}}
        )
        held = await app.toolbox.call(me(), "orchestration_start", {"pattern": "consensus", "vars": {"question": "x"}})
        await app.toolbox.call(me(), "orchestration_suspend", {"orchestration": held.data["orchestration"]})
        ended = await app.toolbox.call(me(), "orchestration_start", {"pattern": "consensus", "vars": {"question": "y"}})
        done = {"orchestration": ended.data["orchestration"], "outcome": "success"}
        await app.toolbox.call(me(), "orchestration_complete", done)
        pages = await every_page(client.list_resources)
        listed = [each for page in pages for each in page.resources]
        uris = [str(each.uri) for each in listed]
        assert len(pages) == 2
        assert all(len(page.resources) <= 100 for page in pages)
        assert len(uris) == len(set(uris))
        assert set(names) <= {each.title for each in listed}
        assert [uri for uri in uris if "orchestrations/" in uri] == [
            f"ksi://orchestrations/{run.data['orchestration']}",
            f"ksi://orchestrations/{held.data['orchestration']}",
        ]
        for uri in uris[-3:]:
            assert await read(client, uri)


async def test_a_strange_cursor_is_an_error_in_every_list(serve):
    strange = ["0", "x", "agents", "agents.x", "agents.-1", "elsewhere.1", "é", "1" * 50]
    async with serve() as (_, client):
        for listing in (
            client.list_tools,
            client.list_prompts,
            client.list_resource_templates,
            client.list_resources,
        ):
            for cursor in strange:
                with pytest.raises(MCPError) as failure:
                    await listing(cursor=cursor)
                assert failure.value.code == -32602
                assert "is not one of ours" in failure.value.message


def test_a_list_comes_in_pages_that_hold_each_item_once():
    items = list(range(250))
    found, cursor = [], None
    while True:
        page, cursor = page_of(items, cursor, size=100)
        found += page
        if cursor is None:
            break
    assert found == items
    for cursor in ("250", "0", "00", "-1", "１"):
        with pytest.raises(MCPError):
            page_of(items, cursor, size=100)


async def test_resources_show_what_the_tools_made(serve):
    async with serve() as (_, client):
        agent = (await client.call_tool("agent_spawn", {"prompt": "x", "name": "one"})).structured_content["agent"]
        run = await client.call_tool("orchestration_start", {"pattern": "consensus", "vars": {"question": "tea?"}})
        run_id = run.structured_content["orchestration"]
        rule = run.structured_content["rules"][0]
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
        assert (await read(client, f"ksi://rules/{rule}"))["rule_id"] == rule
        root = (await client.call_tool("event_query", {"limit": 1})).structured_content["events"][0]["root"]
        assert (await read(client, f"ksi://events/{root}"))["events"]
        usage = await read(client, "ksi://usage")
        assert usage["account"]["account"] == "global"
        assert {"runs", "models", "agents", "total"} <= set(usage)


async def test_the_routing_table_is_there_to_read_as_a_graph(serve):
    async with serve() as (_, client):
        assert await read(client, "ksi://routing/graph") == {"rules": 0, "nodes": [], "edges": []}
        await client.call_tool("routing_add_rule", {"source_pattern": "task:*", "target": "log:seen"})
        drawn = await read(client, "ksi://routing/graph")
    assert [node["label"] for node in drawn["nodes"]] == ["task:*", "log:seen"]
    assert [(edge["start"], edge["end"]) for edge in drawn["edges"]] == [("n0", "n1")]


UNKNOWN = [
    "ksi://agents/nobody",
    "ksi://agents/",
    "ksi://agents/a/b",
    "ksi://agents?limit=1",
    "ksi://orchestrations/o_nothing",
    "ksi://compositions/nowhere",
    "ksi://compositions/..%2Fsecret",
    "ksi://compositions/%00",
    "ksi://compositions/%ff%fe",
    "ksi://rules/r_nothing",
    "ksi://events/x_nothing",
    "ksi://usage/global",
    "ksi://routing",
    "ksi://elsewhere",
    "ksi://",
    "KSI://agents",
    "file:///etc/passwd",
    "ui://ksi/nothing",
]


async def test_an_unknown_resource_is_not_found(serve):
    async with serve() as (_, client):
        for uri in [*UNKNOWN, "ksi://agents/" + "x" * 500, "ksi://agents/" + "%41" * 100]:
            with pytest.raises(MCPError) as failure:
                await client.read_resource(uri)
            assert failure.value.code == -32602
            assert failure.value.data == {"uri": uri}


async def test_an_address_of_ten_thousand_characters_is_answered_with_less(serve):
    async with serve() as (_, client):
        with pytest.raises(MCPError) as failure:
            await client.read_resource("ksi://agents/" + "x" * 10_000)
    assert failure.value.code == -32602
    assert len(str(failure.value.data)) + len(failure.value.message) < 3_000


async def test_a_long_text_in_a_resource_is_cut_and_it_stays_json_and_says_how_to_get_the_rest(serve):
    async with serve() as (_, client):
        wordy = {"name": "wordy", "type": "component", "version": "1.0.0", "content": "many words " * 10_000}
        await client.call_tool("composition_create", {"document": wordy})
        [content] = (await client.read_resource("ksi://compositions/wordy")).contents
        found = await read(client, "ksi://compositions/wordy")
    assert len(content.text) <= MAX_CHARS
    assert "[cut: 16,000 of 110,000 characters]" in content.text
    assert "characters" in found["cut"]
    assert "composition_get" in found["rest"]


async def test_a_long_list_in_a_resource_is_its_first_page_and_says_how_to_get_the_rest(serve):
    async with serve() as (_, client):
        # Long enough that a hundred of them are more than a resource may hold.
        caps = ["base", "messaging", "spawn_agents", "routing_control", "decisions", "compositions", "orchestration"]
        for number in range(100):
            await client.call_tool(
                "agent_spawn", {"prompt": "x", "name": f"{number}_" + "n" * 40, "model": "m" * 90, "capabilities": caps}
            )
        [content] = (await client.read_resource("ksi://agents")).contents
        found = await read(client, "ksi://agents")
    assert MAX_CHARS / 3 < len(content.text) <= MAX_CHARS
    assert 0 < len(found["agents"]) < 100
    assert found["cursor"]
    assert "cut" not in found
    assert "agent_list" in found["rest"]


async def test_living_things_are_not_to_be_kept_and_fixed_lists_are(serve, era):
    if era == "legacy":
        pytest.skip("only the newer era says how long a result may be kept")
    async with serve() as (_, client):
        living = [await client.list_resources(), await client.read_resource("ksi://agents")]
        fixed = [await client.list_resource_templates(), await client.list_prompts(), await client.list_tools()]
    assert {(each.ttl_ms, each.cache_scope) for each in living} == {(0, "private")}
    assert {each.cache_scope for each in fixed} == {"private"}
    assert all(each.ttl_ms > 60_000 for each in fixed)


async def test_a_token_of_an_agent_finds_resources_in_its_sight_only(home, era):
    async with as_somebody(home, era, agent="inner") as (app, client):
        stranger = (await app.toolbox.call(me(), "agent_spawn", {"prompt": "x", "name": "stranger"})).data["agent"]
        run = await app.toolbox.call(
            me(), "orchestration_start", {"pattern": "consensus", "vars": {"question": "tea?"}}
        )
        listed = [str(each.uri) for each in (await client.list_resources()).resources]
        assert [each["name"] for each in (await read(client, "ksi://agents"))["agents"]] == ["inner"]
        own = (await read(client, "ksi://agents/inner"))["agent"]
        assert [uri for uri in listed if uri.startswith("ksi://agents/")] == [f"ksi://agents/{own}"]
        assert not [uri for uri in listed if uri.startswith("ksi://orchestrations/")]
        assert (await read(client, "ksi://orchestrations"))["orchestrations"] == []
        assert (await read(client, "ksi://routing/graph"))["rules"] == 0
        assert (await read(client, "ksi://usage"))["account"]["account"] == own
        assert (await read(client, "ksi://compositions/consensus"))["name"] == "consensus"
        root = (await app.toolbox.call(me(), "event_query", {"limit": 1})).data["events"][0]["root"]
        hidden = [
            f"ksi://agents/{stranger}",
            "ksi://agents/stranger",
            f"ksi://orchestrations/{run.data['orchestration']}",
            f"ksi://rules/{run.data['rules'][0]}",
            f"ksi://events/{root}",
        ]
        for uri in hidden:
            with pytest.raises(MCPError) as failure:
                await client.read_resource(uri)
            assert (failure.value.code, failure.value.data) == (-32602, {"uri": uri})
        agents = ResourceTemplateReference(type="ref/resource", uri="ksi://agents/{id}")
        assert (await client.complete(agents, {"name": "id", "value": ""})).completion.values == ["inner", own]
        with pytest.raises(MCPError) as failure:
            await client.get_prompt("review_run", {"run": run.data["orchestration"]})
        assert failure.value.code == -32602


async def test_a_read_only_token_reads_everything(home, era):
    async with as_somebody(home, era, agent=None) as (app, client):
        made = (await app.toolbox.call(me(), "agent_spawn", {"prompt": "x", "name": "one"})).data["agent"]
        for uri in [*FIXED_URIS, f"ksi://agents/{made}", "ksi://compositions/consensus"]:
            assert await read(client, uri)
        assert f"ksi://agents/{made}" in [str(each.uri) for each in (await client.list_resources()).resources]


def test_every_address_leads_back_to_its_own_declaration():
    for each in FIXED:
        assert find(each.uri) == (each, "")
    for each in MADE:
        assert find(each.uri.replace(f"{{{each.variable}}}", "x%40y")) == (each, "x@y")
