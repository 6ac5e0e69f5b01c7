"""What an agent must not reach: by a tool beside the one it lacks, by a pattern, by a name."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import Conflict, NotFound, Refused
from ksi_mcp.permissions import agent_actor, fresh_context


async def act(house: Any, actor: str, tool: str, /, **args: Any) -> dict[str, Any]:
    return (await house.app.toolbox.call(fresh_context(agent_actor(actor)), tool, args)).data


PATTERN: dict[str, Any] = {
    "name": "wide",
    "type": "orchestration",
    "agents": {"ear": {"prompt": "You listen."}},
    "orchestration_logic": {"strategy": "Listen."},
}


async def test_rules_that_come_with_a_child_need_routing_control_too(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base", "spawn_agents"))
        rule = {"source_pattern": "note:x", "target": "agent:self"}
        wanted = {"name": "kid", "prompt": "x", "capabilities": ["base"], "routing": {"rules": [rule]}}
        with pytest.raises(Refused, match="routing_control"):
            await act(house, agent, "agent_spawn", **wanted)
        assert house.rows("SELECT * FROM agent WHERE name = 'kid'") == house.rows("SELECT * FROM rule") == []
        able = await house.spawn("b", ("base", "spawn_agents", "routing_control"))
        assert len((await act(house, able, "agent_spawn", **wanted))["rules"]) == 1


async def test_a_pattern_that_an_agent_starts_reaches_nobody_the_agent_does_not_see(open_house) -> None:
    async with open_house() as house:
        victim = await house.spawn("victim")
        agent = await house.spawn("a", ("base", "messaging", "compositions", "orchestration"))
        rules = [{"pattern": "go:x", "to": f"agent:{victim}"}]
        await act(house, agent, "composition_create", document={**PATTERN, "routing": rules})
        with pytest.raises(NotFound, match="unknown agent"):
            await act(house, agent, "orchestration_start", pattern="wide")
        assert house.rows("SELECT * FROM orchestration") == house.rows("SELECT * FROM rule") == []
        started = await house.call("orchestration_start", pattern="wide")  # the operator sees everybody
        assert len(started["rules"]) == 1


async def test_a_rule_of_a_pattern_may_name_a_role_as_an_agent(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base", "messaging", "compositions", "orchestration"))
        rules = [{"pattern": "go:x", "to": "agent:ear"}]
        await act(house, agent, "composition_create", document={**PATTERN, "routing": rules})
        started = await act(house, agent, "orchestration_start", pattern="wide")
        ((target,),) = house.rows("SELECT target FROM rule")
        assert target == f'"agent:{started["agents"][0]["agent"]}"'


async def test_a_run_does_not_hear_the_answers_of_agents_outside_of_any_run(open_house) -> None:
    async with open_house() as house:
        await house.spawn("outsider")
        rules = [{"pattern": "completion:result", "to": "ear", "condition": "data.agent_name != 'ear'"}]
        await house.call("composition_create", document={**PATTERN, "routing": rules})
        started = await house.call("orchestration_start", pattern="wide")
        await house.ask("outsider", "a secret")
        await house.until(lambda: house.rows("SELECT * FROM outbox") == [])
        ear = started["agents"][0]["agent"]
        assert house.rows("SELECT * FROM turn WHERE session_id = ?", ear) == []


async def test_no_agent_can_be_named_like_the_id_of_another(open_house) -> None:
    async with open_house() as house:
        victim = await house.spawn("victim")
        agent = await house.spawn("a", ("base", "spawn_agents"))
        with pytest.raises(Conflict, match="is the id of an agent"):
            await act(house, agent, "agent_spawn", name=victim, prompt="x", capabilities=[])


async def test_an_agent_finds_its_own_child_however_many_others_have_the_name(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base", "spawn_agents"))
        kid = (await act(house, agent, "agent_spawn", name="kid", prompt="x", capabilities=[]))["agent"]
        for number in range(21):
            await house.run(f"o_{number}")
            await house.spawn("kid", orchestration=f"o_{number}")
        await house.call("agent_terminate", agent=kid)
        assert (await act(house, agent, "agent_get", agent="kid"))["agent"] == kid


async def test_the_reply_event_of_a_cancelled_turn_comes_from_the_agent_and_never_from_who_cancels(open_house) -> None:
    async with open_house({"default": {"reply": "late", "latency_s": 1}}) as house:
        agent = await house.spawn("a", ("base", "messaging", "spawn_agents"))
        kid = (await act(house, agent, "agent_spawn", name="kid", prompt="x", capabilities=[]))["agent"]
        await act(house, agent, "agent_send", agent="kid", message="go", reply_event="payment:approved")
        await house.call("agent_terminate", agent=kid)
        assert house.rows("SELECT source FROM event WHERE name = 'payment:approved'") == [(f"agent:{kid}",)]


async def test_an_empty_idempotency_key_is_none(open_house) -> None:
    async with open_house() as house:
        await house.spawn("a")
        turns = [await house.call("agent_send", agent="a", message="on", idempotency_key="") for _ in range(2)]
        assert turns[0]["turn"] != turns[1]["turn"]


async def test_an_agent_sees_and_ends_the_run_it_started_and_the_agents_of_it(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base", "messaging", "compositions", "orchestration", "spawn_agents"))
        other = await house.spawn("b", ("base", "messaging", "orchestration", "spawn_agents"))
        await act(house, agent, "composition_create", document={**PATTERN, "max_depth": 900})
        run = await act(house, agent, "orchestration_start", pattern="wide")
        of_it = {"orchestration": run["orchestration"]}
        ear = run["agents"][0]["agent"]
        assert [each["agent"] for each in (await act(house, agent, "orchestration_status", **of_it))["agents"]] == [ear]
        listed = await act(house, agent, "orchestration_list")
        assert [each["orchestration"] for each in listed["orchestrations"]] == [run["orchestration"]]
        assert (await act(house, agent, "agent_send", agent=ear, message="hear"))["turn"]
        for tool, args in (("orchestration_status", of_it), ("agent_get", {"agent": ear})):
            with pytest.raises(NotFound, match="unknown"):
                await act(house, other, tool, **args)
        assert (await act(house, other, "orchestration_list"))["orchestrations"] == []
        assert house.rows("SELECT max_depth FROM orchestration") == [(house.app.config.max_depth,)]
        ended = await act(house, agent, "orchestration_complete", outcome="success", **of_it)
        assert ended["state"] == "completed"


async def test_an_agent_that_names_no_account_sees_its_own(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base",))
        assert [each["account"] for each in (await act(house, agent, "budget_status"))["accounts"]] == [agent]
        assert [each["account"] for each in (await house.call("budget_status"))["accounts"]] == ["global"]
