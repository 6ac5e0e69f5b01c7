"""What a composition refers to by name, and the same with other names. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from ksi_mcp.compositions.model import parse_reference
from ksi_mcp.errors import Invalid

_LINKS: Final = ("extends", "mixins", "components", "includes", "dependencies")
_IN_AGENT: Final = ("composition", "profile", "component", "extends", "ensemble")
_IN_COMPONENT: Final = ("source", "component", "name")

Change = Callable[[str], str]


def references_of(document: dict[str, Any]) -> list[tuple[str, str | None]]:
    """(name, version or hash) of every composition that a document names, each once, in its order."""
    found: dict[tuple[str, str | None], None] = {}

    def note(reference: str) -> str:
        with contextlib.suppress(Invalid):  # not a reference of ours: whoever resolves it will say so
            found[parse_reference(reference)] = None
        return reference

    _changed(document, note)
    return list(found)


def renamed(document: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A copy whose references follow `names`. What is named at a version of the old name loses the version."""

    def change(reference: str) -> str:
        try:
            name, _version = parse_reference(reference)
        except Invalid:
            return reference
        return names.get(name, reference)

    return _changed(document, change)


def _changed(document: dict[str, Any], change: Change) -> dict[str, Any]:
    result = dict(document)
    for key in _LINKS:
        if key in result:
            result[key] = _links(result[key], change, in_components=key == "components")
    agents = result.get("agents")
    if isinstance(agents, dict):
        result["agents"] = {role: _agent(body, change) for role, body in agents.items()}
    elif isinstance(agents, list):
        result["agents"] = [_agent(body, change) if isinstance(body, dict) else body for body in agents]
    return result


def _links(value: Any, change: Change, *, in_components: bool) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_links(item, change, in_components=in_components) for item in value]
    if in_components and isinstance(value, dict) and "inline" not in value:
        key = next((key for key in _IN_COMPONENT if key in value), None)
        if key is not None and isinstance(value[key], str):
            return {**value, key: change(value[key])}
    return value


def _agent(body: Any, change: Change) -> Any:
    if isinstance(body, str):
        return change(body)
    if not isinstance(body, dict):
        return body
    return {key: change(value) if key in _IN_AGENT and isinstance(value, str) else value for key, value in body.items()}
