"""What a tool takes, as words of a command line: each parameter, how it is written, and what was written, read.

Text is literal: `7` is the text 7, `@home` is a text. Objects and lists are JSON, `key=value` (repeated), `@file.json`,
`@file.yaml` or `-` for standard input. What a file holds never becomes a text by accident.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ksi_mcp.cli.escaping import one_line
from ksi_mcp.errors import Invalid
from ksi_mcp.tools.tool import Tool
from ksi_mcp.yamlio import safe_load

MAX_FILE_BYTES: Final = 20_000_000
_MOST_PLACED: Final = 2
_SCALARS: Final = frozenset({"string", "number", "integer"})
_SUBJECTS: Final = frozenset(
    {"agent", "orchestration", "turn", "turns", "checkpoint", "account", "task", "name", "names", "event", "path"}
    | {"composition", "topic", "pattern", "rule_id"}
)
"""What a command is about, where nothing is required: its first parameter can then be written without its name."""
_KEY_VALUE: Final = re.compile(r"([^\s=\[\]{}\"']+)=(.*)", re.DOTALL)
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of a tool, as a command line has it."""

    name: str
    schema: Mapping[str, Any]
    kinds: tuple[str, ...]
    """JSON's names of what it takes; the first is what a word is taken for."""
    required: bool
    place: int | None
    """The place at which it may be written without its name."""
    aliases: tuple[str, ...]

    @property
    def option(self) -> str:
        """`source_pattern` is `--source-pattern`."""
        return option_of(self.name)

    @property
    def is_flag(self) -> bool:
        """`--dry-run`, `--no-dry-run`."""
        return self.kinds == ("boolean",)

    @property
    def many(self) -> bool:
        """Whether several words in a row are several values."""
        return self.kinds[0] == "array"

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it can be, or its items can be; none if any."""
        found = self.schema.get("enum") or item_schema(self.schema).get("enum") or ()
        return tuple(map(str, found))


def option_of(name: str) -> str:
    """A parameter's name as an option."""
    return "--" + name.replace("_", "-")


def parameters_of(tool: Tool) -> tuple[Parameter, ...]:
    """All parameters, in the order of the declaration."""
    schema = tool.schema()
    required = tuple(schema.get("required", ()))
    properties: dict[str, Any] = schema["properties"]
    placed = _placed(properties, required)
    return tuple(
        Parameter(
            name=name,
            schema=each,
            kinds=kinds_of(each),
            required=name in required,
            place=placed.index(name) if name in placed else None,
            aliases=tuple(alias for alias, ours in tool.aliases.items() if ours == name),
        )
        for name, each in properties.items()
    )


def _placed(properties: Mapping[str, Any], required: Sequence[str]) -> list[str]:
    """Which may be written without their names: the first required ones, else what the command is about."""
    first = list(required) or [name for name in list(properties)[:1] if name in _SUBJECTS]
    placed: list[str] = []
    for name in first:
        kinds = kinds_of(properties[name])
        if kinds[0] == "array":
            return placed[:_MOST_PLACED] or [name]
        if _SCALARS & set(kinds):
            placed.append(name)
    return placed[:_MOST_PLACED]


def kinds_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """What a schema takes, in the order in which it says so. One that says nothing takes a text or any JSON."""
    found: list[str] = []
    for each in (schema, *schema.get("anyOf", ())):
        kind = each.get("type", ())
        found += [kind] if isinstance(kind, str) else kind
    return tuple(dict.fromkeys(kind for kind in found if kind != "null")) or ("string", "object", "array")


