"""From an event's name to the rules that may hear it, whatever the size of the table.

Names without a star are found in a dictionary. The others live in a trie of segments that is walked
with a set of places at once, so `**` costs no going back. What a name found is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ksi_mcp.events.patterns import Glob, is_reserved
from ksi_mcp.routing.rules import CompiledRule

MEMO_NAMES = 10_000
"""Names remembered; then the memory starts anew, so that made-up names cannot fill it."""
OVERLAY_LIMIT = 500
"""Changes kept beside an index before a new one is built."""


class _Place:
    """A point in the trie: which segments lead on, and the rules whose pattern ends here."""

    __slots__ = ("globs", "literals", "loops", "many", "rules")

    def __init__(self, *, loops: bool = False) -> None:
        self.loops = loops
        self.literals: dict[str, _Place] = {}
        self.globs: dict[str, tuple[Glob, _Place]] = {}
        self.many: _Place | None = None
        self.rules: list[CompiledRule] = []

    def add(self, rule: CompiledRule) -> None:
        place = self
        text = rule.pattern.text
        for segment in ["**"] if text == "*" else text.split(":"):
            if segment == "**":
                place.many = place.many or _Place(loops=True)
                place = place.many
            elif "*" in segment:
                place = place.globs.setdefault(segment, (Glob(segment), _Place()))[1]
            else:
                place = place.literals.setdefault(segment, _Place())
        place.rules.append(rule)

    def find(self, name: str) -> list[CompiledRule]:
        first, *rest = name.split(":")
        # The server's own events are heard only under a first segment that is spelled out.
        here = [self.literals[first]] if first in self.literals else []
        if not is_reserved(name):
            here = _step(_closed([self]), first)
        here = _closed(here)
        for segment in rest:
            here = _closed(_step(here, segment))
        return [rule for place in here for rule in place.rules]


def _closed(places: Iterable[_Place]) -> list[_Place]:
    """With the places that `**` reaches without a segment."""
    found: dict[int, _Place] = {}
    for start in places:
        place: _Place | None = start
        while place is not None and id(place) not in found:
            found[id(place)] = place
            place = place.many
    return list(found.values())


def _step(places: Iterable[_Place], segment: str) -> list[_Place]:
    following: list[_Place] = []
    for place in places:
        if place.loops:
            following.append(place)
        if segment in place.literals:
            following.append(place.literals[segment])
        following.extend(after for glob, after in place.globs.values() if glob.matches(segment))
    return following


class RuleIndex:
    """Immutable. Finds rules by the name of an event; disabled and expired ones too, so that one can say why not."""

    __slots__ = ("_exact", "_memo", "_wild", "rules")

    def __init__(self, rules: Iterable[CompiledRule] = ()) -> None:
        self.rules: Mapping[str, CompiledRule] = {rule.rule.rule_id: rule for rule in rules}
        self._exact: dict[str, list[CompiledRule]] = {}
        self._wild = _Place()
        self._memo: dict[str, tuple[CompiledRule, ...]] = {}
        for rule in self.rules.values():
            if rule.pattern.literal:
                self._exact.setdefault(rule.pattern.text, []).append(rule)
            else:
                self._wild.add(rule)

    def candidates(self, name: str) -> tuple[CompiledRule, ...]:
        """The rules whose pattern hears an event of that name, by priority (the higher first), then by id."""
        known = self._memo.get(name)
        if known is None:
            found = [*self._exact.get(name, ()), *self._wild.find(name)]
            known = tuple(sorted(found, key=lambda each: each.rule.order()))
            if len(self._memo) >= MEMO_NAMES:
                self._memo = {}
            self._memo[name] = known
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTable:
    """The rule table as of `version`: an index, and what has changed since it was built (None: deleted)."""

    version: int = 0
    index: RuleIndex = field(default_factory=RuleIndex)
    changed: Mapping[str, CompiledRule | None] = field(default_factory=dict)

    def candidates(self, name: str) -> tuple[CompiledRule, ...]:
        """The rules whose pattern hears an event of that name, by priority (the higher first), then by id."""
        found = self.index.candidates(name)
        if not self.changed:
            return found
        kept = [each for each in found if each.rule.rule_id not in self.changed]
        kept += [each for each in self.changed.values() if each is not None and each.pattern.matches(name)]
        return tuple(sorted(kept, key=lambda each: each.rule.order()))

    def with_changes(self, version: int, changed: Mapping[str, CompiledRule | None]) -> RuleTable:
        """The table after these changes; the index is built anew only when they are many."""
        together = {**self.changed, **changed}
        if len(together) <= OVERLAY_LIMIT:
            return RuleTable(version=version, index=self.index, changed=together)
        rules = {**self.index.rules, **together}
        return RuleTable(version=version, index=RuleIndex(rule for rule in rules.values() if rule is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A step of a chain of rules: because of `rule_id`, what is heard leads to the event `name`."""

    rule_id: str
    name: str


def find_cycle(table: RuleTable, new: CompiledRule, *, now_ms: int) -> tuple[Link, ...] | None:
    """The chain by which `new` would feed itself through rules from event to event; None when it cannot.

    Conditions are not looked at: that one never holds again cannot be proved. Rules that can never
    hear the same chain (each bound to another agent, or to another orchestration) are not linked.
    """
    if new.rule.target.kind != "event":
        return None
    came_by: dict[str, tuple[str | None, str]] = {new.rule.target.name: (None, new.rule.rule_id)}
    pending = [new.rule.target.name]
    while pending:
        name = pending.pop()
        if new.pattern.matches(name):
            return _chain(came_by, name)
        for each in table.candidates(name):
            rule = each.rule
            if rule.target.kind != "event" or rule.target.name in came_by or rule.rule_id == new.rule.rule_id:
                continue
            if not rule.enabled or rule.expired(now_ms) or each.broken or not _may_follow(new, each):
                continue
            came_by[rule.target.name] = (name, rule.rule_id)
            pending.append(rule.target.name)
    return None


def _chain(came_by: Mapping[str, tuple[str | None, str]], last: str) -> tuple[Link, ...]:
    links: list[Link] = []
    name: str | None = last
    while name is not None:
        before, rule_id = came_by[name]
        links.append(Link(rule_id=rule_id, name=name))
        name = before
    return tuple(reversed(links))


def _may_follow(new: CompiledRule, other: CompiledRule) -> bool:
    a, b = new.source, other.source
    if a and b and a.glob and b.glob and a.glob.literal and b.glob.literal and a.text != b.text:
        # An id and a name may be the same agent; two ids, or two names, are not.
        return a.text.startswith("a_") != b.text.startswith("a_")
    scopes = {rule.rule.scope for rule in (new, other) if rule.rule.scope.startswith("orchestration:")}
    return len(scopes) <= 1
