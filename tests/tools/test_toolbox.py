from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import Invalid, KsiError, NotFound, Refused
from ksi_mcp.ids import TurnId, WorkerId
from ksi_mcp.permissions import Context, Slot, agent_actor, fresh_context
from ksi_mcp.queues.model import TakenOver


def acting(agent: str) -> Context:
    return fresh_context(agent_actor(agent))


async def refused(house: Any, kind: type[KsiError], acts: Context, tool: str, /, **args: Any) -> str:
    """The text of the error, and that nothing but the audit entry is new."""
    tables = ("agent", "turn", "rule", "session", "account", "hold", "delayed_event", "idempotency")
    before = [house.rows(f"SELECT * FROM {table}") for table in tables]
    with pytest.raises(kind) as error:
        await house.app.toolbox.call(acts, tool, args)
    assert [house.rows(f"SELECT * FROM {table}") for table in tables] == before
    return error.value.text()


# -- arguments --------------------------------------------------------------------------------------


async def test_an_unknown_tool_is_refused_with_the_nearest_names(open_house) -> None:
    async with open_house() as house:
        with pytest.raises(NotFound) as error:
            await house.call("agent_spwan")
        assert "unknown tool 'agent_spwan'; did you mean agent_spawn" in error.value.text()
        with pytest.raises(NotFound, match="unknown tool ''"):
            await house.call("")


async def test_every_wrong_argument_is_named_at_once_with_the_parameters_there_are(open_house) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid) as error:
            await house.call("agent_send", agnet="a", wait_s="soon")
        text = error.value.text()
        for part in ("missing parameter 'agent'", "missing parameter 'message'", "unknown parameter 'agnet'", "wait_s"):
            assert part in text
        assert "parameters are agent, message, wait_s?" in text


async def test_what_is_said_of_a_wrong_argument_is_about_that_one(open_house) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid) as error:
            await house.call("agent_spawn", prompt="x", budget={"dollars": 1})
        assert error.value.hint == "fields of budget are usd, tokens, turns, seconds, policy"
        with pytest.raises(Invalid) as error:
            await house.call("agent_spawn", prompt="x", budget={"usd": -1})
        assert "budget.usd: " in error.value.message
        assert error.value.hint == "`help` explains agent_spawn"
        with pytest.raises(NotFound) as unlike:
            await house.call("nope")
        assert unlike.value.hint == "`help` lists the tools"


async def test_a_target_that_is_an_agents_name_without_saying_so_is_remarked_on(open_house) -> None:
    async with open_house() as house:
        await house.spawn("ada")
        made = await house.call("routing_add_rule", source_pattern="task:*", target="ada")
        assert made["warning"].startswith("ada is taken as the name of an event; agent:ada ")
        for target in ("agent:ada", "task:done", "nobody"):
            assert "warning" not in await house.call("routing_add_rule", source_pattern="work:*", target=target)


@pytest.mark.parametrize("args", [{"limit": "5"}, {"limit": 5.0}, {"limit": 5}])
async def test_numbers_in_quotes_are_numbers(open_house, args: dict[str, Any]) -> None:
    async with open_house() as house:
        for n in range(7):
            await house.call("event_emit", event=f"note:n{n}")
        assert len((await house.call("event_query", names=["note:*"], **args))["events"]) == 5


@pytest.mark.parametrize("value", ["true", True, 1, "yes"])
async def test_truth_in_quotes_is_truth(open_house, value: Any) -> None:
    async with open_house() as house:
        await house.spawn("a")
        assert (await house.call("agent_terminate", agent="a", dry_run=value))["dry_run"] is True
        assert (await house.call("agent_list"))["agents"]


@pytest.mark.parametrize(
    "args",
    [
        {"limit": "five"}, {"limit": 5.5}, {"limit": 0}, {"limit": 201}, {"limit": [5]}, {"limit": None},
        {"names": "note:*x y"}, {"names": ["a::b"]}, {"since": -1}, {"since": 2**70}, {"cursor": "²"},
        {"agent": "a" * 5_000}, {"names": ["a"] * 21}, {"agent": "\ud800"}, {"orchestration": 5},
    ],
)  # fmt: skip
async def test_a_hostile_argument_is_refused_in_a_few_words(open_house, args: dict[str, Any]) -> None:
    async with open_house() as house:
        with pytest.raises(KsiError) as error:
            await house.call("event_query", **args)
        assert len(error.value.text().encode("utf-8", "replace")) < 1_000


