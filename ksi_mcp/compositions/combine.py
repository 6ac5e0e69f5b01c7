"""A pattern of two: the agents, routing, variables, budgets, includes and strategies of both. Pure.

Roles that both have, and mean differently by, get the second's name in front; what else both say differently is
refused (variables) or taken from the first (everything that the library does not interpret). Every such choice is
told. A strategy is prose for a model and is never parsed: where roles were renamed, a line above it says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.compositions.drafts import role_entries
from ksi_mcp.compositions.flatten import names_under
from ksi_mcp.compositions.model import DEFAULT_VERSION, Composition, shorten, text_of
from ksi_mcp.compositions.reading import Problems
from ksi_mcp.compositions.routes import expand_roles, is_relative
from ksi_mcp.errors import Conflict, Invalid

_AMOUNTS: Final = ("usd", "tokens", "turns", "seconds")
# What is combined by a rule of its own, or belongs to one composition alone.
_HANDLED: Final = frozenset(
    {
        "name", "type", "component_type", "version", "description", "author", "tags", "lineage", "performance",
        "learnings", "agents", "routing", "variables", "budget", "includes", "orchestration_logic",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The new document, and what was decided on the way."""

    document: dict[str, Any]
    notes: tuple[str, ...]


def combine(a: Composition, b: Composition, name: str, *, originals: tuple[Composition, Composition]) -> Combined:
    """A pattern `name` of two flat ones. `originals` are what they were before their parents were merged in.

    Raises:
        Invalid: one is no orchestration.
        Conflict: both declare a variable in different ways.
    """
    for each in (a, b):
        if each.type != "orchestration":
            raise Invalid(f"{each.name!r} is of type {each.type!r}", hint="only orchestrations can be combined")
    notes: list[str] = []
    agents_a, agents_b = _agents(a), _agents(b)
    renamed = _renamed(agents_a, agents_b, b.name, notes)
    agents = {**agents_a, **{renamed.get(role, role): body for role, body in agents_b.items()}}
    routing = [*_rules(a, agents_a, {}), *_rules(b, agents_b, renamed)]
    document: dict[str, Any] = {
        "name": name,
        "type": "orchestration",
        "version": DEFAULT_VERSION,
        "description": f"{a.name} and {b.name} in one pattern.",
        "tags": list(dict.fromkeys([*a.tags, *b.tags])),
    }
    for key in (key for key in [*a.document, *b.document] if key not in _HANDLED and key not in document):
        document[key] = _either(key, a, b, notes)
    if variables := _variables(a, b):
        document["variables"] = variables
    document["agents"] = agents
    document["routing"] = [rule for n, rule in enumerate(routing) if rule not in routing[:n]]
    if includes := list(dict.fromkeys([*names_under(a.document, "includes"), *names_under(b.document, "includes")])):
        document["includes"] = includes
    if budget := _budget(a, b, notes):
        document["budget"] = budget
    document["orchestration_logic"] = {
        "description": f"First as {a.name}, then as {b.name}.",
        "strategy": "\n\n".join([_part(a, {}), _part(b, renamed)]) + "\n",
    }
    first, second = originals
    document["lineage"] = {
        "parent": f"{first.name}@{first.version}",
        "parent_hash": first.hash,
        "combined_with": f"{second.name}@{second.version}",
        "combined_hash": second.hash,
        "fork_reason": f"combined {first.name} and {second.name}",
        "improvements": [],
    }
    return Combined(document=document, notes=tuple(notes))


def _agents(flat: Composition) -> dict[str, Any]:
    """The bodies of the agents by role, whether they were written as a mapping or as a list."""
    problems = Problems()
    found: dict[str, Any] = {}
    for role, body, _path in role_entries(flat.document.get("agents"), problems):
        named = next((key for key in ("role", "id", "name") if isinstance(body, dict) and key in body), None)
        in_list = isinstance(flat.document["agents"], list)
        found[role] = {key: item for key, item in body.items() if key != named} if in_list and named else body
    if problems.found:
        raise Invalid(f"{flat.name!r}: {problems.found[0]}")
    return found


