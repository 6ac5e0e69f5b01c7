"""MCP on stdin and stdout, one client, until it hangs up."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import cast

from anyio import AsyncFile

from ksi_mcp.app import App
from ksi_mcp.transports.malformed import refusal_of
from ksi_mcp.transports.pipes import LinesIn, TextOut
from ksi_mcp.transports.server import ToolSet, build_server
from ksi_mcp.transports.signals import stopping


async def serve_stdio(app: App, *, tools: ToolSet = "default") -> None:
    """Serve until stdin closes, or SIGINT or SIGTERM comes; calls that still wait are cancelled, nothing is lost.

    Stdout carries the protocol and nothing else: what anything else prints goes to stderr.
    """
    server = build_server(app, tools=tools)
    with _own_descriptors() as (stdin, stdout):
        lines = LinesIn(stdin)
        with contextlib.closing(TextOut(stdout)) as out, stopping(lines.close):
            # The SDK only iterates the one, and writes and flushes the other.
            await server.serve_stdio(cast("AsyncFile[str]", _messages(lines, out)), cast("AsyncFile[str]", out))


async def _messages(lines: LinesIn, out: TextOut) -> AsyncIterator[str]:
    """The lines that are messages; the others are answered here."""
    async for line in lines:
        refusal = refusal_of(line)
        if refusal is None:
            yield line
        else:
            await out.write(refusal)


@contextmanager
def _own_descriptors() -> Iterator[tuple[int, int]]:
    """Stdin and stdout for the protocol alone, as descriptors of our own.

    Code and child processes that read descriptor 0 find it empty; what they write to descriptor 1 goes to stderr.
    """
    sys.stdout.flush()
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    private_in, private_out = os.dup(stdin), os.dup(stdout)
    empty = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(empty, stdin)
        os.dup2(sys.stderr.fileno(), stdout)
        yield private_in, private_out
    finally:
        sys.stdout.flush()
        for private, original in ((private_in, stdin), (private_out, stdout)):
            os.dup2(private, original)
            os.close(private)
        os.close(empty)
