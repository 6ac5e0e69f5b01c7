from __future__ import annotations

import re
from typing import Any

import pytest

from ksi_mcp.errors import Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import Context, agent_actor, fresh_context

TABLES = ("rule", "rule_history", "rule_state", "control", "outbox")


def acting(agent: str) -> Context:
    return fresh_context(agent_actor(agent))


async def call(house: Any, agent: str, tool: str, **args: Any) -> dict[str, Any]:
    return (await house.app.toolbox.call(acting(agent), tool, args)).data


def stored(house: Any) -> list[Any]:
    return [house.rows(f"SELECT * FROM {table}") for table in TABLES]


async def quiet(house: Any) -> None:
    await house.until(lambda: house.rows("SELECT * FROM outbox") == [])


# -- routing_apply ----------------------------------------------------------------------------------


async def test_an_agent_rewires_its_children_in_one_version_by_published_names(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", ("base", "spawn_agents", "routing_control"))
        one = (await call(house, boss, "agent_spawn", name="one", prompt="x"))["agent"]
        two = (await call(house, boss, "agent_spawn", name="two", prompt="x"))["agent"]
        first = await call(
            house,
            boss,
            "routing_apply",
            changes=[
                {"op": "add", "rule_id": "r1", "pattern": "task:*", "target_agent": "one", "from": "two", "ttl": 60},
                {"op": "add", "rule_id": "r2", "source_pattern": "task:*", "targets": ["agent:two"]},
            ],
            reason="to begin with",
        )
        assert [rule["rule_id"] for rule in first["rules"]] == ["r1", "r2"]
        assert {rule["version"] for rule in first["rules"]} == {first["version"]}
        assert first["rules"][0]["target"] == f"agent:{one}"
        assert first["rules"][0]["source_agent"] == two
        assert first["rules"][0]["metadata"] == {"reason": "to begin with"}
        done = await call(
            house,
            boss,
            "routing_apply",
            changes=[
                {"op": "modify", "rule_id": "r2", "priority": 7, "updates": {"target_agent": "one"}, "reason": "busy"},
                {"op": "delete", "rule_id": "r1"},
            ],
        )
        assert done["version"] == first["version"] + 1
        assert (done["rules"][0]["priority"], done["rules"][0]["target"]) == (7, f"agent:{one}")
        assert done["rules"][0]["metadata"] == {"reason": "busy"}
        assert done["deleted"] == ["r1"]


async def test_one_change_beyond_the_reach_refuses_all_and_is_audited_once(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", ("base", "routing_control"))
        await house.spawn("stranger")
        await house.call("routing_add_rule", source_pattern="a:b", target="c:d", rule_id="theirs")
        await quiet(house)
        before = stored(house)
        for change in (
            {"op": "delete", "rule_id": "theirs"},
            {"op": "modify", "rule_id": "theirs", "updates": {"priority": 1}},
            {"op": "add", "source_pattern": "a:b", "target": "c:d", "scope": "global"},
            {"op": "add", "source_pattern": "a:b", "target": "agent:spawn"},
        ):
            with pytest.raises(KsiError, match=r"changes\[1\] \("):
                await call(
                    house, boss, "routing_apply", changes=[{"op": "add", "pattern": "x:y", "target": "y:z"}, change]
                )
            assert stored(house) == before
        told = house.events("system:refused")
        assert [each["tool"] for each in told] == ["routing_apply"] * len(told)
        assert len(told) >= 3


async def test_without_the_capability_nothing_is_applied(open_house) -> None:
    async with open_house() as house:
        plain = await house.spawn("plain", ("base",))
        with pytest.raises(Refused, match="routing_apply needs the capability 'routing_control'"):
            await call(house, plain, "routing_apply", changes=[{"op": "add", "pattern": "a:b", "target": "c:d"}])
        assert house.rows("SELECT * FROM rule") == []


async def test_a_trial_says_what_would_come_of_it_and_leaves_nothing(open_house) -> None:
    async with open_house() as house:
        await house.call("routing_add_rule", source_pattern="a:b", target="c:d", rule_id="r1")
        await quiet(house)
        before, last = stored(house), house.rows("SELECT MAX(event_id) FROM event")
        changes = [{"op": "add", "pattern": "x:y", "target": "y:z", "rule_id": "r2"}, {"op": "delete", "rule_id": "r1"}]
        trial = await house.call("routing_apply", changes=changes, dry_run=True)
        assert (trial["dry_run"], trial["deleted"]) == (True, ["r1"])
        assert stored(house) == before
        assert house.rows("SELECT MAX(event_id) FROM event") == last
        with pytest.raises(Refused, match=r"changes\[0\] \(add 'r2'\): rule 'r2' would feed itself"):
            await house.call(
                "routing_apply",
                changes=[{"op": "add", "pattern": "c:d", "target": "a:b", "rule_id": "r2"}],
                dry_run=True,
            )
        assert stored(house) == before
        done = await house.call("routing_apply", changes=changes)
        assert {**done, "dry_run": True} == trial


async def test_a_change_that_cannot_be_read_is_named_and_changes_nothing(open_house) -> None:
    wrong: list[tuple[Any, str]] = [
        ([], "changes"),
        ([{"op": "add", "pattern": "a:b", "target": "c:d"}] * 201, "changes"),
        ([{}], r"changes\[0\] \(\?\): op is None; one of add, modify, delete"),
        ([{"op": "drop" * 100}], r"changes\[0\] \(\?\): op is 'drop"),
        ([{"op": ["add"]}], r"changes\[0\] \(\?\): op is \['add'\]"),
        ([{"op": "add", "pattern": "a:b"}], r"changes\[0\] \(add\): target: Field required"),
        ([{"op": "add", "pattern": "a:b", "target": "c:d", "colour": 1}], "colour: Extra inputs are not permitted"),
        ([{"op": "add", "pattern": "a:b", "target": "c:d", "condition": "9**9**9"}], r"changes\[0\] \(add\): .*\*\*"),
        ([{"op": "modify"}], "rule_id is None"),
        ([{"op": "modify", "rule_id": "r", "updates": 5}], "updates is 5"),
        ([{"op": "modify", "rule_id": "r", "reason": 5}], "reason is 5"),
        ([{"op": "delete", "rule_id": "r", "force": True}], "unknown fields 'force'"),
        ([{"op": "delete", "rule_id": "\ud800"}], r"unknown rule|cannot be stored"),
        (["x"], "changes"),
    ]
    async with open_house() as house:
        for changes, says in wrong:
            with pytest.raises(KsiError) as error:
                await house.call("routing_apply", changes=changes)
            assert re.search(says, error.value.text())
            assert len(error.value.text().encode("utf-8", "replace")) < 1_500
        assert house.rows("SELECT * FROM rule") == []


async def test_two_hundred_changes_are_one_version(open_house) -> None:
    async with open_house() as house:
        done = await house.call(
            "routing_apply",
            changes=[{"op": "add", "pattern": f"a:n{n}", "target": "c:d", "rule_id": f"r{n}"} for n in range(200)],
        )
        assert len(done["rules"]) == 200
        assert {version for (version,) in house.rows("SELECT version FROM rule")} == {done["version"]}


# -- routing_validate_rule --------------------------------------------------------------------------


async def test_a_rule_that_would_be_taken_comes_with_warnings_and_is_not_made(open_house) -> None:
    async with open_house() as house:
        await house.call(
            "routing_add_rule", source_pattern="a:*", target="x:y", exclusive=True, priority=500, rule_id="first"
        )
        await house.call("routing_add_rule", source_pattern="a:b", target="x:y", priority=5, rule_id="last")
        await quiet(house)
        before = stored(house)
        told = await house.call("routing_validate_rule", pattern="a:b", target=["nobody:hears", "a:x"], exclusive=True)
        assert told["valid"] is True
        assert told["errors"] == told["conflicts"] == []
        assert told["warnings"] == [
            "no rule hears nobody:hears so far: it is recorded, and wakes nobody",
            "rule 'first' (a:*) is exclusive at priority 500: where it delivers an event, this one does not",
            "it keeps what it delivers from 1 of lower priority: last",
        ]
        told = await house.call("routing_validate_rule", pattern="**", target="agent:none", rule_id="last")
        assert (told["valid"], told["conflicts"]) == (False, ["last"])
        assert [each["code"] for each in told["errors"]] == ["conflict", "not_found"]
        everything = await house.call("routing_validate_rule", pattern="*", target="x:y", enabled=False)
        assert everything["warnings"][:2] == [
            "it is not enabled: it does nothing until it is",
            "it hears every event of global, except the server's own",
        ]
        assert stored(house) == before


async def test_everything_that_stands_in_the_way_of_a_rule_is_named(open_house) -> None:
    async with open_house() as house:
        await house.call("routing_add_rule", source_pattern="c:d", target="a:b", rule_id="back")
        await house.call(
            "routing_add_rule", source_pattern="a:b", target="x:y", exclusive=True, priority=5, rule_id="first"
        )
        told = await house.call("routing_validate_rule", pattern="a:b", target="c:d", exclusive=True, priority=5)
        assert told["valid"] is False
        assert [each["code"] for each in told["errors"]] == ["refused", "conflict"]
        assert told["conflicts"] == ["first"]
        assert told["cycle"][0] == told["cycle"][-1] == "a:b"
        assert told["cycle"][2] == "a:b [back]"
        taken = await house.call("routing_validate_rule", pattern="q:r", target="s:t", rule_id="back")
        assert (taken["valid"], taken["conflicts"]) == (False, ["back"])
        assert "there is a rule 'back' already" in taken["errors"][0]["error"]


async def test_a_value_that_no_rule_can_have_is_an_answer_and_not_a_failure(open_house) -> None:
    wrong: list[dict[str, Any]] = [
        {"priority": 10_001}, {"ttl_s": 0}, {"condition": "9**9**9"}, {"condition": "(" * 10_000},
        {"source_pattern": "::"},
        {"target": "agent:spawned"}, {"target": "routing:add_rule"}, {"target": []}, {"rate": {"count": 0}},
        {"join": {"all_of": ["a:b"]}}, {"mapping": {"a" * 9_000: 1}}, {"scope": "everywhere"}, {"rule_id": "Ä"},
        {"metadata": {"x": "y" * 5_000}}, {"join": {"all_of": ["a:b", "c:d"]}, "exclusive": True},
    ]  # fmt: skip
    async with open_house() as house:
        for fields in wrong:
            told = await house.call("routing_validate_rule", **{"source_pattern": "a:b", "target": "c:d", **fields})
            assert told["valid"] is False, fields
            assert len(told["errors"]) == 1
            assert len(told["errors"][0]["error"]) < 500


async def test_an_agent_is_told_what_it_may_not_do(open_house) -> None:
    async with open_house() as house:
        plain = await house.spawn("plain", ("base",))
        told = await call(house, plain, "routing_validate_rule", pattern="a:b", target="c:d", scope="global")
        assert [each["code"] for each in told["errors"]] == ["refused", "refused"]
        assert "routing_control" in told["errors"][0]["error"]
        assert house.events("system:refused") == []
        able = await house.spawn("able", ("base", "routing_control"))
        assert (await call(house, able, "routing_validate_rule", pattern="a:b", target="agent:able"))["valid"] is True
        beyond = await call(house, able, "routing_validate_rule", pattern="a:b", target=f"agent:{plain}")
        assert beyond["valid"] is False


# -- routing_rollback -------------------------------------------------------------------------------


async def test_the_operator_goes_back_and_an_agent_does_not(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", ("base", "routing_control"))
        await house.call("routing_add_rule", source_pattern="a:b", target="c:d", rule_id="r1")
        version = (await house.call("routing_explain", event="a:b"))["table_version"]
        was = await house.call("routing_query_rules")
        await house.call("routing_modify_rule", rule_id="r1", updates={"priority": 1})
        await house.call("routing_add_rule", source_pattern="a:b", target="e:f", rule_id="r2")
        await quiet(house)
        before = stored(house)
        with pytest.raises(Refused, match="routing_rollback needs the capability 'operator'"):
            await call(house, boss, "routing_rollback", to_version=version, reason="mine")
        trial = await house.call("routing_rollback", to_version=version, reason="a bad day", dry_run=True)
        assert (trial["changes"], trial["modified"], trial["deleted"], trial["dry_run"]) == (2, ["r1"], ["r2"], True)
        assert stored(house) == before
        done = await house.call("routing_rollback", to_version=version, reason="a bad day")
        assert done == {
            "version": version + 3, "to_version": version, "changes": 2, "added": [], "modified": ["r1"],
            "deleted": ["r2"], "skipped": [],
        }  # fmt: skip
        assert await house.call("routing_query_rules") == was
        fired = (await house.call("routing_explain", event="a:b"))["fires"]
        assert [each["rule_id"] for each in fired] == ["r1"]


async def test_a_rollback_to_nowhere_is_refused(open_house) -> None:
    wrong: list[dict[str, Any]] = [
        {"to_version": 99, "reason": "x"}, {"to_version": -1, "reason": "x"}, {"to_version": 2**70, "reason": "x"},
        {"to_version": 0, "reason": ""}, {"to_version": 0}, {"to_version": "yesterday", "reason": "x"},
    ]  # fmt: skip
    async with open_house() as house:
        await house.call("routing_add_rule", source_pattern="a:b", target="c:d")
        await quiet(house)
        before = stored(house)
        for args in wrong:
            with pytest.raises(Invalid):
                await house.call("routing_rollback", **args)
        assert stored(house) == before


async def test_a_table_that_was_rolled_back_is_the_same_after_a_restart_and_delivers(open_house) -> None:
    async with open_house() as house:
        await house.call("routing_add_rule", source_pattern="a:b", target="good:one", rule_id="r1")
        version = (await house.call("routing_explain", event="a:b"))["table_version"]
        await house.call("routing_modify_rule", rule_id="r1", updates={"target": "bad:one"})
        await house.call("routing_rollback", to_version=version, reason="bad")
        was = await house.call("routing_query_rules")
        await house.call("event_emit", event="a:b")
        await house.until(lambda: house.events("good:one") != [])
    async with open_house() as house:
        assert await house.call("routing_query_rules") == was
        assert house.events("bad:one") == []


# -- routing_audit ----------------------------------------------------------------------------------


async def test_the_audit_says_who_did_what_when_and_why_and_who_was_refused(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", ("base", "routing_control"))
        await call(
            house, boss, "routing_add_rule", source_pattern="a:b", target="agent:boss", rule_id="own", reason="why not"
        )
        await house.call("routing_add_rule", source_pattern="a:b", target="c:d", rule_id="r1")
        await house.call("routing_modify_rule", rule_id="r1", updates={"priority": 9}, reason="too late")
        with pytest.raises(Refused):
            await call(house, boss, "routing_delete_rule", rule_id="r1", reason="in my way")
        with pytest.raises(Refused):
            await call(house, boss, "agent_spawn", name="x", prompt="y")
        await house.call("routing_delete_rule", rule_id="r1", reason="done")
        await house.call("routing_rollback", to_version=2, reason="not done")
        entries = (await house.call("routing_audit"))["entries"]
        assert [(each["actor"], each["action"], each.get("rule_id"), each.get("version")) for each in entries] == [
            ("operator", "rollback", None, 5),
            ("operator", "add", "r1", 5),
            ("operator", "delete", "r1", 4),
            (f"agent:{boss}", "refuse", None, None),
            ("operator", "modify", "r1", 3),
            ("operator", "add", "r1", 2),
            (f"agent:{boss}", "add", "own", 1),
        ]
        assert [each.get("reason", "")[:8] for each in entries[:3]] == ["not done", "not done", "done"]
        assert entries[3]["details"]["tool"] == "routing_delete_rule"
        assert entries[4]["was"] == {"priority": 100}
        assert entries[4]["reason"] == "too late"
        assert entries[6]["reason"] == "why not"
        assert entries[6]["rule"]["target"] == f"agent:{boss}"
        of = [each["action"] for each in (await house.call("routing_audit", rule_id="r1"))["entries"]]
        assert of == ["add", "delete", "refuse", "modify", "add"]
        assert len((await house.call("routing_audit", actor="boss"))["entries"]) == 2
        assert len((await house.call("routing_audit", filter={"actor": "operator", "action": "add"}))["entries"]) == 2
        assert len((await house.call("routing_audit", since=entries[3]["event_id"]))["entries"]) == 3
        seen, cursor = [], None
        for _ in range(4):
            page = await house.call("routing_audit", limit=2, **({} if cursor is None else {"cursor": cursor}))
            seen += page["entries"]
            cursor = page.get("cursor")
        assert (seen, cursor) == (entries, None)
        # An agent sees what it did and what concerns it.
        own = (await call(house, boss, "routing_audit"))["entries"]
        assert [(each["action"], each.get("rule_id")) for each in own] == [("refuse", None), ("add", "own")]


async def test_an_audit_of_nothing_is_a_clear_error(open_house) -> None:
    wrong: list[dict[str, Any]] = [
        {"cursor": "²"}, {"limit": 0}, {"action": "burn"}, {"actor": "nobody"}, {"orchestration": "o_none"},
        {"since": -1},
        {"filter": {"colour": "red"}}, {"filter": 5}, {"rule_id": "\ud800"},
    ]  # fmt: skip
    async with open_house() as house:
        for args in wrong:
            with pytest.raises((Invalid, NotFound)) as error:
                await house.call("routing_audit", **args)
            assert len(error.value.text()) < 1_000


async def test_two_agents_that_fight_over_a_rule_are_stopped_and_everybody_sees_why(open_house) -> None:
    async with open_house() as house:
        boss = await house.spawn("boss", ("base", "spawn_agents", "routing_control"))
        await call(house, boss, "agent_spawn", name="one", prompt="x")
        await call(house, boss, "agent_spawn", name="two", prompt="x")
        await call(house, boss, "routing_add_rule", source_pattern="t:t", target="agent:one", rule_id="r")
        for to in ["agent:two", "agent:one"] * 3:
            await call(house, boss, "routing_modify_rule", rule_id="r", updates={"target": to})
        with pytest.raises(Refused, match="rule 'r' was changed too often"):
            await call(house, boss, "routing_modify_rule", rule_id="r", updates={"target": "agent:two"})
        [told] = (await call(house, boss, "routing_audit", action="damp"))["entries"]
        assert (told["rule_id"], told["details"]["undone"]) == ("r", 3)
        assert "frozen_until" in (await house.call("routing_query_rules"))["rules"][0]
        with pytest.raises(Refused, match="rule 'r' was changed too often"):
            await house.call("routing_delete_rule", rule_id="r")
        await house.call("agent_terminate", agent="boss")
        assert (await house.call("routing_query_rules"))["rules"] == []
