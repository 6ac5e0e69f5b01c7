"""Two documents that come from one, made one again. Pure.

With `merge(base, ours, theirs)`: what only one side changed is taken from it; what both changed to the same is taken;
the rest are conflicts, each with its path and the three values. Mappings are merged by key, lists by the names of their
entries (rules by what they connect) where all have one and as a whole elsewhere, texts of several lines by line.

Laws: `merge(base, a, base)` and `merge(base, a, a)` are `a`; without conflicts both sides may be exchanged. Time is
bounded for whatever a document may hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ksi_mcp import yamlio
from ksi_mcp.compositions.model import shorten
from ksi_mcp.compositions.numbering import Numbering
from ksi_mcp.compositions.ordering import merged_order
from ksi_mcp.compositions.pairing import is_routing, rule_names
from ksi_mcp.compositions.paths import MISSING, Step, is_long, names_in, position_of, read_path, value_at, write_path
from ksi_mcp.compositions.threeway import three_way_lines
from ksi_mcp.errors import Invalid

Strategy = Literal["three_way", "ours", "theirs", "fields"]
Side = Literal["ours", "theirs"]
Steps = tuple[Step, ...]

MAX_RESOLVED: Final = 1_000
MAX_FIELDS: Final = 200
OWN_KEYS: Final = frozenset({"name", "type", "component_type", "version", "lineage", "performance"})
"""What a document is and has been through: never taken from another one."""
_LEARNINGS: Final = "learnings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """What both sides changed, differently. A value is MISSING where that side has none.

    For a text the path ends in the number of the hunk, and the values are its lines.
    """

    path: str
    base: Any
    ours: Any
    theirs: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The document in one piece. Where there are conflicts it has what `ours` has."""

    document: dict[str, Any]
    conflicts: tuple[Conflict, ...]


def merge(
    base: dict[str, Any],
    ours: dict[str, Any],
    theirs: dict[str, Any],
    *,
    strategy: Strategy = "three_way",
    fields: Sequence[str] | None = None,
    resolve: Mapping[str, Any] | None = None,
) -> Merged:
    """Both sides' changes to `base` in one document.

    `ours` and `theirs` settle every conflict for that side. `fields` takes what `theirs` has at the paths given, and
    nothing else. `resolve` settles conflicts by their paths: `"ours"`, `"theirs"`, or a value (`{"value": ...}` for one
    that is such a word itself).

    Raises:
        Invalid: one is no document or too deep; a field is on neither side; a path of `resolve` is no conflict's.
    """
    if not all(isinstance(document, dict) for document in (base, ours, theirs)):
        raise Invalid("only documents, which are mappings, can be merged")
    if (strategy == "fields") != bool(fields):
        raise Invalid("the strategy 'fields' and the list of fields go together", hint="fields: ['agents.judge']")
    base, ours, theirs = yamlio.plain(base), yamlio.plain(ours), yamlio.plain(theirs)
    if fields:
        if resolve:
            raise Invalid("taking fields leaves no conflicts to resolve", hint="leave out resolve")
        return Merged(document=_with_fields(ours, theirs, fields), conflicts=())
    merger = _Merger(resolve or {}, strategy if strategy in ("ours", "theirs") else None)
    document = merger.merge((), base, ours, theirs)
    merger.finish()
    return Merged(document=yamlio.plain(document), conflicts=tuple(merger.conflicts))


def merge_compositions(
    base: dict[str, Any],
    target: dict[str, Any],
    source: dict[str, Any],
    *,
    strategy: Strategy = "three_way",
    fields: Sequence[str] | None = None,
    resolve: Mapping[str, Any] | None = None,
) -> Merged:
    """`merge` for compositions: the target stays what it is and keeps its history; learnings of both are kept.

    Raises:
        Invalid: as `merge`; a field that is the target's own.
    """
    own = [path for path in fields or () if read_path(path)[:1] and str(read_path(path)[0]) in OWN_KEYS]
    if own:
        raise Invalid(
            f"{shorten(own[0])!r} cannot be merged: a composition keeps its {', '.join(sorted(OWN_KEYS))}",
            hint="leave it out of the fields",
        )
    kept = {key: value for key, value in target.items() if key in OWN_KEYS}
    plain = [{key: value for key, value in document.items() if key not in OWN_KEYS} for document in (base, source)]
    if strategy != "fields":
        learned = _learned(*(document.get(_LEARNINGS) for document in (base, target, source)))
        target = dict(target)
        for document in (*plain, target):
            if learned is MISSING:
                document.pop(_LEARNINGS, None)
            else:
                document[_LEARNINGS] = learned
    base, source = ({**document, **kept} for document in plain)
    return merge(base, target, source, strategy=strategy, fields=fields, resolve=resolve)


