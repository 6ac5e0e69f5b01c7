"""`ksi-mcp api-sim`: a Messages API on this machine that answers from a script."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ksi_mcp.cli.running import run_until_told


def command(
    script: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Replies (YAML). Without it prompts are echoed."
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Whoever reaches it can use it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="0 takes a free one.")] = 0,
    requests_per_second: Annotated[
        float | None, typer.Option(metavar="N", min=0.001, help="Above it: 429 with retry-after.")
    ] = None,
    max_in_flight: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Above it: 429 with retry-after.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write here what a client sends its model, a line a call."),
    ] = None,
) -> None:
    """Serve the Messages API from a script: answers, tool calls, latency and faults, without a key or a network.

    The URL is the first line on stdout. What was asked is at URL/_sim/log.
    """
    from ksi_mcp.providers.script import Script, load_script, parse_script
    from ksi_mcp.web.sim import SimLimits, serve_sim

    spec = parse_script(None) if script is None else load_script(script.read_bytes())
    limits = SimLimits(requests_per_second=requests_per_second, max_in_flight=max_in_flight)
    serving = partial(serve_sim, Script(spec), host, port, limits=limits, on_ready=_show)
    if keep is None:
        run_until_told(serving())
        return
    with keep.open("ab", buffering=0) as file:

        def write(body: bytes) -> None:
            file.write(b" ".join(body.splitlines()) + b"\n")  # JSON has its line breaks between its parts only

        run_until_told(serving(heard=write))


def _show(url: str) -> None:
    print(url, flush=True)
    print(
        f"\nUse it from anything that speaks the Messages API (any key will do):\n"
        f"  export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=simulated\n"
        f"or in a data folder's config.yaml:\n"
        f"  anthropic:\n    base_url: {url}\n"
        f"What was asked: {url}/_sim/log    End: Ctrl-C",
        file=sys.stderr,
        flush=True,
    )
