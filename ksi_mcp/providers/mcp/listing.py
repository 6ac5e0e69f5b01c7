"""What another MCP server says of its tools, made fit to be shown to a model. Pure: all that it says may be hostile."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from ksi_mcp.errors import Invalid
from ksi_mcp.providers.base import ToolSpec

SEPARATOR: Final = "__"
"""Between the server's name and the tool's, as agents see it; no tool of our own has it."""
MAX_SERVER_NAME_CHARS: Final = 32
MAX_NAME_CHARS: Final = 64
MAX_DESCRIPTION_CHARS: Final = 1_000
MAX_SCHEMA_CHARS: Final = 20_000
MAX_SCHEMA_DEPTH: Final = 32
MAX_TOOLS_PER_SERVER: Final = 50
MAX_TOOLS_PER_AGENT: Final = 100
_MAX_THEIR_NAME_CHARS: Final = 256
_DIGEST_CHARS: Final = 8
_TOLD: Final = 5
"""So many of the tools that were left out are named."""

_SERVER_NAME = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_PROPERTY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\U000e0000-\U000e007f]+")
# Choices at the top of a schema are refused by model APIs; without them it allows more, and the server checks anyway.
_TOP_LEVEL: Final = frozenset(
    {"$schema", "$id", "oneOf", "anyOf", "allOf", "not", "if", "then", "else", "enum", "const"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A tool as its server lists it."""

    name: str
    description: str
    input_schema: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideTool:
    """A tool of another server: what it is called there, and as agents see it."""

    server: str
    name: str
    spec: ToolSpec


def check_server_name(name: str) -> None:
    """A name that can stand before the names of tools without being taken for another server's.

    Raises:
        Invalid: it cannot.
    """
    if len(name) > MAX_SERVER_NAME_CHARS or not _SERVER_NAME.fullmatch(name):
        raise Invalid(
            f"config.yaml: mcp_servers: {name[:60]!r} cannot be a server's name",
            hint=f"use up to {MAX_SERVER_NAME_CHARS} letters and digits, single '-' or '_' between them",
        )


def shown_name(server: str, tool: str) -> str:
    """`server__tool`; where that is too long, or has other characters, shortened and told apart by a hash."""
    whole = f"{server}{SEPARATOR}{tool}"
    safe = _UNSAFE.sub("_", whole)
    if safe == whole and len(whole) <= MAX_NAME_CHARS:
        return whole
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARS]
    return f"{safe[: MAX_NAME_CHARS - _DIGEST_CHARS - 1]}_{digest}"


def matches(tool: str, globs: Sequence[str] | None) -> bool:
    """Whether one of the globs is for this tool; None: they are for all."""
    return globs is None or any(fnmatchcase(tool, glob) for glob in globs)


def usable(server: str, listed: Iterable[Listed], globs: Sequence[str]) -> tuple[tuple[OutsideTool, ...], list[str]]:
    """Tools that may be shown, in the order of their names; and what is to be said of those left out."""
    wanted = sorted((tool for tool in listed if matches(tool.name, globs)), key=lambda tool: tool.name)
    found: dict[str, OutsideTool] = {}
    left_out: list[str] = []
    for place, tool in enumerate(wanted):
        if len(found) == MAX_TOOLS_PER_SERVER:
            left_out.append(f"{len(wanted) - place} more than {MAX_TOOLS_PER_SERVER}")
            break
        name = shown_name(server, tool.name)
        made = None if name in found or len(tool.name) > _MAX_THEIR_NAME_CHARS else _made(server, name, tool)
        if made is None:
            left_out.append(repr(tool.name[:60]))
        else:
            found[name] = made
    if len(left_out) > _TOLD:
        left_out = [*left_out[:_TOLD], f"and {len(left_out) - _TOLD} others"]
    return tuple(found.values()), left_out


def _made(server: str, name: str, tool: Listed) -> OutsideTool | None:
    schema = usable_schema(tool.input_schema)
    if schema is None:
        return None
    description = readable(tool.description[: MAX_DESCRIPTION_CHARS + 1])
    if len(tool.description) > MAX_DESCRIPTION_CHARS:
        description = description[: MAX_DESCRIPTION_CHARS - 3] + "..."
    return OutsideTool(
        server=server,
        name=tool.name,
        spec=ToolSpec(name=name, description=description or f"{name} of {server}", input_schema=schema),
    )


def usable_schema(schema: Any) -> dict[str, Any] | None:
    """A schema that every model API takes, or None: one bad schema would make all calls of its agents fail."""
    import jsonschema_rs  # an agent with such tools is rare, and nobody else needs it here

    if not isinstance(schema, dict) or not _shallow(schema) or schema.get("type", "object") != "object":
        return None
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or not all(_PROPERTY.fullmatch(key) for key in properties):
        return None
    kept = {key: value for key, value in schema.items() if key not in _TOP_LEVEL}
    kept.update(type="object", properties=properties)
    try:
        if len(json.dumps(kept, ensure_ascii=False, allow_nan=False).encode()) > MAX_SCHEMA_CHARS:
            return None
        return kept if jsonschema_rs.meta.is_valid(kept) else None
    except ValueError:  # not a number, half a character, or nothing that a schema can be
        return None


def _shallow(schema: Any) -> bool:
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        if not level or len(level) > MAX_SCHEMA_CHARS:
            break
        deeper: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                deeper.extend(node.values())
            elif isinstance(node, list):
                deeper.extend(node)
        level = deeper
    return not level


def readable(text: str) -> str:
    """Text without half characters, which no model API takes, control characters and others that nobody sees."""
    return _CONTROL.sub(" ", text).encode("utf-8", "replace").decode().strip()


def result_text(blocks: Iterable[Any], structured: Any) -> str:
    """A result as a model reads it: its texts, or its data as JSON if there is none; of the rest what it is."""
    said, notes = [], []
    for block in blocks:
        kind = getattr(block, "type", "")
        if kind == "text":
            said.append(block.text)
        elif kind in ("image", "audio"):
            notes.append(f"[{kind} {_short(block.mime_type)}, {_decoded_bytes(block.data):,} bytes, not shown]")
        elif kind == "resource_link":
            notes.append(f"[resource {_short(block.uri)}]")
        elif kind == "resource":
            text = getattr(block.resource, "text", None)
            if isinstance(text, str):
                said.append(text)
            else:
                size = _decoded_bytes(getattr(block.resource, "blob", ""))
                notes.append(f"[resource {_short(block.resource.uri)}, {size:,} bytes, not shown]")
    if not any(text.strip() for text in said) and structured is not None:
        said = [json.dumps(structured, ensure_ascii=False, separators=(",", ":"))]
    return _CONTROL.sub(" ", "\n".join((*said, *notes))) or "(nothing)"


def _short(value: object) -> str:
    return readable(str(value)[:200])


def _decoded_bytes(base64_text: str) -> int:
    return len(base64_text) * 3 // 4
