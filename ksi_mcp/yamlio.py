"""YAML in and out, safe against hostile input. The only module that imports `yaml`.

Reading gives what JSON can hold: dictionaries with string keys, lists, strings, integers, finite
floats, booleans and None. Dates and times stay strings, keys are always strings, and neither
aliases nor tags can make more of a text than it shows.

Documents are built straight from the parser's events: that is iterative, so depth cannot overflow a
stack, and each place in the text is known when something is wrong with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ksi_mcp.errors import Invalid

MAX_DEPTH = 64
"""Levels of nesting; real files stay under ten."""

MAX_ALIAS_NODES = 100_000
"""Nodes that aliases may add to a document, all together."""

_MAX_DIGITS = 400
_MAX_BITS = 1_300  # under 400 digits
_TAG = "tag:yaml.org,2002:"
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_BOOLS = {"yes": True, "no": False, "true": True, "false": False, "on": True, "off": False}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
# YAML 1.2's numbers with 1.1's underscores. A leading zero or colons make a string: codes and times are not numbers.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)\Z|0x[0-9a-fA-F_]*[0-9a-fA-F]\Z|0o[0-7_]*[0-7]\Z|0b[01_]*[01]\Z")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
# What a block scalar keeps as it is; anything else is written in double quotes with escapes.
_BLOCK_TEXT = re.compile(r"[^\s](?:[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff])*\Z")
_BARE_WORD = re.compile(r"![A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
# Line breaks that a reader would turn into newlines unless they are escaped.
_BREAKS = re.compile(r"[\r\x85\u2028\u2029]")


def safe_load(text: str | bytes, *, what: str, max_bytes: int = 2_000_000) -> Any:
    """The one document in `text`; None if it is empty.

    `what` names the input in errors (`"composition 'x'"`), never a path.

    Raises:
        Invalid: not YAML, more than one document, a key twice, an unknown tag, too large, too deep.
    """
    # None: what a last `---` leaves.
    found = [each for each in _documents(text, what=what, max_bytes=max_bytes) if each[0] is not None]
    if len(found) > 1:
        raise Invalid(
            f"{what} holds {len(found)} YAML documents, the second from line {found[1][1]} on",
            hint="keep one, or put them into files of their own",
        )
    return found[0][0] if found else None


def safe_load_all(text: str | bytes, *, what: str, max_bytes: int = 2_000_000) -> list[Any]:
    """Every document in `text`, in order; raises as `safe_load`."""
    return [document for document, _line in _documents(text, what=what, max_bytes=max_bytes)]


def _documents(text: str | bytes, *, what: str, max_bytes: int) -> list[tuple[Any, int]]:
    """Every document, and the line that it begins at."""
    source = _decoded(text, what=what, max_bytes=max_bytes)
    parser = _PARSER(source)
    try:
        return _Builder(what=what).documents(_events(parser))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = _short(" ".join(part for part in (error.context, error.problem) if part))
        raise Invalid(f"{what} is not valid YAML{_at(mark)}: {problem}") from None
    except yaml.reader.ReaderError as error:
        character = error.character if isinstance(error.character, int) else ord(str(error.character)[:1] or "?")
        near = f"near line {source.count(chr(10), 0, error.position) + 1}"
        raise Invalid(f"{what} is not valid YAML, {near}: character U+{character:04X} is not allowed") from None
    except yaml.YAMLError as error:
        raise Invalid(f"{what} is not valid YAML: {_short(str(error))}") from None
    finally:
        parser.dispose()


def dump(document: Any) -> str:
    """`document` as YAML: order kept, multi-line text as block scalars, no aliases, the same every time.

    Raises:
        Invalid: it holds something YAML or JSON cannot carry.
    """
    text: str = yaml.dump(
        plain(document),
        Dumper=_Dumper,
        allow_unicode=True,
        default_flow_style=False,
        sort_keys=False,
        width=1_000_000,
    )
    return text


def plain(document: Any) -> Any:
    """A copy of `document` that holds built-in types only and can be written and read back.

    Raises:
        Invalid: it holds something that YAML or JSON cannot carry, or nests too deep.
    """
    return _plain(document, depth=0)


def _decoded(text: str | bytes, *, what: str, max_bytes: int) -> str:
    size = len(text)
    if size > max_bytes:
        raise Invalid(f"{what} is too large: {size:,} bytes, the limit is {max_bytes:,}")
    try:
        raw = text.encode() if isinstance(text, str) else text
        source = raw.decode()
    except UnicodeError:
        raise Invalid(f"{what} is not UTF-8 text") from None
    if len(raw) > max_bytes:
        raise Invalid(f"{what} is too large: {len(raw):,} bytes, the limit is {max_bytes:,}")
    return source.removeprefix("\ufeff")


def _events(parser: Any) -> Iterator[Any]:
    while parser.check_event():
        yield parser.get_event()


def _at(mark: Any) -> str:
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _short(text: str, limit: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


@dataclass(slots=True, kw_only=True)
class _Open:
    """A list or mapping that is being filled."""

    value: Any
    anchor: str | None
    nodes: int = 1
    key: str | None = None
    merging: bool = False
    merged: list[dict[str, Any]] = field(default_factory=list)


class _Builder:
    """Makes plain documents of the parser's events."""

    def __init__(self, *, what: str) -> None:
        self._what = what
        self._anchors: dict[str, tuple[Any, int] | None] = {}
        self._aliased = 0
        self._stack: list[_Open] = []
        self._documents: list[Any] = []
        self._lines: list[int] = []

    def documents(self, events: Iterator[Any]) -> list[tuple[Any, int]]:
        for event in events:
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._open(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close(event)
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            elif isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                self._lines.append(event.start_mark.line + 1 if event.start_mark else 1)
        return list(zip(self._documents, self._lines, strict=True))

    def _fail(self, event: Any, problem: str, hint: str | None = None) -> Invalid:
        return Invalid(f"{self._what}{_at(event.start_mark)}: {problem}", hint=hint)

    def _open(self, event: Any) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise self._fail(event, f"nested deeper than {MAX_DEPTH} levels")
        self._refuse_as_key(event)
        is_map = isinstance(event, yaml.MappingStartEvent)
        wanted = "map" if is_map else "seq"
        if event.tag not in (None, "!", _TAG + wanted):
            raise self._fail(
                event, f"the tag {_short(event.tag, 60)!r} is not allowed", "write plain YAML without tags"
            )
        if event.anchor is not None:
            self._anchors[event.anchor] = None  # open: an alias inside it would be endless
        self._stack.append(_Open(value={} if is_map else [], anchor=event.anchor))

    def _close(self, event: Any) -> None:
        done = self._stack.pop()
        if done.merged:
            done.value = self._with_merged(done)
        if done.anchor is not None:
            self._anchors[done.anchor] = (done.value, done.nodes)
        self._put(event, done.value, done.nodes)

    def _with_merged(self, done: _Open) -> dict[str, Any]:
        # YAML's merge key: the mapping's own entries win, then the first merged mapping.
        result: dict[str, Any] = {}
        for other in reversed(done.merged):
            result.update(other)
        return {**result, **done.value}

    def _alias(self, event: Any) -> None:
        self._refuse_as_key(event)
        if event.anchor not in self._anchors:
            raise self._fail(event, f"the alias *{_short(event.anchor, 40)} has no anchor before it")
        anchored = self._anchors[event.anchor]
        if anchored is None:
            raise self._fail(event, f"the alias *{_short(event.anchor, 40)} stands inside its own anchor")
        value, nodes = anchored
        self._aliased += nodes
        if self._aliased > MAX_ALIAS_NODES:
            raise self._fail(event, f"aliases expand to more than {MAX_ALIAS_NODES:,} nodes")
        copied, depth = _copied(value)
        if len(self._stack) + depth > MAX_DEPTH:
            raise self._fail(event, f"nested deeper than {MAX_DEPTH} levels")
        self._put(event, copied, nodes)

    def _scalar(self, event: Any) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None and not top.merging:
            self._key(event, top)
            return
        value = self._scalar_value(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        self._put(event, value, 1)

    def _key(self, event: Any, top: _Open) -> None:
        if event.tag not in (None, "!", _TAG + "str"):
            raise self._fail(event, f"the tag {_short(event.tag, 60)!r} is not allowed on a key")
        if event.anchor is not None:
            self._anchors[event.anchor] = (event.value, 1)
        if event.value == "<<" and event.implicit[0] and event.tag is None:
            top.merging = True
            return
        if event.value in top.value:
            raise self._fail(event, f"the key {_short(event.value, 60)!r} stands twice in the same mapping")
        top.key = event.value

    def _refuse_as_key(self, event: Any) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None and not top.merging:
            raise self._fail(event, "a key must be plain text", "a value that begins with {{ needs quotes around it")

    def _put(self, event: Any, value: Any, nodes: int) -> None:
        if not self._stack:
            self._documents.append(value)
            return
        top = self._stack[-1]
        top.nodes += nodes
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.merging:
            top.merging = False
            sources = value if isinstance(value, list) else [value]
            if not all(isinstance(source, dict) for source in sources):
                raise self._fail(event, "'<<' takes a mapping or a list of mappings")
            top.merged.extend(sources)
        elif top.key is not None:
            top.value[top.key] = value
            top.key = None

    def _scalar_value(self, event: Any) -> Any:
        text: str = event.value
        if event.tag is None:
            return self._implicit(event, text) if event.implicit[0] else text
        if event.tag in ("!", _TAG + "str", _TAG + "timestamp"):
            return text
        if not text and _BARE_WORD.match(event.tag):
            return event.tag  # `to: !self`, as routing is written by hand: a word, whatever YAML takes it for
        kinds: dict[str, tuple[type, ...]] = {
            _TAG + "int": (int,),
            _TAG + "float": (float, int),
            _TAG + "bool": (bool,),
            _TAG + "null": (type(None),),
        }
        if event.tag not in kinds:
            raise self._fail(
                event, f"the tag {_short(event.tag, 60)!r} is not allowed", "write plain YAML without tags"
            )
        value = self._implicit(event, text)
        if type(value) not in kinds[event.tag]:
            raise self._fail(event, f"{_short(text, 40)!r} is no {event.tag.removeprefix(_TAG)}")
        return float(value) if event.tag == _TAG + "float" else value

    def _implicit(self, event: Any, text: str) -> Any:
        try:
            return _resolved(text)
        except (ValueError, OverflowError):
            raise self._fail(
                event, f"{_short(text, 40)!r} is not a number that can be stored", "put it in quotes to keep it as text"
            ) from None


def _resolved(text: str) -> Any:
    """The value of a plain scalar; ValueError for numbers beyond what JSON carries."""
    if text in _NULLS:
        return None
    if text.lower() in _BOOLS and (text.islower() or text.isupper() or text.istitle()):
        return _BOOLS[text.lower()]
    if _INT.match(text):
        if len(text) > _MAX_DIGITS:
            raise ValueError(text)
        return int(text.replace("_", ""), 0)
    if _FLOAT.match(text):
        number = float(text.replace("_", ""))
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    if _NOT_FINITE.match(text):
        raise ValueError(text)
    return text


def _is_plain_text(text: str) -> bool:
    """Whether our own reader takes the bare text as a string."""
    try:
        return isinstance(_resolved(text), str)
    except ValueError:
        return False


def _copied(value: Any) -> tuple[Any, int]:
    """A copy that shares nothing mutable, and how deep it is."""
    if isinstance(value, dict):
        pairs = {key: _copied(item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, 1 + max(
            (depth for _, depth in pairs.values()), default=0
        )
    if isinstance(value, list):
        items = [_copied(item) for item in value]
        return [item for item, _ in items], 1 + max((depth for _, depth in items), default=0)
    return value, 0


def _plain(value: Any, *, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise Invalid(f"the document is nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = str(value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise Invalid(f"{_short(ascii(text), 60)} holds half a character (a lone surrogate)")
        return text
    if isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            raise Invalid("an integer of the document is too large to store", hint="put it in quotes")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Invalid(f"{value!r} cannot be stored", hint="leave it out or write it as text")
        return float(value)
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise Invalid("every key of a document must be text")
        return {_plain(key, depth=depth): _plain(item, depth=depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth=depth + 1) for item in value]
    raise Invalid(f"a {type(value).__name__} cannot be written as YAML")


class _Dumper(yaml.SafeDumper):
    """PyYAML's own emitter in pure Python: the same text with and without libyaml."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Write everything out in full."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - PyYAML's signature
        """Indent lists under their key, as people write them."""
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if _BREAKS.search(text):
        style = '"'
    elif "\n" in text and _BLOCK_TEXT.match(text) and not re.search(r"[ \t](?:\n|\Z)", text):
        style = "|"
    elif not _is_plain_text(text):
        style = "'"
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)
