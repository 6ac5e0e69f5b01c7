"""Budgets: what was spent, what is set aside, what is left."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.budgets.model import GLOBAL
from ksi_mcp.db import Tx
from ksi_mcp.errors import NotFound
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import BudgetView


class BudgetsView(View):
    """An account and those above it, root first."""

    accounts: list[BudgetView]


@tool("budget_status", needs="base", effects="reads", title="See what was spent", idempotent=True)
async def budget_status(
    call: Call,
    *,
    account: Annotated[
        str | None, Field(description="global, or the id of a run or agent; an agent's default: its own")
    ] = None,
) -> BudgetsView:
    """Return an account and those above it: spent, reserved, limits."""

    def work(tx: Tx) -> BudgetsView:
        seen = reach.visible_scopes(tx, call.ctx)
        asked = account or call.ctx.actor.agent_id or GLOBAL
        found = call.svc.ledger.account(tx, asked)
        if seen is not None and found.account_id not in seen:
            raise NotFound(f"unknown account {asked[:80]!r}", hint="an agent sees its own account and those of its run")
        path = [each for each in call.svc.ledger.path(tx, found.account_id) if seen is None or each.account_id in seen]
        return BudgetsView(accounts=[BudgetView.of(each) for each in path])

    return await call.read(work)


TOOLS = (budget_status,)
