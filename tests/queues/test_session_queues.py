from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from ksi_mcp.db.migrate import migrate
from ksi_mcp.db.sqlite import SqliteTx
from ksi_mcp.db.statements import load_statements
from ksi_mcp.errors import Conflict, NotFound
from ksi_mcp.events.journal import WOKEN
from ksi_mcp.ids import WorkerId
from ksi_mcp.queues.model import Census, TakenOver, Turn, TurnDraft, census_of
from ksi_mcp.queues.session_queues import SessionQueues

W1, W2 = WorkerId("w1"), WorkerId("w2")


@pytest.fixture
def tx() -> Iterator[SqliteTx]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    migrate(connection, now_ms=0)
    tx = SqliteTx(connection, load_statements(), 1_000)
    for session in ("a", "b", "c", "d"):
        SessionQueues().open_session(tx, session)
    yield tx
    connection.close()


def put(tx: SqliteTx, session: str, **more: Any) -> Turn:
    draft = TurnDraft(
        session_id=session, provider="scripted", prompt="p", orchestration_id=None, created_by="operator",
        cause_id=None, root_id="x", hops=0, depth=0, **more,
    )  # fmt: skip
    return SessionQueues().enqueue(tx, draft)


def claim(tx: SqliteTx, owner: WorkerId = W1, limit: int = 10) -> dict[str, Turn]:
    return {turn.session_id: turn for turn in SessionQueues().claim(tx, owner, "scripted", limit=limit)}


def running_everywhere(tx: SqliteTx) -> dict[str, Turn]:
    for session in ("a", "b", "c", "d"):
        put(tx, session)
    return claim(tx)


def test_a_turn_for_nobody_is_refused(tx: SqliteTx) -> None:
    with pytest.raises(NotFound, match="no session 'nobody'"):
        put(tx, "nobody")


def test_an_injected_turn_goes_before_those_that_wait_but_not_before_the_head(tx: SqliteTx) -> None:
    first, second = put(tx, "a"), put(tx, "a")
    injected = [put(tx, "a", priority=10), put(tx, "a", priority=10)]
    order = []
    while turns := claim(tx):
        order.append(turns["a"].turn_id)
        SessionQueues().finish(tx, turns["a"], state="done")
    assert order == [turn.turn_id for turn in (first, *injected, second)]


def test_a_retry_holds_back_the_turns_behind_it_and_no_other_session(tx: SqliteTx) -> None:
    put(tx, "a")
    put(tx, "a")
    put(tx, "b")
    first = claim(tx)["a"]
    SessionQueues().retry(tx, first, delay_s=1.5, error="e", partial_text="so far")
    assert claim(tx) == {}
    tx.now_ms += 1_499
    assert claim(tx) == {}
    tx.now_ms += 1
    again = claim(tx)["a"]
    assert (again.turn_id, again.attempt, again.tries, again.partial_text) == (first.turn_id, 2, 1, "so far")


@pytest.mark.parametrize("state", ["ready", "running", "retrying", "blocked"])
def test_cancelling_one_that_waits_promotes_nobody_past_the_head(tx: SqliteTx, state: str) -> None:
    head, behind, last = (put(tx, "a") for _ in range(3))
    if state != "ready":
        running = claim(tx)["a"]
        if state == "retrying":
            SessionQueues().retry(tx, running, delay_s=60, error="e", partial_text=None)
        elif state == "blocked":
            SessionQueues().block(tx, running, account_id="global")
    SessionQueues().cancel(tx, behind.turn_id, reason="r")
    states = [row["state"] for row in tx._connection.execute("SELECT state FROM turn ORDER BY n")]
    assert states == [state, "cancelled", "queued"]
    SessionQueues().cancel(tx, head.turn_id, reason="r")
    assert claim(tx)["a"].turn_id == last.turn_id


def test_an_answer_ends_the_count_of_failed_tries_and_adds_its_cost(tx: SqliteTx) -> None:
    put(tx, "a")
    SessionQueues().retry(tx, claim(tx)["a"], delay_s=0, error="e", partial_text=None)
    turn = claim(tx)["a"]
    SessionQueues().answered(tx, turn.turn_id, usd_micros=5, tokens=7)
    SessionQueues().charge(tx, turn.turn_id, usd_micros=1, tokens=1)
    now = SessionQueues().get(tx, turn.turn_id)
    assert (now.tries, now.cost_usd_micros, now.tokens) == (0, 6, 8)


def test_only_the_running_attempt_of_its_owner_may_end_a_turn(tx: SqliteTx) -> None:
    put(tx, "a")
    lost = claim(tx)["a"]
    assert SessionQueues().take_over(tx, W1) == []  # its own are no loss
    assert SessionQueues().take_over(tx, W2) == [lost.turn_id]
    now = claim(tx, W2)["a"]
    assert now.attempt == 2
    for stale in (lost, Turn(**{name: getattr(now, name) for name in Turn.__slots__} | {"owner": W1})):
        with pytest.raises(TakenOver):
            SessionQueues().finish(tx, stale, state="done", result="late")
    assert SessionQueues().finish(tx, now, state="done", result="mine").result == "mine"
    with pytest.raises(TakenOver):
        SessionQueues().finish(tx, now, state="done", result="twice")


