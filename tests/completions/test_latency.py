from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ksi_mcp.completions.latency import Latencies
from ksi_mcp.db.migrate import migrate
from ksi_mcp.db.sqlite import SqliteTx
from ksi_mcp.db.statements import load_statements


def seen(*seconds: float) -> Latencies:
    latencies = Latencies()
    for value in seconds:
        latencies.observe("m", "code", value)
    return latencies


@pytest.mark.parametrize(
    ("seconds", "p95"),
    [
        ([], None),
        (range(1, 10), None),  # nine are too few
        (range(1, 11), 10),  # the 10th of 10: 0.95 x 10 = 9.5, rounded up
        (range(1, 21), 19),  # the 19th of 20
        (range(1, 51), 48),  # the 48th of 50: 47.5, rounded up
        (range(50, 0, -1), 48),
        (range(1, 101), 98),  # of the last 50, which are 51 to 100
        ([7] * 10, 7),
    ],
)
def test_the_95th_percentile_of_the_last_fifty(seconds, p95) -> None:
    assert seen(*seconds).p95("m", "code") == p95


@pytest.mark.parametrize(
    ("seconds", "floor_s", "deadline_s"),
    [
        ([3] * 9, 60, 60),  # not enough is known
        ([3] * 10, 60, 60),  # 2 x 3 is less than the class asks for
        ([40] * 10, 60, 80),  # 2 x 40
        ([400] * 10, 60, 600),  # 2 x 400 is more than any call gets
        ([], 900, 600),
    ],
)
def test_a_deadline_is_twice_the_95th_percentile_within_its_bounds(seconds, floor_s, deadline_s) -> None:
    assert seen(*seconds).deadline_s("m", "code", floor_s=floor_s) == deadline_s


def test_a_model_that_became_slow_is_given_more_time_step_by_step() -> None:
    latencies, given = seen(*[2] * 50), []
    for _ in range(6):
        deadline_s = latencies.deadline_s("m", "code", floor_s=10)
        given.append(deadline_s)
        for _ in range(3):  # 3 of 50 is more than one in twenty
            latencies.observe("m", "code", deadline_s)  # what ran out of time took all it was given
    assert given == [10, 20, 40, 80, 160, 320]


def test_models_and_classes_of_work_are_apart() -> None:
    latencies = seen(*[100] * 10)
    assert latencies.p95("m", "simple") is None
    assert latencies.p95("other", "code") is None


def test_what_is_no_duration_is_not_taken() -> None:
    assert seen(*[1] * 9, float("nan"), float("inf"), -1.0).p95("m", "code") is None


def test_names_of_models_do_not_fill_the_memory() -> None:
    latencies = Latencies()
    for number in range(5_000):
        latencies.observe(f"m{number}", "code", 1)
        latencies.observe("kept", "code", 2)
    assert latencies.p95("kept", "code") == 2
    assert len(latencies._seen) == 1_000


def test_a_restart_reads_what_the_newest_calls_took_and_nothing_that_was_not_a_call() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    migrate(connection, now_ms=0)
    connection.execute("PRAGMA foreign_keys = OFF")
    for turn, op_class in (("t_1", "code"), ("t_2", "simple")):
        connection.execute(
            "INSERT INTO turn (turn_id, session_id, seq, state, run_at_ms, provider, prompt, op_class,"
            f" created_by, root_id, hops, depth, created_at_ms)"
            f" VALUES ('{turn}', '{turn}', 1, 'done', 0, 'p', '', '{op_class}', 'o', 'r', 0, 0, 0)"
        )

    def call(turn: str, state: str, took_ms: int | None, *, kind: str | None = None, reused: int | None = None) -> None:
        (number,) = connection.execute("SELECT COUNT(*) FROM provider_call").fetchone()
        connection.execute(
            "INSERT INTO provider_call (turn_id, round, attempt, hold_id, provider, model, state, error_kind,"
            " sent_at_ms, ended_at_ms, reused_from) VALUES (?, ?, 1, 'h', 'p', 'm', ?, ?, 1000, ?, ?)",
            (turn, number, state, kind, None if took_ms is None else 1000 + took_ms, reused),
        )

    for _ in range(9):
        call("t_1", "answered", 20_000)
        call("t_2", "answered", 500)
    call("t_1", "uncertain", 60_000, kind="timeout")
    call("t_2", "answered", 0, reused=1)
    call("t_2", "failed", 9_000, kind="overload")
    call("t_2", "sent", None)
    latencies = seen(*[1] * 50)
    latencies.load(SqliteTx(connection, load_statements(), 0))
    assert latencies.p95("m", "code") == 60
    assert latencies.p95("m", "simple") is None  # nine answers; what was reused, refused or is under way is none
    connection.close()


def test_the_look_back_of_a_restart_is_bounded_whatever_the_store_holds(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    migrate(connection, now_ms=0)
    sql = load_statements()["completions.recent_latencies"].sql
    plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", (5_000,)))
    assert "SEARCH c USING INTEGER PRIMARY KEY (rowid>?)" in plan
    connection.close()
