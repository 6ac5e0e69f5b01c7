from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import NotFound
from ksi_mcp.permissions import agent_actor, fresh_context


async def settled(house: Any) -> None:
    await house.until(lambda: house.rows("SELECT * FROM outbox") == [])


async def emitted(house: Any, event: str, **data: Any) -> int:
    made = await house.call("event_emit", event=event, data=data)
    await settled(house)
    return int(made["event_id"])


async def test_of_a_recorded_event_it_is_told_what_it_was_and_where_it_went(open_house) -> None:
    async with open_house({}) as house:
        ada = await house.spawn("ada")
        add = "routing_add_rule"
        await house.call(
            add, rule_id="fan", source_pattern="job:*", target=["log:seen", "agent:ada"], mapping={"n": "{{data.n}}"}
        )
        await house.call(add, rule_id="big", source_pattern="job:*", target="log:big", condition="data.n > 9")
        event_id = await emitted(house, "job:new", n=7, secret="s")
        told = await house.call("routing_explain", event_id=event_id)
        assert told["data"] == {"n": 7, "secret": "s"}
        assert [each["payload"] for each in told["fires"]] == [{"n": 7}]
        assert [(each["rule_id"], each["outcome"]) for each in told["not_firing"]] == [("big", "condition_false")]
        event, turn = told["delivered"]
        assert (event["outcome"], event["rule_id"], event["target"]) == ("delivered", "fan", "log:seen")
        [seen] = (await house.call("event_query", names=["log:seen"]))["events"]
        assert event["new_event_id"] == seen["event_id"]
        assert (turn["target"], turn["outcome"]) == (f"agent:{ada}", "delivered")
        assert house.rows("SELECT cause_id FROM turn WHERE turn_id = ?", turn["turn"]) == [(f"event:{event_id}",)]
        assert "table_changed_since" not in told

        await house.call("routing_modify_rule", rule_id="big", updates={"condition": None})
        await house.call("routing_delete_rule", rule_id="fan")
        told = await house.call("routing_explain", event_id=event_id)
        assert told["table_changed_since"] == ["big", "fan"]
        assert [each["rule_id"] for each in told["fires"]] == ["big"]  # by the table as it is
        assert [each["rule_id"] for each in told["delivered"]] == ["fan", "fan"]  # as it was


async def test_an_imagined_event_went_nowhere(open_house) -> None:
    async with open_house({}) as house:
        await house.call("routing_add_rule", source_pattern="job:*", target={"round_robin": ["log:a", "log:b"]})
        told = await house.call("routing_explain", event="job:new", data={})
        assert told["fires"][0]["reason"] == "to log:a"
        assert told["fires"][0]["target"] == "round_robin(log:a, log:b)"
        assert not {"data", "delivered", "table_changed_since", "not_delivered_yet"} & set(told)


async def test_an_agent_is_told_of_its_own_events_only(open_house) -> None:
    async with open_house({}) as house:
        ctx = fresh_context(agent_actor(await house.spawn("ada", ("base",))))
        event_id = await emitted(house, "job:new")
        with pytest.raises(NotFound):
            await house.app.toolbox.call(ctx, "routing_explain", {"event_id": event_id})
        made = await house.app.toolbox.call(ctx, "event_emit", {"event": "job:mine", "data": {}})
        await settled(house)
        told = await house.app.toolbox.call(ctx, "routing_explain", {"event_id": made.data["event_id"]})
        assert told.data["delivered"] == []


async def test_who_emits_hears_how_many_deliveries_are_due_and_which_rules_cannot_deliver(open_house) -> None:
    async with open_house() as house:
        for name in ("a", "b"):
            await house.spawn(name)
        fan = {"rule_id": "fan", "source_pattern": "note:*", "target": ["agent:a", "agent:b", "log:seen"]}
        join = {"all_of": ["note:x", "note:y"]}
        await house.call("routing_add_rule", **fan)
        await house.call(
            "routing_add_rule", rule_id="one", source_pattern="note:*", target={"round_robin": ["l:a", "l:b"]}
        )
        await house.call("routing_add_rule", rule_id="both", source_pattern="note:*", target="l:c", join=join)
        missing = {"source_pattern": "other:*", "target": "l:d", "mapping": {"n": "{{data.n}}"}}
        await house.call("routing_add_rule", rule_id="bad", **missing)
        sent = await house.call("event_emit", event="note:x")
        assert (sent["matched_rules"], sent["delivered"]) == (["both", "fan", "one"], 4)
        sent = await house.call("event_emit", event="other:x")
        assert (sent["matched_rules"], sent["delivered"], sent["unheard"]) == ([], 0, True)
        (failing,) = sent["failing"]
        assert failing.startswith("bad: ")
        assert "data.n" in failing
