"""Every tool as a command: `routing_add_rule` is `ksi-mcp routing add-rule`. All of it comes from the declaration."""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ksi_mcp.cli.escaping import one_line, print_json
from ksi_mcp.cli.twin import waits
from ksi_mcp.cli.twin.arguments import Parameter, option_of, parameters_of, read, read_object
from ksi_mcp.cli.twin.calling import Calling, open_calling
from ksi_mcp.cli.twin.completing import completer_of
from ksi_mcp.cli.twin.explaining import described, epilog_of, help_of, label
from ksi_mcp.cli.twin.groups import EXIT_INTERRUPTED, EXIT_PARTIAL, EXIT_USAGE, GROUPS
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, ProjectOption
from ksi_mcp.cli.twin.records import show
from ksi_mcp.cli.twin.watching import Watching
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.tools.catalog import ALL_TOOLS
from ksi_mcp.tools.tool import Tool

_ARGUMENT, _OPTION, _ALIAS = "argument_", "option_", "alias_"
_SHOWN_CHARS: Final = 300
_CHECKS: Final = frozenset({"composition_validate", "routing_validate_rule"})
"""Tools whose answer is whether something is valid."""
_HARMLESS: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "orchestration_control": ("action", frozenset({"suspend", "resume", "checkpoint"})),
}
"""What a tool that can destroy can also do."""

_YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]
_ArgsOption = Annotated[
    list[str] | None,
    typer.Option("--args", metavar="JSON|@FILE|-", help="More arguments, by the tool's names for them."),
]
_UntilDoneOption = Annotated[bool, typer.Option("--until-done", help="Wait again and again, for as long as it takes.")]


def words_of(tool: Tool) -> tuple[str, str]:
    """The group of a tool's command (none for `help`) and its name in there."""
    group, _, rest = tool.command.partition(":")
    return (group, rest.replace("_", "-")) if rest else ("", group)


def group_of(name: str) -> typer.Typer:
    """The commands of a group."""
    group = typer.Typer(help=GROUPS[name], no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
    group.callback()(_nothing)
    for tool in ALL_TOOLS:
        if words_of(tool)[0] == name:
            add_command(group, tool)
    return group


def commands_of(group: str) -> tuple[str, ...]:
    """The names of a group's commands."""
    return tuple(name for place, name in map(words_of, ALL_TOOLS) if place == group)


def help_tool() -> Tool:
    """The tool whose command is in no group."""
    return next(tool for tool in ALL_TOOLS if not words_of(tool)[0])


def _nothing() -> None: ...


def add_command(place: typer.Typer, tool: Tool) -> None:
    """Add a tool's command."""
    parameters = parameters_of(tool)
    place.command(
        words_of(tool)[1],
        help=help_of(tool, parameters),
        short_help=tool.title,
        epilog=epilog_of(tool),
        no_args_is_help=False,
    )(_function_of(tool, parameters))


# ------------------------------------------------------------------------------------ the command


def _function_of(tool: Tool, parameters: Sequence[Parameter]) -> Callable[..., int]:
    """The function of a command, with the signature that its options and arguments are made of."""

    def command(**given: Any) -> int:
        return _run(tool, parameters, given)

    annotations = _annotations(tool, parameters)
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=annotation,
                default=False if annotation in (JsonOption, _YesOption, _UntilDoneOption) else None,
            )
            for name, annotation in annotations.items()
        ]
    )
    command.__annotations__ = annotations
    return command