class _Merger:
    def __init__(self, resolve: Mapping[str, Any], side: Side | None) -> None:
        if len(resolve) > MAX_RESOLVED:
            raise Invalid(f"{len(resolve):,} paths to resolve, the limit is {MAX_RESOLVED:,}")
        self.conflicts: list[Conflict] = []
        self._number = Numbering()
        self._resolve = resolve
        self._used: set[str] = set()
        self._side = side

    def merge(self, at: Steps, base: Any, ours: Any, theirs: Any) -> Any:
        """The value all three make, MISSING for none."""
        was, here, there = (self._of(value) for value in (base, ours, theirs))
        if there in (here, was):
            return ours
        if was == here:
            return theirs
        if is_long(at):
            return self._settle(at, base, ours, theirs)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return self._merge_mappings(at, base if isinstance(base, dict) else {}, ours, theirs)
        if isinstance(ours, list) and isinstance(theirs, list) and isinstance(base, list | type(MISSING)):
            return self._merge_lists(at, base if isinstance(base, list) else [], ours, theirs)
        texts = [value for value in (base, ours, theirs) if isinstance(value, str)]
        if len(texts) == 3 and any("\n" in text for text in texts):  # noqa: PLR2004 - all three
            return self._merge_texts(at, *texts)
        return self._settle(at, base, ours, theirs)

    def finish(self) -> None:
        """Refuse paths to resolve that are no conflict's."""
        unknown = [path for path in self._resolve if path not in self._used]
        if unknown:
            shown = ", ".join(repr(shorten(path)) for path in unknown[:5])
            raise Invalid(
                f"no conflict at {shown}" + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),  # noqa: PLR2004
                hint="resolve takes the paths of conflicts as they are listed",
            )

    def _of(self, value: Any) -> int:
        return -1 if value is MISSING else self._number.of(value)

    def _merge_mappings(
        self, at: Steps, base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]
    ) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key in dict.fromkeys((*ours, *theirs)):
            sides = (each.get(key, MISSING) for each in (base, ours, theirs))
            value = self.merge((*at, key), *sides)
            if value is not MISSING:
                made[key] = value
        return made

    def _merge_lists(self, at: Steps, base: list[Any], ours: list[Any], theirs: list[Any]) -> Any:
        lists = (base, ours, theirs)
        names = names_in(*lists)
        if names is None and is_routing(at):
            of_rules = [rule_names(rules, self._number) for rules in lists]
            if all(each is not None for each in of_rules):
                names = tuple(each or [] for each in of_rules)
        if names is None:
            return self._settle(at, base, ours, theirs)
        sides = [dict(zip(each, entries, strict=True)) for each, entries in zip(names, lists, strict=True)]
        made: dict[str, Any] = {}
        order = merged_order(*names)
        if order is None:
            return self._settle(at, base, ours, theirs)
        for name in order:
            value = self.merge((*at, name), *(side.get(name, MISSING) for side in sides))
            if value is not MISSING:
                made[name] = value
        return list(made.values())

    def _merge_texts(self, at: Steps, base: str, ours: str, theirs: str) -> Any:
        if write_path(at) in self._resolve:
            return self._settle(at, base, ours, theirs)
        made: list[str] = []
        hunks = 0
        for piece in three_way_lines(base, ours, theirs):
            if isinstance(piece, list):
                made += piece
                continue
            hunks += 1
            settled = self._settle((*at, hunks), *(_joined(lines) for lines in piece))
            made += [] if settled is MISSING else settled.split("\n")
        return "\n".join(made)

    def _settle(self, at: Steps, base: Any, ours: Any, theirs: Any) -> Any:
        path = write_path(at)
        if path in self._resolve:
            self._used.add(path)
            wish = self._resolve[path]
            if wish == "ours" or wish == "theirs":  # noqa: PLR1714 - a wish may be unhashable
                return ours if wish == "ours" else theirs
            given = wish["value"] if isinstance(wish, dict) and wish.keys() == {"value"} else wish
            if at and isinstance(at[-1], int) and not isinstance(given, str):  # a hunk's number
                raise Invalid(f"{shorten(path)!r} is lines of a text and can only become text")
            return yamlio.plain(given)
        if self._side is not None:
            return ours if self._side == "ours" else theirs
        self.conflicts.append(Conflict(path=path, base=base, ours=ours, theirs=theirs))
        return ours


def _joined(lines: list[str]) -> Any:
    return "\n".join(lines) if lines else MISSING


def _learned(base: Any, target: Any, source: Any) -> Any:
    """The target's learnings, then those the source has gained since; MISSING where neither has any."""
    if source is None or not isinstance(source, list) or not isinstance(target, list | type(None)):
        return MISSING if target is None else target
    number = Numbering()
    known = {number.of(entry) for entry in (*(target or ()), *(base if isinstance(base, list) else ()))}
    new = [entry for entry in source if number.of(entry) not in known]
    return MISSING if target is None and not new else [*(target or ()), *new]


def _with_fields(ours: dict[str, Any], theirs: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    if len(fields) > MAX_FIELDS:
        raise Invalid(f"{len(fields):,} fields, the limit is {MAX_FIELDS}")
    for path in fields:
        steps = read_path(path)
        value = value_at(theirs, steps)
        if not steps or (value is MISSING and value_at(ours, steps) is MISSING):
            raise Invalid(f"neither side has {shorten(path)!r}", hint="composition_diff shows the paths")
        _put(ours, steps, yamlio.plain(value) if value is not MISSING else MISSING, path)
    return ours


def _put(here: Any, steps: Steps, value: Any, path: str) -> None:
    """Set what stands at `steps`, or take it away; mappings on the way are made."""
    *way, last = steps
    for step in way:
        if isinstance(here, dict) and isinstance(step, str):
            if value is not MISSING:
                here.setdefault(step, {})
            here = here.get(step, MISSING)
        else:
            here = value_at(here, (step,))
    if isinstance(here, dict) and isinstance(last, str):
        if value is MISSING:
            here.pop(last, None)
        else:
            here[last] = value
        return
    if isinstance(here, list):
        position = position_of(here, last)
        if position is not None:
            here[position : position + 1] = [] if value is MISSING else [value]
            return
        if value is not MISSING:
            here.append(value)
            return
    raise Invalid(f"the target has no place for {shorten(path)!r}", hint="take a shorter path")
