"""`ksi-mcp call`: any tool, from the command line."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Any

import typer

from ksi_mcp.cli.escaping import print_json
from ksi_mcp.cli.twin.calling import open_calling
from ksi_mcp.cli.twin.groups import EXIT_PARTIAL
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, ProjectOption, offering
from ksi_mcp.cli.twin.waits import fell_short
from ksi_mcp.cli.twin.watching import Watching
from ksi_mcp.errors import Invalid
from ksi_mcp.tools.catalog import ALL_TOOLS


def command(
    tool: Annotated[
        str,
        typer.Argument(metavar="TOOL", help="e.g. agent_list, or agent:list", autocompletion=offering("tools")),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGUMENT", help="key=value (the value as JSON or text), one JSON object, or - for stdin"
        ),
    ] = None,
    home: HomeOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> int:
    """Call a tool by its name and print its result as JSON (on one line with --json).

    As the operator of this machine; with KSI_AGENT_TOKEN and KSI_AGENT_URL as that agent, which may have tools that
    nobody else has. `ksi-mcp help` lists the tools, `ksi-mcp help agent_send` explains one.
    """

    async def run() -> tuple[str, dict[str, Any], dict[str, Any]]:
        async with open_calling(home, project) as calling:
            name, schema = await calling.find(tool)
            given = read_arguments(arguments or [], schema.get("properties", {}))
            with Watching() as watching:
                return name, given, await calling.call(name, given, watching)

    name, given, data = asyncio.run(run())
    print_json(data, indent=None if as_json else 2)
    declared = next((each for each in ALL_TOOLS if each.name == name), None)
    return EXIT_PARTIAL if declared is not None and fell_short(declared, given, data) else 0


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
