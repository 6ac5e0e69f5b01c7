"""What is no message: the protocol's own error, the server goes on for a good client, and the store is as it was."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.transports import http as http_module

PARSE_ERROR, INVALID, NO_METHOD, BAD_PARAMS = -32700, -32600, -32601, -32602
HEADER_MISMATCH, UNSUPPORTED_VERSION = -32020, -32022
LEGACY, MODERN = "2025-11-25", "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
}
HANG_S = 15
DEEP = 100_000
MB = 1024 * 1024


def digest(home) -> str:
    """Of everything that the store holds, however it is laid out in its files."""
    with sqlite3.connect(home.database) as connection:
        held = "\n".join(connection.iterdump())
    connection.close()
    return hashlib.sha256(held.encode()).hexdigest()


def text_of(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode()


def request(era: str, id: Any, method: str, **params: Any) -> bytes:
    more = {"_meta": ENVELOPE} if era == "auto" else {}
    return text_of(id=id, method=method, params={**params, **more})


def tool(era: str, id: Any, name: Any, arguments: Any) -> bytes:
    return request(era, id, "tools/call", name=name, arguments=arguments)


# -------------------------------------------------------------------------------------------- stdio

NEVER_ANSWERED = {
    "a notification with params that are a list": text_of(method="notifications/cancelled", params=[1]),
    "a notification with bad params": text_of(method="notifications/cancelled", params={"requestId": {}}),
    "a cancellation of an unknown request": text_of(method="notifications/cancelled", params={"requestId": "x"}),
    "an unknown notification": text_of(method="notifications/nonsense", params={}),
    "an answer to nothing": text_of(id=77, result={}),
    "an error to nothing": text_of(id=77, error={"code": 1, "message": "x"}),
    "an answer that is none": b'{"jsonrpc": 3, "id": {}, "result": 7}',
}


def answered(era: str) -> dict[str, tuple[bytes, Any, int]]:
    """By name: what is sent, and the id and code of the error that comes back."""
    deep = b'{"a":' * DEEP + b"1" + b"}" * DEEP
    return {
        "a message that breaks off": (b'{"jsonrpc":"2.0","id":1,"meth', None, PARSE_ERROR),
        "no JSON at all": (b"Content-Length: 20", None, PARSE_ERROR),
        "NULs": (b"\0" * 100, None, PARSE_ERROR),
        "bytes that are no text": (b"\xff\xfe\xfd", None, PARSE_ERROR),
        "100,000 brackets": (b"[" * DEEP, None, PARSE_ERROR),
        "100,000 objects in one another": (b'{"jsonrpc":"2.0","id":2,"params":' + deep + b"}", None, PARSE_ERROR),
        "half a surrogate": (b'{"jsonrpc":"2.0","id":3,"method":"tools/\\ud800"}', 3, PARSE_ERROR),
        "10 MB of nonsense": (b"x" * (10 * MB), None, PARSE_ERROR),
        "a batch": (b"[" + request(era, 4, "tools/list") + b"]", None, INVALID),
        "a number": (b"42", None, INVALID),
        "null": (b"null", None, INVALID),
        "everything of a wrong type": (b'{"jsonrpc":2,"id":{},"method":7}', None, INVALID),
        "an id that is null": (text_of(id=None, method="tools/list", params={}), None, INVALID),
        "an id that is a fraction": (text_of(id=1.5, method="tools/list", params={}), None, INVALID),
        "an id beyond all numbers": (b'{"jsonrpc":"2.0","id":1e999,"method":"tools/list"}', None, INVALID),
        "no method": (text_of(id=5), 5, INVALID),
        "another JSON-RPC": (b'{"jsonrpc":"1.0","id":6,"method":"tools/list"}', 6, INVALID),
        "params that are a list": (text_of(id=7, method="tools/list", params=[1]), 7, BAD_PARAMS),
        "params that are a text": (text_of(id=8, method="tools/list", params="x"), 8, BAD_PARAMS),
        "params that are an empty list": (text_of(id=20, method="tools/list", params=[]), 20, BAD_PARAMS),
        "params that are nought": (text_of(id=21, method="tools/list", params=0), 21, BAD_PARAMS),
        "params that are no word": (text_of(id=22, method="tools/list", params=""), 22, BAD_PARAMS),
        "an unknown method": (request(era, 9, "no/such"), 9, NO_METHOD),
        "a tool whose name is a number": (tool(era, 10, 7, {}), 10, BAD_PARAMS),
        "arguments that are a list": (tool(era, 11, "agent_list", [1]), 11, BAD_PARAMS),
        "a resource of the machine": (request(era, 12, "resources/read", uri="file:///etc/passwd"), 12, BAD_PARAMS),
        "a version that nobody speaks": (
            text_of(id=13, method="tools/list", params={"_meta": ENVELOPE}).replace(MODERN.encode(), b"2099-01-01"),
            13,
            UNSUPPORTED_VERSION if era == "auto" else INVALID,
        ),
        "a second handshake": (
            text_of(id=14, method="initialize", params={"protocolVersion": "1999-01-01"}),
            14,
            UNSUPPORTED_VERSION if era == "auto" else BAD_PARAMS,
        ),
    }  # fmt: skip


async def test_malformed_lines_are_answered_and_change_nothing(home, start, era):
    async with start("--worker", "none") as process:

        async def hear() -> dict:
            return json.loads(await asyncio.wait_for(process.stdout.readline(), HANG_S))

        async def say(line: bytes) -> None:
            process.stdin.write(line + b"\n")
            await process.stdin.drain()

        if era == "legacy":
            client = {"name": "test", "version": "1"}
            hello = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": client}
            await say(text_of(id="hello", method="initialize", params=hello))
            assert (await hear())["result"]["protocolVersion"] == LEGACY
            await say(text_of(method="notifications/initialized"))
        await say(tool(era, "first", "agent_list", {}))
        assert (await hear())["id"] == "first"
        before = digest(home)
        for name, (line, id, code) in answered(era).items():
            await say(line)
            error = await hear()
            assert (error["id"], error["error"]["code"]) == (id, code), f"{name}: {error}"
            assert "Traceback" not in error["error"]["message"]
            assert len(json.dumps(error)) < 1_000, name
        for line in NEVER_ANSWERED.values():
            await say(line)
        # A line of 10 MB that is a message is refused by what it asks for, not by its length.
        await say(tool(era, "big", "event_emit", {"event": "note:made", "data": {"x": "y" * (10 * MB)}}))
        assert "the limit is" in (await hear())["result"]["content"][0]["text"]
        # Two requests with one id: both are answered, in whatever order.
        await say(tool(era, "twice", "agent_list", {}) + b"\n" + tool(era, "twice", "agent_list", {}))
        twice = [await hear(), await hear()]
        assert [answer["id"] for answer in twice] == ["twice", "twice"]
        await say(tool(era, "last", "agent_list", {}))
        last = await hear()
        assert (last["id"], last["result"]["structuredContent"]) == ("last", {"agents": []})
        assert digest(home) == before
        process.stdin.close()
        rest, errors = await asyncio.wait_for(process.communicate(), HANG_S)
    assert (process.returncode, rest) == (0, b"")
    assert b"Traceback" not in errors


# --------------------------------------------------------------------------------------------- HTTP


class Sender:
    """Raw requests to one server, a connection each."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.token = token

    def request(
        self, body: bytes = b"", *, method: str = "POST", path: str = "/mcp", more: bytes = b"", **headers: str | None
    ) -> bytes:
        """A modern request, as a good client sends it, but for the headers given: other values, or None for none."""
        given: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {self.token}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Connection": "close",
            "Content-Length": str(len(body)),
            "MCP-Protocol-Version": MODERN,
            "Mcp-Method": "tools/list",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"{name}: {value}\r\n".encode() for name, value in given.items() if value is not None]
        return f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(lines) + more + b"\r\n" + body

    async def send(self, data: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            # Whoever is refused early may find the connection closed in the middle of what it sends.
            got = b""
            async with asyncio.timeout(HANG_S):
                try:
                    await writer.drain()
                    while chunk := await reader.read(65_536):
                        got += chunk
                except ConnectionError:
                    pass
        finally:
            writer.close()
        head, _, body = got.partition(b"\r\n\r\n")
        return (int(head.split(b" ")[1]) if head else 0), body


LIST = request("auto", 1, "tools/list")
CALL = tool("auto", 1, "agent_list", {})
OLD = {"MCP-Protocol-Version": LEGACY, "Mcp-Method": None}
SESSION = "0" * 32


def refused(sender: Sender) -> dict[str, tuple[bytes, int, int | None]]:
    """By name: what is sent, and the status and the error code (None: HTTP's own word is enough) that come back."""
    ask = sender.request
    deep = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}"
    chunked: dict[str, str | None] = {"Content-Length": None, "Transfer-Encoding": "chunked"}
    return {
        "a message that breaks off": (ask(LIST[:30]), 400, PARSE_ERROR),
        "nothing": (ask(b""), 400, PARSE_ERROR),
        "NULs": (ask(b"\0" * 100), 400, PARSE_ERROR),
        "bytes that are no text": (ask(b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}'), 400, PARSE_ERROR),
        "100,000 brackets": (ask(b"[" * DEEP), 400, PARSE_ERROR),
        "100,000 objects in one another": (ask(deep), 400, PARSE_ERROR),
        "a batch": (ask(b"[" + LIST + b"," + LIST + b"]"), 400, INVALID),
        "a number": (ask(b"42"), 400, INVALID),
        "everything of a wrong type": (ask(b'{"jsonrpc":2,"id":{},"method":7}'), 400, INVALID),
        "an id that is null": (ask(LIST.replace(b'"id": 1', b'"id": null')), 400, INVALID),
        "params that are a list": (ask(text_of(id=1, method="tools/list", params=[1])), 400, INVALID),
        "no envelope": (ask(text_of(id=1, method="tools/list", params={})), 400, BAD_PARAMS),
        "an unknown method": (ask(request("auto", 1, "no/such"), Mcp_Method="no/such"), 404, NO_METHOD),
        "arguments that are a list": (
            ask(tool("auto", 1, "agent_list", [1]), Mcp_Method="tools/call", Mcp_Name="agent_list"), 400, BAD_PARAMS
        ),
        "a version that nobody speaks": (
            ask(LIST.replace(MODERN.encode(), b"2099-01-01"), MCP_Protocol_Version="2099-01-01"),
            400,
            UNSUPPORTED_VERSION,
        ),
        "another version in the header than in the body": (
            ask(LIST, MCP_Protocol_Version="2099-01-01"), 400, HEADER_MISMATCH
        ),
        "another method in the header": (ask(LIST, Mcp_Method="prompts/list"), 400, HEADER_MISMATCH),
        "another tool in the header": (
            ask(CALL, Mcp_Method="tools/call", Mcp_Name="agent_spawn"), 400, HEADER_MISMATCH
        ),
        "no session, in the old era": (ask(text_of(id=1, method="tools/list"), **OLD), 400, INVALID),
        "an unknown session": (ask(text_of(id=1, method="tools/list"), Mcp_Session_Id=SESSION, **OLD), 404, INVALID),
        "the end of an unknown session": (ask(method="DELETE", Mcp_Session_Id=SESSION, **OLD), 404, INVALID),
        "another kind of content": (ask(LIST, Content_Type="text/plain"), 400, None),
        "nothing that is accepted": (ask(LIST, Accept="text/html"), 406, None),
        "another way to ask": (ask(LIST, method="PUT"), 405, None),
        "a body over the limit, announced": (ask(LIST, Content_Length=str(100 * 1024 * MB)), 413, None),
        "a body over the limit, in chunks": (ask((b"100000\r\n" + b"y" * MB + b"\r\n") * 5, **chunked), 413, None),
        "chunks without a length": (ask(b"zz\r\nxx\r\n", **chunked), 400, None),
        "two lengths of two kinds": (ask(LIST, more=b"Transfer-Encoding: chunked\r\n"), 400, None),
        "two lengths of one kind": (ask(LIST, more=b"Content-Length: 5\r\n"), 400, None),
        "a length below zero": (ask(LIST, Content_Length="-5"), 400, None),
        "a header without an end": (ask(LIST, X_Long="y" * 200_000), 400, None),
        "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, None),
        "another host": (ask(LIST, Host="evil.example"), 421, None),
        "a page of another origin": (ask(LIST, Origin="http://evil.example"), 403, None),
        "no token": (ask(LIST, Authorization=None), 401, None),
        "a wrong token": (ask(LIST, Authorization="Bearer wrong"), 401, None),
        "two tokens": (ask(LIST, more=b"Authorization: Bearer wrong\r\n"), 401, None),
        "an SSE message to no session": (ask(LIST, path="/messages/"), 400, None),
        "an SSE message to a session that is none": (ask(LIST, path="/messages/?session_id=x"), 400, None),
        "an SSE message to an unknown session": (ask(LIST, path=f"/messages/?session_id={SESSION}"), 404, None),
    }  # fmt: skip


async def test_malformed_requests_are_refused_and_change_nothing(home, start):
    async with start("--transport", "all", "--port", "0", "--worker", "none") as process:
        line = (await asyncio.wait_for(process.stderr.readline(), HANG_S)).decode()
        url = next(word for word in line.split() if word.startswith("http://")).rpartition("/")[0]
        sender = Sender(int(url.rpartition(":")[2]), home.token.read_text().strip())
        assert (await sender.send(sender.request(LIST)))[0] == 200
        before = digest(home)
        for name, (data, status, code) in refused(sender).items():
            found, body = await sender.send(data)
            assert found == status, f"{name}: {found} {body[:300]!r}"
            if code is not None:
                assert f'"code":{code},'.encode() in body, f"{name}: {body[:300]!r}"
            assert sender.token.encode() not in body
        # What is refused with everything of it unread may meet a closed connection instead of the answer.
        big = sender.request(b'{"x": "' + b"y" * (4 * MB) + b'"}')
        assert (await sender.send(big))[0] in (413, 0)
        note = text_of(method="notifications/cancelled", params={"requestId": {}, "_meta": ENVELOPE})
        assert (await sender.send(sender.request(note, Mcp_Method="notifications/cancelled")))[0] == 202
        # Requests that never come whole, and clients that hang up in the middle, stand in nobody's way.
        port = sender.port
        half = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for number, (_, writer) in enumerate(half):
            writer.write(sender.request(LIST)[: -20 if number % 2 else 40])
            await writer.drain()
        status, body = await sender.send(sender.request(CALL, Mcp_Method="tools/call", Mcp_Name="agent_list"))
        assert (status, json.loads(body)["result"]["structuredContent"]) == (200, {"agents": []})
        for _, writer in half:
            writer.close()
        assert (await sender.send(sender.request(LIST)))[0] == 200
        assert digest(home) == before
        process.terminate()
        _, errors = await asyncio.wait_for(process.communicate(), HANG_S)
    assert process.returncode == 0
    assert b"Traceback" not in errors, errors.decode()


@pytest.mark.parametrize("path", ["/mcp", "/messages/?session_id=00000000000000000000000000000000"])
async def test_a_body_that_does_not_come_whole_in_time_is_refused(home, monkeypatch, caplog, path):
    monkeypatch.setattr(http_module, "BODY_S", 0.05)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with App(home, AppOptions(worker="none")) as app:
        serving = asyncio.create_task(
            http_module.serve_http(app, host="127.0.0.1", port=0, token="t", on_ready=ready.set_result)
        )
        sender = Sender(int((await asyncio.wait_for(ready, HANG_S)).rpartition(":")[2]), "t")
        assert (await sender.send(sender.request(LIST, path=path)[:-20]))[0] == 408
        assert (await sender.send(sender.request(LIST)))[0] == 200
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert "Traceback" not in caplog.text
