"""Limits, accounts, holds, and the pure answer to "may this be set aside?"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, get_args

from ksi_mcp.db import Row
from ksi_mcp.errors import Invalid
from ksi_mcp.ids import AccountId, HoldId

GLOBAL = AccountId("global")
MAX_USD = 1_000_000_000
THRESHOLDS: Final = (50, 80, 100)
"""Shares of a limit, in per cent, that are reported when they are reached."""

LimitKind = Literal["usd", "tokens", "turns", "seconds", "closed"]
Policy = Literal["deny", "downgrade", "park", "terminate"]
"""At the limit the turn fails, asks the next model of its chain, waits for a person, or ends its agent."""
POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds of an account; None means unbounded. Money in millionths of a US dollar.

    `seconds` are of wall-clock time since the account was opened. `policy` is what happens at a limit, where
    somebody said so; None is `deny`.
    """

    usd_micros: int | None = None
    tokens: int | None = None
    turns: int | None = None
    seconds: int | None = None
    policy: Policy | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("usd", self.usd_micros),
            ("tokens", self.tokens),
            ("turns", self.turns),
            ("seconds", self.seconds),
        ):
            if value is not None and not 0 <= value < 2**53:
                raise Invalid(f"budget {name} is {value}", hint="a limit is zero or more")
        if self.policy is not None and self.policy not in POLICIES:
            raise Invalid(f"budget policy is {str(self.policy)[:40]!r}", hint=f"there are {', '.join(POLICIES)}")


def limits_of(
    *,
    usd: float | None,
    tokens: int | None,
    turns: int | None,
    seconds: int | None = None,
    policy: Policy | None = None,
) -> Limits:
    """Limits from what people write: US dollars with a fraction, rounded down to a micro-dollar."""
    if usd is not None and not 0 <= usd <= MAX_USD:
        raise Invalid(f"budget usd is {usd}", hint=f"give US dollars from 0 to {MAX_USD:,}")
    micros = None if usd is None else int(Decimal(str(usd)) * 1_000_000)  # 0.29 is 290,000, not 289,999
    return Limits(usd_micros=micros, tokens=tokens, turns=turns, seconds=seconds, policy=policy)


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
    opened_at_ms: int | None = None
    paused_ms: int = 0
    notified: int = 0
    """The highest of `THRESHOLDS` that was reported."""

    @property
    def policy(self) -> Policy:
        """What happens at its limit."""
        return self.limits.policy or "deny"

    def elapsed_ms(self, now_ms: int) -> int:
        """Wall-clock time since it was opened, without the pauses; never negative."""
        return 0 if self.opened_at_ms is None else max(now_ms - self.opened_at_ms - self.paused_ms, 0)

    def seconds_left(self, now_ms: int) -> float | None:
        """What is left of its time; None without such a limit."""
        if self.limits.seconds is None:
            return None
        return max(self.limits.seconds * 1000 - self.elapsed_ms(now_ms), 0) / 1000


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
    seconds_left: float | None = None
    """The least time that an account of the path has left; None without such a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What closing a hold booked, and the accounts whose room changed by it."""

    booked: Amount
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """The limit itself forbids it, whatever becomes of other reservations.

    `policy` is that of the account that forbids it; `limit`, `spent` and `wanted` are in the unit of `kind`, money
    in micro-dollars.
    """

    account_id: AccountId
    kind: LimitKind
    limit: int
    spent: int
    wanted: int
    policy: Policy = "deny"

    @property
    def cheaper_may_fit(self) -> bool:
        """Whether a cheaper model could be within the limit that this one is not."""
        return self.kind == "usd"

    def text(self) -> str:
        """One sentence for a person: which account, which limit, how far it is used."""
        if self.kind == "closed":
            return f"account {self.account_id} is closed: a call cost more than was set aside for it"
        if self.kind == "seconds":
            return f"the time of account {self.account_id} is up: {self.spent:,} of {self.limit:,} seconds are over"
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


def may_reserve(path: Sequence[Account], wanted: Amount, *, turns: int, now_ms: int) -> Denied | Blocked | None:
    """None if `spent + reserved + wanted <= limit` holds in every account of `path` (root first) and its time runs."""
    blocked: Blocked | None = None
    for account in path:
        who, policy = account.account_id, account.policy
        if account.closed:
            return Denied(account_id=who, kind="closed", limit=0, spent=0, wanted=0, policy=policy)
        if (most := account.limits.seconds) is not None and account.seconds_left(now_ms) == 0:
            over = account.elapsed_ms(now_ms) // 1000
            return Denied(account_id=who, kind="seconds", limit=most, spent=over, wanted=0, policy=policy)
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
                return Denied(account_id=who, kind=kind, limit=limit, spent=spent, wanted=more, policy=policy)
            if spent + reserved + more > limit and blocked is None:
                blocked = Blocked(account_id=who)
    return blocked


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How far a limit is used, in whole micro-dollars, tokens, turns or milliseconds."""

    kind: LimitKind
    limit: int
    spent: int

    def reaches(self, percent: int) -> bool:
        """Whether that share of the limit is used."""
        return self.spent * 100 >= percent * self.limit

    def shown(self) -> dict[str, str | float]:
        """`kind`, `limit` and `spent` in US dollars, tokens, turns or seconds."""
        unit = {"usd": 1_000_000, "seconds": 1_000}.get(self.kind)
        limit, spent = (self.limit, self.spent) if unit is None else (self.limit / unit, self.spent / unit)
        return {"kind": self.kind, "limit": limit, "spent": spent}


def shares_of(account: Account, now_ms: int) -> Iterator[Share]:
    """How far each limit of an account is used; a limit of zero has no shares."""
    limits = account.limits
    if limits.usd_micros:
        yield Share(kind="usd", limit=limits.usd_micros, spent=account.spent_usd_micros)
    if limits.tokens:
        yield Share(kind="tokens", limit=limits.tokens, spent=account.spent_tokens)
    if limits.turns:
        yield Share(kind="turns", limit=limits.turns, spent=account.spent_turns)
    if limits.seconds:
        yield Share(kind="seconds", limit=limits.seconds * 1000, spent=account.elapsed_ms(now_ms))


def reached(account: Account, now_ms: int) -> dict[int, Share]:
    """The thresholds that some limit of the account has reached, each with the first limit that did."""
    shares = list(shares_of(account, now_ms))
    found: dict[int, Share] = {}
    for percent in THRESHOLDS:
        share = next((share for share in shares if share.reaches(percent)), None)
        if share is not None:
            found[percent] = share
    return found


def account_of(row: Row) -> Account:
    """The record behind a row."""
    return Account(
        account_id=AccountId(row["account_id"]),
        parent_id=row["parent_id"],
        limits=Limits(
            usd_micros=row["limit_usd_micros"],
            tokens=row["limit_tokens"],
            turns=row["limit_turns"],
            seconds=row["limit_seconds"],
            policy=None if row["policy"] == "deny" else row["policy"],
        ),
        spent_usd_micros=row["spent_usd_micros"],
        reserved_usd_micros=row["reserved_usd_micros"],
        spent_tokens=row["spent_tokens"],
        reserved_tokens=row["reserved_tokens"],
        spent_turns=row["spent_turns"],
        closed=bool(row["closed"]),
        opened_at_ms=row["opened_at_ms"],
        paused_ms=row["paused_ms"],
        notified=row["notified"],
    )
