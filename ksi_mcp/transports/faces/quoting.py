"""What agents wrote, where a person reads it beside our own words: marked as theirs, line by line."""

from __future__ import annotations

from typing import Final

_MARK: Final = "> "
_UNSEEN: Final = "\N{REPLACEMENT CHARACTER}"


def quoted(text: str, most: int) -> str:
    """At most so many characters of it, each line marked, so that none can be taken for ours.

    Characters that a screen obeys instead of showing them, or that turn the direction of text round, are replaced.
    """
    cut = text if len(text) <= most else text[:most] + " ..."
    return "\n".join(_MARK + "".join(map(_shown, line.expandtabs(4))) for line in cut.splitlines())


def _shown(character: str) -> str:
    return character if character.isprintable() else _UNSEEN
