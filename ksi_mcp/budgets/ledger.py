"""Reserve before the call, settle after it; `spent + reserved <= limit` in every account at every moment."""

from __future__ import annotations

import json

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
)
from ksi_mcp.db import Tx
from ksi_mcp.errors import NotFound
from ksi_mcp.events.journal import Recorder
from ksi_mcp.ids import AccountId, HoldId, new_id
from ksi_mcp.permissions import Context, system_context


class Ledger:
    """The accounts and their holds.

    What it guarantees, each inside the caller's transaction:

    1. `reserve` succeeds only if every account from the root to the leaf has room; all move or none.
    2. A hold is settled once. A second settlement changes nothing.
    3. A hold that was marked sent is never released: it settles at its true cost, or in full.
    4. A true cost above its hold is booked whole (`overrun`) and closes the account it was held in.
    """

    def __init__(self, journal: Recorder) -> None:
        self._journal = journal

    def open(self, tx: Tx, account_id: str, *, parent_id: str | None, limits: Limits) -> None:
        """Make an account; one that exists keeps its limits."""
        tx.run(
            "budgets.open",
            {
                "account_id": account_id,
                "parent_id": parent_id,
                "usd_micros": limits.usd_micros,
                "tokens": limits.tokens,
                "turns": limits.turns,
            },
        )

    def open_global(self, tx: Tx, limits: Limits) -> None:
        """Make the root account, or bring its limits to what the configuration says now."""
        self.open(tx, GLOBAL, parent_id=None, limits=limits)
        tx.run(
            "budgets.set_limits",
            {
                "account_id": GLOBAL,
                "usd_micros": limits.usd_micros,
                "tokens": limits.tokens,
                "turns": limits.turns,
            },
        )

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

    def reserve(
        self, tx: Tx, account_id: str, *, turn_id: str, wanted: Amount, new_turn: bool
    ) -> Hold | Denied | Blocked:
        """Set `wanted` aside for one provider attempt; `new_turn` counts one turn as well."""
        path = self.path(tx, account_id)
        turns = 1 if new_turn else 0
        if (refusal := may_reserve(path, wanted, turns=turns)) is not None:
            return refusal
        hold = Hold(hold_id=HoldId(new_id("h")), account_id=AccountId(account_id), amount=wanted)
        amount = {"usd_micros": wanted.usd_micros, "tokens": wanted.tokens}
        tx.run("budgets.reserve", {**amount, "turns": turns, "path": _ids(path)})
        tx.run("budgets.hold", {**amount, "hold_id": hold.hold_id, "account_id": account_id, "turn_id": turn_id})
        return hold

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
        return self._close(tx, hold_id, ctx, cost=Amount(usd_micros=0, tokens=0), state="released")

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
            return Settled(booked=Amount(usd_micros=0, tokens=0), path=())
        reserved = Amount(usd_micros=row["reserved_usd_micros"], tokens=row["reserved_tokens"])
        booked = reserved if cost is None else cost
        overrun = booked.usd_micros > reserved.usd_micros
        path = self.path(tx, row["account_id"])
        tx.run(
            "budgets.book",
            {
                "account_id": row["account_id"],
                "reserved_usd_micros": reserved.usd_micros,
                "reserved_tokens": reserved.tokens,
                "usd_micros": booked.usd_micros,
                "tokens": booked.tokens,
                "closed": int(overrun),
                "path": _ids(path),
            },
        )
        facts = {"account": row["account_id"], "reserved_usd_micros": reserved.usd_micros, "tokens": booked.tokens}
        if overrun:
            self._report(tx, "budget:overrun", {**facts, "cost_usd_micros": booked.usd_micros}, ctx)
        elif cost is None and reserved.usd_micros:
            self._report(tx, "budget:uncertain", facts, ctx)
        return Settled(booked=booked, path=tuple(account.account_id for account in path))

    def _report(self, tx: Tx, name: str, data: dict[str, object], ctx: Context) -> None:
        self._journal.record(tx, name, data, system_context(ctx))


def _ids(path: list[Account]) -> str:
    return json.dumps([account.account_id for account in path])
