"""Conditions: Python's expressions, cut down to what cannot hurt.

    data.score > 0.8 AND data.tags contains "urgent" and not exists(data.error)

The text goes through our own lexer, which knows the spellings that Python does not (`AND`, `true`,
`null`, `a contains b`) and lets nothing else pass; then through `ast`; then each kind of node is
looked up in a closed list and becomes a closure. What is not in the list is refused: there are no
calls but the functions below, no attributes but keys of dictionaries, no arithmetic but a minus sign.
Characters, tokens and nesting are bounded before `ast` sees the text, since its parser recurses.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.errors import Invalid
from ksi_mcp.events.patterns import shorten
from ksi_mcp.routing.lexer import rewrite

MAX_CHARS = 2_000
MAX_NODES = 200
MAX_DEPTH = 40

SCOPE_NAMES: Final = frozenset({"event", "data", "source", "agent", "now"})
"""What a rule's condition may speak of."""

Scope = Mapping[str, Any]
Evaluate = Callable[[Scope], Any]


class ConditionError(Invalid):
    """A condition that cannot be decided. The caller fails closed: it counts as not fulfilled."""

    def __init__(self, expression: str, reason: str, *, missing: str | None = None) -> None:
        super().__init__(f"condition {shorten(expression, 200)} cannot be decided: {reason}")
        self.expression = expression
        self.reason = reason
        self.missing = missing
        """The name that has no value, e.g. `data.score`."""