async def test_published_names_of_parameters_work_and_clash_with_ours(open_house) -> None:
    async with open_house({"default": {"reply": "ok"}}) as house:
        await house.spawn("a")
        turn = await house.call("agent_send", agent_id="a", content="go", wait_s=20)
        assert turn["text"] == "ok"
        with pytest.raises(Invalid, match="'agent_id' and 'agent' are the same parameter"):
            await house.call("agent_send", agent_id="a", agent="a", message="go")
        with pytest.raises(Invalid, match="'agent_id' and 'to' are the same parameter"):
            await house.call("agent_send", agent_id="a", to="a", message="go")


async def test_every_tool_has_a_plain_schema_and_a_command_of_its_own(open_house) -> None:
    async with open_house() as house:
        tools = house.app.toolbox.tools
        commands = [command for tool in tools for command in (tool.command, *tool.commands)]
        assert len(commands) == len(set(commands)) == len(house.app.toolbox.commands)
        for tool in tools:
            schema = tool.schema()
            assert schema["type"] == "object"
            assert schema["additionalProperties"] is False
            assert set(tool.aliases.values()) <= set(schema.get("properties", {}))
            assert not set(tool.aliases) & set(schema.get("properties", {}))


# -- authority --------------------------------------------------------------------------------------


async def test_a_refusal_leaves_one_audit_entry_and_nothing_else(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base",))
        text = await refused(house, Refused, acting(agent), "agent_spawn", prompt="p")
        assert f"agent_spawn needs the capability 'spawn_agents', which agent:{agent} does not hold" in text
        (entry,) = house.events("system:refused")
        assert (entry["tool"], entry["actor"]) == ("agent_spawn", f"agent:{agent}")
        assert entry["reason"] == text


async def test_a_refused_command_event_is_audited_once_under_the_name_of_the_command(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base",))
        await refused(house, Refused, acting(agent), "event_emit", event="agent:spawn", data={"prompt": "p"})
        assert [entry["tool"] for entry in house.events("system:refused")] == ["agent_spawn"]


@pytest.mark.parametrize("key", ["actor", "source", "created_by", "ctx", "agent_actor", "_actor"])
async def test_nothing_in_the_arguments_changes_who_acts(open_house, key: str) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base", "spawn_agents"))
        await refused(house, Invalid, acting(agent), "event_emit", event="note:x", **{key: "operator"})
        await refused(house, Invalid, acting(agent), "agent_spawn", prompt="p", **{key: "operator"})
        data = {"event": "note:x", key: "operator"}
        await refused(house, Invalid, acting(agent), "event_emit", event="event:emit", data=data)


async def test_an_emitted_command_runs_as_whoever_emits_it(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base", "spawn_agents"))
        other = await house.spawn("other")
        args = {"event": "agent:spawn", "data": {"prompt": "p", "name": "kid", "capabilities": ["base"]}}
        done = await house.app.toolbox.call(acting(agent), "event_emit", args)
        assert done.data["command"] == "agent_spawn"
        assert done.data["result"]["parent"] == agent
        assert house.rows("SELECT created_by FROM agent WHERE name = 'kid'") == [(f"agent:{agent}",)]
        end = {"event": "agent:terminate", "data": {"agent": other}}
        await refused(house, NotFound, acting(agent), "event_emit", **end)


@pytest.mark.parametrize("name", ["agent:spawned", "system:refused", "completion:result", "budget:overrun", "agent:x"])
async def test_nobody_forges_the_servers_own_events(open_house, name: str) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("base", "messaging"))
        await refused(house, Refused, acting(agent), "event_emit", event=name)
        await refused(house, Refused, acting(agent), "event_emit", event=name, delay_s=1)
        await refused(house, Refused, acting(agent), "agent_send", agent=agent, message="go", reply_event=name)
        with pytest.raises(Refused):
            await house.call("event_emit", event=name)


async def test_an_agent_sees_events_and_budgets_of_its_own_reach_only(open_house) -> None:
    async with open_house() as house:
        agent, other = await house.spawn("a", ("base",)), await house.spawn("other", ("base",))
        for one in (agent, other):
            await house.app.toolbox.call(acting(one), "event_emit", {"event": "note:x"})
        seen = (await house.app.toolbox.call(acting(agent), "event_query", {"names": ["**"]})).data["events"]
        assert {event["agent"] for event in seen} == {agent}
        for account in (other, "global"):
            await refused(house, NotFound, acting(agent), "budget_status", account=account)
        await refused(house, NotFound, acting(agent), "agent_get", agent=other)
        waited = await house.app.toolbox.call(
            acting(agent), "event_wait", {"names": ["**"], "since": 0, "timeout_s": 0}
        )
        assert {event["agent"] for event in waited.data["events"]} == {agent}


async def test_a_call_of_a_turn_that_is_not_ours_takes_no_effect(open_house) -> None:
    async with open_house({"default": {"reply": "ok", "latency_s": 1}}) as house:
        agent = await house.spawn("a", ("base",))
        turn = await house.call("agent_send", agent="a", message="go")
        await house.started()
        ((attempt, owner),) = house.rows("SELECT attempt, owner FROM turn")
        for wrong in ({"attempt": attempt + 1}, {"owner": WorkerId("w_other")}, {"turn_id": TurnId("t_other")}):
            facts = {
                "turn_id": TurnId(turn["turn"]),
                "attempt": attempt,
                "owner": owner,
                "round": 1,
                "index": 0,
                **wrong,
            }
            ctx = Context(**{**_fields(acting(agent)), "slot": Slot(**facts)})
            await refused(house, TakenOver, ctx, "event_emit", event="note:x")
        house.gate.opened.set()
        assert house.events("note:x") == []


def _fields(ctx: Context) -> dict[str, Any]:
    return {name: getattr(ctx, name) for name in Context.__slots__}


# -- waiting ----------------------------------------------------------------------------------------


async def test_waiting_that_runs_out_of_time_is_no_error_and_can_be_repeated(open_house) -> None:
    async with open_house({"default": {"reply": "ok", "latency_s": 1}}) as house:
        await house.spawn("a")
        await house.spawn("b")
        turns = [(await house.call("agent_send", agent=name, message="go"))["turn"] for name in ("a", "b")]
        early = await house.call("agent_wait", turns=turns, timeout_s=0)
        assert (early["partial"], early["census"]["pending"]) == (True, 2)
        assert "agent_wait again" in early["next"]
        house.gate.opened.set()
        late = await house.call("agent_wait", turns=turns, agents=["a"])
        assert (late["partial"], late["census"]["ok"], late["census"]["asked"]) == (False, 2, 2)
        assert await house.call("agent_wait", turns=turns, agents=["a"]) == late


async def test_waiting_for_nothing_or_for_the_unknown_is_refused(open_house) -> None:
    async with open_house() as house:
        await house.spawn("a")
        for args, shown in (
            ({}, "needs turns or agents"),
            ({"turns": ["t_nope"]}, "unknown turns: t_nope"),
            ({"agents": ["a"]}, "nothing was ever sent to a"),
            ({"agents": ["b"]}, "unknown agent 'b'; agent_list shows 1 agent"),
        ):
            with pytest.raises(KsiError) as error:
                await house.call("agent_wait", **args)
            assert shown in error.value.text()


async def test_an_event_that_comes_while_one_waits_is_counted_once(open_house) -> None:
    async with open_house() as house:
        first = await house.call("event_emit", event="note:one")
        waited = await house.call("event_wait", names=["note:*"], since=0, timeout_s=0)
        assert [event["event"] for event in waited["events"]] == ["note:one"]
        assert waited["complete"]
        more = await house.call("event_wait", names=["note:*"], since=first["event_id"], timeout_s=0)
        assert (more["arrived"], more["complete"]) == (0, False)
