"""`ksi-mcp init`: a data folder with a configuration to start from."""

from __future__ import annotations

import asyncio
import os

import typer

from ksi_mcp.cli.options import HomeOption
from ksi_mcp.clock import SystemClock
from ksi_mcp.config import LOCAL, Home, find_home, load_config, trust
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


def command(home: HomeOption = None) -> None:
    """Make a data folder: a commented config.yaml and a place for your own compositions. Nothing is overwritten."""
    place = find_home(home)
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
    typer.echo(f"{'Made' if made else 'Kept'} {place.config}")
    typer.echo(f"Your own compositions go to {place.compositions}")
    typer.echo(_default(place))
    typer.echo("Next: `ksi-mcp doctor` says what is missing; `ksi-mcp serve` is what a client starts.")


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
