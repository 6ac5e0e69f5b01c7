from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ksi_mcp.db.migrate import migrate
from ksi_mcp.db.sqlite import SqliteTx
from ksi_mcp.db.statements import load_statements
from ksi_mcp.errors import Conflict, NotFound
from ksi_mcp.ids import WorkerId
from ksi_mcp.queues import moving
from ksi_mcp.queues.model import INJECTED, TakenOver, Turn, TurnDraft
from ksi_mcp.queues.moving import Moved, TurnWhere
from ksi_mcp.queues.session_queues import SessionQueues

QUERIES = load_statements()
HEAD = ("ready", "running", "retrying", "blocked", "parked")
W1 = WorkerId("w1")


def opened(*sessions: str) -> SqliteTx:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    migrate(connection, now_ms=0)
    tx = SqliteTx(connection, QUERIES, 1_000)
    for session in sessions:
        SessionQueues().open_session(tx, session)
    return tx


@pytest.fixture
def tx() -> Iterator[SqliteTx]:
    tx = opened("a", "b", "c")
    yield tx
    tx._connection.close()


def draft(session: str, **more: Any) -> TurnDraft:
    base: dict[str, Any] = {
        "session_id": session, "provider": "scripted", "prompt": "p", "orchestration_id": None,
        "created_by": "operator", "cause_id": None, "root_id": "x", "hops": 0, "depth": 0,
    }  # fmt: skip
    return TurnDraft(**{**base, **more})


def put(tx: SqliteTx, session: str, **more: Any) -> str:
    return SessionQueues().enqueue(tx, draft(session, **more)).turn_id


def claim(tx: SqliteTx, limit: int = 10) -> dict[str, Turn]:
    return {turn.session_id: turn for turn in SessionQueues().claim(tx, W1, "scripted", limit=limit)}


def order(tx: SqliteTx, session: str) -> list[str]:
    """The turns of a session as they would run."""
    rows = tx._connection.execute(
        f"SELECT turn_id FROM turn WHERE session_id = ? AND (state = 'queued' OR state IN {HEAD})"
        " ORDER BY state = 'queued', priority DESC, seq",
        (session,),
    )
    return [row["turn_id"] for row in rows]


def lawful(tx: SqliteTx) -> None:
    for row in tx._connection.execute("SELECT session_id, pending, tail, suspended FROM session"):
        turns = tx._connection.execute("SELECT state, seq, held FROM turn WHERE session_id = ?", (row["session_id"],))
        lane = turns.fetchall()
        heads = [turn for turn in lane if turn["state"] in HEAD]
        waiting = [turn for turn in lane if turn["state"] == "queued"]
        assert row["pending"] == len(heads) + len(waiting)
        assert len(heads) == (1 if row["pending"] else 0)
        assert all(turn["seq"] <= row["tail"] for turn in lane)
        if row["suspended"]:
            assert all(turn["held"] for turn in heads if turn["state"] != "running")


def moved(tx: SqliteTx, source: str = "a", target: str = "b", **where: Any) -> Moved:
    return moving.move_waiting(tx, source, target, provider="scripted", where=TurnWhere(**where))


def test_turns_go_behind_those_of_the_target_in_the_order_in_which_they_would_have_run(tx: SqliteTx) -> None:
    first, second, injected = put(tx, "a"), put(tx, "a"), put(tx, "a", priority=INJECTED)
    own = [put(tx, "b"), put(tx, "b")]
    done = moved(tx)
    assert done == Moved(turn_ids=(first, injected, second), left_running=0)  # type: ignore[arg-type]
    assert order(tx, "b") == [*own, first, injected, second]
    assert order(tx, "a") == []
    assert {SessionQueues().get(tx, turn).moved_from for turn in done.turn_ids} == {"a"}
    lawful(tx)


