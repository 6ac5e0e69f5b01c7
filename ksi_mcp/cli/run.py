"""`ksi-mcp run`: start a pattern, and watch it until it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from ksi_mcp.cli.running import run_until_told
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, ProjectOption, offering
from ksi_mcp.errors import Invalid, Refused

if TYPE_CHECKING:
    from ksi_mcp.app import App
    from ksi_mcp.cli.live.following import Mode

EXIT_TERMINATED: Final = 143
"""As a shell reports a program that SIGTERM ended."""
_WORKER_S: Final = 15.0
_MAX_FILE_BYTES: Final = 1_000_000


def command(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN", help="e.g. consensus; left out with --attach", autocompletion=offering("patterns")
        ),
    ] = None,
    var: Annotated[
        list[str] | None,
        typer.Option("--var", "--vars", metavar="KEY=VALUE", help="A variable; the value as JSON or text."),
    ] = None,
    vars_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Variables as YAML or JSON; - for standard input.")
    ] = None,
    budget: Annotated[float | None, typer.Option(metavar="USD", min=0, help="Most that it may spend.")] = None,
    turns: Annotated[int | None, typer.Option(metavar="N", min=0, help="Most turns that it may take.")] = None,
    orchestrator: Annotated[
        Literal["agent", "none"],
        typer.Option(help="Who carries the strategy out: an agent, or nobody here (you, by other commands)."),
    ] = "agent",
    model: Annotated[str | None, typer.Option(metavar="NAME", help="For agents whose profile names none.")] = None,
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="The same.")] = None,
    attach: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Follow a run that was started before.", autocompletion=offering("runs")),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it, print its id, and leave.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the last line.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: what waits for somebody stays parked.")
    ] = False,
    home: HomeOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> int:
    """Start a run of a pattern and watch it until it ends, or follow one (--attach).

    On a terminal it shows who is at what, what is said and what it costs, and asks what the run asks. In a pipe it
    prints a line for each event that matters; with --json one JSON object at the end, and nothing else. The run goes on
    without it: Ctrl-C only leaves. Exit codes: 0 success, 5 failed or stopped, 6 partial (parked, held, out of budget,
    or open and idle), 2 usage, 130 interrupted.

    ksi-mcp run consensus --var question="Tabs or spaces?" --budget 0.50
    """
    if (pattern is None) == (attach is None):
        raise Invalid(
            "name a pattern, or a run with --attach",
            hint="`ksi-mcp composition discover --type orchestration` lists patterns",
        )
    given = read_variables(var or [], vars_file)
    if attach is not None and (given or budget is not None or turns is not None or model or provider or detach):
        raise Invalid("--attach follows a run as it is", hint="leave the options of a start out")
    limits = {name: value for name, value in (("usd", budget), ("turns", turns)) if value is not None}
    wishes: dict[str, Any] = {"vars": given, "budget": limits, "model": model, "provider": provider}
    start: dict[str, Any] = {"pattern": pattern, "orchestrator": "agent" if orchestrator == "agent" else "client"}
    start |= {key: value for key, value in wishes.items() if value}
    work = _run(start, attach, home, project, detach=detach, yes=yes, quiet=quiet, as_json=as_json)
    code = run_until_told(work)
    return EXIT_TERMINATED if code is None else code


def read_variables(words: list[str], file: str | None) -> dict[str, Any]:
    """Variables of a file and of the command line; the latter count.

    Raises:
        Invalid: the file holds no mapping, or a word is not `key=value`.
    """
    from ksi_mcp.yamlio import safe_load

    found: dict[str, Any] = {}
    if file is not None:
        try:
            data = sys.stdin.buffer.read(_MAX_FILE_BYTES + 1) if file == "-" else Path(file).read_bytes()
        except OSError as failure:
            raise Invalid(
                f"--vars-file cannot be read: {failure.strerror}", hint="name a file, or - for stdin"
            ) from None
        if len(data) > _MAX_FILE_BYTES:
            raise Invalid(f"--vars-file has more than {_MAX_FILE_BYTES:,} bytes")
        loaded = safe_load(data, what="--vars-file")
        if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
            raise Invalid("--vars-file holds no mapping of names to values", hint="write `name: value`, one a line")
        found |= loaded
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise Invalid(f"--var {word[:80]!r} is not KEY=VALUE", hint="e.g. --var topic='the tides'")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


async def _run(
    start: dict[str, Any],
    attach: str | None,
    home: str | None,
    project: Path | None,
    *,
    detach: bool,
    yes: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    from ksi_mcp.app import App, AppOptions
    from ksi_mcp.cli.live.following import Follower
    from ksi_mcp.cli.showing import make_console
    from ksi_mcp.config import find_home
    from ksi_mcp.logs import configure_logging

    console = make_console()
    alive = console.is_terminal and not console.is_dumb_terminal
    mode: Mode = "silent" if as_json or quiet else "live" if alive else "lines"
    async with (
        App(find_home(home), AppOptions(worker="detached", project=project)) as app,
        Follower(app, console, mode=mode, home=home, may_ask=mode == "live" and not yes) as follower,
    ):
        configure_logging(app.config.log_level)
        if attach is None:
            if follower.may_ask and not start.get("budget") and await _is_unlimited(app, start):
                await follower.confirm_start()
            await follower.begin(start)
        else:
            await follower.find(attach)
        if detach:
            await _see_it_run(app)
            if as_json:
                print(json.dumps({"orchestration": follower.run_id, "detached": True}))
            else:
                print(
                    follower.run_id
                    if quiet
                    else f"{follower.run_id} runs in its worker\n{farewell(follower.run_id, home)}"
                )
            return 0
        try:
            verdict = await follower.follow()
        except asyncio.CancelledError:
            print(f"{follower.run_id} goes on in its worker\n{farewell(follower.run_id, home)}", file=sys.stderr)
            raise
        await follower.report(verdict, as_json=as_json, quiet=quiet)
        return verdict.code


def farewell(run_id: str, home: str | None) -> str:
    """How to come back to a run, hold it or end it."""
    place = f" --home {shlex.quote(home)}" if home else ""
    return "\n".join(
        (
            f"  follow it  ksi-mcp run --attach {run_id}{place}",
            f"  hold it    ksi-mcp orchestration suspend {run_id}{place}",
            f"  end it     ksi-mcp orchestration control {run_id} stop{place}",
        )
    )


async def _is_unlimited(app: App, start: dict[str, Any]) -> bool:
    """Whether nothing bounds what a run may spend at a provider that is paid by use."""
    from ksi_mcp.budgets.prices import FREE_PROVIDERS
    from ksi_mcp.permissions import OPERATOR, fresh_context
    from ksi_mcp.tools.specs import limits_of_wish

    resolved = await app.services.library.resolve(start["pattern"], start.get("vars", {}))
    limits = limits_of_wish(resolved.budget)
    status = await app.toolbox.call(fresh_context(OPERATOR), "budget_status", {"account": "global"})
    everybody = status.data["accounts"][-1]
    bounded = (
        limits.usd_micros,
        limits.tokens,
        limits.turns,
        everybody.get("limit_usd"),
        everybody.get("limit_tokens"),
    )
    provider = start.get("provider") or (await app.services.registry.default()).provider
    return provider.partition("@")[0] not in FREE_PROVIDERS and all(each is None for each in bounded)


async def _see_it_run(app: App) -> None:
    """A worker is started by whoever has something for it: not to leave before it lives."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WORKER_S):
            while await app.unfinished() and not app.worker_lives():  # noqa: ASYNC110  another process takes the lock
                await asyncio.sleep(0.05)
            return
    raise Refused("the run is stored, but no worker could be started", hint="`ksi-mcp doctor` says why")