class _Undecided(Exception):
    def __init__(self, reason: str, missing: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.missing = missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A compiled condition."""

    text: str
    decide: Evaluate

    def evaluate(self, scope: Scope) -> bool:
        """Whether it holds.

        Raises:
            ConditionError: a name has no value, or the values cannot be compared so.
        """
        try:
            return bool(self.decide(scope))
        except _Undecided as failure:
            raise ConditionError(self.text, failure.reason, missing=failure.missing) from None
        except RecursionError:  # comparing data that is nested almost as deep as JSON may be
            raise ConditionError(self.text, "the data is nested too deeply to compare") from None


def compile_condition(text: object, *, names: frozenset[str] = SCOPE_NAMES) -> Condition:
    """A condition, checked and ready to evaluate; `names` is what it may speak of.

    Raises:
        Invalid: it is not in the language, or over 2,000 characters, 200 nodes or 40 levels.
    """
    if not isinstance(text, str) or not text.strip():
        raise Invalid("the condition is empty or not text", hint='e.g. data.score > 0.8 and data.kind == "final"')
    if len(text) > MAX_CHARS:
        raise Invalid(f"the condition has {len(text):,} characters", hint=f"at most {MAX_CHARS:,}")
    source = rewrite(text)
    try:
        text.encode()  # half a character could not be stored
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as failure:
        kinds: dict[type[Exception], str] = {UnicodeEncodeError: "it has half a character"}
        why = failure.msg if isinstance(failure, SyntaxError) else kinds.get(type(failure), "it is nested too deeply")
        raise Invalid(f"condition {shorten(text)} is not an expression: {why}") from None
    nodes = sum(isinstance(node, ast.expr) for node in ast.walk(tree))
    if nodes > MAX_NODES:
        raise Invalid(f"condition {shorten(text)} has {nodes} parts", hint=f"at most {MAX_NODES}")
    return Condition(text=text, decide=_Compiler(text, names).compile(tree, 0))


class _Compiler:
    """Turns checked nodes into closures."""

    def __init__(self, text: str, names: frozenset[str]) -> None:
        self._text = text
        self._names = names

    def compile(self, node: ast.expr, depth: int) -> Evaluate:
        if depth > MAX_DEPTH:
            raise self._invalid("it is nested too deeply")
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                if isinstance(value, float) and not math.isfinite(value):
                    raise self._invalid("it holds a number that is too large")
                return lambda _scope: value
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self._path(node, depth)
            case ast.BoolOp(op=op, values=values):
                parts = [self.compile(value, depth + 1) for value in values]
                return _all_of(parts) if isinstance(op, ast.And) else _any_of(parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.compile(operand, depth + 1)
                return lambda scope: not inner(scope)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self.compile(operand, depth + 1)
                return lambda scope: -_number(inner(scope), "-")
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self._comparison(left, ops, comparators, depth)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                parts = [self.compile(element, depth + 1) for element in elements]
                return lambda scope: [part(scope) for part in parts]
            case ast.Call():
                return self._call(node, depth)
            case _:
                raise self._invalid(f"{_KINDS.get(type(node), 'this kind of expression')} is not in the language")

    def _invalid(self, why: str, hint: str | None = None) -> Invalid:
        return Invalid(f"condition {shorten(self._text)} is refused: {why}", hint=hint)

    def _comparison(self, left: ast.expr, ops: list[ast.cmpop], rest: list[ast.expr], depth: int) -> Evaluate:
        first = self.compile(left, depth + 1)
        links = [(_COMPARISONS[type(op)], self.compile(value, depth + 1)) for op, value in zip(ops, rest, strict=True)]

        def compare(scope: Scope) -> bool:
            value = first(scope)
            for fits, other in links:
                following = other(scope)
                if not fits(value, following):
                    return False
                value = following
            return True

        return compare

    def _path(self, node: ast.expr, depth: int) -> Evaluate:
        steps: list[Evaluate] = []
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                steps.append(lambda _scope, key=node.attr: key)  # type: ignore[misc]
                node = node.value
            elif isinstance(node, ast.Subscript):
                steps.append(self.compile(node.slice, depth + 1))
                node = node.value
            else:
                raise self._invalid("only data has parts", "a path begins with a name, e.g. data.items[0].id")
        root = node.id
        if root not in self._names:
            raise self._invalid(
                f"unknown name {shorten(root)}",
                f"names are {', '.join(sorted(self._names))}; a field of the event's data is data.{root[:40]}",
            )
        steps.reverse()

        def find(scope: Scope) -> Any:
            if root not in scope:
                raise _Undecided(f"{root} is missing", root)
            value = scope[root]
            shown = root
            for step in steps:
                key = step(scope)
                if isinstance(value, dict) and isinstance(key, int) and not isinstance(key, bool):
                    key = str(key)  # the keys of JSON are text: data.counts.7
                if isinstance(value, dict) and isinstance(key, str):
                    shown = f"{shown}.{key[:80]}"
                    if key not in value:
                        raise _Undecided(f"{shown} is missing", shown)
                    value = value[key]
                elif isinstance(value, list | tuple) and isinstance(key, int) and not isinstance(key, bool):
                    shown = f"{shown}[{key}]"
                    if not -len(value) <= key < len(value):
                        raise _Undecided(f"{shown} is missing", shown)
                    value = value[key]
                else:
                    part = f"{shown}[{key}]" if isinstance(key, int) else f"{shown}.{str(key)[:80]}"
                    raise _Undecided(f"{part} is missing: {shown} is {_kind(value)}", part)
            return value

        return find

    def _call(self, node: ast.Call, depth: int) -> Evaluate:
        if not isinstance(node.func, ast.Name):
            raise self._invalid("values have no methods", "write the function first, e.g. startswith(data.id, 'x')")
        name = node.func.id
        if name != "exists" and name not in _FUNCTIONS:
            raise self._invalid(f"unknown function {shorten(name)}", f"there are exists, {', '.join(_FUNCTIONS)}")
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise self._invalid(f"{name} takes plain arguments")
        if name == "exists":
            return self._exists(node.args, depth)
        function, least, most = _FUNCTIONS[name]
        if not least <= len(node.args) <= most:
            raise self._invalid(f"{name} takes {least if least == most else f'{least} or more'} argument(s)")
        args = [self.compile(arg, depth + 1) for arg in node.args]
        return lambda scope: function(*[arg(scope) for arg in args])

    def _exists(self, args: list[ast.expr], depth: int) -> Evaluate:
        if len(args) != 1 or not isinstance(args[0], ast.Name | ast.Attribute | ast.Subscript):
            raise self._invalid("exists takes one path", "e.g. exists(data.error)")
        find = self._path(args[0], depth + 1)

        def exists(scope: Scope) -> bool:
            try:
                find(scope)
            except _Undecided:
                return False
            return True

        return exists


def _all_of(parts: list[Evaluate]) -> Evaluate:
    def both(scope: Scope) -> Any:
        value: Any = True
        for part in parts:
            value = part(scope)
            if not value:
                break
        return value

    return both


def _any_of(parts: list[Evaluate]) -> Evaluate:
    def either(scope: Scope) -> Any:
        value: Any = False
        for part in parts:
            value = part(scope)
            if value:
                break
        return value

    return either


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "a truth value", str: "text", dict: "an object", list: "a list", tuple: "a list"}
    return kinds.get(type(value), "a number")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any, what: str) -> Any:
    if not _is_number(value):
        raise _Undecided(f"{what} needs a number, not {_kind(value)}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _Undecided(f"{what} needs text, not {_kind(value)}")
    return value


def _comparable(a: Any, b: Any, what: str) -> None:
    if not ((_is_number(a) and _is_number(b)) or (isinstance(a, str) and isinstance(b, str))):
        raise _Undecided(f"{_kind(a)} and {_kind(b)} cannot be compared with {what}")


def _order(compare: Callable[[Any, Any], bool], sign: str) -> Callable[[Any, Any], bool]:
    def ordered(a: Any, b: Any) -> bool:
        _comparable(a, b, sign)
        return compare(a, b)

    return ordered


def _contains(whole: Any, part: Any) -> bool:
    if isinstance(whole, str):
        return _text(part, "a search in text") in whole
    if isinstance(whole, dict):
        return isinstance(part, str) and part in whole
    if isinstance(whole, list | tuple):
        return part in whole
    raise _Undecided(f"{_kind(whole)} contains nothing")


def _len(value: Any) -> int:
    if not isinstance(value, str | list | tuple | dict):
        raise _Undecided(f"{_kind(value)} has no length")
    return len(value)


def _extreme(choose: Callable[[Any], Any], name: str) -> Callable[..., Any]:
    def extreme(*args: Any) -> Any:
        values = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else args
        if not values:
            raise _Undecided(f"{name} of an empty list")
        for value in values:
            _comparable(values[0], value, name)
        return choose(values)

    return extreme


_FUNCTIONS: Final[Mapping[str, tuple[Callable[..., Any], int, int]]] = {
    "len": (_len, 1, 1),
    "lower": (lambda value: _text(value, "lower").lower(), 1, 1),
    "upper": (lambda value: _text(value, "upper").upper(), 1, 1),
    "startswith": (lambda a, b: _text(a, "startswith").startswith(_text(b, "startswith")), 2, 2),
    "endswith": (lambda a, b: _text(a, "endswith").endswith(_text(b, "endswith")), 2, 2),
    "contains": (_contains, 2, 2),
    "abs": (lambda value: abs(_number(value, "abs")), 1, 1),
    "min": (_extreme(min, "min"), 1, MAX_NODES),
    "max": (_extreme(max, "max"), 1, MAX_NODES),
}

# The lexer spells `a contains b` as `a is b`, which has the same place among Python's operators;
# an `is` of the user's own never gets past it.
_COMPARISONS: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: _order(operator.lt, "<"),
    ast.LtE: _order(operator.le, "<="),
    ast.Gt: _order(operator.gt, ">"),
    ast.GtE: _order(operator.ge, ">="),
    ast.In: lambda part, whole: _contains(whole, part),
    ast.NotIn: lambda part, whole: not _contains(whole, part),
    ast.Is: _contains,
    ast.IsNot: lambda whole, part: not _contains(whole, part),
}

_KINDS: Final[Mapping[type[ast.expr], str]] = {
    ast.BinOp: "arithmetic",
    ast.UnaryOp: "this sign",
    ast.Starred: "a star",
}
