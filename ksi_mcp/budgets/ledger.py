"""Reserve before the call, settle after it; `spent + reserved <= limit` in every account at every moment."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ksi_mcp.budgets.model import (
    GLOBAL,
    Account,
    Amount,
    Blocked,
    Denied,
    Hold,
    Limits,
    Settled,
    account_of,
    may_reserve,
    reached,
)
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.events.journal import Recorder
from ksi_mcp.ids import AccountId, HoldId, new_id
from ksi_mcp.permissions import Context, system_context, within

_NOTHING = Amount(usd_micros=0, tokens=0)
_RUN, _AGENT = "o_", "a_"
"""What the ids of accounts begin with."""


class Ledger:
    """The accounts and their holds.

    What it guarantees, each inside the caller's transaction:

    1. `reserve` succeeds only if every account from the root to the leaf has room and time; all move or none.
    2. A hold is settled once, in the accounts it was made in. A second settlement changes nothing.
    3. A hold that was marked sent is never released: it settles at its true cost, or in full.
    4. A true cost above its hold is booked whole (`overrun`) and closes the account it was held in.
    5. Each threshold of an account is reported once, in the transaction that reaches it; a raised limit takes it back.
    """

    def __init__(self, journal: Recorder) -> None:
        self._journal = journal

    # -------------------------------------------------------------------------------- accounts

    def open(self, tx: Tx, account_id: str, *, parent_id: str | None, limits: Limits) -> None:
        """Make an account, whose time runs from now; one that exists keeps its limits."""
        values = {"account_id": account_id, "parent_id": parent_id, "now_ms": tx.now_ms}
        tx.run("budgets.open", {**values, **_columns(limits), "policy": limits.policy or "deny"})

    def open_global(self, tx: Tx, limits: Limits) -> None:
        """Make the root account, or bring its limits to what the configuration says, if that was changed.

        As long as the configuration says the same, limits that were set on the root since then stay.
        """
        self.open(tx, GLOBAL, parent_id=None, limits=limits)
        columns = _columns(limits)
        configured = json.dumps(columns, sort_keys=True)
        values = {**columns, "account_id": GLOBAL, "configured": configured, "now_ms": tx.now_ms}
        if tx.run("budgets.configure", values):
            self._lower_notified(tx, self.account(tx, GLOBAL))

    def account(self, tx: Tx, account_id: str) -> Account:
        """One account.

        Raises:
            NotFound: there is none with that id.
        """
        row = tx.one("budgets.one", {"account_id": account_id})
        if row is None:
            raise NotFound(f"unknown account {account_id[:80]!r}", hint="accounts are `global`, runs and agents, by id")
        return account_of(row)

    def path(self, tx: Tx, account_id: str) -> list[Account]:
        """The account and all above it, root first."""
        return [account_of(row) for row in tx.all("budgets.path", {"account_id": account_id})]

    def below(self, tx: Tx, account_id: str) -> list[AccountId]:
        """The account and all that draw on it."""
        return [row["account_id"] for row in tx.all("budgets.below", {"account_id": account_id})]

    def set_limits(self, tx: Tx, account_id: str, limits: Limits, ctx: Context, *, reopen: bool = False) -> Account:
        """Give an account these limits and this policy (None leaves the policy) and say who did it.

        `reopen` opens an account that an overrun has closed. Whether the actor may do so is the caller's to check,
        and so is waking the turns that wait for room.

        Raises:
            NotFound: there is none with that id.
        """
        was = self.account(tx, account_id)
        policy, closed = limits.policy or was.policy, was.closed and not reopen
        values = {"account_id": account_id, "policy": policy, "closed": int(closed), "now_ms": tx.now_ms}
        tx.run("budgets.set_limits", {**_columns(limits), **values})
        now = self.account(tx, account_id)
        path: list[str] = [each.account_id for each in self.path(tx, account_id)[::-1]]
        agent_id, run = _about(account_id, path)
        data: dict[str, object] = {"account": account_id, "was": _shown(was), "now": _shown(now)}
        if was.closed and reopen:
            data["reopened"] = True
        by = within(ctx, run)
        self._journal.record(tx, "budget:changed", data, by, agent_id=agent_id, orchestration_id=run)
        self._lower_notified(tx, now)
        self._notify(tx, path, ctx)
        return self.account(tx, account_id)

    def add_pause(self, tx: Tx, account_ids: Iterable[str], paused_ms: int) -> None:
        """Leave so much time out of the wall clock of these accounts (of each only once a pause)."""
        if paused_ms < 0:
            raise Invalid(f"a pause of {paused_ms} ms", hint="a pause is zero or more")
        tx.run("budgets.add_pause", {"account_ids": json.dumps(list(account_ids)), "paused_ms": paused_ms})

    def seconds_left(self, tx: Tx, account_id: str) -> float | None:
        """The least time that an account of the path has left; None if none has such a limit."""
        left = [left for each in self.path(tx, account_id) if (left := each.seconds_left(tx.now_ms)) is not None]
        return min(left, default=None)

    # --------------------------------------------------------------------------- reserve, settle

    def reserve(
        self,
        tx: Tx,
        account_id: str,
        *,
        turn_id: str,
        wanted: Amount,
        new_turn: bool,
        sent: bool = False,
        ctx: Context | None = None,
    ) -> Hold | Denied | Blocked:
        """Set `wanted` aside for one provider attempt; `new_turn` counts one turn as well.

        `sent` marks the hold at once as `mark_sent` does. With `ctx`, thresholds that a refusal brings to light (time
        goes by without any settlement) are reported.

        Raises:
            NotFound: there is no such account.
        """
        turns = 1 if new_turn else 0
        amount = {"usd_micros": wanted.usd_micros, "tokens": wanted.tokens, "turns": turns}
        rows = tx.all("budgets.room", {**amount, "account_id": account_id, "now_ms": tx.now_ms})
        ids: list[str] = []
        ms_left: int | None = None
        for row in rows:
            ids.append(row["account_id"])
            left = row["ms_left"]
            if left is not None and (ms_left is None or left < ms_left):
                ms_left = left
            if row["refuses"] or (left is not None and left <= 0):
                return self._refusal(tx, account_id, wanted, turns, ctx)
        if not ids:
            raise NotFound(f"unknown account {account_id[:80]!r}", hint="accounts are `global`, runs and agents, by id")
        path = json.dumps(ids)
        hold_id = HoldId(new_id("h"))
        tx.run("budgets.reserve", {**amount, "path": path})
        values = {"hold_id": hold_id, "account_id": account_id, "turn_id": turn_id, "path": path}
        tx.run("budgets.hold", {**amount, **values, "state": "sent" if sent else "reserved"})
        return Hold(
            hold_id=hold_id,
            account_id=AccountId(account_id),
            amount=wanted,
            seconds_left=None if ms_left is None else ms_left / 1000,
        )

    def _refusal(self, tx: Tx, account_id: str, wanted: Amount, turns: int, ctx: Context | None) -> Denied | Blocked:
        path = self.path(tx, account_id)
        refusal = may_reserve(path, wanted, turns=turns, now_ms=tx.now_ms)
        if refusal is None:
            raise AssertionError("budgets.room and may_reserve do not agree")
        if ctx is not None and isinstance(refusal, Denied):
            self._notify(tx, [account.account_id for account in path[::-1]], ctx)
        return refusal

    def mark_sent(self, tx: Tx, hold_id: str) -> bool:
        """The call is about to leave; False if the hold was closed before."""
        return tx.run("budgets.mark_sent", {"hold_id": hold_id}) == 1

    def settle(self, tx: Tx, hold_id: str, cost: Amount, ctx: Context) -> Settled:
        """Book what the attempt cost."""
        return self._close(tx, hold_id, ctx, cost=cost, state="settled")

    def settle_in_full(self, tx: Tx, hold_id: str, ctx: Context) -> Settled:
        """The cost was not learned: book all that was set aside."""
        return self._close(tx, hold_id, ctx, cost=None, state="settled")

    def release(self, tx: Tx, hold_id: str, ctx: Context) -> Settled:
        """Give back a hold whose call never left or was not billed."""
        return self._close(tx, hold_id, ctx, cost=_NOTHING, state="released")

    def clear_turn(self, tx: Tx, turn_id: str, ctx: Context) -> Settled:
        """Close what an earlier attempt of a turn left open: unsent is given back, sent is booked in full."""
        usd_micros = tokens = 0
        path: tuple[str, ...] = ()
        for row in tx.all("budgets.open_holds", {"turn_id": turn_id}):
            close = self.release if row["state"] == "reserved" else self.settle_in_full
            settled = close(tx, row["hold_id"], ctx)
            usd_micros += settled.booked.usd_micros
            tokens += settled.booked.tokens
            path = settled.path
        return Settled(booked=Amount(usd_micros=usd_micros, tokens=tokens), path=path)

    def _close(self, tx: Tx, hold_id: str, ctx: Context, *, cost: Amount | None, state: str) -> Settled:
        row = tx.one(
            "budgets.close_hold",
            {
                "hold_id": hold_id,
                "state": state,
                "usd_micros": None if cost is None else cost.usd_micros,
                "tokens": None if cost is None else cost.tokens,
                "uncertain": int(cost is None),
            },
        )
        if row is None:  # settled before: nothing may move twice
            return Settled(booked=_NOTHING, path=())
        account_id, stored = row["account_id"], row["path"]
        reserved_usd_micros, reserved_tokens = row["reserved_usd_micros"], row["reserved_tokens"]
        booked = Amount(usd_micros=reserved_usd_micros, tokens=reserved_tokens) if cost is None else cost
        overrun = booked.usd_micros > reserved_usd_micros
        if stored is None:  # made before holds knew their path
            stored = json.dumps([account.account_id for account in self.path(tx, account_id)[::-1]])
        path: list[str] = json.loads(stored)
        rows = tx.all(
            "budgets.book",
            {
                "account_id": account_id,
                "reserved_usd_micros": reserved_usd_micros,
                "reserved_tokens": reserved_tokens,
                "usd_micros": booked.usd_micros,
                "tokens": booked.tokens,
                "closed": int(overrun),
                "path": stored,
                "now_ms": tx.now_ms,
            },
        )
        if overrun or (cost is None and reserved_usd_micros):
            facts = {"account": account_id, "reserved_usd_micros": reserved_usd_micros, "tokens": booked.tokens}
            if overrun:
                self._report(tx, "budget:overrun", {**facts, "cost_usd_micros": booked.usd_micros}, ctx)
            else:
                self._report(tx, "budget:uncertain", facts, ctx)
        if any(each["due"] for each in rows):
            self._notify(tx, path, ctx)
        return Settled(booked=booked, path=tuple(path))

    # ------------------------------------------------------------------------------ thresholds

    def _notify(self, tx: Tx, path: list[str], ctx: Context) -> None:
        """Report what these accounts (leaf first) have reached and did not report yet."""
        for account_id in path:
            account = self.account(tx, account_id)
            news = {
                percent: share for percent, share in reached(account, tx.now_ms).items() if percent > account.notified
            }
            if not news:
                continue
            tx.run("budgets.notified", {"account_id": account_id, "percent": max(news)})
            agent_id, run = _about(account_id, path[path.index(account_id) :])
            for percent, share in news.items():
                data = {"account": account_id, "percent": percent, **share.shown()}
                # Who looks at a run must not see from it what is spent on an account above it.
                about = within(system_context(ctx), run)
                self._journal.record(tx, "budget:threshold", data, about, agent_id=agent_id, orchestration_id=run)

    def _lower_notified(self, tx: Tx, account: Account) -> None:
        """After its limits were raised: what is not reached any more can be reached again."""
        level = max(reached(account, tx.now_ms), default=0)
        if level < account.notified:
            tx.run("budgets.notified", {"account_id": account.account_id, "percent": level})

    def _report(self, tx: Tx, name: str, data: dict[str, object], ctx: Context) -> None:
        self._journal.record(tx, name, data, system_context(ctx))


def _columns(limits: Limits) -> dict[str, int | None]:
    return {
        "usd_micros": limits.usd_micros,
        "tokens": limits.tokens,
        "turns": limits.turns,
        "seconds": limits.seconds,
    }


def _shown(account: Account) -> dict[str, object]:
    """The limits that an account has, as people write them."""
    limits = account.limits
    usd = None if limits.usd_micros is None else limits.usd_micros / 1_000_000
    found = {"usd": usd, "tokens": limits.tokens, "turns": limits.turns, "seconds": limits.seconds}
    return {**{kind: limit for kind, limit in found.items() if limit is not None}, "policy": account.policy}


def _about(account_id: str, path: list[str]) -> tuple[str | None, str | None]:
    """The agent and the run that an account belongs to; `path` goes from it up to the root."""
    run = next((above for above in path if above.startswith(_RUN)), None)
    return account_id if account_id.startswith(_AGENT) else None, run
