"""Which MCP servers a document asks for: names, a mapping, or the `mcpServers` shape of other programs. Pure."""

from __future__ import annotations

from typing import Any, Final

from ksi_mcp.compositions.model import shorten
from ksi_mcp.compositions.reading import Problems, kind_of

MAX_SERVERS: Final = 20
MAX_GLOBS: Final = 100
MAX_GLOB_CHARS: Final = 256
_REACHED: Final = ("command", "args", "url")
# What other programs write besides; here the operator's configuration says these.
_WITHOUT_EFFECT: Final = frozenset({"type", "transport", "env", "headers", "timeout", "timeout_s", "cwd", "disabled"})


def servers_of(value: Any, path: str, problems: Problems) -> dict[str, dict[str, Any]]:
    """By name: `tools` (names or globs) if it says so, and `command`, `args` or `url` where they are described.

    Only the operator's configuration starts a server: a description here is compared with it, and nothing more.
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        names, value = value, {}
        for place, name in enumerate(names):
            if isinstance(name, str):
                value[name] = None
            else:
                problems.add(f"{path}.{place}", f"must be a server's name, not {kind_of(name)}")
    if not isinstance(value, dict):
        problems.add(path, f"must be a list of names or a mapping, not {kind_of(value)}")
        return {}
    if len(value) > MAX_SERVERS:
        problems.add(path, f"{len(value)} servers, the limit is {MAX_SERVERS}")
        return {}
    return {str(name): _server(wish, f"{path}.{shorten(str(name))}", problems) for name, wish in value.items()}


def _server(wish: Any, path: str, problems: Problems) -> dict[str, Any]:
    if wish is None:
        return {}
    if isinstance(wish, list):
        wish = {"tools": wish}
    if not isinstance(wish, dict):
        problems.add(path, f"must be a mapping, not {kind_of(wish)}")
        return {}
    for key in wish.keys() - {"tools", *_REACHED} - _WITHOUT_EFFECT:
        problems.add(f"{path}.{shorten(str(key))}", "is no part of a server; there are tools, command, args and url")
    found: dict[str, Any] = {}
    for key in ("command", "url"):
        if (text := problems.text(wish.get(key), f"{path}.{key}")) is not None:
            found[key] = text
    for key in ("args", "tools"):
        if wish.get(key) is not None:
            found[key] = _texts(wish[key], f"{path}.{key}", problems)
    return found


def _texts(value: Any, path: str, problems: Problems) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        problems.add(path, "must be a list of texts")
        return []
    if len(value) > MAX_GLOBS or any(len(item) > MAX_GLOB_CHARS for item in value):
        problems.add(path, f"must be at most {MAX_GLOBS} texts of {MAX_GLOB_CHARS} characters")
        return []
    return value
