"""Budgets: what was spent, what is set aside, what is left, and what may be spent."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.budgets.model import GLOBAL, MAX_USD, Account, Limits, Policy, limits_of
from ksi_mcp.budgets.report import GroupBy, Spend, Wanted, spend
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, NotFound, Refused
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import Part, View, tool
from ksi_mcp.tools.views import BudgetView, at, usd

NO_RUN = "none"
"""The group of calls that belong to no run."""


class AccountView(BudgetView):
    """An account as it stands; `policy` is what happens at its limit."""

    policy: Policy
    reserved_tokens: int
    opened_at: str | None = None
    seconds_used: float | None = None
    seconds_left: float | None = None
    reported_percent: int | None = None

    @classmethod
    def at(cls, account: Account, now_ms: int) -> AccountView:
        """From the record, at a moment."""
        opened = account.opened_at_ms
        return cls(
            **{
                **BudgetView.of(account).model_dump(),
                "policy": account.policy,
                "reserved_tokens": account.reserved_tokens,
                "opened_at": None if opened is None else at(opened),
                "seconds_used": None if opened is None else account.elapsed_ms(now_ms) / 1000,
                "seconds_left": account.seconds_left(now_ms),
                "reported_percent": account.notified or None,
            }
        )


class BudgetsView(View):
    """An account and those above it, root first."""

    accounts: list[AccountView]


class BudgetChange(Part):
    """Limits to set: what is left out stays as it is, null takes the limit away."""

    usd: float | None = Field(default=None, ge=0, le=MAX_USD)
    tokens: int | None = Field(default=None, ge=0, le=2**53 - 1)
    turns: int | None = Field(default=None, ge=0, le=2**53 - 1)
    seconds: Annotated[
        int | None, Field(ge=0, le=2**53 - 1, description="wall clock since the account was opened, pauses left out")
    ] = None

    def on(self, limits: Limits) -> Limits:
        """`limits` with what was given."""
        given = limits_of(usd=self.usd, tokens=self.tokens, turns=self.turns, seconds=self.seconds)
        names = {"usd_micros" if name == "usd" else name for name in self.model_fields_set}
        return replace(limits, **{name: getattr(given, name) for name in names})


class ChangedView(AccountView):
    """The account as it is now, and how many parked turns ask again because of it."""

    resumed_turns: int | None = None


class SpendView(View):
    """What a group of calls cost.

    `uncertain_usd` was booked in full: the true cost of those calls is not known. `reserved_usd` is set aside for calls
    under way. `saved_usd`: what the reused answers had cost.
    """

    group: str | None = None
    name: str | None = None
    usd: float
    usd_micros: int
    uncertain_usd: float | None = None
    uncertain_usd_micros: int | None = None
    uncertain_calls: int | None = None
    reserved_usd: float | None = None
    saved_usd: float | None = None
    turns: int
    calls: int
    reused_calls: int | None = None
    calls_under_way: int | None = None
    failed_calls: int | None = None
    input_tokens: int
    output_tokens: int
    cache_tokens: int | None = None

    @classmethod
    def of(cls, group: Spend, *, label: str | None, name: str | None = None) -> SpendView:
        """From the record."""
        uncertain = group.uncertain_usd_micros if group.uncertain_calls else None
        return cls(
            group=label,
            name=name,
            usd=usd(group.usd_micros),
            usd_micros=group.usd_micros,
            uncertain_usd=None if uncertain is None else usd(uncertain),
            uncertain_usd_micros=uncertain,
            uncertain_calls=group.uncertain_calls or None,
            reserved_usd=usd(group.reserved_usd_micros) or None,
            saved_usd=usd(group.saved_usd_micros) or None,
            turns=group.turns,
            calls=group.calls,
            reused_calls=group.reused or None,
            calls_under_way=group.under_way or None,
            failed_calls=group.failed or None,
            input_tokens=group.input_tokens,
            output_tokens=group.output_tokens,
            cache_tokens=group.cache_tokens or None,
        )


class ReportView(View):
    """Spend by group, dearest first (days from the newest); the total is over all groups, shown or not."""

    group_by: str
    groups: list[SpendView]
    more: bool | None = None
    total: SpendView


@tool("budget_status", needs="base", effects="reads", title="See what was spent", idempotent=True)
async def budget_status(
    call: Call,
    *,
    account: Annotated[
        str | None, Field(description="global, or the id of a run or agent; an agent's default: its own")
    ] = None,
) -> BudgetsView:
    """Return an account and those above it: spent, reserved, limits, what happens at the limit, time used and left."""

    def work(tx: Tx) -> BudgetsView:
        seen = reach.visible_scopes(tx, call.ctx)
        found = _seen_account(tx, call, account or call.ctx.actor.agent_id or GLOBAL, seen)
        path = [each for each in call.svc.ledger.path(tx, found.account_id) if seen is None or each.account_id in seen]
        return BudgetsView(accounts=[AccountView.at(each, tx.now_ms) for each in path])

    return await call.read(work)


@tool("budget_set", needs="base", effects="writes", title="Change what may be spent", idempotent=True)
async def budget_set(
    call: Call,
    *,
    account: Annotated[str, Field(description="global, or the id of a run or agent")],
    limits: Annotated[BudgetChange | None, Field(description="left out: stays; null: no limit")] = None,
    policy: Annotated[Policy | None, Field(description="what happens at the limit")] = None,
) -> ChangedView:
    """Change the limits of an account, or what happens at them. Turns that wait for room there ask again.

    An agent may lower its own limits and those of what is below it, never raise one. The operator's change also opens
    an account that a call dearer than its reserve had closed.
    """
    if policy is None and not (limits is not None and limits.model_fields_set):
        raise Invalid("budget_set changes nothing", hint="give limits, such as {'usd': 5}, or policy")

    def work(tx: Tx) -> ChangedView:
        ledger, ctx = call.svc.ledger, call.ctx
        was = _seen_account(tx, call, account, reach.visible_scopes(tx, ctx))
        wanted = was.limits if limits is None else limits.on(was.limits)
        if ctx.actor.kind == "agent":
            _check_agent(tx, call, was, wanted, policy)
        now = ledger.set_limits(
            tx, was.account_id, replace(wanted, policy=policy), ctx, reopen=ctx.actor.kind == "operator"
        )
        resumed = 0
        if now.policy != was.policy or now.closed != was.closed or _raised(was.limits, now.limits):
            resumed = call.svc.queues.unpark_budget(tx, [was.account_id])
            call.svc.queues.unblock(tx, [was.account_id])
        view = AccountView.at(now, tx.now_ms)
        return ChangedView(**view.model_dump(), resumed_turns=resumed or None)

    return await call.commit(work)


@tool("budget_report", needs="base", effects="reads", title="See where the money went", idempotent=True)
async def budget_report(
    call: Call,
    *,
    group_by: GroupBy = "agent",
    orchestration: str | None = None,
    since: Annotated[
        str | None, Field(max_length=40, description="a day or moment in UTC, as 2027-01-31 or 2027-01-31T12:00:00Z")
    ] = None,
    limit: Annotated[int, Field(ge=1, le=200)] = 50,
) -> ReportView:
    """Return exact spend by agent, model, run or day, with totals; calls of unknown cost are shown apart.

    It counts the calls that are still kept; what retention removed stays in the accounts (budget_status).
    """
    since_ms = None if since is None else moment(since)

    def work(tx: Tx) -> ReportView:
        run = None if orchestration is None else call.svc.conductor.find(tx, call.ctx, orchestration).orchestration_id
        wanted = Wanted(orchestration_id=run, since_ms=since_ms, agents=reach.visible(tx, call.ctx))
        groups, total, more = spend(tx, wanted, group_by=group_by, limit=limit)
        names: dict[str, str] = {}
        if group_by == "agent":
            names = {each.label: call.svc.roster.get(tx, each.label).name for each in groups}
        return ReportView(
            group_by=group_by,
            groups=[SpendView.of(each, label=each.label or NO_RUN, name=names.get(each.label)) for each in groups],
            more=more or None,
            total=SpendView.of(total, label=None),
        )

    return await call.read(work)


def _seen_account(tx: Tx, call: Call, account_id: str, seen: frozenset[str] | None) -> Account:
    found = call.svc.ledger.account(tx, account_id)
    if seen is not None and found.account_id not in seen:
        raise NotFound(
            f"unknown account {account_id[:80]!r}", hint="an agent sees its own account and those of its run"
        )
    return found


def _check_agent(tx: Tx, call: Call, was: Account, wanted: Limits, policy: Policy | None) -> None:
    """An agent lowers, in what draws on its own account.

    Raises:
        Refused: the account is not its own or below it, a limit would be raised, or its own policy changed.
    """
    own = str(call.ctx.actor.agent_id)
    if own not in {str(each.account_id) for each in call.svc.ledger.path(tx, was.account_id)}:
        raise Refused(
            f"agent:{own} may not change account {was.account_id}",
            hint="an agent can lower its own limits and those of agents and runs below it",
        )
    if raised := _raised(was.limits, wanted):
        raise Refused(
            f"agent:{own} may not raise the {' and '.join(raised)} limit of account {was.account_id}",
            hint="an agent can only lower limits; ask the operator for more",
        )
    if policy is not None and policy != was.policy and str(was.account_id) == own:
        raise Refused(
            f"agent:{own} may not change what happens at its own limit ({was.policy})",
            hint="an agent can set that for agents and runs below it",
        )


def _raised(was: Limits, now: Limits) -> list[str]:
    """The kinds of limits that `now` leaves more room in than `was`."""
    pairs = (
        ("usd", was.usd_micros, now.usd_micros),
        ("tokens", was.tokens, now.tokens),
        ("turns", was.turns, now.turns),
        ("seconds", was.seconds, now.seconds),
    )
    return [kind for kind, old, new in pairs if old is not None and (new is None or new > old)]


def moment(text: str) -> int:
    """A day or moment in UTC, as callers write it, in milliseconds.

    Raises:
        Invalid: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise Invalid(f"since is {text!r}", hint="write a day or moment in UTC, as 2027-01-31T12:00:00Z") from None


TOOLS = (budget_status, budget_set, budget_report)
