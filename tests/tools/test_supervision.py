"""Turns moved and agents changed, as a caller does it."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import agent_actor, fresh_context

SLOW = {
    "replies": [{"match": {"prompt": "slow"}, "reply": "late", "latency_s": 60}],
    "default": {"reply": "{{agent}}: {{prompt}}"},
}


async def waiting(house: Any, agent: str, *texts: str) -> list[str]:
    """An agent at work on a slow turn, with these behind it."""
    await house.call("agent_send", agent=agent, message="slow")
    await house.started()
    return [(await house.call("agent_send", agent=agent, message=text))["turn"] for text in texts]


async def test_waiting_turns_move_in_order_and_the_one_at_work_stays(open_house) -> None:
    async with open_house(SLOW) as house:
        one, two = await house.spawn("one"), await house.spawn("two")
        turns = await waiting(house, "one", "a", "b", "c")
        done = await house.call("turn_move", **{"from": "one", "to": "two"})
        assert done == {"source": one, "target": two, "moved": 3, "left_running": 1, "turns": turns}
        waited = await house.call("agent_wait", turns=turns, timeout_s=10)
        assert [turn["text"] for turn in waited["turns"]] == ["two: a", "two: b", "two: c"]
        assert (await house.call("completion_status", turn=turns[0]))["agent"] == two
        (event,) = house.events("turn:moved")
        assert event == {"from": one, "to": two, "moved": 3, "left_running": 1, "turns": turns}
        house.gate.opened.set()
        await house.call("agent_wait", agents=["one"], timeout_s=10)
        house.books()


async def test_a_filter_moves_only_what_fits_and_moving_nothing_is_no_error(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.spawn("one")
        await house.spawn("two")
        turns = await waiting(house, "one", "cats", "dogs", "cats again")
        move = {"source": "one", "target": "two"}
        assert (await house.call("turn_move", **move, filter={"contains": "cats", "limit": 1}))["turns"] == turns[:1]
        assert (await house.call("turn_move", **move, filter={"turns": turns[2:]}))["turns"] == turns[2:]
        assert (await house.call("turn_move", **move, filter={"sender": "agent:a_x"}))["moved"] == 0
        assert (await house.call("turn_move", **move, filter={"older_than_s": 3600}))["moved"] == 0


@pytest.mark.parametrize(
    ("move", "failure", "message"),
    [
        ({"source": "one", "target": "one"}, Invalid, "both are the same agent"),
        ({"source": "one", "target": "nobody"}, NotFound, "unknown agent 'nobody'"),
        ({"source": "one", "target": "gone"}, Conflict, "agent 'gone' is terminated and takes no turns"),
        ({"source": "one", "target": "leaving"}, Conflict, "agent 'leaving' is draining and takes no turns"),
        ({"source": "one", "target": "away"}, Invalid, "'one' and 'away' are in no run and o_1"),
        ({"source": "one", "target": "two", "filter": {"limit": 0}}, Invalid, "limit"),
        ({"source": "one", "target": "two", "filter": {"contains": ""}}, Invalid, "contains"),
        ({"source": "one", "target": "two", "filter": {"prompt": "x"}}, Invalid, "unknown parameter 'filter.prompt'"),
        ({"source": "one", "to": "two", "target": "two"}, Invalid, "are the same parameter"),
    ],
)
async def test_a_move_that_cannot_be_is_refused_and_moves_nothing(
    open_house, move: dict[str, Any], failure: type[KsiError], message: str
) -> None:
    async with open_house(SLOW) as house:
        await house.run("o_1")
        for name in ("one", "two", "gone", "leaving"):
            await house.spawn(name)
        await house.spawn("away", orchestration="o_1")
        await house.call("agent_terminate", agent="gone")
        await waiting(house, "leaving")
        await house.call("agent_terminate", agent="leaving", mode="drain")
        await waiting(house, "one", "a")
        before = house.rows("SELECT turn_id, session_id, seq, state FROM turn")
        with pytest.raises(failure, match=message):
            await house.call("turn_move", **move)
        assert house.rows("SELECT turn_id, session_id, seq, state FROM turn") == before
        assert house.events("turn:moved") == []


async def test_an_agent_moves_turns_only_among_those_below_it(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.run("o_1")
        boss = await house.spawn("boss", ("base", "spawn_agents"), orchestration="o_1")
        mine = [await house.spawn(name, parent=boss) for name in ("one", "two")]
        peer = await house.spawn("peer", orchestration="o_1")
        as_boss = fresh_context(agent_actor(boss))
        (turn,) = await waiting(house, "one", "a")
        for source, target in ((mine[0], peer), (peer, mine[0])):
            with pytest.raises(Refused, match="may not move turns"):
                await house.app.toolbox.call(as_boss, "turn_move", {"source": source, "target": target})
        done = await house.app.toolbox.call(as_boss, "turn_move", {"source": mine[0], "target": mine[1]})
        assert done.data["turns"] == [turn]


async def test_an_agent_is_asked_through_its_new_model_from_the_next_turn_on(open_house) -> None:
    script = {"default": {"reply": "{{model}}"}}
    async with open_house(script, prices={"m": "free", "m2": "free"}) as house:
        await house.spawn("a")
        assert (await house.ask("a"))["text"] == "m"
        done = await house.call("agent_update", agent="a", model="m2", max_tokens=50, supervision="retry")
        assert done["model"] == "m2"
        assert (await house.ask("a"))["text"] == "m2"
        (event,) = house.events("agent:updated")
        assert event["changed"] == {"model": "m2", "max_tokens": 50, "supervision": "retry"}


async def test_rights_are_never_more_than_the_parent_holds_and_what_goes_goes_all_the_way_down(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", ("base", "messaging", "spawn_agents", "decisions"))
        child = await house.spawn("child", ("base", "messaging", "spawn_agents"), parent=boss)
        grandchild = await house.spawn("grandchild", ("base", "messaging"), parent=child)
        bystander = await house.spawn("bystander", ("base",), parent=boss)
        with pytest.raises(Refused, match="parent 'boss' cannot grant what it does not hold: compositions"):
            await house.call("agent_update", agent=child, capabilities=["base", "compositions"])
        as_child = fresh_context(agent_actor(child))
        with pytest.raises(Refused, match="cannot grant what it does not hold: decisions"):
            await house.app.toolbox.call(
                as_child, "agent_update", {"agent": grandchild, "capabilities": ["base", "decisions"]}
            )
        with pytest.raises(NotFound):  # it does not even see it
            await house.app.toolbox.call(as_child, "agent_update", {"agent": boss, "model": "m2"})
        done = await house.call("agent_update", agent=boss, capabilities=["base", "spawn_agents"])
        assert done["cut"] == [child, grandchild]
        held = {one["name"]: one["capabilities"] for one in (await house.call("agent_list"))["agents"]}
        assert held == {
            "boss": ["base", "spawn_agents"], "child": ["base", "spawn_agents"], "grandchild": ["base"],
            "bystander": ["base"],
        }  # fmt: skip
        assert bystander not in done["cut"]


@pytest.mark.parametrize(
    ("change", "failure", "message"),
    [
        ({}, Invalid, "nothing to change"),
        ({"capabilities": ["operator"]}, Invalid, "unknown capabilities: operator"),
        ({"provider": "nobody"}, Invalid, "unknown provider 'nobody'"),
        ({"max_tokens": 0}, Invalid, "max_tokens is 0"),
        ({"supervision": "panic"}, Invalid, "supervision"),
        ({"supervision": {"on_failure": "retry", "max": 1000}}, Invalid, "supervision"),
        ({"timeout_s": -1}, Invalid, "timeout_s"),
    ],
)
async def test_a_change_that_cannot_be_is_refused_and_changes_nothing(
    open_house, change: dict[str, Any], failure: type[KsiError], message: str
) -> None:
    async with open_house() as house:
        await house.spawn("a")
        before = house.rows("SELECT * FROM agent")
        with pytest.raises(failure, match=message):
            await house.call("agent_update", agent="a", **change)
        assert house.rows("SELECT * FROM agent") == before
        assert house.events("agent:updated") == []


async def test_an_agent_that_has_ended_is_not_changed(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a")
        await house.call("agent_terminate", agent=agent)
        with pytest.raises(Conflict, match="agent 'a' is terminated"):
            await house.call("agent_update", agent=agent, model="m2")
