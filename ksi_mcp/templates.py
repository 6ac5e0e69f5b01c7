"""`{{path}}` templates: routing mappings, composition variables, scripted replies.

    {{data.items[0].score}}     a path into dictionaries and lists, never into attributes
    {{$}}                       everything
    {{a|b|c}}                   the first path that is present
    {{name|nobody}}             a last bare word that is no present path is the default
    {{name|default: any text}}  the same, spelled out; the text may hold spaces and bars
    {{title|slugify}}           the value as a slug: lower case, other characters one '-'; always text

A template that is the whole string keeps the value's type: `"{{data.score}}"` stays a number, and
its default is read as JSON where it is a number, `true`, `false`, `null` or quoted. Inside other text,
values are written as text, and everything but a string as JSON. Present means that the key exists:
`null` is a value. What a template puts out is never expanded again, so data cannot smuggle in a template.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from ksi_mcp.errors import Invalid

MAX_CHARS: Final = 64_000
"""Most characters that one rendering puts out, unless told otherwise."""
MAX_DEPTH: Final = 32
"""Deepest nesting of what is rendered."""
MAX_NODES: Final = 10_000
"""Most values, counting each dictionary, list and scalar, that one rendering puts out."""
MAX_EXPRESSION_CHARS: Final = 1_000

_OPEN, _CLOSE = "{{", "}}"
_NAME = r"[A-Za-z_][\w-]*"
_PATH = re.compile(rf"(?:\$|{_NAME})(?:\.(?:{_NAME}|\d{{1,9}})|\[-?\d{{1,9}}\]|\[\"[^\"\]]*\"\]|\['[^'\]]*'\])*")
_STEP = re.compile(r"\.?([A-Za-z_$][\w-]*|\d+)|\[(-?\d+)\]|\[[\"']([^\"'\]]*)[\"']\]")
_JSON_LITERAL = re.compile(
    r'-?(?:0|[1-9]\d{0,30})(?:\.\d{1,30})?(?:[eE][+-]?\d{1,3})?|true|false|null|"(?:[^"\\]|\\.)*"'
)
_SLUGIFY: Final = "slugify"
_DEFAULT = re.compile(r"\|\s*default\s*:")


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING
"""What stands for "there is no such value", since `None` is one."""


class MissingValue(Invalid):
    """A path that is not there and has no default. `name` is the path, `template` the expression."""

    def __init__(self, name: str, template: str) -> None:
        super().__init__(
            f"{_short(template)!r} needs {_short(name)!r}, which is not there",
            hint="give the value, or a default as in {{name|default: text}}",
        )
        self.name = name
        self.template = template


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expression:
    source: str
    paths: tuple[str, ...]
    default: str | Missing
    slugify: bool = False


def get_path(data: Any, path: str, default: Any = MISSING) -> Any:
    """Return the value at `path`, as in `data.items[0].score`; `["odd key"]` reaches any key.

    Only dictionaries and lists are entered. Without a `default`, a path that is not there raises
    `MissingValue`; text that is no path raises `Invalid`.
    """
    if len(path) > MAX_EXPRESSION_CHARS or not _PATH.fullmatch(path):
        raise Invalid(
            f"{_short(path)!r} is not a path", hint="write names joined by dots, and [0] for the first of a list"
        )
    value = _walk(data, path)
    if value is not MISSING:
        return value
    if default is MISSING:
        raise MissingValue(path, path)
    return default


def render(template: str, scope: Mapping[str, Any], *, max_chars: int = MAX_CHARS) -> Any:
    """Fill one template from `scope`.

    Raises `MissingValue` for a value that is not there, `Invalid` for a malformed expression or for
    a result beyond `max_chars`, `MAX_DEPTH` or `MAX_NODES`.
    """
    return _Output(max_chars).template(template, scope, depth=0)


def render_tree(value: Any, scope: Mapping[str, Any], *, max_chars: int = MAX_CHARS) -> Any:
    """Fill every string in nested dictionaries and lists; keys and other values stay as they are.

    The bounds are those of `render` and count for the whole result.
    """
    return _Output(max_chars).tree(value, scope, depth=0)


def names(template: Any) -> list[str]:
    """List the paths that a string or a tree of them looks at, in order, each once.

    The last word of `{{a|b}}` may be a path or a default and is listed too: see `required`.
    """
    return list(dict.fromkeys(path for expression in _expressions(template) for path in expression.paths))


def required(template: Any) -> list[str]:
    """List the paths that have neither an alternative nor a default: what must be given."""
    found = (e.paths[0] for e in _expressions(template) if len(e.paths) == 1 and e.default is MISSING)
    return list(dict.fromkeys(found))


class _Output:
    """What one rendering has put out so far, against its bounds."""

    def __init__(self, max_chars: int) -> None:
        self._chars_left = max_chars
        self._nodes_left = MAX_NODES
        self._max_chars = max_chars

    def tree(self, value: Any, scope: Mapping[str, Any] | None, *, depth: int) -> Any:
        """Copy `value`, filling its strings from `scope`; without a scope, copy it as data."""
        self._node(depth)
        if isinstance(value, str):
            if scope is not None and _OPEN in value:
                return self.template(value, scope, depth=depth)
            self._spend(len(value))
            return value
        if isinstance(value, Mapping):
            copy: dict[str, Any] = {}
            for key, item in value.items():
                if not isinstance(key, str):
                    raise Invalid(f"the key {_short(str(key))!r} is not text", hint="quote it")
                self._spend(len(key))
                copy[key] = self.tree(item, scope, depth=depth + 1)
            return copy
        if isinstance(value, list | tuple):
            return [self.tree(item, scope, depth=depth + 1) for item in value]
        if value is None or isinstance(value, bool | int | float):
            self._spend(len(_json(value)))
            return value
        raise Invalid(
            f"a value of type {type(value).__name__} cannot be put into a template",
            hint="use text, numbers, true, false, null, lists and objects",
        )

    def template(self, text: str, scope: Mapping[str, Any], *, depth: int) -> Any:
        parts = _parse(text)
        if len(parts) == 1 and isinstance(parts[0], _Expression):
            return self.tree(_evaluate(parts[0], scope, typed=True), None, depth=depth)
        pieces: list[str] = []
        for part in parts:
            if isinstance(part, str):
                self._spend(len(part))
                pieces.append(part)
                continue
            value = _evaluate(part, scope, typed=False)
            if isinstance(value, str):
                self._node(depth)
                self._spend(len(value))
                pieces.append(value)
                continue
            piece = _json(self.tree(value, None, depth=depth))
            pieces.append(piece)
        joined = "".join(pieces)
        if len(joined) > self._max_chars:  # JSON's own punctuation comes on top of what was counted
            self._too_long()
        return joined

    def _node(self, depth: int) -> None:
        self._nodes_left -= 1
        if depth > MAX_DEPTH:
            raise Invalid(f"the filled template nests deeper than {MAX_DEPTH}", hint="pass a part of the value")
        if self._nodes_left < 0:
            raise Invalid(f"the filled template has more than {MAX_NODES} values", hint="pass a part of the value")

    def _spend(self, chars: int) -> None:
        self._chars_left -= chars
        if self._chars_left < 0:
            self._too_long()

    def _too_long(self) -> None:
        raise Invalid(
            f"the filled template is longer than {self._max_chars} characters",
            hint="pass a part of the value, or a reference to it",
        )


def _parse(text: str) -> list[str | _Expression]:
    """Split into literal text and expressions. `{{` without an end is literal text."""
    parts: list[str | _Expression] = []
    at = 0
    while (start := text.find(_OPEN, at)) >= 0 and (end := text.find(_CLOSE, start + 2)) >= 0:
        if start > at:
            parts.append(text[at:start])
        parts.append(_parse_expression(text[start + 2 : end]))
        at = end + 2
    if at < len(text) or not parts:
        parts.append(text[at:])
    return parts


def _parse_expression(inner: str) -> _Expression:
    source = f"{_OPEN}{inner}{_CLOSE}"
    if len(inner) > MAX_EXPRESSION_CHARS:
        raise Invalid(
            f"the template {_short(source)!r} is longer than {MAX_EXPRESSION_CHARS} characters",
            hint="shorten its default",
        )
    default: str | Missing = MISSING
    if spelled_out := _DEFAULT.search(inner):
        default = inner[spelled_out.end() :].strip()
        inner = inner[: spelled_out.start()]
    words = [word.strip() for word in inner.split("|")]
    slugify = len(words) > 1 and words[-1] == _SLUGIFY
    if slugify:
        words.pop()
    if default is MISSING and len(words) > 1 and not _PATH.fullmatch(words[-1]):
        default = words.pop()
    for word in words:
        if not _PATH.fullmatch(word):
            raise Invalid(
                f"the template {_short(source)!r} is malformed at {_short(word)!r}",
                hint="write {{name}}, {{data.items[0]}}, {{a|b}} or {{name|default: text}}",
            )
    return _Expression(source=source, paths=tuple(words), default=default, slugify=slugify)


def _evaluate(expression: _Expression, scope: Mapping[str, Any], *, typed: bool) -> Any:
    value = _found(expression, scope, typed=typed)
    return _slug(value if isinstance(value, str) else _json(value)) if expression.slugify else value


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _found(expression: _Expression, scope: Mapping[str, Any], *, typed: bool) -> Any:
    for path in expression.paths:
        value = _walk(scope, path)
        if value is not MISSING:
            return value
    default = expression.default
    last = expression.paths[-1]
    if default is MISSING and len(expression.paths) > 1 and "." not in last and "[" not in last:
        default = last
    if default is MISSING:
        raise MissingValue(expression.paths[0], expression.source)
    if default.startswith("'") and default.endswith("'") and len(default) > 1:
        return default[1:-1]
    if (typed or default.startswith('"')) and _JSON_LITERAL.fullmatch(default):
        try:
            return json.loads(default)
        except ValueError:  # an escape that JSON does not have: the text as it stands
            return default
    return default


def _walk(value: Any, path: str) -> Any:
    for position, step in enumerate(_STEP.finditer(path)):
        name, index, key = step.groups()
        if name == "$" and position == 0:
            if isinstance(value, Mapping) and "$" in value:
                value = value["$"]
        elif isinstance(value, Mapping):
            wanted = next(part for part in (name, key, index) if part is not None)
            if wanted not in value:
                return MISSING
            value = value[wanted]
        elif isinstance(value, list | tuple):
            number = index if index is not None else name
            if number is None or not number.lstrip("-").isdecimal() or not -len(value) <= int(number) < len(value):
                return MISSING
            value = value[int(number)]
        else:
            return MISSING
    return value


def _expressions(template: Any, depth: int = 0) -> list[_Expression]:
    if depth > MAX_DEPTH:
        raise Invalid(f"the template nests deeper than {MAX_DEPTH}", hint="flatten it")
    if isinstance(template, str):
        return [part for part in _parse(template) if isinstance(part, _Expression)]
    if isinstance(template, Mapping):
        template = list(template.values())
    if isinstance(template, list | tuple):
        return [found for item in template for found in _expressions(item, depth + 1)]
    return []


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except ValueError as error:  # a number of more digits than Python writes
        raise Invalid("a number in the data is too large to be written", hint="pass it as text") from error


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004
