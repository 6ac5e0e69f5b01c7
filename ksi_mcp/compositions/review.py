"""What a bundle would bring into a library: what each composition is, asks for, and would be in the way of. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ksi_mcp import yamlio
from ksi_mcp.compositions.drafts import AgentDraft
from ksi_mcp.compositions.files import MAX_FILE_BYTES
from ksi_mcp.compositions.flatten import Flattener, Lookup
from ksi_mcp.compositions.manifest import Bundle, Item
from ksi_mcp.compositions.markdown import text_for as text_with
from ksi_mcp.compositions.model import Composition, check_name, join_problems, parse_composition, shorten
from ksi_mcp.compositions.reading import Problems
from ksi_mcp.compositions.references import references_of, renamed
from ksi_mcp.compositions.resolve import parts_of
from ksi_mcp.compositions.store import Indexed
from ksi_mcp.errors import Invalid, KsiError
from ksi_mcp.permissions import ROUTING_LEVELS, RoutingLevel

Standing = Literal["new", "identical", "differs"]
"""Against the library: no such name; the very same behaviour; the name is taken by something else."""

MAX_DIFFERENCES: Final = 30
MAX_PREFIX_CHARS: Final = 40
_TRUST: Final = ("capabilities", "routing_level", "mcp_servers")

Look = Callable[[str], Indexed | None]
"""The composition that has a name, in its highest layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asks:
    """What a composition would like to have; it gets what the operator's configuration grants, at most."""

    capabilities: tuple[str, ...] = ()
    routing_level: RoutingLevel | None = None
    mcp_servers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    budget: dict[str, Any] | None = None
    rules: int = 0

    def as_document(self) -> dict[str, Any]:
        """What it asks for and nothing else."""
        found: dict[str, Any] = {
            "capabilities": list(self.capabilities),
            "routing_level": self.routing_level,
            "mcp_servers": list(self.mcp_servers),
            "models": list(self.models),
            "budget": self.budget,
            "rules": self.rules,
        }
        return {key: value for key, value in found.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """One composition of a bundle as it would stand in the library, under the name it would get there."""

    item: Item
    composition: Composition
    standing: Standing
    asks: Asks
    layer: str | None = None
    """Of the composition that has the name."""
    differences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether its name or a reference in it is another than in the bundle."""
        return self.composition.hash != self.item.composition.hash


def review(
    bundle: Bundle, look: Look, *, prefix: str | None = None, only: Sequence[str] | None = None
) -> list[Reviewed]:
    """Every composition that the bundle would place, what it needs before it.

    With `prefix`, one whose name is taken by another gets the name prefixed, and what refers to it follows;
    none but those of `only`, if that is given.

    Raises:
        Invalid: one of them asks for what no composition may, or the prefix is none.
    """
    if prefix is not None:
        check_name(f"{prefix}x", what="the prefix")
        if len(prefix) > MAX_PREFIX_CHARS:
            raise Invalid(f"the prefix has more than {MAX_PREFIX_CHARS} characters")
    names: dict[str, str] = {}
    found: list[Reviewed] = []
    done: dict[str, Composition] = {}
    inside = {item.entry.name for item in bundle.placed()} | {name for name, _hash in bundle.requires}
    for item in _needed_first(list(bundle.placed())):
        document = renamed(item.composition.document, names)
        composition = _parsed(item, document)
        standing, there = _standing(composition, look)
        if standing == "differs" and prefix is not None and (only is None or item.entry.name in only):
            names[item.entry.name] = other = check_name(f"{prefix}{item.entry.name}", what="the prefixed name")
            composition = _parsed(item, {**renamed(document, names), "name": other})
            standing, there = _standing(composition, look)
        if composition.name in done:
            raise Invalid(
                f"two compositions of the bundle would be named {composition.name!r}", hint="give another prefix"
            )
        asks, warnings = asks_of(composition)
        done[composition.name] = composition
        asks = _with_inherited(asks, composition, lambda name: done.get(name) or _found(look, name))
        for name, version in references_of(item.composition.document):
            if name not in inside and look(name) is None:
                shown = name if version is None else f"{name}@{version}"
                warnings.append(f"it refers to {shown!r}, which is neither in the bundle nor in the library")
        found.append(
            Reviewed(
                item=item,
                composition=composition,
                standing=standing,
                asks=asks,
                layer=there.layer if there is not None else None,
                differences=_differences(there, composition) if there is not None and standing == "differs" else (),
                warnings=tuple(warnings),
            )
        )
    return found


def asks_of(composition: Composition) -> tuple[Asks, list[str]]:
    """What a composition asks for, and what else is wrong in it (it is reported when it is used).

    Raises:
        Invalid: it asks for something that cannot be asked for.
    """
    problems = Problems()
    agents, rules, budget = parts_of(composition, problems)
    grabs = [each for each in problems.found if any(word in each.path.split(".") for word in _TRUST)]
    if grabs:
        raise Invalid(f"{composition.name!r} asks for what no composition may have: {join_problems(grabs)}")
    wishes: dict[str, Any] = {}
    for wish in (*(agent.budget for agent in agents), budget):
        for key in ("usd", "tokens", "turns", "seconds"):
            if (value := getattr(wish, key)) is not None:
                wishes[key] = max(value, wishes.get(key, 0))
    asks = Asks(
        capabilities=tuple(sorted({name for agent in agents for name in agent.capabilities or ()})),
        routing_level=max((_level(agent) for agent in agents), key=ROUTING_LEVELS.index, default="none"),
        mcp_servers=tuple(sorted({name for agent in agents for name in agent.settings.get("mcp_servers") or ()})),
        models=tuple(sorted({agent.model for agent in agents if agent.model})),
        budget=wishes or None,
        rules=len(rules),
    )
    if asks.routing_level == "none":
        asks = replace(asks, routing_level=None)
    return asks, [str(each) for each in problems.found]


def text_for(reviewed: Reviewed, origin: dict[str, Any]) -> str:
    """The file to write: the bundle's own text with `lineage.imported_from` in it, and with other names where it must.

    That key is no part of the behaviour, so the hash stays what it was.
    """
    document = dict(reviewed.composition.document)
    lineage = document.get("lineage")
    document["lineage"] = {**(lineage if isinstance(lineage, dict) else {}), "imported_from": origin}
    if not reviewed.changed and not lineage:
        text = f"{reviewed.item.text.rstrip()}\n{yamlio.dump({'lineage': document['lineage']})}"
        with contextlib.suppress(Invalid):  # written in a way that takes no line at its end
            if yamlio.safe_load(text, what="the file") == document:
                return text
    return text_with(reviewed.item.text, "bundle.yaml", document, max_bytes=MAX_FILE_BYTES)


def _with_inherited(own: Asks, composition: Composition, lookup: Lookup) -> Asks:
    """What it asks for together with what it extends and mixes in, as far as that can be had."""
    try:
        return asks_of(Flattener(lookup, []).flatten(composition))[0]
    except KsiError:
        return own


def _found(look: Look, reference: str) -> Composition | None:
    there = look(reference)
    return there.composition if there is not None else None


def _parsed(item: Item, document: dict[str, Any]) -> Composition:
    if document == item.composition.document:
        return item.composition
    return parse_composition(document, what=f"{item.entry.path!r} in the bundle")


def _standing(composition: Composition, look: Look) -> tuple[Standing, Indexed | None]:
    there = look(composition.name)
    if there is None:
        return "new", None
    return ("identical" if there.composition.hash == composition.hash else "differs"), there


def _level(agent: AgentDraft) -> RoutingLevel:
    asked = agent.settings.get("routing_level")
    return next((level for level in ROUTING_LEVELS if level == asked), "none")


def _needed_first(items: list[Item]) -> list[Item]:
    """What is referred to before what refers to it; within a circle, as they come."""
    by_name = {item.entry.name: item for item in items}
    done: dict[str, Item] = {}
    open_names: set[str] = set()
    for start in items:
        stack: list[tuple[Item, bool]] = [(start, False)]
        while stack:
            item, ready = stack.pop()
            name = item.entry.name
            if ready:
                done[name] = item
            elif name not in done and name not in open_names:
                open_names.add(name)
                stack.append((item, True))
                needed = [each for each, _version in references_of(item.composition.document)]
                stack += [(by_name[each], False) for each in needed if each in by_name]
    return list(done.values())


def _differences(there: Indexed, composition: Composition) -> tuple[str, ...]:
    found: list[str] = []
    _compare(there.composition.document, composition.document, "", found)
    if len(found) > MAX_DIFFERENCES:
        found[MAX_DIFFERENCES:] = [f"and {len(found) - MAX_DIFFERENCES} more"]
    return tuple(found)


def _compare(here: Any, bundle: Any, path: str, found: list[str]) -> None:
    if isinstance(here, dict) and isinstance(bundle, dict):
        for key in dict.fromkeys([*here, *bundle]):
            if not path and key == "lineage":
                continue
            where = f"{path}.{key}" if path else str(key)
            if key not in bundle:
                found.append(f"{shorten(where)}: only here")
            elif key not in here:
                found.append(f"{shorten(where)}: only in the bundle ({_shown(bundle[key])})")
            else:
                _compare(here[key], bundle[key], where, found)
    elif here != bundle:
        found.append(f"{shorten(path)}: here {_shown(here)}, in the bundle {_shown(bundle)}")


def _shown(value: Any) -> str:
    return repr(shorten(value)) if isinstance(value, str) else shorten(str(value))
