"""Waits of the command line: whether one came up short, how it goes on, and what is left if somebody breaks it off."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from ksi_mcp.tools.tool import Tool

MAX_WAIT_S: Final = 55.0
"""One call waits no longer; `--until-done` calls again."""
_EARLY_S: Final = 1.0
_OPEN: Final = frozenset({"queued", "blocked", "retrying", "running", "parked"})


def fell_short(tool: Tool, args: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Whether a wait ended before everything was there, or not all of it went well."""
    if not tool.waits:
        return False
    census = data.get("census")
    if isinstance(census, Mapping):
        return data.get("partial") is True or _left(census) > 0 or _not_well(census)
    if "complete" in data:
        return data["complete"] is not True
    if args.get("wait_s"):
        return "status" in data and data["status"] != "done"
    return False


def _left(census: Mapping[str, Any]) -> int:
    return sum(int(census.get(key, 0)) for key in ("pending", "running", "not_run"))


def _not_well(census: Mapping[str, Any]) -> bool:
    return any(census.get(key) for key in ("failed", "cancelled", "timed_out", "unjudged"))


def can_repeat(tool: Tool) -> bool:
    """Whether its wait can be gone on with by another call."""
    return tool.name in ("agent_wait", "agent_send", "event_wait", "composition_evaluate")


def longest(tool: Tool, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the first of several calls."""
    name = "timeout_s" if tool.name in ("agent_wait", "event_wait") else "wait_s"
    return {**args, name: MAX_WAIT_S}


def next_call(
    tool: Tool, args: Mapping[str, Any], data: Mapping[str, Any], *, took_s: float
) -> tuple[str, dict[str, Any]] | None:
    """The call that goes on with a wait: the tool's name and its arguments. None if nothing is left to wait for.

    A call that came back early waits for somebody, and would again.
    """
    if took_s < MAX_WAIT_S - _EARLY_S:
        return None
    match tool.name:
        case "agent_wait" if _left(data.get("census", {})):
            return "agent_wait", dict(args)
        case "agent_send" if data.get("status") in _OPEN:
            return "agent_wait", {"turns": [data["turn"]], "timeout_s": MAX_WAIT_S}
        case "agent_send" if _left(data.get("census", {})):
            return "agent_wait", {"turns": [each["turn"] for each in data["turns"]], "timeout_s": MAX_WAIT_S}
        case "event_wait" if data.get("complete") is False:
            return "event_wait", dict(args)
        case "composition_evaluate" if _left(data.get("census", {})):
            return "composition_evaluate", {"evaluation": data["evaluation"], "wait_s": MAX_WAIT_S}
    return None


def joined(tool: Tool, first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """What several calls together came to, in the shape that one call has."""
    if tool.name == "agent_send" and isinstance(last.get("turns"), list) and last["turns"]:
        return {**first, **last["turns"][0], **({"next": last["next"]} if "next" in last else {})}
    return dict(last)


def after_break(tool: Tool, args: Mapping[str, Any], data: Mapping[str, Any] | None) -> str:
    """What to say to somebody who broke a call off."""
    if not tool.waits:
        return "interrupted; what was begun is either whole or not there"
    if data is not None and tool.name == "agent_send" and "turn" in data:
        going_on = ["agent", "wait", str(data["turn"])]
    elif data is not None and "evaluation" in data:
        going_on = ["composition", "evaluate", "--evaluation", str(data["evaluation"])]
    elif tool.name == "agent_wait":
        going_on = ["agent", "wait", *map(str, args.get("turns") or ())]
        going_on += [word for name in args.get("agents") or () for word in ("--agents", str(name))]
    elif tool.name == "agent_send":
        going_on = ["agent", "wait", "--agents", str(args.get("agent"))]
    elif tool.name == "event_wait":
        going_on = ["event", "wait", *map(str, args.get("names") or ())]
    elif tool.name == "composition_evaluate" and args.get("evaluation"):
        going_on = ["composition", "evaluate", "--evaluation", str(args["evaluation"])]
    else:
        return "interrupted; nothing was lost: what was begun goes on, and the same command waits again"
    return f"interrupted; nothing was lost, the turns go on: `ksi-mcp {shlex.join(going_on)}` waits again"
