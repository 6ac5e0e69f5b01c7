"""Values of a document as they are meant, and what is wrong with them: gathered, never raised one at a time. Pure."""

from __future__ import annotations

import math
from typing import Any

from ksi_mcp.compositions.model import Problem


class Problems:
    """Gathers what is wrong, each with its place."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, path: str, message: str) -> None:
        """Note one."""
        self.found.append(Problem(path=path, message=message))

    def text(self, value: object, path: str) -> str | None:
        """`value` as text, or None after noting that it is none."""
        if value is None or isinstance(value, str):
            return value
        self.add(path, f"must be text, not {kind_of(value)}")
        return None


def join(path: str, key: str) -> str:
    """A dotted path one step further."""
    return f"{path}.{key}" if path else key


def kind_of(value: object) -> str:
    """What a value is, in YAML's words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "yes or no", type(None): "nothing"}
    return names.get(type(value), "a number")


def mapping(value: object, path: str, problems: Problems) -> dict[str, Any]:
    """A mapping, or an empty one after noting what else it is."""
    if isinstance(value, dict):
        return value
    if value is not None:
        problems.add(path, f"must be a mapping, not {kind_of(value)}")
    return {}


def whole(value: object) -> int | None:
    """A whole number above 0, also as text; None if it is none."""
    number = positive(value)
    return int(number) if number is not None and number == int(number) else None


def positive(value: object) -> float | None:
    """A number above 0, also as text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
