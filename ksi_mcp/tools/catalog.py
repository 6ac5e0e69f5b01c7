"""Every tool there is, and the few that a client is shown by default.

A start loads no tool's module: what there is to say about each was written down beforehand, in `declared.json`
(`scripts/declare-tools` makes it, and a test holds it against the modules).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ksi_mcp.tools.tool import Elsewhere, Tool


def _declared() -> tuple[Tool, ...]:
    written: list[dict[str, Any]] = json.loads(Path(__file__).with_name("declared.json").read_bytes())
    return tuple(map(_tool, written))


def _tool(facts: dict[str, Any]) -> Tool:
    body = Elsewhere(module=facts.pop("module"), function=facts.pop("function"))
    return Tool(body=body, stated=facts.pop("schema"), commands=tuple(facts.pop("commands")), **facts)


ALL_TOOLS: tuple[Tool, ...] = _declared()

DEFAULT_TOOLS: tuple[str, ...] = (
    "agent_spawn",
    "agent_send",
    "agent_wait",
    "agent_list",
    "agent_terminate",
    "event_emit",
    "event_query",
    "routing_add_rule",
    "routing_modify_rule",
    "routing_delete_rule",
    "routing_query_rules",
    "routing_explain",
    "composition_discover",
    "composition_get",
    "composition_fork",
    "composition_diff",
    "composition_merge",
    "composition_track_decision",
    "orchestration_start",
    "orchestration_status",
    "orchestration_control",
    "orchestration_complete",
    "completion_answer",
    "help",
)
"""The rest is one `help` and `event_emit` away."""
