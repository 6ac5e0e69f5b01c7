from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Account, Amount, Blocked, Denied, Hold, Limits, limits_of, may_reserve
from ksi_mcp.db.migrate import migrate
from ksi_mcp.db.sqlite import SqliteTx, load_statements
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
        assert ctx.actor.kind == "system"
        self.events.append((name, data))


def open_tx() -> SqliteTx:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    migrate(connection, now_ms=0)
    return SqliteTx(connection, QUERIES, 0)


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
amounts = st.builds(Amount, usd_micros=st.integers(0, 60), tokens=st.integers(0, 60))


class Tree(RuleBasedStateMachine):
    """Random life of a tree of accounts, beside a model that adds everything up anew each time."""

    holds = Bundle("holds")

    @initialize(limits=st.fixed_dictionaries({name: st.builds(Limits, usd_micros=limit, tokens=limit, turns=limit)
                                              for name in PARENTS}))  # fmt: skip
    def open(self, limits: dict[str, Limits]) -> None:
        self.heard = Heard()
        self.ledger = Ledger(self.heard)
        self.tx = open_tx()
        self.limits = limits
        self.known: dict[str, Known] = {}
        self.turns = dict.fromkeys(PARENTS, 0)
        self.closed: set[str] = set()
        self.overrun: set[str] = set()  # and all above: what was truly used may exceed their limits
        for name, parent in PARENTS.items():
            self.ledger.open(self.tx, name, parent_id=parent, limits=limits[name])

    def used(self, account: str, kind: str) -> tuple[int, int]:
        """(spent, reserved), summed over the holds at or below the account."""
        below = [hold for hold in self.known.values() if account in path_of(hold.account)]
        spent = sum(getattr(hold.booked, kind) for hold in below)
        return spent, sum(getattr(hold.amount, kind) for hold in below if hold.state in ("reserved", "sent"))

    def expected(self, account: str, wanted: Amount, turns: int) -> type:
        verdict: type = Hold
        for name in reversed(path_of(account)):
            if name in self.closed:
                return Denied
            for kind, most, more in (
                ("usd_micros", self.limits[name].usd_micros, wanted.usd_micros),
                ("tokens", self.limits[name].tokens, wanted.tokens),
            ):
                spent, reserved = self.used(name, kind)
                if most is not None and more and spent + more > most:
                    return Denied
                if most is not None and more and spent + reserved + more > most:
                    verdict = Blocked
            most = self.limits[name].turns
            if most is not None and turns and self.turns[name] + turns > most:
                return Denied
        return verdict

    @rule(target=holds, account=st.sampled_from(LEAVES), turn=st.sampled_from(TURNS), wanted=amounts, new=st.booleans())
    def reserve(self, account: str, turn: str, wanted: Amount, new: bool) -> Any:
        expected = self.expected(account, wanted, int(new))
        before = self.rows()
        got = self.ledger.reserve(self.tx, account, turn_id=turn, wanted=wanted, new_turn=new)
        assert type(got) is expected
        if not isinstance(got, Hold):
            assert self.rows() == before  # a refusal moves nothing
            return multiple()
        self.known[got.hold_id] = Known(account=account, turn=turn, amount=wanted)
        for name in path_of(account):
            self.turns[name] += int(new)
        return got.hold_id

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
            self.overrun |= set(path_of(known.account))
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
        for known in self.known.values():
            if known.turn == turn and known.state == "sent":
                known.state, known.booked = "settled", known.amount
                usd_micros += known.amount.usd_micros
                tokens += known.amount.tokens
            elif known.turn == turn and known.state == "reserved":
                known.state = "released"
        booked = self.ledger.clear_turn(self.tx, turn, CTX).booked
        assert booked == Amount(usd_micros=usd_micros, tokens=tokens)

    def close(self, hold: str, cost: Amount, booked: Amount, state: str = "settled") -> None:
        known = self.known[hold]
        if known.state in ("settled", "released"):
            assert booked == Amount(usd_micros=0, tokens=0)  # once, and never again
            return
        assert booked == cost
        known.state, known.booked = state, cost

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
            limits = self.limits[name]
            if name not in self.overrun and limits.usd_micros is not None:
                assert account.spent_usd_micros + account.reserved_usd_micros <= limits.usd_micros
            if limits.tokens is not None:
                assert account.spent_tokens + account.reserved_tokens <= limits.tokens
            if limits.turns is not None:
                assert account.spent_turns <= limits.turns

    @invariant()
    def each_overrun_is_reported(self) -> None:
        if hasattr(self, "heard"):
            assert bool(self.closed) == any(name == "budget:overrun" for name, _ in self.heard.events)

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
    verdict = may_reserve(path, Amount(usd_micros=usd_micros, tokens=tokens), turns=turns)
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
        [account(Limits(usd_micros=2_500_000), spent=2_000_000)], Amount(usd_micros=750_000, tokens=0), turns=0
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
    for bad in (-0.01, float("nan"), float("inf"), 1e10):
        with pytest.raises(Invalid, match="budget usd"):
            limits_of(usd=bad, tokens=None, turns=None)
    for wrong in ({"tokens": -1}, {"turns": -1}, {"usd_micros": 2**53}):
        with pytest.raises(Invalid, match="a limit is zero or more|budget"):
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