def test_what_becomes_ready_rings_for_the_worker(tx: SqliteTx) -> None:
    put(tx, "a")
    put(tx, "a")
    head = claim(tx)["a"]
    tx.notes.clear()
    SessionQueues().block(tx, head, account_id="global")
    assert tx.notes == []
    SessionQueues().unblock(tx, ["other"])
    assert tx.notes == []
    SessionQueues().unblock(tx, ["other", "global"])
    assert tx.notes == [WOKEN]
    SessionQueues().finish(tx, claim(tx)["a"], state="done")
    assert tx.notes == [WOKEN, WOKEN]


def test_a_ready_turn_shows_as_queued_and_the_next_moment_of_work_is_known(tx: SqliteTx) -> None:
    turn = put(tx, "a")
    assert (turn.state, turn.final) == ("queued", False)
    ready = tx.one("queues.next_ready")
    assert ready is not None
    assert ready["run_at_ms"] == 1_000


def test_the_newest_turn_of_a_session_is_what_one_waits_for(tx: SqliteTx) -> None:
    put(tx, "a")
    newest = put(tx, "a", priority=10)
    assert [turn.turn_id for turn in SessionQueues().newest(tx, ["a", "b"])] == [newest.turn_id]


def test_a_census_adds_up(tx: SqliteTx) -> None:
    turns = running_everywhere(tx)
    queues = SessionQueues()
    queues.finish(tx, turns["a"], state="done")
    queues.finish(tx, turns["b"], state="timed_out")
    queues.cancel(tx, turns["c"].turn_id, reason="r")
    census = census_of(queues.some(tx, [turn.turn_id for turn in turns.values()]))
    assert census == Census(asked=4, ok=1, failed=0, cancelled=1, timed_out=1, pending=1)


# -- waiting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "last"),
    [
        ([], ("a", "a")),  # for itself
        ([("a", "b")], ("b", "a")),
        ([("a", "b"), ("b", "c")], ("c", "a")),
        ([("a", "b"), ("b", "c"), ("c", "d")], ("d", "b")),
        ([("a", "b"), ("a", "c"), ("c", "d")], ("d", "a")),
    ],
    ids=["one", "two", "three", "three behind", "by a branch"],
)
def test_waiting_in_a_circle_is_refused_and_names_it(
    tx: SqliteTx, edges: list[tuple[str, str]], last: tuple[str, str]
) -> None:
    turns, queues = running_everywhere(tx), SessionQueues()
    for waiter, on in edges:
        queues.begin_wait(tx, turns[waiter], [turns[on]])
    with pytest.raises(Conflict, match=f"never end: {last[0]} waits for {last[1]}"):
        queues.begin_wait(tx, turns[last[0]], [turns[last[1]]])


def test_waits_that_form_no_circle_are_allowed(tx: SqliteTx) -> None:
    turns, queues = running_everywhere(tx), SessionQueues()
    queues.begin_wait(tx, turns["a"], [turns["b"], turns["c"], turns["d"]])
    queues.begin_wait(tx, turns["b"], [turns["c"], turns["d"]])
    queues.begin_wait(tx, turns["c"], [turns["d"]])
    queues.begin_wait(tx, turns["c"], [turns["d"]])  # the same once more


def test_a_wait_behind_other_turns_of_the_same_session_counts_as_a_circle_too(tx: SqliteTx) -> None:
    turns, queues = running_everywhere(tx), SessionQueues()
    behind = put(tx, "b")  # waits for b's running turn
    queues.begin_wait(tx, turns["a"], [behind])
    with pytest.raises(Conflict, match="b waits for a waits for b"):
        queues.begin_wait(tx, turns["b"], [turns["a"]])


def test_a_wait_is_forgotten_when_it_is_over_its_goal_ended_or_its_waiter_is_gone(tx: SqliteTx) -> None:
    turns, queues = running_everywhere(tx), SessionQueues()
    queues.begin_wait(tx, turns["a"], [turns["b"]])
    queues.end_wait(tx, turns["a"].turn_id)
    queues.begin_wait(tx, turns["b"], [turns["a"]])
    queues.finish(tx, turns["a"], state="done")
    again = claim_next(tx, "a")
    queues.begin_wait(tx, again, [turns["b"]])  # b waited for a turn that has ended
    queues.cancel(tx, again.turn_id, reason="r")
    last = claim_next(tx, "a")
    queues.end_wait(tx, turns["b"].turn_id)
    queues.begin_wait(tx, turns["b"], [last])  # a waited for b in a turn that was cancelled


def claim_next(tx: SqliteTx, session: str) -> Turn:
    put(tx, session)
    return claim(tx)[session]


def test_the_waits_of_a_lost_worker_are_forgotten(tx: SqliteTx) -> None:
    turns, queues = running_everywhere(tx), SessionQueues()
    queues.begin_wait(tx, turns["a"], [turns["b"]])
    queues.take_over(tx, W2)
    now = claim(tx, W2)
    queues.begin_wait(tx, now["b"], [now["a"]])
