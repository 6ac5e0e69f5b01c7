"""Usage: what was spent in the newest window, by run, model, agent and day, beside the account that it came from."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.budgets.model import GLOBAL
from ksi_mcp.budgets.report import After, GroupBy, Spend, Wanted, groups, total
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.tools.budgets import NO_RUN, AccountView, SpendView, moment
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import at

DAY_S: Final = 86_400
MAX_WINDOW_S: Final = 3_660 * DAY_S
MAX_CURSOR_CHARS: Final = 600

By = Literal["run", "model", "agent", "day"]

_GROUP_BY: Final[dict[By, GroupBy]] = {"run": "orchestration", "model": "model", "agent": "agent", "day": "day"}
_TOGETHER: Final[tuple[By, ...]] = ("run", "model", "agent")


class UsageView(View):
    """Spend from `since` to `until`, dearest first (days from the newest); the total is over all, shown or not.

    `account` is the account as it stands, with all that was ever spent from it. `more` names the lists that were cut.
    """

    since: str
    until: str
    account: AccountView
    total: SpendView
    runs: list[SpendView] | None = None
    models: list[SpendView] | None = None
    agents: list[SpendView] | None = None
    days: list[SpendView] | None = None
    more: list[str] | None = None
    cursor: str | None = None


@tool("usage_report", needs="base", effects="reads", title="See what is being spent", idempotent=True)
async def usage_report(
    call: Call,
    *,
    by: Annotated[By | None, Field(description="left out: by run, by model and by agent")] = None,
    window_s: Annotated[float | None, Field(gt=0, le=MAX_WINDOW_S, description="default: a day")] = None,
    since: Annotated[
        str | None, Field(max_length=40, description="instead of window_s, as 2027-01-31 or 2027-01-31T12:00:00Z")
    ] = None,
    orchestration: Annotated[str | None, Field(max_length=100, description="only this run")] = None,
    limit: Annotated[int, Field(ge=1, le=200)] = 20,
    cursor: Annotated[str | None, Field(max_length=MAX_CURSOR_CHARS, description="with `by` only")] = None,
) -> UsageView:
    """Return what the newest window cost by run, model, agent or day, with totals, and the account as it stands.

    Certain, uncertain and reserved amounts are shown apart. It counts the calls that are still kept; what retention
    removed stays in the account. An agent sees its own account and the calls of those in its sight.
    """
    if window_s is not None and since is not None:
        raise Invalid("window_s and since both say where the window begins", hint="give one")
    if cursor is not None and by is None:
        raise Invalid("a cursor goes with `by`", hint="repeat the call that gave the cursor")
    place = None if cursor is None else _read_cursor(cursor)
    start_ms = None if since is None else max(moment(since), 0)

    def work(tx: Tx) -> UsageView:
        since_ms = start_ms if start_ms is not None else tx.now_ms - round((window_s or DAY_S) * 1000)
        if place is not None:  # the pages of one report begin at one moment
            since_ms = place[0]
        run = None if orchestration is None else call.svc.conductor.find(tx, call.ctx, orchestration).orchestration_id
        wanted = Wanted(orchestration_id=run, since_ms=since_ms, agents=reach.visible(tx, call.ctx))
        shown: dict[str, list[SpendView]] = {}
        cut: list[str] = []
        following = None
        for each in _TOGETHER if by is None else (by,):
            after = None if place is None else place[1]
            found, more = groups(tx, wanted, group_by=_GROUP_BY[each], limit=limit, after=after)
            shown[f"{each}s"] = [_shown(tx, call, each, group) for group in found]
            if more:
                cut.append(f"{each}s")
                following = _cursor(since_ms, found[-1])
        account = call.svc.ledger.account(tx, call.ctx.actor.agent_id or GLOBAL)
        return UsageView(
            since=at(since_ms),
            until=at(tx.now_ms),
            account=AccountView.at(account, tx.now_ms),
            total=SpendView.of(total(tx, wanted), label=None),
            more=cut or None,
            cursor=None if by is None else following,
            **shown,
        )

    return await call.read(work)


def _shown(tx: Tx, call: Call, by: By, group: Spend) -> SpendView:
    name = None
    try:
        if by == "agent":
            name = call.svc.roster.get(tx, group.label).name
        elif by == "run" and group.label:
            name = call.svc.conductor.get(tx, group.label).pattern
    except NotFound:  # its calls are still kept, it is not
        name = None
    return SpendView.of(group, label=group.label or NO_RUN, name=name)


def _cursor(since_ms: int, last: Spend) -> str:
    return json.dumps([since_ms, last.booked_usd_micros, last.label], separators=(",", ":"))


def _read_cursor(cursor: str) -> tuple[int, After]:
    found: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(cursor)
    match found:
        case [int(since_ms), int(booked), str(label)] if 0 <= since_ms < 2**53 and 0 <= booked < 2**53:
            return since_ms, After(label=label, booked_usd_micros=booked)
    raise Invalid(f"cursor {cursor[:40]!r} is not one of ours", hint="pass the `cursor` of the last page")


TOOLS = (usage_report,)
