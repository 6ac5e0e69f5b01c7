"""A monitor hears of a backlog, spawns a worker and lets a rule spread the tasks, while tasks keep coming."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

LOOKING_S, WORKING_S = 0.05, 1.0
WORKERS = ("worker_a", "worker_b", "worker_c")
TASKS = 44
LEAD = ["base", "messaging", "spawn_agents", "routing_control"]
BACKLOG = '/Event monitor:backlog .*"agents": \\[\\{"agent": "a_\\w+", "name": "(\\w+)", "waiting": (\\d+)/'


def _call(name: str, /, **given: Any) -> dict[str, Any]:
    return {"name": name, "input": given}


def _replies(mode: str) -> list[dict[str, Any]]:
    balanced = {mode: [f"agent:{name}" for name in WORKERS]}
    seen = "{{results[0].agents[3].name}} has {{results[0].agents[3].pending_turns|none}}"
    return [
        {
            "match": {"agent": "dispatcher", "prompt": "/^Task (\\d+)$/", "round": 1},
            "tool_calls": [_call("event_emit", event="task:new", data={"id": "{{groups[1]}}"})],
        },
        {
            "match": {"agent": "worker_*", "prompt": '/Event task:new .*"id": "(\\d+)"/', "round": 1},
            "latency_s": WORKING_S,
            "tool_calls": [_call("event_emit", event="task:done", data={"id": "{{groups[1]}}", "by": "{{agent}}"})],
        },
        {
            "match": {"agent": "monitor", "prompt": "Begin.", "round": 1},
            "tool_calls": [
                _call(
                    "routing_add_rule",
                    rule_id="tasks",
                    source_pattern="task:new",
                    source_agent="dispatcher",
                    target="agent:worker_a",
                )
            ],
        },
        # One thing a round, and each takes its time: tasks go on arriving between them.
        {
            "match": {"agent": "monitor", "prompt": BACKLOG, "round": 1},
            "latency_s": LOOKING_S,
            "tool_calls": [_call("agent_list")],
        },
        {
            "match": {"agent": "monitor", "prompt": BACKLOG, "round": 2},
            "latency_s": LOOKING_S,
            "tool_calls": [_call("agent_spawn", name="worker_c", prompt="You work.", capabilities=["base"])],
        },
        {
            "match": {"agent": "monitor", "prompt": BACKLOG, "round": 3},
            "latency_s": LOOKING_S,
            "tool_calls": [
                _call(
                    "routing_modify_rule",
                    rule_id="tasks",
                    updates={"target": balanced},
                    reason=f"{{{{groups[1]}}}} has {{{{groups[2]}}}} waiting, {seen}",
                )
            ],
        },
    ]


async def _taken(stage: Any) -> list[tuple[int, str, int]]:
    """(task, worker, the delivery's event id), in the order of the deliveries."""
    names = await stage.names()
    ids = {event["event_id"]: int(event["data"]["id"]) for event in await stage.events("task:new")}
    delivered = await stage.events("routing:delivered")
    return [
        (ids[event["data"]["event_id"]], names[event["data"]["target"]], event["event_id"])
        for event in delivered
        if event["data"]["event"] == "task:new"
    ]


@pytest.mark.parametrize("mode", ["least_busy", "round_robin"])
async def test_no_task_is_lost_or_doubled_while_a_direct_rule_becomes_a_balanced_one(troupe, mode: str) -> None:
    async with troupe(_replies(mode), backlog=4) as stage:
        monitor = await stage.call("agent_spawn", name="monitor", prompt="You balance.", capabilities=LEAD)
        for name in ("dispatcher", "worker_a", "worker_b"):
            await stage.call("agent_spawn", name=name, prompt="You work.", capabilities=["base"], parent="monitor")
        await stage.call("routing_add_rule", source_pattern="monitor:backlog", target="agent:monitor")
        await stage.ask("monitor", "Begin.")
        stream = iter(range(1, TASKS + 1))

        async def tasks(count: int) -> None:
            for _ in range(count):
                message = f"Task {next(stream)}"
                turn = await stage.call("agent_send", agent="dispatcher", message=message, wait_s=20)
                assert turn["status"] == "done", turn

        # One worker has all the work. Its backlog is an event of the server, and the monitor hears it.
        await tasks(5)
        await stage.wait("routing:delivered", 5)
        await stage.clock.under_way(1, latency_s=WORKING_S)
        await stage.app.monitor.look()
        for _ in ("it looks", "it spawns"):
            await stage.clock.under_way(1, latency_s=LOOKING_S)
            await tasks(3)
            await stage.clock.advance(LOOKING_S)
        await stage.clock.under_way(1, latency_s=LOOKING_S)
        await asyncio.gather(tasks(3), stage.clock.advance(LOOKING_S))
        (change,) = await stage.wait("routing:rule_modified", 1)
        await tasks(TASKS - 14)
        await stage.wait("routing:delivered", TASKS + 1)  # and the backlog, to the monitor

        # What the monitor changed, and what it had seen.
        names = await stage.names()
        assert names[change["source"]] == "monitor"
        assert names[change["data"]["was"]["target"]] == "worker_a"
        target = change["data"]["rule"]["target"]
        assert {how: [names[agent] for agent in agents] for how, agents in target.items()} == {mode: list(WORKERS)}
        (rule,) = (await stage.call("routing_query_rules", filter={"created_by": f"agent:{monitor['agent']}"}))["rules"]
        assert rule["metadata"]["reason"] == "worker_a has 4 waiting, worker_b has 0"

        # Nobody has finished anything yet, so what each got is what the rule of that moment gave it.
        assert await stage.events("task:done") == []
        taken = await _taken(stage)
        assert sorted(task for task, _, _ in taken) == list(range(1, TASKS + 1))
        before = [worker for _, worker, event_id in taken if event_id < change["event_id"]]
        after = Counter(worker for _, worker, event_id in taken if event_id > change["event_id"])
        assert set(before) == {"worker_a"}
        assert len(before) >= 5 + 3 + 3
        assert set(after) == set(WORKERS)
        if mode == "round_robin":
            assert max(after.values()) - min(after.values()) <= 1
        else:
            together = after + Counter(before)
            assert max(together.values()) - min(together.values()) <= 1

        # Each task is done exactly once, by whoever got it.
        await stage.play_out(WORKING_S)
        done = [(int(fact["id"]), fact["by"]) for fact in await stage.data("task:done")]
        assert sorted(done) == sorted((task, worker) for task, worker, _ in taken)
        await stage.nothing_lost()
        await stage.heard()
