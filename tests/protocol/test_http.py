"""Streamable HTTP and SSE over real sockets, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitResult

from ksi_mcp.app import App, AppOptions
from ksi_mcp.errors import Invalid
from ksi_mcp.transports import connections
from ksi_mcp.transports.http import KINDS, MAX_BODY_BYTES, is_loopback, serve_http

TOKEN = "a-token-for-tests-only"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ACCEPT = {"Accept": "application/json, text/event-stream"}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
HANG_S = 15
"""It ends well within 2 s; the bound only has to be far below the 50 s that a call at work waits."""


@asynccontextmanager
async def listening(home, *, token: str | None = TOKEN, kinds=KINDS) -> AsyncIterator[str]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with App(home, AppOptions(worker="none")) as app:
        serving = asyncio.create_task(
            serve_http(app, host="127.0.0.1", port=0, kinds=kinds, token=token, on_ready=ready.set_result)
        )
        try:
            yield await asyncio.wait_for(ready, 10)
        finally:
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving


def over_http(url: str, http: httpx2.AsyncClient, era: str) -> Client:
    return Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=era)


async def test_both_kinds_serve_several_clients_of_one_process_at_once(home):
    async with (
        listening(home) as url,
        httpx2.AsyncClient(headers=BEARER) as http,
        over_http(url, http, "auto") as modern,
        over_http(url, http, "legacy") as legacy,
        Client(sse_client(f"{url}/sse", headers=BEARER), mode="legacy") as sse,
    ):
        clients = (modern, legacy, sse)
        for number, client in enumerate(clients):
            made = await client.call_tool("agent_spawn", {"prompt": "x", "name": f"agent{number}"})
            assert not made.is_error
        lists = await asyncio.gather(*(client.call_tool("agent_list", {}) for client in clients))
    names = [[agent["name"] for agent in found.structured_content["agents"]] for found in lists]
    assert names == [["agent0", "agent1", "agent2"]] * 3


async def test_a_wait_over_http_hears_what_another_client_does(home, era):
    heard = asyncio.Event()

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.set()

    async with (
        listening(home) as url,
        httpx2.AsyncClient(headers=BEARER) as http,
        over_http(url, http, era) as one,
        over_http(url, http, era) as two,
    ):
        waiting = asyncio.create_task(
            one.call_tool("event_wait", {"names": ["note:*"], "timeout_s": 50}, progress_callback=progress)
        )
        await asyncio.wait_for(heard.wait(), 10)
        await two.call_tool("event_emit", {"event": "note:made"})
        result = await asyncio.wait_for(waiting, 10)
    assert result.structured_content["complete"] is True


async def test_the_user_is_asked_over_http_too(home, era):
    async def agree(context, params):
        return ElicitResult(action="accept", content={"ok": True})

    async with (
        listening(home) as url,
        httpx2.AsyncClient(headers=BEARER) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=era, elicitation_callback=agree) as client,
    ):
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "victim"})
        done = await client.call_tool("event_emit", {"event": "agent:terminate", "data": {"agent": "victim"}})
    assert not done.is_error


async def test_nobody_gets_in_without_the_token(home):
    wrong = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"})
    doors = (("POST", "/mcp"), ("GET", "/mcp"), ("GET", "/sse"), ("POST", "/messages/?session_id=0"))
    async with listening(home) as url, httpx2.AsyncClient(base_url=url) as http:
        answers = [await http.request(method, path, headers=each) for method, path in doors for each in wrong]
    assert {answer.status_code for answer in answers} == {401}
    assert all(answer.headers["www-authenticate"].startswith("Bearer") for answer in answers)
    assert all(TOKEN not in answer.text for answer in answers)


async def test_health_and_unknown_paths_need_no_token_and_tell_nothing(home):
    async with listening(home) as url, httpx2.AsyncClient(base_url=url) as http:
        health, unknown = await http.get("/health"), await http.get("/.well-known/oauth-protected-resource")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert unknown.status_code == 404


async def test_health_is_bad_once_the_store_cannot_be_read(home, caplog):
    async with listening(home) as url, httpx2.AsyncClient(base_url=url) as http:
        for path in home.root.glob("ksi.db*"):
            path.write_bytes(b"no database " * 2_000)
        broken = await http.get("/health")
    assert (broken.status_code, broken.json()) == (503, {"status": "unavailable"})
    assert "the store does not answer" in caplog.text


@pytest.mark.parametrize(
    ("headers", "status"), [({"Host": "evil.example"}, 421), ({"Origin": "http://evil.example"}, 403)]
)
async def test_a_web_page_elsewhere_gets_nothing(home, headers, status, caplog):
    async with listening(home, token=None) as url, httpx2.AsyncClient(base_url=url) as http:
        posted = await http.post("/mcp", json=LIST, headers=ACCEPT | headers)
        streamed = await http.get("/sse", headers=headers)
    assert (posted.status_code, streamed.status_code) == (status, status)
    assert "Traceback" not in caplog.text


async def test_a_body_over_the_limit_is_refused(home):
    body = b'{"x": "' + b"y" * MAX_BODY_BYTES + b'"}'
    json_type = {"Content-Type": "application/json"}
    async with listening(home) as url, httpx2.AsyncClient(base_url=url, headers=BEARER | json_type) as http:
        for path in ("/mcp", "/messages/?session_id=00000000000000000000000000000000"):
            assert (await http.post(path, content=body)).status_code == 413


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET",
        b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
    ],
)
async def test_who_never_finishes_a_request_is_hung_up_on(home, said, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    async with listening(home) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(said)

        async def dribble() -> None:  # what keeps coming does not make it last longer
            for _ in range(1_000):
                writer.write(b"1\r\na\r\n" if b"chunked" in said else b"x" if said else b"")
                await asyncio.sleep(0.05)

        dribbling = asyncio.create_task(dribble())
        try:
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 10)
        finally:
            dribbling.cancel()
            writer.close()


async def test_there_is_a_most_of_connections(home, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    async with listening(home) as url:
        port = int(url.rpartition(":")[2])
        first = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        for _, each in (*first, (reader, writer)):
            each.close()


async def test_only_the_chosen_kind_is_served(home):
    async with listening(home, kinds=frozenset({"http"})) as url, httpx2.AsyncClient(headers=BEARER) as http:
        assert (await http.get(f"{url}/sse")).status_code == 404
        async with over_http(url, http, "auto") as client:
            assert (await client.list_tools()).tools
    async with listening(home, kinds=frozenset({"sse"})) as url, httpx2.AsyncClient(headers=BEARER) as http:
        assert (await http.post(f"{url}/mcp")).status_code == 404


async def test_another_host_than_loopback_needs_a_token(home):
    async with App(home, AppOptions(worker="none")) as app:
        with pytest.raises(Invalid, match="needs a token"):
            await serve_http(app, host="0.0.0.0", port=0, token=None)


async def test_a_taken_port_is_said_plainly(home):
    async with listening(home) as url, App(home, AppOptions(worker="none")) as app:
        with pytest.raises(Invalid, match="cannot listen on '127.0.0.1'.*in use"):
            await serve_http(app, host="127.0.0.1", port=int(url.rpartition(":")[2]), token=TOKEN)


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_is_recognized(host, own):
    assert is_loopback(host) is own


async def test_a_signal_ends_the_process_promptly_although_streams_and_calls_are_open(home, start):
    heard = asyncio.Event()

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.set()

    async with start("--transport", "all", "--port", "0", "--worker", "none") as process:
        line = (await asyncio.wait_for(process.stderr.readline(), HANG_S)).decode()
        url = next(word for word in line.split() if word.startswith("http://")).rpartition("/")[0]
        bearer = {"Authorization": f"Bearer {home.token.read_text().strip()}"}
        async with (
            httpx2.AsyncClient(base_url=url, headers=bearer) as http,
            http.stream("GET", "/sse") as stream,
            over_http(url, http, "legacy") as client,
        ):
            assert stream.status_code == 200
            waiting = asyncio.create_task(
                client.call_tool("event_wait", {"names": ["note:*"], "timeout_s": 50}, progress_callback=progress)
            )
            await asyncio.wait_for(heard.wait(), HANG_S)
            process.send_signal(signal.SIGTERM)
            _, errors = await asyncio.wait_for(process.communicate(), HANG_S)
            waiting.cancel()
            await asyncio.wait([waiting])
    assert process.returncode == 0
    assert b"Traceback" not in errors
    assert b"ERROR" not in errors, errors.decode()