def test_moved_on_again_a_turn_still_says_where_it_came_from_first(tx: SqliteTx) -> None:
    turn = put(tx, "a")
    moved(tx)
    moved(tx, "b", "c")
    assert SessionQueues().get(tx, turn).moved_from == "a"


@pytest.mark.parametrize("state", ["running", "retrying", "blocked", "parked", "taken over"])
def test_a_turn_that_was_begun_stays_and_is_counted(tx: SqliteTx, state: str) -> None:
    begun, waiting = put(tx, "a"), put(tx, "a")
    running = claim(tx)["a"]
    if state == "retrying":
        SessionQueues().retry(tx, running, delay_s=9, error="e", partial_text=None)
    elif state == "blocked":
        SessionQueues().block(tx, running, account_id="global")
    elif state == "parked":
        SessionQueues().park(tx, running, on="answer", question={"text": "?"})
    elif state == "taken over":
        SessionQueues().take_over(tx, WorkerId("w2"))
    assert moved(tx) == Moved(turn_ids=(waiting,), left_running=1)  # type: ignore[arg-type]
    assert order(tx, "a") == [begun]
    assert claim(tx)["b"].turn_id == waiting
    lawful(tx)


def test_a_head_that_leaves_gives_its_place_to_the_next_that_stays(tx: SqliteTx) -> None:
    head, stays, _ = put(tx, "a", prompt="one"), put(tx, "a", prompt="two"), put(tx, "a", prompt="three")
    assert moved(tx, turn_ids=(head,)).turn_ids == (head,)
    ready = claim(tx)
    assert (ready["a"].turn_id, ready["b"].turn_id) == (stays, head)
    lawful(tx)


def test_a_filter_chooses_by_sender_words_age_and_number(tx: SqliteTx) -> None:
    old = put(tx, "a", prompt="write about cats", created_by="agent:a_1")
    tx.now_ms += 5_000
    new = put(tx, "a", prompt="write about dogs")
    newest = put(tx, "a", prompt="read about cats")
    assert moved(tx, created_by="agent:nobody").turn_ids == ()
    assert moved(tx, contains="dogs").turn_ids == (new,)
    assert moved(tx, before_ms=2_000).turn_ids == (old,)
    put(tx, "a")
    assert moved(tx, most=1).turn_ids == (newest,)
    lawful(tx)


def test_a_suspended_target_holds_what_comes_and_a_suspended_source_lets_go(tx: SqliteTx) -> None:
    tx._connection.execute("UPDATE session SET suspended = 1 WHERE session_id = 'b'")
    put(tx, "a")
    moved(tx)
    assert claim(tx) == {}
    lawful(tx)
    moved(tx, "b", "c")
    assert "c" in claim(tx)
    lawful(tx)


def test_turns_for_a_session_that_is_not_there_stay_where_they_are(tx: SqliteTx) -> None:
    put(tx, "a")
    with pytest.raises(NotFound, match="no session 'nobody'"):
        moved(tx, "a", "nobody")


def test_the_target_s_provider_runs_what_was_moved(tx: SqliteTx) -> None:
    turn = put(tx, "a")
    moving.move_waiting(tx, "a", "b", provider="other")
    assert SessionQueues().waiting(tx) == {"other": 1_000}
    assert SessionQueues().get(tx, turn).provider == "other"


def test_a_turn_is_not_moved_to_where_its_own_waiter_stands_before_it(tx: SqliteTx) -> None:
    put(tx, "b")
    waiter = claim(tx)["b"]
    awaited, other = put(tx, "a"), put(tx, "a")
    SessionQueues().begin_wait(tx, waiter, [SessionQueues().get(tx, awaited)])
    with pytest.raises(Conflict, match=f"turn {awaited} cannot be moved, .* b waits for b"):
        moved(tx)
    assert order(tx, "a") == [awaited, other]
    done = moving.move_waiting(tx, "a", "b", provider="scripted", skip_circles=True)
    assert done.turn_ids == (other,)
    assert moved(tx, "a", "c").turn_ids == (awaited,)
    lawful(tx)


