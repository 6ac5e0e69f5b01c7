"""Where a rule delivers: one place or several, to all of them or to one that is chosen each time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.events.patterns import check_event_name, is_reserved, shorten

AGENT: Final = "agent:"
MAX_TARGETS: Final = 50

TargetKind = Literal["agent", "event"]
Mode = Literal["all", "round_robin", "least_busy", "first_idle"]
MODES: Final[tuple[Mode, ...]] = ("all", "round_robin", "least_busy", "first_idle")
_BY_LOAD: Final = frozenset({"least_busy", "first_idle"})
_AGENT_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place: an event's name, or an agent by its id (in a draft: id or name)."""

    kind: TargetKind
    name: str

    def __str__(self) -> str:
        return AGENT + self.name if self.kind == "agent" else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The places of a rule. `all`: each of them; else one: in turn, with the least to do, the first with nothing."""

    mode: Mode
    each: tuple[Target, ...]

    def __iter__(self) -> Iterator[Target]:
        return iter(self.each)

    def __str__(self) -> str:
        listed = ", ".join(str(target) for target in self.each)
        if self.mode != "all":
            return f"{self.mode}({listed})"
        return listed

    @property
    def shown(self) -> str | list[str] | dict[str, list[str]]:
        """As it is written and stored: a text, a list for all of them, or `{mode: list}`."""
        names = [str(target) for target in self.each]
        if self.mode != "all":
            return {self.mode: names}
        return names[0] if len(names) == 1 else names

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents among them."""
        return tuple(target.name for target in self.each if target.kind == "agent")

    @property
    def events(self) -> tuple[str, ...]:
        """The events among them."""
        return tuple(target.name for target in self.each if target.kind == "event")

    def renamed(self, rename: Callable[[Target], Target]) -> Targets:
        """The same with other names; what is the same then is there once."""
        return Targets(mode=self.mode, each=tuple(dict.fromkeys(rename(target) for target in self.each)))


def targets_of(value: object) -> Targets:
    """Read what a rule is to reach: a name, a list, or `{mode: list}`.

    Raises:
        Invalid: it is none of these, empty, or too long; or agents are to be chosen by load among events.
        Refused: it is the name of an event that only the server emits.
    """
    if isinstance(value, Targets):
        return value
    if isinstance(value, Target):
        return Targets(mode="all", each=(value,))
    mode: Mode = "all"
    names: object = value
    if isinstance(value, dict):
        (given, names), *others = value.items() or [("nothing", None)]
        if others or given not in MODES:
            raise Invalid(f"the target {shorten(value)} is none", hint=f"an object has one key of {', '.join(MODES)}")
        mode = given
        if not isinstance(names, list | tuple):
            names = [names]
    if not isinstance(names, list | tuple):
        names = [names]
    if not 1 <= len(names) <= MAX_TARGETS:
        raise Invalid(f"the rule has {len(names)} targets", hint=f"1 to {MAX_TARGETS}")
    each = tuple(dict.fromkeys(target_of(name) for name in names))
    if mode in _BY_LOAD and any(target.kind == "event" for target in each):
        raise Invalid(f"{mode} chooses among agents, and {shorten(names)} has events", hint="write agent:<id or name>")
    return Targets(mode=mode, each=each)


def target_of(value: object) -> Target:
    """Read one place.

    Raises:
        Invalid: it is not one event name or agent.
        Refused: it is the name of an event that only the server emits.
    """
    if isinstance(value, Target):
        return value
    if not isinstance(value, str):
        raise Invalid(f"a target is of type {type(value).__name__}", hint="an event name, or agent:<id or name>")
    if value.startswith(AGENT):
        name = value.removeprefix(AGENT)
        if not _AGENT_REF.match(name):
            raise Invalid(f"the target {shorten(value)} names no agent", hint="write agent:<id or name>")
        return Target(kind="agent", name=name)
    name = check_event_name(value)
    if is_reserved(name):
        raise Refused(
            f"a rule cannot make the event {shorten(name)}: only the server emits it",
            hint="choose another first segment, or agent:<id> to reach an agent",
        )
    return Target(kind="event", name=name)


@lru_cache(maxsize=4_096)
def read_targets(text: str) -> Targets:
    """The targets of a row: many rules have the same few, and a list of rules is read often."""
    return stored_targets(json.loads(text))


def stored_targets(value: Any) -> Targets:
    """The targets behind their stored form; they were checked when they came in."""
    mode: Mode = "all"
    names = value
    if isinstance(value, dict):
        ((mode, names),) = value.items()
    return Targets(mode=mode, each=tuple(_stored(name) for name in ([names] if isinstance(names, str) else names)))


def _stored(text: str) -> Target:
    if text.startswith(AGENT):
        return Target(kind="agent", name=text.removeprefix(AGENT))
    return Target(kind="event", name=text)
