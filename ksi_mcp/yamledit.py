"""A YAML text changed in a few places, with every other character as its author left it.

The parser tells where in the text each value stands; what changed is written over that place alone. Comments, order,
quotes and indentation around it stay. The result is read again by `yamlio` and must be the document that was meant:
what cannot be written in place (a value that has an anchor, a merged key) is said so, and the caller writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from ksi_mcp import yamlio
from ksi_mcp.errors import Invalid

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP: Final = 2
"""Spaces by which new text is indented."""


@dataclass(slots=True, kw_only=True)
class _Node:
    """A value and its place: `start` to `end`, without the comments behind it. `column` is of its first character."""

    start: int
    end: int
    column: int
    kind: str
    flow: bool = False
    keys: list[tuple[str, _Node]] = field(default_factory=list)
    items: list[_Node] = field(default_factory=list)


class _Anew(Exception):
    """This cannot be changed in place."""


def edited(text: str, after: Any, *, what: str) -> str | None:
    """`text` changed so that it reads as `after`; None if that cannot be done in place.

    Raises:
        Invalid: `text` is not a document, or `after` nothing that YAML can carry.
    """
    before, after = yamlio.safe_load(text, what=what), yamlio.plain(after)
    if before == after and _alike(before, after):
        return text
    try:
        edit = _Edit(text)
        edit.change(_root_of(text), before, after, indent=-_STEP)
        changed = edit.result()
        read_back = yamlio.safe_load(changed, what=what)
    except (_Anew, Invalid):
        return None
    return changed if read_back == after and _alike(read_back, after) else None


class _Edit:
    """Gathers what is written over which place."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._edits: list[tuple[int, int, str]] = []

    def result(self) -> str:
        pieces: list[str] = []
        at = 0
        for start, end, new in sorted(self._edits, key=lambda edit: edit[:2]):
            if start < at:
                raise _Anew
            pieces += [self._text[at:start], new.replace("\n", self._newline)]
            at = end
        return "".join([*pieces, self._text[at:]])

    def change(self, node: _Node, before: Any, after: Any, *, indent: int, colon: int | None = None) -> None:
        """Make `node` say `after`. `indent` is its parent's; `colon`, the place after its key's, if it has one."""
        if before == after and _alike(before, after):
            return
        done = False
        if node.kind == "map" and isinstance(before, dict) and isinstance(after, dict) and after:
            done = self._change_map(node, before, after)
        elif node.kind == "list" and isinstance(before, list) and isinstance(after, list) and after:
            done = self._change_list(node, before, after)
        if not done:
            self._replace(node, after, indent=indent, colon=colon)

    def _change_map(self, node: _Node, before: dict[str, Any], after: dict[str, Any]) -> bool:
        places = dict(node.keys)
        elsewhere = before.keys() - places.keys()  # merged keys: kept, or said here from now on
        if elsewhere - after.keys() or places.keys() - before.keys() - {"<<"}:
            raise _Anew
        fresh = {key: value for key, value in after.items() if key not in before}
        fresh |= {key: after[key] for key in elsewhere if not _alike(before[key], after[key])}
        if elsewhere:
            before = {key: value for key, value in before.items() if key in places}
        if node.flow and elsewhere:
            raise _Anew
        if node.flow and before.keys() != after.keys():
            return False
        gone = before.keys() - after.keys()
        if gone == before.keys():
            return False
        for position, (key, value) in enumerate(node.keys):
            start, colon = self._key_at(node, position)
            if key not in before:  # <<
                continue
            if key in gone:
                self._remove(start, max(value.end, colon))
            else:
                self.change(value, before[key], after[key], indent=node.column, colon=colon)
        if fresh:
            last = max(node.end, self._key_at(node, len(node.keys) - 1)[1])
            self._insert(last, _indented(yamlio.dump(fresh), node.column))
        return True

    def _change_list(self, node: _Node, before: list[Any], after: list[Any]) -> bool:
        if node.flow and len(before) != len(after):
            return False
        head, shorter = 0, min(len(before), len(after))
        while head < shorter and before[head] == after[head]:
            head += 1
        tail = 0
        while tail < shorter - head and before[-1 - tail] == after[-1 - tail]:
            tail += 1
        old, new = range(head, len(before) - tail), after[head : len(after) - tail]
        for place, value in zip(old, new, strict=False):
            self.change(node.items[place], before[place], value, indent=node.column, colon=self._dash(node, place))
        for place in old[len(new) :]:
            self._remove(self._dash(node, place) - 1, node.items[place].end)
        if len(new) > len(old):
            last = head + len(old) - 1
            if last < 0:
                return False
            self._insert(
                max(node.items[last].end, self._dash(node, last)),
                _indented(yamlio.dump(new[len(old) :]), node.column),
            )
        return True

    def _replace(self, node: _Node, value: Any, *, indent: int, colon: int | None) -> None:
        if node.flow or node.kind == "flow":
            self._edits.append((node.start, node.end, json.dumps(value, ensure_ascii=False)))
            return
        first, rest = _written(value, indent + _STEP)
        start, end = node.start, node.end
        if colon is None:
            if not isinstance(value, dict | list) or not value:
                raise _Anew
            self._edits.append((start, end, yamlio.dump(value).rstrip("\n")))
            return
        line_end = self._line_end(colon)
        if start > line_end:  # its value began on a line of its own; what stood behind the colon is a comment
            comment = self._text[colon:line_end]
            self._edits.append((colon, end, first + comment + rest))
            return
        line_end = self._line_end(end)
        header_end = self._line_end(start)
        if header_end < end:  # several lines: a comment may stand behind the head of a block
            self._edits.append((colon, end, first + rest))
        else:
            self._edits.append((colon, line_end, first + self._text[end:line_end].rstrip() + rest))

    def _remove(self, start: int, end: int) -> None:
        """Take away whole lines."""
        line_start = self._text.rfind("\n", 0, start) + 1
        if self._text[line_start:start].strip():
            raise _Anew
        below = self._text.find("\n", end) + 1
        self._edits.append((line_start, below or len(self._text), ""))

    def _insert(self, after: int, lines: str) -> None:
        end = self._line_end(after)
        self._edits.append((end, end, "\n" + lines))

    def _line_end(self, at: int) -> int:
        end = self._text.find("\n", at)
        if end < 0:
            return len(self._text)
        return end - 1 if end > at and self._text[end - 1] == "\r" else end

    def _key_at(self, node: _Node, position: int) -> tuple[int, int]:
        """Where a key begins, and the place right after its colon."""
        return node.items[position].start, node.items[position].end

    def _dash(self, node: _Node, place: int) -> int:
        """The place right after an item's dash; in a flow list, where the item begins."""
        if node.flow:
            return node.items[place].start
        line_start = self._text.rfind("\n", 0, node.items[place].start) + 1
        dash = self._text.rfind("-", line_start if place else 0, node.items[place].start)
        # Upwards over comments, if the item does not begin on the line of its dash.
        while dash >= 0 and dash - (self._text.rfind("\n", 0, dash) + 1) != node.column:
            dash = self._text.rfind("-", 0, dash)
        if dash < 0:
            raise _Anew
        return dash + 1


