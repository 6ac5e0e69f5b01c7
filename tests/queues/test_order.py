from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ksi_mcp.db.migrate import migrate
from ksi_mcp.db.sqlite import SqliteTx
from ksi_mcp.db.statements import load_statements
from ksi_mcp.ids import WorkerId
from ksi_mcp.queues.model import INJECTED, TakenOver, Turn, TurnDraft
from ksi_mcp.queues.session_queues import SessionQueues

QUERIES = load_statements()
SESSIONS = ("s1", "s2", "s3")
ACCOUNTS = ("run", "global")
ACTIVE = ("ready", "running", "retrying", "blocked")


@dataclass
class Known:
    """What the model knows of a turn; `claimed` is how its owner saw it last."""

    turn_id: str
    session: str
    seq: int
    priority: int
    state: str
    run_at_ms: int = 0
    blocked_on: str | None = None
    claimed: Turn | None = None


class Lanes(RuleBasedStateMachine):
    """Random life of three sessions, beside a model that knows who must be next."""

    @initialize()
    def open(self) -> None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.row_factory = sqlite3.Row
        migrate(connection, now_ms=0)
        self.tx = SqliteTx(connection, QUERIES, 1_000)
        self.queues = SessionQueues()
        self.known: dict[str, Known] = {}
        self.owner = WorkerId("w1")
        self.stale: list[Turn] = []
        for session in SESSIONS:
            self.queues.open_session(self.tx, session)

    def head(self, session: str) -> Known | None:
        heads = [one for one in self.known.values() if one.session == session and one.state in ACTIVE]
        assert len(heads) <= 1
        return heads[0] if heads else None

    def leave(self, one: Known, state: str) -> None:
        if one.claimed is not None:
            self.stale.append(one.claimed)
        was_head = one.state in ACTIVE
        one.state = state
        waiting = [other for other in self.known.values() if other.session == one.session and other.state == "queued"]
        if was_head and waiting:
            following = min(waiting, key=lambda other: (-other.priority, other.seq))
            following.state, following.run_at_ms = "ready", self.tx.now_ms

    def running(self, data: Any) -> Known | None:
        at_work = [one for one in self.known.values() if one.state == "running"]
        return data.draw(st.sampled_from(at_work)) if at_work else None

    @rule(session=st.sampled_from(SESSIONS), injected=st.booleans())
    def enqueue(self, session: str, injected: bool) -> None:
        draft = TurnDraft(
            session_id=session, provider="scripted", prompt="p", orchestration_id=None, created_by="operator",
            cause_id=None, root_id="x", hops=0, depth=0, priority=INJECTED if injected else 0,
        )  # fmt: skip
        first = self.head(session) is None
        turn = self.queues.enqueue(self.tx, draft)
        self.known[turn.turn_id] = Known(
            turn.turn_id, session, turn.seq, draft.priority, "ready" if first else "queued", self.tx.now_ms
        )

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        ready = [one for one in self.known.values() if one.state in ("ready", "retrying")]
        due = [one.turn_id for one in ready if one.run_at_ms <= self.tx.now_ms]
        oldest_first = sorted(due, key=lambda turn_id: (self.known[turn_id].run_at_ms, list(self.known).index(turn_id)))
        claimed = self.queues.claim(self.tx, self.owner, "scripted", limit=limit)
        assert {turn.turn_id for turn in claimed} == set(oldest_first[:limit])
        for turn in claimed:
            one = self.known[turn.turn_id]
            if one.claimed is not None:
                assert turn.attempt > one.claimed.attempt
                self.stale.append(one.claimed)
            one.state, one.claimed = "running", turn

    @rule(data=st.data(), state=st.sampled_from(["done", "failed", "timed_out"]))
    def finish(self, data: Any, state: Any) -> None:
        if (one := self.running(data)) is not None and one.claimed is not None:
            assert self.queues.finish(self.tx, one.claimed, state=state, result="r").state == state
            self.leave(one, state)

    @rule(data=st.data(), delay_ms=st.integers(0, 50))
    def retry(self, data: Any, delay_ms: int) -> None:
        if (one := self.running(data)) is not None and one.claimed is not None:
            self.queues.retry(self.tx, one.claimed, delay_s=delay_ms / 1000, error="e", partial_text=None)
            one.state, one.run_at_ms = "retrying", self.tx.now_ms + int(delay_ms / 1000 * 1000)

    @rule(data=st.data(), account=st.sampled_from(ACCOUNTS))
    def block(self, data: Any, account: str) -> None:
        if (one := self.running(data)) is not None and one.claimed is not None:
            self.queues.block(self.tx, one.claimed, account_id=account)
            one.state, one.blocked_on = "blocked", account

    @rule(accounts=st.sets(st.sampled_from(ACCOUNTS)))
    def unblock(self, accounts: set[str]) -> None:
        self.queues.unblock(self.tx, accounts)
        for one in self.known.values():
            if one.state == "blocked" and one.blocked_on in accounts:
                one.state, one.run_at_ms, one.blocked_on = "ready", self.tx.now_ms, None

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if self.known:
            one = data.draw(st.sampled_from(list(self.known.values())))
            over = one.state not in (*ACTIVE, "queued")
            assert (self.queues.cancel(self.tx, one.turn_id, reason="r") is None) == over
            if not over:
                self.leave(one, "cancelled")

    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        if (one := self.running(data)) is not None:
            self.queues.give_back(self.tx, self.owner, [one.turn_id], delay_s=0.02)
            one.state, one.run_at_ms = "retrying", self.tx.now_ms + 20

    @rule()
    def another_worker_takes_over(self) -> None:
        self.owner = WorkerId("w2" if self.owner == "w1" else "w1")
        taken = self.queues.take_over(self.tx, self.owner)
        assert set(taken) == {one.turn_id for one in self.known.values() if one.state == "running"}
        for turn_id in taken:
            self.known[turn_id].state, self.known[turn_id].run_at_ms = "ready", self.tx.now_ms

    @rule(data=st.data())
    def who_lost_a_turn_has_no_say(self, data: Any) -> None:
        mine = [one.claimed for one in self.known.values() if one.claimed is not None and one.state != "running"]
        if lost := [*self.stale, *mine]:
            turn = data.draw(st.sampled_from(lost))
            for act in (
                lambda: self.queues.finish(self.tx, turn, state="done"),
                lambda: self.queues.retry(self.tx, turn, delay_s=0, error="e", partial_text=None),
                lambda: self.queues.block(self.tx, turn, account_id="run"),
                lambda: self.queues.require_owned(self.tx, turn.turn_id, turn.attempt, turn.owner or ""),
            ):
                try:
                    act()
                except TakenOver:
                    continue
                raise AssertionError("it had a say")

    @rule(ms=st.integers(1, 60))
    def time_goes_by(self, ms: int) -> None:
        self.tx.now_ms += ms

    @invariant()
    def the_store_agrees_and_nobody_is_lost(self) -> None:
        if not hasattr(self, "known"):
            return
        states = {
            row["turn_id"]: row["state"] for row in self.tx._connection.execute("SELECT turn_id, state FROM turn")
        }
        assert states == {one.turn_id: one.state for one in self.known.values()}
        for row in self.tx._connection.execute("SELECT session_id, pending, tail FROM session"):
            lane = [one for one in self.known.values() if one.session == row["session_id"]]
            open_turns = [one for one in lane if one.state in (*ACTIVE, "queued")]
            assert row["pending"] == len(open_turns)
            assert row["tail"] == len(lane)
            # Whoever waits has a head before them: nothing lies there without a claim that will come.
            assert (self.head(row["session_id"]) is not None) == bool(open_turns)

    def teardown(self) -> None:
        if hasattr(self, "tx"):
            self.tx._connection.close()


TestLanes = Lanes.TestCase
TestLanes.settings = settings(stateful_step_count=40)
