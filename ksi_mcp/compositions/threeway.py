"""Texts that come from one, merged line by line (diff3). Pure."""

from __future__ import annotations

from ksi_mcp.compositions.aligning import matches

Piece = list[str] | tuple[list[str], list[str], list[str]]
"""Lines that are settled, or those that base, ours and theirs have where both sides changed them."""


def three_way_lines(base: str, ours: str, theirs: str) -> list[Piece]:
    """The merged text in pieces.

    Lines that both sides kept hold it together; between two of them, what one side changed is taken.
    """
    was, here, there = base.split("\n"), ours.split("\n"), theirs.split("\n")
    in_ours, in_theirs = dict(matches(was, here)), dict(matches(was, there))
    pieces: list[Piece] = []
    at, of_ours, of_theirs = 0, 0, 0
    settled: list[str] = []
    for line in [*(n for n in range(len(was)) if n in in_ours and n in in_theirs), len(was)]:
        end_ours, end_theirs = in_ours.get(line, len(here)), in_theirs.get(line, len(there))
        between = (was[at:line], here[of_ours:end_ours], there[of_theirs:end_theirs])
        if between[1] == between[2] or between[0] == between[2]:
            settled += between[1]
        elif between[0] == between[1]:
            settled += between[2]
        else:
            pieces += [settled, between] if settled else [between]
            settled = []
        settled += was[line : line + 1]
        at, of_ours, of_theirs = line + 1, end_ours + 1, end_theirs + 1
    return [*pieces, settled] if settled else pieces
