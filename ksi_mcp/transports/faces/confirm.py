"""A destructive command in `event_emit` needs the user's word: the client may have approved that tool for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ClientCapabilities, ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from ksi_mcp.tools.tool import Tool
from ksi_mcp.tools.toolbox import Toolbox

EMIT = "event_emit"
MODERN = "2026-07-28"
"""From this protocol version on, a question is the result of the call; before, it is a request to the client."""

_KEY = "confirm"
_SHOWN = 100
_MOST = 40
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean", "title": "Do it", "default": True}},
}


async def confirm_destruction(
    toolbox: Toolbox, name: str, arguments: Mapping[str, Any], context: Context[Any, Any]
) -> InputRequiredResult | None:
    """Let a call pass (None), or ask the user first if it emits a destructive command.

    Before 2026-07-28 the question is asked and answered in here. After, the returned question is the result
    of the call, and the client repeats the call with the answer; the SDK seals `request_state` to this very
    tool and these very arguments, so that one answer cannot be used for another call.

    Raises:
        ToolError: the user declined, or the client cannot ask.
        Invalid: the arguments of `event_emit` are wrong.
    """
    if name != EMIT:
        return None
    found = _destructive(toolbox, arguments)
    if found is None:
        return None
    doomed, given = found
    if not can_ask(context):
        raise ToolError(
            f"{doomed.command} ends or deletes something, and this client cannot ask the user about it; "
            f"call {doomed.name} itself"
        )
    question = f"Run {doomed.command} ({doomed.title.lower()}) with {_shown(given)}?"
    if (context.protocol_version or "") >= MODERN:
        answer = (context.input_responses or {}).get(_KEY)
        if answer is None or context.request_state != doomed.name:
            request = ElicitRequest(params=ElicitRequestFormParams(message=question, requested_schema=_SCHEMA))
            return InputRequiredResult(input_requests={_KEY: request}, request_state=doomed.name)
    else:
        answer = await context.session.elicit_form(question, _SCHEMA, related_request_id=context.request_id)
    if not _agreed(answer):
        raise ToolError(f"the user did not confirm {doomed.command}; nothing was changed")
    return None


def _destructive(toolbox: Toolbox, arguments: Mapping[str, Any]) -> tuple[Tool, Mapping[str, Any]] | None:
    """The destructive tool that this emission runs, also through further emissions inside it, and what it is given."""
    emit = toolbox.get(EMIT)
    given: Mapping[str, Any] = arguments
    while True:
        checked = emit.validate(given)
        command = toolbox.command(checked["event"])
        if command is None:
            return None
        if command.name != EMIT:
            return (command, checked["data"] or {}) if command.effects == "destroys" else None
        given = checked["data"] or {}


def can_ask(context: Context[Any, Any]) -> bool:
    """Whether the client can put a form before its user."""
    return shows_forms(context.client_capabilities)


def shows_forms(capabilities: ClientCapabilities | None) -> bool:
    """Whether a client with these capabilities can put a form before its user."""
    asked = capabilities.elicitation if capabilities is not None else None
    # A client that names no kind of elicitation means forms, the only kind there was.
    return asked is not None and (asked.form is not None or asked.url is None)


def _agreed(answer: object) -> bool:
    if not isinstance(answer, ElicitResult) or answer.action != "accept":
        return False
    return (answer.content or {}).get("ok", True) is True


def _shown(given: Mapping[str, Any]) -> str:
    """The arguments, each cut by itself: a long one must not hide another. No tool takes more than are shown."""
    shown = [f"{key!r:.{_SHOWN}}: {value!r:.{_SHOWN}}" for key, value in list(given.items())[:_MOST]]
    return "{" + ", ".join(shown) + (", ...}" if len(given) > _MOST else "}")
