"""The addresses of resources: what is behind each, which tool shows it, and how to get what does not fit in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from ksi_mcp.tools.suggesting import Kind

SCHEME: Final = "ksi://"
MAX_URI_CHARS: Final = 2_000

_LISTED: Final = 100
_EVENTS: Final = 100
_MAX_REF_CHARS: Final = 200

Args = Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readable:
    """A resource, or all of one kind: the tool whose result it is, and how to get what does not fit in.

    `path` follows the scheme; with `variable` the reference to one of them follows the path. `probe`: the arguments
    that only find out whether there is such a thing, and what it is called (`key` of the result).
    """

    path: str
    name: str
    title: str
    description: str
    tool: str
    args: Args
    probe: Args
    rest: str
    variable: str | None = None
    kind: Kind | None = None
    key: str = ""

    @property
    def uri(self) -> str:
        """Its address, or the template of the addresses."""
        return f"{SCHEME}{self.path}/{{{self.variable}}}" if self.variable else f"{SCHEME}{self.path}"


FIXED: Final = (
    Readable(
        path="agents",
        name="agents",
        title="Living agents",
        description="Agents with status, model, capabilities and pending turns.",
        tool="agent_list",
        args=lambda _: {"limit": _LISTED},
        probe=lambda _: {"limit": 1},
        rest="agent_list with filter, limit and cursor",
    ),
    Readable(
        path="orchestrations",
        name="orchestrations",
        title="Runs",
        description="Runs of patterns, newest first.",
        tool="orchestration_list",
        args=lambda _: {"limit": _LISTED},
        probe=lambda _: {"limit": 1},
        rest="orchestration_list with state, limit and cursor",
    ),
    Readable(
        path="compositions",
        name="compositions",
        title="Compositions",
        description="Patterns, profiles, components and evaluations of the library.",
        tool="composition_discover",
        args=lambda _: {"limit": _LISTED},
        probe=lambda _: {"limit": 1},
        rest="composition_discover with type, text, limit and cursor",
    ),
    Readable(
        path="routing/graph",
        name="routing_graph",
        title="The routing table",
        description="Who sends what to whom: agents, events and patterns, joined by the rules.",
        tool="routing_graph",
        args=lambda _: {"format": "json"},
        probe=lambda _: {"format": "json", "limit": 1},
        rest="routing_graph of one orchestration or agent, routing_query_rules with cursor",
    ),
    Readable(
        path="usage",
        name="usage",
        title="Usage",
        description="What the last day cost by run, model and agent, and the account as it stands.",
        tool="usage_report",
        args=lambda _: {},
        probe=lambda _: {"limit": 1, "window_s": 1},
        rest="usage_report with by, since, limit and cursor",
    ),
)
MADE: Final = (
    Readable(
        path="agents",
        name="agent",
        title="An agent",
        description="An agent, by id or name, with its prompt, history, rules, budget and newest events.",
        tool="agent_get",
        args=lambda ref: {"agent": ref, "include": ["history", "rules", "budget", "events"]},
        probe=lambda ref: {"agent": ref},
        rest="agent_get with less in include, event_query(agent=...) with cursor",
        variable="id",
        kind="agent",
        key="agent",
    ),
    Readable(
        path="orchestrations",
        name="orchestration",
        title="A run",
        description="How far a run is: agents, queue, spend, newest events and next steps.",
        tool="orchestration_status",
        args=lambda ref: {"orchestration": ref},
        probe=lambda ref: {"orchestration": ref, "events": 0},
        rest="orchestration_status with fewer events, event_query(orchestration=...) with cursor",
        variable="id",
        kind="run",
        key="orchestration",
    ),
    Readable(
        path="compositions",
        name="composition",
        title="A composition",
        description="A composition whole, by name or name@hash, with what was measured of it.",
        tool="composition_get",
        args=lambda ref: {"name": ref},
        probe=lambda ref: {"name": ref},
        rest="composition_get",
        variable="name",
        kind="composition",
        key="name",
    ),
    Readable(
        path="rules",
        name="rule",
        title="A routing rule",
        description="A living rule: what it hears, on what condition, whom it tells.",
        tool="routing_query_rules",
        args=lambda ref: {"filter": {"rule_id": ref}, "limit": 1},
        probe=lambda ref: {"filter": {"rule_id": ref}, "limit": 1},
        rest="routing_query_rules",
        variable="id",
        kind="rule",
        key="rules",
    ),
    Readable(
        path="events",
        name="events",
        title="A chain of events",
        description="All that one cause led to, newest first.",
        tool="event_query",
        args=lambda ref: {"root": ref, "limit": _EVENTS},
        probe=lambda ref: {"root": ref, "limit": 1},
        rest="event_query(root=...) with limit and cursor",
        variable="root",
        kind="root",
        key="events",
    ),
)


def find(uri: str) -> tuple[Readable, str] | None:
    """What is behind an address, and which of its kind ('' for a fixed one); None if nothing can be."""
    if not uri.startswith(SCHEME) or len(uri) > MAX_URI_CHARS:
        return None
    path = uri.removeprefix(SCHEME)
    fixed = next((each for each in FIXED if each.path == path), None)
    if fixed is not None:
        return fixed, ""
    family, _, rest = path.partition("/")
    made = next((each for each in MADE if each.path == family), None)
    ref = unquote(rest)
    if made is None or "/" in rest or not 0 < len(ref) <= _MAX_REF_CHARS or not ref.isprintable():
        return None
    return (made, ref) if "/" not in ref else None
