"""Who acts, what they may do, and the server-made context that says so.

Default is refuse: an agent holds exactly the capabilities it was spawned with, and a tool names
the one capability it needs. The operator (the MCP client or the command line on this machine)
holds them all. A reader sees what the operator sees, and can call nothing that changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ksi_mcp.ids import AgentId, OrchestrationId, RootId, TurnId, WorkerId, new_id

Capability = Literal[
    "base",
    "messaging",
    "spawn_agents",
    "routing_control",
    "decisions",
    "compositions",
    "orchestration",
    "operator",
]
"""What an actor may do.

`base` look around and emit events · `messaging` send to and wait for agents · `spawn_agents` make
and end children · `routing_control` change routing rules · `decisions` track decisions ·
`compositions` write the library · `orchestration` start, control and complete runs · `operator`
what only the person at the machine may do (never granted to an agent).
"""

AGENT_CAPABILITIES: tuple[Capability, ...] = (
    "base",
    "messaging",
    "spawn_agents",
    "routing_control",
    "decisions",
    "compositions",
    "orchestration",
)
"""Every capability an agent can be given, in the order in which they are shown."""

ActorKind = Literal["operator", "reader", "agent", "system"]

RoutingLevel = Literal["none", "self", "children", "orchestration", "global"]
"""Whose routes an agent may change: nobody's, its own, also those of all that descend from it, of its run, all."""
ROUTING_LEVELS: tuple[RoutingLevel, ...] = ("none", "self", "children", "orchestration", "global")
"""In the order in which they reach further."""
MAX_SUBSCRIPTION_LEVEL = 20
"""The deepest level at which an agent hears others; beyond that there is only -1, all the way."""


def lower_level(one: RoutingLevel, other: RoutingLevel) -> RoutingLevel:
    """The one of two levels that reaches less far."""
    return min(one, other, key=ROUTING_LEVELS.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who does something. Decided by the server from the connection, never from an argument."""

    kind: ActorKind
    agent_id: AgentId | None = None

    def __str__(self) -> str:
        return f"agent:{self.agent_id}" if self.kind == "agent" else self.kind


OPERATOR = Actor(kind="operator")
READER = Actor(kind="reader")
"""Whoever comes with a read-only token."""
SYSTEM = Actor(kind="system")


def agent_actor(agent_id: str) -> Actor:
    """The actor that an agent is in its own turn."""
    return Actor(kind="agent", agent_id=AgentId(agent_id))


def actor_of(source: str) -> Actor:
    """The actor behind a stored `source` string such as `agent:a_7f3kq0m2xd`."""
    if source.startswith("agent:"):
        return agent_actor(source.removeprefix("agent:"))
    return {"operator": OPERATOR, "reader": READER}.get(source, SYSTEM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The place in a turn that a tool call fills: its effect and result commit together here."""

    turn_id: TurnId
    attempt: int
    owner: WorkerId
    round: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Who acts and because of what; made by the server for each call.

    `hops` counts deliveries since the last turn, `depth` turns since the first cause.
    """

    actor: Actor
    root_id: RootId
    cause_id: str | None = None
    hops: int = 0
    depth: int = 0
    orchestration_id: OrchestrationId | None = None
    slot: Slot | None = None


def within(ctx: Context, orchestration_id: str | None) -> Context:
    """The same call, as part of a run."""
    return replace(ctx, orchestration_id=None if orchestration_id is None else OrchestrationId(orchestration_id))


def fresh_context(actor: Actor, *, orchestration_id: OrchestrationId | None = None) -> Context:
    """A context with no cause before it: a client's call, a start-up, a timer."""
    return Context(actor=actor, root_id=RootId(new_id("x")), orchestration_id=orchestration_id)


def system_context(like: Context) -> Context:
    """The same chain of causes, with the server itself as the actor."""
    return replace(like, actor=SYSTEM, slot=None)
