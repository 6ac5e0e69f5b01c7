"""Event names and the one matcher for them: rules, queries, waits and subscriptions all use it.

A name is segments of `[A-Za-z0-9_.-]+` joined by `:`. In a pattern `*` is one segment or a part of
one, `**` any number of segments (none too), and a lone `*` is every event. A pattern hears the
server's own events only when its first segment is spelled out, so that a rule on `*` can
never feed on the routing of its own deliveries.

Both levels (pieces of a segment between `*`, groups of segments between `**`) are matched leftmost
first. That never has to go back on a choice, since what follows a wildcard may start anywhere:
the time is at most the pattern's length times the name's, and both are bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ksi_mcp.errors import Invalid

MAX_NAME_CHARS = 200

RESERVED_SEGMENTS: frozenset[str] = frozenset(
    {
        "agent",
        "budget",
        "checkpoint",
        "completion",
        "composition",
        "decision",
        "monitor",
        "orchestration",
        "routing",
        "system",
        "turn",
    }
)
"""First segments that only the server itself may emit under."""

_SEGMENT = re.compile(r"[A-Za-z0-9_.-]+\Z")
_PATTERN_SEGMENT = re.compile(r"[A-Za-z0-9_.*-]+\Z")
_SHOWN = 80


def shorten(value: object, limit: int = _SHOWN) -> str:
    """The value as an error message may show it: quoted, on one line, cut to `limit` characters."""
    text = value if isinstance(value, str) else str(type(value).__name__)
    return repr(text if len(text) <= limit else text[:limit] + "...")


def check_event_name(name: object) -> str:
    """The name, if it is one.

    Raises:
        Invalid: it is not segments of letters, digits, `_`, `.`, `-` joined by `:`, or over 200 characters.
    """
    text = _check_text(name, "event name")
    for segment in text.split(":"):
        if not _SEGMENT.match(segment):
            why = "has an empty segment" if not segment else f"has the segment {shorten(segment)}"
            raise Invalid(
                f"event name {shorten(text)} {why}",
                hint="a name is letters, digits, '_', '.' and '-' in segments joined by ':', e.g. analysis:complete",
            )
    return text


def check_pattern(pattern: object) -> str:
    """The pattern, if it is one.

    Raises:
        Invalid: a segment is empty or holds a character that no name can hold, or `**` is only a
            part of a segment, or it is over 200 characters.
    """
    text = _check_text(pattern, "event pattern")
    for segment in text.split(":"):
        if not _PATTERN_SEGMENT.match(segment):
            why = "has an empty segment" if not segment else f"has the segment {shorten(segment)}"
            raise Invalid(
                f"event pattern {shorten(text)} {why}",
                hint="a pattern is an event name in which '*' stands for a segment or a part of one, e.g. task:*",
            )
        if "**" in segment and segment != "**":
            raise Invalid(
                f"event pattern {shorten(text)} has '**' inside the segment {shorten(segment)}",
                hint="'**' stands for whole segments: write it alone between colons, e.g. task:**:done",
            )
    return text


def _check_text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise Invalid(f"the {what} is {'empty' if value == '' else 'not text'}", hint="e.g. analysis:complete")
    if len(value) > MAX_NAME_CHARS:
        raise Invalid(f"the {what} {shorten(value)} has {len(value)} characters", hint=f"at most {MAX_NAME_CHARS}")
    return value


def is_reserved(name: str) -> bool:
    """Whether only the server may emit an event of that name."""
    return name.partition(":")[0] in RESERVED_SEGMENTS


class Glob:
    """A text in which each `*` stands for any run of characters, possibly none."""

    __slots__ = ("_middle", "_prefix", "_suffix", "literal", "text")

    def __init__(self, text: str) -> None:
        first, *rest = text.split("*")
        self.text = text
        self.literal = not rest
        self._prefix = first
        self._suffix = rest[-1] if rest else ""
        self._middle = tuple(piece for piece in rest[:-1] if piece)

    def matches(self, text: str) -> bool:
        """Whether the whole of `text` fits."""
        if self.literal:
            return text == self.text
        end = len(text) - len(self._suffix)
        at = len(self._prefix)
        if end < at or not text.startswith(self._prefix) or not text.endswith(self._suffix):
            return False
        for piece in self._middle:
            found = text.find(piece, at, end)
            if found < 0:
                return False
            at = found + len(piece)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A checked pattern, ready to match. Two patterns are equal when their text is."""

    text: str
    groups: tuple[tuple[Glob, ...], ...] = field(compare=False, repr=False)
    """The segments between one `**` and the next."""
    first_is_literal: bool
    literal: bool

    def fits(self, name: str) -> bool:
        """Whether the name has the pattern's shape, whoever may hear it."""
        if self.literal:
            return name == self.text
        segments = name.split(":")
        head, *rest = self.groups
        if not rest:
            return len(segments) == len(head) and _fit_at(head, segments, 0)
        tail = rest[-1]
        end = len(segments) - len(tail)
        at = len(head)
        if end < at or not _fit_at(head, segments, 0) or not _fit_at(tail, segments, end):
            return False
        for group in rest[:-1]:
            while at + len(group) <= end and not _fit_at(group, segments, at):
                at += 1
            at += len(group)
            if at > end:
                return False
        return True

    def matches(self, name: str) -> bool:
        """Whether an event of that name is heard: it fits, and the server's own events are named."""
        return (self.first_is_literal or not is_reserved(name)) and self.fits(name)


def _fit_at(group: tuple[Glob, ...], segments: list[str], at: int) -> bool:
    return all(glob.matches(segments[at + i]) for i, glob in enumerate(group))


def compile_pattern(pattern: object) -> Pattern:
    """The pattern, checked and ready to match.

    Raises:
        Invalid: see `check_pattern`.
    """
    text = check_pattern(pattern)
    segments = ["**"] if text == "*" else text.split(":")
    groups: list[tuple[Glob, ...]] = []
    group: list[Glob] = []
    for segment in segments:
        if segment == "**":
            groups.append(tuple(group))
            group = []
        else:
            group.append(Glob(segment))
    groups.append(tuple(group))
    return Pattern(text=text, groups=tuple(groups), first_is_literal="*" not in segments[0], literal="*" not in text)


def matches(pattern: str | Pattern, name: str) -> bool:
    """Whether an event of that name is heard under the pattern. Compile it once to ask often.

    Raises:
        Invalid: the pattern is none.
    """
    return (pattern if isinstance(pattern, Pattern) else compile_pattern(pattern)).matches(name)