def item_schema(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a list's items are."""
    for each in (schema, *schema.get("anyOf", ())):
        if isinstance(found := each.get("items"), dict):
            return found
    return {}


def read(parameter: Parameter, words: Sequence[str], *, shown: str | None = None) -> Any:
    """The value that was written. `shown` is what to call it in an error.

    Raises:
        Invalid: it is no such value.
    """
    what = shown or parameter.option
    match parameter.kinds[0]:
        case "array":
            return _list(parameter, words, what)
        case "object":
            return _object(parameter.schema, parameter.kinds, words, what)
    if len(words) > 1 and "array" in parameter.kinds:
        return _list(parameter, words, what)
    if len(words) > 1:
        raise Invalid(f"{what} is given {len(words)} times", hint="give it once")
    return _scalar(parameter.schema, parameter.kinds, words[0], what)


def _scalar(schema: Mapping[str, Any], kinds: Sequence[str], word: str, what: str) -> Any:
    if "string" not in kinds or kinds[0] != "string":
        try:
            return _plain(kinds, word)
        except ValueError:
            if "string" not in kinds:
                raise Invalid(f"{what} takes {_a(kinds[0])}, not {_shown(word)}") from None
    if "object" in kinds or "array" in kinds:
        written = _json_of(word)
        if isinstance(written, dict if "array" not in kinds else dict | list):
            return written
    choices = schema.get("enum")
    if choices and word not in choices:
        raise Invalid(f"{what} cannot be {_shown(word)}", hint=f"one of {', '.join(map(str, choices))}")
    return _standard_input(what) if word == "-" and not choices else word


def _plain(kinds: Sequence[str], word: str) -> Any:
    """A number or a truth value; ValueError if it is none of those that are taken."""
    if "boolean" in kinds and word in ("true", "false"):
        return word == "true"
    if "integer" in kinds or "number" in kinds:
        try:
            return int(word)
        except ValueError:
            if "number" in kinds and math.isfinite(number := float(word)):
                return number
    raise ValueError


def _list(parameter: Parameter, words: Sequence[str], what: str) -> Any:
    items = item_schema(parameter.schema)
    kinds = kinds_of(items)
    found: list[Any] = []
    for word in words:
        written = _json_of(word) if word.lstrip().startswith("[") else None
        if isinstance(written, list):
            found += written
        elif kinds[0] != "string" and (word == "-" or word.startswith("@")):
            given = _document(word, what)
            found += given if isinstance(given, list) else [given]
        elif kinds[0] == "object":
            found.append(_object(items, kinds, [word], what))
        else:
            found.append(_scalar(items, kinds, word, what))
    return found


def _object(schema: Mapping[str, Any], kinds: Sequence[str], words: Sequence[str], what: str) -> Any:
    properties = schema.get("properties", {})
    found: dict[str, Any] = {}
    for word in words:
        if word == "-" or word.startswith("@"):
            if "string" in kinds and "YAML" in str(schema.get("description")):  # as it is, comments and all
                return _text(word, what)
            given = _document(word, what)
        else:
            given = _json_of(word)
        if isinstance(given, dict):
            found |= given
        elif "array" in kinds and isinstance(given, list) and len(words) == 1:
            return given
        elif (pair := _KEY_VALUE.fullmatch(word)) is not None and not word.startswith("@"):
            _add(found, pair[1], pair[2], properties.get(pair[1], {}), what)
        elif "string" in kinds and len(words) == 1 and not word.startswith("@"):
            return word
        else:
            fields = f"; fields are {', '.join(properties)}" if properties else ""
            raise Invalid(
                f"{what} takes an object, not {_shown(word)}",
                hint=f"write key=value, JSON, @file.json, @file.yaml or -{fields}",
            )
    return found


def _add(found: dict[str, Any], key: str, text: str, schema: Mapping[str, Any], what: str) -> None:
    """One `key=value`. What a schema does not say is JSON, or else a text."""
    value: Any = text
    if not schema:
        value = text if (written := _json_of(text)) is None and text != "null" else written
    elif (kinds := kinds_of(schema))[0] == "array":
        more = _json_of(text) if text.startswith("[") else None
        value = [*found.get(key, ()), *(more if isinstance(more, list) else [text])]
    elif kinds[0] == "object":
        value = _object(schema, kinds, [text], f"{what} {key}")
    else:
        value = None if text == "null" and kinds[0] != "string" else _scalar(schema, kinds, text, f"{what} {key}")
    found[key] = value


def read_object(words: Sequence[str], what: str) -> dict[str, Any]:
    """An object that was written as one, whatever is in it.

    Raises:
        Invalid: it is none.
    """
    found: dict[str, Any] = _object({}, ("object",), words, what)
    return found


def _json_of(word: str) -> Any:
    """What a word says as JSON; None if it is none."""
    try:
        return json.loads(word, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _document(word: str, what: str) -> Any:
    """What is in `@file` or on standard input: JSON, or else YAML."""
    text = _text(word, what)
    if (found := _json_of(text)) is not None:
        return found
    if word.endswith(".json"):
        raise Invalid(f"{what}: {_shown(word[1:])} holds no JSON")
    return safe_load(text, what=f"{what} {_shown(word)}", max_bytes=MAX_FILE_BYTES)


def _text(word: str, what: str) -> str:
    if word == "-":
        return _standard_input(what)
    try:
        with Path(word[1:]).expanduser().open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as failure:
        why = failure.strerror if isinstance(failure, OSError) else "no file has such a name"
        raise Invalid(f"{what}: {_shown(word[1:])} cannot be read: {why}") from None
    return _decoded(raw, what)


def _standard_input(what: str) -> str:
    if sys.stdin is None:
        raise Invalid(f"{what}: there is no standard input")
    return _decoded(sys.stdin.buffer.read(MAX_FILE_BYTES + 1), what).removesuffix("\n")


def _decoded(raw: bytes, what: str) -> str:
    if len(raw) > MAX_FILE_BYTES:
        raise Invalid(f"{what}: more than {MAX_FILE_BYTES:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise Invalid(f"{what}: byte {failure.start} is not UTF-8") from None


def _a(kind: str) -> str:
    return {"integer": "a whole number", "number": "a number", "boolean": "true or false"}.get(kind, kind)


def _shown(word: str) -> str:
    line = one_line(word)
    return repr(line if len(line) <= _SHOWN else line[:_SHOWN] + "...")