def test_a_successor_takes_everything_and_whoever_ran_a_turn_has_lost_it(tx: SqliteTx) -> None:
    running, waiting = put(tx, "a"), put(tx, "a")
    lost = claim(tx)["a"]
    SessionQueues().begin_wait(tx, lost, [SessionQueues().get(tx, put(tx, "c"))])
    first = moving.put_first(tx, SessionQueues(), draft("b"), rescues=1).turn_id
    assert moving.move_all(tx, "a", "b") == (running, waiting)
    assert order(tx, "b") == [first, running, waiting]
    with pytest.raises(TakenOver):
        SessionQueues().finish(tx, lost, state="done", result="late")
    assert tx._connection.execute("SELECT * FROM turn_wait").fetchall() == []
    ran = []
    while "b" in (turns := claim(tx)):
        ran.append((turns["b"].turn_id, turns["b"].attempt))
        SessionQueues().finish(tx, turns["b"], state="done")
    assert ran == [(first, 1), (running, 2), (waiting, 1)]
    lawful(tx)


@pytest.mark.parametrize(("on", "after"), [("answer", "parked"), ("budget", "queued"), ("breaker", "queued")])
def test_a_parked_turn_that_is_moved_still_waits_for_its_answer_and_asks_anew_for_all_else(
    tx: SqliteTx, on: Any, after: str
) -> None:
    turn = put(tx, "a")
    SessionQueues().park(tx, claim(tx)["a"], on=on, question={"text": "?"}, account_id="x" if on == "budget" else None)
    moving.move_all(tx, "a", "b")
    now = SessionQueues().get(tx, turn)
    assert (now.state, now.question is None) == (after, after == "queued")
    if after == "queued":
        assert claim(tx)["b"].turn_id == turn
    else:
        assert SessionQueues().answer_parked(tx, turn, text="yes", by="operator") is not None
    lawful(tx)


def test_a_rescued_prompt_goes_before_all_that_wait_and_behind_what_was_begun(tx: SqliteTx) -> None:
    begun = put(tx, "a")
    claim(tx)
    waiting, injected = put(tx, "a"), put(tx, "a", priority=INJECTED)
    rescue = moving.put_first(tx, SessionQueues(), draft("a"), rescues=2)
    assert (rescue.rescues, order(tx, "a")) == (2, [begun, rescue.turn_id, injected, waiting])
    other = put(tx, "b")
    rescue = moving.put_first(tx, SessionQueues(), draft("b"), rescues=1)
    assert order(tx, "b") == [rescue.turn_id, other]
    assert claim(tx)["b"].turn_id == rescue.turn_id
    lawful(tx)


def test_a_question_is_parked_as_soon_as_it_stands_first(tx: SqliteTx) -> None:
    put(tx, "a")
    running, behind = claim(tx)["a"], put(tx, "a")
    asked = moving.put_first(tx, SessionQueues(), draft("a"), rescues=0, question={"text": "what now?"})
    assert asked.state == "queued"
    SessionQueues().finish(tx, running, state="done")
    asked = SessionQueues().get(tx, asked.turn_id)
    assert (asked.state, asked.parked_on, asked.question) == ("parked", "answer", '{"text": "what now?"}')
    assert claim(tx) == {}
    SessionQueues().answer_parked(tx, asked.turn_id, text="go on", by="operator")
    assert claim(tx)["a"].turn_id == behind
    empty = moving.put_first(tx, SessionQueues(), draft("b"), rescues=0, question={"text": "?"})
    assert (empty.state, [turn.turn_id for turn in SessionQueues().parked(tx, None)]) == ("parked", [empty.turn_id])
    lawful(tx)


SESSIONS = ("s1", "s2", "s3")


