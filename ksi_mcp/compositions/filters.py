"""Filters on what a composition's document says: dotted paths and comparisons. Pure.

    {"performance.avg_score": {">": 0.7}, "tags": ["tournament"], "author": "me"}

A plain value asks for equality, a list for "contains all of these", a mapping of operators for each of
them. A path that is not there matches nothing but `{"exists": false}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ksi_mcp.compositions.model import shorten
from ksi_mcp.errors import Invalid

MAX_CONDITIONS: Final = 50
MAX_STEPS: Final = 20
_INDEX_DIGITS: Final = 6
_MISSING: Final = object()

Test = Callable[[Any, Any], bool]


def _ordered(compare: Callable[[Any, Any], bool]) -> Test:
    def test(value: Any, wanted: Any) -> bool:
        number = int | float
        both_numbers = isinstance(value, number) and isinstance(wanted, number)
        both_texts = isinstance(value, str) and isinstance(wanted, str)
        return (both_numbers or both_texts) and compare(value, wanted)

    return test


def _contains(value: Any, wanted: Any) -> bool:
    if isinstance(value, str):
        return isinstance(wanted, str) and wanted.lower() in value.lower()
    return isinstance(value, list | dict) and wanted in value


_TESTS: Final[dict[str, Test]] = {
    ">": _ordered(lambda a, b: bool(a > b)),
    ">=": _ordered(lambda a, b: bool(a >= b)),
    "<": _ordered(lambda a, b: bool(a < b)),
    "<=": _ordered(lambda a, b: bool(a <= b)),
    "==": lambda value, wanted: bool(value == wanted),
    "!=": lambda value, wanted: bool(value != wanted),
    "in": lambda value, wanted: isinstance(wanted, list) and value in wanted,
    "contains": _contains,
}


def matcher(conditions: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """A test of documents.

    Raises:
        Invalid: an operator is unknown, or there are too many conditions.
    """
    if len(conditions) > MAX_CONDITIONS:
        raise Invalid(f"the filter has {len(conditions)} conditions", hint=f"at most {MAX_CONDITIONS}")
    tests = [(_steps(path), _operators(path, wanted)) for path, wanted in conditions.items()]

    def matches(document: dict[str, Any]) -> bool:
        return all(_holds(_value(document, steps), operators) for steps, operators in tests)

    return matches


def _steps(path: str) -> list[str]:
    steps = path.split(".")
    if not all(steps) or len(steps) > MAX_STEPS:
        raise Invalid(f"filter path {shorten(path)!r} is none", hint="e.g. performance.avg_score")
    return steps


def _operators(path: str, wanted: Any) -> list[tuple[str, Any]]:
    if isinstance(wanted, list):
        return [("contains", item) for item in wanted] or [("exists", True)]
    if not isinstance(wanted, dict):
        return [("==", wanted)]
    for name, value in wanted.items():
        if name == "exists" and isinstance(value, bool):
            continue
        if name not in _TESTS:
            known = " ".join([*_TESTS, "exists"])
            raise Invalid(f"unknown operator {shorten(name)!r} for {shorten(path)!r}", hint=f"there are {known}")
        if name == "in" and not isinstance(value, list):
            raise Invalid(f"operator 'in' for {shorten(path)!r} wants a list")
    return list(wanted.items())


def _value(document: Any, steps: list[str]) -> Any:
    here = document
    for step in steps:
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list) and step.isdecimal() and len(step) <= _INDEX_DIGITS and int(step) < len(here):
            here = here[int(step)]
        else:
            return _MISSING
    return here


def _holds(value: Any, operators: list[tuple[str, Any]]) -> bool:
    for name, wanted in operators:
        if name == "exists":
            if (value is not _MISSING) != wanted:
                return False
        elif value is _MISSING or not _TESTS[name](value, wanted):
            return False
    return True
