"""`ksi-mcp init`: a data folder with a configuration to start from, and what a client needs to be told."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from ksi_mcp import yamledit, yamlio
from ksi_mcp.cli.clients import Client, replace_file, setup_for, write
from ksi_mcp.cli.twin.options import HomeOption
from ksi_mcp.clock import SystemClock
from ksi_mcp.config import LOCAL, Config, Home, find_home, load_config, trust
from ksi_mcp.errors import Invalid, KsiError
from ksi_mcp.providers.registry import ProviderRegistry, settings_of

CONFIG_TEMPLATE = """\
# What the operator of this data folder has decided. Every key is optional; an unknown key is an error.
# `ksi-mcp doctor --settings` lists all of them with their meaning and default.

# provider: anthropic          # for agents that name none: anthropic, openai_compatible, claude_cli, external, scripted
# model: claude-sonnet-5-5     # for agents that name none; or a profile, such as smart
# budget: {usd: 10}            # for everything in this data folder together
# worker: {concurrency: 64, idle_s: 60}
# anthropic: {api_key_env: ANTHROPIC_API_KEY}   # the key itself: environment, or `ksi-mcp credentials set NAME`
# openai_compatible: {base_url: "http://localhost:11434/v1"}
# claude_cli: {max_usd_per_turn: 1.0}           # set aside for each turn of a Claude Code agent
# scripted: {script: script.yaml}               # replies for the provider `scripted`
# supervision: {policy: retry}                  # when a turn is lost for good: retry, respawn, redistribute, escalate
# monitor: {backlog: 100, timeout_rate: 0.2}    # emit monitor:* events beyond these
# retention: {turns: {days: 90}}                # what is older goes, unless something still needs it
"""


def command(
    home: HomeOption = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, metavar="USD", help="At most so much for everything in this data folder together."),
    ] = None,
    client: Annotated[
        Client | None, typer.Option(help="Print what this client needs to be told, and make no data folder.")
    ] = None,
    to_file: Annotated[
        bool, typer.Option("--write", help="With --client: add it to that client's file; what is in there stays.")
    ] = False,
) -> None:
    """Make a data folder: a commented config.yaml and a place for your own compositions. Nothing is overwritten.

    With --client: the configuration of a client, with absolute paths, on stdout.
    """
    if to_file and client is None:
        raise Invalid("--write goes with --client", hint="say which client's file")
    if client is not None and budget is not None:
        raise Invalid("--budget does not go with --client", hint="`ksi-mcp init --budget USD` first")
    place = find_home(home)
    if client is not None:
        _client(client, place, to_file=to_file)
        return
    if place.root.name == LOCAL:  # from now on it is found by whoever works beside it
        trust(place.root)
    try:
        place.compositions.mkdir(exist_ok=True)
        with place.config.open("x", encoding="utf-8") as file:
            file.write(CONFIG_TEMPLATE)
        made = True
    except FileExistsError:
        made = False
    except OSError as failure:
        raise Invalid(
            f"the data folder cannot be written: {failure.strerror}", hint="choose another with --home"
        ) from None
    if budget is not None:
        set_budget(place, budget)
    typer.echo(f"{'Made' if made else 'Kept'} {place.config}")
    typer.echo(f"Your own compositions go to {place.compositions}")
    typer.echo(_default(place))
    typer.echo("Next: `ksi-mcp doctor` says what is missing; `ksi-mcp serve` is what a client starts,")
    typer.echo(f"and `ksi-mcp init --client NAME` prints how to tell it: {', '.join(Client)}.")


def set_budget(place: Home, usd: float) -> bool:
    """Write the limit of the whole data folder into config.yaml, comments and all else as they were; False: it is so.

    Raises:
        Invalid: config.yaml is broken, cannot be changed in place, or cannot be written.
    """
    if load_config(place).budget.usd == usd:
        return False
    text = place.config.read_text("utf-8") if place.config.exists() else ""
    before = yamlio.safe_load(text, what="config.yaml")
    given = before if isinstance(before, dict) else {}
    limits = given.get("budget") if isinstance(given.get("budget"), dict) else {}
    after = {**given, "budget": {**(limits or {}), "usd": usd}}
    try:
        Config.model_validate(after)
    except ValidationError:
        raise Invalid(f"a budget of {usd:g} USD is none", hint="0 to 1,000,000,000") from None
    if given:
        changed = yamledit.edited(text, after, what="config.yaml")
    else:  # nothing but comments
        changed = "".join(f"{line}\n" for line in text.splitlines()) + f"budget: {{usd: {usd}}}\n"
    if changed is None:
        raise Invalid("config.yaml cannot be changed in place", hint=f"write `budget: {{usd: {usd:g}}}` into it")
    try:
        replace_file(place.config, changed)
    except OSError as failure:
        raise Invalid(f"config.yaml cannot be written: {failure.strerror}") from None
    return True


def _client(client: Client, place: Home, *, to_file: bool) -> None:
    """On stdout what belongs into a file or a terminal, and nothing else."""
    setup = setup_for(client, place, cwd=Path.cwd())
    if not to_file:
        typer.echo(setup.text)
        where = "" if setup.file is None else f"It belongs into {setup.file}; --write puts it there. "
        print(f"{where}Then {setup.then}.", file=sys.stderr)
        return
    new = write(setup)
    typer.echo(f"{'Added to' if new else 'Already in'} {setup.file}")
    print(f"Next: {setup.then}.", file=sys.stderr)


def _default(place: Home) -> str:
    """Who answers agents that name no provider, and why."""
    try:
        registry = ProviderRegistry(settings_of(load_config(place), place.root), SystemClock(), os.environ)
        default = asyncio.run(registry.default())
    except KsiError as wrong:
        return f"Models: {wrong.text()}"
    if not default.found:
        return f"Models: none found ({default.why}). Turns wait until somebody answers them with completion_answer."
    return f"Models: {default.provider}, since {default.why}."
