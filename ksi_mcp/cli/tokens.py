"""`ksi-mcp tokens`: for others than the operator, over HTTP."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from ksi_mcp.access.tokens import DEFAULT_DAYS, AccessToken
from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, offering
from ksi_mcp.cli.twin.records import show
from ksi_mcp.config import find_home
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import OPERATOR, fresh_context


class Action(StrEnum):
    """What to do."""

    create = "create"
    list = "list"
    revoke = "revoke"


def command(
    action: Annotated[Action, typer.Argument(metavar="ACTION", help="create, list or revoke", show_default=False)],
    token: Annotated[
        str | None, typer.Argument(metavar="ID", help="What to revoke: an id that list shows.", show_default=False)
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="AGENT",
            help="Whoever has it acts as this agent, and ends with it.",
            autocompletion=offering("agents"),
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Whoever has it may look, and change nothing.")
    ] = False,
    label: Annotated[str | None, typer.Option(metavar="TEXT", help="For you, to know it again.")] = None,
    days: Annotated[
        float, typer.Option(metavar="DAYS", help="For how long it lets somebody in; 0: until it is revoked.")
    ] = DEFAULT_DAYS,
    everything: Annotated[bool, typer.Option("--all", help="List also those that let nobody in any more.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make, list or revoke tokens for the HTTP server. A token is shown once, when it is made, and stored nowhere.

    The operator's own is the file `token` in the data folder; delete it and start the server again for a new one.
    """
    if (action is Action.revoke) != (token is not None):
        raise Invalid("revoke needs an ID, and only revoke", hint="`ksi-mcp tokens list` shows the ids")
    if action is Action.create and (agent is None) != read_only:
        raise Invalid("say what the token is for", hint="either --read-only or --agent NAME")
    place = find_home(home)

    async def run() -> dict[str, Any]:
        async with App(place, AppOptions(worker="none")) as app:
            access, ctx = app.services.access, fresh_context(OPERATOR)
            if action is Action.create:
                text, made = await access.make(ctx, agent=agent, label=label, days=days or None)
                return {"token": text, **_shown(made)}
            if action is Action.revoke:
                return _shown(await access.revoke(ctx, token or ""))
            return {"tokens": [_shown(each) for each in await access.list(ended=everything)]}

    said = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(said, ensure_ascii=False))
    elif action is Action.create:
        typer.echo(said["token"])  # alone on stdout, so that a script can take it
        what = f"acts as agent {said['agent']}" if agent is not None else "may only look"
        typer.echo(
            f"{said['id']} {what}, until {said.get('expires_at', 'it is revoked')}; it is not shown again", err=True
        )
    elif action is Action.revoke:
        typer.echo(f"{said['id']} lets nobody in any more")
    else:
        if not said["tokens"]:
            typer.echo("none lets anybody in besides the operator's")
            return
        columns = ("id", "kind", "agent", "created_at", "expires_at", "revoked_at", "label")
        used = [name for name in columns if any(name in each for each in said["tokens"])]
        show({"tokens": [{name: each.get(name) for name in used} for each in said["tokens"]]})


def _shown(token: AccessToken) -> dict[str, Any]:
    shown = {
        "id": token.token_id,
        "kind": token.kind,
        "agent": token.agent_id,
        "label": token.label,
        "created_at": _at(token.created_at_ms),
        "expires_at": _at(token.expires_at_ms),
        "revoked_at": _at(token.revoked_at_ms),
    }
    return {key: value for key, value in shown.items() if value is not None}


def _at(moment_ms: int | None) -> str | None:
    return None if moment_ms is None else f"{datetime.fromtimestamp(moment_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
