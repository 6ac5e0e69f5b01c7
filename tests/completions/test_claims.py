"""A turn is claimed and let out in one transaction: what that must not lose, and what is remembered between turns."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ksi_mcp.agents.history import PastTurn, Round
from ksi_mcp.completions.kept import MAX_SESSION_BYTES, MAX_SESSIONS, Kept
from ksi_mcp.completions.model import Claimed, Loaded
from ksi_mcp.completions.request import render

USAGE = {"input_tokens": 100, "output_tokens": 10}
SCRIPT = {"default": {"reply": "well", "usage": USAGE}}


def calls(house: Any) -> list[tuple[Any, ...]]:
    return house.rows("SELECT state, error, cost_usd_micros FROM provider_call ORDER BY call_id")


async def test_a_call_that_found_no_room_after_all_costs_nothing_and_is_made_later(open_house, monkeypatch) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        slots, refused = house.app.worker._slots, []
        take = slots.take

        def take_the_second_time(provider: str) -> bool:
            if refused:
                return bool(take(provider))
            refused.append(provider)
            return False

        monkeypatch.setattr(slots, "take", take_the_second_time)
        assert (await house.ask("a"))["status"] == "done"
        assert refused == ["scripted"]
        assert calls(house) == [("failed", "not sent: no room any more", 0), ("answered", None, 120)]
        assert house.events("budget:uncertain") == []
        house.books()


async def test_a_turn_that_is_stopped_in_the_tick_of_its_claim_settles_what_was_let_out(
    open_house, monkeypatch
) -> None:
    async with open_house({"default": {**SCRIPT["default"], "latency_s": 60}}) as house:
        await house.spawn("a")
        worker, begun = house.app.worker, []
        begin = worker._begin

        def begin_and_stop(claimed: Claimed) -> None:
            begin(claimed)
            key = (claimed.item.turn.turn_id, claimed.item.turn.attempt)
            begun.append(key)
            worker._stop(key)

        monkeypatch.setattr(worker, "_begin", begin_and_stop)
        sent = await house.call("agent_send", agent="a", message="go")
        await house.until(lambda: [call[:2] for call in calls(house)] == [("uncertain", "cancelled")])
        await house.until(lambda: not worker.busy)
        assert len(begun) == 1
        assert calls(house)[0][2] > 120  # all that was set aside: what the provider did with it nobody knows
        await house.call("completion_cancel", turn=sent["turn"])
        house.books()


async def test_a_turn_that_cannot_be_prepared_fails_alone(open_house, monkeypatch, caplog) -> None:
    def poisoned(agent: Any, now: PastTurn, *args: Any, **more: Any) -> Any:
        if now.prompt == "poison":
            raise ZeroDivisionError
        return render(agent, now, *args, **more)

    monkeypatch.setattr("ksi_mcp.completions.preparing.render", poisoned)
    monkeypatch.setattr("ksi_mcp.completions.worker.STORE_PAUSE_S", 0.01)
    async with open_house(SCRIPT) as house:
        for name in ("a", "b", "c"):
            await house.spawn(name)
        asked = [house.ask("a"), house.ask("b", "poison"), house.ask("c")]
        done = await asyncio.gather(*asked)
        assert [turn["status"] for turn in done] == ["done", "failed", "done"]
        assert (await house.ask("b"))["status"] == "done"
        assert any("the store failed the worker" in record.message for record in caplog.records)
        house.books()


async def test_a_conversation_that_somebody_else_has_changed_is_not_taken_from_memory(open_house, monkeypatch) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        shown: list[list[Any]] = []
        runner = house.app.worker._runner
        prepare = runner.prepare

        def looked(item: Loaded) -> Any:
            prepared = prepare(item)
            shown.append([block for message in prepared.request.messages for block in message.blocks])
            return prepared

        monkeypatch.setattr(runner, "prepare", looked)
        assert (await house.ask("a", "one"))["status"] == "done"
        number = {"json_schema": {"type": "integer"}, "max_attempts": 1}
        sent = await house.call("completion_submit", agent="a", prompt="two", expect=number)
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'parked'") == [(1,)])
        await house.call("completion_answer", turn=sent["turn"], text="2")
        assert (await house.ask("a", "three"))["status"] == "done"
        assert (await house.ask("a", "four"))["status"] == "done"
        assert shown[1:] == [
            ["one", "well", "two"],
            ["one", "well", "two", "2", "three"],
            ["one", "well", "two", "2", "three", "well", "four"],
        ]


@pytest.fixture
async def item(open_house, monkeypatch) -> Loaded:
    """A turn as the worker loads it."""
    seen: list[Loaded] = []
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        runner = house.app.worker._runner
        prepare = runner.prepare
        monkeypatch.setattr(runner, "prepare", lambda loaded: seen.append(loaded) or prepare(loaded))
        await house.ask("a")
    return seen[0]


def answer(text: str = "well") -> Round:
    return Round(number=1, text=text, tool_uses=(), stop_reason="end_turn", results={})


def test_what_is_kept_is_used_only_while_nothing_else_has_changed(item: Loaded) -> None:
    kept, agent = Kept(), item.agent
    assert kept.get(agent) is None
    kept.put(item, answer())
    after = replace(agent, changes=agent.changes + 1)
    found = kept.get(after)
    assert found is not None
    assert [turn.reply for turn in found] == ["well"]
    assert kept.get(agent) is None
    assert kept.get(replace(agent, changes=agent.changes + 2)) is None
    assert kept.get(replace(after, settings=replace(agent.settings, context_messages=10))) is None
    assert kept.get(replace(after, agent_id="a_other")) is None


def test_turns_that_overtook_others_are_read_anew(item: Loaded) -> None:
    kept = Kept()
    later = PastTurn(turn_id="t_later", prompt="x", rounds=(answer(),), at_ms=0, seq=item.turn.seq + 5)
    kept.put(replace(item, earlier=[later]), answer())
    assert kept.get(replace(item.agent, changes=item.agent.changes + 1)) is None


def test_only_so_much_is_kept(item: Loaded) -> None:
    kept = Kept()
    kept.put(item, answer("x" * MAX_SESSION_BYTES))
    assert kept.get(replace(item.agent, changes=item.agent.changes + 1)) is None
    for n in range(MAX_SESSIONS + 10):
        kept.put(replace(item, agent=replace(item.agent, agent_id=f"a_{n}")), answer())
    assert len(kept._sessions) == MAX_SESSIONS
    assert kept.get(replace(item.agent, agent_id="a_9", changes=item.agent.changes + 1)) is None
    assert kept.get(replace(item.agent, agent_id="a_10", changes=item.agent.changes + 1)) is not None
