"""Limits, accounts, holds, and the pure answer to "may this be set aside?"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ksi_mcp.db import Row
from ksi_mcp.errors import Invalid
from ksi_mcp.ids import AccountId, HoldId

GLOBAL = AccountId("global")
MAX_USD = 1_000_000_000

LimitKind = Literal["usd", "tokens", "turns", "closed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds of an account; None means unbounded. Money in millionths of a US dollar."""

    usd_micros: int | None = None
    tokens: int | None = None
    turns: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("usd", self.usd_micros), ("tokens", self.tokens), ("turns", self.turns)):
            if value is not None and not 0 <= value < 2**53:
                raise Invalid(f"budget {name} is {value}", hint="a limit is zero or more")


def limits_of(*, usd: float | None, tokens: int | None, turns: int | None) -> Limits:
    """Limits from what people write: US dollars with a fraction, rounded down to a micro-dollar."""
    if usd is not None and not 0 <= usd <= MAX_USD:
        raise Invalid(f"budget usd is {usd}", hint=f"give US dollars from 0 to {MAX_USD:,}")
    return Limits(usd_micros=None if usd is None else int(usd * 1_000_000), tokens=tokens, turns=turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A node of the tree `global > orchestration > agent > child agent`."""

    account_id: AccountId
    parent_id: AccountId | None
    limits: Limits
    spent_usd_micros: int
    reserved_usd_micros: int
    spent_tokens: int
    reserved_tokens: int
    spent_turns: int
    closed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """What one attempt may cost at the worst, or did cost."""

    usd_micros: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """An amount set aside in every account of a path. It is settled exactly once."""

    hold_id: HoldId
    account_id: AccountId
    amount: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What closing a hold booked, and the accounts (root first) whose room changed by it."""

    booked: Amount
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """The limit itself forbids it, whatever becomes of other reservations."""

    account_id: AccountId
    kind: LimitKind
    limit: int
    spent: int
    wanted: int

    def text(self) -> str:
        """One sentence for a person: which account, which limit, how far it is used."""
        if self.kind == "closed":
            return f"account {self.account_id} is closed: a call cost more than was set aside for it"
        if self.kind == "usd":
            left, wanted, limit = ((self.limit - self.spent) / 1e6, self.wanted / 1e6, self.limit / 1e6)
            return (
                f"account {self.account_id} has ${max(left, 0):.6f} of ${limit:.6f} left, "
                f"the call could cost ${wanted:.6f}"
            )
        left = max(self.limit - self.spent, 0)
        return f"account {self.account_id} has {left:,} of {self.limit:,} {self.kind} left, {self.wanted:,} wanted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """Only reservations of others stand in the way: try again when one of them settles."""

    account_id: AccountId


def may_reserve(path: Sequence[Account], wanted: Amount, *, turns: int) -> Denied | Blocked | None:
    """None if `spent + reserved + wanted <= limit` holds in every account of `path` (root first)."""
    blocked: Blocked | None = None
    for account in path:
        if account.closed:
            return Denied(account_id=account.account_id, kind="closed", limit=0, spent=0, wanted=0)
        rows: tuple[tuple[LimitKind, int | None, int, int, int], ...] = (
            (
                "usd",
                account.limits.usd_micros,
                account.spent_usd_micros,
                account.reserved_usd_micros,
                wanted.usd_micros,
            ),
            ("tokens", account.limits.tokens, account.spent_tokens, account.reserved_tokens, wanted.tokens),
            ("turns", account.limits.turns, account.spent_turns, 0, turns),
        )
        for kind, limit, spent, reserved, more in rows:
            if limit is None or more == 0:
                continue
            if spent + more > limit:
                return Denied(account_id=account.account_id, kind=kind, limit=limit, spent=spent, wanted=more)
            if spent + reserved + more > limit and blocked is None:
                blocked = Blocked(account_id=account.account_id)
    return blocked


def account_of(row: Row) -> Account:
    """The record behind a row."""
    return Account(
        account_id=AccountId(row["account_id"]),
        parent_id=row["parent_id"],
        limits=Limits(usd_micros=row["limit_usd_micros"], tokens=row["limit_tokens"], turns=row["limit_turns"]),
        spent_usd_micros=row["spent_usd_micros"],
        reserved_usd_micros=row["reserved_usd_micros"],
        spent_tokens=row["spent_tokens"],
        reserved_tokens=row["reserved_tokens"],
        spent_turns=row["spent_turns"],
        closed=bool(row["closed"]),
    )
