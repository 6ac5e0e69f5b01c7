"""What there is to read: agents, runs, compositions and chains of events, as JSON."""

from __future__ import annotations

import json
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from ksi_mcp.errors import Invalid, KsiError, NotFound
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.tools.toolbox import Toolbox

JSON = "application/json"
_LISTED = 100
_EVENTS = 200


def add_resources(server: MCPServer[Any], toolbox: Toolbox) -> None:
    """Offer the resources. Each is the result of a tool that only reads, called through the same door."""

    async def look(tool: str, **args: Any) -> dict[str, Any]:
        try:
            done = await toolbox.call(fresh_context(OPERATOR), tool, args)
        except (NotFound, Invalid) as missing:
            raise ResourceNotFoundError(missing.text()) from missing
        except KsiError as error:
            raise ResourceError(error.text()) from error
        return done.data

    @server.resource("ksi://agents", mime_type=JSON, title="Living agents")
    async def agents() -> str:
        """The living agents."""
        return _text(await look("agent_list", limit=_LISTED))

    @server.resource("ksi://orchestrations", mime_type=JSON, title="Runs")
    async def orchestrations() -> str:
        """Runs of patterns, newest first."""
        return _text(await look("orchestration_list", limit=_LISTED))

    @server.resource("ksi://compositions", mime_type=JSON, title="Compositions")
    async def compositions() -> str:
        """Patterns, profiles and components of the library."""
        return _text(await look("composition_discover", limit=_LISTED))

    @server.resource("ksi://routing/graph", mime_type=JSON, title="The routing table")
    async def routing_graph() -> str:
        """Who sends what to whom: agents, events and patterns, joined by the rules."""
        return _text(await look("routing_graph", format="json"))

    @server.resource("ksi://agents/{id}", mime_type=JSON, title="An agent")
    async def agent(id: str) -> str:
        """An agent with its history, rules, budget and newest events."""
        return _text(await look("agent_get", agent=id, include=["history", "rules", "budget", "events"]))

    @server.resource("ksi://orchestrations/{id}", mime_type=JSON, title="A run")
    async def orchestration(id: str) -> str:
        """How far a run is."""
        return _text(await look("orchestration_status", orchestration=id))

    @server.resource("ksi://compositions/{name}", mime_type=JSON, title="A composition")
    async def composition(name: str) -> str:
        """A composition whole."""
        return _text(await look("composition_get", name=name))

    @server.resource("ksi://events/{root}", mime_type=JSON, title="A chain of events")
    async def events(root: str) -> str:
        """All that one cause led to, newest first."""
        found = await look("event_query", root=root, limit=_EVENTS)
        if not found["events"]:
            raise ResourceNotFoundError(f"no events have the root {root[:80]!r}; event_query shows the roots of events")
        return _text(found)


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))
