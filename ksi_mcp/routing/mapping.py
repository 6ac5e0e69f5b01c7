"""Mappings: what an event's data becomes on its way to the target.

    "{{$}}"                                                the data, unchanged
    {"task.id": "{{data.id}}", "by": "{{agent|nobody}}"}   dotted target keys nest

Templates are those of `ksi_mcp.templates`: a template that is the whole text keeps the value's
type, and what it puts out is never expanded again. They see the event and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp import templates
from ksi_mcp.errors import Invalid
from ksi_mcp.events.model import MAX_DATA_BYTES
from ksi_mcp.events.patterns import shorten

MAX_KEYS = 200
MAX_CHARS = 8_000
MAX_DEPTH = 16
UNCHANGED: Final = "{{$}}"

SCOPE_NAMES: Final = ("event", "data", "source", "agent", "now", "$")
"""What a mapping may speak of; `$` is the data as a whole."""

_ROOT = re.compile(r"[^.\[]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventMapping:
    """A compiled mapping. `tree` is None when the data passes unchanged."""

    tree: dict[str, Any] | str | None

    def apply(self, scope: Mapping[str, Any]) -> dict[str, Any]:
        """The data for the target.

        Raises:
            MissingValue: a value is not there and has no default; `.name` says which.
            Invalid: the result is no object, or larger than an event may be.
        """
        if self.tree is None:
            data: dict[str, Any] = scope["data"]
            return data
        result = templates.render_tree(self.tree, scope, max_chars=MAX_DATA_BYTES)
        if not isinstance(result, dict):
            raise Invalid(
                f"the mapping {shorten(str(self.tree))} gives {type(result).__name__}, not an object",
                hint='name a key for it, e.g. {"value": "{{data.x}}"}',
            )
        size = len(json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
        if size > MAX_DATA_BYTES:
            raise Invalid(f"the mapped data has {size:,} bytes", hint=f"an event carries at most {MAX_DATA_BYTES:,}")
        return result


def compile_mapping(value: object) -> EventMapping:
    """A mapping, checked and ready to apply; None passes the data unchanged.

    Raises:
        Invalid: it is neither text nor an object, over 200 keys or 8,000 characters, a template in it
            is malformed or speaks of an unknown name, or two of its keys want the same place.
    """
    if value is None or value == UNCHANGED:
        return EventMapping(tree=None)
    if not isinstance(value, str | dict):
        raise Invalid(
            f"the mapping is of type {type(value).__name__}",
            hint='use an object of target keys and templates, or "{{$}}" to pass the data unchanged',
        )
    _measure(value)
    for path in templates.required(value):
        root = _ROOT.match(path)
        if root is None or root[0] not in SCOPE_NAMES:
            raise Invalid(
                f"the mapping asks for the unknown name {shorten(path)}",
                hint=f"names are {', '.join(SCOPE_NAMES)}; a field of the event's data is {{{{data.{path[:40]}}}}}",
            )
    if isinstance(value, str):
        if not (value.startswith("{{") and value.endswith("}}")):
            raise Invalid(
                f"the mapping {shorten(value)} is text, not an object",
                hint='name a key for it, e.g. {"text": "..."}',
            )
        return EventMapping(tree=value)
    tree: dict[str, Any] = {}
    for key, item in value.items():
        _put(tree, key, item)
    return EventMapping(tree=tree)


def _measure(value: Any) -> None:
    keys = chars = 0
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise Invalid(f"the mapping nests deeper than {MAX_DEPTH} levels")
        if isinstance(item, str):
            chars += len(_storable(item))
        elif isinstance(item, dict):
            keys += len(item)
            for key, inner in item.items():
                if not isinstance(key, str) or not key:
                    raise Invalid(f"the mapping has the key {shorten(key)}", hint="a key is text that is not empty")
                chars += len(_storable(key))
                pending.append((inner, depth + 1))
        elif isinstance(item, list | tuple):
            keys += len(item)
            pending.extend((inner, depth + 1) for inner in item)
        elif isinstance(item, int | float):
            chars += _digits(item)
        elif item is not None:
            raise Invalid(f"the mapping holds a value of type {type(item).__name__}", hint="use JSON values")
        if keys > MAX_KEYS:
            raise Invalid(f"the mapping has over {MAX_KEYS} keys", hint="pass a whole object, or the data with {{$}}")
        if chars > MAX_CHARS:
            raise Invalid(f"the mapping has over {MAX_CHARS:,} characters of keys and templates")


def _digits(number: float) -> int:
    """How long a number is in JSON: a rule that is too large to be reported could never be ended."""
    try:
        return len(json.dumps(number, allow_nan=False))
    except ValueError:
        raise Invalid("the mapping holds a number that JSON cannot hold", hint="give it as text") from None


def _storable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Invalid(f"the mapping has {shorten(ascii(text))}, which is half a character") from None
    return text


def _put(tree: dict[str, Any], dotted: str, item: Any) -> None:
    *parents, last = dotted.split(".")
    if not last or not all(parents):
        raise Invalid(f"the mapping's key {shorten(dotted)} has an empty part", hint="write e.g. result.score")
    if len(parents) > MAX_DEPTH:
        raise Invalid(f"the mapping's key {shorten(dotted)} nests deeper than {MAX_DEPTH} levels")
    place = tree
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise Invalid(f"the mapping sets {shorten(parent)} and something inside it ({shorten(dotted)})")
        place = inner
    if isinstance(item, dict):
        inner = place.setdefault(last, {})
        if not isinstance(inner, dict):
            raise Invalid(f"the mapping sets {shorten(dotted)} twice")
        for key, value in item.items():
            _put(inner, key, value)
    elif last in place:
        raise Invalid(f"the mapping sets {shorten(dotted)} twice")
    else:
        place[last] = item
