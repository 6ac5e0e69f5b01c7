"""`ksi-mcp serve`: the MCP server."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ksi_mcp.cli.running import open_door, run_until_told
from ksi_mcp.cli.twin.options import HomeOption, ProjectOption, SafeModeOption
from ksi_mcp.errors import Invalid

if TYPE_CHECKING:
    from ksi_mcp.app import App
    from ksi_mcp.config import Home

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Transport(StrEnum):
    """How clients reach the server."""

    STDIO = "stdio"
    HTTP = "http"
    SSE = "sse"
    ALL = "all"


class Tools(StrEnum):
    """How many tools are listed."""

    DEFAULT = "default"
    FULL = "full"


class WorkerMode(StrEnum):
    """Who runs the turns."""

    DETACHED = "detached"
    INSIDE = "inside"
    NONE = "none"


def command(
    home: HomeOption = None,
    transport: Annotated[Transport, typer.Option(help="`all` is http and sse in one process.")] = Transport.STDIO,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on (http, sse).")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Port to listen on (http, sse); 0 takes a free one.")
    ] = 8765,
    no_auth: Annotated[
        bool,
        typer.Option(
            "--no-auth",
            help="No token; on a loopback address only. Agents that run as processes are refused meanwhile.",
        ),
    ] = False,
    tools: Annotated[Tools, typer.Option(help="List the everyday tools, or all of them.")] = Tools.DEFAULT,
    worker: Annotated[
        WorkerMode,
        typer.Option(help="detached: a process of its own, which outlives this one; inside: here; none: only look."),
    ] = WorkerMode.DETACHED,
    project: ProjectOption = None,
    safe_mode: SafeModeOption = False,
) -> None:
    """Serve MCP: on stdin and stdout (for a client that starts it), or over HTTP with a token.

    Agents, conversations, rules and runs live in the data folder: nothing ends with the client.
    """
    # What a start-up makes stays for good: looking through it for garbage costs a tenth of the start.
    gc.disable()
    from ksi_mcp.app import App, AppOptions
    from ksi_mcp.config import find_home, load_config
    from ksi_mcp.logs import configure_logging

    if no_auth and transport is not Transport.STDIO and host not in LOOPBACK:
        raise Invalid(f"--no-auth goes with a loopback address only, not with {host[:80]!r}", hint="leave the token on")
    place = find_home(home)
    config = load_config(place).with_safe_mode(asked=safe_mode)
    configure_logging(config.log_level)
    app = App(place, AppOptions(worker=worker.value, project=project, agent_door=open_door), config=config)
    serving = _stdio(tools) if transport is Transport.STDIO else _http(transport, host, port, tools, auth=not no_auth)

    async def serve() -> None:
        async with app:
            gc.freeze()
            gc.enable()
            await serving(app)

    run_until_told(serve())


Serving = Callable[["App"], Coroutine[Any, Any, None]]


def _stdio(tools: Tools) -> Serving:
    from ksi_mcp.transports.stdio import serve_stdio

    return lambda app: serve_stdio(app, tools=tools.value)


def _http(transport: Transport, host: str, port: int, tools: Tools, *, auth: bool) -> Serving:
    from ksi_mcp.transports.http import read_or_make_token, serve_http

    kinds = frozenset({"http", "sse"} if transport is Transport.ALL else {transport.value})

    async def serve(app: App) -> None:
        token = read_or_make_token(app.home) if auth else None
        with contextlib.nullcontext() if auth else _unguarded(app.home):
            await serve_http(
                app,
                host=host,
                port=port,
                kinds=kinds,
                token=token,
                tools=tools.value,
                on_ready=lambda url: _show(url, kinds, token),
            )

    return serve


def _unguarded(home: Home) -> contextlib.AbstractContextManager[None]:
    from ksi_mcp.providers.claude.cli import any_running
    from ksi_mcp.unguarded import unguarded

    return unguarded(home, any_running=lambda: any_running(home.root))


def _show(url: str, kinds: frozenset[str], token: str | None) -> None:
    """Where the server is, and what a client needs to be told."""
    base = url.rstrip("/")
    base = base.removesuffix("/mcp").removesuffix("/sse")
    kind = "http" if "http" in kinds else "sse"
    address = f"{base}/mcp" if kind == "http" else f"{base}/sse"
    entry: dict[str, Any] = {"type": kind, "url": address}
    shown = token if sys.stderr.isatty() else "${KSI_TOKEN}"  # a log is read by others than the operator
    if token is not None:
        entry["headers"] = {"Authorization": f"Bearer {shown}"}
    say = [f"listening on {address}" + (f" and {base}/sse" if len(kinds) > 1 else "")]
    say += ["client configuration (.mcp.json):", json.dumps({"mcpServers": {"ksi": entry}}, indent=2)]
    if token is not None and shown == token:
        say.append("The token is the operator's: keep it to yourself.")
    elif token is not None:
        say.append("KSI_TOKEN is the operator's token, in the file `token` of the data folder: keep it to yourself.")
    print("\n".join(say), file=sys.stderr, flush=True)
