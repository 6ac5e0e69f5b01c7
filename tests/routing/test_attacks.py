"""What an agent tries that means harm: each try is refused or bounded, leaves nothing behind, and is in the audit."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import Exhausted, Invalid, KsiError, Refused
from ksi_mcp.permissions import agent_actor, fresh_context
from ksi_mcp.routing.governance import Quotas
from ksi_mcp.routing.outbox import Limits
from ksi_mcp.routing.rules import RuleDraft

EVERY = ("base", "messaging", "spawn_agents", "routing_control", "compositions", "orchestration")
TABLES = ("rule", "rule_history", "control", "agent", "turn", "account", "delayed_event", "orchestration")
SECRET = "sk-test-0123456789abcdef"


async def act(house: Any, agent: str, tool: str, /, **args: Any) -> dict[str, Any]:
    return dict((await house.app.toolbox.call(fresh_context(agent_actor(agent)), tool, args)).data)


async def refused(house: Any, kind: type[KsiError], agent: str, tool: str, /, **args: Any) -> str:
    """The text of the error; nothing was written, and a refusal is in the audit once."""
    before, audit = [house.rows(f"SELECT * FROM {table}") for table in TABLES], house.events("system:refused")
    with pytest.raises(kind) as failure:
        await act(house, agent, tool, **args)
    assert [house.rows(f"SELECT * FROM {table}") for table in TABLES] == before
    text = failure.value.text()
    assert len(text) < 1_000
    news = house.events("system:refused")[len(audit) :]
    assert [entry["actor"] for entry in news] == ([f"agent:{agent}"] if isinstance(failure.value, Refused) else [])
    return text


async def settled(house: Any) -> None:
    """Until nothing is on its way any more."""
    left = (
        "SELECT event_id FROM outbox UNION ALL "
        "SELECT turn_id FROM turn WHERE state NOT IN ('done', 'failed', 'cancelled') LIMIT 1"
    )
    await house.until(lambda: house.rows(left) == [])


# -- more than its spawner has ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ({"capabilities": ["base", "decisions"]}, "decisions"),
        ({"capabilities": ["operator"]}, "operator"),
        ({"capabilities": ["routing_control"], "routing": {"routing_level": "orchestration"}}, "orchestration"),
        ({"capabilities": ["routing_control"], "routing": {"routing_level": "global"}}, "global"),
        ({"capabilities": ["base"], "routing": {"routing_level": "self"}}, "routing_control"),
        ({"parent": "victim"}, "victim"),
        ({"capabilities": ["base"], "created_by": "operator"}, "created_by"),
        ({"routing": {"rules": [{"source_pattern": "a:b", "target": "agent:victim"}]}}, "victim"),
        ({"routing": {"rules": [{"source_pattern": "a:b", "target": "x:y"}], "scope": "global"}}, "global"),
    ],
)  # fmt: skip
async def test_a_child_with_more_than_its_spawner_is_not_made(open_house, wanted: dict[str, Any], shown: str) -> None:
    async with open_house() as house:
        await house.spawn("victim")
        agent = await house.spawn("a", EVERY)
        assert shown in await refused(house, KsiError, agent, "agent_spawn", name="kid", prompt="x", **wanted)
        made = await act(house, agent, "agent_spawn", name="kid", prompt="x", capabilities=list(EVERY))
        ((level,),) = house.rows("SELECT routing_level FROM agent WHERE agent_id = ?", made["agent"])
        assert level == "children"


@pytest.mark.parametrize("level", ["orchestration", "global"])
@pytest.mark.parametrize("way", ["itself", "child", "pattern"])
async def test_no_way_leads_to_a_higher_level_than_ones_own(open_house, way: str, level: str) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", EVERY, routing={"routing_level": "self"})
        kid = (await act(house, agent, "agent_spawn", name="kid", prompt="x", capabilities=list(EVERY)))["agent"]
        if way == "pattern":
            ear = {"prompt": "You listen.", "capabilities": list(EVERY), "routing_level": level}
            document = {
                "name": "wide", "type": "orchestration", "agents": {"ear": ear},
                "orchestration_logic": {"strategy": "Listen."},
            }  # fmt: skip
            await house.call(
                "composition_discover"
            )  # the index follows the files before anybody looks at what is written
            assert "would ask for" in await refused(house, Refused, agent, "composition_create", document=document)
            await house.call("composition_create", document=document)  # somebody else has written it
            assert "cannot grant routing_level" in await refused(
                house, Refused, agent, "orchestration_start", pattern="wide"
            )
        else:
            target = {"agent": agent if way == "itself" else kid, "routing_level": level}
            assert level in await refused(house, Refused, agent, "agent_update", **target)
        assert set(house.rows("SELECT routing_level FROM agent")) <= {("self",), ("none",)}


async def test_a_child_spends_from_the_account_of_its_spawner_whatever_it_was_promised(open_house) -> None:
    prices = {"m": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}}
    async with open_house({"default": {"reply": "ok"}}, prices=prices) as house:
        agent = await house.spawn("a", EVERY, budget={"turns": 1})
        rich = {"name": "kid", "prompt": "x", "model": "m", "capabilities": ["base"], "budget": {"turns": 1_000}}
        await act(house, agent, "agent_spawn", **rich)
        assert [(await house.ask("kid"))["status"] for _ in range(2)] == ["done", "failed"]
        house.books()


async def test_what_is_in_the_way_of_a_rule_tells_nothing_of_rules_of_another_run(open_house) -> None:
    async with open_house() as house:
        for run in ("o_1", "o_2"):
            await house.run(run)
        able = {"routing": {"routing_level": "orchestration"}}
        theirs = await house.spawn("theirs", EVERY, orchestration="o_1", **able)
        agent = await house.spawn("a", EVERY, orchestration="o_2", **able)
        rule = {"source_pattern": "plan:*", "target": "secret:step", "scope": "orchestration:o_1"}
        await house.call("routing_add_rule", rule_id="secret1", **rule, exclusive=True, priority=900)
        back = {**rule, "source_pattern": "secret:*", "target": "plan:next", "priority": 800}
        text = await refused(house, Refused, theirs, "routing_add_rule", rule_id="secret2", **back)
        assert "plan:next [secret2] -> secret:step [secret1] -> secret:*" in text
        wanted = {"source_pattern": "secret:step", "target": "plan:next"}
        text = await refused(house, Refused, agent, "routing_add_rule", **wanted)
        told = await act(house, agent, "routing_validate_rule", **wanted)
        assert told["cycle"][2] == "? [a rule that you may not see]"
        more = await act(house, agent, "routing_validate_rule", source_pattern="plan:*", target="note:x")
        last = {"source_pattern": "plan:*", "target": "note:x", "priority": 950, "exclusive": True}
        most = await act(house, agent, "routing_validate_rule", **last)
        assert more["warnings"][1:] == ["an exclusive rule that you may not see may keep events from it"]
        assert "secret1" not in f"{text} {told} {more} {most}"
        shown = await house.call("routing_validate_rule", **wanted)
        assert shown["cycle"][2] == "secret:step [secret1]"


async def test_an_exclusive_rule_of_an_agents_hides_nothing_from_those_above_it(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", EVERY)
        kid = await house.spawn("kid", EVERY, parent="boss", routing={"routing_level": "self"})
        heard = {"source_pattern": "completion:result", "source_agent": kid}
        await house.call("routing_add_rule", rule_id="yours", **heard, target="log:yours", scope=f"agent:{kid}")
        await act(house, boss, "routing_add_rule", rule_id="above", **heard, target="log:above")
        await act(house, kid, "routing_add_rule", rule_id="own", **heard, target="log:own")
        first = {"target": "log:first", "exclusive": True, "priority": 10_000}
        await act(house, kid, "routing_add_rule", rule_id="first", **heard, **first)
        await house.ask("kid")
        await settled(house)
        told = "SELECT name FROM event WHERE name LIKE 'log:%' ORDER BY name"
        assert house.rows(told) == [("log:above",), ("log:first",), ("log:yours",)]
        (event,) = house.rows("SELECT event_id FROM event WHERE name = 'completion:result'")
        seen = await house.call("routing_explain", event_id=event[0])
        assert [each["rule_id"] for each in seen["fires"]] == ["first", "above", "yours"]
        assert [each["rule_id"] for each in seen["not_firing"]] == ["own"]
        await act(house, boss, "routing_add_rule", rule_id="boss", **heard, **{**first, "priority": 9_000})
        await house.ask("kid")
        await settled(house)
        assert len(house.rows("SELECT event_id FROM event WHERE name = 'log:above'")) == 1  # its own, it may hide
        assert len(house.rows("SELECT event_id FROM event WHERE name = 'log:yours'")) == 2


# -- who it says it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["created_by", "actor", "agent", "as", "by", "source", "routing_level"])
async def test_an_id_in_the_arguments_makes_nobody_else_of_an_agent(open_house, key: str) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", EVERY)
        rule = {"source_pattern": "task:*", "target": "note:x", "rule_id": "r"}
        await refused(house, Invalid, agent, "routing_add_rule", **rule, **{key: "operator"})
        await refused(house, Refused, agent, "routing_add_rule", **rule, scope="global")
        made = await act(house, agent, "routing_add_rule", **rule, metadata={key: "operator"})
        assert made["created_by"] == f"agent:{agent}"
        await refused(house, Invalid, agent, "routing_modify_rule", rule_id="r", updates={key: "operator"})


async def test_an_event_that_says_it_is_the_operators_is_the_agents(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", EVERY)
        await house.call(
            "routing_add_rule", source_pattern="pay:*", target="pay:approved:now", condition="source == 'operator'"
        )
        forged = {"source": "operator", "actor": "operator", "created_by": "operator"}
        await act(house, agent, "event_emit", event="pay:now", data=forged)
        await settled(house)
        assert house.events("pay:approved:now") == []
        await house.call("event_emit", event="pay:now")
        await settled(house)
        assert len(house.events("pay:approved:now")) == 1


async def test_a_rule_of_the_operators_that_an_agent_rewrote_speaks_for_the_agent(open_house) -> None:
    """Else it could put its own words, under any name, into the mouth of the operator."""
    async with open_house() as house:
        await house.run("o_1")
        able = {"orchestration": "o_1", "routing": {"routing_level": "orchestration"}}
        agent = await house.spawn("a", EVERY, **able)
        rule = {"rule_id": "r", "source_pattern": "pay:*", "target": "note:asked", "scope": "orchestration:o_1"}
        await house.call("routing_add_rule", **rule)
        words = {"target": "approval:given", "mapping": {"usd": 1_000_000}}
        await act(house, agent, "routing_modify_rule", rule_id="r", updates=words)
        await house.call("event_emit", event="pay:now")
        await settled(house)
        assert house.rows("SELECT source FROM event WHERE name = 'approval:given'") == [(f"agent:{agent}",)]
        await house.call("routing_modify_rule", rule_id="r", updates={"priority": 1})  # that makes it nobody else's
        assert house.rows("SELECT created_by FROM rule") == [(f"agent:{agent}",)]


@pytest.mark.parametrize("maker", ["peer", "parent"])
async def test_a_rule_of_a_peers_or_a_parents_that_an_agent_rewrote_speaks_for_the_agent(
    open_house, maker: str
) -> None:
    async with open_house() as house:
        await house.run("o_1")
        able = {"orchestration": "o_1", "routing": {"routing_level": "orchestration"}}
        made = await house.spawn(maker, EVERY, **able)
        above = {"parent": maker} if maker == "parent" else {}
        agent = await house.spawn("a", EVERY, **above, **able)
        await act(house, made, "routing_add_rule", rule_id="r", source_pattern="pay:*", target="approval:given")
        words = {"source_agent": agent, "mapping": {"usd": 1_000_000}}
        await act(house, agent, "routing_modify_rule", rule_id="r", updates=words)
        await act(house, agent, "event_emit", event="pay:now")
        await settled(house)
        assert house.rows("SELECT source FROM event WHERE name = 'approval:given'") == [(f"agent:{agent}",)]
        assert house.rows("SELECT created_by FROM rule") == [(f"agent:{agent}",)]


async def test_a_rule_of_a_childs_that_its_parent_rewrote_speaks_for_the_child_still(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", EVERY)
        kid = await house.spawn("kid", EVERY, parent="boss")
        await act(house, kid, "routing_add_rule", rule_id="r", source_pattern="pay:*", target="note:asked")
        await act(house, boss, "routing_modify_rule", rule_id="r", updates={"priority": 7})
        assert house.rows("SELECT created_by FROM rule") == [(f"agent:{kid}",)]


async def test_a_rule_that_becomes_an_agents_by_a_change_counts_as_its_own(open_house) -> None:
    async with open_house() as house:
        house.app.services.router._editor.quotas = Quotas(per_agent=1)
        await house.run("o_1")
        able = {"orchestration": "o_1", "routing": {"routing_level": "orchestration"}}
        peer, agent = await house.spawn("peer", EVERY, **able), await house.spawn("a", EVERY, **able)
        for maker, rule_id in ((peer, "r"), (agent, "own")):
            await act(house, maker, "routing_add_rule", rule_id=rule_id, source_pattern="pay:*", target="note:asked")
        text = await refused(house, Exhausted, agent, "routing_modify_rule", rule_id="r", updates={"priority": 7})
        assert "has 1 rules, the most an agent can have" in text


async def test_what_an_agent_does_in_its_own_turn_is_held_to_its_reach_and_the_model_is_told(open_house) -> None:
    wanted = {"source_pattern": "task:*", "target": "agent:{{groups[1]}}", "scope": "global"}
    script = {
        "replies": [
            {
                "match": {"prompt": "/^Wire (\\w+)/", "round": 1},
                "tool_calls": [{"name": "routing_add_rule", "input": wanted}],
            },
            {"match": {"prompt": "/^Wire/", "round": 2}, "reply": "{{results[0]}}"},
        ]
    }  # fmt: skip
    async with open_house(script) as house:
        victim = await house.spawn("victim")
        agent = await house.spawn("a", EVERY)
        said = await house.ask(agent, f"Wire {victim}")
        assert "may not have a global rule" in said["text"]
        assert house.rows("SELECT * FROM rule") == house.rows("SELECT * FROM rule_history") == []
        (entry,) = house.events("system:refused")
        assert (entry["tool"], entry["actor"]) == ("routing_add_rule", f"agent:{agent}")


@pytest.mark.parametrize(
    "target",
    [
        "agent:spawn", "event:emit", "routing:add_rule", "system:refused", "completion:result", "routing:delivered",
        ["note:x", "agent:spawn"], ["note:x", "system:shutdown"], {"round_robin": ["note:x", "agent:terminate"]},
        {"all": ["budget:overrun"]},
    ],
)  # fmt: skip
async def test_a_rule_neither_runs_a_command_nor_makes_an_event_of_the_server(open_house, target: Any) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", EVERY)
        await act(house, agent, "routing_add_rule", rule_id="mine", source_pattern="task:*", target="note:x")
        for tool, args in (
            ("routing_add_rule", {"source_pattern": "task:*", "target": target}),
            ("routing_modify_rule", {"rule_id": "mine", "updates": {"target": target}}),
        ):
            await refused(house, Refused, agent, tool, **args)
            with pytest.raises(Refused):
                await house.call(tool, **args)


@pytest.mark.parametrize("lost", ["level", "capability", "life"])
async def test_a_delayed_rule_whose_author_lost_the_right_is_not_made(open_house, lost: str) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", EVERY)
        agent = (await act(house, boss, "agent_spawn", name="a", prompt="x", capabilities=list(EVERY)))["agent"]
        kid = (await act(house, agent, "agent_spawn", name="kid", prompt="x", capabilities=["base"]))["agent"]
        rule = {"source_pattern": "task:*", "target": f"agent:{kid}", "source_agent": kid}
        await act(house, agent, "event_emit", event="routing:add_rule", data=rule, delay_s=60)
        change = {"level": {"routing_level": "self"}, "capability": {"capabilities": ["base", "spawn_agents"]}}
        if lost == "life":
            await house.call("agent_terminate", agent=agent)
        else:
            await act(house, boss, "agent_update", agent=agent, **change[lost])
        house.gate.ahead_ms += 61_000
        house.app.services.journal.rung()
        await house.until(lambda: house.rows("SELECT * FROM delayed_event") == [])
        assert house.rows("SELECT * FROM rule") == house.rows("SELECT * FROM rule_history") == []
        (failed,) = house.events("system:delayed_failed")
        assert (failed["event"], failed["actor"]) == ("routing:add_rule", f"agent:{agent}")
        (entry,) = house.events("system:refused")
        assert entry["actor"] == f"agent:{agent}"


# -- rules made to hurt -----------------------------------------------------------------------------

HOSTILE = [
    {"condition": "x" * 1_000_000},
    {"condition": "(" * 10_000 + "1" + ")" * 10_000},
    {"condition": "9**9**9"},
    {"condition": "9" * 1_900},
    {"condition": "__import__('os').environ"},
    {"condition": "not " * 499 + "1"},
    {"mapping": {"k": "{{env.ANTHROPIC_API_KEY}}"}},
    {"mapping": {"k": "{{config.anthropic.api_key}}"}},
    {"mapping": {"k": "{{secrets.key}}"}},
    {"mapping": {"k": "x" * 1_000_000}},
    {"mapping": {f"k{n}": "{{$}}" for n in range(20_000)}},
    {"mapping": {"a": {"b": {"c": "{{os.environ}}"}}}},
    {"source_agent": "{{env.HOME}}"},
    {"source_pattern": "*:" * 5_000 + "*"},
    {"target": ["note:x"] * 10_000},
    {"target": [f"note:x{n}" for n in range(51)]},
    {"join": {"all_of": [f"note:x{n}" for n in range(21)]}},
    {"join": {"all_of": ["note:a", "note:b"], "by": "{{env.HOME}}"}},
    {"join": {"all_of": ["note:a", "note:b"], "timeout_s": 1e308}},
    {"rate": {"count": 0, "per_s": 1}},
    {"rate": {"count": 10**400, "per_s": 1}},
    {"metadata": {"x": "y" * 5_000}},
    {"priority": 10**400},
    {"ttl_s": 1e308},
]


@pytest.mark.parametrize("wanted", HOSTILE, ids=lambda wanted: f"{next(iter(wanted))}-{str(wanted)[:40]}")
async def test_a_rule_made_to_hurt_is_refused_in_a_few_words(open_house, wanted: dict[str, Any]) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", EVERY)
        await act(house, agent, "routing_add_rule", rule_id="mine", source_pattern="task:*", target="note:x")
        rule = {"source_pattern": "task:*", "target": "note:x", **wanted}
        await refused(house, Invalid, agent, "routing_add_rule", **rule)
        await refused(house, Invalid, agent, "routing_modify_rule", rule_id="mine", updates=wanted)


@pytest.mark.parametrize(
    "path", ["data.__class__", "data.__init__.__globals__", "event.__class__", "$.__dict__", "agent.x", "now.real"]
)
async def test_no_template_reads_more_than_the_event(open_house, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSI_TEST_CREDENTIAL", SECRET)
    async with open_house() as house:
        agent = await house.spawn("a", EVERY)
        mapping = {"stolen": f"{{{{{path}}}}}"}
        await act(house, agent, "routing_add_rule", source_pattern="task:*", target="note:x", mapping=mapping)
        await act(house, agent, "event_emit", event="task:x", data={"a": 1})
        await settled(house)
        assert house.events("note:x") == []
        (failed,) = house.events("routing:mapping_failed")
        assert failed["missing"] == path
        assert SECRET.encode() not in house.home.database.read_bytes()


async def test_a_mapping_that_doubles_what_it_gets_ends_at_the_size_of_an_event(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", EVERY)
        for n in range(15):
            double = {"a": "{{$}}", "b": "{{$}}"}
            rule = {"source_pattern": f"grow:s{n}", "target": f"grow:s{n + 1}", "mapping": double}
            await act(house, agent, "routing_add_rule", **rule)
        await act(house, agent, "event_emit", event="grow:s0", data={"x": "y" * 20_000})
        await settled(house)
        sizes = house.rows("SELECT LENGTH(data) FROM event WHERE name LIKE 'grow:%' ORDER BY event_id")
        assert 1 < len(sizes) < 6
        assert max(sizes) < (262_144 + 1,)
        assert len(house.events("routing:mapping_failed", "routing:undeliverable")) == 1


# -- storms and loops -------------------------------------------------------------------------------


async def test_a_storm_of_rules_meets_the_quota_of_the_agent_and_leaves_room_for_others(open_house) -> None:
    async with open_house() as house:
        router, journal = house.app.services.router, house.app.services.journal
        router._editor.quotas = Quotas(per_agent=20, total=60)
        agent, other = await house.spawn("a", EVERY), await house.spawn("other", EVERY)
        ctx = fresh_context(agent_actor(agent))
        met = 0

        def storm(tx: Any) -> None:
            nonlocal met
            for n in range(10_000):
                try:
                    router.add_rule(tx, ctx, RuleDraft(source_pattern=f"storm:n{n}", target="note:x"))
                except Exhausted as failure:
                    assert failure.message == f"agent:{agent} has 20 rules, the most an agent can have"  # noqa: PT017
                    met += 1

        await journal.commit(storm)
        assert met == 9_980
        assert house.rows("SELECT COUNT(*), COUNT(DISTINCT version) FROM rule_history") == [(20, 20)]
        assert house.rows("SELECT routing_version FROM control") == [(20,)]
        assert len(house.events("routing:rule_added")) == 20
        await refused(house, Exhausted, agent, "routing_add_rule", source_pattern="one:more", target="note:x")
        await act(house, other, "routing_add_rule", source_pattern="one:more", target="note:x")
        await house.call("routing_add_rule", source_pattern="one:more", target="note:x")
        ((mine,),) = house.rows("SELECT rule_id FROM rule WHERE source_pattern = 'storm:n0'")
        await act(house, agent, "routing_delete_rule", rule_id=mine)
        await act(house, agent, "routing_add_rule", source_pattern="one:more", target="note:x")


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ({"source_pattern": "a:x", "target": "b:x"}, {"source_pattern": "b:x", "target": "a:x"}),
        ({"source_pattern": "a:*", "target": "b:x"}, {"source_pattern": "b:**", "target": ["note:z", "a:y"]}),
        (
            {"source_pattern": "a:x", "target": {"round_robin": ["b:x", "c:x"]}},
            {"source_pattern": "c:**", "target": "a:x"},
        ),
        (
            {"source_pattern": "a:x", "target": "b:x", "ttl_s": 60},
            {"source_pattern": "b:x", "target": "a:x", "priority": 1},
        ),
    ],
)
async def test_two_rules_that_feed_each_other_are_refused_or_bounded(
    open_house, there: dict[str, Any], back: dict[str, Any]
) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", EVERY)
        await act(house, agent, "routing_add_rule", rule_id="there", **there)
        text = await refused(house, Refused, agent, "routing_add_rule", rule_id="back", **back)
        assert "would feed itself" in text
        assert "[there]" in text
        assert "[back]" in text
        await act(house, agent, "routing_add_rule", rule_id="back", **back, rate={"count": 3, "per_s": 3_600})
        for way in ({"rate": None}, {"rate": None, "enabled": True}):
            await refused(house, Refused, agent, "routing_modify_rule", rule_id="back", updates=way)
        await act(house, agent, "event_emit", event="a:x")
        await settled(house)
        made = house.rows("SELECT COUNT(*) FROM event WHERE name IN ('a:x', 'a:y')")
        assert made[0][0] <= 4
        assert house.events("routing:loop_stopped") == []


async def test_a_fan_out_of_two_stops_at_the_quota_of_its_first_cause(open_house) -> None:
    async with open_house() as house:
        house.app.services.router._pump._limits = Limits(deliveries_per_root=500)
        for n in range(16):
            both = [f"fan{n + 1}:left", f"fan{n + 1}:right"]
            await house.call("routing_add_rule", rule_id=f"fan{n}", source_pattern=f"fan{n}:*", target=both)
        await house.call("event_emit", event="fan0:go")
        await settled(house)
        assert house.rows("SELECT COUNT(*) FROM event WHERE name LIKE 'fan%'") == [(501,)]
        (stopped,) = house.events("routing:loop_stopped")
        assert (stopped["reason"], stopped["limit"]) == ("quota", 500)
        assert stopped["chain"][0].startswith("fan0:go")
        await house.call("event_emit", event="fan15:go")  # another first cause has a quota of its own
        await settled(house)
        assert house.rows("SELECT COUNT(*) FROM event WHERE name LIKE 'fan16:%'") == [(2,)]


THANKS = {"default": {"reply": "Thank you, and thank you again!"}}


async def test_seventeen_agents_that_thank_each_other_in_a_ring_stop_as_deep_as_a_chain_may_be(open_house) -> None:
    """Each turn starts the count of hops anew, so it is the depth that ends such a loop."""
    async with open_house(THANKS, prices={"m": "free"}) as house:
        await house.run("o_1")
        await house.app._db._writer.call(
            lambda connection: connection.execute("UPDATE orchestration SET max_depth = 51")
        )
        ring = [await house.spawn(f"n{n}", orchestration="o_1") for n in range(17)]
        for n, agent in enumerate(ring):
            await house.call(
                "routing_add_rule", rule_id=f"polite{n}", source_pattern="completion:result", source_agent=agent,
                target=f"agent:{ring[(n + 1) % 17]}", mapping={"said": "{{data.text}}"}, scope="orchestration:o_1",
            )  # fmt: skip
        await house.call("agent_send", agent=ring[0], message="Thank you!")
        await settled(house)
        assert house.rows("SELECT COUNT(*), MAX(depth), MAX(hops) FROM turn") == [(51, 51, 1)]
        assert set(house.rows("SELECT COUNT(*) FROM turn GROUP BY session_id")) == {(3,)}
        (stopped,) = house.events("routing:loop_stopped")
        assert (stopped["reason"], stopped["limit"], stopped["rule_id"]) == ("depth", 51, "polite16")
        assert stopped["chain"][0] == "..."
        assert stopped["chain"][-1].startswith("completion:result")
        spoke = [step.split(" ")[2] for step in stopped["chain"] if step.startswith("turn of ")]
        assert spoke == [f"n{n}" for n in range(17)][-len(spoke) :]
        assert len(spoke) >= 9  # as many steps as are shown


async def test_agents_that_send_to_each_other_by_themselves_stop_there_too(open_house) -> None:
    call = {"name": "agent_send", "input": {"agent": "{{groups[1]}}", "message": "Pass it to {{agent}}"}}
    script = {"replies": [{"match": {"prompt": "/^Pass it to (\\w+)/", "round": 1}, "tool_calls": [call]}]}
    async with open_house(script, prices={"m": "free"}) as house:
        await house.run("o_1")
        await house.app._db._writer.call(
            lambda connection: connection.execute("UPDATE orchestration SET max_depth = 10")
        )
        for name in ("ping", "pong"):
            await house.spawn(name, ("base", "messaging"), orchestration="o_1")
        await house.call("agent_send", agent="ping", message="Pass it to pong")
        await settled(house)
        assert house.rows("SELECT COUNT(*), MAX(depth) FROM turn") == [(10, 10)]
        (entry,) = house.events("system:refused")
        assert entry["tool"] == "agent_send"
        assert "10 turns" in entry["reason"]