def _renamed(agents_a: dict[str, Any], agents_b: dict[str, Any], prefix: str, notes: list[str]) -> dict[str, str]:
    """New names for roles of the second that the first has with another meaning."""
    renamed: dict[str, str] = {}
    for role in agents_a.keys() & agents_b.keys():
        if agents_a[role] == agents_b[role]:
            continue
        new, n = f"{prefix}_{role}"[:64], 2
        while new in agents_a or new in agents_b or new in renamed.values():
            new, n = f"{prefix}_{role}"[:60] + f"_{n}", n + 1
        renamed[role] = new
        notes.append(f"the role {role!r} of {prefix!r} is {new!r} here")
    notes.sort()
    return renamed


def _rules(flat: Composition, agents: dict[str, Any], renamed: dict[str, str]) -> list[Any]:
    """The static rules, with `*` and patterns of roles spelled out: they speak of the own pattern's roles only."""
    routing = flat.document.get("routing")
    if isinstance(routing, dict):
        routing = routing.get("rules", routing.get("static_rules"))
    found: list[Any] = []
    for rule in routing if isinstance(routing, list) else []:
        if not isinstance(rule, dict):
            found.append(rule)
            continue
        sources: list[Any] = [rule.get("from")]
        to = rule.get("to")
        if (sources[0] not in (None, "*") or is_relative(to)) and "{" not in str(sources[0]):
            sources = expand_roles("*" if sources[0] is None else sources[0], tuple(agents)) or sources
        for source in sources:
            changed = dict(rule)
            if source is not None:
                changed["from"] = renamed.get(source, source)
            if to is not None and "{" not in str(to):
                named = [renamed.get(word, word) for word in expand_roles(to, tuple(agents), source=source)]
                changed["to"] = named[0] if len(named) == 1 else named
            found.append(changed)
    return found


def _variables(a: Composition, b: Composition) -> dict[str, Any]:
    one, other = (_declared(flat) for flat in (a, b))
    clashes = sorted(name for name in one.keys() & other.keys() if one[name] != other[name])
    if clashes:
        names = ", ".join(shorten(name) for name in clashes[:12])
        raise Conflict(
            f"{a.name!r} and {b.name!r} declare in different ways: {names}", hint="rename them in a fork of one first"
        )
    return {**one, **other}


def _declared(flat: Composition) -> dict[str, Any]:
    variables = flat.document.get("variables")
    if isinstance(variables, list):
        variables = {
            (item.get("name") if isinstance(item, dict) else item): (item if isinstance(item, dict) else None)
            for item in variables
        }
    return {str(name): spec for name, spec in variables.items()} if isinstance(variables, dict) else {}


def _budget(a: Composition, b: Composition, notes: list[str]) -> Any:
    one, other = a.document.get("budget"), b.document.get("budget")
    if not (isinstance(one, dict) and isinstance(other, dict)):
        if one is not None and other is not None and one != other:
            notes.append(f"the budget is that of {a.name!r}")
        return one if one is not None else other
    summed = {**other, **one}
    for key in _AMOUNTS:
        amounts = [budget[key] for budget in (one, other) if type(budget.get(key)) in (int, float)]
        if len(amounts) == 2:  # noqa: PLR2004 - both say it
            summed[key] = sum(amounts)
        elif amounts:
            notes.append(f"only one of the two limits {key}; here that is for both")
    return summed


def _either(key: str, a: Composition, b: Composition, notes: list[str]) -> Any:
    if key in a.document and key in b.document and a.document[key] != b.document[key]:
        notes.append(f"{shorten(key)!r} is that of {a.name!r}")
    return a.document[key] if key in a.document else b.document[key]


def _part(flat: Composition, renamed: dict[str, str]) -> str:
    strategy = text_of({"orchestration_logic": flat.document.get("orchestration_logic")})
    names = "".join(f"\nIn this part, {role} is the agent {new}." for role, new in sorted(renamed.items()))
    return "\n\n".join(part for part in (f"# {flat.name}", names.strip(), strategy) if part)
