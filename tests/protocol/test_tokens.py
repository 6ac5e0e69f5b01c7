"""Who may do what over HTTP: the operator, whoever may only look, and whoever acts as one agent."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from ksi_mcp.access.tokens import MAX_DAYS, AccessTokens
from ksi_mcp.app import App, AppOptions
from ksi_mcp.errors import Invalid, NotFound, Refused
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, READER, agent_actor, fresh_context
from ksi_mcp.transports import guests
from ksi_mcp.transports.http import serve_http

OWN = "a-token-for-the-operator"
ME = fresh_context(OPERATOR)
PROJECT = Path(__file__).parents[2]
MODERN = "2026-07-28"
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
}


def modern(method: str, params: dict) -> dict:
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "x", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
    }
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": {**params, "_meta": meta}}


@asynccontextmanager
async def listening(home) -> AsyncIterator[tuple[App, str]]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with App(home, AppOptions(worker="none")) as app:
        serving = asyncio.create_task(serve_http(app, host="127.0.0.1", port=0, token=OWN, on_ready=ready.set_result))
        try:
            yield app, await asyncio.wait_for(ready, 10)
        finally:
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving


@asynccontextmanager
async def over_http(url: str, token: str, era: str = "auto") -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=era) as client,
    ):
        yield client


def text_of(result) -> str:
    assert result.is_error
    return result.content[0].text


async def spawn(app: App, name: str, **more: object) -> str:
    made = await app.toolbox.call(ME, "agent_spawn", {"prompt": "x", "name": name, **more})
    return str(made.data["agent"])


async def test_a_read_only_token_sees_everything_and_changes_nothing(home, era):
    async with listening(home) as (app, url):
        await spawn(app, "one")
        token, made = await app.services.access.make(ME, agent=None, label="a wall display")
        assert made.kind == "reader"
        async with over_http(url, token, era) as reader:
            listed = (await reader.call_tool("agent_list", {})).structured_content
            assert [agent["name"] for agent in listed["agents"]] == ["one"]
            assert "one" in (await reader.read_resource("ksi://agents")).contents[0].text
            for name, arguments in (
                ("agent_spawn", {"prompt": "x"}),
                ("agent_send", {"agent": "one", "message": "hi"}),
                ("event_emit", {"event": "a:b"}),
                ("event_emit", {"event": "agent:list"}),
                ("agent_terminate", {"agent": "one"}),
                ("completion_answer", {"turn": "t_1", "text": "x"}),
            ):
                said = text_of(await reader.call_tool(name, arguments))
                assert f"{name} changes something, and a read-only token may only look" in said
            offered = {tool.name for tool in (await reader.list_tools()).tools}
            assert "agent_wait" in offered
            assert not {"agent_spawn", "event_emit", "routing_add_rule"} & offered
            shown = (await reader.call_tool("help", {})).structured_content["tools"]
            assert {"agent_list", "routing_explain"} <= {tool["tool"] for tool in shown}
            assert not {"agent_spawn", "event_emit", "budget_set"} & {tool["tool"] for tool in shown}
        page = await app.services.journal.query(_named("system:refused"), limit=10)
        assert {event.data["actor"] for event in page.events} == {"reader"}
        assert len(page.events) == 6


async def test_a_token_of_an_agent_acts_as_that_agent_and_ends_with_it(home, era):
    async with listening(home) as (app, url):
        agent = await spawn(app, "worker", capabilities=["base", "messaging", "spawn_agents"])
        await spawn(app, "stranger")
        token, made = await app.services.access.make(ME, agent="worker")
        assert (made.kind, made.agent_id) == ("agent", agent)
        async with over_http(url, token, era) as client:
            listed = (await client.call_tool("agent_list", {})).structured_content
            assert [each["name"] for each in listed["agents"]] == ["worker"]
            assert "stranger" not in (await client.read_resource("ksi://agents")).contents[0].text
            assert "unknown agent 'stranger'" in text_of(
                await client.call_tool("agent_send", {"agent": "stranger", "message": "x"})
            )
            child = (await client.call_tool("agent_spawn", {"prompt": "y", "name": "child"})).structured_content
            assert child["parent"] == agent
            rule = {"source_pattern": "a:b", "target": "child"}
            assert "routing_control" in text_of(await client.call_tool("routing_add_rule", rule))
            importing = {"event": "decision:import", "data": {"pattern": "x"}}
            assert "operator" in text_of(await client.call_tool("event_emit", importing))
            await app.toolbox.call(ME, "agent_terminate", {"agent": agent})
            assert "not active any more" in text_of(await client.call_tool("agent_list", {}))
        made_by = await app.services.journal.query(_named("agent:spawned"), limit=1)
        assert made_by.events[0].source == f"agent:{agent}"


async def test_a_revoked_token_a_wrong_one_and_one_that_has_run_out_let_nobody_in(home):
    async with listening(home) as (app, url), httpx2.AsyncClient() as http:
        access = app.services.access
        good, made = await access.make(ME, agent=None)
        short, _ = await access.make(ME, agent=None, days=1 / 86_400_000)

        async def status(token: str, path: str = "/mcp") -> int:
            headers = {"Authorization": f"Bearer {token}".encode(), "Accept": b"application/json, text/event-stream"}
            listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            return (await http.post(f"{url}{path}", json=listing, headers=headers)).status_code

        assert await status(good) != 401
        await access.revoke(ME, made.token_id)
        for token in (good, short, "ksi_", "ksi_" + "x" * 43, good + "x", good.upper(), "ksi_\u00fc", "x" * 8_000):
            assert await status(token) == 401
            assert await status(token, "/messages/?session_id=1") == 401


@pytest.mark.parametrize("mine", ["reader", "agent"])
async def test_nobody_takes_over_a_session_that_somebody_else_has_begun(home, mine):
    async with listening(home) as (app, url), httpx2.AsyncClient() as http:
        await spawn(app, "one")
        token, _ = await app.services.access.make(ME, agent="one" if mine == "agent" else None)
        both = {"Accept": "application/json, text/event-stream"}
        begun = await http.post(f"{url}/mcp", json=HELLO, headers={**both, "Authorization": f"Bearer {OWN}"})
        session = {"Mcp-Session-Id": begun.headers["mcp-session-id"]}
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        theirs = {**both, **session, "Authorization": f"Bearer {token}"}
        assert (await http.post(f"{url}/mcp", json=listing, headers=theirs)).status_code == 404
        assert (await http.get(f"{url}/mcp", headers=theirs)).status_code == 404
        assert (await http.delete(f"{url}/mcp", headers=theirs)).status_code == 404
        ours = {**theirs, "Authorization": f"Bearer {OWN}"}
        assert (await http.post(f"{url}/mcp", json=listing, headers=ours)).status_code == 200


async def test_two_tokens_that_stand_for_the_same_share_no_session(home):
    async with listening(home) as (app, url), httpx2.AsyncClient() as http:
        one, other = [(await app.services.access.make(ME, agent=None))[0] for _ in range(2)]
        both = {"Accept": "application/json, text/event-stream"}
        begun = await http.post(f"{url}/mcp", json=HELLO, headers={**both, "Authorization": f"Bearer {one}"})
        session = {**both, "Mcp-Session-Id": begun.headers["mcp-session-id"]}
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        for token, status in ((other, 404), (OWN, 404), (one, 200)):
            headers = {**session, "Authorization": f"Bearer {token}"}
            assert (await http.post(f"{url}/mcp", json=listing, headers=headers)).status_code == status


@pytest.mark.parametrize("how", ["sse", "session", "listen", "call"])
async def test_what_is_open_ends_soon_after_its_token_was_revoked(home, how, monkeypatch):
    monkeypatch.setattr(guests, "RECHECK_S", 0.02)
    async with listening(home) as (app, url), httpx2.AsyncClient(timeout=20) as http:
        access = app.services.access
        mine, made = await access.make(ME, agent=None)
        theirs, kept = await access.make(ME, agent=None)
        both = {"Accept": "application/json, text/event-stream"}

        async def opened(token: str, began: asyncio.Event) -> None:
            headers = {**both, "Authorization": f"Bearer {token}"}
            method, path, body = "GET", "/sse", None
            if how == "session":
                begun = await http.post(f"{url}/mcp", json=HELLO, headers=headers)
                path, headers["Mcp-Session-Id"] = "/mcp", begun.headers["mcp-session-id"]
            elif how != "sse":
                wanted = ("subscriptions/listen", {"notifications": {"resourcesListChanged": True}})
                if how == "call":
                    wanted = ("tools/call", {"name": "event_wait", "arguments": {"names": ["a:b"], "timeout_s": 50}})
                method, path, body = "POST", "/mcp", modern(*wanted)
                headers |= {"MCP-Protocol-Version": MODERN, "Mcp-Method": wanted[0]}
                headers |= {"Mcp-Name": "event_wait"} if how == "call" else {}
            async with http.stream(method, f"{url}{path}", json=body, headers=headers) as answer:
                assert answer.status_code == (401 if how == "call" else 200)
                began.set()
                async for _ in answer.aiter_bytes():
                    pass

        begun, other = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            ends = group.create_task(opened(mine, begun))
            stays = group.create_task(opened(theirs, other))
            if how != "call":
                await begun.wait()
                await other.wait()
            await access.revoke(ME, made.token_id)
            await asyncio.wait_for(ends, 10)
            assert not stays.done()
            await access.revoke(ME, kept.token_id)
            await asyncio.wait_for(stays, 10)


async def test_one_token_cannot_take_all_the_room(home, monkeypatch):
    monkeypatch.setattr(guests, "MAX_OPEN", 1)
    monkeypatch.setattr(guests, "RECHECK_S", 0.02)
    async with listening(home) as (app, url), httpx2.AsyncClient(timeout=20) as http:
        token, made = await app.services.access.make(ME, agent=None)
        headers = {"Authorization": f"Bearer {token}"}
        async with http.stream("GET", f"{url}/sse", headers=headers) as one:
            assert one.status_code == 200
            assert (await http.post(f"{url}/mcp", json=HELLO, headers=headers)).status_code == 429
            async with over_http(url, OWN) as operator:
                assert not (await operator.call_tool("agent_list", {})).is_error
            await app.services.access.revoke(ME, made.token_id)
            async for _ in one.aiter_bytes():
                pass


async def test_an_answer_is_taken_from_whoever_was_asked_only(home):
    async with listening(home) as (app, url), httpx2.AsyncClient(timeout=20) as http:
        agent = await spawn(app, "one", capabilities=["base", "messaging", "spawn_agents"])
        token, _ = await app.services.access.make(ME, agent="one")
        call = {"name": "event_emit", "arguments": {"event": "agent:terminate", "data": {"agent": agent}}}

        async def said(token: str, **more: object) -> dict:
            headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "event_emit"}
            headers |= {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
            answer = await http.post(f"{url}/mcp", json=modern("tools/call", {**call, **more}), headers=headers)
            lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
            return json.loads(lines[-1].removeprefix("data: ") if lines else answer.text)

        asked = (await said(OWN))["result"]["requestState"]
        yes = {"inputResponses": {"confirm": {"action": "accept", "content": {"ok": True}}}, "requestState": asked}
        assert (await said(token, **yes))["error"]["message"] == "Invalid or expired requestState"
        assert not (await said(OWN, **yes))["result"].get("isError")


async def test_over_sse_too_a_token_decides(home):
    async with listening(home) as (app, url):
        token, _ = await app.services.access.make(ME, agent=None)
        headers = {"Authorization": f"Bearer {token}"}
        async with Client(sse_client(f"{url}/sse", headers=headers), mode="legacy") as reader:
            assert not (await reader.call_tool("agent_list", {})).is_error
            assert "may only look" in text_of(await reader.call_tool("agent_spawn", {"prompt": "x"}))


async def test_only_the_operator_makes_tokens_and_what_makes_no_sense_is_refused(home):
    async with App(home, AppOptions(worker="none")) as app:
        access = app.services.access
        agent = await spawn(app, "one")
        for nobody in (READER, agent_actor(agent)):
            with pytest.raises(Refused, match="only the operator"):
                await access.make(fresh_context(nobody), agent=None)
            with pytest.raises(Refused, match="only the operator"):
                await access.revoke(fresh_context(nobody), "k_1")
        with pytest.raises(NotFound, match="unknown agent 'two'"):
            await access.make(ME, agent="two")
        for days in (0, -1, MAX_DAYS + 1, float("nan"), float("inf")):
            with pytest.raises(Invalid, match="days is"):
                await access.make(ME, agent=None, days=days)
        for label in ("x" * 101, "a\nb", "\x1b[31m"):
            with pytest.raises(Invalid, match="is no label"):
                await access.make(ME, agent=None, label=label)
        with pytest.raises(NotFound, match="unknown token"):
            await access.revoke(ME, "k_1")
        await app.toolbox.call(ME, "agent_terminate", {"agent": "one"})
        with pytest.raises(Refused, match="has ended"):
            await access.make(ME, agent=agent)
        assert await access.list(ended=True) == []


async def test_the_text_of_a_token_is_nowhere_in_the_data_folder(home):
    async with App(home, AppOptions(worker="none")) as app:
        token, made = await AccessTokens(app.services.journal).make(ME, agent=None, label="x")
        page = await app.services.journal.query(_named("system:token_made"), limit=1)
        assert page.events[0].data["token"] == made.token_id
    for path in home.root.rglob("*"):
        assert path.is_dir() or token.encode() not in path.read_bytes()


def command(home, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
    full = [sys.executable, "-m", "ksi_mcp", "tokens", *words, "--home", str(home.root)]
    return subprocess.run(full, capture_output=True, text=True, timeout=50, env=environ, check=False)


def test_the_command_line_makes_lists_and_revokes_them(home):
    made = command(home, "create", "--read-only", "--label", "wall")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert token.startswith("ksi_")
    assert "may only look" in made.stderr
    (listed,) = json.loads(command(home, "list", "--json").stdout)["tokens"]
    assert (listed["kind"], listed["label"]) == ("reader", "wall")
    assert token not in command(home, "list").stdout
    assert "lets nobody in any more" in command(home, "revoke", listed["id"]).stdout
    assert json.loads(command(home, "list", "--json").stdout)["tokens"] == []
    assert "revoked" in command(home, "list", "--all").stdout
    for words in (
        ("create",),
        ("create", "--read-only", "--agent", "x"),
        ("revoke",),
        ("list", "k_1"),
        ("revoke", "k_1"),
    ):
        wrong = command(home, *words)
        assert wrong.returncode == 2
        assert wrong.stderr.startswith("error: ")
        assert wrong.stdout == ""
    with sqlite3.connect(home.database) as db:
        assert db.execute("SELECT COUNT(*) FROM access_token").fetchone() == (1,)


def _named(name: str):
    return EventFilter(names=(name,))
