"""What a join waits for. Its state lives in the store (see `collecting.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp import templates
from ksi_mcp.errors import Invalid
from ksi_mcp.events.patterns import Pattern, compile_pattern, shorten
from ksi_mcp.routing.mapping import compile_mapping
from ksi_mcp.routing.targets import AGENT, target_of

MAX_PARTS: Final = 20
MAX_BY_CHARS: Final = 200
MAX_KEY_CHARS: Final = 200
MAX_TIMEOUT_S: Final = 30 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the things that a join waits for: events of a pattern, or what comes from an agent (by id or name)."""

    text: str
    pattern: Pattern | None

    @property
    def breadth(self) -> tuple[int, int, int, int]:
        """Sorts parts by how much they take, the narrowest first: an event of several is kept for that one."""
        if self.pattern is None:
            return 0, 0, 1, 0
        segments = self.text.split(":")
        whole = len(segments) if self.text == "*" else 0
        return segments.count("**") + whole, segments.count("*"), self.text.count("*"), -len(self.text)

    def fits(self, name: str, agent_id: str | None, agent_name: Callable[[], str | None]) -> bool:
        """Whether an event is of this part."""
        if self.pattern is not None:
            return self.pattern.matches(name)
        wanted = self.text.removeprefix(AGENT)
        return agent_id is not None and wanted in (agent_id, agent_name())


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Collects one event of each part, by key, and fires once with all of them, or with what is there when time is up.

    `by` is a template whose value keeps collections apart; None: there is one. `timeout_s` counts from the first
    arrival; None: it waits for ever.
    """

    parts: tuple[Part, ...]
    by: str | None
    timeout_s: float | None

    @property
    def shown(self) -> dict[str, Any]:
        """As it is written and stored."""
        found: dict[str, Any] = {"all_of": [part.text for part in self.parts]}
        if self.by is not None:
            found["by"] = self.by
        if self.timeout_s is not None:
            found["timeout_s"] = self.timeout_s
        return found

    def key(self, scope: Mapping[str, Any]) -> str:
        """Which collection an event belongs to.

        Raises:
            MissingValue: the event does not have what `by` names.
            Invalid: the key is too long.
        """
        if self.by is None:
            return ""
        value = templates.render(self.by, scope, max_chars=MAX_KEY_CHARS)
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def join_of(value: object) -> Join | None:
    """Read a join.

    Raises:
        Invalid: a part of it cannot be taken; the message names it.
    """
    if value is None or isinstance(value, Join):
        return value
    hint = 'e.g. {"all_of": ["review:done", "agent:critic"], "by": "{{data.task_id}}", "timeout_s": 600}'
    if not isinstance(value, dict) or (unknown := sorted(set(value) - {"all_of", "by", "timeout_s"})):
        what = f"has the key {shorten(unknown[0])}" if isinstance(value, dict) else f"is {shorten(value)}"
        raise Invalid(f"the join {what}", hint=hint)
    patterns, by, timeout_s = value.get("all_of"), value.get("by"), value.get("timeout_s")
    if not isinstance(patterns, list | tuple) or not 2 <= len(patterns) <= MAX_PARTS:  # noqa: PLR2004  a join of one is none
        raise Invalid("all_of of the join is no list of several patterns", hint=f"2 to {MAX_PARTS}; {hint}")
    if len(set(map(str, patterns))) < len(patterns):
        raise Invalid("all_of of the join names a part twice", hint="each part once")
    if by is not None and not (isinstance(by, str) and 0 < len(by) <= MAX_BY_CHARS and "{{" in by):
        raise Invalid(f"by of the join is {shorten(by)}", hint="a template such as {{data.task_id}}")
    if by is not None:
        compile_mapping({"by": by})
    if timeout_s is not None and not (
        isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool) and 0 < timeout_s <= MAX_TIMEOUT_S
    ):
        raise Invalid(f"timeout_s of the join is {shorten(timeout_s)}", hint=f"seconds, at most {MAX_TIMEOUT_S:,}")
    return Join(parts=tuple(_part(text) for text in patterns), by=by, timeout_s=timeout_s)


def _part(text: object) -> Part:
    if isinstance(text, str) and text.startswith(AGENT):
        return Part(text=str(target_of(text)), pattern=None)
    if not isinstance(text, str):
        raise Invalid(f"all_of of the join has {shorten(text)}", hint="event patterns, or agent:<id or name>")
    return Part(text=text, pattern=compile_pattern(text))