def _annotations(tool: Tool, parameters: Sequence[Parameter]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in sorted((each for each in parameters if each.place is not None), key=lambda each: each.place or 0):
        details = typer.Argument(
            metavar=each.name.upper(),
            help=described(tool, each, also=each.option),
            parser=str,
            autocompletion=completer_of(tool, each),
            show_default=False,
        )
        kind: Any = type(label(each).removesuffix("..."), (str,), {})  # its name is what the help says
        found[_ARGUMENT + each.name] = Annotated[(list[kind] if each.many else kind) | None, details]
    for each in parameters:
        found[_OPTION + each.name] = _option(tool, each, each.option, hidden=each.place is not None)
        for alias in each.aliases:
            found[_ALIAS + alias] = _option(tool, each, option_of(alias), hidden=True)
    found["args"] = _ArgsOption
    if waits.can_repeat(tool):
        found["until_done"] = _UntilDoneOption
    if tool.effects == "destroys" or tool.name == "event_emit":
        found["yes"] = _YesOption
    return found | {"home": HomeOption, "project": ProjectOption, "as_json": JsonOption}


def _option(tool: Tool, parameter: Parameter, name: str, *, hidden: bool) -> Any:
    if parameter.is_flag:
        details = typer.Option(
            f"{name}/--no-{name[2:]}", help=described(tool, parameter), hidden=hidden, show_default=False
        )
        return Annotated[bool | None, details]
    details = typer.Option(
        name,
        metavar=label(parameter),
        help=described(tool, parameter),
        hidden=hidden,
        autocompletion=completer_of(tool, parameter),
        show_default=False,
    )
    return Annotated[list[str] | None, details]


def _place_name(parameter: Parameter) -> str:
    return parameter.name.upper()


def _arguments(tool: Tool, parameters: Sequence[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the call.

    Raises:
        Invalid: a word is no such value, something is missing, or given twice.
    """
    args = read_object(given["args"], "--args") if given["args"] else {}
    for each in parameters:
        written = [(each.name, each.option, given[_OPTION + each.name])]
        written += [(alias, option_of(alias), given[_ALIAS + alias]) for alias in each.aliases]
        if each.place is not None:
            written.append((each.name, _place_name(each), given[_ARGUMENT + each.name]))
        said = [each for each in written if each[2] is not None]
        if len(said) > 1:
            raise Invalid(f"{said[0][1]} and {said[1][1]} are the same parameter", hint="give one")
        for name, shown, value in said:
            if name in args:
                raise Invalid(f"{shown} is in --args too", hint="give it once")
            words = [value] if isinstance(value, str) else value
            args[name] = words if isinstance(words, bool) else read(each, words, shown=shown)
    missing = [each for each in parameters if each.required and not {each.name, *each.aliases} & set(args)]
    if missing and not given["args"]:
        named = [each.option if each.place is None else _place_name(each) for each in missing]
        raise Invalid(f"missing {', '.join(named)}", hint=f"see `{_shown(tool)} --help`")
    return args


def _shown(tool: Tool) -> str:
    return " ".join(word for word in ("ksi-mcp", *words_of(tool)) if word)


# ---------------------------------------------------------------------------------------- running


def _run(tool: Tool, parameters: Sequence[Parameter], given: Mapping[str, Any]) -> int:
    args = _arguments(tool, parameters, given)
    until_done = bool(given.get("until_done"))
    if until_done:
        args = waits.longest(tool, args)
    tool.validate(args)  # before anything is opened
    _confirm(tool, args, yes=bool(given.get("yes")))
    calls = Calls(tool, args)
    try:
        data = asyncio.run(calls.make(given["home"], given["project"], until_done=until_done))
    except KeyboardInterrupt:
        print(f"\n{one_line(waits.after_break(tool, args, calls.last))}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if given["as_json"]:
        print_json(data)
    else:
        show(data)
    if tool.name in _CHECKS and data.get("valid") is False:
        return EXIT_USAGE
    return EXIT_PARTIAL if waits.fell_short(tool, args, data) else 0


class Calls:
    """The calls of one command: one, or with `until_done` as many as it takes. `last` is what the newest gave."""

    def __init__(self, tool: Tool, args: dict[str, Any]) -> None:
        self._tool = tool
        self._args = args
        self.last: dict[str, Any] | None = None

    async def make(self, home: str | None, project: Path | None, *, until_done: bool) -> dict[str, Any]:
        """Open the data folder, or connect as the agent, and call."""
        async with open_calling(home, project) as calling:
            with Watching() as watching:
                if not until_done:
                    return await calling.call(self._tool.name, self._args, watching)
                return await self._until_done(calling, watching)

    async def _until_done(self, calling: Calling, watching: Watching) -> dict[str, Any]:
        name, args = self._tool.name, self._args
        if name == "event_wait" and args.get("since") is None:  # else what comes between two calls would not count
            newest = (await calling.call("event_query", {"limit": 1}, watching))["events"]
            args = {**args, "since": newest[0]["event_id"] if newest else 0}
        first: dict[str, Any] | None = None
        while True:
            began_s = time.monotonic()
            self.last = await calling.call(name, args, watching)
            first = self.last if first is None else first
            going_on = waits.next_call(self._tool, args, self.last, took_s=time.monotonic() - began_s)
            if going_on is None:
                return waits.joined(self._tool, first, self.last)
            name, args = going_on


# ------------------------------------------------------------------------------------- destroying


def _confirm(tool: Tool, args: Mapping[str, Any], *, yes: bool) -> None:
    """Ask before something is ended or deleted, if somebody is there to answer. A script means what it says.

    Raises:
        Refused: the answer was no.
    """
    doomed = _destroyer(tool, args)
    if doomed is None or yes or args.get("dry_run") is True:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    shown = one_line(", ".join(f"{key} {value}" for key, value in args.items()))[:_SHOWN_CHARS]
    try:
        agreed = typer.confirm(f"{doomed.title}{f' ({shown})' if shown else ''}?", err=True)
    except typer.Abort:
        raise KeyboardInterrupt from None
    if not agreed:
        raise Refused("not confirmed; nothing was changed", hint="--yes asks no more")


def _destroyer(tool: Tool, args: Mapping[str, Any]) -> Tool | None:
    """The tool that destroys something in this call, also by way of `event_emit`."""
    while tool.name == "event_emit":
        event, data = args.get("event"), args.get("data")
        command = next((each for each in ALL_TOOLS if event in (each.command, *each.commands)), None)
        if command is None:
            return None
        tool, args = command, data if isinstance(data, dict) else {}
    if tool.effects != "destroys":
        return None
    name, harmless = _HARMLESS.get(tool.name, ("", frozenset()))
    return None if args.get(name) in harmless else tool
