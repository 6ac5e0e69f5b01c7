"""What a reply must be like, and the word to the model when it is not: pure, and bounded for hostile input.

Whoever sends a message may say what to expect, so a schema, a pattern and a reply may each be built to keep the
server busy. Patterns run on an engine whose time is linear in the text; a schema is counted with its references
followed before it is taken, may not refer to itself or to anything outside, and a reply is looked into up to a size.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from ksi_mcp.errors import Invalid

OnInvalid = Literal["escalate", "fail"]

DEFAULT_ATTEMPTS: Final = 3
MAX_ATTEMPTS: Final = 10
MAX_CHECKED_CHARS: Final = 200_000
"""A longer reply is not looked into; it is not as expected."""

_MAX_SCHEMA_CHARS: Final = 32_000
_MAX_SCHEMA_COST: Final = 2_000
_MAX_SCHEMA_DEPTH: Final = 64
_PATTERN_COST: Final = 50
_MAX_REGEX_CHARS: Final = 1_000
_MAX_REGEX_BYTES: Final = 128 * 1024
"""Of a compiled pattern: with the length of the text this bounds the time of a search."""
_MAX_CONTAINS: Final = 20
_MAX_CONTAINS_CHARS: Final = 1_000
_MAX_LENGTH: Final = 1_000_000
_MAX_PROBLEMS: Final = 5
_MAX_PROBLEM_CHARS: Final = 300

_KEYS: Final = (
    "json_schema",
    "structured",
    "regex",
    "min_length",
    "max_length",
    "contains",
    "max_attempts",
    "on_invalid",
)
_ONE: Final = frozenset(
    ("items", "additionalItems", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else")
)
_MANY: Final = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
_NAMED: Final = frozenset(("properties", "patternProperties", "dependentSchemas", "dependencies"))
_REFUSED: Final = frozenset(
    ("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor")
)
"""Keywords whose cost cannot be counted beforehand, and those that change what a reference means."""
_IDS: Final = frozenset(("$id", "id"))
"""The same, but for the schema as a whole, whose own name changes nothing."""
_LINEAR: Final = "patterns are matched in linear time: no look-around, no back-references, no huge repetitions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What a reply must be like; all that is given must hold. Nothing given: every reply will do."""

    json_schema: str | None = None
    """As JSON; the reply must be JSON that fits, alone or in one fenced block."""
    structured: bool = False
    """The provider is told the schema as well, and sees to it itself where it can."""
    regex: str | None = None
    """Must be found somewhere in the reply."""
    min_length: int | None = None
    """In characters."""
    max_length: int | None = None
    contains: tuple[str, ...] = ()
    max_attempts: int = DEFAULT_ATTEMPTS
    """Replies in all, the first one among them."""
    on_invalid: OnInvalid = "escalate"
    """After the last attempt: `escalate` parks the turn until somebody answers it, `fail` ends it."""


def parse_expect(value: Any) -> Expect:
    """Read `{json_schema?, regex?, min_length?, max_length?, contains?, max_attempts?, on_invalid?}`.

    Raises:
        Invalid: with the path of what is wrong; also for what could not be checked in bounded time.
    """
    if not isinstance(value, dict):
        raise Invalid(f"expect must be an object, not {_shown(value)}", hint=_hint())
    if unknown := [str(key) for key in value if key not in _KEYS]:
        raise Invalid(f"expect has the unknown key {_shown(unknown[0])}", hint=_hint())
    shortest = _whole(value, "min_length", 0, _MAX_LENGTH)
    longest = _whole(value, "max_length", 1, _MAX_LENGTH)
    if shortest is not None and longest is not None and shortest > longest:
        raise Invalid(f"expect.min_length {shortest} is above expect.max_length {longest}", hint="swap or drop one")
    on_invalid: Any = value.get("on_invalid") or "escalate"
    if on_invalid not in ("escalate", "fail"):
        raise Invalid(
            f"expect.on_invalid is {_shown(on_invalid)}", hint="'escalate' parks the turn for an answer, 'fail' ends it"
        )
    structured = value.get("structured")
    if structured not in (None, True, False) or (structured and value.get("json_schema") is None):
        raise Invalid(
            f"expect.structured is {_shown(structured)}", hint="true, together with json_schema, or leave it out"
        )
    return Expect(
        json_schema=_schema(value.get("json_schema")),
        structured=bool(structured),
        regex=_regex(value.get("regex")),
        min_length=shortest,
        max_length=longest,
        contains=_contains(value.get("contains")),
        max_attempts=_whole(value, "max_attempts", 1, MAX_ATTEMPTS) or DEFAULT_ATTEMPTS,
        on_invalid=on_invalid,
    )


