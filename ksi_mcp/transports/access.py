"""Who calls over a connection: decided here, from the connection or its token, for everything that MCP offers."""

from __future__ import annotations

from typing import Any, Final

from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context as CallContext

from ksi_mcp.errors import Refused
from ksi_mcp.permissions import OPERATOR, Actor, Context, fresh_context

ACTOR: Final = "ksi.actor"
"""The key of an HTTP request's ASGI scope under which the door leaves who calls."""


def actor_of(context: CallContext[Any, Any] | ServerRequestContext[Any, Any] | None) -> Actor:
    """Who makes this request: whose token it came with over HTTP; the operator, on stdin and in this process.

    Raises:
        Refused: it came over HTTP and past the door that checks tokens.
    """
    if context is None:
        return OPERATOR
    request = (context.request_context if isinstance(context, CallContext) else context).request
    if request is None:
        return OPERATOR
    actor = request.scope.get(ACTOR)
    if not isinstance(actor, Actor):
        raise Refused("nobody has checked who sends this request")
    return actor


def context_for(context: CallContext[Any, Any] | ServerRequestContext[Any, Any] | None) -> Context:
    """The context of a call that begins with this request."""
    return fresh_context(actor_of(context))
