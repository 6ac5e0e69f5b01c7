"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    str | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="Data folder. Default: KSI_HOME, else .ksi here if `init` made it, else your user data folder.",
    ),
]
ProjectOption = Annotated[
    Path | None,
    typer.Option(
        "--project",
        metavar="DIR",
        exists=True,
        file_okay=False,
        resolve_path=True,
        help="A project's folder of compositions; they come before your own and the built-in ones.",
    ),
]
SafeModeOption = Annotated[
    bool,
    typer.Option(
        "--safe-mode",
        envvar="KSI_SAFE_MODE",
        help="Deliver no events, until a start without this, so that a bad routing table can be mended.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def offering(kind: str) -> Callable[[typer.Context, str], list[str]]:
    """What a shell offers for a parameter: names of that kind (see `completing`), as far as they are known."""

    def look_up(ctx: typer.Context, incomplete: str) -> list[str]:
        from ksi_mcp.cli.twin.completing import names

        given = ctx.params.get("home")
        return names(kind, incomplete, given if isinstance(given, str) else None)

    return look_up
