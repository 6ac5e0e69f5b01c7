"""What agents hear of others, as a caller sets it and as an agent is told."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import agent_actor, fresh_context

ECHO = {"default": {"reply": "{{prompt}}"}}
ROUTES = ("base", "messaging", "spawn_agents", "routing_control")


async def as_agent(house: Any, actor: str, tool: str, **args: Any) -> dict[str, Any]:
    run = house.rows("SELECT orchestration_id FROM agent WHERE agent_id = ?", actor)[0][0]
    context = fresh_context(agent_actor(actor), orchestration_id=run)
    return dict((await house.app.toolbox.call(context, tool, args)).data)


async def emit(house: Any, agent: str, event: str = "note:made", **data: Any) -> None:
    """As that agent; returns when it was routed."""
    await as_agent(house, agent, "event_emit", event=event, data=data)
    await house.until(lambda: house.rows("SELECT * FROM outbox") == [])


def levels(house: Any, agent: str) -> tuple[Any, ...]:
    found = house.rows(
        "SELECT subscription_level, error_level, wake, routing_level FROM agent WHERE agent_id = ?", agent
    )
    return tuple(found[0])


async def history(house: Any, agent: str) -> list[tuple[str, list[str]]]:
    turns = (await house.call("agent_history", agent=agent))["turns"]
    return [(turn["prompt"], turn.get("injected", [])) for turn in turns]


async def test_a_parent_is_told_before_its_next_turn_what_its_child_emitted(open_house) -> None:
    async with open_house(ECHO) as house:
        parent = await house.spawn("parent", ("base",))
        child = await house.spawn("child", ("base",), parent=parent)
        await emit(house, child, found=3)
        await emit(house, child, found=4)
        assert house.rows("SELECT COUNT(*) FROM turn") == [(0,)]
        await house.ask(parent, "now")
        await house.ask(parent, "and now")
        (first, notices), second = await history(house, parent)
        assert (first, second) == ("now", ("and now", []))
        (notice,) = notices
        assert notice.splitlines()[1:] == [
            f'- note:made of child ({child}): {{"found": 3}}',
            f'- note:made of child ({child}): {{"found": 4}}',
        ]
        assert house.rows("SELECT * FROM heard") == []
        house.books()


async def test_a_turn_that_is_tried_again_is_told_the_same(open_house) -> None:
    script = {
        "replies": [{"match": {"prompt": "now"}, "fail": {"kind": "overload", "times": 1}}],
        "default": {"reply": "ok"},
    }
    async with open_house(script) as house:
        parent = await house.spawn("parent", ("base",))
        child = await house.spawn("child", ("base",), parent=parent)
        await emit(house, child, found=3)
        sent = await house.call("agent_send", agent=parent, message="now")
        await house.until(lambda: bool(house.events("completion:retrying")))
        await emit(house, child, found=4)
        house.gate.ahead_ms += 120_000
        house.app.services.journal.rung()
        done = await house.call("agent_wait", turns=[sent["turn"]], timeout_s=20)
        assert done["turns"][0]["attempts"] == 2
        ((_, notices),) = await history(house, parent)
        assert '"found": 3' in notices[0]
        assert '"found": 4' not in notices[0]
        assert len(house.rows("SELECT * FROM heard")) == 1


async def test_a_failed_turn_below_is_heard_and_a_finished_one_is_not(open_house) -> None:
    script = {"replies": [{"match": {"prompt": "bad"}, "fail": {"kind": "request"}}], "default": {"reply": "ok"}}
    async with open_house(script) as house:
        parent = await house.spawn("parent", ("base",))
        child = await house.spawn("child", parent=parent)
        grandchild = await house.spawn("grandchild", parent=child)
        assert (await house.ask(grandchild, "good"))["text"] == "ok"
        assert (await house.ask(grandchild, "bad"))["status"] == "failed"
        await house.until(lambda: house.rows("SELECT * FROM outbox") == [])
        heard = house.rows("SELECT agent_id, name, source_agent FROM heard ORDER BY agent_id = ?", parent)
        assert heard == [(agent, "completion:failed", grandchild) for agent in (child, parent)]


async def test_a_waking_agent_begins_a_turn_of_its_own_that_is_told(open_house) -> None:
    async with open_house(ECHO) as house:
        parent = await house.spawn("parent", ("base",))
        child = await house.spawn("child", ("base",), parent=parent)
        await house.call("routing_update_subscription", agent=parent, level=1, wake=True)
        await emit(house, child, found=3)
        await house.until(lambda: house.rows("SELECT state FROM turn") == [("done",)])
        ((prompt, notices),) = await history(house, parent)
        assert "Nobody waits for this reply" in prompt
        assert '"found": 3' in notices[0]


async def test_a_subscription_is_changed_at_once_and_the_change_is_audited(open_house) -> None:
    async with open_house(ECHO) as house:
        parent = await house.spawn("parent", ("base",))
        child = await house.spawn("child", ("base",), parent=parent)
        done = await house.call("routing_update_subscription", agent="parent", level=0, reason="too much noise")
        assert done == {
            "agent": parent, "name": "parent", "level": 0, "error_level": -1, "wake": False,
            "was": {"level": 1, "error_level": -1, "wake": False},
        }  # fmt: skip
        await emit(house, child)
        assert house.rows("SELECT * FROM heard") == []
        again = await house.call("routing_update_subscription", agent="parent", level=0)
        assert "was" not in again
        (event,) = house.events("routing:subscription_changed")
        assert event == {
            "agent": parent, "name": "parent", "by": "operator", "reason": "too much noise",
            "was": {"level": 1, "error_level": -1, "wake": False},
            "now": {"level": 0, "error_level": -1, "wake": False},
        }  # fmt: skip
        shown = await house.call("agent_get", agent="parent")
        assert shown["subscription_level"] == 0
        assert shown.keys().isdisjoint({"error_level", "wake", "routing_level"})


async def test_published_calls_change_it_by_the_command_event(open_house) -> None:
    async with open_house(ECHO) as house:
        parent = await house.spawn("parent", ("base",))
        published = {"agent_id": "parent", "subscription_level": "-1", "reason": "see all"}
        await house.call("event_emit", event="routing:update_subscription", data=published)
        assert levels(house, parent)[0] == -1


@pytest.mark.parametrize(
    ("args", "failure", "message"),
    [
        ({"agent": "a", "level": -2}, Invalid, "level"),
        ({"agent": "a", "level": 21}, Invalid, "level"),
        ({"agent": "a", "level": 1.5}, Invalid, "level"),
        ({"agent": "a", "level": 10**40}, Invalid, "level"),
        ({"agent": "a"}, Invalid, "missing parameter 'level'"),
        ({"agent": "a", "level": 1, "error_level": -5}, Invalid, "error_level"),
        ({"agent": "a", "level": 1, "reason": "x" * 2001}, Invalid, "reason"),
        ({"agent": "a", "level": 1, "routing_level": "global"}, Invalid, "unknown parameter 'routing_level'"),
        ({"agent": "nobody", "level": 1}, NotFound, "unknown agent 'nobody'"),
        ({"agent": "gone", "level": 3}, Conflict, "agent 'gone' is terminated"),
    ],
)
async def test_what_cannot_be_is_refused_and_nothing_is_changed(
    open_house, args: dict[str, Any], failure: type[KsiError], message: str
) -> None:
    async with open_house(ECHO) as house:
        await house.spawn("a")
        await house.spawn("gone")
        await house.call("agent_terminate", agent="gone")
        before = house.rows("SELECT agent_id, subscription_level, error_level, wake FROM agent")
        with pytest.raises(failure, match=message):
            await house.call("routing_update_subscription", **args)
        assert house.rows("SELECT agent_id, subscription_level, error_level, wake FROM agent") == before
        assert house.events("routing:subscription_changed") == []


REACHED = {
    "none": set(),
    "self": {"own"},
    "children": {"own", "child", "grandchild"},
    "orchestration": {"own", "child", "grandchild", "sibling"},
    "global": {"own", "child", "grandchild", "sibling", "elsewhere"},
}


@pytest.mark.parametrize("tool", ["routing_update_subscription", "agent_update"])
@pytest.mark.parametrize("level", list(REACHED))
async def test_an_agent_changes_only_what_those_hear_whom_its_level_covers(open_house, level: str, tool: str) -> None:
    async with open_house(ECHO) as house:
        for run in ("o_1", "o_2"):
            await house.run(run)
        top = await house.spawn("top", ROUTES, orchestration="o_1", routing={"routing_level": "global"})
        own = await house.spawn("own", ROUTES, parent=top, routing={"routing_level": level})
        agents = {"own": own, "child": await house.spawn("child", parent=own)}
        agents["grandchild"] = await house.spawn("grandchild", parent=agents["child"])
        agents["sibling"] = await house.spawn("sibling", parent=top)
        agents["elsewhere"] = await house.spawn("elsewhere", orchestration="o_2")
        below = {"own", "child", "grandchild"}
        for name, agent in agents.items():
            wanted = {"level": 5} if tool == "routing_update_subscription" else {"subscription_level": 5}
            allowed = REACHED[level] & (below if tool == "agent_update" else set(agents))
            before = levels(house, agent)
            audited = len(house.events("routing:subscription_changed"))
            if name in allowed:
                await as_agent(house, own, tool, agent=agent, **wanted)
                assert levels(house, agent)[0] == 5
                assert len(house.events("routing:subscription_changed")) == audited + 1
                continue
            refused = len(house.events("system:refused"))
            with pytest.raises((Refused, NotFound)) as failure:
                await as_agent(house, own, tool, agent=agent, **wanted)
            assert levels(house, agent) == before
            assert len(house.events("routing:subscription_changed")) == audited
            seen = not isinstance(failure.value, NotFound)
            assert len(house.events("system:refused")) == refused + seen


async def test_without_routing_control_an_agent_changes_nothing_not_even_its_own(open_house) -> None:
    async with open_house(ECHO) as house:
        own = await house.spawn("own", ("base", "spawn_agents"))
        for tool, wanted in (("routing_update_subscription", "level"), ("agent_update", "wake")):
            with pytest.raises(Refused):
                await as_agent(house, own, tool, agent=own, **{wanted: 1 if wanted == "level" else True})
        assert levels(house, own) == (1, -1, 0, "none")


async def test_an_agent_is_given_levels_by_agent_update_never_more_than_those_above_it_have(open_house) -> None:
    async with open_house(ECHO) as house:
        boss = await house.spawn("boss", ROUTES, routing={"routing_level": "orchestration"})
        child = await house.spawn("child", ROUTES, parent=boss)
        grandchild = await house.spawn("grandchild", ROUTES, parent=child)
        plain = await house.spawn("plain", parent=boss)
        with pytest.raises(Refused, match="parent 'boss' cannot grant routing_level 'global'"):
            await house.call("agent_update", agent=child, routing_level="global")
        with pytest.raises(Refused, match="cannot grant routing_level 'orchestration'"):
            await as_agent(house, child, "agent_update", agent=child, routing_level="orchestration")
        with pytest.raises(Invalid, match="needs the capability routing_control"):
            await house.call("agent_update", agent=plain, routing_level="self")
        assert [levels(house, agent)[3] for agent in (child, grandchild, plain)] == ["children", "children", "none"]
        done = await house.call("agent_update", agent=child, routing_level="ORCHESTRATION", error_level=2, wake=True)
        assert (done["routing_level"], done["error_level"], done["wake"]) == ("orchestration", 2, True)
        done = await house.call("agent_update", agent=boss, routing_level="self")
        assert done["cut"] == [child, grandchild]
        assert [levels(house, agent)[3] for agent in (boss, child, grandchild)] == ["self"] * 3
        done = await house.call("agent_update", agent=boss, capabilities=["base", "spawn_agents"])
        assert [levels(house, agent)[3] for agent in (boss, child, grandchild)] == ["none"] * 3
        done = await house.call("agent_update", agent=boss, capabilities=list(ROUTES))
        assert levels(house, boss)[3] == "children"


async def test_a_successor_hears_what_its_predecessor_heard_and_as_far(open_house) -> None:
    async with open_house(ECHO) as house:
        top = await house.spawn("top", ROUTES, routing={"routing_level": "orchestration"})
        old = await house.spawn("old", ROUTES, parent=top, routing={"routing_level": "orchestration"})
        child = await house.spawn("child", ("base",), parent=old)
        await house.call("routing_update_subscription", agent=old, level=7, error_level=3)
        await emit(house, child, found=3)
        new = (await house.call("agent_respawn", agent=old))["agent"]
        assert levels(house, new) == (7, 3, 0, "orchestration")
        assert house.rows("SELECT agent_id FROM heard WHERE name = 'note:made'") == [(new,)]
        await house.ask(new, "now")
        ((_, notices),) = await history(house, new)
        assert '"found": 3' in notices[0]


async def test_what_was_heard_goes_with_an_agent_that_ends(open_house) -> None:
    async with open_house(ECHO) as house:
        parent = await house.spawn("parent", ("base",))
        child = await house.spawn("child", ("base",), parent=parent)
        await emit(house, child)
        assert len(house.rows("SELECT * FROM heard")) == 1
        await house.call("agent_terminate", agent="parent")
        assert house.rows("SELECT * FROM heard") == []


@pytest.mark.parametrize("into", ["same", "new"])
async def test_a_checkpoint_keeps_the_levels_and_what_was_heard_and_not_told(open_house, into: str) -> None:
    async with open_house(ECHO) as house:
        await house.run("o_1")
        boss = await house.spawn(
            "boss", ROUTES, orchestration="o_1", routing={"routing_level": "orchestration", "subscription_level": 4}
        )
        child = await house.spawn("child", ("base",), parent=boss)
        await emit(house, child, found=3)
        kept = await house.call("checkpoint_create", orchestration="o_1")
        await house.ask(boss, "now")
        await emit(house, child, found=4)
        await house.call("agent_update", agent=boss, routing_level="self", subscription_level=0, wake=True)
        put = await house.call("checkpoint_restore", checkpoint=kept["checkpoint"], into=into)
        run = put["orchestration"]
        ((back,),) = house.rows("SELECT agent_id FROM agent WHERE name = 'boss' AND orchestration_id = ?", run)
        assert levels(house, back) == (4, -1, 0, "orchestration")
        ((text, source),) = house.rows("SELECT text, source_agent FROM heard WHERE agent_id = ?", back)
        assert text == '{"found": 3}'
        ((emitter,),) = house.rows("SELECT agent_id FROM agent WHERE name = 'child' AND orchestration_id = ?", run)
        assert source == emitter
        await house.call("orchestration_resume", orchestration=run)
        await house.ask(back, "once more")
        prompt, notices = (await history(house, back))[-1]
        assert prompt == "once more"
        assert '"found": 3' in notices[0]
        assert "4" not in notices[0].partition("found")[2]
