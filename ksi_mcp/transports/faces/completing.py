"""Completion of what a user types: arguments of prompts, and variables of resource templates.

Only what the caller can see is offered. What cannot be the beginning of anything is answered with nothing, not with
an error: a client asks on every key.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from mcp.types import CompleteRequestParams, CompleteResult, Completion, PromptReference

from ksi_mcp.errors import KsiError
from ksi_mcp.permissions import Context
from ksi_mcp.tools.suggesting import MAX_SUGGESTED, MAX_VALUE_CHARS, Kind
from ksi_mcp.tools.toolbox import Toolbox
from ksi_mcp.transports.access import context_for
from ksi_mcp.transports.faces.addresses import MADE
from ksi_mcp.transports.faces.paging import Handler, Request
from ksi_mcp.transports.faces.prompts import PROMPTS

logger = logging.getLogger(__name__)

_MAX_TASK_CHARS: Final = 2_000
_RANKED: Final = 10
_NOTHING: Final[Mapping[str, Any]] = {"values": [], "total": 0}


class Completing:
    """Answers `completion/complete`."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

    def handlers(self) -> tuple[Handler, ...]:
        """What to register with the server."""
        return (("completion/complete", CompleteRequestParams, self.complete),)

    async def complete(self, request: Request, params: CompleteRequestParams) -> CompleteResult:
        """At most a hundred values: those that begin with what was typed, then those that hold it."""
        found: Mapping[str, Any] = _NOTHING
        wanted = _wanted(params)
        if wanted is not None:
            kind, within = wanted
            given = (params.context.arguments if params.context else None) or {}
            try:
                found = await self._found(context_for(request), kind, params.argument.value, within, given)
            except KsiError as error:
                logger.debug("nothing to complete with: %s", error.text())
        values, total = found["values"][:MAX_SUGGESTED], found["total"]
        more = bool(found.get("more")) or total > len(values)
        return CompleteResult(completion=Completion(values=values, total=total, has_more=more))

    async def _found(
        self, ctx: Context, kind: Kind, value: str, within: str | None, given: Mapping[str, str]
    ) -> Mapping[str, Any]:
        value = value.strip()
        if len(value) > MAX_VALUE_CHARS or not value.isprintable():
            return _NOTHING
        args: dict[str, Any] = {"kind": kind, "value": value, "limit": MAX_SUGGESTED}
        if within is not None and (inside := given.get(within)):
            if len(inside) > MAX_VALUE_CHARS or not inside.isprintable():
                return _NOTHING
            args["within"] = inside
        found = (await self._toolbox.call(ctx, "name_suggest", args)).data
        goal = given.get("goal", "")[:_MAX_TASK_CHARS].strip()
        if kind == "pattern" and not value and goal and within is None:
            found = {**found, "values": await self._fitting(ctx, goal, found["values"])}
        return found

    async def _fitting(self, ctx: Context, goal: str, names: list[str]) -> list[str]:
        """The patterns with those first that fit the goal, the best of them foremost."""
        ranked = await self._toolbox.call(ctx, "composition_discover", {"task": goal, "limit": _RANKED})
        first = [each["name"] for each in ranked.data.get("compositions", ()) if each["name"] in names]
        return [*first, *(name for name in names if name not in first)]


def _wanted(params: CompleteRequestParams) -> tuple[Kind, str | None] | None:
    """What kind of value it is, and which other argument narrows it down; None if there is nothing to offer."""
    name = params.argument.name
    if isinstance(params.ref, PromptReference):
        prompt = next((each for each in PROMPTS if each.name == params.ref.name), None)
        argument = next((each for each in prompt.arguments if each.name == name), None) if prompt else None
        return None if argument is None or argument.kind is None else (argument.kind, argument.within)
    made = next((each for each in MADE if each.uri == params.ref.uri and each.variable == name), None)
    return None if made is None or made.kind is None else (made.kind, None)
