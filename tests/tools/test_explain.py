from __future__ import annotations

import json
from typing import Any

import pytest

from ksi_mcp.errors import Conflict, NotFound
from ksi_mcp.permissions import agent_actor, fresh_context
from ksi_mcp.tools.bounding import MAX_RESULT_CHARS


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


async def test_an_answer_about_very_many_rules_is_not_cut_in_the_middle(open_house) -> None:
    async with open_house() as house:
        for name, more in (("fires", {}), ("loses", {"condition": "data.x == 2"}), ("fails", {"condition": "data.y"})):
            rules = [
                {"op": "add", "rule_id": f"{name}.{n}", "source_pattern": "big:one", "target": f"log:{n}", **more}
                for n in range(150)
            ]
            await house.call("routing_apply", changes=rules)
        sent = await house.call("event_emit", event="big:one", data={"x": 1, "text": "x" * 10_000})
        assert (len(sent["matched_rules"]), sent["delivered"], sent["rules_left_out"]) == (100, 150, 100)
        assert len(json.dumps(sent)) < MAX_RESULT_CHARS
        await settled(house)
        told = await house.call("routing_explain", event_id=sent["event_id"])
        assert len(json.dumps(told)) < MAX_RESULT_CHARS
        assert told["data"].startswith('{"x": 1, "text": "xxx')
        for kind, count in (("fires", 150), ("not_firing", 300), ("delivered", 150)):
            assert len(told[kind]) + told["left_out"][kind] >= count, kind
        assert told["fires"][0]["rule_id"] == "fires.0"


async def test_what_many_large_changes_come_to_and_would_have_come_to_is_not_cut_in_the_middle(open_house) -> None:
    async with open_house() as house:
        event_id = await emitted(house, "big:one", text="x" * 5_000)
        rule = {"op": "add", "source_pattern": "big:one"}
        changes = [{**rule, "target": f"log:{n}", "metadata": {"why": "y" * 3_000}} for n in range(100)]
        range_ = {"from_event": event_id, "to_event": event_id, "limit": 500}
        found = await house.call("event_replay", **range_, changes=changes)
        assert len(found["differences"]) + found["left_out"] == found["census"]["added"] == 100
        made = await house.call("routing_apply", changes=changes)
        assert len(made["rules"]) + made["left_out"] == 100
        assert max(len(json.dumps(found)), len(json.dumps(made))) < MAX_RESULT_CHARS


async def test_in_safe_mode_no_dead_letter_is_redriven(open_house) -> None:
    async with open_house() as house:
        mapping = {"mapping": {"n": "{{data.n}}"}}
        await house.call("routing_add_rule", rule_id="r", source_pattern="a:b", target="log:x", **mapping)
        await emitted(house, "a:b")
        await house.call("routing_modify_rule", rule_id="r", updates={"mapping": None})
        journal, router = house.app.services.journal, house.app.services.router
        await journal.commit(lambda tx: router.set_paused(tx, paused=True))
        with pytest.raises(Conflict, match="safe mode"):
            await house.call("routing_redrive", rule_id="r")
        assert (await house.call("routing_redrive", rule_id="r", dry_run=True))["ok"] == 1
        assert house.events("log:x", "routing:redriven") == []
        await journal.commit(lambda tx: router.set_paused(tx, paused=False))
        assert (await house.call("routing_redrive", rule_id="r"))["ok"] == 1
