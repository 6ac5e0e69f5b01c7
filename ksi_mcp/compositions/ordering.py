"""The order of named entries of which two sides have each their own. Pure."""

from __future__ import annotations


def merged_order(base: list[str], ours: list[str], theirs: list[str]) -> list[str] | None:
    """Every name of either side once; None if both sides put the entries into another order, differently.

    What both have is the backbone. What only one side has follows what it follows there; where both sides have such
    names at one place, those with the lower first name come first, so that the sides may be exchanged.
    """
    in_ours, in_theirs, in_base = set(ours), set(theirs), set(base)
    of_ours = [name for name in ours if name in in_theirs]
    of_theirs = [name for name in theirs if name in in_ours]
    backbone = of_ours
    if of_ours != of_theirs:
        known = set(of_ours) & in_base
        before = [name for name in base if name in known]
        ours_stayed = [name for name in of_ours if name in known] == before
        theirs_stayed = [name for name in of_theirs if name in known] == before
        if ours_stayed == theirs_stayed:
            return None
        backbone = of_theirs if ours_stayed else of_ours
    left, right = _runs(ours, in_theirs), _runs(theirs, in_ours)
    order: list[str] = []
    for anchor in (None, *backbone):
        if anchor is not None:
            order.append(anchor)
        runs = sorted(run for run in (left.get(anchor), right.get(anchor)) if run)
        order += [name for run in runs for name in run]
    return order


def _runs(names: list[str], common: set[str]) -> dict[str | None, list[str]]:
    """The names that only this side has, by the common one they follow (None: they stand first)."""
    runs: dict[str | None, list[str]] = {}
    anchor: str | None = None
    for name in names:
        if name in common:
            anchor = name
        else:
            runs.setdefault(anchor, []).append(name)
    return runs
