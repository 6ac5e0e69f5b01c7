"""What an agent may write into the library: no composition that asks for more than it holds or than was there before.

A pattern's agents get what it asks for when the operator starts it: whoever could write that down, could have it.
"""

from __future__ import annotations

import json
from typing import Final

from ksi_mcp.compositions.flatten import Flattener, Lookup
from ksi_mcp.compositions.model import Composition
from ksi_mcp.compositions.reading import Problems
from ksi_mcp.compositions.resolve import parts_of
from ksi_mcp.compositions.store import lookup_in
from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError, Refused
from ksi_mcp.permissions import ROUTING_LEVELS, Context

_CAPABILITY: Final = "the capability"
_SERVER: Final = "the MCP server"
_LEVEL: Final = "the routing level"
Right = tuple[str, str]


def refuse_beyond(tx: Tx, ctx: Context, composition: Composition, *before: Composition) -> None:
    """Check what an agent is about to write, against itself and the compositions it is made of.

    Raises:
        Refused: it asks for a capability, MCP server or routing level that neither has.
    """
    if ctx.actor.kind != "agent":
        return
    row = tx.one("compositions.rights_of", {"agent_id": ctx.actor.agent_id})
    held: set[Right] = set() if row is None else _held(row["capabilities"], row["routing_level"], row["settings"])
    lookup = lookup_in(tx)
    for each in before:
        held |= _asked(each, lookup)
    if beyond := sorted(_asked(composition, lookup) - held):
        said = ", ".join(f"{kind} {name!r}" for kind, name in beyond[:5])
        raise Refused(
            f"{composition.name!r} would ask for {said}, which {ctx.actor} does not hold",
            hint="leave it out, or let the operator write it",
        )


def _held(capabilities: str, level: str, settings: str) -> set[Right]:
    servers = json.loads(settings).get("mcp_servers") or ()
    return (
        {(_CAPABILITY, each) for each in json.loads(capabilities)}
        | {(_SERVER, each) for each in servers}
        | _levels(level)
    )


def _levels(level: object) -> set[Right]:
    """A level and all that reach less far."""
    upto = next((place for place, each in enumerate(ROUTING_LEVELS) if each == level), -1)
    return {(_LEVEL, each) for each in ROUTING_LEVELS[: upto + 1]}


def _asked(composition: Composition, lookup: Lookup) -> set[Right]:
    """What its agents ask for, in their own entries or in the profiles that they are made from."""
    found: set[Right] = set()
    waiting, seen = [composition], {composition.hash}
    while waiting:
        here = waiting.pop()
        try:
            here = Flattener(lookup, []).flatten(here)
        except KsiError:  # a circle is reported by whoever checks the document
            continue
        for agent in parts_of(here, Problems())[0]:
            found |= {(_CAPABILITY, each) for each in agent.capabilities or ()}
            found |= {(_SERVER, each) for each in agent.settings.get("mcp_servers") or ()}
            found |= _levels(agent.settings.get("routing_level"))
            profile = lookup(agent.composition) if agent.composition is not None else None
            if profile is not None and profile.hash not in seen:
                seen.add(profile.hash)
                waiting.append(profile)
    return found
