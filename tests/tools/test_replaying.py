from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from ksi_mcp.errors import Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, READER, Actor, agent_actor, fresh_context

OpenHouse = Callable[..., AbstractAsyncContextManager[Any]]


async def test_a_proposed_table_is_tried_on_what_happened_and_nothing_is_changed(open_house: OpenHouse) -> None:
    async with open_house({"default": {"reply": "done"}}) as house:
        house.gate.opened.set()
        worker = await house.spawn("worker")
        other = await house.spawn("other")
        await house.call("routing_add_rule", rule_id="work", source_pattern="task:new", target=f"agent:{worker}")
        await house.call(
            "routing_add_rule", rule_id="report", source_pattern="completion:result", source_agent=worker,
            target="report:made", mapping={"said": "{{data.text}}"},
        )  # fmt: skip
        first = (await house.call("event_emit", event="task:new", data={"n": 1}))["event_id"]
        await house.call("event_wait", names=["report:made"], since=first, timeout_s=10)
        await house.app.run_until_idle(0.05)
        ((last,),) = house.rows("SELECT MAX(event_id) FROM event")

        same = await house.call("event_replay", from_event=first, to_event=last)
        assert same["complete"] is True
        assert same["differences"] == []
        assert (same["census"]["before"], same["census"]["after"]) == (2, 2)

        changes = [
            {"op": "modify", "rule_id": "work", "updates": {"target": f"agent:{other}"}},
            {"op": "add", "rule_id": "loud", "pattern": "completion:result", "target": "loud:made",
             "mapping": {"who": "{{data.agent_name}}", "said": "{{data.text}}"}},
        ]  # fmt: skip
        asked = {"from_event": first, "to_event": last, "changes": changes}
        asked["script"] = {"replies": [{"match": {"agent": "other"}, "reply": "I am other"}]}
        before = house.rows("SELECT * FROM rule ORDER BY rule_id")
        found = await house.call("event_replay", **asked)
        again = await house.call("event_emit", event="replay", data=asked)
        assert again["result"] == found
        assert house.rows("SELECT * FROM rule ORDER BY rule_id") == before
        assert house.rows("SELECT MAX(event_id) FROM event") == [(last,)]
        shown = [(each["kind"], each["rule_id"], each["target"]) for each in found["differences"]]
        assert shown == [
            ("added", "work", f"agent:{other}"), ("removed", "work", f"agent:{worker}"), ("added", "loud", "loud:made"),
        ]  # fmt: skip
        assert found["differences"][2]["payload"] == {"who": "other", "said": "I am other"}
        assert found["differences"][1]["cut_off"] >= 3  # the queued turn, its result, the report
        assert found["changes"] == 2

        bare = await house.call("event_replay", **{**asked, "limit": 0})
        assert (bare["differences"], bare["left_out"], bare["digest"]) == ([], 3, found["digest"])


