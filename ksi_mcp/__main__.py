"""The command `ksi-mcp`. Which module has which command is known without importing any of them."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Final

import typer
from typer.main import get_command, get_install_completion_arguments

from ksi_mcp import __version__
from ksi_mcp.cli.escaping import one_line, print_json
from ksi_mcp.cli.twin.groups import (
    EXIT_BROKEN_PIPE,
    EXIT_CONFLICT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_USAGE,
    GROUPS,
    exit_codes,
)
from ksi_mcp.cli.twin.wording import OF_COMMANDS, as_commands, is_misplaced, usage_error
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused

PROGRAM: Final = "ksi-mcp"
COMMANDS: Final = {
    "serve": "serve",
    "worker": "worker",
    "demo": "demo",
    "init": "init",
    "doctor": "doctor",
    "run": "run",
    "top": "top",
    "usage": "usage",
    "events": "events",
    "call": "call",
    "export": "exporting",
    "import": "importing",
    "credentials": "credentials",
    "tokens": "tokens",
    "api-sim": "api_sim",
    "shell-completion": "shell_completion",
}
"""Command and its module in `ksi_mcp.cli`; the module's `command` is the function. In the order of `--help`."""

HELP: Final = "help"
"""The one tool whose command is in no group."""
FOR_AGENTS: Final = frozenset({"call", "shell-completion"})
"""What an agent may run besides the commands of tools: the others open the data folder, as its operator."""
COMPLETING: Final = "_KSI_MCP_COMPLETE"
"""Set by the completion script of a shell, with the line so far in the other."""
COMPLETED_LINE: Final = "_TYPER_COMPLETE_ARGS"


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit with its code; `ksi_mcp.cli.twin.groups` and docs/cli.md list them."""
    arguments = sys.argv[1:] if argv is None else argv
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code. Failures are one line on stderr."""
    if COMPLETING in os.environ:
        return _complete()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # here, where a closed pipe can still be told from a failure
    except BrokenPipeError:
        # Whoever read us has gone. Nothing may be written at the interpreter's end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as failure:  # noqa: BLE001  this is the outermost door
        return _report(failure, arguments)
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    _check_actor(arguments)
    command = get_command(_application(arguments))
    # Not standalone: failures come here instead of being printed in two ways.
    try:
        code = command.main(args=list(arguments) or ["--help"], prog_name=PROGRAM, standalone_mode=False)
    except SystemExit as ended:  # how typer and rich take it that whoever read us has gone
        raise BrokenPipeError from ended
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _complete() -> int:
    """Answer the completion script of a shell. Whatever goes wrong, nobody is told in the middle of their line."""
    try:
        words = os.environ.get(COMPLETED_LINE, "").split()[1:]
        os.environ["COLUMNS"] = "10000"  # a description is one line
        get_install_completion_arguments()  # makes the shells known; the options are not used
        get_command(_application(words)).main(args=[], prog_name=PROGRAM, standalone_mode=False)
    except Exception:  # noqa: BLE001  a shell asks, and nobody reads
        return 1
    return 0


def _check_actor(arguments: Sequence[str]) -> None:
    """Who acts as an agent gets no command that would act as the operator instead."""
    asked = _asked(arguments)
    if list(arguments) in (
        [asked, "--help"],
        [asked, "-h"],
    ):  # and nothing else: elsewhere the word may be the value of an option
        return
    if asked in COMMANDS and asked not in FOR_AGENTS and not _is_tools(arguments):
        from ksi_mcp.cli.twin.calling import require_operator

        require_operator(f"{PROGRAM} {asked}")


def _asked(arguments: Sequence[str]) -> str:
    """The command; nothing if it is about all of them."""
    if arguments and arguments[0] in ("-h", "--help", "--version"):
        return ""
    return next((word for word in arguments if not word.startswith("-")), "")


def _is_tools(arguments: Sequence[str]) -> bool:
    """Whether a command of a tool is meant: `usage report` is one, `usage` is a command of its own."""
    asked = _asked(arguments)
    if asked not in COMMANDS or asked not in GROUPS:
        return asked in GROUPS or asked == HELP
    from ksi_mcp.cli.twin.commands import commands_of

    return any(word in commands_of(asked) for word in arguments[arguments.index(asked) + 1 :][:1])


