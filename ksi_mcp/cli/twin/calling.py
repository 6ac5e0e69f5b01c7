"""Who acts on the command line: the operator of a data folder, or the agent whose token is in the environment.

With KSI_AGENT_TOKEN or KSI_AGENT_URL there, even if it is empty, nothing opens a data folder any more: what cannot be
done as the agent is refused, and never done as the operator instead.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from ksi_mcp.errors import NotFound, Refused

if TYPE_CHECKING:
    from ksi_mcp.tools.call import Progress
    from ksi_mcp.transports.remote import RemoteTools

TOKEN_ENV: Final = "KSI_AGENT_TOKEN"  # noqa: S105  the name of the variable, not what is in it
URL_ENV: Final = "KSI_AGENT_URL"


class Calling(Protocol):
    """Calls tools as somebody."""

    async def find(self, name: str) -> tuple[str, Mapping[str, Any]]:
        """A tool's exact name and the schema of its parameters, by its name or its command's.

        Raises:
            NotFound: there is none.
        """
        ...

    async def call(self, name: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Call a tool.

        Raises:
            KsiError: what was wrong, and what to do next.
        """
        ...


class Remote:
    """An agent, or whoever the token stands for, at the other end of a connection."""

    def __init__(self, tools: RemoteTools) -> None:
        self._tools = tools

    async def find(self, name: str) -> tuple[str, Mapping[str, Any]]:
        """A tool's exact name and schema, if it is offered."""
        wanted = name.replace("-", "_").replace(":", "_", 1)
        offered = {each.name: each.schema for each in await self._tools.offered()}
        for each in (name, wanted):
            if each in offered:
                return each, offered[each]
        close = difflib.get_close_matches(wanted, offered, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"{len(offered)} are: `ksi-mcp help` lists them"
        raise NotFound(f"{name[:80]!r} is not one of the tools offered here", hint=hint)

    async def call(self, name: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Call a tool. `help` without a topic lists what is offered here, whatever else there is."""
        if name == "help" and not args.get("topic"):
            lines = [
                {"tool": each.name, "does": each.description.partition("\n")[0]} for each in await self._tools.offered()
            ]
            return {"tools": lines, "how": "`ksi-mcp call TOOL key=value` calls one"}
        from ksi_mcp.tools.catalog import ALL_TOOLS
        from ksi_mcp.transports.remote import NotOffered

        try:
            return await self._tools.call(name, args, progress)
        except NotOffered:  # most are offered as commands only: each tool in a list costs a model its attention
            declared = next((each for each in ALL_TOOLS if each.name == name), None)
            if declared is None:
                raise
            return await self._tools.command(declared.command, args, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Behalf:
    """An agent's token, and where it is good."""

    url: str
    token: str


def behalf_of(environ: Mapping[str, str] = os.environ) -> Behalf | None:
    """Whether the environment says to act as an agent, and how.

    Raises:
        Refused: it says so, and not how.
    """
    if TOKEN_ENV not in environ and URL_ENV not in environ:
        return None
    url, token = environ.get(URL_ENV, "").strip(), environ.get(TOKEN_ENV, "").strip()
    if not url or not token:
        missing = TOKEN_ENV if not token else URL_ENV
        raise Refused(
            f"{missing} is missing, so this is nobody; nothing was opened as the operator",
            hint=f"set both, or unset {TOKEN_ENV} and {URL_ENV}",
        )
    return Behalf(url=url, token=token)


def require_operator(command: str) -> None:
    """Refuse a command that needs the data folder to somebody who acts as an agent.

    Raises:
        Refused: KSI_AGENT_TOKEN or KSI_AGENT_URL is there.
    """
    if behalf_of() is not None:
        raise Refused(
            f"`{command}` needs the data folder, and this is an agent ({TOKEN_ENV} is set)",
            hint=f"use the commands of tools; to be the operator, unset {TOKEN_ENV} and {URL_ENV}",
        )


@asynccontextmanager
async def open_calling(home: str | None, project: Path | None) -> AsyncIterator[Calling]:
    """Open the data folder as its operator, or connect as the agent of the environment.

    Raises:
        KsiError: it cannot be opened; or a data folder is named, and this is an agent.
    """
    behalf = behalf_of()
    if behalf is None:
        from ksi_mcp.cli.twin.operating import operate

        async with operate(home, project) as operator:
            yield operator
        return
    if home is not None or project is not None:
        raise Refused("an agent chooses no folder", hint=f"leave --home and --project out; {TOKEN_ENV} says who it is")
    from ksi_mcp.transports.remote import connect

    async with connect(behalf.url, behalf.token) as tools:
        yield Remote(tools)
