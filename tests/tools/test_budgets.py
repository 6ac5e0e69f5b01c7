"""What may be spent: looked at, changed, accounted for."""

from __future__ import annotations

import pytest

from ksi_mcp.errors import Invalid, NotFound, Refused
from ksi_mcp.permissions import agent_actor, fresh_context

SLOW = {"default": {"reply": "late", "latency_s": 60}}
NO_WRITES = "SELECT COUNT(*) FROM event WHERE name IN ('budget:changed', 'budget:threshold')"


async def account(house, account_id: str) -> dict:
    return (await house.call("budget_status", account=account_id))["accounts"][-1]


async def test_an_account_shows_its_limits_its_time_and_what_happens_at_the_limit(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("one", budget={"usd": 1, "seconds": 60, "policy": "park"})
        house.gate.ahead_ms = 45_000
        await house.ask("one")
        seen = await account(house, agent)
        assert (seen["limit_usd"], seen["limit_seconds"], seen["policy"]) == (1, 60, "park")
        assert 45 <= seen["seconds_used"] < 60
        assert seen["seconds_used"] + seen["seconds_left"] == pytest.approx(60)
        assert (seen["spent_turns"], seen["reported_percent"]) == (1, 50)
        assert [event["percent"] for event in house.events("budget:threshold")] == [50]
        above = await account(house, "global")
        assert above["policy"] == "deny"
        assert "seconds_left" not in above


async def test_a_turn_whose_time_is_up_fails_with_class_budget(open_house) -> None:
    async with open_house() as house:
        await house.spawn("one", budget={"seconds": 60})
        house.gate.ahead_ms = 60_000
        ended = await house.ask("one")
        assert (ended["status"], ended["error_class"]) == ("failed", "budget")
        assert "the time of account" in ended["error"]
        assert house.calls() == []


async def test_a_raised_limit_lets_the_parked_turn_go_on(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("one", budget={"turns": 1, "policy": "park"})
        await house.ask("one")
        waiting = await house.call("agent_send", agent="one", message="more")
        await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE parked_on = 'budget'"))
        changed = await house.call("budget_set", account=agent, limits={"turns": 2})
        assert (changed["limit_turns"], changed["policy"], changed["resumed_turns"]) == (2, "park", 1)
        done = await house.call("agent_wait", turns=[waiting["turn"]], timeout_s=10)
        assert done["census"]["ok"] == 1
        (event,) = house.events("budget:changed")
        assert event == {
            "account": agent, "was": {"turns": 1, "policy": "park"}, "now": {"turns": 2, "policy": "park"},
        }  # fmt: skip
        assert house.rows("SELECT source FROM event WHERE name = 'budget:changed'") == [("operator",)]
        house.books()


async def test_a_change_of_policy_makes_the_parked_turn_ask_again(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("one", budget={"turns": 0, "policy": "park"})
        waiting = await house.call("agent_send", agent="one", message="go")
        await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE parked_on = 'budget'"))
        assert (await house.call("budget_set", account=agent, policy="deny"))["resumed_turns"] == 1
        done = await house.call("agent_wait", turns=[waiting["turn"]], timeout_s=10)
        assert done["turns"][0]["error_class"] == "budget"


async def test_what_is_left_out_stays_and_null_takes_a_limit_away(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("one", budget={"usd": 1, "tokens": 100, "turns": 5, "seconds": 9})
        await house.call("budget_set", account=agent, limits={"usd": 0.29, "tokens": None})
        seen = await account(house, agent)
        assert (seen["limit_usd"], seen["limit_turns"], seen["limit_seconds"]) == (0.29, 5, 9)
        assert "limit_tokens" not in seen
        assert house.rows("SELECT limit_usd_micros FROM account WHERE account_id = ?", agent) == [(290_000,)]


async def test_the_operator_opens_an_account_that_an_overrun_has_closed(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("one")
        await house.app.services.journal.commit(
            lambda tx: tx._connection.execute("UPDATE account SET closed = 1 WHERE account_id = ?", (agent,))
        )
        assert (await house.ask("one"))["error_class"] == "budget"
        assert "closed" not in await house.call("budget_set", account=agent, limits={"usd": 1})
        assert house.events("budget:changed")[0]["reopened"] is True
        assert (await house.ask("one"))["status"] == "done"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "changes nothing"),
        ({"limits": {}}, "changes nothing"),
        ({"limits": {"usd": -1}}, "limits.usd"),
        ({"limits": {"usd": "a lot"}}, "limits.usd"),
        ({"limits": {"usd": float("nan")}}, "usd"),
        ({"limits": {"turns": 2**53}}, "limits.turns"),
        ({"limits": {"tokens": 1.5}}, "limits.tokens"),
        ({"limits": {"euros": 5}}, "euros"),
        ({"policy": "beg"}, "policy"),
    ],
)
async def test_a_senseless_change_is_refused_and_changes_nothing(open_house, args, message) -> None:
    async with open_house() as house:
        before = house.rows("SELECT * FROM account")
        with pytest.raises(Invalid, match=message):
            await house.call("budget_set", account="global", **args)
        with pytest.raises(NotFound, match="unknown account 'nobody'"):
            await house.call("budget_set", account="nobody", policy="park")
        assert house.rows("SELECT * FROM account") == before
        assert house.rows(NO_WRITES) == [(0,)]


async def test_an_agent_lowers_its_own_limits_and_those_below_it_and_raises_none(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        boss = await house.spawn("boss", ("base", "spawn_agents"), orchestration="o_1", budget={"usd": 1, "turns": 9})
        child = await house.spawn("child", parent="boss", orchestration="o_1")
        peer = await house.spawn("peer", orchestration="o_1")
        stranger = await house.spawn("stranger")

        async def change(account: str, **args):
            done = await house.app.toolbox.call(
                fresh_context(agent_actor(boss)), "budget_set", {"account": account, **args}
            )
            return done.data

        assert (await change(boss, limits={"usd": 0.5}))["limit_usd"] == 0.5
        assert (await change(boss, limits={"usd": 0.5, "tokens": 1000}))["limit_tokens"] == 1000
        assert (await change(child, limits={"turns": 3}, policy="park"))["policy"] == "park"
        before = house.rows("SELECT * FROM account")
        for limits in ({"usd": 0.6}, {"usd": None}, {"turns": 10, "usd": 0.1}):
            with pytest.raises(Refused, match=r"may not raise the (usd|turns) limit"):
                await change(boss, limits=limits)
        with pytest.raises(Refused, match="may not raise the turns limit"):
            await change(child, limits={"turns": 4})
        with pytest.raises(Refused, match="may not change what happens at its own limit"):
            await change(boss, policy="terminate")
        for other in (peer, "o_1"):
            with pytest.raises(Refused, match="may not change account"):
                await change(other, limits={"usd": 0})
        for unseen in (stranger, "global"):
            with pytest.raises(NotFound, match="unknown account"):
                await change(unseen, limits={"usd": 0})
        assert house.rows("SELECT * FROM account") == before
        sources = house.rows("SELECT source FROM event WHERE name = 'budget:changed'")
        assert sources == [(f"agent:{boss}",)] * 3


async def test_an_agent_does_not_see_from_its_run_what_is_spent_above_it(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        one = await house.spawn("one", ("base",), orchestration="o_1", budget={"turns": 1})
        await house.call("budget_set", account="global", limits={"turns": 1})
        await house.ask("one")
        told = house.rows(
            "SELECT json_extract(data, '$.account'), json_extract(data, '$.percent'), agent_id, orchestration_id "
            "FROM event WHERE name = 'budget:threshold' AND json_extract(data, '$.percent') = 100"
        )
        assert sorted(told) == [(one, 100, one, "o_1"), ("global", 100, None, None)]


async def test_limits_set_on_the_root_survive_a_restart(open_house, tmp_path) -> None:
    async with open_house(budget={"usd": 50}) as house:
        await house.call("budget_set", account="global", limits={"usd": 5}, policy="park")
    async with open_house(budget={"usd": 50}) as house:
        seen = await account(house, "global")
        assert (seen["limit_usd"], seen["policy"]) == (5, "park")
    async with open_house(budget={"usd": 60}) as house:
        assert (await account(house, "global"))["limit_usd"] == 60


# -------------------------------------------------------------------------------------------- report


async def test_a_report_adds_up_to_what_the_accounts_say_with_the_uncertain_apart(open_house) -> None:
    replies = [{"match": {"prompt": "stuck"}, "reply": "late", "latency_s": 60}]
    async with open_house({"replies": replies}) as house:
        await house.run("o_1")
        one = await house.spawn("one", orchestration="o_1")
        two = await house.spawn("two")
        for agent in ("one", "one", "two"):
            await house.ask(agent)
        stuck = await house.call("agent_send", agent="two", message="stuck")
        await house.started()
        await house.call("completion_cancel", turn=stuck["turn"])
        await house.until(lambda: not house.rows("SELECT 1 FROM hold WHERE state IN ('reserved', 'sent')"))
        report = await house.call("budget_report", group_by="agent")
        named = {group["group"]: group for group in report["groups"]}
        assert set(named) == {one, two}
        assert (named[one]["name"], named[one]["calls"], named[one]["turns"]) == ("one", 2, 2)
        assert "uncertain_usd_micros" not in named[one]
        assert (named[two]["calls"], named[two]["uncertain_calls"]) == (2, 1)
        total = report["total"]
        assert (total["calls"], total["turns"], total["uncertain_calls"]) == (4, 4, 1)
        assert total["usd_micros"] == sum(group["usd_micros"] for group in report["groups"]) > 0
        spent = house.rows("SELECT spent_usd_micros FROM account WHERE account_id = 'global'")
        assert spent == [(total["usd_micros"] + total["uncertain_usd_micros"],)]
        house.books()

        by_model = await house.call("budget_report", group_by="model")
        assert [group["group"] for group in by_model["groups"]] == ["scripted:m"]
        by_run = await house.call("budget_report", group_by="orchestration")
        assert {group["group"]: group["calls"] for group in by_run["groups"]} == {"o_1": 2, "none": 2}
        (day,) = (await house.call("budget_report", group_by="day"))["groups"]
        assert (len(day["group"]), day["calls"]) == (10, 4)
        for each in (by_model, by_run):
            assert each["total"] == total
        of_run = await house.call("budget_report", orchestration="o_1")
        assert of_run["total"]["calls"] == 2
        first = await house.call("budget_report", limit=1)
        assert (len(first["groups"]), first["more"], first["total"]) == (1, True, total)
        later = await house.call("budget_report", since="2999-01-01")
        assert (later["groups"], later["total"]["calls"], later["total"]["usd_micros"]) == ([], 0, 0)


async def test_an_agent_is_shown_the_spend_of_those_it_can_see(open_house) -> None:
    async with open_house() as house:
        one = await house.spawn("one", ("base",))
        await house.spawn("two")
        for agent in ("one", "two", "two"):
            await house.ask(agent)
        done = await house.app.toolbox.call(fresh_context(agent_actor(one)), "budget_report", {"group_by": "model"})
        assert done.data["total"]["calls"] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"group_by": "planet"}, "group_by"),
        ({"since": "yesterday"}, "since is 'yesterday'"),
        ({"limit": 0}, "limit"),
    ],
)
async def test_a_senseless_report_is_refused(open_house, args, message) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid, match=message):
            await house.call("budget_report", **args)
        with pytest.raises(NotFound, match="unknown orchestration"):
            await house.call("budget_report", orchestration="o_nothing")