def _application(arguments: Sequence[str]) -> typer.Typer:
    """Everything of the command that is asked for; of the others the names, and their lines for `--help`."""
    asked = _asked(arguments)
    application = typer.Typer(
        help="Durable, budget-capped, multi-agent orchestration for any MCP client.",
        epilog=f"{exit_codes()}\n\nEvery tool is a command: agent_send is `{PROGRAM} agent send`.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    application.callback()(_options)
    if _is_tools(arguments):
        from ksi_mcp.cli.twin.commands import add_command, group_of, help_tool

        if asked == HELP:
            add_command(application, help_tool())
        else:
            application.add_typer(group_of(asked), name=asked)
    elif asked in COMMANDS:
        module = importlib.import_module(f"ksi_mcp.cli.{COMMANDS[asked]}")
        application.command(asked)(module.command)
    else:
        for name, module_name in COMMANDS.items():
            application.command(name, short_help=_line_of(module_name))(_nothing)
        application.command(HELP, short_help="List every tool there is, or explain one.")(_nothing)
        for name, line in GROUPS.items():
            if name not in COMMANDS:
                application.add_typer(typer.Typer(short_help=line), name=name)
    return application


def _line_of(module: str) -> str:
    """The first line of a command's documentation, read from its source: loading all of them takes half a second."""
    try:
        tree = ast.parse(resources.files("ksi_mcp.cli").joinpath(f"{module}.py").read_text("utf-8"))
    except (OSError, SyntaxError):
        return ""
    found = (each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "command")
    return (ast.get_docstring(next(found)) or "").partition("\n")[0]


def _nothing() -> None:
    """Stands for a command that was not loaded, since another one was asked for."""


def _options(
    *,
    version: bool = typer.Option(
        False,
        "--version",
        is_eager=True,
        callback=lambda asked: _show_version(asked=asked),
        help="Show the version and exit.",
    ),
) -> None:
    """Durable, budget-capped, multi-agent orchestration for any MCP client."""


def _show_version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _report(failure: BaseException, arguments: Sequence[str]) -> int:
    causes = list(_leaves(failure))
    if any(isinstance(cause, BrokenPipeError) for cause in causes):
        return EXIT_BROKEN_PIPE
    cause = next((one for one in causes if isinstance(one, KsiError)), causes[0])
    if os.environ.get("KSI_DEBUG", "") not in ("", "0"):
        traceback.print_exception(failure)
    code, name = EXIT_FAILED, "internal"
    match cause:
        case KsiError():
            name, text, hint = cause.code, cause.message, cause.hint
            match cause:
                case Invalid() | NotFound():
                    code = EXIT_USAGE
                case Refused():
                    code = EXIT_REFUSED
                case Conflict():
                    code = EXIT_CONFLICT
        case typer.TyperException():
            code, name, text, hint = (
                EXIT_USAGE,
                "usage",
                usage_error(cause),
                f"{', '.join(OF_COMMANDS)} come after the command"
                if is_misplaced(arguments)
                else f"see `{_shown(cause, arguments)} --help`",
            )
        case OSError():
            name, text, hint = "system", cause.strerror or str(cause), "KSI_DEBUG=1 shows where"
        case _:
            text, hint = f"unexpected {type(cause).__name__}: {cause}", "KSI_DEBUG=1 shows where"
    line = one_line(f"{text.rstrip('.')}; {as_commands(hint)}" if hint else text)
    if hasattr(sys.stderr, "reconfigure"):
        sys.stderr.reconfigure(errors="backslashreplace")
    print(f"error: {line}", file=sys.stderr)
    if "--json" in arguments:
        print_json({"error": {"code": name, "message": text, "hint": hint}})
    return code


def _shown(cause: typer.TyperException, arguments: Sequence[str]) -> str:
    """The command whose help helps."""
    path = getattr(getattr(cause, "ctx", None), "command_path", None)
    asked = _asked(arguments)
    return str(path) if path else f"{PROGRAM} {asked}" if asked in COMMANDS else PROGRAM


def _leaves(failure: BaseException) -> Iterator[BaseException]:
    """What is inside a group of failures that tasks left, or the failure itself."""
    if isinstance(failure, BaseExceptionGroup):
        for inner in failure.exceptions:
            yield from _leaves(inner)
    else:
        yield failure


if __name__ == "__main__":
    main()
