"""Looking at the table and mending what went wrong, as a client or an agent does it."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.errors import Invalid, NotFound, Refused
from ksi_mcp.permissions import agent_actor, fresh_context
from ksi_mcp.tools import routing_view

ROUTES = ("base", "routing_control")


async def act(house: Any, actor: str, tool: str, /, **args: Any) -> dict[str, Any]:
    return (await house.app.toolbox.call(fresh_context(agent_actor(actor)), tool, args)).data


async def rule(house: Any, pattern: str, target: Any, **more: Any) -> str:
    return str((await house.call("routing_add_rule", source_pattern=pattern, target=target, **more))["rule_id"])


async def emit(house: Any, event: str, actor: str | None = None, **data: Any) -> None:
    if actor is None:
        await house.call("event_emit", event=event, data=data)
    else:
        await act(house, actor, "event_emit", event=event, data=data)
    await house.until(lambda: house.rows("SELECT * FROM outbox") == [])


# ------------------------------------------------------------------------------------ the picture


async def test_the_table_is_drawn_as_text_and_as_json(open_house) -> None:
    async with open_house() as house:
        ada = await house.spawn("ada")
        one = await rule(house, "task:new", "log:seen", condition="data.x > 1")
        await rule(house, "log:*", f"agent:{ada}", priority=7)
        drawn = await house.call("routing_graph")
        assert drawn["rules"] == 2
        assert drawn["mermaid"].startswith("flowchart LR\n")
        assert f"ada {ada}" in drawn["mermaid"]
        listed = await house.call("routing_graph", format="json")
        assert {node["label"] for node in listed["nodes"]} == {"task:new", "log:seen", "log:*", f"ada {ada}"}
        [edge] = [edge for edge in listed["edges"] if edge.get("rule_id") == one]
        assert (edge["kind"], edge["condition"], edge["priority"]) == ("rule", "data.x > 1", 100)
        assert "hears" in {edge["kind"] for edge in listed["edges"]}
        only = await house.call("routing_graph", agent="ada", format="json")
        assert only["rules"] == 1
        few = await house.call("routing_graph", limit=1)
        assert (few["rules"], few["left_out"]) == (1, 1)
        assert few["mermaid"].endswith("%% left out: 1 rules, 0 edges")


async def test_a_picture_that_would_be_too_long_has_fewer_rules_and_says_so(open_house, monkeypatch) -> None:
    monkeypatch.setattr(routing_view, "MAX_TEXT_CHARS", 2_000)
    async with open_house() as house:
        for i in range(40):
            await rule(house, f"task:x{i}", f"log:x{i}")
        for form in ("mermaid", "json"):
            drawn = await house.call("routing_graph", format=form)
            assert 0 < drawn["rules"] < 40
            assert drawn["rules"] + drawn["left_out"] == 40


async def test_an_agent_sees_in_the_picture_what_it_sees_in_the_table(open_house) -> None:
    async with open_house() as house:
        agent, other = await house.spawn("a", ROUTES), await house.spawn("other")
        await rule(house, "task:a", f"agent:{agent}")
        await rule(house, "task:b", f"agent:{other}", scope=f"agent:{other}", condition="'secret' in data")
        own = await act(house, agent, "routing_graph", format="json")
        listed = await act(house, agent, "routing_query_rules")
        assert own["rules"] == len(listed["rules"]) == 1
        assert "secret" not in str(own)
        assert other not in str(own)
        with pytest.raises(NotFound):
            await act(house, agent, "routing_graph", agent=other)
        with pytest.raises(NotFound):
            await act(house, agent, "routing_graph", orchestration="o_none")


# ------------------------------------------------------------------------------------ the figures


async def test_figures_tell_what_each_rule_did_and_which_never_matched(open_house) -> None:
    async with open_house() as house:
        busy = await rule(house, "task:*", "log:seen", rate={"count": 2, "per_s": 600})
        broken = await rule(house, "task:*", "log:other", mapping="{{data.missing}}")
        idle = await rule(house, "never:*", "log:seen")
        empty = await house.call("routing_stats")
        assert (empty["rules"], empty["total"]["matches"]) == ([], 0)
        assert "no rule matched" in empty["no_data"]
        assert set(empty["never_matched"]) == {busy, broken, idle}
        for _ in range(3):
            await emit(house, "task:new")
        found = await house.call("routing_stats")
        by_id = {each["rule_id"]: each for each in found["rules"]}
        assert (by_id[busy]["matches"], by_id[busy]["deliveries"], by_id[busy]["limited"]) == (3, 2, 1)
        assert by_id[busy]["slowest_ms"] >= by_id[busy]["mean_ms"] >= 0
        assert by_id[busy]["last_used"].endswith("Z")
        assert (by_id[broken]["failures"], by_id[broken]["deliveries"]) == (3, 0)
        assert (found["never_matched"], found["total"]["failures"]) == ([idle], 3)
        assert "no_data" not in found
        assert (await house.call("routing_stats", limit=1))["left_out"] == 1
        one = await house.call("routing_stats", rule_id=busy)
        assert [each["rule_id"] for each in one["rules"]] == [busy]

        house.gate.ahead_ms += 2 * 3_600_000
        later = await house.call("routing_stats")
        assert later["rules"] == []
        assert "last at" in later["no_data"]
        await house.call("routing_delete_rule", rule_id=busy)
        longer = await house.call("routing_stats", window_s=86_400)
        assert next(each for each in longer["rules"] if each["rule_id"] == busy)["gone"] is True
        with pytest.raises(NotFound, match="no rule 'r_none'"):
            await house.call("routing_stats", rule_id="r_none")


async def test_an_agent_sees_the_figures_of_the_rules_that_it_sees(open_house) -> None:
    async with open_house() as house:
        agent, other = await house.spawn("a", ROUTES), await house.spawn("other")
        hidden = await rule(house, "task:*", "log:b", scope=f"agent:{other}")
        shown = await rule(house, "task:*", "log:a", scope=f"agent:{agent}")
        await emit(house, "task:new")
        found = await act(house, agent, "routing_stats")
        assert [each["rule_id"] for each in found["rules"]] == [shown]
        assert found["total"]["matches"] == 1
        assert hidden not in str(found)
        with pytest.raises(NotFound):
            await act(house, agent, "routing_stats", rule_id=hidden)


# ---------------------------------------------------------------------------------- dead letters


async def test_what_failed_is_listed_mended_and_delivered(open_house) -> None:
    async with open_house() as house:
        broken = await rule(house, "task:*", "log:seen", mapping={"n": "{{data.missing}}"})
        for i in range(3):
            await emit(house, "task:new", id=i)
        listed = await house.call("routing_dead_letters", limit=2)
        assert [each["data"] for each in listed["dead_letters"]] == ['{"id": 2}', '{"id": 1}']
        assert listed["dead_letters"][0]["rule_id"] == broken
        rest = await house.call("routing_dead_letters", cursor=listed["cursor"])
        assert [each["event"] for each in rest["dead_letters"]] == ["task:new"]
        failed = await house.call("routing_redrive", rule_id=broken)
        assert (failed["asked"], failed["ok"], failed["failed"]) == (3, 0, 3)
        await house.call("routing_modify_rule", rule_id=broken, updates={"mapping": {"n": "{{data.id}}"}})
        would = await house.call("routing_redrive", rule_id=broken, dry_run=True)
        assert [(each["outcome"], each["data"]) for each in would["letters"]] == [
            ("would_deliver", f'{{"n": {i}}}') for i in range(3)
        ]
        assert house.events("log:seen") == []
        first = await house.call("routing_redrive", every=True, limit=2)
        assert (first["ok"], first["cursor"]) == (2, "2")
        second = await house.call("event_emit", event="routing:redrive", data={"every": True, "cursor": "2"})
        assert second["result"]["ok"] == 1
        assert house.events("log:seen") == [{"n": 0}, {"n": 1}, {"n": 2}]  # in the order in which they came
        assert (await house.call("routing_dead_letters"))["dead_letters"] == []
        done = (await house.call("routing_dead_letters", redriven=True))["dead_letters"]
        assert {each["redriven_by"] for each in done} == {"operator"}
        again = await house.call("routing_redrive", ids=[1, 2])
        assert [each["outcome"] for each in again["letters"]] == ["failed", "failed"]
        assert "redriven before" in again["letters"][0]["reason"]
        assert len(house.events("log:seen")) == 3
        assert (await house.call("routing_stats"))["redriven"] == 3


@pytest.mark.parametrize("args", [{}, {"ids": [1], "every": True}, {"ids": []}, {"ids": list(range(101))}])
async def test_it_must_be_clear_what_is_to_be_redriven(open_house, args: dict[str, Any]) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid):
            await house.call("routing_redrive", **args)


async def test_an_unknown_letter_among_several_stops_it_before_anything_is_delivered(open_house) -> None:
    async with open_house() as house:
        broken = await rule(house, "task:*", "log:seen", mapping="{{data.missing}}")
        await emit(house, "task:new")
        await house.call("routing_modify_rule", rule_id=broken, updates={"mapping": None})
        with pytest.raises(NotFound, match="no dead letter 99"):
            await house.call("routing_redrive", ids=[1, 99])
        assert house.events("log:seen", "routing:redriven") == []


async def test_a_letter_that_breaks_the_server_again_holds_up_no_other(open_house, monkeypatch) -> None:
    def broken(*_: Any) -> str:
        raise RuntimeError("a programming mistake")

    async with open_house() as house:
        agent = await house.spawn("a")
        await rule(house, "task:*", f"agent:{agent}")
        with monkeypatch.context() as fault:
            fault.setattr(house.app.services.roster, "deliver_turn", broken)
            await emit(house, "task:new", id=1)
            await rule(house, "task:*", "log:seen", priority=500)
            bad = await rule(house, "note:*", "log:seen", mapping="{{data.missing}}")
            await emit(house, "note:new")
            await house.call("routing_modify_rule", rule_id=bad, updates={"mapping": None})
            tried = await house.call("routing_redrive", every=True)
            assert [each["outcome"] for each in tried["letters"]] == ["failed", "delivered"]
            assert "internal error" in tried["letters"][0]["reason"]
            assert len(house.events("log:seen")) == 1
        again = await house.call("routing_redrive", every=True)
        assert [(each["outcome"], each["delivered"]) for each in again["letters"]] == [("routed", 2)]


async def test_a_delayed_redrive_happens_once_with_all_of_its_letters(open_house) -> None:
    async with open_house() as house:
        broken = await rule(house, "task:*", "log:seen", mapping="{{data.missing}}")
        for _ in range(3):
            await emit(house, "task:new")
        await house.call("routing_modify_rule", rule_id=broken, updates={"mapping": None})
        await house.call("event_emit", event="routing:redrive", data={"every": True}, delay_s=0.01)
        await house.until(lambda: len(house.events("log:seen")) == 3)
        await house.until(lambda: house.rows("SELECT * FROM delayed_event") == [])
        assert house.events("system:delayed_failed") == []


async def test_an_agent_redrives_within_its_reach_and_a_refusal_is_kept(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", ROUTES)
        child = await house.spawn("child", ("base",), parent=boss)
        wide = await rule(house, "task:*", "log:wide", mapping="{{data.missing}}")
        own = await rule(house, "task:*", "log:own", mapping="{{data.missing}}", scope=f"agent:{child}",
                         source_agent=child)  # fmt: skip
        await emit(house, "task:new", child)
        await emit(house, "task:new")  # the operator's, which is none of its business
        seen = (await act(house, boss, "routing_dead_letters"))["dead_letters"]
        by_rule = {each["rule_id"]: each["dead_letter"] for each in seen}
        assert set(by_rule) == {wide, own}
        assert len(seen) == 2
        with pytest.raises(Refused, match="beyond its routing level"):
            await act(house, boss, "routing_redrive", ids=[by_rule[wide]])
        assert any(each["tool"] == "routing_redrive" for each in house.events("system:refused"))
        with pytest.raises(Refused, match="routing_control"):
            await act(house, child, "routing_redrive", ids=[by_rule[own]])
        await house.call("routing_modify_rule", rule_id=own, updates={"mapping": None})
        assert (await act(house, boss, "routing_redrive", ids=[by_rule[own]]))["ok"] == 1
        assert house.rows("SELECT source FROM event WHERE name = 'log:own'") == [(f"agent:{child}",)]


# ------------------------------------------------------------------------------------- safe mode


async def test_in_safe_mode_events_wait_turns_run_and_everything_says_so(open_house) -> None:
    async with open_house() as house:
        router, journal = house.app.services.router, house.app.services.journal
        await rule(house, "task:*", "log:seen")
        await house.spawn("a")
        await journal.commit(lambda tx: router.set_paused(tx, paused=True))
        emitted = await house.call("event_emit", event="task:new")
        assert emitted["routing_paused"] is True
        assert (await house.ask("a", "hi"))["status"] == "done"
        assert await router.pump_once() == 0
        stats = await house.call("routing_stats")
        assert stats["routing_paused"] is True
        assert stats["waiting"] >= 1
        assert house.events("log:seen") == []
        await journal.commit(lambda tx: router.set_paused(tx, paused=False))
        await house.until(lambda: len(house.events("log:seen")) == 1)
        assert "routing_paused" not in await house.call("event_emit", event="task:new")
        assert [len(house.events(name)) for name in ("routing:paused", "routing:resumed")] == [1, 1]


async def test_another_process_of_the_data_folder_knows_of_safe_mode(open_house) -> None:
    async with open_house() as house:
        journal = house.app.services.journal
        await journal.commit(lambda tx: house.app.services.router.set_paused(tx, paused=True))
        async with App(house.home, AppOptions(worker="none"), config=house.app.config) as other:
            assert await other.services.journal.read(other.services.router.is_paused)
