"""Subagents of Claude Code: Markdown whose front matter has `name`, `description`, `tools`, `model`. Pure.

`tools` there are programs of that client; none of them is a capability here, and none is ever made of them.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from ksi_mcp.compositions.importers.model import Notes, named
from ksi_mcp.compositions.model import shorten
from ksi_mcp.errors import Invalid

_NOT_A_MODEL: Final = ("inherit", "default", "")
_TOOL_KEYS: Final = ("tools", "allowed-tools", "allowed_tools", "disallowedTools", "permissionMode")
_FRONT: Final = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_PLAIN_LINE: Final = re.compile(r"^(name|description|model):[ \t]+([^\s\"'|>\[{&*!][^\r\n]*)", re.MULTILINE)


def mended(text: str) -> str | None:
    """The page with the values of its front matter in quotes: many are written with colons, which YAML does not take.

    None: it does not look like the page of a subagent, or its values do not stand on a line each.
    """
    match = _FRONT.match(text)
    if match is None or not {"name", "description"} <= {found[1] for found in _PLAIN_LINE.finditer(match[1])}:
        return None
    if re.search(r"^(?:type|component_type):", match[1], re.MULTILINE):
        return None
    quoted = _PLAIN_LINE.sub(lambda found: f"{found[1]}: {json.dumps(found[2].strip())}", match[1])
    return f"{text[: match.start(1)]}{quoted}{text[match.end(1) :]}"


def looks_like(front: dict[str, Any], path: str) -> bool:
    """Whether front matter is that of a subagent."""
    if "type" in front or "component_type" in front or not isinstance(front.get("name"), str):
        return False
    folders = path.split("/")[:-1]
    return "description" in front and (
        any(key in front for key in ("tools", "disallowedTools", "permissionMode", "model", "color"))
        or "agents" in folders
    )


def convert(front: dict[str, Any], body: str, path: str) -> tuple[dict[str, Any], Notes]:
    """An agent's profile.

    Raises:
        Invalid: it has no name, or no instructions.
    """
    notes = Notes()
    name = named(front, path.rsplit("/", 1)[-1].removesuffix(".md"), notes)
    if name is None:
        raise Invalid(f"the name {shorten(str(front.get('name')))!r} cannot be that of a composition")
    if not body.strip():
        raise Invalid("there are no instructions below the front matter")
    document: dict[str, Any] = {"name": name, "type": "agent"}
    if isinstance(front.get("description"), str):
        document["description"] = front["description"].strip()
    model = front.get("model")
    if isinstance(model, str) and model.strip().lower() not in _NOT_A_MODEL:
        document["model"] = model.strip()
        notes.mapped.append(f"model: {shorten(model)!r}, which must be a model or a profile here")
    elif model is not None:
        notes.unused.append(f"model: {shorten(str(model))!r}, the agent gets the default model")
    document["prompt"] = body.strip()
    kept = {key: value for key, value in front.items() if key not in ("name", "description", "model")}
    for key in _TOOL_KEYS:
        if key in front:
            notes.unused.append(f"{key}: {shorten(str(front[key]))} (tools of another program, no capabilities here)")
    notes.unused += [f"{shorten(key)}: kept" for key in kept if key not in _TOOL_KEYS]
    if kept:
        document["metadata"] = {"claude_agent": kept}
    notes.mapped.append("body: the prompt")
    return document, notes