class Moves(RuleBasedStateMachine):
    """Three sessions whose turns are claimed, ended and moved about, beside lists that say who runs next."""

    @initialize()
    def open(self) -> None:
        self.tx = opened(*SESSIONS)
        self.queues = SessionQueues()
        self.lines: dict[str, list[str]] = {session: [] for session in SESSIONS}
        self.begun: dict[str, Turn] = {}
        self.first: set[str] = set()
        self.ended: list[str] = []
        self.suspended: set[str] = set()

    @rule(session=st.sampled_from(SESSIONS))
    def enqueue(self, session: str) -> None:
        self.lines[session].append(put(self.tx, session))

    @rule(session=st.sampled_from(SESSIONS))
    def rescue(self, session: str) -> None:
        line = self.lines[session]
        turn = moving.put_first(self.tx, self.queues, draft(session), rescues=1).turn_id
        # Behind a head that was begun, and behind those that were put first before.
        place = 1 if line and self.queues.get(self.tx, line[0]).attempt else 0
        while place < len(line) and line[place] in self.first:
            place += 1
        line.insert(place, turn)
        self.first.add(turn)

    @rule(limit=st.integers(1, 3))
    def claim(self, limit: int) -> None:
        for session, turn in claim(self.tx, limit).items():
            assert session not in self.suspended
            assert self.lines[session][0] == turn.turn_id
            self.begun[turn.turn_id] = turn

    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        if self.begun:
            turn = self.begun.pop(data.draw(st.sampled_from(sorted(self.begun))))
            session = next(name for name, line in self.lines.items() if turn.turn_id in line)
            if self.queues.get(self.tx, turn.turn_id).owner is None:
                try:
                    self.queues.finish(self.tx, turn, state="done")
                except TakenOver:
                    return
                raise AssertionError("it had a say")
            self.queues.finish(self.tx, turn, state="done")
            self.lines[session].remove(turn.turn_id)
            self.ended.append(turn.turn_id)

    @rule(session=st.sampled_from(SESSIONS))
    def suspend_or_resume(self, session: str) -> None:
        self.suspended ^= {session}
        now = int(session in self.suspended)
        self.tx._connection.execute("UPDATE session SET suspended = ? WHERE session_id = ?", (now, session))
        self.tx._connection.execute(
            f"UPDATE turn SET held = ? WHERE session_id = ? AND state IN {HEAD}", (now, session)
        )

    @rule(pair=st.permutations(SESSIONS), most=st.integers(0, 4))
    def move(self, pair: list[str], most: int) -> None:
        source, target = pair[:2]
        stays = [turn for turn in self.lines[source] if self.queues.get(self.tx, turn).attempt > 0]
        goes = [turn for turn in self.lines[source] if turn not in stays][:most]
        done = moved(self.tx, source, target, most=most)
        assert list(done.turn_ids) == goes
        assert done.left_running == len(stays)
        self.lines[source] = [turn for turn in self.lines[source] if turn not in goes]
        self.behind(target, goes)

    @rule(pair=st.permutations(SESSIONS))
    def move_all(self, pair: list[str]) -> None:
        source, target = pair[:2]
        assert list(moving.move_all(self.tx, source, target)) == self.lines[source]
        goes, self.lines[source] = self.lines[source], []
        self.behind(target, goes)

    def behind(self, target: str, goes: list[str]) -> None:
        self.lines[target] += goes
        self.first -= set(goes)

    @invariant()
    def nothing_is_lost_or_doubled_and_order_holds(self) -> None:
        if not hasattr(self, "lines"):
            return
        lawful(self.tx)
        for session, line in self.lines.items():
            assert order(self.tx, session) == line
        count = self.tx._connection.execute("SELECT COUNT(*) FROM turn").fetchone()[0]
        assert count == sum(map(len, self.lines.values())) + len(self.ended)

    def teardown(self) -> None:
        if hasattr(self, "tx"):
            self.tx._connection.close()


TestMoves = Moves.TestCase
TestMoves.settings = settings(stateful_step_count=25)