async def test_an_agent_replays_only_what_it_sees_and_proposes_only_what_it_may(open_house: OpenHouse) -> None:
    async with open_house() as house:
        house.gate.opened.set()
        plain = await house.spawn("plain", ("base",))
        wired = await house.spawn("wired", ("base", "routing_control"))
        await house.call("routing_add_rule", rule_id="all", source_pattern="task:**", target="log:seen")
        await house.call(
            "routing_add_rule", rule_id="secret", source_pattern="task:new", target="log:secret", scope=f"agent:{wired}"
        )
        first = (await house.call("event_emit", event="task:new", data={"key": "of the operator"}))["event_id"]
        as_plain, as_wired = (fresh_context(agent_actor(agent)) for agent in (plain, wired))
        own = (await house.app.toolbox.call(as_plain, "event_emit", {"event": "task:new", "data": {"n": 1}})).data
        await house.app.run_until_idle(0.05)
        ((last,),) = house.rows("SELECT MAX(event_id) FROM event")
        await house.call("routing_delete_rule", rule_id="all")
        await house.call("routing_delete_rule", rule_id="secret")
        asked: dict[str, Any] = {"from_event": first, "to_event": last}

        whole = await house.call("event_replay", **asked)
        assert whole["census"]["removed"] == 4
        mine = (await house.app.toolbox.call(as_plain, "event_replay", asked)).data
        assert [(each["event_id"], each["rule_id"]) for each in mine["differences"]] == [(own["event_id"], "all")]
        assert "of the operator" not in json.dumps(mine)

        change = {"op": "add", "source_pattern": "task:new", "target": "log:mine"}
        with pytest.raises(Refused, match="routing_control"):
            await house.app.toolbox.call(as_plain, "event_replay", {**asked, "changes": [change]})
        with pytest.raises(Refused, match="global"):
            await house.app.toolbox.call(
                as_wired, "event_replay", {**asked, "changes": [{**change, "scope": "global"}]}
            )
        tried = (await house.app.toolbox.call(as_wired, "event_replay", {**asked, "changes": [change]})).data
        assert tried["census"]["added"] == 0  # its rule hears its own events only, and it emitted none


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"from_event": 0}, Invalid),
        ({"from_event": -1}, Invalid),
        ({"from_event": 2**63}, Invalid),
        ({"from_event": 10**9, "to_event": 10**9}, Invalid),
        ({"from_event": 3, "to_event": 2}, Invalid),
        ({"at_version": -1}, Invalid),
        ({"at_version": 10**6}, Invalid),
        ({"orchestration": "o_nobody"}, NotFound),
        ({"changes": [{"op": "rename", "rule_id": "r"}]}, Invalid),
        ({"changes": [{"op": "delete", "rule_id": "nobody"}]}, NotFound),
        ({"changes": [{"op": "add", "source_pattern": "a:b", "target": "agent:spawn"}]}, Refused),
        ({"changes": [{"op": "add", "source_pattern": "a:b", "target": "c:d", "condition": "9**9**9"}]}, Invalid),
        ({"changes": [{"op": "add", "source_pattern": "a:b", "target": "c:d", "condition": "(" * 10_000}]}, Invalid),
        ({"changes": [{"op": "add", "source_pattern": "a:b", "target": "c:d"}] * 201}, Invalid),
        ({"script": {"replies": [{"match": {"prompt": "/(a+)+/"}, "reply": "x"}]}}, Invalid),
        ({"script": {"replies": "no"}}, Invalid),
    ],
)
async def test_what_makes_no_sense_is_refused(
    open_house: OpenHouse, args: dict[str, Any], error: type[KsiError]
) -> None:
    async with open_house() as house:
        await house.call("event_emit", event="task:new")
        await house.app.run_until_idle(0.01)
        with pytest.raises(error) as caught:
            await house.call("event_replay", **{"from_event": 1, "to_event": 1, **args})
        assert caught.value.hint
        assert len(caught.value.message) < 1_000


async def test_only_the_operators_script_may_hold_what_could_keep_the_server_busy_for_ever(
    open_house: OpenHouse,
) -> None:
    endless = {"replies": [{"match": {"prompt": "/(a|a)*c/"}, "reply": "x"}]}
    async with open_house() as house:
        worker = await house.spawn("worker", capabilities=["base"])
        await house.call("event_emit", event="task:new")
        await house.app.run_until_idle(0.01)

        async def replay(actor: Actor, script: dict[str, Any]) -> Any:
            asked = {"from_event": 1, "to_event": 1, "script": script}
            return await house.app.toolbox.call(fresh_context(actor), "event_replay", asked)

        for actor in (READER, agent_actor(worker)):
            with pytest.raises(Refused, match="only the operator's scripts"):
                await replay(actor, endless)
        assert (await replay(READER, {"replies": [{"match": {"prompt": "a/b"}, "reply": "x"}]})).data["digest"]
        assert (await replay(OPERATOR, endless)).data["digest"]


async def test_a_long_range_is_cut_where_it_ends_and_says_so(
    open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ksi_mcp.routing.recording.MAX_EVENTS", 20)
    async with open_house() as house:
        await asyncio.gather(*(house.call("event_emit", event="task:new", data={"n": n}) for n in range(30)))
        await house.app.run_until_idle(0.05)
        part = await house.call("event_replay", from_event=1, to_event=30)
        rest = await house.call("event_replay", from_event=part["to_event"] + 1, to_event=30)
    assert (part["complete"], part["to_event"], part["census"]["events"]) == (False, 20, 20)
    assert "go on from there" in part["missing"][0]
    assert (rest["complete"], rest["census"]["events"]) == (True, 10)


async def test_what_an_exclusive_rule_of_a_parents_keeps_from_its_child_stays_so_in_a_replay(
    open_house: OpenHouse,
) -> None:
    async with open_house() as house:
        able = ("base", "routing_control")
        boss, kid = await house.spawn("boss", able), await house.spawn("kid", able, parent="boss")

        async def act(agent: str, tool: str, **args: Any) -> dict[str, Any]:
            return dict((await house.app.toolbox.call(fresh_context(agent_actor(agent)), tool, args)).data)

        first = {"source_agent": kid, "target": "log:first", "exclusive": True, "priority": 900}
        await act(boss, "routing_add_rule", rule_id="first", source_pattern="w:*", **first)
        await act(kid, "routing_add_rule", rule_id="own", source_pattern="w:*", target="log:own")
        event_id = (await act(kid, "event_emit", event="w:x"))["event_id"]
        await house.until(lambda: house.rows("SELECT * FROM outbox") == [])
        found = await house.call("event_replay", from_event=event_id, to_event=event_id)
        assert (found["differences"], found["census"]["same"]) == ([], 1)
