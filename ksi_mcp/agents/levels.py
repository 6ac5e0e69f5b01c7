"""Whose routes an agent may change: never more than whoever made it, and never more than its parent."""

from __future__ import annotations

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import Agent, check_level
from ksi_mcp.agents.reach import Grants
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import Context, RoutingLevel, lower_level


def allowed_level(
    tx: Tx, ctx: Context, wanted: RoutingLevel | None, *, capabilities: frozenset[str], parent: Agent | None
) -> RoutingLevel:
    """The level an agent with these capabilities gets: as asked, or (None) `children`, cut to what is above it.

    Raises:
        Refused: it is more than the actor, or the agent's parent, has.
        Invalid: the agent may not change routes at all.
    """
    if "routing_control" not in capabilities:
        if wanted not in (None, "none"):
            raise Invalid(
                f"routing_level {wanted!r} needs the capability routing_control",
                hint="add it to the capabilities, or leave routing_level out",
            )
        return "none"
    above = {} if parent is None else {f"parent {parent.name!r}": parent.routing_level}
    if ctx.actor.kind == "agent":
        above[str(ctx.actor)] = reach.grants(tx, ctx).routing_level
    level = wanted or "children"
    for holder, held in above.items():
        if wanted is None:
            level = lower_level(level, held)
        check_level(level, held, holder=holder)
    return level


def level_in_new_run(
    held: Grants, wanted: RoutingLevel | None, *, capabilities: frozenset[str], starter: str
) -> RoutingLevel | None:
    """The same for an agent of a run that an actor starts or forks.

    The whole run descends from whoever starts it: its agents may be given all of it by who may route its own children.

    Raises:
        Refused: it is more than the starter can grant.
    """
    if "routing_control" not in capabilities:
        return wanted
    most: RoutingLevel = "orchestration" if held.routing_level == "children" else held.routing_level
    if wanted is None:
        return lower_level("children", most)
    check_level(wanted, most, holder=starter)
    return wanted
