"""An agent: a durable conversation with a role."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from ksi_mcp.agents.policy import policy_of
from ksi_mcp.budgets.model import Limits
from ksi_mcp.db import Row
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.ids import AgentId
from ksi_mcp.permissions import AGENT_CAPABILITIES, ROUTING_LEVELS, RoutingLevel

AgentLife = Literal["active", "terminated", "failed"]
AgentStatus = Literal["idle", "busy", "suspended", "terminated", "failed"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MAX_SYSTEM_CHARS = 200_000
MAX_MESSAGE_CHARS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How an agent's turns are made. `context_messages` bounds what of its history a turn is rendered with."""

    max_tokens: int = 4096
    max_tool_rounds: int = 8
    effort: str | None = None
    timeout_s: float | None = None
    context_messages: int = 200
    context_tokens: int | None = None
    """At most so many tokens of history, as far as they can be bounded by counting bytes."""
    fallback: tuple[str, ...] = ()
    """Models asked instead while the first choice fails: `model` or `provider:model`."""
    cache: str | None = None
    """`exact`: a request that was answered before is not bought again; `semantic`: nor one that asks the same, also in
    other words, if the configuration has an embedder and says so."""
    mcp_servers: dict[str, list[str] | None] | None = None
    """Servers of the operator's configuration whose tools the agent gets, by name: which of them; None: all it may."""
    expect: dict[str, Any] | None = None
    """What every reply must be like."""
    supervision: str | dict[str, Any] | None = None
    """What happens when a turn is lost for good: none, retry, respawn, redistribute, escalate; or a mapping of
    `on_failure` (one of these) and `max` (how often). None: what the configuration says."""

    def __post_init__(self) -> None:
        for name, value, most in (
            ("max_tokens", self.max_tokens, 128_000),
            ("max_tool_rounds", self.max_tool_rounds, 100),
            ("context_messages", self.context_messages, 10_000),
        ):
            if not 1 <= value <= most:
                raise Invalid(f"{name} is {value}", hint=f"it goes from 1 to {most:,}")
        object.__setattr__(self, "fallback", tuple(self.fallback))  # JSON has lists only
        if self.supervision is not None:
            policy_of(self.supervision)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """What an agent is to be made of, before the server has said yes."""

    name: str
    system: str
    provider: str
    model: str
    capabilities: frozenset[str]
    settings: AgentSettings
    composition: str | None = None
    parent_id: str | None = None
    orchestration_id: str | None = None
    limits: Limits = Limits()  # noqa: RUF009  frozen
    routing_level: RoutingLevel | None = None
    """None: `children` if it may change routes at all, or what its parent has, if that is less."""
    subscription_level: int = 1
    error_level: int = -1
    wake: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """An agent as it stands. `n` is its place in the order of births."""

    n: int
    agent_id: AgentId
    name: str
    composition: str | None
    parent_id: str | None
    orchestration_id: str | None
    life: AgentLife
    provider: str
    model: str
    system: str
    capabilities: frozenset[str]
    settings: AgentSettings
    created_by: str
    created_at_ms: int
    last_active_ms: int
    pending: int
    """Turns of its session that have not ended."""
    suspended: bool = False
    """Its run is: it takes messages, and no turn of it starts."""
    draining: bool = False
    """It takes no more messages and ends with its last turn."""
    successor_id: str | None = None
    respawns: int = 0
    """How many stood before it in its place."""
    changes: int = 0
    """Of its conversation, ever."""
    routing_level: RoutingLevel = "none"
    """Whose routes it may change, if it holds `routing_control`."""
    subscription_level: int = 1
    """How far below it hears what others emit: 0 not at all, -1 all the way."""
    error_level: int = -1
    """The same for what fails."""
    wake: bool = False
    """What it hears so starts a turn."""
    hears: bool = False
    """It has heard something that it was not told yet."""

    @property
    def status(self) -> AgentStatus:
        """`idle` or `busy` while it lives, `suspended` while its run is."""
        if self.life != "active":
            return self.life
        if self.suspended:
            return "suspended"
        return "busy" if self.pending else "idle"


def check_agent_name(name: str) -> str:
    """A name that can stand in an id, a path and a prompt.

    Raises:
        Invalid: anything but letters, digits, `_`, `.` and `-`, or more than 64 of them.
    """
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"agent name {name[:80]!r} cannot be used",
            hint="use up to 64 letters, digits, '_', '.' or '-', beginning with a letter or digit",
        )
    return name


def check_capabilities(wanted: frozenset[str]) -> frozenset[str]:
    """Capabilities an agent can hold at all.

    Raises:
        Invalid: one is not known.
    """
    if unknown := sorted(wanted - set(AGENT_CAPABILITIES)):
        raise Invalid(
            f"unknown capabilities: {', '.join(name[:40] for name in unknown)}",
            hint="there are " + ", ".join(AGENT_CAPABILITIES),
        )
    return wanted


def check_level(wanted: RoutingLevel, held: RoutingLevel, *, holder: str) -> None:
    """The same for the reach of its routes.

    Raises:
        Refused: it is more than the holder has.
    """
    if ROUTING_LEVELS.index(wanted) > ROUTING_LEVELS.index(held):
        raise Refused(f"{holder} cannot grant routing_level {wanted!r}", hint=f"its own is {held!r}")


def check_within(wanted: frozenset[str], held: frozenset[str], *, holder: str) -> None:
    """A child can never hold more than its spawner.

    Raises:
        Refused: with the list of what was too much.
    """
    if too_much := sorted(wanted - held):
        raise Refused(
            f"{holder} cannot grant what it does not hold: {', '.join(too_much)}",
            hint=f"it holds {', '.join(sorted(held)) or 'nothing'}",
        )


def encode_settings(settings: AgentSettings) -> str:
    """Settings as stored."""
    return json.dumps(asdict(settings))


def agent_of(row: Row) -> Agent:
    """The record behind a row of `agent` joined with its session."""
    return Agent(
        n=row["n"],
        agent_id=AgentId(row["agent_id"]),
        name=row["name"],
        composition=row["composition"],
        parent_id=row["parent_id"],
        orchestration_id=row["orchestration_id"],
        life=row["status"],
        provider=row["provider"],
        model=row["model"],
        system=row["system"],
        capabilities=_capabilities(row["capabilities"]),
        settings=_settings(row["settings"]),
        created_by=row["created_by"],
        created_at_ms=row["created_at_ms"],
        last_active_ms=row["last_active_ms"],
        pending=row["pending"],
        suspended=bool(row["suspended"]),
        draining=bool(row["draining"]),
        successor_id=row["successor_id"],
        respawns=row["respawns"],
        changes=row["changes"],
        routing_level=row["routing_level"],
        subscription_level=row["subscription_level"],
        error_level=row["error_level"],
        wake=bool(row["wake"]),
        hears=bool(row["hears"]),
    )


# Many agents are made alike, and each claim reads one.
@lru_cache(maxsize=256)
def _capabilities(stored: str) -> frozenset[str]:
    return frozenset(json.loads(stored))


@lru_cache(maxsize=256)
def _settings(stored: str) -> AgentSettings:
    return AgentSettings(**json.loads(stored))
