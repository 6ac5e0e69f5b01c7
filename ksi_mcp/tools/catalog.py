"""Every tool there is, and the few that a client is shown by default."""

from __future__ import annotations

from ksi_mcp.tools import (
    agents,
    budgets,
    completions,
    compositions,
    control,
    decisions,
    events,
    messages,
    monitor,
    observe,
    orchestrations,
    replaying,
    routing,
    routing_letters,
    routing_table,
    routing_view,
    subscriptions,
    supervision,
)
from ksi_mcp.tools.tool import Tool

ALL_TOOLS: tuple[Tool, ...] = (
    *agents.TOOLS,
    *messages.TOOLS,
    *completions.TOOLS,
    *events.TOOLS,
    *replaying.TOOLS,
    *routing.TOOLS,
    *routing_table.TOOLS,
    *routing_view.TOOLS,
    *routing_letters.TOOLS,
    *subscriptions.TOOLS,
    *compositions.TOOLS,
    *decisions.TOOLS,
    *orchestrations.TOOLS,
    *control.TOOLS,
    *budgets.TOOLS,
    *supervision.TOOLS,
    *monitor.TOOLS,
    *observe.TOOLS,
)

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
    "composition_track_decision",
    "orchestration_start",
    "orchestration_status",
    "orchestration_control",
    "orchestration_complete",
    "completion_answer",
    "help",
)
"""The rest is one `help` and `event_emit` away."""