def _root_of(text: str) -> _Node:
    parser = _PARSER(text)
    try:
        return _Reader(text, parser).root()
    except yaml.YAMLError:
        raise _Anew from None
    finally:
        parser.dispose()


class _Reader:
    """Makes nodes of the parser's events. The depth is bounded: the text was read by `yamlio` before."""

    def __init__(self, text: str, parser: Any) -> None:
        self._text = text
        self._events: Iterator[Any] = iter(parser.get_event, None)

    def root(self) -> _Node:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                return self._node(next(self._events), flow=False)
        raise _Anew

    def _node(self, event: Any, *, flow: bool) -> _Node:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None or event.tag is not None:
            # Written over, an anchor would change elsewhere too; a tag might stay and mean another thing.
            kind = "fixed"
        else:
            kind = "scalar"
        start, column = event.start_mark.index, event.start_mark.column
        if isinstance(event, yaml.MappingStartEvent):
            node = self._map(event, start, column, flow=flow)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._list(event, start, column, flow=flow)
        else:
            end = start + len(self._text[start : event.end_mark.index].rstrip())
            node = _Node(start=start, end=end, column=column, kind="flow" if flow else "scalar")
        if kind == "fixed":
            return _Node(start=node.start, end=node.end, column=column, kind="fixed")
        return node

    def _map(self, event: Any, start: int, column: int, *, flow: bool) -> _Node:
        node = _Node(start=start, end=start, column=column, kind="map", flow=flow or bool(event.flow_style))
        for key in self._events:
            if isinstance(key, yaml.MappingEndEvent):
                self._close(node, key)
                return node
            value = self._node(next(self._events), flow=node.flow)
            colon = self._text.find(":", key.end_mark.index)
            node.keys.append((key.value, value))
            # The key's place, up to and with its colon.
            node.items.append(_Node(start=key.start_mark.index, end=colon + 1, column=column, kind="key"))
            node.end = max(value.end, colon + 1)
        raise _Anew

    def _list(self, event: Any, start: int, column: int, *, flow: bool) -> _Node:
        node = _Node(start=start, end=start, column=column, kind="list", flow=flow or bool(event.flow_style))
        for item in self._events:
            if isinstance(item, yaml.SequenceEndEvent):
                self._close(node, item)
                return node
            node.items.append(self._node(item, flow=node.flow))
            node.end = max(node.end, node.items[-1].end)
        raise _Anew

    def _close(self, node: _Node, event: Any) -> None:
        if node.flow:
            node.end = event.end_mark.index


def _written(value: Any, indent: int) -> tuple[str, str]:
    """`value` as it stands behind a colon or dash: the rest of that line, and the lines below it."""
    if isinstance(value, dict | list) and value:
        return "", "\n" + _indented(yamlio.dump(value), indent)
    first, *rest = yamlio.dump({"k": value}).removesuffix("\n")[2:].split("\n")
    below = "\n".join(line and " " * (indent - _STEP) + line for line in rest)
    return first.rstrip() if rest else first, f"\n{below}" if rest else ""


def _indented(lines: str, spaces: int) -> str:
    return "\n".join(line and " " * spaces + line for line in lines.removesuffix("\n").split("\n"))


def _alike(one: Any, other: Any) -> bool:
    """Whether equal values are of equal types too: for Python, `1`, `1.0` and `true` are the same."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