def encode_expect(value: Any) -> str:
    """The same as it is stored with a turn, after it was checked.

    Raises:
        Invalid: see `parse_expect`.
    """
    parse_expect(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def check(expect: Expect, text: str) -> str | None:
    """None if the reply is as expected; else what the model is told: what is wrong, where, what to do."""
    problems = problems_of(expect, text)
    if not problems:
        return None
    wrong = "\n".join(f"- {problem}" for problem in problems)
    todo = "Reply again, the whole answer, with this put right"
    todo += ": only the JSON, nothing before or after it." if expect.json_schema is not None else "."
    return f"Your reply was not as expected:\n{wrong}\n{todo}"


def problems_of(expect: Expect, text: str) -> list[str]:
    """What is not as expected, the first few of it; empty if all is."""
    return [problem[:_MAX_PROBLEM_CHARS] for problem in _problems(expect, text)]


def _problems(expect: Expect, text: str) -> list[str]:
    problems: list[str] = []
    size = len(text)
    if expect.min_length is not None and size < expect.min_length:
        problems.append(f"it has {size:,} characters, at least {expect.min_length:,} are needed")
    if expect.max_length is not None and size > expect.max_length:
        problems.append(f"it has {size:,} characters, at most {expect.max_length:,} are allowed")
    problems += [f"it does not contain the text {_shown(wanted)}" for wanted in expect.contains if wanted not in text]
    if (expect.regex is None and expect.json_schema is None) or len(problems) > _MAX_PROBLEMS:
        return problems[:_MAX_PROBLEMS]
    if size > MAX_CHECKED_CHARS:
        return [*problems, f"it has {size:,} characters; more than {MAX_CHECKED_CHARS:,} are not looked into"]
    if expect.regex is not None and not _matcher(expect.regex).is_valid(text):
        problems.append(f"nothing in it matches the regular expression {expect.regex}")
    if expect.json_schema is not None:
        problems += _json_problems(expect.json_schema, text)
    return problems


def _json_problems(schema: str, text: str) -> list[str]:
    found = _unfenced(text)
    try:
        value = json.loads(found, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return [f"it is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"]
    except (ValueError, RecursionError) as error:
        return [f"it is not JSON that can be read: {str(error)[:80]}"]
    try:
        failures = list(itertools.islice(_validator(schema).iter_errors(value), _MAX_PROBLEMS))
    except (ValueError, RecursionError) as error:  # nested too deep, half a character
        return [f"it is not JSON that can be checked: {str(error)[:80]}"]
    return [f"at {_place(failure.instance_path)}: {failure.message}" for failure in failures]


def _unfenced(text: str) -> str:
    """The content of the reply's only fenced block, or all of it."""
    parts = text.split("```")
    if len(parts) != 3:  # noqa: PLR2004  before, inside, after
        return text
    inside = parts[1]
    first, newline, rest = inside.partition("\n")
    return rest if newline and first.strip().lower() in ("json", "json5", "jsonc", "") else inside


def _place(path: list[Any]) -> str:
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "$" + "".join(steps)[:120]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# ------------------------------------------------------------------------------------ what may be asked


def _whole(value: dict[str, Any], key: str, least: int, most: int) -> int | None:
    given = value.get(key)
    if given is None:
        return None
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 10:  # noqa: PLR2004  digits
        given = int(given)
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if type(given) is not int or not least <= given <= most:
        raise Invalid(f"expect.{key} is {_shown(given)}", hint=f"it is a whole number from {least} to {most:,}")
    return given


def _contains(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    wanted = value if isinstance(value, list) else [value]
    if len(wanted) > _MAX_CONTAINS:
        raise Invalid(f"expect.contains has {len(wanted):,} entries", hint=f"at most {_MAX_CONTAINS} are checked")
    for index, text in enumerate(wanted):
        if not isinstance(text, str) or not 0 < len(text) <= _MAX_CONTAINS_CHARS:
            raise Invalid(
                f"expect.contains.{index} is {_shown(text)}",
                hint=f"it is text of 1 to {_MAX_CONTAINS_CHARS:,} characters",
            )
    return tuple(wanted)


def _regex(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_REGEX_CHARS:
        raise Invalid(f"expect.regex is {_shown(value)}", hint=f"it is text of 1 to {_MAX_REGEX_CHARS:,} characters")
    try:
        _matcher(value)
    except ValueError:
        raise Invalid(f"expect.regex {_shown(value)} cannot be used", hint=_LINEAR) from None
    return value


def _schema(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Invalid(f"expect.json_schema is {_shown(value)}", hint="it is a JSON schema, an object")
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        raise Invalid("expect.json_schema is not JSON", hint="use objects, lists, text, numbers, true, false") from None
    if len(text) > _MAX_SCHEMA_CHARS:
        raise Invalid(
            f"expect.json_schema has {len(text):,} characters", hint=f"at most {_MAX_SCHEMA_CHARS:,} are checked"
        )
    _taken(text)
    return text


@lru_cache(maxsize=128)
def _taken(text: str) -> None:
    """Refuse a schema that cannot be used; it is asked again for every reply, so the answer is kept."""
    _Count(json.loads(text)).of_all()
    try:
        _validator(text)
    except ValueError as error:
        place = ".".join(str(step) for step in getattr(error, "instance_path", ()))
        message = str(getattr(error, "message", error))
        where = f"expect.json_schema.{place}" if place else "expect.json_schema"
        hint = (
            _LINEAR if "pattern" in place else "it is checked as JSON Schema, draft 2020-12 unless $schema says other"
        )
        raise Invalid(f"{where[:160]}: {message[:200]}", hint=hint) from None


class _Count:
    """How many schemas are looked at for one value at most, references followed: each may be visited once a value."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[int, int] = {}
        self._open: set[int] = set()

    def of_all(self) -> None:
        """Raise Invalid if it is too much."""
        self._of(self._root, "expect.json_schema", 0)

    def _of(self, node: Any, path: str, depth: int) -> int:
        if not isinstance(node, dict):
            return 1
        if id(node) in self._known:
            return self._known[id(node)]
        if id(node) in self._open:
            raise Invalid(
                f"{path[:160]} refers to a schema it is part of", hint="write the levels out, as many as needed"
            )
        if depth > _MAX_SCHEMA_DEPTH:
            raise Invalid(f"{path[:160]} is nested too deep", hint=f"at most {_MAX_SCHEMA_DEPTH} levels are followed")
        if refused := sorted((_REFUSED if depth == 0 else _REFUSED | _IDS) & node.keys()):
            raise Invalid(
                f"{path[:160]} uses {refused[0]}", hint="say it with properties, required, additionalProperties"
            )
        self._open.add(id(node))
        cost = 1 + sum(self._of(child, place, depth + 1) for child, place in self._children(node, path))
        self._open.discard(id(node))
        cost += _PATTERN_COST * ("pattern" in node)
        if cost > _MAX_SCHEMA_COST:
            raise Invalid(
                f"{path[:160]} is too large to be checked, its references followed",
                hint=f"at most {_MAX_SCHEMA_COST:,} schemas are looked at; a pattern counts {_PATTERN_COST}",
            )
        self._known[id(node)] = cost
        return cost

    def _children(self, node: dict[str, Any], path: str) -> list[tuple[Any, str]]:
        found: list[tuple[Any, str]] = []
        for key, value in node.items():
            place = f"{path}.{key}"
            if key == "$ref":
                found.append((self._target(value, place), place))
            elif key in _NAMED and isinstance(value, dict):
                found += [(child, f"{place}.{name}") for name, child in value.items()]
                if key == "patternProperties":
                    found += [({"pattern": ""}, place)] * len(value)
            elif key in _MANY and isinstance(value, list):
                found += [(child, f"{place}.{index}") for index, child in enumerate(value)]
            elif key in _ONE:
                found.append((value, place))
        return found

    def _target(self, reference: Any, path: str) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise Invalid(
                f"{path[:160]} is {_shown(reference)}", hint="only what is in the schema itself: '#/$defs/name'"
            )
        node: Any = self._root
        for step in reference.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(node):
                node = node[int(name[:9])]
            elif isinstance(node, dict) and name in node:
                node = node[name]
            else:
                raise Invalid(f"{path[:160]}: there is no {_shown(reference)}", hint="put it under '$defs'")
        return node


@lru_cache(maxsize=128)
def _validator(schema: str) -> Any:
    return _compiled(json.loads(schema))


@lru_cache(maxsize=128)
def _matcher(regex: str) -> Any:
    # The same engine as for the patterns of a schema, so that one set of limits is enough.
    return _compiled({"pattern": regex})


def _compiled(schema: dict[str, Any]) -> Any:
    import jsonschema_rs  # 14 ms and 6 MB, and most turns expect nothing

    return jsonschema_rs.validator_for(
        schema,
        mask="it",
        offline=True,
        validate_formats=False,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=_MAX_REGEX_BYTES, dfa_size_limit=_MAX_REGEX_BYTES * 8),
    )


def _hint() -> str:
    return f"expect takes {', '.join(_KEYS)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004  a line's worth
