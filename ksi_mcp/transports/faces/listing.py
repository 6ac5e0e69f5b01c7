"""A tool as `tools/list` shows it: every client pays for each word of it, in every conversation."""

from __future__ import annotations

from typing import Any

from mcp.types import Tool as ListedTool
from mcp.types import ToolAnnotations

from ksi_mcp.tools.tool import Tool
from ksi_mcp.transports.faces.apps import tool_meta

OPEN_WORLD = frozenset({"agent_spawn", "agent_send", "agent_broadcast", "event_emit", "orchestration_start"})
"""The tools that give an agent a turn at once, and so send text to a model provider."""

DEEPEST = 3
"""An object nested deeper is shown without its properties; `help` shows them."""

_GUARDS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minimum", "exclusiveMinimum"})
_TELLING = 1000
"""A larger maximum is a guard too: nobody meets it by accident."""


def listed(tool: Tool) -> ListedTool:
    """The declaration for a client; what a call destroys or sends away is said plainly.

    `event_emit` is not marked destructive, although commands can be: those ask the user on each call.
    """
    return ListedTool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=brief(tool.schema()),
        annotations=_hints(tool),
        _meta=tool_meta(tool.name),
    )


def _hints(tool: Tool) -> ToolAnnotations:
    """What differs from the protocol's defaults, or matters too much to be left unsaid; the rest would only cost.

    Whether a call destroys, or may be repeated, only means something for one that changes anything.
    """
    outside = tool.name in OPEN_WORLD
    if tool.effects == "reads":
        return ToolAnnotations(read_only_hint=True, open_world_hint=outside)
    return ToolAnnotations(
        destructive_hint=tool.effects == "destroys", idempotent_hint=tool.idempotent or None, open_world_hint=outside
    )


def brief(schema: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """The schema without the bounds that only guard the server: it checks every call against them all the same."""
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _GUARDS or key == "additionalProperties" or _is_guard(key, value):
            continue
        if key == "default" and value is False:  # what a switch is, unless it is set
            continue
        if key == "properties":
            if depth < DEEPEST:
                out[key] = {name: brief(sub, depth + 1) for name, sub in value.items()}
        elif isinstance(value, dict):
            out[key] = brief(value, depth + 1)
        else:
            out[key] = value
    return out


def _is_guard(key: str, value: Any) -> bool:
    return key in ("maximum", "exclusiveMaximum") and not isinstance(value, dict) and value > _TELLING
