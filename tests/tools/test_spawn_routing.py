"""An agent and its wiring, made in one transaction; and the levels that a composition asks for."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import Exhausted, Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import agent_actor, fresh_context

ECHO = {"default": {"reply": "{{prompt}}"}}
ROUTES = ("base", "messaging", "spawn_agents", "routing_control")


async def as_agent(house: Any, actor: str, tool: str, **args: Any) -> dict[str, Any]:
    run = house.rows("SELECT orchestration_id FROM agent WHERE agent_id = ?", actor)[0][0]
    context = fresh_context(agent_actor(actor), orchestration_id=run)
    return dict((await house.app.toolbox.call(context, tool, args)).data)


def levels(house: Any, agent: str) -> tuple[Any, ...]:
    found = house.rows(
        "SELECT routing_level, subscription_level, error_level, wake FROM agent WHERE agent_id = ?", agent
    )
    return tuple(found[0])


def rules(house: Any) -> list[tuple[Any, ...]]:
    return list(
        house.rows(
            "SELECT source_pattern, target, scope, modifiable, created_by FROM rule WHERE deleted_at_ms IS NULL"
            " ORDER BY source_pattern"
        )
    )


def child(**routing: Any) -> dict[str, Any]:
    return {"name": "child", "prompt": "You help.", "model": "m", "routing": routing}


async def test_an_agent_its_rules_and_its_levels_are_made_together(open_house) -> None:
    async with open_house(ECHO) as house:
        boss = await house.spawn("boss", ROUTES)
        made = await as_agent(
            house, boss, "agent_spawn", capabilities=list(ROUTES),
            **child(
                parent="self",
                rules=[
                    {"source_pattern": "a:work", "target": "self", "source_agent": "self"},
                    {"source_pattern": "b:done", "target": f"agent:{boss}", "source_agent": "self", "modifiable": True},
                ],
                subscription_level=-1, routing_level="SELF", modifiable=False, scope="agent",
            ),
        )  # fmt: skip
        agent = made["agent"]
        assert (made["parent"], made["routing_level"], made["subscription_level"]) == (boss, "self", -1)
        assert levels(house, agent) == ("self", -1, -1, 0)
        assert len(made["rules"]) == 2
        by, own = f"agent:{boss}", f"agent:{agent}"
        assert rules(house) == [("a:work", f'"{own}"', own, 0, by), ("b:done", f'"{by}"', own, 0, by)]
        spawned = [event for event in house.events("agent:spawned") if event["agent"] == agent]
        assert spawned[0]["routing_level"] == "self"
        with pytest.raises(Refused, match="not modifiable"):
            await as_agent(house, agent, "routing_delete_rule", rule_id=made["rules"][0])
        await as_agent(house, boss, "routing_delete_rule", rule_id=made["rules"][0])
        await house.call("agent_terminate", agent=agent)
        assert rules(house) == []  # they lived with the agent


async def test_the_scope_may_be_the_run_and_a_rule_may_say_its_own(open_house) -> None:
    async with open_house(ECHO) as house:
        await house.run("o_1")
        rule = {"source_pattern": "a:work", "target": "self"}
        own = {"source_pattern": "b:work", "target": "self", "scope": "global"}
        routing = {"rules": [rule, own], "scope": "orchestration:o_1"}
        await house.spawn("one", orchestration="o_1", routing=routing)
        agent = await house.spawn("two", orchestration="o_1", routing={"rules": [{**rule, "source_pattern": "c:work"}]})
        scopes = [(pattern, scope) for pattern, _, scope, _, _ in rules(house)]
        assert scopes == [("a:work", "orchestration:o_1"), ("b:work", "global"), ("c:work", f"agent:{agent}")]


async def test_levels_left_out_are_those_of_every_agent(open_house) -> None:
    async with open_house(ECHO) as house:
        plain = await house.spawn("plain")
        router = await house.spawn("router", ROUTES)
        assert levels(house, plain) == ("none", 1, -1, 0)
        assert levels(house, router) == ("children", 1, -1, 0)
        shown = await house.call("agent_get", agent=router)
        assert shown.keys().isdisjoint({"routing_level", "subscription_level", "error_level", "wake"})
        selfish = await house.spawn("selfish", ROUTES, routing={"routing_level": "self"})
        made = await as_agent(house, selfish, "agent_spawn", **child(), capabilities=list(ROUTES))
        assert levels(house, made["agent"])[0] == "self"  # cut to what its spawner has


async def test_the_published_command_spawns_with_routing(open_house) -> None:
    async with open_house(ECHO) as house:
        boss = await house.spawn("boss", ROUTES)
        data = {
            "agent_id": "forensics", "prompt": "You help.", "model": "m",
            "routing": {
                "parent": boss, "subscription_level": "2",
                "rules": [{"pattern": "evidence:**", "target_agent": "self", "ttl": "60"}],
            },
        }  # fmt: skip
        await house.call("event_emit", event="agent:spawn_with_routing", data=data)
        ((agent, level),) = house.rows("SELECT agent_id, subscription_level FROM agent WHERE name = 'forensics'")
        assert level == 2
        assert rules(house)[0][:3] == ("evidence:**", f'"agent:{agent}"', f"agent:{agent}")


@pytest.mark.parametrize(
    ("level", "routing", "failure", "message"),
    [
        ("children", {"routing_level": "orchestration"}, Refused, "cannot grant routing_level 'orchestration'"),
        ("children", {"routing_level": "global"}, Refused, "its own is 'children'|cannot grant routing_level 'global'"),
        ("self", {"routing_level": "children"}, Refused, "cannot grant routing_level 'children'"),
        ("self", {"subscription_level": 0}, Refused, "beyond its routing level 'self'"),
        ("none", {"subscription_level": 0}, Refused, "beyond its routing level 'none'"),
        ("self", {"rules": [{"source_pattern": "a:b", "target": "self"}]}, Refused, "routing level 'self'"),
        ("children", {"rules": [{"source_pattern": "a:b", "target": "routing:add_rule"}]}, Refused, "routing:add_rule"),
        ("children", {"rules": [{"source_pattern": "a:b", "target": "agent:elsewhere"}]}, NotFound, "elsewhere"),
        ("children", {"rules": [{"source_pattern": "a:b", "target": "self"}], "scope": "global"}, Refused, "global"),
        ("children", {"rules": [{"source_pattern": "a:b", "target": "self"}], "scope": "nobody"}, Invalid, "scope"),
        ("children", {"rules": [{"source_pattern": "a:b", "target": "self"}] * 51}, Invalid, "rules"),
        ("children", {"subscription_level": 21}, Invalid, "subscription_level"),
        ("children", {"routing_level": "everything"}, Invalid, "routing_level"),
        ("children", {"modifiable": "perhaps"}, Invalid, "modifiable"),
        ("children", {"actor": "operator"}, Invalid, "unknown parameter 'routing.actor'"),
        ("children", {"parent": "elsewhere"}, NotFound, "elsewhere"),
    ],
)
async def test_too_much_is_refused_by_name_and_neither_agent_nor_rule_is_made(
    open_house, level: str, routing: dict[str, Any], failure: type[KsiError], message: str
) -> None:
    async with open_house(ECHO) as house:
        boss = await house.spawn("boss", ROUTES, routing={"routing_level": level})
        await house.spawn("elsewhere")
        before = (house.rows("SELECT * FROM agent"), rules(house), house.rows("SELECT account_id FROM account"))
        with pytest.raises(failure, match=message):
            await as_agent(house, boss, "agent_spawn", **child(**routing), capabilities=list(ROUTES))
        assert (house.rows("SELECT * FROM agent"), rules(house)) == before[:2]
        assert house.rows("SELECT account_id FROM account") == before[2]
        assert len(house.events("agent:spawned")) == 2
        assert len(house.events("system:refused")) == (failure is Refused)


async def test_the_last_of_many_rules_that_cannot_be_undoes_the_agent_too(open_house) -> None:
    async with open_house(ECHO) as house:
        boss = await house.spawn("boss", ROUTES)
        good = [{"source_pattern": f"a{n}:b", "target": "self"} for n in range(49)]
        bad = {"source_pattern": "z:b", "target": "agent:nobody"}
        with pytest.raises(NotFound):
            await as_agent(house, boss, "agent_spawn", **child(rules=[*good, bad]))
        assert rules(house) == []
        assert house.rows("SELECT name FROM agent") == [("boss",)]
        made = await as_agent(house, boss, "agent_spawn", **child(rules=good))
        assert len(made["rules"]) == 49


async def test_a_parent_bounds_the_level_also_for_the_operator(open_house) -> None:
    async with open_house(ECHO) as house:
        await house.spawn("boss", ROUTES)
        with pytest.raises(Refused, match="parent 'boss' cannot grant routing_level 'global'"):
            await house.call("agent_spawn", **child(parent="boss", routing_level="global"), capabilities=list(ROUTES))
        with pytest.raises(Invalid, match="needs the capability routing_control"):
            await house.call("agent_spawn", **child(routing_level="self"), capabilities=["base"])


async def test_without_routing_control_nothing_is_wired(open_house) -> None:
    async with open_house(ECHO) as house:
        boss = await house.spawn("boss", ("base", "spawn_agents"))
        for routing in ({"subscription_level": 0}, {"rules": [{"source_pattern": "a:b", "target": "self"}]}):
            with pytest.raises(Refused, match="routing_control"):
                await as_agent(house, boss, "agent_spawn", **child(**routing))
        made = await as_agent(house, boss, "agent_spawn", **child(parent="self"), capabilities=["base"])
        assert levels(house, made["agent"])[0] == "none"


# ------------------------------------------------------------------------------------ compositions


def write(house: Any, name: str, text: str) -> None:
    folder = house.home.compositions
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


AGENT = """
name: listener
type: agent
version: 1.0.0
description: hears far
prompt: You listen.
model: m
capabilities: [base, spawn_agents, routing_control]
routing_level: {level}
subscription_level: 3
error_level: 0
wake: true
"""


@pytest.mark.parametrize(
    ("wish", "got"), [("self", "self"), ("Orchestration", "orchestration"), ("global", "orchestration")]
)
async def test_a_composition_says_its_levels_never_more_than_the_configuration_grants(
    open_house, wish: str, got: str
) -> None:
    async with open_house(ECHO) as house:
        write(house, "listener", AGENT.format(level=wish))
        made = await house.call("agent_spawn", composition="listener")
        assert levels(house, made["agent"]) == (got, 3, 0, 1)
        over = {"routing": {"routing_level": "children", "subscription_level": 1}}
        made = await house.call("agent_spawn", composition="listener", **over)
        assert levels(house, made["agent"]) == ("children", 1, 0, 1)


async def test_a_configuration_that_grants_no_routing_leaves_the_wish_aside(open_house) -> None:
    agents = {"grantable": ["base", "spawn_agents"]}
    async with open_house(ECHO, agents=agents) as house:
        write(house, "listener", AGENT.format(level="children"))
        made = await house.call("agent_spawn", composition="listener")
        assert levels(house, made["agent"])[0] == "none"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("routing_level: everything", "'everything' is none; there are none, self"),
        ("routing_level: [self]", "is none"),
        ("subscription_level: 21", "must be a whole number from -1 to 20"),
        ("subscription_level: deep", "must be a whole number"),
        ("error_level: true", "must be a whole number"),
        ("wake: often", "must be yes or no"),
    ],
)
async def test_a_composition_with_a_level_that_is_none_is_refused_and_names_the_place(
    open_house, line: str, message: str
) -> None:
    async with open_house(ECHO) as house:
        write(house, "listener", f"name: listener\ntype: agent\nversion: 1.0.0\ndescription: x\nprompt: x\n{line}\n")
        with pytest.raises(Invalid, match=message) as failure:
            await house.call("agent_spawn", composition="listener")
        assert line.partition(":")[0] in failure.value.text()
        assert house.rows("SELECT * FROM agent") == []


PATTERN = """
name: team
type: orchestration
version: 1.0.0
description: two that wire themselves
agents:
  lead: {{prompt: You lead., capabilities: [base, routing_control]{level}}}
  other: {{prompt: You help.}}
