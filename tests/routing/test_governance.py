"""Who may change which rule: every level against every place, each single way out of reach, and rights that go."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import AgentSettings, AgentSpec
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, ROUTING_LEVELS, Context, RoutingLevel, agent_actor, fresh_context
from ksi_mcp.routing.rules import RuleDraft
from ksi_mcp.routing.store import RuleFilter

TABLES = ("rule", "rule_history", "rule_state", "join_open", "join_part", "control", "agent")


async def spawn(
    house: Any, name: str, *, level: RoutingLevel | None = None, parent: str | None = None, run: str | None = None
) -> str:
    rights = frozenset({"base"} if level is None else {"base", "routing_control"})
    spec = AgentSpec(
        name=name, system="You help.", provider="scripted", model="m", settings=AgentSettings(), capabilities=rights,
        parent_id=parent, orchestration_id=run, routing_level=level,
    )  # fmt: skip
    services = house.app.services
    made = await services.journal.commit(lambda tx: services.roster.spawn(tx, fresh_context(OPERATOR), spec))
    return str(made.agent_id)


async def act(house: Any, agent: str, tool: str, /, **args: Any) -> dict[str, Any]:
    return dict((await house.app.toolbox.call(fresh_context(agent_actor(agent)), tool, args)).data)


def written(house: Any) -> list[Any]:
    return [house.rows(f"SELECT * FROM {table}") for table in TABLES]


async def refused(house: Any, agent: str, tool: str, /, kind: type[KsiError] = Refused, **args: Any) -> str:
    """The text of a refusal that wrote nothing, and that the audit has once, under whoever tried."""
    changed = "SELECT name, data FROM event WHERE name LIKE 'routing:%'"
    before, audit, told = written(house), house.events("system:refused"), house.rows(changed)
    with pytest.raises(kind) as failure:
        await act(house, agent, tool, **args)
    assert written(house) == before
    assert house.rows(changed) == told
    text = failure.value.text()
    entry = {"tool": tool, "actor": f"agent:{agent}", "reason": text}
    assert house.events("system:refused") == ([*audit, entry] if kind is Refused else audit)
    return text


async def execute(house: Any, sql: str) -> None:
    await house.app._db._writer.call(lambda connection: connection.execute(sql))


# -- the matrix -------------------------------------------------------------------------------------

SITES = ("own", "child", "sibling", "run", "other", "other_run", "global")

NOBODY = "no: it may change no route at all"
NOT_BELOW = "no: neither itself nor below it"
NOT_ITSELF = "no: not itself"
NOT_ITS_RUN = "no: outside of its run"
ALL_OF_IT = "no: it would hear everybody of the run, and it may route only some of them"
NOT_EVERYBODY = "no: it hears everybody"
BELOW = "yes: itself and all that descend from it"
ITS_RUN = "yes: in its run"
ALL = "yes: everybody's"

MATRIX: dict[RoutingLevel, dict[str, str]] = {
    "none": dict.fromkeys(SITES, NOBODY),
    "self": {
        "own": "yes: itself", "child": NOT_ITSELF, "sibling": NOT_ITSELF, "run": ALL_OF_IT, "other": NOT_ITSELF,
        "other_run": NOT_ITSELF, "global": NOT_EVERYBODY,
    },
    "children": {
        "own": BELOW, "child": BELOW, "sibling": NOT_BELOW, "run": ALL_OF_IT, "other": NOT_BELOW,
        "other_run": NOT_BELOW, "global": NOT_EVERYBODY,
    },
    "orchestration": {
        "own": ITS_RUN, "child": ITS_RUN, "sibling": ITS_RUN, "run": ITS_RUN, "other": NOT_ITS_RUN,
        "other_run": NOT_ITS_RUN, "global": NOT_EVERYBODY,
    },
    "global": dict.fromkeys(SITES, ALL),
}  # fmt: skip


@dataclass
class World:
    """One agent of a level, a child of it, a sibling in its run, another in another run."""

    house: Any
    me: str
    agents: dict[str, str]

    def rule(self, site: str) -> dict[str, Any]:
        """A rule that lies there with all of its parts."""
        if site in self.agents:
            agent = f"agent:{self.agents[site]}"
            return {"source_pattern": "task:*", "source_agent": agent, "target": agent, "scope": agent}
        scopes = {"run": "orchestration:o_1", "other_run": "orchestration:o_2", "global": "global"}
        return {"source_pattern": "task:*", "source_agent": "*", "target": "note:heard", "scope": scopes[site]}


async def settle_world(house: Any, level: RoutingLevel) -> World:
    await house.run("o_1")
    await house.run("o_2")
    me = await spawn(house, "me", level=level, run="o_1")
    agents = {
        "own": me,
        "child": await spawn(house, "child", parent=me),
        "sibling": await spawn(house, "sibling", run="o_1"),
        "other": await spawn(house, "other", run="o_2"),
    }
    return World(house=house, me=me, agents=agents)


@pytest.mark.parametrize("action", ["add", "modify", "delete"])
@pytest.mark.parametrize("level", ROUTING_LEVELS)
async def test_a_level_changes_the_rules_within_its_reach_and_no_other(
    open_house, level: RoutingLevel, action: str
) -> None:
    async with open_house() as house:
        world = await settle_world(house, level)
        for site in SITES:
            rule_id = f"r.{site.replace('_', '-')}"
            if action != "add":
                await house.call("routing_add_rule", rule_id=rule_id, **world.rule(site))
            args: dict[str, Any] = {
                "add": {"rule_id": rule_id, **world.rule(site)},
                "modify": {"rule_id": rule_id, "updates": {"priority": 7}},
                "delete": {"rule_id": rule_id},
            }[action]
            tool = f"routing_{action}_rule"
            if MATRIX[level][site].startswith("no"):
                text = await refused(house, world.me, tool, **args)
                assert "routing level" in text or "within" in text or "global rule" in text
                continue
            ((version,),) = house.rows("SELECT routing_version FROM control")
            await act(house, world.me, tool, **args)
            past = {"add": "added", "modify": "modified", "delete": "deleted"}[action]
            found = house.rows("SELECT source FROM event WHERE name = ? ORDER BY event_id", f"routing:rule_{past}")
            assert found[-1] == (f"agent:{world.me}",)
            assert house.rows("SELECT rule_id FROM rule_history WHERE version > ?", version) == [(rule_id,)]
            assert house.rows("SELECT routing_version FROM control") == [(version + 1,)]


HEARING_SITES = ("own", "child", "sibling", "other", "outside")


@pytest.mark.parametrize("level", ROUTING_LEVELS)
async def test_a_level_changes_what_those_within_its_reach_hear_and_nobody_else(
    open_house, level: RoutingLevel
) -> None:
    """The agent whose hearing is changed is in the place of the rule; one that lives in no run, in that of `global`."""
    async with open_house() as house:
        world = await settle_world(house, level)
        world.agents["outside"] = await spawn(house, "outside")
        for site in HEARING_SITES:
            args = {"agent": world.agents[site], "level": 3}
            if MATRIX[level]["global" if site == "outside" else site].startswith("no"):
                text = await refused(house, world.me, "routing_update_subscription", **args)
                assert f"routing level {level!r}" in text
                continue
            await act(house, world.me, "routing_update_subscription", **args)
            changed = house.rows(
                "SELECT source, data ->> 'agent' FROM event WHERE name = 'routing:subscription_changed' "
                "ORDER BY event_id"
            )
            assert changed[-1] == (f"agent:{world.me}", world.agents[site])
            heard = house.rows("SELECT subscription_level FROM agent WHERE agent_id = ?", world.agents[site])
            assert heard == [(3,)]


# -- each single way out of reach -------------------------------------------------------------------

BEYOND: dict[RoutingLevel, str] = {"self": "child", "children": "sibling", "orchestration": "other"}


def ways_out(me: str, beyond: str) -> list[dict[str, Any]]:
    return [
        {"source_agent": beyond},
        {"source_agent": f"agent:{beyond}"},
        {"source_agent": "*"},
        {"source_agent": f"{beyond[:-1]}*"},
        {"source_agent": "{{data.who}}"},
        {"target": f"agent:{beyond}"},
        {"target": ["note:a", f"agent:{me}", f"agent:{beyond}"]},
        {"target": {"round_robin": [f"agent:{me}", f"agent:{beyond}"]}},
        {"target": {"first_idle": [f"agent:{beyond}"]}},
        {"scope": f"agent:{beyond}"},
        {"scope": "global"},
        {"scope": "orchestration:o_2"},
        {"scope": "orchestration:o_none"},
        {"join": {"all_of": ["*:a", f"agent:{beyond}"]}},
        {"join": {"all_of": [f"agent:{me}", f"agent:{beyond}"]}},
    ]


@pytest.mark.parametrize("level", BEYOND)
async def test_one_part_beyond_is_enough_to_refuse_a_rule_or_a_change(open_house, level: RoutingLevel) -> None:
    async with open_house() as house:
        world = await settle_world(house, level)
        await act(house, world.me, "routing_add_rule", rule_id="mine", source_pattern="task:*", target="note:heard")
        for way in ways_out(world.me, world.agents[BEYOND[level]]):
            wanted = {"source_pattern": "task:*", "target": "note:heard", **way}
            await refused(house, world.me, "routing_add_rule", **wanted)
            await refused(house, world.me, "routing_modify_rule", rule_id="mine", updates=way)


@pytest.mark.parametrize("level", BEYOND)
async def test_a_rule_with_one_part_beyond_is_neither_changed_nor_deleted_nor_moved_into_reach(
    open_house, level: RoutingLevel
) -> None:
    async with open_house() as house:
        world = await settle_world(house, level)
        own = f"agent:{world.me}"
        mine = {"source_pattern": "task:*", "source_agent": own, "target": own, "scope": own}
        ways = ways_out(world.me, world.agents[BEYOND[level]])
        for n, way in enumerate([*ways, {"source_agent": None}]):  # made by the operator, None is everybody
            if way.get("scope") == "orchestration:o_none":
                continue
            await house.call("routing_add_rule", rule_id=f"r{n}", **{**mine, **way})
            await refused(house, world.me, "routing_delete_rule", rule_id=f"r{n}")
            for updates in ({"enabled": False}, mine, {**mine, "join": None}):
                await refused(house, world.me, "routing_modify_rule", rule_id=f"r{n}", updates=updates)


async def test_a_source_that_is_taken_away_means_the_agent_itself_and_not_everybody(open_house) -> None:
    async with open_house() as house:
        world = await settle_world(house, "children")
        child = world.agents["child"]
        rule = {"rule_id": "mine", "source_pattern": "task:*", "target": "note:heard", "source_agent": "child"}
        assert (await act(house, world.me, "routing_add_rule", **rule))["source_agent"] == child
        cleared = {"rule_id": "mine", "updates": {"source_agent": None}}
        assert (await act(house, world.me, "routing_modify_rule", **cleared))["source_agent"] == world.me


async def test_a_join_of_agents_within_reach_needs_no_source_and_loses_that_freedom_with_the_join(open_house) -> None:
    async with open_house() as house:
        world = await settle_world(house, "children")
        kid = await spawn(house, "kid", parent=world.me)
        join = {"all_of": ["agent:child", "agent:kid"]}
        rule = {"rule_id": "mine", "source_pattern": "part:*", "target": "whole:done", "join": join}
        made = await act(house, world.me, "routing_add_rule", **rule)
        assert made.get("source_agent") is None
        assert made["join"]["all_of"] == [f"agent:{world.agents['child']}", f"agent:{kid}"]
        await act(house, world.me, "routing_modify_rule", rule_id="mine", updates={"priority": 7})
        for agent in (world.agents["sibling"], world.agents["child"], kid):
            await act(house, agent, "event_emit", event="part:done", data={"by": agent})
        await house.until(lambda: house.rows("SELECT * FROM outbox") == [])
        (whole,) = house.events("whole:done")
        assert {part["by"] for part in whole["parts"].values()} == {world.agents["child"], kid}
        mixed = {"rule_id": "mine", "updates": {"join": {"all_of": ["agent:child", "part:a"]}}}
        assert (await act(house, world.me, "routing_modify_rule", **mixed))["source_agent"] == world.me
        single = {"rule_id": "mine", "updates": {"join": None, "source_agent": None}}
        assert (await act(house, world.me, "routing_modify_rule", **single))["source_agent"] == world.me


async def test_a_join_that_names_one_agent_by_name_and_by_id_is_refused(open_house) -> None:
    async with open_house() as house:
        world = await settle_world(house, "children")
        wanted = {"source_pattern": "part:*", "target": "whole:done"}
        join = {"all_of": ["agent:child", f"agent:{world.agents['child']}"]}
        assert "names an agent twice" in await refused(
            house, world.me, "routing_add_rule", Invalid, **wanted, join=join
        )


# -- names ------------------------------------------------------------------------------------------


async def test_an_id_out_of_sight_is_refused_alike_whether_there_is_such_an_agent_or_not(open_house) -> None:
    async with open_house() as house:
        world = await settle_world(house, "orchestration")
        texts = []
        for ref in (world.agents["other"], "a_nosuchagent"):
            for way in ways_out(world.me, ref)[5:10]:
                wanted = {"source_pattern": "task:*", "target": "note:heard", **way}
                texts.append((await refused(house, world.me, "routing_add_rule", **wanted)).replace(ref, "REF"))
        assert texts[:5] == texts[5:]


async def test_a_name_means_the_agent_of_the_same_run_and_never_one_out_of_sight(open_house) -> None:
    async with open_house() as house:
        world = await settle_world(house, "orchestration")
        await spawn(house, "sibling", run="o_2")
        rule = {"source_pattern": "task:*", "target": "agent:sibling"}
        assert (await act(house, world.me, "routing_add_rule", **rule))["target"] == f"agent:{world.agents['sibling']}"
        with pytest.raises(NotFound):
            await act(house, world.me, "routing_add_rule", source_pattern="task:*", target="agent:other")


async def test_what_a_hidden_rule_says_is_not_in_the_refusal(open_house) -> None:
    async with open_house() as house:
        world = await settle_world(house, "orchestration")
        secret = {**world.rule("other"), "rule_id": "hidden"}
        await house.call("routing_add_rule", **secret)
        for tool, more in (("routing_delete_rule", {}), ("routing_modify_rule", {"updates": {"priority": 1}})):
            text = await refused(house, world.me, tool, rule_id="hidden", **more)
            assert world.agents["other"] not in text
            assert "o_2" not in text
        assert (await act(house, world.me, "routing_query_rules"))["rules"] == []


async def test_an_agent_can_look_at_every_rule_that_it_may_change(open_house) -> None:
    async with open_house() as house:
        boss = await spawn(house, "boss", level="children")
        kid = await spawn(house, "kid", parent=boss)
        other = await spawn(house, "other")
        shown = {
            "a": {"source_agent": kid, "scope": f"agent:{kid}", "target": "note:x"},
            "b": {"source_agent": other, "scope": f"agent:{other}", "target": ["note:x", f"agent:{kid}"]},
            "c": {"scope": f"agent:{other}", "target": "note:x", "join": {"all_of": ["agent:kid", "task:z"]}},
            "d": {"scope": f"agent:{other}", "source_agent": other, "target": f"agent:{other}"},
        }
        for rule_id, fields in shown.items():
            await house.call("routing_add_rule", rule_id=rule_id, source_pattern="task:*", **fields)
        found = await act(house, boss, "routing_query_rules")
        assert [rule["rule_id"] for rule in found["rules"]] == ["a", "b", "c"]
        explained = await act(house, boss, "routing_explain", event="task:x")
        seen = {match["rule_id"] for match in (*explained["fires"], *explained["not_firing"])}
        assert (seen, explained["rules_hidden_from_you"]) == ({"a", "b", "c"}, 1)
        await act(house, boss, "routing_delete_rule", rule_id="a")
        mighty = await spawn(house, "mighty", level="global")
        found = await act(house, mighty, "routing_query_rules")
        assert [rule["rule_id"] for rule in found["rules"]] == ["b", "c", "d"]


# -- rights that go ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        ("UPDATE agent SET capabilities = '[\"base\"]' WHERE name = 'me'", "needs the capability 'routing_control'"),
        ("UPDATE agent SET routing_level = 'none' WHERE name = 'me'", "routing level is 'none'"),
        ("UPDATE agent SET routing_level = 'self' WHERE name = 'me'", "routing level 'self'"),
        ("UPDATE agent SET status = 'terminated' WHERE name = 'me'", "is not active any more"),
    ],
)
async def test_a_right_that_is_gone_is_gone_in_the_transaction_of_the_change(open_house, loss: str, shown: str) -> None:
    """Not only where the tool is called: a right may go between that and the change."""
    async with open_house() as house:
        world = await settle_world(house, "global")
        await house.call("routing_add_rule", rule_id="r", **world.rule("sibling"))
        services, ctx = house.app.services, fresh_context(agent_actor(world.me))
        await execute(house, loss)
        before = written(house)
        draft = RuleDraft(**world.rule("sibling"))
        for work in (
            lambda tx: services.router.modify_rule(tx, ctx, "r", {"priority": 1}),
            lambda tx: services.router.delete_rule(tx, ctx, "r"),
            lambda tx: services.router.add_rule(tx, ctx, draft),
        ):
            with pytest.raises(Refused) as failure:
                await services.journal.commit(work)
            assert shown in failure.value.text()
        assert written(house) == before


async def test_a_level_without_the_capability_is_none(open_house) -> None:
    async with open_house() as house:
        me = await spawn(house, "me", level="global")
        await execute(house, "UPDATE agent SET capabilities = '[\"base\"]'")
        held = await house.app.services.journal.read(lambda tx: reach.grants(tx, fresh_context(agent_actor(me))))
        assert held.routing_level == "none"


async def test_a_rule_that_is_not_modifiable_is_left_to_whoever_made_it_and_the_operator(open_house) -> None:
    async with open_house() as house:
        world = await settle_world(house, "global")
        rival = await spawn(house, "rival", level="global")
        services, ctx = house.app.services, fresh_context(agent_actor(world.me))
        draft = RuleDraft(source_pattern="task:*", target="note:x", rule_id="mine", modifiable=False)
        await services.journal.commit(lambda tx: services.router.add_rule(tx, ctx, draft))
        for tool, more in (
            ("routing_delete_rule", {}),
            ("routing_modify_rule", {"updates": {"modifiable": True}}),
            ("routing_modify_rule", {"updates": {"priority": 1}}),
        ):
            assert "is not modifiable" in await refused(house, rival, tool, rule_id="mine", **more)
        await act(house, world.me, "routing_modify_rule", rule_id="mine", updates={"priority": 1})
        await house.call("routing_delete_rule", rule_id="mine")


async def test_a_rule_whose_target_has_ended_is_mended_and_no_new_one_is_made_for_it(open_house) -> None:
    async with open_house() as house:
        world = await settle_world(house, "orchestration")
        everybody = {"round_robin": ["agent:child", "agent:sibling"]}
        await act(house, world.me, "routing_add_rule", rule_id="mine", source_pattern="task:*", target=everybody)
        await house.call("agent_terminate", agent=world.agents["sibling"])
        await act(house, world.me, "routing_modify_rule", rule_id="mine", updates={"priority": 7})
        for way in ({"target": f"agent:{world.agents['sibling']}"}, {"join": {"all_of": ["agent:sibling", "task:a"]}}):
            wanted = {"source_pattern": "task:*", "target": "note:x", **way}
            assert "is terminated" in await refused(house, world.me, "routing_add_rule", Conflict, **wanted)
        mended = {"rule_id": "mine", "updates": {"target": "agent:child"}}
        assert (await act(house, world.me, "routing_modify_rule", **mended))["target"].endswith(world.agents["child"])


# -- what reach means -------------------------------------------------------------------------------


async def test_to_ask_for_one_agent_is_the_same_as_to_look_it_up_among_all(open_house) -> None:
    """Agents at random places of a random forest, some of them in runs that others of them started."""
    async with open_house() as house:
        chance = random.Random(11)
        agents: list[str] = []
        runs: list[str] = []
        for n in range(40):
            if n % 8 == 4:
                runs.append(f"o_{n}")
                await house.run(runs[-1])
                await execute(
                    house,
                    f"UPDATE orchestration SET created_by = 'agent:{chance.choice(agents)}' "
                    f"WHERE orchestration_id = '{runs[-1]}'",
                )
            parent = chance.choice([None, *agents])
            run = chance.choice([None, *runs]) if parent is None else None
            agents.append(await spawn(house, f"n{n}", parent=parent, run=run))

        def check(tx: Tx, ctx: Context) -> int:
            able, seen = reach.routable(tx, ctx), reach.visible(tx, ctx)
            for agent in agents:
                assert reach.may_route(tx, ctx, agent) == (able is None or agent in able)
                try:
                    assert reach.find(tx, ctx, agent).agent_id == agent
                except NotFound:
                    assert seen is not None
                    assert agent not in seen
                else:
                    assert seen is None or agent in seen
            assert reach.may_route(tx, ctx, "a_none") == (able is None)
            return len(agents if able is None else able)

        await execute(house, 'UPDATE agent SET capabilities = \'["base", "routing_control"]\'')
        sizes = set()
        for level in ROUTING_LEVELS:
            await execute(house, f"UPDATE agent SET routing_level = '{level}'")
            for agent in agents:
                ctx = fresh_context(agent_actor(agent))
                sizes.add(await house.app.services.journal.read(lambda tx, ctx=ctx: check(tx, ctx)))
        assert {0, 1, len(agents)} < sizes


async def test_who_started_a_run_routes_the_agents_of_it_and_they_do_not_route_it(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        boss = await spawn(house, "boss", level="children")
        await execute(house, f"UPDATE orchestration SET created_by = 'agent:{boss}'")
        worker = await spawn(house, "worker", level="orchestration", run="o_1")
        rule = {"source_pattern": "task:*", "source_agent": worker, "target": f"agent:{worker}"}
        await act(house, boss, "routing_add_rule", rule_id="theirs", **rule, scope=f"agent:{worker}")
        await act(house, worker, "routing_modify_rule", rule_id="theirs", updates={"priority": 7})
        await act(house, boss, "routing_add_rule", rule_id="bosses", **rule)  # it lives with the boss
        await refused(house, worker, "routing_delete_rule", rule_id="bosses")
        await refused(house, worker, "routing_add_rule", source_pattern="task:*", target=f"agent:{boss}")


async def test_an_agent_of_no_run_has_nobody_but_its_family_at_the_level_orchestration(open_house) -> None:
    async with open_house() as house:
        me = await spawn(house, "me", level="orchestration")
        await spawn(house, "stranger")
        wanted = {"source_pattern": "task:*", "target": "note:x"}
        await refused(house, me, "routing_add_rule", **wanted, scope="orchestration")
        await refused(house, me, "routing_add_rule", **wanted, source_agent="*")
        assert (await act(house, me, "routing_add_rule", **wanted))["source_agent"] == me


async def test_the_filter_of_a_query_does_not_widen_what_is_seen(open_house) -> None:
    async with open_house() as house:
        world = await settle_world(house, "orchestration")
        await house.call("routing_add_rule", rule_id="hidden", **world.rule("other"))
        router, ctx = house.app.services.router, fresh_context(agent_actor(world.me))
        for wanted in (
            RuleFilter(rule_id="hidden"), RuleFilter(orchestration_id="o_2"), RuleFilter(event="task:x"),
            RuleFilter(source_agent=world.agents["other"]), RuleFilter(created_by="operator"),
        ):  # fmt: skip
            inside = replace(ctx, orchestration_id="o_2")  # type: ignore[arg-type]
            page = await house.app.services.journal.read(
                lambda tx, wanted=wanted, inside=inside: router.query_rules(tx, inside, wanted)
            )
            assert page.rules == ()
