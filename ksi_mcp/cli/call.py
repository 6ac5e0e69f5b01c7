"""`ksi-mcp call`: any tool, from the command line."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Any

import typer

from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.options import HomeOption, JsonOption, ProjectOption
from ksi_mcp.config import find_home
from ksi_mcp.errors import Invalid
from ksi_mcp.logs import configure_logging
from ksi_mcp.permissions import OPERATOR, fresh_context


def command(
    tool: Annotated[str, typer.Argument(help="e.g. agent_list, or agent:list")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="key=value (the value as JSON or text), one JSON object, or - for stdin")
    ] = None,
    home: HomeOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call a tool as the operator of this machine and print its result as JSON (on one line with --json).

    `ksi-mcp call help` lists the tools, `ksi-mcp call help topic=agent_send` explains one.
    """
    place = find_home(home)

    async def run() -> dict[str, Any]:
        async with App(place, AppOptions(worker="detached", project=project)) as app:
            configure_logging(app.config.log_level)
            declared = app.toolbox.command(tool) or app.toolbox.get(tool.replace("-", "_"))
            given = read_arguments(arguments or [], declared.schema()["properties"])
            return (await app.toolbox.call(fresh_context(OPERATOR), declared.name, given)).data

    typer.echo(json.dumps(asyncio.run(run()), ensure_ascii=False, indent=None if as_json else 2))


def read_arguments(words: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    """`key=value` pairs, or one JSON object, or `-` for one on standard input. A text stays a text, `7` and all.

    Raises:
        Invalid: a word is neither.
    """
    if len(words) == 1 and (words[0] == "-" or words[0].lstrip().startswith("{")):
        text = sys.stdin.read() if words[0] == "-" else words[0]
        try:
            found = json.loads(text)
        except ValueError as failure:
            raise Invalid(f"the arguments are not JSON: {failure}", hint="give a JSON object, or key=value") from None
        if not isinstance(found, dict):
            raise Invalid("the arguments are not a JSON object")
        return found
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise Invalid(f"{word[:80]!r} is no argument", hint="write key=value, one JSON object, or -")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        structured = read is None or isinstance(read, dict | list)
        given[key] = read if structured or not may_be_text(properties.get(key, {})) else value
    return given


def may_be_text(schema: dict[str, Any]) -> bool:
    """Whether a parameter takes text."""
    kinds = [each.get("type", ()) for each in (schema, *schema.get("anyOf", ()))]
    return any("string" in ([kind] if isinstance(kind, str) else kind) for kind in kinds)
