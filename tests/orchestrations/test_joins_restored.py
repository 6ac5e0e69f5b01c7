from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ksi_mcp.orchestrations import snapshot
from ksi_mcp.permissions import agent_actor, fresh_context

JOIN = {"all_of": ["draft:done", "review:done"], "by": "{{data.task}}"}
SCOPE = "orchestration:o_1"


def collections(house: Any) -> list[tuple[Any, ...]]:
    """Of each collection: whose run, its key, and what it has."""
    sql = (
        "SELECT join_open.orchestration_id, join_open.key, json_group_array(part) FROM join_open "
        "JOIN join_part USING (rule_id, key) GROUP BY 1, 2 ORDER BY 1, 2"
    )
    return [(run, key, json.loads(parts)) for run, key, parts in house.rows(sql)]


async def settled(house: Any) -> None:
    await house.until(lambda: house.rows("SELECT * FROM outbox") == [])


async def emit(house: Any, event: str, run: str = "o_1", **data: Any) -> None:
    await house.call("event_emit", event=event, data=data, orchestration=run)
    await settled(house)


async def said(house: Any, agent: str, run: str, **data: Any) -> None:
    ctx = replace(fresh_context(agent_actor(agent)), orchestration_id=run)
    await house.app.toolbox.call(ctx, "event_emit", {"event": "say:hello", "data": data})
    await settled(house)


def parts_of(house: Any, name: str) -> list[tuple[str, dict[str, Any]]]:
    return [(each["key"], each["parts"]) for each in house.events(name)]


async def test_a_run_goes_back_to_what_its_joins_had_collected(open_house) -> None:
    async with open_house({}) as house:
        await house.run("o_1")
        rule = {"source_pattern": "*:done", "scope": SCOPE}
        await house.call(
            "routing_add_rule", rule_id="timed", target="all:there", join={**JOIN, "timeout_s": 600}, **rule
        )
        await house.call("routing_add_rule", rule_id="always", target="all:too", join=JOIN, **rule)
        await emit(house, "draft:done", task="kept", n=1)
        await emit(house, "draft:done", task="kept", n=2)
        await house.call("checkpoint_create", orchestration="o_1", label="half")
        await emit(house, "review:done", task="kept", n=3)
        await emit(house, "draft:done", task="later")
        assert len(house.events("all:there")) == len(house.events("all:too")) == 1
        await house.call("checkpoint_restore", orchestration="o_1", checkpoint="half")
        assert collections(house) == [("o_1", "kept", ["draft:done"] * 4)]
        times = dict(house.rows("SELECT rule_id, remaining_ms FROM join_open WHERE due_ms IS NULL"))
        assert times["always"] == -1
        assert 500_000 < times["timed"] <= 600_000
        await house.call("orchestration_resume", orchestration="o_1")
        dues = dict(house.rows("SELECT rule_id, due_ms - opened_at_ms FROM join_open"))
        assert dues["always"] is None
        assert 599_900 <= dues["timed"] <= 600_100
        await emit(house, "review:done", task="kept", n=4)
        parts = {"draft:done": {"task": "kept", "n": 1}, "review:done": {"task": "kept", "n": 4}}
        assert parts_of(house, "all:there")[-1] == parts_of(house, "all:too")[-1] == ("kept", parts)
        await emit(house, "review:done", task="kept", n=5)
        assert parts_of(house, "all:there")[-1][1]["draft:done"]["n"] == 2


async def test_what_is_made_of_a_checkpoint_goes_on_collecting_for_itself(open_house) -> None:
    async with open_house({}) as house:
        await house.run("o_1")
        ada = await house.spawn("ada", ("base",), orchestration="o_1")
        bob = await house.spawn("bob", ("base",), orchestration="o_1")
        join = {"all_of": [f"agent:{ada}", f"agent:{bob}"], "timeout_s": 600}
        await house.call(
            "routing_add_rule", source_pattern="say:*", target=["agent:bob", "all:there"], join=join, scope=SCOPE
        )
        await said(house, ada, "o_1", n=1)
        await house.call("checkpoint_create", orchestration="o_1", label="half")
        made = await house.call("checkpoint_restore", orchestration="o_1", checkpoint="half", into="new")
        run = made["orchestration"]
        names = dict(house.rows("SELECT name, agent_id FROM agent WHERE orchestration_id = ?", run))
        assert collections(house) == sorted([("o_1", "", [f"agent:{ada}"]), (run, "", [f"agent:{names['ada']}"])])
        [(target, spec)] = house.rows("SELECT target, join_spec FROM rule WHERE orchestration_id = ?", run)
        assert json.loads(target) == [f"agent:{names['bob']}", "all:there"]
        assert json.loads(spec)["all_of"] == [f"agent:{names[name]}" for name in ("ada", "bob")]
        await house.call("orchestration_resume", orchestration=run)
        await said(house, names["bob"], run, n=2)
        [(_, parts)] = parts_of(house, "all:there")
        assert parts == {f"agent:{names['ada']}": {"n": 1}, f"agent:{names['bob']}": {"n": 2}}
        assert collections(house) == [("o_1", "", [f"agent:{ada}"])]


async def test_a_checkpoint_of_an_older_version_has_no_joins(open_house) -> None:
    async with open_house({}) as house:
        await house.run("o_1")
        await house.call("checkpoint_create", orchestration="o_1")
        [(stored,)] = house.rows("SELECT snapshot FROM checkpoint")
        fields = json.loads(stored)
        del fields["joins"]
        assert snapshot.decode(json.dumps(fields)).joins == []
