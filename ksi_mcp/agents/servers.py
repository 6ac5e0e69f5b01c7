"""Which other MCP servers an agent gets: what the operator permits, and its parent has. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.provider_config import McpServerConfig

Servers = dict[str, list[str] | None]
"""By name: which of its tools (names or globs); None: all that the operator permits."""


def permitted(wished: Mapping[str, Any] | None, servers: Mapping[str, McpServerConfig]) -> Servers | None:
    """What a composition asks for, as an agent gets it.

    `wished` is as `compositions.settings` leaves it: by name, `tools` and, where it says so, how the server is reached.

    Raises:
        Invalid: the operator's configuration has no server of that name.
        Refused: it has, but another one.
    """
    if not wished:
        return None
    granted: Servers = {}
    for name, wish in wished.items():
        config = servers.get(name)
        if config is None:
            there_are = f"it permits {', '.join(servers)}" if servers else "it permits none"
            raise Invalid(
                f"MCP server {name[:60]!r} is not in config.yaml",
                hint=f"{there_are}; the operator adds one under mcp_servers, and restarts the worker",
            )
        said = wish or {}
        if not _is_same(said, config):
            raise Refused(
                f"MCP server {name!r} of config.yaml is another one than the composition describes",
                hint=f"write `mcp_servers: [{name}]`, or give the operator's command and args, or url",
            )
        granted[name] = None if said.get("tools") is None else list(said["tools"])
    return granted


def _is_same(said: Mapping[str, Any], config: McpServerConfig) -> bool:
    """Whether what a composition says of a server, if anything, is what the operator says."""
    if said.get("url") not in (None, config.url):
        return False
    if said.get("command"):
        return (said["command"], tuple(said.get("args") or ())) == (config.command, config.args)
    return said.get("args") is None or tuple(said["args"]) == config.args


def check_servers_within(wanted: Servers | None, held: Servers | None, *, holder: str) -> None:
    """A child can have no server, and no tool of one, that its parent does not have.

    Raises:
        Refused: with the list of what was too much.
    """
    within = held or {}
    too_much = [
        name if globs is None or name not in within else f"{name} ({', '.join(globs)[:100]})"
        for name, globs in (wanted or {}).items()
        if name not in within or not _all_covered(globs, within[name])
    ]
    if too_much:
        has = ", ".join(f"{name} ({', '.join(globs)[:100]})" if globs else name for name, globs in within.items())
        raise Refused(
            f"{holder} cannot grant MCP servers that it does not have: {', '.join(sorted(too_much))}",
            hint=f"it has {has or 'none'}",
        )


def _all_covered(globs: Sequence[str] | None, held: Sequence[str] | None) -> bool:
    if held is None:
        return True
    return globs is not None and all(any(_covers(one, glob) for one in held) for glob in globs)


def _covers(held: str, wanted: str) -> bool:
    """Whether one glob says all that another does. Where that is hard to tell, it is no."""
    if held in (wanted, "*"):
        return True
    begins, star, rest = held.partition("*")
    return bool(star) and not rest and not set(begins) & set("?[") and wanted.startswith(begins)
