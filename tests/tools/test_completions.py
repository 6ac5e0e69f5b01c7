"""Single turns: looked at, cancelled."""

from __future__ import annotations

import pytest

from ksi_mcp.errors import NotFound, Refused
from ksi_mcp.permissions import agent_actor, fresh_context

SLOW = {"default": {"reply": "late", "latency_s": 60}}


async def test_a_queued_turn_that_is_cancelled_never_runs(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.spawn("one")
        running = await house.call("agent_send", agent="one", message="first")
        queued = await house.call("agent_send", agent="one", message="second", reply_event="reply:here")
        await house.started()
        done = await house.call("completion_cancel", turn=queued["turn"], reason="not needed")
        assert done == {"turn": queued["turn"], "cancelled": True, "status": "cancelled", "was": "queued"}
        house.gate.opened.set()
        waited = await house.call("agent_wait", turns=[running["turn"], queued["turn"]], timeout_s=10)
        assert (waited["census"]["ok"], waited["census"]["cancelled"]) == (1, 1)
        assert house.rows("SELECT DISTINCT turn_id FROM provider_call") == [(running["turn"],)]
        assert [event["status"] for event in house.events("reply:here")] == ["cancelled"]


async def test_a_running_turn_is_stopped_and_paid_for_and_its_session_goes_on(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.spawn("one")
        running = await house.call("agent_send", agent="one", message="first")
        following = await house.call("agent_send", agent="one", message="second")
        await house.started()
        done = await house.call("completion_cancel", turn=running["turn"])
        assert (done["cancelled"], done["was"]) == (True, "running")
        await house.started()  # the next one is at the provider by now
        house.gate.opened.set()
        waited = await house.call("agent_wait", turns=[following["turn"]], timeout_s=10)
        assert waited["census"]["ok"] == 1
        await house.until(lambda: not house.rows("SELECT 1 FROM hold WHERE state IN ('reserved', 'sent')"))
        assert house.calls() == [(1, "uncertain"), (1, "answered")]
        house.books()


async def test_a_second_cancel_changes_nothing(open_house) -> None:
    async with open_house() as house:
        await house.spawn("one")
        ended = await house.ask("one")
        before = house.rows("SELECT COUNT(*) FROM event")
        assert await house.call("completion_cancel", turn=ended["turn"]) == {
            "turn": ended["turn"], "cancelled": False, "status": "done",
        }  # fmt: skip
        assert house.rows("SELECT COUNT(*) FROM event") == before


async def test_an_agent_cancels_only_what_is_below_it_or_what_it_asked_for(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.run("o_1")
        boss = await house.spawn("boss", ("base", "messaging", "spawn_agents"), orchestration="o_1")
        await house.spawn("peer", ("base", "messaging"), orchestration="o_1")
        await house.spawn("stranger", ("base", "messaging"))
        by_us = await house.call("agent_send", agent="peer", message="from the operator")
        far = await house.call("agent_send", agent="stranger", message="elsewhere")
        as_boss = fresh_context(agent_actor(boss))
        own = await house.app.toolbox.call(as_boss, "agent_send", {"agent": "peer", "message": "from boss"})
        with pytest.raises(Refused, match="may not cancel"):
            await house.app.toolbox.call(as_boss, "completion_cancel", {"turn": by_us["turn"]})
        with pytest.raises(NotFound, match="unknown turn"):
            await house.app.toolbox.call(as_boss, "completion_cancel", {"turn": far["turn"]})
        done = await house.app.toolbox.call(as_boss, "completion_cancel", {"turn": own.data["turn"]})
        assert done.data["cancelled"] is True
        house.gate.opened.set()


async def test_a_turn_is_shown_with_what_was_asked_and_when(open_house) -> None:
    async with open_house() as house:
        await house.spawn("one")
        ended = await house.ask("one", "what?")
        shown = await house.call("completion_status", turn=ended["turn"])
        assert (shown["status"], shown["prompt"], shown["created_by"]) == ("done", "what?", "operator")
        assert shown["created_at"] <= shown["started_at"] <= shown["finished_at"]
        with pytest.raises(NotFound, match="unknown turn 't_nothing'"):
            await house.call("completion_status", turn="t_nothing")
