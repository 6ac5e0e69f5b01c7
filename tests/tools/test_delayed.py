from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.permissions import agent_actor, fresh_context


def put_forward(house: Any, seconds: float) -> None:
    house.gate.ahead_ms += int(seconds * 1000)
    house.app.services.journal.rung()


async def gone(house: Any) -> None:
    """Until nothing is delayed any more."""
    await house.until(lambda: house.rows("SELECT * FROM delayed_event") == [])


async def test_a_delayed_event_comes_at_its_time_once_and_in_its_chain_of_causes(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base",))
        ctx = fresh_context(agent_actor(agent))
        args = {"event": "note:later", "data": {"x": 1}, "delay_s": 60}
        done = await house.app.toolbox.call(ctx, "event_emit", args)
        assert done.data["delayed_until"]
        put_forward(house, 50)
        await house.call("event_emit", event="note:now")  # the pumps have looked again by then
        assert house.events("note:later") == []
        put_forward(house, 11)
        await gone(house)
        assert house.events("note:later") == [{"x": 1}]
        ((source, root),) = house.rows("SELECT source, root_id FROM event WHERE name = 'note:later'")
        assert (source, root) == (f"agent:{agent}", ctx.root_id)


async def test_delayed_events_survive_a_restart_and_fire_once_in_the_order_of_their_time(open_house, tmp_path) -> None:
    home = tmp_path / "home"
    async with open_house(root=home) as house:
        for n, delay_s in enumerate((30, 10, 20)):
            await house.call("event_emit", event="note:later", data={"n": n}, delay_s=delay_s)
    for _ in range(2):
        async with open_house(root=home) as house:
            put_forward(house, 60)
            await gone(house)
            assert house.events("note:later") == [{"n": 1}, {"n": 2}, {"n": 0}]


async def test_a_short_delay_needs_nobody_to_ring(open_house) -> None:
    async with open_house() as house:
        await house.call("event_emit", event="note:soon", delay_s=0.02)
        await gone(house)
        assert house.events("note:soon") == [{}]


async def test_a_delayed_command_takes_effect_once_with_the_going_of_its_row(open_house) -> None:
    async with open_house() as house:
        await house.call("event_emit", event="agent:spawn", data={"prompt": "p", "name": "late"}, delay_s=60)
        assert (await house.call("agent_list"))["agents"] == []
        put_forward(house, 61)
        await gone(house)
        assert [agent["name"] for agent in (await house.call("agent_list"))["agents"]] == ["late"]
        assert house.events("system:delayed_failed") == []


async def test_a_delayed_command_that_only_reads_goes_too(open_house) -> None:
    async with open_house() as house:
        await house.call("event_emit", event="agent:list", delay_s=60)
        put_forward(house, 61)
        await gone(house)
        assert house.events("system:delayed_failed") == []


async def test_a_condition_is_asked_when_the_time_has_come(open_house) -> None:
    async with open_house() as house:
        for n in (1, 2):
            await house.call("event_emit", event="note:x", data={"n": n}, condition="data.n > 1", delay_s=60)
        put_forward(house, 61)
        await gone(house)
        assert house.events("note:x") == [{"n": 2}]


@pytest.mark.parametrize("lost", ["capability", "life"])
async def test_an_author_without_the_right_any_more_is_refused_when_the_time_comes(open_house, lost: str) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base", "spawn_agents"))
        args = {"event": "agent:spawn", "data": {"prompt": "p", "name": "late"}, "delay_s": 60}
        await house.app.toolbox.call(fresh_context(agent_actor(agent)), "event_emit", args)
        if lost == "life":
            await house.call("agent_terminate", agent="a")
        else:
            await house.app._db._writer.call(
                lambda connection: connection.execute("UPDATE agent SET capabilities = '[\"base\"]'")
            )
        put_forward(house, 61)
        await gone(house)
        (failed,) = house.events("system:delayed_failed")
        assert (failed["event"], failed["actor"]) == ("agent:spawn", f"agent:{agent}")
        assert ("spawn_agents" if lost == "capability" else "not active any more") in failed["reason"]
        assert house.rows("SELECT * FROM agent WHERE name = 'late'") == []
        assert len(house.events("system:refused")) == 1


async def test_one_that_fails_does_not_hold_up_the_others(open_house) -> None:
    async with open_house() as house:
        await house.spawn("a")
        await house.call("event_emit", event="agent:spawn", data={"prompt": "p", "name": "a"}, delay_s=59)
        await house.call("event_emit", event="note:after", delay_s=60)
        put_forward(house, 61)
        await gone(house)
        assert "agent name 'a' is taken" in house.events("system:delayed_failed")[0]["reason"]
        assert house.events("note:after") == [{}]


async def test_a_store_that_fails_for_a_while_loses_no_delayed_event(
    open_house, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house() as house:
        await house.call("event_emit", event="note:later", delay_s=60)
        run = house.app._db._writer.call
        await run(
            lambda connection: connection.execute(
                "CREATE TEMP TRIGGER full BEFORE DELETE ON delayed_event BEGIN SELECT RAISE(ROLLBACK, 'full'); END"
            )
        )
        put_forward(house, 61)
        await house.until(lambda: "delayed events could not be fired" in caplog.text)
        await run(lambda connection: connection.execute("DROP TRIGGER full"))
        house.app.services.journal.rung()
        await gone(house)
        assert house.events("note:later") == [{}]
        assert house.events("system:delayed_failed") == []
