"""`ksi-mcp credentials`: keys in the system's keyring, or encrypted in the data folder. A key is never an argument."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from ksi_mcp.cli.twin.options import HomeOption, JsonOption
from ksi_mcp.config import find_home
from ksi_mcp.errors import Invalid
from ksi_mcp.providers.credentials import (
    FILE,
    MAX_VALUE_CHARS,
    SERVICE,
    Credentials,
    check_credential_name,
    check_keepable,
)

PLACES = {
    "environment": "the environment",
    "keyring": f"the system's keyring (service {SERVICE})",
    "file": f"{FILE} in the data folder, encrypted",
}


class Action(StrEnum):
    """What to do."""

    set = "set"
    list = "list"
    remove = "remove"


def command(
    action: Annotated[Action, typer.Argument(metavar="ACTION", help="set, list or remove", show_default=False)],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Such as ANTHROPIC_API_KEY.", show_default=False)
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep, list or forget the keys of models. The key itself is asked for, or read from stdin: never an argument.

    They are kept in the keyring of the system; where there is none, encrypted with KSI_CREDENTIALS_KEY.
    """
    place = find_home(home)
    credentials = Credentials(os.environ, place.root)
    if action is Action.list:
        if name is not None:
            raise Invalid("list takes no name", hint="it shows the names and where each is, never a key")
        kept = credentials.kept()
        if as_json:
            typer.echo(json.dumps({"credentials": kept}))
            return
        for each, source in kept.items():
            also = ", but the one in the environment is used" if os.environ.get(each) else ""
            typer.echo(f"{each}  {PLACES[source]}{also}")
        if not kept:
            typer.echo("none is kept")
        return
    if name is None:
        raise Invalid(
            f"{action.value} needs a name", hint=f"such as `ksi-mcp credentials {action.value} OPENAI_API_KEY`"
        )
    check_credential_name(name)
    if action is Action.set:
        check_keepable(name)  # before anything is asked for
        source, said = credentials.set(name, _value(name)), "is kept in"
    else:
        source, said = credentials.remove(name), "was removed from"
    typer.echo(json.dumps({"name": name, "source": source}) if as_json else f"{name} {said} {PLACES[source]}")


def _value(name: str) -> str:
    """What a person types without its being shown, or what a program pipes in."""
    if sys.stdin.isatty():
        return str(typer.prompt(name, hide_input=True, err=True))
    return sys.stdin.read(MAX_VALUE_CHARS + 2)