"""


@pytest.mark.parametrize(
    ("starter", "wish", "got"),
    [
        ("children", "", "children"),
        ("self", "", "self"),
        ("none", "", "none"),
        ("children", "orchestration", "orchestration"),  # all of the new run is below whoever starts it
        ("self", "children", None),
        ("global", "orchestration", "orchestration"),
    ],
)
async def test_a_run_gives_its_agents_no_more_reach_than_whoever_starts_it_has(
    open_house, starter: str, wish: str, got: str | None
) -> None:
    async with open_house(ECHO) as house:
        write(house, "team", PATTERN.format(level=f", routing_level: {wish}" if wish else ""))
        rights = (*ROUTES, "orchestration")
        boss = await house.spawn("boss", rights, routing={"routing_level": starter})
        start = {"pattern": "team", "orchestrator": "client"}
        if got is None:
            with pytest.raises(Refused, match=f"cannot grant routing_level '{wish}'"):
                await as_agent(house, boss, "orchestration_start", **start)
            assert house.rows("SELECT * FROM orchestration") == []
            return
        await as_agent(house, boss, "orchestration_start", **start)
        assert house.rows("SELECT routing_level FROM agent WHERE name = 'lead'") == [(got,)]


async def test_an_agent_with_a_thousand_rules_cannot_spawn_its_way_around_the_quota(open_house) -> None:
    async with open_house(ECHO) as house:
        boss = await house.spawn("boss", ROUTES)
        for n in range(20):
            wired = [{"source_pattern": f"a{n}:b{i}", "target": "self"} for i in range(50)]
            routing = {**child(rules=wired), "name": f"child-{n}"}
            await as_agent(house, boss, "agent_spawn", **routing)
        with pytest.raises(Exhausted, match="the most an agent can have"):
            await as_agent(house, boss, "agent_spawn", **child(rules=[{"source_pattern": "z:z", "target": "self"}]))
        assert len(rules(house)) == 1_000


async def test_a_rule_can_be_added_that_no_agent_changes(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", ("base", "routing_control"))
        made = {"rule_id": "kept", "source_pattern": "task:*", "source_agent": boss, "target": "note:x"}
        assert (await house.call("routing_add_rule", **made, scope=f"agent:{boss}", modifiable=False))[
            "modifiable"
        ] is False
        ctx = fresh_context(agent_actor(boss))
        change = {"rule_id": "kept", "updates": {"priority": 1}}
        with pytest.raises(Refused, match="not modifiable"):
            await house.app.toolbox.call(ctx, "routing_modify_rule", change)
        assert (await house.call("routing_modify_rule", **change))["priority"] == 1
