"""The command `ksi-mcp`. Which module has which command is known without importing any of them."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Final

import typer
from typer.main import get_command

from ksi_mcp import __version__
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused

PROGRAM: Final = "ksi-mcp"
COMMANDS: Final = {
    "serve": "serve",
    "worker": "worker",
    "demo": "demo",
    "init": "init",
    "doctor": "doctor",
    "events": "events",
    "call": "call",
    "export": "exporting",
    "import": "importing",
    "credentials": "credentials",
    "api-sim": "api_sim",
}
"""Command and its module in `ksi_mcp.cli`; the module's `command` is the function. In the order of `--help`."""

EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_CONFLICT: Final = 4
EXIT_FAILED: Final = 5
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141
"""As a shell reports a program that SIGPIPE ended. The signal itself stays ignored: a socket must not end a server."""


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit with its code; see `EXIT_*` and docs of the command line."""
    arguments = sys.argv[1:] if argv is None else argv
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code. Failures are one line on stderr."""
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
    command = get_command(_application(arguments))
    # Not standalone: failures come here instead of being printed in two ways.
    code = command.main(args=list(arguments) or ["--help"], prog_name=PROGRAM, standalone_mode=False)
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _application(arguments: Sequence[str]) -> typer.Typer:
    """Everything of the command that is asked for; the others only where their names or help matter."""
    application = typer.Typer(
        help="Durable, budget-capped, multi-agent orchestration for any MCP client.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    application.callback()(_options)
    asked = arguments[0] if arguments else ""
    for name in [asked] if asked in COMMANDS else COMMANDS:
        module = importlib.import_module(f"ksi_mcp.cli.{COMMANDS[name]}")
        application.command(name)(module.command)
    return application


def _options(
    *,
    version: bool = typer.Option(False, "--version", is_eager=True, callback=lambda asked: _show_version(asked=asked)),
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
            asked = next(iter(arguments), "")
            shown = f"{PROGRAM} {asked}" if asked in COMMANDS else PROGRAM
            code, name, text, hint = EXIT_USAGE, "usage", cause.format_message(), f"see `{shown} --help`"
        case OSError():
            name, text, hint = "system", cause.strerror or str(cause), "KSI_DEBUG=1 shows where"
        case _:
            text, hint = f"unexpected {type(cause).__name__}: {cause}", "KSI_DEBUG=1 shows where"
    line = " ".join((f"{text.rstrip('.')}; {hint}" if hint else text).split())
    print(f"error: {line}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": {"code": name, "message": text, "hint": hint}}, ensure_ascii=False))
    return code


def _leaves(failure: BaseException) -> Iterator[BaseException]:
    """What is inside a group of failures that tasks left, or the failure itself."""
    if isinstance(failure, BaseExceptionGroup):
        for inner in failure.exceptions:
            yield from _leaves(inner)
    else:
        yield failure


if __name__ == "__main__":
    main()
