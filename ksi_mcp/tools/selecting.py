"""What the agent tools share: how agents are named and chosen, and how a message is put."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from ksi_mcp.agents.model import Agent
from ksi_mcp.agents.roster import AgentFilter
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import Part

AgentRef = Annotated[str, Field(description="agent id or name", min_length=1, max_length=100)]
Key = Annotated[str | None, Field(description="same key: first result again", max_length=200)]


class AgentWhere(Part):
    """Which agents; all given fields must fit."""

    orchestration: str | None = None
    parent: str | None = None
    composition: str | None = None
    status: Literal["idle", "busy", "suspended", "active", "terminated", "failed"] | None = None
    capabilities: list[str] = Field(default_factory=list, max_length=20)


def message_text(value: str | dict[str, Any]) -> str:
    """A message as the agent reads it; an object becomes JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


def filter_of(where: AgentWhere | None) -> AgentFilter:
    """As the roster takes it; the living only, unless a status says otherwise."""
    if where is None:
        return AgentFilter(status="active")
    return AgentFilter(
        orchestration_id=where.orchestration,
        parent_id=where.parent,
        composition=where.composition,
        status=where.status or "active",
        capabilities=tuple(where.capabilities),
    )


def select_living(tx: Tx, call: Call, where: AgentWhere | None) -> list[Agent]:
    """Every living agent that fits, page by page."""
    if where is None or where == AgentWhere():
        raise Invalid(
            "an empty filter would mean every agent", hint="name an orchestration, parent, composition or status"
        )
    found: list[Agent] = []
    cursor: str | None = None
    while True:
        page, cursor = call.svc.roster.page(tx, call.ctx, filter_of(where), limit=500, cursor=cursor)
        found += [one for one in page if one.life == "active"]
        if cursor is None:
            return found
