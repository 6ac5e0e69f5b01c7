"""The static routing of a pattern: rules between roles, in the several ways in which people write them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from ksi_mcp.compositions.model import shorten
from ksi_mcp.compositions.reading import Problems, kind_of, positive
from ksi_mcp.errors import Invalid
from ksi_mcp.events.patterns import check_pattern

MAX_RULES: Final = 500
MAX_PRIORITY: Final = 10_000

_SENDER: Final = frozenset({"!self", "!sender", "!source"})
_PLAIN_ACTIONS: Final = frozenset({"forward", "route", "send", "deliver", "notify", "emit", "message"})
"""What a rule does anyway."""
_MEMBER: Final = re.compile(
    r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|\.includes\(\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[\w.]+)\s*\)"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticRule:
    """A rule that comes with a pattern. `source` and plain `targets` are roles; other targets are event names."""

    pattern: str
    targets: tuple[str, ...]
    source: str | None = None
    condition: str | None = None
    mapping: Any = None
    priority: int | None = None
    ttl_s: float | None = None


def rules_of(document: dict[str, Any], roles: tuple[str, ...], problems: Problems) -> tuple[StaticRule, ...]:
    """The static routing of a pattern.

    `to` is a role, an event, or a list of them; `*` and `!self` stand for every role but the sender, `!judge` for
    every role but that and the sender, and `stage_*` for the roles that it fits. `from` takes the same. `then` and
    `action` are other words for what a rule does: see `_unfolded`.
    """
    routing, where = document.get("routing"), "routing"
    if isinstance(routing, dict):
        where = next((f"routing.{key}" for key in ("rules", "static_rules") if key in routing), "routing")
        routing = routing.get("rules", routing.get("static_rules"))
    if routing is None:
        return ()
    if not isinstance(routing, list):
        problems.add(where, f"must be a list of rules, not {kind_of(routing)}")
        return ()
    if len(routing) > MAX_RULES:
        problems.add(where, f"{len(routing)} rules, the limit is {MAX_RULES}")
        return ()
    found = [rule for index, entry in enumerate(routing) for rule in _rules(entry, f"{where}.{index}", roles, problems)]
    if len(found) > MAX_RULES:
        problems.add(where, f"{len(found)} rules once roles are spelled out, the limit is {MAX_RULES}")
        return ()
    return tuple(found)


def expand_roles(value: object, roles: tuple[str, ...], *, source: object = None) -> list[str]:
    """The names that a word or list of words stands for, each once; a word that fits no role is left out."""
    others = [role for role in roles if role != source]
    names: list[str] = []
    for word in value if isinstance(value, list) else [value]:
        if not isinstance(word, str):
            continue
        if word == "*" or word in _SENDER:
            names += others
        elif word.startswith("!"):
            names += [role for role in others if role != word[1:]]
        elif ":" not in word and "{" not in word and re.search(r"[*?\[]", word):
            names += [role for role in others if fnmatchcase(role, word)]
        else:
            names.append(word)
    return list(dict.fromkeys(names))


def is_relative(to: object) -> bool:
    """Whether whom a rule reaches depends on who sent: `!self` and its like."""
    return any(isinstance(word, str) and word in _SENDER for word in (to if isinstance(to, list) else [to]))


def _rules(entry: object, path: str, roles: tuple[str, ...], problems: Problems) -> Iterator[StaticRule]:
    if not isinstance(entry, dict):
        problems.add(path, f"must be a mapping with from, to and pattern, not {kind_of(entry)}")
        return
    before = len(problems.found)
    entry = _unfolded(entry, path, problems)
    sources = _sources(entry.get("from"), f"{path}.from", roles, problems)
    to = entry.get("to")
    if sources == [None] and is_relative(to):
        sources = list(roles) or [None]  # who sends decides who gets it: a rule each
    pattern = entry.get("pattern", "*")
    try:
        check_pattern(pattern)
    except Invalid as invalid:
        problems.add(f"{path}.pattern", invalid.message)
    condition = problems.text(entry.get("condition"), f"{path}.condition")
    mapping = entry.get("mapping")
    if mapping is not None and not isinstance(mapping, str | dict):
        problems.add(f"{path}.mapping", f"must be a mapping or '{{{{$}}}}', not {kind_of(mapping)}")
    priority = entry.get("priority")
    if priority is not None and not (type(priority) is int and 0 <= priority <= MAX_PRIORITY):
        problems.add(f"{path}.priority", f"must be a whole number from 0 to {MAX_PRIORITY}")
    ttl = entry.get("ttl_s", entry.get("ttl"))
    if ttl is not None and positive(ttl) is None:
        problems.add(f"{path}.ttl", "must be a number of seconds above 0")
    for source in sources:
        targets = _targets(to, f"{path}.to", source, roles, problems)
        if len(problems.found) > before:
            return
        yield StaticRule(
            pattern=str(pattern),
            targets=targets,
            source=source,
            condition=None if condition is None else _spelled(condition),
            mapping=mapping,
            priority=priority,
            ttl_s=positive(ttl),
        )


def _unfolded(entry: dict[str, Any], path: str, problems: Problems) -> dict[str, Any]:
    """`then` and `action` as the keys that they stand for; what the rule itself says goes before.

    Both may be a mapping with more of the rule, or name the target. As words, `forward` and its like say what a rule
    does anyway, and `broadcast` means all the other roles.
    """
    unfolded = dict(entry)
    for key in ("then", "action"):
        wish = unfolded.pop(key, None)
        if isinstance(wish, dict):
            unfolded = {**_unfolded(wish, f"{path}.{key}", problems), **unfolded}
        elif wish is None or (key == "action" and wish in _PLAIN_ACTIONS):
            continue
        elif key == "action" and wish == "broadcast":
            unfolded.setdefault("to", "*")
        elif isinstance(wish, str | list) and (key == "then" or ":" in str(wish)):
            unfolded.setdefault("to", wish)
        else:
            known = ", ".join(sorted(_PLAIN_ACTIONS))
            problems.add(
                f"{path}.{key}", f"{shorten(str(wish))!r} is nothing that a rule does; there are broadcast, {known}"
            )
    return unfolded


def _sources(value: object, path: str, roles: tuple[str, ...], problems: Problems) -> list[str | None]:
    if value in (None, "", "*"):
        return [None]
    if not isinstance(value, str | list) or not all(isinstance(word, str) for word in value):
        problems.add(path, f"must name a role or a list of roles, not {kind_of(value)}")
        return []
    found = expand_roles(value, roles)
    for source in found:
        if roles and source not in roles:
            problems.add(path, f"{shorten(source)!r} is not a role of this pattern ({', '.join(roles)})")
    if not found:
        problems.add(path, f"{shorten(str(value))!r} fits no role of this pattern ({', '.join(roles)})")
    return list(found)


def _targets(to: object, path: str, source: str | None, roles: tuple[str, ...], problems: Problems) -> tuple[str, ...]:
    wanted = to if isinstance(to, list) else [to]
    if not wanted or not all(isinstance(target, str) and target for target in wanted):
        problems.add(path, "must name a role, a list of roles, or an event")
        return ()
    targets = expand_roles(wanted, roles, source=source)
    for target in targets:
        if ":" not in target and roles and target not in roles:
            problems.add(path, f"{shorten(target)!r} is not a role of this pattern ({', '.join(roles)})")
    if not targets and roles and "*" not in wanted and not _SENDER & set(wanted):
        problems.add(path, f"{shorten(str(to))!r} fits no role of this pattern ({', '.join(roles)})")
    return tuple(targets)


def _spelled(condition: str) -> str:
    """`a.includes(b)`, as JavaScript has it, in our language's words."""
    return _MEMBER.sub(lambda match: match[1] or f" contains {match[2]}", condition)
