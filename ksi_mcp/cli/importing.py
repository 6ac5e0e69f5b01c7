"""`ksi-mcp import`: bundles and other programs' files, by way of the quarantine."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, ProjectOption
from ksi_mcp.config import find_home
from ksi_mcp.errors import Invalid
from ksi_mcp.logs import configure_logging
from ksi_mcp.permissions import OPERATOR, fresh_context

_BUNDLE_ID = re.compile(r"b_[0-9a-f]{20}")
_ASKS = ("capabilities", "routing_level", "mcp_servers", "models", "budget", "rules")


class SourceFormat(StrEnum):
    """What files may be written in."""

    ksi_mcp = "ksi_mcp"
    ksi = "ksi"
    llm_orc = "llm_orc"
    claude_agents = "claude_agents"


def command(
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="A bundle, file, folder or git checkout, or a bundle's id. None: list."),
    ] = None,
    allow: Annotated[bool, typer.Option("--allow", help="Place it in the library at once.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="Allow only this one.")] = None,
    discard: Annotated[bool, typer.Option("--discard", help="Throw a bundle in quarantine away.")] = False,
    prefix: Annotated[
        str | None, typer.Option("--prefix", metavar="TEXT", help="For names that are taken, such as acme_.")
    ] = None,
    format: Annotated[
        SourceFormat | None, typer.Option("--format", help="Of the files; else each is looked at.")
    ] = None,
    home: HomeOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check what comes from elsewhere and keep it in quarantine; with --allow, place it in the library.

    Reads bundles, and compositions of KSI, ensembles of llm-orc and .claude/agents.
    """
    place = find_home(home)
    given = _arguments(source, allow=allow, only=only or [], discard=discard)
    if prefix is not None:
        given["prefix"] = prefix
    if format is not None:
        given["format"] = format.value

    async def run() -> dict[str, Any]:
        async with App(place, AppOptions(project=project)) as app:
            configure_logging(app.config.log_level)
            context = fresh_context(OPERATOR)
            return (await app.toolbox.call(context, "composition_import", given, progress=_progress)).data

    found = asyncio.run(run())
    typer.echo(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(_lines(found)))


def _arguments(source: str | None, *, allow: bool, only: list[str], discard: bool) -> dict[str, Any]:
    if source is None:
        if allow or only or discard:
            raise Invalid("there is nothing to allow or discard", hint="name a file, a folder or a bundle's id")
        return {}
    is_id = _BUNDLE_ID.fullmatch(source) is not None and not Path(source).exists()
    given: dict[str, Any] = {"bundle_id": source} if is_id else {"path": str(Path(source).absolute())}
    if discard and (allow or only or not is_id):
        raise Invalid("--discard takes a bundle's id and nothing else", hint="`ksi-mcp import` lists what waits")
    if discard:
        given["allow"] = False
    elif only:
        given["allow"] = only
    elif allow:
        given["allow"] = True
    return given


async def _progress(done: float, total: float | None, message: str) -> None:
    """On a terminal, one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r{message}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _lines(found: dict[str, Any]) -> list[str]:
    if found["state"] == "waiting":
        lines = [
            f"{each['bundle']}  {each['made_at']}  {each.get('source') or each['made_by']}: "
            f"{', '.join(each['compositions'])}"
            for each in found["waiting"]
        ]
        return lines or ["nothing waits in quarantine"]
    if found["state"] == "discarded":
        return [f"{found['bundle']} was thrown away"]
    lines = []
    for each in found.get("compositions", ()):
        name = f"{each['name']} -> {each['becomes']}" if "becomes" in each else each["name"]
        lines.append(f"{each['standing']:>9}  {name} ({each['type']} {each['version']}, {each['hash']})")
        asks = each.get("asks", {})
        lines += [f"           asks for {key}: {_plain(asks[key])}" for key in _ASKS if key in asks]
        lines += [f"           {text}" for text in (*each.get("differences", ()), *each.get("warnings", ()))]
    for each in found.get("files", ()):
        lines += [f"{each['file']}: {text}" for text in each.get("mapped", ())]
        lines += [f"{each['file']}: no effect: {text}" for text in each.get("without_effect", ())]
    lines += [f"{each['file']}: not read: {each['reason']}" for each in found.get("unread", ())]
    lines += [f"warning: {text}" for text in found.get("warnings", ())]
    if "signed" in found:
        lines.append(f"signed: {found['signed']}")
    if "claimed_runs" in found:
        lines.append(f"{found['claimed_runs']} runs, which count as claims and not as evidence")
    match found["state"]:
        case "present":
            lines.append("all of it is in the library already; nothing was kept")
        case "imported":
            placed = found.get("placed")
            lines.append(f"placed in the library: {', '.join(placed)}" if placed else "nothing had to be placed")
        case _:
            placed = found.get("placed", ())
            lines += [f"placed in the library: {', '.join(placed)}"] if placed else []
            lines.append(f"in quarantine as {found['bundle']}; `ksi-mcp import {found['bundle']} --allow` places it")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
