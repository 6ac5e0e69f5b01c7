"""What tools and typer say, in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import typer

from ksi_mcp.cli.escaping import one_line
from ksi_mcp.cli.twin.groups import GROUPS

OF_COMMANDS: Final = ("--home", "--project", "--json", "--yes")
"""Options that each command has, and the program itself has not."""
_TOOL: Final = re.compile(
    rf"(?<![\w.:`-])({'|'.join(GROUPS)})_([a-z_]+)\b"
    r"(?:\((\w+)=['\"]?([\w:.*-]+)['\"]?\)|\(([a-z_]+(?:, [a-z_]+)?)\)|(?!\())"
)
_SHOWN: Final = 80
_BOUNDS: Final = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "more than"),
    "less_than": ("lt", "less than"),
}
_KINDS: Final = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def as_commands(text: str) -> str:
    """A hint with its tools as the commands that they are here: `agent_list` is `ksi-mcp agent list`.

    A call with several values stays as it is: there is no telling how they would be written.
    """
    if _TOOL.search(text) is None or text.startswith("did you mean"):  # whoever wrote a tool's name gets one
        return text
    from ksi_mcp.tools.catalog import ALL_TOOLS

    known = {tool.name for tool in ALL_TOOLS}

    def command(found: re.Match[str]) -> str:
        group, rest, option, value, places = found.groups()
        if f"{group}_{rest}" not in known:
            return found[0]
        given = "" if option is None else f" --{option.replace('_', '-')} {value}"
        given += "" if places is None else f" {places.replace(',', '').upper()}"
        return f"`ksi-mcp {group} {rest.replace('_', '-')}{given}`"

    return _TOOL.sub(command, text)


def usage_error(failure: typer.TyperException) -> str:
    """What is wrong with the words of a command: which of them, with which value, and what it would take."""
    found = _first_of(failure)
    hint = getattr(getattr(failure, "param", None), "get_error_hint", None)
    if found is None or hint is None:
        text = failure.format_message()
        return text[:1].lower() + text[1:] if text.startswith("Missing ") else text
    where = str(hint()).strip("'")
    value = one_line(repr(found.get("input")))[:_SHOWN]
    kind, context = str(found["type"]), found.get("ctx") or {}
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{where} must be {words} {context[name]:g}, not {value.strip(chr(39))}"
    wanted = _KINDS.get(kind.partition("_")[0])
    if wanted is not None:
        return f"{where} takes {wanted}, not {value}"
    said = str(found["msg"]).removeprefix("Value error, ")
    _, is_not, choices = said.partition(" is not one of ")
    if is_not:
        return f"{where} cannot be {value}; one of {choices.replace(chr(39), '')}"
    return f"{where}: {said}"


def is_misplaced(arguments: Sequence[str]) -> bool:
    """Whether an option of commands stands before the command."""
    return bool(arguments) and arguments[0].partition("=")[0] in OF_COMMANDS


def _first_of(failure: BaseException) -> dict[str, Any] | None:
    """The first thing that the check of a value found."""
    errors = getattr(failure.__cause__, "errors", None)
    found = errors() if callable(errors) else ()
    return dict(found[0]) if found else None
