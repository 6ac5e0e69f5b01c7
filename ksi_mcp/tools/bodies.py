"""Every tool as its module writes it, all of them loaded: what `declared.json` is made from and held against.

Nothing that serves imports this: `catalog.py` has the same tools, and a tool's module is loaded when it is called.
"""

from __future__ import annotations

import json
from typing import Any

from ksi_mcp.tools import (
    agents,
    batches,
    budgets,
    completions,
    composition_changes,
    composition_editing,
    compositions,
    control,
    decisions,
    evaluating,
    events,
    evolution,
    federation,
    finding,
    messages,
    monitor,
    observe,
    orchestrations,
    overview,
    prefetching,
    replaying,
    routing,
    routing_letters,
    routing_table,
    routing_view,
    semantic,
    status,
    subscriptions,
    suggesting,
    supervision,
    usage,
)
from ksi_mcp.tools.tool import Tool

WRITTEN: tuple[Tool, ...] = (
    *agents.TOOLS,
    *messages.TOOLS,
    *completions.TOOLS,
    *semantic.TOOLS,
    *prefetching.TOOLS,
    *batches.TOOLS,
    *events.TOOLS,
    *replaying.TOOLS,
    *routing.TOOLS,
    *routing_table.TOOLS,
    *routing_view.TOOLS,
    *routing_letters.TOOLS,
    *subscriptions.TOOLS,
    *finding.TOOLS,
    *compositions.TOOLS,
    *composition_editing.TOOLS,
    *federation.TOOLS,
    *composition_changes.TOOLS,
    *evolution.TOOLS,
    *evaluating.TOOLS,
    *decisions.TOOLS,
    *orchestrations.TOOLS,
    *status.TOOLS,
    *control.TOOLS,
    *budgets.TOOLS,
    *usage.TOOLS,
    *supervision.TOOLS,
    *monitor.TOOLS,
    *overview.TOOLS,
    *suggesting.TOOLS,
    *observe.TOOLS,
)


def declarations() -> str:
    """The contents of `declared.json`, one tool a line."""
    return "[\n" + ",\n".join(map(_declaration, WRITTEN)) + "\n]\n"


def _declaration(tool: Tool) -> str:
    facts: dict[str, Any] = {
        "name": tool.name,
        "module": tool.body.__module__,
        "function": tool.body.__name__,
        "needs": tool.needs,
        "effects": tool.effects,
        "title": tool.title,
        "description": tool.description,
        "waits": tool.waits,
        "idempotent": tool.idempotent,
        "aliases": dict(tool.aliases),
        "commands": list(tool.commands),
        "schema": tool.schema(),
    }
    return json.dumps(facts, ensure_ascii=False)
