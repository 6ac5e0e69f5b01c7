"""What is said, once, when something is wrong; and the figures behind it."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.orchestrations.metrics import Group, first_event, quantile
from ksi_mcp.orchestrations.monitor import Monitor
from ksi_mcp.permissions import agent_actor, fresh_context

SLOW = {
    "replies": [{"match": {"prompt": "slow"}, "reply": "late", "latency_s": 60}],
    "default": {"reply": "{{agent}}: {{prompt}}"},
}
SELDOM = {"every_s": 3600}
"""The tests look themselves."""


async def on_writer(house: Any, sql: str) -> None:
    await house.app._db._writer.call(lambda connection: connection.execute(sql))


# -- conditions -------------------------------------------------------------------------------------


async def test_a_backlog_is_said_once_until_it_is_over_and_again_when_it_returns(open_house) -> None:
    async with open_house(SLOW, monitor={**SELDOM, "backlog": 5}) as house:
        agent, look = await house.spawn("a"), house.app.monitor.look

        async def load() -> list[str]:
            await house.call("agent_send", agent="a", message="slow")
            await house.started()
            return [(await house.call("agent_send", agent="a", message="next"))["turn"] for _ in range(5)]

        turns = await load()
        for _ in range(3):
            await look()
        (event,) = house.events("monitor:backlog")
        assert (event["waiting"], event["threshold"]) == (5, 5)
        assert event["agents"] == [{"agent": agent, "name": "a", "waiting": 5}]
        await Monitor(house.app.services.journal, house.app.config.monitor).look()  # of the next worker
        assert len(house.events("monitor:backlog")) == 1
        house.gate.opened.set()
        await house.call("agent_wait", turns=turns, timeout_s=10)
        for _ in range(2):
            await look()
        (cleared,) = house.events("monitor:cleared")
        assert (cleared["condition"], cleared["waiting"]) == ("backlog", 0)
        house.gate.opened.clear()
        await load()
        await look()
        assert len(house.events("monitor:backlog")) == 2


async def test_a_backlog_is_over_only_at_four_fifths_of_its_threshold(open_house) -> None:
    async with open_house(SLOW, monitor={**SELDOM, "backlog": 10}) as house:
        await house.spawn("a")
        await house.call("agent_send", agent="a", message="slow")
        await house.started()
        said, turns = [], []
        for waiting in (9, 10, 9, 10, 8, 9):
            while len(turns) < waiting:
                turns.append((await house.call("agent_send", agent="a", message="next"))["turn"])
            while len(turns) > waiting:
                await house.call("completion_cancel", turn=turns.pop())
            await house.app.monitor.look()
            said.append((len(house.events("monitor:backlog")), len(house.events("monitor:cleared"))))
        assert said == [(0, 0), (1, 0), (1, 0), (1, 0), (1, 1), (1, 1)]


async def test_what_is_suspended_is_no_backlog(open_house) -> None:
    async with open_house(SLOW, monitor={**SELDOM, "backlog": 1}) as house:
        agent = await house.spawn("a")
        await on_writer(house, f"UPDATE session SET suspended = 1 WHERE session_id = '{agent}'")
        await house.call("agent_send", agent="a", message="held")
        await house.app.monitor.look()
        assert house.events("monitor:backlog") == []


async def test_a_rate_of_time_outs_is_said_once_and_not_for_a_handful_of_turns(open_house) -> None:
    async with open_house(monitor={**SELDOM, "timeout_rate": 0.5}) as house:
        await house.spawn("a")
        for _ in range(4):
            await house.ask("a")
        await on_writer(house, "UPDATE turn SET state = 'timed_out'")
        await on_writer(house, "UPDATE session SET changes = changes + 1")  # as every end of a turn does
        await house.app.monitor.look()
        assert house.events("monitor:timeout_rate") == []
        await house.ask("a")
        for _ in range(2):
            await house.app.monitor.look()
        (event,) = house.events("monitor:timeout_rate")
        assert (event["ended"], event["timed_out"], event["rate"], event["threshold"]) == (5, 4, 0.8, 0.5)
        house.gate.ahead_ms += 400_000  # they leave the window
        await house.app.monitor.look()
        assert [event["condition"] for event in house.events("monitor:cleared")] == ["timeout_rate"]


async def test_a_stuck_turn_is_said_once(open_house) -> None:
    async with open_house(SLOW, monitor={**SELDOM, "stuck_s": 60}) as house:
        agent = await house.spawn("a")
        turn = await house.call("agent_send", agent="a", message="slow", timeout_s=100)
        await house.started()
        house.gate.ahead_ms += 150_000
        for _ in range(2):
            await house.app.monitor.look()
        assert house.events("monitor:stuck_agent") == []  # within its deadline and the grace
        house.gate.ahead_ms += 20_000
        await house.app.monitor.look()
        assert house.events("monitor:stuck_agent") == []  # it might have been claimed a moment ago
        for _ in range(3):
            await house.app.monitor.look()
        other = Monitor(house.app.services.journal, house.app.config.monitor)
        for _ in range(2):
            await other.look()
        (event,) = house.events("monitor:stuck_agent")
        assert (event["agent"], event["turn"], event["attempt"], event["deadline_s"]) == (agent, turn["turn"], 1, 100)
        assert event["silent_s"] > 160
        house.gate.opened.set()
        await house.call("agent_wait", turns=[turn["turn"]], timeout_s=10)


async def test_rules_hear_what_the_monitor_says(open_house) -> None:
    async with open_house(SLOW, monitor={**SELDOM, "backlog": 1}) as house:
        await house.spawn("a")
        await house.spawn("watcher")
        await house.call("routing_add_rule", source_pattern="monitor:backlog", target="agent:watcher")
        await house.call("agent_send", agent="a", message="slow")
        await house.started()
        await house.call("agent_send", agent="a", message="next")
        await house.app.monitor.look()
        await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE prompt LIKE 'Event monitor:backlog%'") != [])


async def test_nothing_is_looked_for_that_nobody_asked_for(open_house) -> None:
    async with open_house(SLOW, monitor={**SELDOM, "stuck_s": None}) as house:
        await house.spawn("a")
        await house.call("agent_send", agent="a", message="slow")
        await house.started()
        house.gate.ahead_ms += 10_000_000
        for _ in range(3):
            await house.app.monitor.look()
        assert house.rows("SELECT * FROM event WHERE name LIKE 'monitor:%'") == []


# -- figures ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1), st.floats(0.001, 1))
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[int], share: float) -> None:
    found = quantile(values, share)
    assert sum(value <= found for value in values) >= math.ceil(share * len(values))
    assert sum(value < found for value in values) < math.ceil(share * len(values))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_the_variance_is_that_of_a_sample(scores: list[float]) -> None:
    group = Group("x")
    group.scores += scores
    variance = group.score_variance
    assert variance is not None
    assert math.isclose(variance, statistics.variance(scores), rel_tol=1e-6, abs_tol=1e-6)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=20), st.integers(0, 120))
def test_a_window_begins_at_its_first_event_also_where_some_were_pruned(gaps: list[Any], since_ms: int) -> None:
    ids, times, event_id, at_ms = [], [], 0, 0
    for gap, later in gaps:
        event_id, at_ms = event_id + gap, at_ms + later
        ids.append(event_id)
        times.append(at_ms)

    class Log:
        def one(self, name: str, params: dict[str, Any] | None = None) -> dict[str, int] | None:
            if name == "events.last_id":
                return {"event_id": ids[-1] if ids else 0}
            found = [at for at, event_id in enumerate(ids) if event_id >= (params or {})["event_id"]]
            return {"event_id": ids[found[0]], "at_ms": times[found[0]]} if found else None

    first = first_event(Log(), since_ms)  # type: ignore[arg-type]
    assert [at for at in range(len(ids)) if ids[at] >= first] == [at for at in range(len(ids)) if times[at] >= since_ms]


async def test_the_figures_say_what_waits_what_ended_and_what_it_cost(open_house) -> None:
    script = {
        "replies": [*SLOW["replies"], {"match": {"prompt": "bad"}, "fail": {"kind": "request"}}],
        "default": {"reply": "ok", "usage": {"input_tokens": 10, "output_tokens": 5}},
    }
    async with open_house(script) as house:
        await house.run("o_1")
        one = await house.spawn("one", orchestration="o_1")
        two = await house.spawn("two")
        for prompt in ("x", "y", "bad"):
            await house.ask("one", prompt)
        await house.ask("two", "x")
        await house.call("agent_send", agent="two", message="slow")
        await house.started()
        for _ in range(2):
            await house.call("agent_send", agent="two", message="next")
        house.gate.ahead_ms += 7_000
        found = await house.call("monitor_metrics", window_s=60, by="agent")
        total = found["total"]
        assert (total["ended"], total["running"], total["waiting"]) == ({"done": 3, "failed": 1}, 1, 2)
        assert (total["timeout_rate"], total["retry_rate"]) == (0.0, 0.25)
        assert total["tokens"] == 45
        assert total["usd"] == 0.00006  # 3 x (10 x 1 + 5 x 2) micro-dollars
        assert total["oldest_wait_s"] >= 7
        assert total["took_s"].keys() == {"p50", "p90", "p99", "most"}
        groups = {group["key"]: group for group in found["groups"]}
        assert (groups[one]["name"], groups[one]["ended"]) == ("one", {"done": 2, "failed": 1})
        assert (groups[two]["waiting"], groups[two]["tokens"]) == (2, 15)
        runs = await house.call("monitor_metrics", window_s=60, by="orchestration")
        assert [(group["key"], group["ended"]["done"]) for group in runs["groups"]] == [("o_1", 2)]
        (model,) = (await house.call("monitor_metrics", window_s=60, by="model"))["groups"]
        assert (model["key"], model["ended"], model["waiting"]) == ("m", {"done": 3, "failed": 1}, 2)
        inside = await house.call("monitor_metrics", window_s=60, orchestration="o_1")
        assert inside["total"]["ended"] == {"done": 2, "failed": 1}
        assert (await house.call("monitor_metrics", window_s=5))["total"].get("ended") is None
        house.gate.opened.set()


async def test_the_figures_of_rules_are_their_deliveries_and_failures(open_house) -> None:
    async with open_house() as house:
        await house.call("routing_add_rule", rule_id="good", source_pattern="note:x", target="note:y")
        broken = {"source_pattern": "note:x", "target": "note:z", "mapping": {"a": "{{data.missing}}"}}
        await house.call("routing_add_rule", rule_id="broken", **broken)
        for _ in range(3):
            await house.call("event_emit", event="note:x", data={})
        await house.until(lambda: house.rows("SELECT 1 FROM outbox") == [])
        found = await house.call("monitor_metrics", by="rule")
        groups = {group["key"]: group for group in found["groups"]}
        assert (groups["good"]["deliveries"], groups["broken"]["failed_deliveries"]) == (3, 3)


async def test_scores_of_decisions_and_runs_are_gathered(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ("decisions",))
        as_agent = fresh_context(agent_actor(agent))
        for score in (0.2, 0.4, 0.9):
            decision = {"pattern": "p", "decision": "d", "score": score}
            await house.app.toolbox.call(as_agent, "composition_track_decision", decision)
        found = await house.call("monitor_metrics", by="agent")
        (group,) = [group for group in found["groups"] if group["key"] == agent]
        assert group["score"] == {"count": 3, "mean": 0.5, "variance": 0.13}


async def test_an_agent_sees_the_figures_of_its_family_and_its_run_only(open_house) -> None:
    async with open_house() as house:
        await house.run("o_1")
        await house.run("o_2")
        mine = await house.spawn("mine", ("base",), orchestration="o_1")
        await house.spawn("theirs", orchestration="o_2")
        await house.ask("mine")
        await house.ask("theirs")
        as_mine = fresh_context(agent_actor(mine))
        found = (await house.app.toolbox.call(as_mine, "monitor_metrics", {"by": "agent"})).data
        assert [group["key"] for group in found["groups"]] == [mine]
        assert found["total"]["ended"] == {"done": 1}
        with pytest.raises(NotFound, match="unknown orchestration 'o_2'"):
            await house.app.toolbox.call(as_mine, "monitor_metrics", {"orchestration": "o_2"})


@pytest.mark.parametrize("bad", [{"window_s": 0}, {"window_s": 1e9}, {"by": "mood"}, {"window_s": "soon"}])
async def test_a_window_that_is_none_is_refused(open_house, bad: dict[str, Any]) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid):
            await house.call("monitor_metrics", **bad)
