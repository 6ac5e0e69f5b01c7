"""`tools_list`: what the default tools cost a client before it has called any, in tools and in tokens."""

from __future__ import annotations

import json
import sys

from harness import Figure, Result, StdioServer, main, scratch, setting, take_turns, version_of

BYTES_PER_TOKEN = 4
"""The rule of thumb for English and JSON; a tokenizer of one vendor would not be comparable over time."""


def listed() -> tuple[int, int]:
    """Tools, and bytes of the result as it was sent."""
    with scratch() as home, StdioServer([sys.executable, "-m", "ksi_mcp", "serve"], home) as server:
        line = server.list_tools()
    result = json.loads(line)["result"]
    # The envelope is not the tools' doing: what is left of the line without it, in the bytes that were sent.
    envelope = json.dumps({"jsonrpc": "2.0", "id": 2, "result": None}, separators=(",", ":"))
    return len(result["tools"]), len(line.rstrip(b"\n")) - len(envelope.encode()) + len(b"null")


def measure(runs: int) -> Result:
    found = take_turns(runs, {"ours": listed})["ours"]
    return Result(
        name="tools_list",
        figures=[
            Figure(key="tools", values=[tools for tools, _ in found], goal=24),
            Figure(key="tokens", values=[size / BYTES_PER_TOKEN for _, size in found], goal=4_000),
        ],
        setting=setting(
            f"{runs} runs; `serve` on stdio, default tools; a token is {BYTES_PER_TOKEN} bytes", version_of("mcp")
        ),
    )


if __name__ == "__main__":
    main(measure)
