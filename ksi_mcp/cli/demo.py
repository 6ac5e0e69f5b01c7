"""`ksi-mcp demo`: a whole run, as a client would do it, without a key and without a network.

The pieces are the real ones: a server process on stdio, an MCP client, a worker process, the anthropic SDK over HTTP.
Only the model is not: a Messages API in this process answers from `demo_script.yaml`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ksi_mcp.cli.running import run_until_told
from ksi_mcp.cli.twin.options import JsonOption
from ksi_mcp.errors import Conflict, KsiError, Refused

if TYPE_CHECKING:
    from ksi_mcp.cli.demonstration.run import Evidence, Say
    from ksi_mcp.config import Home
    from ksi_mcp.web.sim import SimServer

EXIT_FAILED: Final = 5
MARK: Final = "# Written by `ksi-mcp demo`, and written anew each time.\n"
LONGEST_S: Final = 90.0
WORKER_ENDS_S: Final = 20.0
"""How long a worker of an earlier run may take to notice that it has nothing left to do."""
WORKER_LOOK_S: Final = 0.05


def command(
    home: Annotated[
        str | None,
        typer.Option(
            "--home",
            metavar="DIR",
            help="Data folder of the demonstration. Default: KSI_HOME, else `demo` in your user data folder.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Show what it does: a tournament of agents with a budget, a retry, a denied turn and a rule an agent made.

    Needs no key and no network. Everything in the report is read from what the server recorded. The exit code is 5,
    and what is missing is named, if something that is promised did not happen.
    """
    from ksi_mcp.cli.demonstration.report import Steps, make_console, show

    console = make_console()
    steps = Steps(None if as_json else console)
    place = _home(home)
    facts = run_until_told(_demonstrate(place, steps.say))
    if facts is None:
        return EXIT_FAILED
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        show(console, facts)
    if facts["missing"]:
        print(f"error: this was promised and did not happen: {'; '.join(facts['missing'])}", file=sys.stderr)
        return EXIT_FAILED
    return 0


async def _demonstrate(home: Home, say: Say) -> dict[str, Any]:
    from ksi_mcp.cli.demonstration.facts import gather_facts, missing
    from ksi_mcp.cli.demonstration.run import tournament
    from ksi_mcp.providers.script import Script, load_script
    from ksi_mcp.transports.stdio_client import connect_stdio
    from ksi_mcp.web.sim import SimServer

    clock = asyncio.get_running_loop().time
    began_s = clock()
    script = load_script(Path(__file__).with_name("demo_script.yaml").read_bytes())
    with _alone(home):
        before = _processes_on(home)
        try:
            async with asyncio.timeout(LONGEST_S), SimServer(Script(script)) as sim:
                await _stop_earlier(home)
                _configure(home, sim)
                server = [sys.executable, "-m", "ksi_mcp", "serve", "--home", str(home.root)]
                async with connect_stdio(server, _environment()) as client:
                    evidence: Evidence = await tournament(client, say)
                    facts = await gather_facts(client, evidence, sim.log, most_at_once=sim.max_in_flight)
                await _worker_ended(home)
        except BaseException:
            with suppress(KsiError):  # the first failure is the one to tell
                await _stop_earlier(home)
            raise
    facts["data_folder"] = str(home.root)
    facts["left_running"] = [each for each in _processes_on(home) if each not in before]
    facts["seconds"] = round(clock() - began_s, 1)
    facts["missing"] = missing(facts)
    return facts


# -- the data folder ---------------------------------------------------------------------------------


def _home(given: str | None) -> Home:
    """The folder of the demonstration; never one that somebody works with."""
    import platformdirs

    from ksi_mcp.config import find_home

    default = Path(platformdirs.user_data_dir("ksi_mcp", appauthor=False)) / "demo"
    place = find_home(given or os.environ.get("KSI_HOME") or str(default))
    used = place.config.exists() or place.database.exists()
    if used and not (place.config.is_file() and place.config.read_bytes().startswith(MARK.encode())):
        raise Refused(
            "this data folder is in use, and the demonstration would overwrite its config.yaml",
            hint="name a folder of its own with --home",
        )
    return place


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Two demonstrations at once would overwrite each other's configuration."""
    from filelock import FileLock, Timeout

    lock = FileLock(home.root / "demo.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Conflict("a demonstration is under way in this data folder", hint="wait for it, or use --home") from None
    try:
        yield
    finally:
        lock.release()


def _configure(home: Home, sim: SimServer) -> None:
    from ksi_mcp.yamlio import dump

    settings = {
        "provider": "anthropic",
        "anthropic": {"base_url": sim.url},
        "worker": {"concurrency": 16, "idle_s": 1},
    }
    home.config.write_text(MARK + dump(settings), "utf-8")


def _environment() -> dict[str, str]:
    """What the server gets: no real key, none of the user's own settings, and no proxy on the way to the simulator."""
    passed = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**passed, "ANTHROPIC_API_KEY": "sk-demo", "NO_PROXY": "*"}


# -- processes ---------------------------------------------------------------------------------------


async def _stop_earlier(home: Home) -> None:
    """Stop what a demonstration left unfinished: its worker goes on asking a simulator that is gone."""
    from ksi_mcp.app import App, AppOptions
    from ksi_mcp.config import Config
    from ksi_mcp.permissions import OPERATOR, fresh_context

    if home.database.exists():
        async with App(home, AppOptions(worker="none"), config=Config()) as app:
            running = await app.toolbox.call(
                fresh_context(OPERATOR), "orchestration_list", {"state": "running", "limit": 100}
            )
            for run in running.data["orchestrations"]:
                stop = {"orchestration": run["orchestration"], "action": "stop", "reason": "a new demonstration begins"}
                await app.toolbox.call(fresh_context(OPERATOR), "orchestration_control", stop)
    await _worker_ended(home)


async def _worker_ended(home: Home) -> None:
    """Wait for the data folder's worker to end, as it does when it has had nothing to do for a second.

    Raises:
        Conflict: it did not.
    """
    from filelock import FileLock, Timeout

    loop = asyncio.get_running_loop()
    until_s = loop.time() + WORKER_ENDS_S
    lock = FileLock(home.worker_lock)
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            held = True
        else:
            held = False
            lock.release()
        # The lock goes a moment before the process does.
        if not held and not any(each.startswith("worker") for each in _processes_on(home)):
            return
        if loop.time() >= until_s:
            raise Conflict(
                f"the worker of this data folder did not end within {WORKER_ENDS_S:g} s",
                hint="try again, or use another folder with --home",
            )
        await asyncio.sleep(WORKER_LOOK_S)


def _processes_on(home: Home) -> list[str]:
    """Our servers and workers on that folder, as far as the system shows processes in /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:  # it has just ended, or is not ours to see
            continue
        kind = next((word for word in words if word in ("serve", "worker")), None)
        if "ksi_mcp" in words and kind is not None and str(home.root) in words:
            found.append(f"{kind} {file.parent.name}")
    return sorted(found)
