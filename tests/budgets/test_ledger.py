from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import (
    POLICIES,
    THRESHOLDS,
    Account,
    Amount,
    Blocked,
    Denied,
    Hold,
    Limits,
    limits_of,
    may_reserve,
)
from ksi_mcp.db.migrate import migrate
from ksi_mcp.db.sqlite import SqliteTx
from ksi_mcp.db.statements import load_statements
from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.ids import AccountId
from ksi_mcp.permissions import OPERATOR, fresh_context

QUERIES = load_statements()
CTX = fresh_context(OPERATOR)
PARENTS = {"global": None, "run": "global", "a": "run", "b": "run", "child": "a", "loner": "global"}
LEAVES = ("a", "b", "child", "loner")
TURNS = ("t1", "t2", "t3")


class Heard:
    """A recorder that keeps the names and data of events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def record(self, tx: Any, name: str, data: dict[str, Any], ctx: Any, **more: Any) -> Any:
        assert ctx.actor.kind == ("operator" if name == "budget:changed" else "system")
        self.events.append((name, data))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [data for each, data in self.events if each == name]


class CountedTx(SqliteTx):
    """A transaction that keeps the names of its statements."""

    __slots__ = ("ran",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ran: list[str] = []

    def _execute(self, name: str, params: Any) -> Any:
        self.ran.append(name.removeprefix("budgets."))
        return super()._execute(name, params)


@cache
def empty_store() -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, now_ms=0)
    store = connection.serialize()
    connection.close()
    return store


def open_tx() -> CountedTx:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.deserialize(empty_store())
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    return CountedTx(connection, QUERIES, 0)


def path_of(account: str) -> list[str]:
    found: list[str] = []
    at: str | None = account
    while at is not None:
        found.append(at)
        at = PARENTS[at]
    return found


@dataclass
class Known:
    """What the model knows of a hold."""

    account: str
    turn: str
    amount: Amount
    state: str = "reserved"
    booked: Amount = field(default_factory=lambda: Amount(usd_micros=0, tokens=0))


limit = st.none() | st.integers(0, 200)
limits_strategy = st.builds(
    Limits, usd_micros=limit, tokens=limit, turns=limit, seconds=limit, policy=st.none() | st.sampled_from(POLICIES)
)
amounts = st.builds(Amount, usd_micros=st.integers(0, 60), tokens=st.integers(0, 60))


class Tree(RuleBasedStateMachine):
    """Random life of a tree of accounts, beside a model that adds everything up anew each time."""

    holds = Bundle("holds")

    @initialize(limits=st.fixed_dictionaries(dict.fromkeys(PARENTS, limits_strategy)))
    def open(self, limits: dict[str, Limits]) -> None:
        self.heard = Heard()
        self.ledger = Ledger(self.heard)
        self.tx = open_tx()
        self.limits = limits
        self.known: dict[str, Known] = {}
        self.turns = dict.fromkeys(PARENTS, 0)
        self.paused_ms = dict.fromkeys(PARENTS, 0)
        self.closed: set[str] = set()
        self.reported: dict[str, list[int]] = {name: [] for name in PARENTS}
        self.due: list[tuple[str, int]] = []
        self.beyond: set[tuple[str, str]] = set()  # an overrun or a lowered limit: what was used may exceed it
        for name, parent in PARENTS.items():
            self.ledger.open(self.tx, name, parent_id=parent, limits=limits[name])

    def used(self, account: str, kind: str) -> tuple[int, int]:
        """(spent, reserved), summed over the holds at or below the account."""
        below = [hold for hold in self.known.values() if account in path_of(hold.account)]
        spent = sum(getattr(hold.booked, kind) for hold in below)
        return spent, sum(getattr(hold.amount, kind) for hold in below if hold.state in ("reserved", "sent"))

    def elapsed_ms(self, account: str) -> int:
        return max(self.tx.now_ms - self.paused_ms[account], 0)

    def expected(self, account: str, wanted: Amount, turns: int) -> tuple[type, str, str]:
        """The verdict, and of a refusal the kind and the account."""
        verdict: tuple[type, str, str] = (Hold, "", account)
        for name in reversed(path_of(account)):
            most = self.limits[name]
            if name in self.closed:
                return Denied, "closed", name
            if most.seconds is not None and self.elapsed_ms(name) >= most.seconds * 1000:
                return Denied, "seconds", name
            for kind, limit, more in (
                ("usd_micros", most.usd_micros, wanted.usd_micros),
                ("tokens", most.tokens, wanted.tokens),
            ):
                spent, reserved = self.used(name, kind)
                if limit is not None and more and spent + more > limit:
                    return Denied, kind.removesuffix("_micros"), name
                if limit is not None and more and spent + reserved + more > limit and verdict[0] is Hold:
                    verdict = (Blocked, "", name)
            if most.turns is not None and turns and self.turns[name] + turns > most.turns:
                return Denied, "turns", name
        return verdict

    def reaches(self, account: str) -> int:
        """The highest threshold that some limit of the account has reached."""
        most = self.limits[account]
        used = (
            (most.usd_micros, self.used(account, "usd_micros")[0]),
            (most.tokens, self.used(account, "tokens")[0]),
            (most.turns, self.turns[account]),
            (most.seconds and most.seconds * 1000, self.elapsed_ms(account)),
        )
        return max((p for p in THRESHOLDS for limit, spent in used if limit and spent * 100 >= p * limit), default=0)

    def expect_reports(self, account: str) -> None:
        """A settlement reports what its accounts have reached, once."""
        for name in path_of(account):
            news = [p for p in THRESHOLDS if max(self.reported[name], default=0) < p <= self.reaches(name)]
            self.reported[name] += news
            self.due += [(name, percent) for percent in news]

    @rule(seconds=st.integers(0, 60))
    def time_goes_by(self, seconds: int) -> None:
        self.tx.now_ms += seconds * 1000

    @rule(account=st.sampled_from(sorted(PARENTS)), seconds=st.integers(0, 40))
    def pause(self, account: str, seconds: int) -> None:
        below = self.ledger.below(self.tx, account)
        assert set(below) == {name for name in PARENTS if account in path_of(name)}
        self.ledger.add_pause(self.tx, below, seconds * 1000)
        for name in below:
            self.paused_ms[name] += seconds * 1000

    @rule(account=st.sampled_from(sorted(PARENTS)), limits=limits_strategy, reopen=st.booleans())
    def set_limits(self, account: str, limits: Limits, reopen: bool) -> None:
        policy = limits.policy or self.limits[account].policy or "deny"
        self.limits[account] = replace(limits, policy=policy)
        if reopen:
            self.closed.discard(account)
        for kind, most in (("usd_micros", limits.usd_micros), ("tokens", limits.tokens), ("turns", limits.turns)):
            used = self.turns[account] if kind == "turns" else sum(self.used(account, kind))
            self.beyond.discard((account, kind))
            if most is not None and used > most:
                self.beyond.add((account, kind))
        now = self.ledger.set_limits(self.tx, account, limits, CTX, reopen=reopen)
        assert now.policy == policy
        self.reported[account] = [percent for percent in self.reported[account] if percent <= self.reaches(account)]
        self.expect_reports(account)

    @rule(target=holds, account=st.sampled_from(LEAVES), turn=st.sampled_from(TURNS), wanted=amounts, new=st.booleans(),
          sent=st.booleans())  # fmt: skip
    def reserve(self, account: str, turn: str, wanted: Amount, new: bool, sent: bool) -> Any:
        expected, kind, who = self.expected(account, wanted, int(new))
        before = self.rows()
        got = self.ledger.reserve(self.tx, account, turn_id=turn, wanted=wanted, new_turn=new, sent=sent)
        assert type(got) is expected
        if isinstance(got, Denied):
            assert (got.kind, got.account_id, got.policy) == (kind, who, self.limits[who].policy or "deny")
            assert who in got.text()
        if not isinstance(got, Hold):
            assert got.account_id == who
            assert self.rows() == before  # a refusal moves nothing
            return multiple()
        assert got.seconds_left == self.ledger.seconds_left(self.tx, account) == self.seconds_left(account)
        self.known[got.hold_id] = Known(account=account, turn=turn, amount=wanted, state="sent" if sent else "reserved")
        for name in path_of(account):
            self.turns[name] += int(new)
        return got.hold_id

    def seconds_left(self, account: str) -> float | None:
        left = [
            max(most * 1000 - self.elapsed_ms(name), 0) / 1000
            for name in path_of(account)
            if (most := self.limits[name].seconds) is not None
        ]
        return min(left, default=None)

    @rule(hold=holds)
    def mark_sent(self, hold: str) -> None:
        known = self.known[hold]
        assert self.ledger.mark_sent(self.tx, hold) == (known.state == "reserved")
        if known.state == "reserved":
            known.state = "sent"

    @rule(hold=holds, share=st.floats(0, 1))
    def settle(self, hold: str, share: float) -> None:
        amount = self.known[hold].amount
        cost = Amount(usd_micros=int(amount.usd_micros * share), tokens=int(amount.tokens * share))
        self.close(hold, cost, self.ledger.settle(self.tx, hold, cost, CTX).booked)

    @rule(hold=holds, more=st.integers(1, 50))
    def settle_over(self, hold: str, more: int) -> None:
        known = self.known[hold]
        cost = Amount(usd_micros=known.amount.usd_micros + more, tokens=known.amount.tokens)
        if known.state in ("reserved", "sent"):
            self.closed.add(known.account)
            self.beyond |= {(name, "usd_micros") for name in path_of(known.account)}
        self.close(hold, cost, self.ledger.settle(self.tx, hold, cost, CTX).booked)

    @rule(hold=holds)
    def settle_in_full(self, hold: str) -> None:
        self.close(hold, self.known[hold].amount, self.ledger.settle_in_full(self.tx, hold, CTX).booked)

    @rule(hold=holds)
    def release(self, hold: str) -> None:
        nothing = Amount(usd_micros=0, tokens=0)
        if self.known[hold].state == "sent":  # it may have left: it is never given back
            assert self.ledger.release(self.tx, hold, CTX).path == ()
            return
        self.close(hold, nothing, self.ledger.release(self.tx, hold, CTX).booked, state="released")

    @rule(turn=st.sampled_from(TURNS))
    def clear_turn(self, turn: str) -> None:
        usd_micros = tokens = 0
        touched: list[str] = []
        for known in self.known.values():
            if known.turn != turn or known.state not in ("reserved", "sent"):
                continue
            touched.append(known.account)
            if known.state == "sent":
                known.state, known.booked = "settled", known.amount
                usd_micros += known.amount.usd_micros
                tokens += known.amount.tokens
            else:
                known.state = "released"
        booked = self.ledger.clear_turn(self.tx, turn, CTX).booked
        for account in touched:
            self.expect_reports(account)
        assert booked == Amount(usd_micros=usd_micros, tokens=tokens)

    def close(self, hold: str, cost: Amount, booked: Amount, state: str = "settled") -> None:
        known = self.known[hold]
        if known.state in ("settled", "released"):
            assert booked == Amount(usd_micros=0, tokens=0)  # once, and never again
            return
        assert booked == cost
        known.state, known.booked = state, cost
        self.expect_reports(known.account)

    def rows(self) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.tx._connection.execute("SELECT * FROM account ORDER BY account_id")]

    @invariant()
    def every_account_is_the_sum_of_its_holds_and_within_its_limit(self) -> None:
        if not hasattr(self, "known"):
            return
        for name in PARENTS:
            account = self.ledger.account(self.tx, name)
            assert (account.spent_usd_micros, account.reserved_usd_micros) == self.used(name, "usd_micros")
            assert (account.spent_tokens, account.reserved_tokens) == self.used(name, "tokens")
            assert account.spent_turns == self.turns[name]
            assert account.closed == (name in self.closed)
            assert account.notified == max(self.reported[name], default=0)
            limits = self.limits[name]
            if (name, "usd_micros") not in self.beyond and limits.usd_micros is not None:
                assert account.spent_usd_micros + account.reserved_usd_micros <= limits.usd_micros
            if (name, "tokens") not in self.beyond and limits.tokens is not None:
                assert account.spent_tokens + account.reserved_tokens <= limits.tokens
            if (name, "turns") not in self.beyond and limits.turns is not None:
                assert account.spent_turns <= limits.turns

    @invariant()
    def each_threshold_is_reported_once(self) -> None:
        if not hasattr(self, "known"):
            return
        told = [(data["account"], data["percent"]) for data in self.heard.named("budget:threshold")]
        assert sorted(told) == sorted(self.due)

    @invariant()
    def each_overrun_is_reported(self) -> None:
        if hasattr(self, "heard"):
            assert bool(self.closed) <= bool(self.heard.named("budget:overrun"))

    def teardown(self) -> None:
        if hasattr(self, "tx"):
            self.tx._connection.close()


TestTree = Tree.TestCase


def account(limits: Limits, *, spent: int = 0, reserved: int = 0, turns: int = 0, closed: bool = False) -> Account:
    return Account(
        account_id=AccountId("x"), parent_id=None, limits=limits, spent_usd_micros=spent, reserved_usd_micros=reserved,
        spent_tokens=spent, reserved_tokens=reserved, spent_turns=turns, closed=closed,
    )  # fmt: skip


USD, TOKENS = Limits(usd_micros=100), Limits(tokens=100)


@pytest.mark.parametrize(
    ("path", "usd_micros", "tokens", "turns", "expected"),
    [
        ([account(Limits())], 10**12, 10**12, 1, None),  # no limit, no refusal
        ([account(USD, spent=60, reserved=30)], 10, 0, 0, None),  # 60 + 30 + 10 = 100: just fits
        ([account(USD, spent=60, reserved=30)], 11, 0, 0, "blocked"),  # 101 > 100, but 60 + 11 = 71 without the others
        ([account(USD, spent=60, reserved=30)], 40, 0, 0, "blocked"),  # 60 + 40 = 100 fits once they let go
        ([account(USD, spent=60, reserved=30)], 41, 0, 0, "usd"),  # 60 + 41 = 101 whatever they do
        ([account(USD, spent=100)], 0, 50, 0, None),  # spent up, but a call that costs nothing may go
        ([account(USD, spent=100)], 1, 0, 0, "usd"),
        ([account(USD, spent=120)], 0, 0, 0, None),  # above its limit after an overrun of a child
        ([account(TOKENS, spent=60, reserved=30)], 0, 11, 0, "blocked"),
        ([account(TOKENS, spent=60, reserved=30)], 0, 41, 0, "tokens"),
        ([account(Limits(turns=2), turns=1)], 0, 0, 1, None),
        ([account(Limits(turns=2), turns=2)], 5, 5, 1, "turns"),  # turns are counted, never set aside: no waiting helps
        ([account(Limits(turns=2), turns=2)], 5, 5, 0, None),  # a further round of a counted turn
        ([account(Limits(usd_micros=0))], 1, 0, 0, "usd"),
        ([account(Limits(), closed=True)], 0, 0, 0, "closed"),
        # A refusal further down outranks waiting further up.
        ([account(USD, spent=60, reserved=30), account(USD, spent=95)], 11, 0, 0, "usd"),
        ([account(USD, spent=60, reserved=30), account(Limits(), closed=True)], 11, 0, 0, "closed"),
    ],
)
def test_denied_is_for_ever_and_blocked_is_until_others_settle(
    path: list[Account], usd_micros: int, tokens: int, turns: int, expected: str | None
) -> None:
    verdict = may_reserve(path, Amount(usd_micros=usd_micros, tokens=tokens), turns=turns, now_ms=0)
    if expected is None:
        assert verdict is None
    elif expected == "blocked":
        assert isinstance(verdict, Blocked)
    else:
        assert isinstance(verdict, Denied)
        assert verdict.kind == expected
        assert verdict.account_id in verdict.text()


def test_a_denial_says_how_much_is_left_of_which_limit() -> None:
    verdict = may_reserve(
        [account(Limits(usd_micros=2_500_000), spent=2_000_000)],
        Amount(usd_micros=750_000, tokens=0),
        turns=0,
        now_ms=0,
    )
    assert isinstance(verdict, Denied)
    assert verdict.text() == "account x has $0.500000 of $2.500000 left, the call could cost $0.750000"


def test_an_account_keeps_its_limits_when_it_is_opened_again_and_the_root_takes_new_ones() -> None:
    tx, ledger = open_tx(), Ledger(Heard())
    ledger.open_global(tx, Limits(tokens=5))
    ledger.open(tx, "a", parent_id="global", limits=Limits(tokens=5))
    ledger.open(tx, "a", parent_id="global", limits=Limits(tokens=9))
    assert ledger.account(tx, "a").limits == Limits(tokens=5)
    ledger.open_global(tx, Limits(tokens=9))
    assert ledger.account(tx, "global").limits == Limits(tokens=9)
    assert [one.account_id for one in ledger.path(tx, "a")] == ["global", "a"]
    with pytest.raises(NotFound, match="unknown account 'b'"):
        ledger.account(tx, "b")
    tx._connection.close()


def test_an_uncertain_settlement_and_an_overrun_are_reported_with_their_sums() -> None:
    tx, heard = open_tx(), Heard()
    ledger = Ledger(heard)
    ledger.open_global(tx, Limits())
    for cost in (None, 15):
        hold = ledger.reserve(tx, "global", turn_id="t", wanted=Amount(usd_micros=10, tokens=7), new_turn=True)
        assert isinstance(hold, Hold)
        ledger.mark_sent(tx, hold.hold_id)
        if cost is None:
            ledger.settle_in_full(tx, hold.hold_id, CTX)
        else:
            ledger.settle(tx, hold.hold_id, Amount(usd_micros=cost, tokens=3), CTX)
    facts = {"account": "global", "reserved_usd_micros": 10}
    assert heard.events == [
        ("budget:uncertain", {**facts, "tokens": 7}),
        ("budget:overrun", {**facts, "tokens": 3, "cost_usd_micros": 15}),
    ]
    tx._connection.close()


def test_dollars_are_rounded_down_to_a_micro_dollar_and_nonsense_is_refused() -> None:
    assert limits_of(usd=0.0000019, tokens=None, turns=None).usd_micros == 1
    assert limits_of(usd=0, tokens=0, turns=0) == Limits(usd_micros=0, tokens=0, turns=0)
    assert limits_of(usd=1.1, tokens=None, turns=None).usd_micros == 1_100_000
    assert limits_of(usd=0.29, tokens=None, turns=None).usd_micros == 290_000
    for bad in (-0.01, float("nan"), float("inf"), 1e10):
        with pytest.raises(Invalid, match="budget usd"):
            limits_of(usd=bad, tokens=None, turns=None)
    for wrong in ({"tokens": -1}, {"turns": -1}, {"seconds": -1}, {"usd_micros": 2**53}, {"policy": "beg"}):
        with pytest.raises(Invalid, match="budget"):
            Limits(**wrong)


def test_a_closed_account_stays_closed_when_what_was_under_way_settles() -> None:
    tx, ledger = open_tx(), Ledger(Heard())
    ledger.open_global(tx, Limits())
    wanted = Amount(usd_micros=10, tokens=7)
    over, under = (ledger.reserve(tx, "global", turn_id="t", wanted=wanted, new_turn=True) for _ in range(2))
    assert isinstance(over, Hold)
    assert isinstance(under, Hold)
    ledger.settle(tx, over.hold_id, Amount(usd_micros=11, tokens=7), CTX)
    ledger.settle(tx, under.hold_id, Amount(usd_micros=1, tokens=1), CTX)
    assert ledger.account(tx, "global").closed
    assert isinstance(ledger.reserve(tx, "global", turn_id="t", wanted=wanted, new_turn=True), Denied)
    tx._connection.close()


# ------------------------------------------------------------------------------------------- cost


def test_an_attempt_costs_five_statements_however_deep_its_account_is() -> None:
    tx, ledger = open_tx(), Ledger(Heard())
    ledger.open_global(tx, Limits(usd_micros=1_000))
    parent = "global"
    for name in ("run", "a", "child", "grandchild"):
        ledger.open(tx, name, parent_id=parent, limits=Limits(usd_micros=1_000, seconds=60, turns=9))
        parent = name
    tx.ran.clear()
    wanted = Amount(usd_micros=10, tokens=7)
    hold = ledger.reserve(tx, "grandchild", turn_id="t", wanted=wanted, new_turn=True, sent=True)
    assert isinstance(hold, Hold)
    assert hold.seconds_left == 60
    assert tx.ran == ["room", "reserve", "hold"]
    tx.ran.clear()
    settled = ledger.settle(tx, hold.hold_id, wanted, CTX)
    assert tx.ran == ["close_hold", "book"]
    assert settled.path == ("grandchild", "child", "a", "run", "global")
    tx._connection.close()


# -------------------------------------------------------------------------------------- thresholds


def spend(ledger: Ledger, tx: CountedTx, account: str, usd_micros: int, *, new_turn: bool = False) -> None:
    amount = Amount(usd_micros=usd_micros, tokens=0)
    hold = ledger.reserve(tx, account, turn_id="t", wanted=amount, new_turn=new_turn, sent=True)
    assert isinstance(hold, Hold), hold
    ledger.settle(tx, hold.hold_id, amount, CTX)


def test_a_threshold_is_reported_when_it_is_reached_and_once() -> None:
    tx, heard = open_tx(), Heard()
    ledger = Ledger(heard)
    ledger.open_global(tx, Limits())
    ledger.open(tx, "o_run", parent_id="global", limits=Limits(usd_micros=1_000_000, turns=10))
    ledger.open(tx, "a_one", parent_id="o_run", limits=Limits(tokens=10**9))
    spend(ledger, tx, "a_one", 499_999)
    assert heard.events == []
    spend(ledger, tx, "a_one", 1)
    spend(ledger, tx, "a_one", 1)
    facts = {"account": "o_run", "kind": "usd", "limit": 1.0}
    assert heard.events == [("budget:threshold", {**facts, "percent": 50, "spent": 0.5})]
    heard.events.clear()
    spend(ledger, tx, "a_one", 499_999)
    assert heard.named("budget:threshold") == [
        {**facts, "percent": 80, "spent": 1.0},
        {**facts, "percent": 100, "spent": 1.0},
    ]
    tx._connection.close()


def test_a_raised_limit_takes_the_report_back_and_a_lowered_one_reports_at_once() -> None:
    tx, heard = open_tx(), Heard()
    ledger = Ledger(heard)
    ledger.open_global(tx, Limits(turns=5))
    for _ in range(4):
        spend(ledger, tx, "global", 1, new_turn=True)
    assert [data["percent"] for data in heard.named("budget:threshold")] == [50, 80]
    heard.events.clear()
    assert ledger.set_limits(tx, "global", Limits(turns=100), CTX).notified == 0
    assert ledger.set_limits(tx, "global", Limits(turns=5, policy="park"), CTX).notified == 80
    assert heard.events == [
        ("budget:changed", {"account": "global", "was": {"turns": 5, "policy": "deny"},
                            "now": {"turns": 100, "policy": "deny"}}),
        ("budget:changed", {"account": "global", "was": {"turns": 100, "policy": "deny"},
                            "now": {"turns": 5, "policy": "park"}}),
        ("budget:threshold", {"account": "global", "percent": 50, "kind": "turns", "limit": 5, "spent": 4}),
        ("budget:threshold", {"account": "global", "percent": 80, "kind": "turns", "limit": 5, "spent": 4}),
    ]  # fmt: skip
    tx._connection.close()


def test_a_limit_of_zero_reports_nothing_since_nothing_can_be_spent() -> None:
    tx, heard = open_tx(), Heard()
    ledger = Ledger(heard)
    ledger.open_global(tx, Limits(usd_micros=0, tokens=0))
    spend(ledger, tx, "global", 0)
    assert heard.events == []
    tx._connection.close()


# -------------------------------------------------------------------------------------------- time


def test_an_account_whose_time_is_up_refuses_even_what_costs_nothing() -> None:
    tx, heard = open_tx(), Heard()
    ledger, free = Ledger(heard), Amount(usd_micros=0, tokens=0)
    ledger.open_global(tx, Limits())
    tx.now_ms = 1_000_000
    ledger.open(tx, "o_run", parent_id="global", limits=Limits(seconds=10, policy="terminate"))
    ledger.open(tx, "a_one", parent_id="o_run", limits=Limits(seconds=100))
    tx.now_ms += 9_999
    assert ledger.seconds_left(tx, "a_one") == 0.001
    spend(ledger, tx, "a_one", 0)
    tx.now_ms += 1
    refused = ledger.reserve(tx, "a_one", turn_id="t", wanted=free, new_turn=False, ctx=CTX)
    assert refused == Denied(
        account_id=AccountId("o_run"), kind="seconds", limit=10, spent=10, wanted=0, policy="terminate"
    )
    assert refused.text() == "the time of account o_run is up: 10 of 10 seconds are over"
    assert [data["percent"] for data in heard.named("budget:threshold")] == [50, 80, 100]
    ledger.add_pause(tx, ["o_run"], 4_000)
    assert ledger.seconds_left(tx, "a_one") == 4
    assert isinstance(ledger.reserve(tx, "a_one", turn_id="t", wanted=free, new_turn=False), Hold)
    with pytest.raises(Invalid, match="a pause of -1 ms"):
        ledger.add_pause(tx, ["o_run"], -1)
    assert ledger.seconds_left(tx, "global") is None
    tx._connection.close()


# -------------------------------------------------------------------------------- what is remembered


def test_limits_that_were_set_on_the_root_stay_until_the_configuration_says_something_else() -> None:
    tx, ledger = open_tx(), Ledger(Heard())
    ledger.open_global(tx, Limits(tokens=50))
    ledger.set_limits(tx, "global", Limits(tokens=5, policy="park"), CTX)
    ledger.open_global(tx, Limits(tokens=50))  # the next start, with the configuration unchanged
    assert ledger.account(tx, "global").limits == Limits(tokens=5, policy="park")
    ledger.open_global(tx, Limits(tokens=60))
    assert ledger.account(tx, "global").limits == Limits(tokens=60, policy="park")
    tx._connection.close()


def test_a_hold_is_settled_where_it_was_made_whatever_became_of_the_tree() -> None:
    tx, ledger = open_tx(), Ledger(Heard())
    ledger.open_global(tx, Limits())
    for name, parent in (("old", "global"), ("new", "global"), ("leaf", "old")):
        ledger.open(tx, name, parent_id=parent, limits=Limits())
    wanted = Amount(usd_micros=10, tokens=7)
    holds = [ledger.reserve(tx, "leaf", turn_id="t", wanted=wanted, new_turn=True) for _ in range(2)]
    tx._connection.execute("UPDATE account SET parent_id = 'new' WHERE account_id = 'leaf'")
    for hold in holds:
        assert isinstance(hold, Hold)
        ledger.settle(tx, hold.hold_id, wanted, CTX)
    assert (ledger.account(tx, "old").reserved_usd_micros, ledger.account(tx, "old").spent_usd_micros) == (0, 20)
    assert (ledger.account(tx, "new").reserved_usd_micros, ledger.account(tx, "new").spent_usd_micros) == (0, 0)
    tx._connection.close()


def test_a_hold_from_before_holds_knew_their_path_is_settled_in_the_path_of_its_account() -> None:
    tx, ledger = open_tx(), Ledger(Heard())
    ledger.open_global(tx, Limits())
    ledger.open(tx, "leaf", parent_id="global", limits=Limits())
    hold = ledger.reserve(tx, "leaf", turn_id="t", wanted=Amount(usd_micros=10, tokens=7), new_turn=True)
    assert isinstance(hold, Hold)
    tx._connection.execute("UPDATE hold SET path = NULL")
    assert ledger.settle_in_full(tx, hold.hold_id, CTX).path == ("leaf", "global")
    assert ledger.account(tx, "global").spent_usd_micros == 10
    tx._connection.close()


def test_nothing_is_reserved_in_an_account_that_does_not_exist() -> None:
    tx, ledger = open_tx(), Ledger(Heard())
    with pytest.raises(NotFound, match="unknown account 'nobody'"):
        ledger.reserve(tx, "nobody", turn_id="t", wanted=Amount(usd_micros=1, tokens=1), new_turn=True)
    with pytest.raises(NotFound, match="unknown account 'nobody'"):
        ledger.set_limits(tx, "nobody", Limits(), CTX)
    assert tx.all("budgets.open_holds", {"turn_id": "t"}) == []
    tx._connection.close()
