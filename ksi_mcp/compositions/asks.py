"""What the agents of a composition ask for, and from whom it descends, as far as its document says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ksi_mcp.compositions.lineage import descents
from ksi_mcp.compositions.model import parse_reference
from ksi_mcp.errors import KsiError

Documents = Mapping[str, Mapping[str, Any]]

_MAX_LINKS: Final = 200
_PROFILE_KEYS: Final = ("composition", "profile", "component", "extends")


def capabilities_of(document: Mapping[str, Any], documents: Documents) -> frozenset[str]:
    """The capabilities that some agent of it asks for: in its own entry, else in the profile it is made from."""
    asked: set[str] = set()
    waiting: list[Mapping[str, Any]] = [document]
    seen: set[str] = set()
    while waiting and len(seen) < _MAX_LINKS:
        here = waiting.pop()
        own = _words(here.get("capabilities"))
        asked |= own
        linked = [*_references(here.get("extends")), *_references(here.get("mixins"))]
        for entry in _agents(here.get("agents")):
            own = _words(entry.get("capabilities"))
            asked |= own
            if not own:
                linked += [name for key in _PROFILE_KEYS for name in _references(entry.get(key))]
        for name in linked:
            if name not in seen and (found := documents.get(name)) is not None:
                seen.add(name)
                waiting.append(found)
    return frozenset(asked)


def ancestors_of(document: Mapping[str, Any], documents: Documents) -> frozenset[str]:
    """The names from which it descends: its parent's, its parent's parent's, and what was merged into them."""
    names: set[str] = set()
    waiting: list[Mapping[str, Any]] = [document]
    while waiting and len(names) < _MAX_LINKS:
        for descent in descents(waiting.pop()):
            if descent.name not in names:
                names.add(descent.name)
                if (found := documents.get(descent.name)) is not None:
                    waiting.append(found)
    return frozenset(names)


def roles_of(document: Mapping[str, Any]) -> int:
    """How many agents it has."""
    return len(_agents(document.get("agents")))


def required_variables(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The variables that have no default."""
    variables = document.get("variables")
    if not isinstance(variables, dict):
        return ()
    return tuple(
        str(name)
        for name, spec in variables.items()
        if isinstance(spec, dict) and "default" not in spec and spec.get("required") is not False
    )


def budget_of(document: Mapping[str, Any], key: str) -> float | None:
    """A figure of its own budget, such as `usd` or `turns`; None if it names none."""
    budget = document.get("budget")
    value = budget.get(key) if isinstance(budget, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _agents(agents: object) -> list[Mapping[str, Any]]:
    listed: Iterable[object] = (
        agents.values() if isinstance(agents, dict) else agents if isinstance(agents, list) else ()
    )
    return [entry if isinstance(entry, dict) else {} for entry in listed]


def _words(value: object) -> set[str]:
    entries = [value] if isinstance(value, str) else value if isinstance(value, list | dict) else []
    return {entry for entry in entries if isinstance(entry, str)}


def _references(value: object) -> list[str]:
    entries = value if isinstance(value, list) else [] if value is None else [value]
    names = []
    for entry in entries:
        try:
            names.append(parse_reference(entry)[0])
        except KsiError:
            continue
    return names
