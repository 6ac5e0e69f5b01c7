"""`ksi-mcp export`: compositions into one file that another data folder can import."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.showing import many
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, ProjectOption, offering
from ksi_mcp.compositions.quarantine import save
from ksi_mcp.config import find_home
from ksi_mcp.errors import Conflict
from ksi_mcp.logs import configure_logging
from ksi_mcp.permissions import OPERATOR, fresh_context


def command(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Compositions of the library.", autocompletion=offering("compositions")),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to. Default: exports/ in the data folder."),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Without what they extend, include and spawn.")] = False,
    no_runs: Annotated[bool, typer.Option("--no-runs", help="Without what came of their runs.")] = False,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEYFILE", help="Sign with this Ed25519 private key (PEM).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over FILE.")] = False,
    home: HomeOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write compositions, their ancestors and run statistics into one bundle file.

    The same contents are the same bytes, but for who exported them and when.
    """
    place = find_home(home)
    if output is not None and output.exists() and not force:
        raise Conflict(f"{output.name!r} exists", hint="choose another file, or say --force")

    async def run() -> dict[str, Any]:
        async with App(place, AppOptions(project=project)) as app:
            configure_logging(app.config.log_level)
            given = {"names": names, "with_dependencies": not alone, "with_runs": not no_runs}
            if sign is not None:
                given["sign_with"] = str(sign.absolute())
            return (await app.toolbox.call(fresh_context(OPERATOR), "composition_export", given)).data

    made = asyncio.run(run())
    if output is not None:
        written = place.root / made["file"]
        save(output.absolute().parent, output.name, written.read_bytes())
        written.unlink()
        made["file"] = str(output)
    if as_json:
        typer.echo(json.dumps(made, ensure_ascii=False))
        return
    for key in ("dependencies", "ancestors"):
        if made.get(key):
            typer.echo(f"with {key}: {', '.join(made[key])}")
    for missing in made.get("missing", ()):
        print(f"warning: {missing} is referred to and not in the library", file=sys.stderr)
    count = len(made["compositions"]) + len(made.get("dependencies", ()))
    parts = (many(count, "composition"), many(made["runs"], "run"), f"{made['size']:,} bytes", made["bundle"])
    typer.echo(f"{made['file']}: {', '.join(parts)}")
