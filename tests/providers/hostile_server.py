"""Servers over stdio that mean no good: `python hostile_server.py HOW`. They speak the era of the handshake."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import Any

HOW = sys.argv[1]
PLAIN: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "string"}}}
changes: list[str] = []


def out(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


def tool(name: str, description: str = "d", schema: Any = PLAIN) -> dict[str, Any]:
    return {"name": name, "description": description, "inputSchema": schema}


def tools() -> list[dict[str, Any]]:
    if HOW == "many":
        return [tool(f"t{n:05}") for n in range(10_000)]
    if HOW == "names":
        names = ["agent_spawn", "with space", "new\nline", "x" * 100, "x" * 99 + "y", "y" * 1000, "__", "a", "a", "é"]
        return [tool(name) for name in names]
    if HOW == "descriptions":
        return [tool("long", "w" * 1_000_000), tool("control", "a\x00b\x1b[31m\U000e0041c")]
    if HOW == "schemas":
        return [
            tool("deep", schema=deep(40)),
            tool("wide", schema={"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5_000)}}),
            tool("keys", schema={"type": "object", "properties": {"a b": {}}}),
            tool("kinds", schema={"type": "object", "properties": {"a": {"type": "everything"}}}),
            tool("choice", schema={**PLAIN, "anyOf": [{"required": ["x"]}], "$schema": "http://example.com/none"}),
            tool("good"),
        ]
    if HOW == "bottomless":
        return [tool("deep", schema=deep(400))]
    if HOW == "malformed":
        return [tool("good"), {"name": "without a schema"}]
    if HOW == "changing":
        return [tool(f"now_{len(changes)}")]
    return [tool("go")]


def answer(request: dict[str, Any], result: Any = None, *, error: Any = None, last: bool = False) -> None:
    said: dict[str, Any] = {"error": error} if error else {"result": result}
    whole = {**said, "jsonrpc": "2.0", "id": request["id"]} if last else {"jsonrpc": "2.0", "id": request["id"], **said}
    out(json.dumps(whole))


def text(words: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}]}


def called(request: dict[str, Any]) -> None:
    if HOW == "big":
        answer(request, text("b" * 50_000_000))
    elif HOW == "big_last":
        answer(request, text("b" * 50_000_000), last=True)
    elif HOW == "endless":
        while True:
            sys.stdout.write("e" * 65_536)
    elif HOW == "nonsense":
        answer(request, {"content": "no list"})
    elif HOW == "chatty":
        for n in range(3_000):
            told = {"level": "info", "data": n}
            out(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": told}))
        answer(request, text("done"))
    elif HOW == "asking":
        for number, method in enumerate(("sampling/createMessage", "elicitation/create", "roots/list")):
            params = {"messages": [], "maxTokens": 1, "message": "?", "requestedSchema": PLAIN}
            out(json.dumps({"jsonrpc": "2.0", "id": f"s{number}", "method": method, "params": params}))
        said = [json.loads(sys.stdin.readline()) for _ in range(3)]
        answer(request, text(json.dumps(["error" in reply for reply in said])))
    elif HOW == "changing":
        changes.append("one")
        out(json.dumps({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}))
        answer(request, text("changed"))
    elif HOW == "refusing":
        answer(request, error={"code": -32602, "message": "no such thing"})
    elif HOW == "halves":
        answer(request, text("a\0b"))
    elif HOW != "silent":
        answer(request, text("done"))


def main() -> None:
    if HOW == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if HOW == "dead":
        sys.stderr.write("no licence")
        sys.exit(1)
    if HOW == "mute":
        time.sleep(3600)
    if HOW == "noisy":
        out("Starting the best server of the world ...")
    for line in sys.stdin:
        request = json.loads(line)
        match request.get("method"):
            case "initialize":
                info = {"name": "hostile", "version": "1"}
                answer(request, {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info})
            case "tools/list":
                answer(request, {"tools": tools(), "nextCursor": "again"} if HOW == "paging" else {"tools": tools()})
            case "tools/call":
                called(request)
            case method if "id" in request and method:
                if HOW == "old":  # the first message must be `initialize`
                    sys.exit(2)
                answer(request, error={"code": -32601, "message": "Method not found"})
    while HOW == "stubborn":
        time.sleep(1)


main()
