"""Which resources an event changes. Pure, and quick: it is asked of every event while somebody is subscribed."""

from __future__ import annotations

from typing import Final

from ksi_mcp.events.model import Event

Key = tuple[str, str]
"""The path of a resource's address, and the reference to one of its kind ('' for a fixed one)."""

LIST: Final[Key] = ("resources/list", "")
"""The list of resources itself."""

_TABLE: Final = frozenset(
    f"routing:{what}" for what in ("rule_added", "rule_modified", "rule_deleted", "rule_expired", "rolled_back")
)
_RULES: Final = _TABLE | {"routing:damped"}
_LISTED: Final = frozenset(
    {
        "agent:spawned",
        "agent:terminated",
        "agent:failed",
        "agent:respawned",
        "orchestration:started",
        "orchestration:completed",
        "orchestration:failed",
        "orchestration:stopped",
        "composition:created",
        "composition:forked",
        "composition:merged",
        "composition:imported",
    }
)
_SPENDING: Final = frozenset({"budget", "completion"})
_AGENTS: Final = frozenset({"agent", "completion", "turn"})
_AGENT_KEYS: Final = ("agent", "old", "new", "from", "to")
_COMPOSITION_KEYS: Final = ("name", "target")


def touched(event: Event) -> set[Key]:
    """The resources that read differently after this event."""
    family = event.name.partition(":")[0]
    keys: set[Key] = {("events", event.root_id)}
    if event.agent_id is not None:
        keys.add(("agents", event.agent_id))
    if event.orchestration_id is not None:
        keys.add(("orchestrations", event.orchestration_id))
    if family in _AGENTS:
        keys.add(("agents", ""))
        keys |= _named(event, "agents", _AGENT_KEYS)
    if family in _SPENDING:
        keys.add(("usage", ""))
    if family in ("orchestration", "checkpoint"):
        keys.add(("orchestrations", ""))
        keys |= _named(event, "orchestrations", ("orchestration", "origin"))
    if family == "routing" and event.name in _RULES:
        keys |= _named(event, "rules", ("rule_id",))
        if event.name in _TABLE:
            keys.add(("routing/graph", ""))
    if family == "composition":
        keys.add(("compositions", ""))
        keys |= _named(event, "compositions", _COMPOSITION_KEYS)
        names = event.data.get("names")
        keys |= (
            {("compositions", name) for name in names if isinstance(name, str)} if isinstance(names, list) else set()
        )
    if event.name in _LISTED:
        keys.add(LIST)
    return keys


def of_all(event: Event) -> set[Key]:
    """Those of them that everybody sees: the library is one, whoever wrote into it, and global rules are for all."""
    rule = event.data.get("rule")
    if event.name in _RULES and isinstance(rule, dict) and rule.get("scope") == "global":
        return {key for key in touched(event) if key[0] in ("rules", "routing/graph")}
    return {key for key in touched(event) if key[0] == "compositions"}


def _named(event: Event, path: str, names: tuple[str, ...]) -> set[Key]:
    return {(path, value) for name in names if isinstance(value := event.data.get(name), str)}
