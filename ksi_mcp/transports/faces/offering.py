"""Puts resources, prompts, completion and notices into a server, in place of the SDK's own registries."""

from __future__ import annotations

from functools import partial
from typing import Any

from mcp.server import MCPServer
from mcp.server.lowlevel import NotificationOptions, Server

from ksi_mcp.app import App
from ksi_mcp.transports.faces.completing import Completing
from ksi_mcp.transports.faces.notices import Notices
from ksi_mcp.transports.faces.paging import tools_handler
from ksi_mcp.transports.faces.prompts import Prompts
from ksi_mcp.transports.faces.resources import Resources


def offer(server: MCPServer[Any], lowlevel: Server[Any], app: App) -> Notices:
    """Register what answers everything but calls of tools. Nothing is looked up or listened to before it is asked for.

    The SDK's registries hold functions that are not told who asks, list one page, and know no subscriptions before
    2026-07-28; what extensions put there is offered all the same.
    """
    resources = Resources(app.toolbox, server)
    notices = Notices(app.services.journal, resources)
    offered = (
        tools_handler(server.list_tools),
        *resources.handlers(),
        *Prompts(app.toolbox, resources).handlers(),
        *Completing(app.toolbox).handlers(),
        *notices.handlers(),
    )
    for method, params, handler in offered:
        lowlevel.add_request_handler(method, params, handler)
    # Every transport asks the server for what the older era is told of it, and none of them says this.
    options = partial(lowlevel.create_initialization_options, NotificationOptions(resources_changed=True))
    lowlevel.create_initialization_options = options  # type: ignore[method-assign]
    return notices
