"""Which rule of one routing list is which of another: by what they connect. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable
from typing import Any, Final

from ksi_mcp.compositions.numbering import Numbering
from ksi_mcp.compositions.paths import Step

_PARTS: Final = ("from", "to", "pattern")
_ROUTING: Final = (("routing",), ("routing", "rules"), ("routing", "static_rules"))


def is_routing(steps: tuple[Step, ...]) -> bool:
    """Whether the list at that path is a composition's static routing."""
    return steps in _ROUTING


def rule_names(rules: list[Any], number: Numbering) -> list[str] | None:
    """A name for each rule of what it connects, such as `judge -> critic on review:*`; None if one is no rule.

    A second rule that connects the same has `#2` behind its name.
    """
    if not all(isinstance(rule, dict) for rule in rules):
        return None
    seen: Counter[tuple[int, ...]] = Counter()
    names: list[str] = []
    for rule in rules:
        key = tuple(number.of(rule.get(part)) for part in _PARTS)
        seen[key] += 1
        source, target, pattern = (_shown(rule.get(part)) for part in _PARTS)
        names.append(f"{source} -> {target} on {pattern}" + (f" #{seen[key]}" if seen[key] > 1 else ""))
    return names if len(set(names)) == len(names) else None


def pair_rules(before: list[Any], after: list[Any], number: Numbering) -> list[tuple[int, int]]:
    """Positions of rules that are the same one: equal, else of the same id, else connecting the same, else nearly so.

    Each rule is paired once at most; ascending in `before`.
    """
    left, right = set(range(len(before))), set(range(len(after)))
    pairs: list[tuple[int, int]] = []
    ways = (None, ("id",), _PARTS, ("from", "to"), ("from", "pattern"), ("to", "pattern"))
    for way in ways:
        waiting: dict[Hashable, deque[int]] = defaultdict(deque)
        for position in sorted(right):
            if (key := _key(after[position], way, number)) is not None:
                waiting[key].append(position)
        for position in sorted(left):
            key = _key(before[position], way, number)
            if key is not None and waiting.get(key):
                there = waiting[key].popleft()
                pairs.append((position, there))
                left.discard(position)
                right.discard(there)
    return sorted(pairs)


def _key(rule: Any, parts: tuple[str, ...] | None, number: Numbering) -> Hashable | None:
    if parts is None:
        return number.of(rule)
    if not isinstance(rule, dict) or not any(part in rule for part in parts):
        return None
    if parts == ("id",):
        return number.of(rule["id"])
    return tuple(number.of(rule.get(part)) for part in parts)


def _shown(value: Any) -> str:
    if value is None:
        return "*"
    return value if isinstance(value, str) else ",".join(map(str, value)) if isinstance(value, list) else str(value)
