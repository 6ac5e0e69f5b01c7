"""What differs between two documents, named one by one. Pure.

`apply(diff(a, b), a)` is `b`, and `diff(a, a)` is empty. The order of a mapping's keys means nothing; the order of a
list does. Texts of several lines are compared line by line, lists by the names of their entries where all have one,
routing rules by what they connect. Time is bounded for whatever a document may hold.
"""

from __future__ import annotations

from typing import Any

from ksi_mcp import yamlio
from ksi_mcp.compositions import aligning
from ksi_mcp.compositions.changes import Change, ChangeKind, Diff, apply, section_of
from ksi_mcp.compositions.numbering import Numbering
from ksi_mcp.compositions.pairing import is_routing, pair_rules
from ksi_mcp.compositions.paths import MISSING, Step, is_long, names_in, write_path
from ksi_mcp.errors import Invalid

Steps = tuple[Step, ...]


def diff(a: dict[str, Any], b: dict[str, Any]) -> Diff:
    """The changes that make `b` of `a`.

    Raises:
        Invalid: one is not a document, or is nested too deep.
    """
    if not isinstance(a, dict) or not isinstance(b, dict):
        raise Invalid("only documents, which are mappings, can be compared")
    finder = _Finder()
    finder.compare((), yamlio.plain(a), yamlio.plain(b))
    return Diff(changes=tuple(finder.changes))


class _Finder:
    """Gathers changes while it walks both documents."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._number = Numbering()

    def compare(self, at: Steps, before: Any, after: Any) -> None:
        if self._number.of(before) == self._number.of(after):
            return
        if is_long(at):
            self._note(at, "changed", before=before, after=after)
        elif isinstance(before, dict) and isinstance(after, dict):
            self._compare_mappings(at, before, after)
        elif isinstance(before, list) and isinstance(after, list):
            self._compare_lists(at, before, after)
        elif isinstance(before, str) and isinstance(after, str) and ("\n" in before or "\n" in after):
            self._compare_texts(at, before, after)
        else:
            self._note(at, "changed", before=before, after=after)

    def _note(self, at: Steps, kind: ChangeKind, **more: Any) -> None:
        self.changes.append(Change(path=write_path(at), kind=kind, section=section_of(at), **more))

    def _compare_mappings(self, at: Steps, before: dict[str, Any], after: dict[str, Any]) -> None:
        for key, value in before.items():
            there = after.get(key, MISSING)
            if there is MISSING:
                self._note((*at, key), "removed", before=value)
            else:
                self.compare((*at, key), value, there)
        for key, value in after.items():
            if key not in before:
                self._note((*at, key), "added", after=value)

    def _compare_texts(self, at: Steps, before: str, after: str) -> None:
        old, new = before.split("\n"), after.split("\n")
        for block in aligning.blocks(old, new):
            self._note(
                at,
                "text",
                before="\n".join(old[block.a0 : block.a1]) if block.a0 < block.a1 else None,
                after="\n".join(new[block.b0 : block.b1]) if block.b0 < block.b1 else None,
                line=block.a0 + 1,
                new_line=block.b0 + 1,
            )

    def _compare_lists(self, at: Steps, before: list[Any], after: list[Any]) -> None:
        names = names_in(before, after)
        if names is not None:
            there = {name: position for position, name in enumerate(names[1])}
            pairs = [(position, there[name]) for position, name in enumerate(names[0]) if name in there]
            self._compare_entries(at, before, after, pairs, names)
        elif is_routing(at):
            self._compare_entries(at, before, after, pair_rules(before, after, self._number), None)
        else:
            self._compare_entries(at, before, after, self._pairs(before, after), None)

    def _pairs(self, before: list[Any], after: list[Any]) -> list[tuple[int, int]]:
        """Entries that stayed, and those that stand for each other: as many between two that stayed."""
        pairs = aligning.matches([self._number.of(v) for v in before], [self._number.of(v) for v in after])
        for gap in aligning.gaps(list(pairs), len(before), len(after)):
            if gap.a1 - gap.a0 == gap.b1 - gap.b0:
                pairs += zip(range(gap.a0, gap.a1), range(gap.b0, gap.b1), strict=True)
        return sorted(pairs)

    def _compare_entries(
        self,
        at: Steps,
        before: list[Any],
        after: list[Any],
        pairs: list[tuple[int, int]],
        names: tuple[list[str], ...] | None,
    ) -> None:
        """`pairs`: positions of entries that are the same one, ascending in `before`."""
        partner = dict(pairs)
        in_order = {pairs[place] for place in aligning.rising([there for _, there in pairs])}
        for position, value in enumerate(before):
            here = (*at, names[0][position] if names is not None else position)
            there = partner.get(position)
            if there is None:
                self._note(here, "removed", before=value)
                continue
            if (position, there) not in in_order:
                self._note(here, "moved", before=position, after=there)
            self.compare(here, value, after[there])
        found = set(partner.values())
        for position, value in enumerate(after):
            if position not in found:
                here = (*at, names[1][position] if names is not None else position)
                self._note(here, "added", after=value, index=position)


__all__ = ["apply", "diff"]
