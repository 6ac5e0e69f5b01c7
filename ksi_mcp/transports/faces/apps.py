"""The dashboard of a run, as an MCP App: a page that a host shows beside the result of a tool, and that stays live.

The page calls the tools of this server through its host; it has no other way out. Clients that do not know the
extension see a tool and a result like any other.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, Final

from mcp.server.apps import APP_MIME_TYPE, Apps, ResourceCsp
from mcp.server.mcpserver.resources import FunctionResource

DASHBOARD: Final = "ui://ksi/dashboard"
"""The page's address."""
SHOWN_FOR: Final = "orchestration_status"
"""The tool whose results it shows."""

_PAGE: Final = "app_page/dashboard.html"
_NAME: Final = "dashboard"
_TITLE: Final = "Dashboard of a run"
_DESCRIPTION: Final = "Agents, spend, turns, events and questions of a run, live. For hosts that show MCP Apps."


def tool_meta(name: str) -> dict[str, Any] | None:
    """What the declaration of a tool says of the page that shows its results; None for all tools but one."""
    return {"ui": {"resourceUri": DASHBOARD}} if name == SHOWN_FOR else None


def page_meta() -> dict[str, Any]:
    """What a host is told of the page: it needs nothing from any other place, and a border becomes it."""
    nowhere = ResourceCsp(connect_domains=[], resource_domains=[], frame_domains=[], base_uri_domains=[])
    return {"ui": {"csp": nowhere.model_dump(by_alias=True, exclude_none=True), "prefersBorder": True}}


@cache
def page() -> str:
    """The page as it is sent: one HTML document with all it needs. Read from the package at first use."""
    return files("ksi_mcp.transports").joinpath(_PAGE).read_text("utf-8")


def app_extension() -> Apps:
    """The extension for a server: says that there are apps, and registers the page."""
    apps = Apps()
    apps.add_resource(
        FunctionResource(
            uri=DASHBOARD,
            name=_NAME,
            title=_TITLE,
            description=_DESCRIPTION,
            mime_type=APP_MIME_TYPE,
            meta=page_meta(),
            fn=page,
        )
    )
    return apps
