"""What is old goes, a little at a time; what anybody still needs stays."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError
from ksi_mcp.events import retention
from ksi_mcp.events.retention import Goal, Swept, choose

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAUSE_S", 0)


async def later(house: Any, days: float) -> Swept:
    """Sweep, so many days from now."""
    house.gate.ahead_ms += int(days * DAY_MS)
    return await house.app.retention.sweep()


async def emit(house: Any, count: int, name: str = "note:made", size: int = 0) -> None:
    for i in range(count):
        await house.call("event_emit", event=name, data={"i": i, "fill": "x" * size})
    await delivered(house)


async def delivered(house: Any) -> None:
    await house.until(lambda: house.rows("SELECT * FROM outbox") == [])


def names(house: Any) -> set[str]:
    return {row[0] for row in house.rows("SELECT name FROM event")}


def spent(house: Any) -> list[tuple[Any, ...]]:
    return house.rows(
        "SELECT account_id, spent_usd_micros, spent_tokens, spent_turns, reserved_usd_micros FROM account ORDER BY 1"
    )


# ------------------------------------------------------------------------------------- the choice

ROWS = st.lists(
    st.fixed_dictionaries(
        {"at_ms": st.integers(0, 100), "bytes": st.integers(0, 50), "ordinary": st.booleans().map(int)}
    ),
    max_size=30,
)
GOALS = st.builds(
    Goal,
    before_ms=st.integers(0, 100),
    audit_before_ms=st.integers(0, 100),
    fresh_ms=st.integers(0, 100),
    rows=st.integers(-5, 20),
    bytes=st.integers(-100, 800),
)


@given(ROWS, GOALS)
def test_what_is_chosen_is_old_or_too_much_and_never_more_than_that(rows: list[dict[str, Any]], goal: Goal) -> None:
    chosen = choose(rows, goal)  # type: ignore[arg-type]
    young = [row for row in chosen if row["ordinary"] and row["at_ms"] >= goal.before_ms]
    assert all(row["at_ms"] < goal.fresh_ms for row in young)
    assert all(row["at_ms"] < goal.audit_before_ms for row in chosen if not row["ordinary"])
    for row in rows:
        if row["at_ms"] < (goal.before_ms if row["ordinary"] else goal.audit_before_ms):
            assert any(row is each for each in chosen)
    if young:  # without the last of them there would still have been too much
        assert not goal.without([row for row in chosen if row is not young[-1]]).met
    if not goal.without(chosen).met:  # then nothing is left that might have gone
        assert all(not row["ordinary"] or row["at_ms"] >= goal.fresh_ms for row in rows if row not in chosen)


# ---------------------------------------------------------------------------------------- events


async def test_old_events_go_and_their_numbers_never_come_back(open_house) -> None:
    async with open_house(retention={"events": {"days": 10}}) as house:
        await emit(house, 3)
        ((newest,),) = house.rows("SELECT MAX(event_id) FROM event")
        assert (await later(house, 9)).events == 0
        swept = await later(house, 2)
        assert swept.events == 3
        assert swept.bytes > 0
        assert names(house) == {"system:retention_swept"}
        assert house.rows("SELECT MIN(event_id) FROM event")[0][0] > newest
        assert house.events("system:retention_swept")[-1]["events"] == 3
        assert (await later(house, 0)) == Swept()


async def test_of_too_many_events_the_oldest_go_and_the_fresh_stay(open_house) -> None:
    async with open_house(retention={"events": {"days": None, "count": 4}}) as house:
        await emit(house, 10)
        assert (await later(house, 0)).events == 0  # somebody may be waiting for them
        assert (await later(house, 0.1)).events == 6
        assert [each["i"] for each in house.events("note:made")] == [6, 7, 8, 9]


async def test_of_too_large_events_the_oldest_go(open_house) -> None:
    async with open_house(retention={"events": {"days": None, "count": None, "megabytes": 0.3}}) as house:
        await emit(house, 10, size=60_000)
        assert (await later(house, 0.1)).events == 6  # 4 x 60 kB and a little are under 300 kB
        assert [each["i"] for each in house.events("note:made")] == [6, 7, 8, 9]


async def test_an_event_that_is_not_delivered_stays(open_house) -> None:
    async with open_house() as house:
        await emit(house, 2)

        def undeliver(tx: Tx) -> None:
            tx.run("events.to_outbox", {"event_id": 1})

        house.app.services.router.pump_once = _nothing  # type: ignore[method-assign, assignment]
        await house.app.services.journal.commit(undeliver)
        assert (await later(house, 100)).events == 1
        assert house.rows("SELECT event_id FROM event WHERE name = 'note:made'") == [(1,)]


async def _nothing() -> int:
    return 0


async def test_audit_events_have_a_retention_of_their_own(open_house) -> None:
    async with open_house(retention={"audit_days": 400}) as house:
        await house.call("routing_add_rule", source_pattern="a:b", target="c:d")
        with pytest.raises(KsiError):
            await house.call("routing_add_rule", source_pattern="a:b", target="system:x")
        await emit(house, 1)
        before = names(house)
        assert "routing:rule_added" in before
        await later(house, 100)
        assert names(house) == (before - {"note:made"}) | {"system:retention_swept"}
        await later(house, 400)
        assert "routing:rule_added" not in names(house)


async def test_audit_events_are_kept_by_default_however_many_there_are(open_house) -> None:
    async with open_house(retention={"events": {"days": 1, "count": 0, "megabytes": 0}}) as house:
        await house.call("routing_add_rule", source_pattern="a:b", target="c:d")
        await delivered(house)
        await later(house, 10_000)
        assert "routing:rule_added" in names(house)


# ---------------------------------------------------------------------------------- agents and runs


async def test_turns_of_an_ended_agent_go_and_the_accounts_stay_exact(open_house) -> None:
    async with open_house(retention={"turns": {"days": 10}}) as house:
        for name in ("old", "living"):
            await house.spawn(name)
            for _ in range(3):
                await house.ask(name)
        await house.call("agent_terminate", agent="old")
        await delivered(house)
        books = spent(house)
        assert (await later(house, 11)).turns == 3
        assert spent(house) == books
        living = {row[0] for row in house.rows("SELECT turn_id FROM turn")}
        assert len(living) == 3
        for table in ("provider_call", "hold"):
            assert {row[0] for row in house.rows(f"SELECT turn_id FROM {table}")} == living
        assert house.rows("PRAGMA foreign_key_check") == []
        # The conversation of the living one goes on where it was.
        assert (await house.ask("living"))["status"] == "done"
        assert len((await house.call("agent_history", agent="living"))["turns"]) == 4


async def test_what_an_open_run_needs_stays_until_it_has_ended(open_house) -> None:
    async with open_house() as house:
        await house.run("o_open")
        await house.spawn("one", orchestration="o_open")
        await house.ask("one")
        await house.call("agent_terminate", agent="one")
        await house.call("event_emit", event="note:made", data={}, orchestration="o_open")
        await delivered(house)
        assert await later(house, 1000) == Swept()
        await house.call("orchestration_complete", orchestration="o_open", outcome="success")
        await delivered(house)
        swept = await later(house, 1000)
        assert swept.turns == 1
        assert "note:made" not in names(house)
        assert (await house.call("orchestration_status", orchestration="o_open"))["state"] == "completed"


async def test_a_checkpoint_and_a_run_made_from_it_keep_what_they_need(open_house) -> None:
    async with open_house(retention={"checkpoints": 2}) as house:
        for run in ("o_first", "o_second"):
            await house.run(run)
        await house.spawn("one", orchestration="o_first")
        await house.ask("one")
        for automatic in (1, 1, 1, 0):
            _add_checkpoint(house, "o_first", automatic=automatic)
        await house.call("orchestration_complete", orchestration="o_first", outcome="success")
        await delivered(house)
        assert (await later(house, 1)).checkpoints == 1  # the oldest automatic one: two of a kind are kept
        assert (await later(house, 200)).checkpoints == 2  # ended long ago: those that nobody asked for go
        assert house.rows("SELECT automatic FROM checkpoint") == [(0,)]
        assert len(house.rows("SELECT * FROM turn")) == 1
        _execute(house, "DELETE FROM checkpoint")
        _execute(house, "UPDATE orchestration SET origin_id = 'o_first' WHERE orchestration_id = 'o_second'")
        assert (await later(house, 200)).turns == 0  # the second run goes on
        await house.call("orchestration_complete", orchestration="o_second", outcome="success")
        assert (await later(house, 200)).turns == 1


def _add_checkpoint(house: Any, run: str, *, automatic: int) -> None:
    _execute(
        house,
        "INSERT INTO checkpoint (checkpoint_id, orchestration_id, automatic, turns, event_id, snapshot, at_ms)"
        " VALUES (hex(randomblob(8)), ?, ?, 1, 1, '{}', 0)",
        run,
        automatic,
    )


def _execute(house: Any, sql: str, *values: Any) -> None:
    house.rows(sql, *values)


async def test_a_turn_that_another_waits_for_stays(open_house) -> None:
    async with open_house() as house:
        await house.spawn("one")
        turn = (await house.ask("one"))["turn"]
        await house.call("agent_terminate", agent="one")
        _execute(house, "INSERT INTO turn_wait VALUES ('t_other', 's_other', ?)", turn)
        assert (await later(house, 200)).turns == 0
        _execute(house, "DELETE FROM turn_wait")
        assert (await later(house, 0)).turns == 1


async def test_a_turn_with_an_open_hold_stays_and_stray_closed_holds_go(open_house) -> None:
    async with open_house() as house:
        await house.spawn("one")
        turn = (await house.ask("one"))["turn"]
        await house.call("agent_terminate", agent="one")
        put = (
            "INSERT INTO hold (hold_id, account_id, turn_id, state, reserved_usd_micros, reserved_tokens)"
            " VALUES (?, 'global', ?, ?, 0, 0)"
        )
        _execute(house, put, "h_open", turn, "reserved")
        _execute(house, put, "h_given_back", turn, "released")
        assert (await later(house, 200)).turns == 0
        _execute(house, "UPDATE hold SET state = 'released' WHERE hold_id = 'h_open'")
        assert (await later(house, 0)).turns == 1
        assert house.rows("SELECT * FROM hold") == []


async def test_no_transaction_removes_many_rows(open_house, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "UNIT_ROWS", 7)
    async with open_house() as house:
        await house.spawn("one")
        for _ in range(5):
            await house.ask("one")
        await house.call("agent_terminate", agent="one")
        await emit(house, 30)
        journal = house.app.services.journal
        sizes = []
        commit = journal.commit

        async def counting(work: Any) -> Any:
            gone = await commit(work)
            if isinstance(gone, int):
                sizes.append(gone)
            return gone

        monkeypatch.setattr(journal, "commit", counting)
        swept = await later(house, 200)
    assert swept.turns == 5
    assert swept.events > 30
    assert max(sizes) <= 7


# ---------------------------------------------------------------------------------------- the rest


async def test_a_key_is_known_until_its_time_is_over(open_house) -> None:
    async with open_house(retention={"idempotency_days": 7}) as house:
        first = await house.spawn("one", idempotency_key="k")
        await later(house, 6)
        assert await house.spawn("one", idempotency_key="k") == first
        assert (await later(house, 2)).keys == 1
        with pytest.raises(KsiError, match="'one'"):
            await house.spawn("one", idempotency_key="k")


async def test_quotas_of_first_causes_go_with_their_events(open_house) -> None:
    async with open_house() as house:
        await house.call("routing_add_rule", source_pattern="note:*", target="seen:it")
        await emit(house, 2)
        assert len(house.rows("SELECT * FROM root_quota")) == 2
        await later(house, 1)
        assert len(house.rows("SELECT * FROM root_quota")) == 2
        await later(house, 100)
        assert house.rows("SELECT * FROM root_quota") == []


async def test_tombstones_of_rules_go_and_living_rules_stay(open_house) -> None:
    async with open_house() as house:
        for target in ("c:d", "e:f"):
            await house.call("routing_add_rule", source_pattern="a:b", target=target, rule_id=target[0])
        await house.call("routing_delete_rule", rule_id="c")
        await later(house, 100)
        assert house.rows("SELECT rule_id FROM rule") == [("e",)]


async def test_a_preview_says_what_would_go_and_removes_nothing(open_house) -> None:
    async with open_house() as house:
        await house.spawn("one")
        await house.ask("one")
        await house.call("agent_terminate", agent="one")
        await emit(house, 3)
        house.gate.ahead_ms += 1000 * DAY_MS
        before = house.rows("SELECT COUNT(*) FROM event")
        would = await house.app.retention.preview(limit_s=60)
        assert house.rows("SELECT COUNT(*) FROM event") == before
        swept = await later(house, 0)
        assert (would.events, would.turns, would.bytes) == (swept.events, swept.turns, swept.bytes)
        assert would.complete


async def test_what_was_removed_is_answered_honestly(open_house) -> None:
    async with open_house() as house:
        await house.spawn("one")
        turn = (await house.ask("one"))["turn"]
        await house.call("agent_terminate", agent="one")
        await later(house, 100)
        for tool, args in (("completion_status", {"turn": turn}), ("agent_wait", {"turns": [turn]})):
            with pytest.raises(KsiError, match=turn) as refused:
                await house.call(tool, **args)
            assert "go after 90 days" in refused.value.text()
        with pytest.raises(KsiError, match="nothing of it is kept"):
            await house.call("agent_wait", agents=["one"])
