"""Two sequences side by side: which entries stayed, in bounded time whatever the sequences are. Pure.

Entries that stand once on both sides are anchors (patience diff); what lies between two anchors is compared with
Myers' greedy algorithm as far as a budget of steps allows, and taken to be replaced beyond it. A result is always
right; only for sequences made to be hard it is not the shortest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

MAX_STEPS: Final = 1_000_000
"""Comparisons spent on two sequences, all together: under a second."""
MAX_EDITS: Final = 400
"""Of a stretch without anchors; one that differs more is taken to be replaced."""
MAX_ANCHOR_DEPTH: Final = 24

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`before[a0:a1]` became `after[b0:b1]`; one of both may be empty."""

    a0: int
    a1: int
    b0: int
    b1: int


def matches(before: Sequence[Hashable], after: Sequence[Hashable]) -> list[Pair]:
    """Positions (in `before`, in `after`) of entries that stayed, ascending on both sides."""
    found: list[Pair] = []
    steps = [MAX_STEPS]
    todo = [(0, len(before), 0, len(after), 0)]
    while todo:
        a0, a1, b0, b1, depth = todo.pop()
        while a0 < a1 and b0 < b1 and before[a0] == after[b0]:
            found.append((a0, b0))
            a0, b0 = a0 + 1, b0 + 1
        while a0 < a1 and b0 < b1 and before[a1 - 1] == after[b1 - 1]:
            a1, b1 = a1 - 1, b1 - 1
            found.append((a1, b1))
        if a0 == a1 or b0 == b1:
            continue
        steps[0] -= (a1 - a0) + (b1 - b0)
        anchors = _anchors(before, after, (a0, a1, b0, b1)) if depth < MAX_ANCHOR_DEPTH and steps[0] > 0 else []
        if not anchors:
            found += _greedy(before[a0:a1], after[b0:b1], (a0, b0), steps)
            continue
        found += anchors
        for (left_a, left_b), (right_a, right_b) in zip(
            [(a0 - 1, b0 - 1), *anchors], [*anchors, (a1, b1)], strict=True
        ):
            todo.append((left_a + 1, right_a, left_b + 1, right_b, depth + 1))
    found.sort()
    return found


def blocks(before: Sequence[Hashable], after: Sequence[Hashable]) -> list[Block]:
    """The stretches that differ, in order; between them both sides are the same."""
    return gaps(matches(before, after), len(before), len(after))


def gaps(pairs: Sequence[Pair], before: int, after: int) -> list[Block]:
    """What lies between matched positions of sequences that are `before` and `after` entries long."""
    found: list[Block] = []
    a0 = b0 = 0
    for a1, b1 in [*pairs, (before, after)]:
        if a0 < a1 or b0 < b1:
            found.append(Block(a0=a0, a1=a1, b0=b0, b1=b1))
        a0, b0 = a1 + 1, b1 + 1
    return found


def rising(values: Sequence[int]) -> list[int]:
    """Positions of a longest rising subsequence."""
    tails: list[int] = []
    tops: list[int] = []
    back: list[int] = []
    for position, value in enumerate(values):
        at = bisect_left(tops, value)
        back.append(tails[at - 1] if at else -1)
        tails[at : at + 1] = [position]
        tops[at : at + 1] = [value]
    chain: list[int] = []
    position = tails[-1] if tails else -1
    while position >= 0:
        chain.append(position)
        position = back[position]
    return chain[::-1]


def _anchors(before: Sequence[Hashable], after: Sequence[Hashable], box: tuple[int, int, int, int]) -> list[Pair]:
    a0, a1, b0, b1 = box
    there = _once(before, a0, a1)
    here = _once(after, b0, b1)
    common = [(position, here[entry]) for entry, position in there.items() if entry in here]
    return [common[at] for at in rising([b for _, b in common])]


def _once(entries: Sequence[Hashable], start: int, stop: int) -> dict[Hashable, int]:
    """Where each entry is that stands there exactly once, in order."""
    place: dict[Hashable, int] = {}
    for position in range(start, stop):
        entry = entries[position]
        place[entry] = -1 if entry in place else position
    return {entry: position for entry, position in place.items() if position >= 0}


def _greedy(a: Sequence[Hashable], b: Sequence[Hashable], offset: Pair, steps: list[int]) -> list[Pair]:
    """Myers' O(ND), given up (nothing stayed) when it takes too many edits or steps."""
    if not set(a) & set(b):
        return []
    furthest = {1: 0}
    trace: list[dict[int, int]] = []
    for edits in range(min(len(a) + len(b), MAX_EDITS) + 1):
        trace.append(dict(furthest))
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (
                diagonal != edits and furthest.get(diagonal - 1, -1) < furthest.get(diagonal + 1, -1)
            )
            x = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            start = x
            while x < len(a) and 0 <= x - diagonal < len(b) and a[x] == b[x - diagonal]:
                x += 1
            furthest[diagonal] = x
            steps[0] -= 1 + x - start
            if x >= len(a) and x - diagonal >= len(b):
                return _walked_back(trace, len(a), len(b), offset)
        if steps[0] <= 0:
            return []
    return []


def _walked_back(trace: list[dict[int, int]], x: int, y: int, offset: Pair) -> list[Pair]:
    found: list[Pair] = []
    for edits in range(len(trace) - 1, -1, -1):
        furthest = trace[edits]
        diagonal = x - y
        down = diagonal == -edits or (
            diagonal != edits and furthest.get(diagonal - 1, -1) < furthest.get(diagonal + 1, -1)
        )
        previous = diagonal + 1 if down else diagonal - 1
        from_x = furthest[previous] if edits else 0
        from_y = from_x - previous if edits else 0
        start_x = (from_x if down else from_x + 1) if edits else 0
        while x > start_x:
            x, y = x - 1, y - 1
            found.append((x + offset[0], y + offset[1]))
        x, y = from_x, from_y
    return found
