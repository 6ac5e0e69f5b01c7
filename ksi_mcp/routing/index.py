"""From an event's name to the rules that may hear it, whatever the size of the table.

Names without a star are found in a dictionary. The others live in a trie of segments that is walked
with a set of places at once, so `**` costs no going back; the globs of a place are found by what they
begin and end with, so that many of them cost no more than few. What a name found is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ksi_mcp.events.patterns import Glob, is_reserved
from ksi_mcp.routing.rules import CompiledRule, Rule

MEMO_NAMES = 10_000
"""Names remembered; then the memory starts anew, so that made-up names cannot fill it."""
OVERLAY_LIMIT = 500
"""Changes kept beside an index before a new one is built."""


class _Place:
    """A point in the trie: which segments lead on, and the rules whose pattern ends here.

    One that belongs to an index never changes: whoever adds to it makes its own of each place on the way.
    """

    __slots__ = ("any", "glob", "globs", "literals", "loops", "many", "rules")

    def __init__(self, *, loops: bool = False, glob: Glob | None = None) -> None:
        self.loops = loops
        self.glob = glob
        """What the segment that leads here has to fit."""
        # Most places are the last of one pattern: what they do not need is not made.
        self.literals: dict[str, _Place] | None = None
        self.globs: dict[tuple[int, int], dict[str, dict[str, _Place]]] | None = None
        """By the lengths of what stands before the first star and behind the last one, then by that text."""
        self.any: _Place | None = None
        self.many: _Place | None = None
        self.rules: list[CompiledRule] = []

    def own(self, made: set[_Place]) -> _Place:
        """This place, if it is one of those just made; else a copy, which is one from now on."""
        if self in made:
            return self
        twin = _Place(loops=self.loops, glob=self.glob)
        if self.literals is not None:
            twin.literals = {**self.literals}
        if self.globs is not None:
            twin.globs = {
                lengths: {ends: {**alike} for ends, alike in by_ends.items()} for lengths, by_ends in self.globs.items()
            }
        twin.any, twin.many, twin.rules = self.any, self.many, [*self.rules]
        made.add(twin)
        return twin

    def lead(self, segment: str, made: set[_Place]) -> _Place:
        """The place behind one more segment of a pattern, to be changed; this one is changed to lead there."""
        if segment == "**":
            after = self.many = self.many.own(made) if self.many else _Place(loops=True)
        elif segment == "*":
            after = self.any = self.any.own(made) if self.any else _Place()
        elif "*" in segment:
            before, behind = segment[: segment.index("*")], segment[segment.rindex("*") + 1 :]
            self.globs = {} if self.globs is None else self.globs
            alike = self.globs.setdefault((len(before), len(behind)), {}).setdefault(before + behind, {})
            after = alike[segment] = alike[segment].own(made) if segment in alike else _Place(glob=Glob(segment))
        else:
            self.literals = {} if self.literals is None else self.literals
            known = self.literals.get(segment)
            after = self.literals[segment] = known.own(made) if known else _Place()
        made.add(after)
        return after

    def find(self, name: str) -> list[CompiledRule]:
        first, *rest = name.split(":")
        here: list[_Place] = []
        if is_reserved(name):
            # The server's own events are heard only under a first segment that is spelled out.
            if self.literals is not None and first in self.literals:
                self.literals[first].enter(here)
        else:
            start: list[_Place] = []
            self.enter(start)
            here = _step(start, first)
        for segment in rest:
            if not here:
                break
            here = _step(here, segment)
        return [rule for place in here for rule in place.rules]

    def enter(self, places: list[_Place]) -> None:
        """Add this place, and those that `**` reaches from it without a segment."""
        place: _Place | None = self
        while place is not None:
            places.append(place)
            place = place.many


def _step(places: list[_Place], segment: str) -> list[_Place]:
    following: list[_Place] = []
    for place in places:
        if place.loops:
            following.append(place)
        if place.literals is not None and (after := place.literals.get(segment)) is not None:
            after.enter(following)
        if place.any is not None:
            place.any.enter(following)
        if place.globs is not None:
            for (before, behind), by_ends in place.globs.items():
                cut = len(segment) - behind
                if before <= cut and (alike := by_ends.get(segment[:before] + segment[cut:])) is not None:
                    for after in alike.values():
                        if after.glob is not None and after.glob.matches(segment):
                            after.enter(following)
    # Where a pattern has `**` twice, its places are reached in more than one way.
    return following if len(following) < 2 else list(dict.fromkeys(following))  # noqa: PLR2004  a pair, at least


class RuleIndex:
    """Immutable. Finds rules by the name of an event; disabled and expired ones too, so that one can say why not."""

    __slots__ = ("_exact", "_memo", "_wild", "rules")

    def __init__(self, rules: Iterable[CompiledRule] = (), *, base: RuleIndex | None = None) -> None:
        """`base`: an index that has others already, from which only what is touched is copied."""
        more: dict[str, CompiledRule] = {rule.rule.rule_id: rule for rule in rules}
        self.rules: Mapping[str, CompiledRule] = more if base is None else {**base.rules, **more}
        self._exact: dict[str, list[CompiledRule]] = {} if base is None else {**base._exact}  # noqa: SLF001  one of us
        self._wild: _Place = _Place() if base is None else base._wild  # noqa: SLF001
        self._memo: dict[str, tuple[CompiledRule, ...]] = {}
        own, made = set[str](), set[_Place]()
        for rule in more.values():
            text = rule.pattern.text
            if not rule.pattern.literal:
                place = self._wild = self._wild.own(made)
                for segment in ["**"] if text == "*" else text.split(":"):
                    place = place.lead(segment, made)
                place.rules.append(rule)
            elif text in own:
                self._exact[text].append(rule)
            else:
                own.add(text)
                self._exact[text] = [*self._exact.get(text, ()), rule]

    def candidates(self, name: str) -> tuple[CompiledRule, ...]:
        """The rules whose pattern hears an event of that name, by priority (the higher first), then by id."""
        known = self._memo.get(name)
        if known is None:
            known = _in_order([*self._exact.get(name, ()), *self._wild.find(name)])
            if len(self._memo) >= MEMO_NAMES:
                self._memo = {}
            self._memo[name] = known
        return known


def _in_order(rules: list[CompiledRule]) -> tuple[CompiledRule, ...]:
    if len(rules) > 1:
        rules.sort(key=lambda each: each.rule.order())
    return tuple(rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTable:
    """The rule table as of `version`: an index, and what has changed since it was built (None: deleted)."""

    version: int = 0
    index: RuleIndex = field(default_factory=RuleIndex)
    changed: Mapping[str, CompiledRule | None] = field(default_factory=dict)
    beside: RuleIndex = field(default_factory=RuleIndex)
    """Finds what has changed; it finds what was changed again as well, which no longer counts."""
    changes: int = 0
    """Rules put into `beside`."""

    def get(self, rule_id: str) -> CompiledRule | None:
        """A rule by its id."""
        return self.changed[rule_id] if rule_id in self.changed else self.index.rules.get(rule_id)

    def candidates(self, name: str) -> tuple[CompiledRule, ...]:
        """The rules whose pattern hears an event of that name, by priority (the higher first), then by id."""
        found = self.index.candidates(name)
        if not self.changed:
            return found
        heard = {each.rule.rule_id: each for each in found if each.rule.rule_id not in self.changed}
        for each in self.beside.candidates(name):
            if self.changed.get(each.rule.rule_id) is each:
                heard[each.rule.rule_id] = each
        return _in_order([*heard.values()])

    def with_changes(self, version: int, changed: Mapping[str, CompiledRule | None]) -> RuleTable:
        """The table after these changes; the index is built anew only when they are many."""
        together = {**self.changed, **changed}
        if len(together) > OVERLAY_LIMIT:
            rules = {**self.index.rules, **together}
            return RuleTable(version=version, index=RuleIndex(rule for rule in rules.values() if rule is not None))
        changes = self.changes + len(changed)
        if changes > OVERLAY_LIMIT:  # the same few again and again
            changes, beside = 0, RuleIndex(rule for rule in together.values() if rule is not None)
        else:
            beside = RuleIndex((rule for rule in changed.values() if rule is not None), base=self.beside)
        return RuleTable(version=version, index=self.index, changed=together, beside=beside, changes=changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A step of a chain of rules: because of `rule_id`, what is heard leads to the event `name`."""

    rule_id: str
    name: str


def find_cycle(table: RuleTable, new: CompiledRule, *, now_ms: int) -> tuple[Link, ...] | None:
    """The chain by which `new` would feed itself through rules from event to event; None when it cannot.

    A rule with a rate or a join bounds what goes round. Conditions are not looked at: that one never holds again
    cannot be proved. Rules that can never hear the same chain (each bound to another agent, or to another
    orchestration) are not linked.
    """
    if _bounded(new.rule):
        return None
    came_by: dict[str, tuple[str | None, str]] = dict.fromkeys(new.rule.target.events, (None, new.rule.rule_id))
    pending = list(came_by)
    while pending:
        name = pending.pop()
        if new.pattern.matches(name):
            return _chain(came_by, name)
        for each in table.candidates(name):
            rule = each.rule
            if rule.rule_id == new.rule.rule_id or _bounded(rule) or not rule.enabled or rule.expired(now_ms):
                continue
            if each.broken or not _may_follow(new, each):
                continue
            for target in rule.target.events:
                if target not in came_by:
                    came_by[target] = (name, rule.rule_id)
                    pending.append(target)
    return None


def _bounded(rule: Rule) -> bool:
    """What goes through it in a circle comes to rest, or comes slowly."""
    return rule.rate is not None or rule.join is not None


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
