"""Three agents wire themselves into a ring and one takes a helper in: it runs, it is bounded, the run stays usable."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

RATE = {"count": 3, "per_s": 60}
DEPTH = 10
PATTERN = {
    "name": "ring",
    "type": "orchestration",
    "version": "1.0.0",
    "description": "Whoever is there finds an order by itself.",
    "max_depth": DEPTH,
    "agents": {"timekeeper": {"prompt": "You keep the time.", "capabilities": ["base"]}},
}
ABLE = ["base", "routing_control", "spawn_agents"]


def _call(name: str, /, **given: Any) -> dict[str, Any]:
    return {"name": name, "input": given}


def _quick(number: int, event: str, target: str, **more: Any) -> dict[str, Any]:
    return _call("routing_add_rule", rule_id=f"quick_{number}", source_pattern=event, target=target, **more)


BATON = {"event": "baton:passed", "data": {"by": "{{agent}}"}}
REPLIES: list[dict[str, Any]] = [
    {
        "match": {"prompt": "/Next to you is (\\w+)/", "round": 1},
        "tool_calls": [
            _call(
                "routing_add_rule",
                rule_id="ring_{{agent}}",
                source_pattern="baton:passed",
                source_agent="{{agent}}",
                target="agent:{{groups[1]}}",
                rate=RATE,
            )
        ],
    },
    {"match": {"prompt": "Run!", "round": 1}, "tool_calls": [_call("event_emit", **BATON)]},
    {"match": {"prompt": "Event baton:passed", "round": 1}, "tool_calls": [_call("event_emit", **BATON)]},
    {
        "match": {"agent": "ada", "prompt": "Take a helper in.", "round": 1},
        "tool_calls": [
            _call(
                "agent_spawn",
                name="helper",
                prompt="You help.",
                capabilities=["base"],
                routing={
                    "rules": [
                        {
                            "rule_id": "ring_helper",
                            "source_pattern": "baton:passed",
                            "source_agent": "self",
                            "target": "agent:bob",
                            "rate": RATE,
                        }
                    ]
                },
            ),
            _call("routing_modify_rule", rule_id="ring_ada", updates={"target": "agent:helper"}),
        ],
    },
    {
        "match": {"agent": "cyd", "prompt": "Without us.", "round": 1},
        "tool_calls": [
            _quick(1, "quick:one", "quick:two"),
            _quick(2, "quick:two", "quick:three"),
            _quick(3, "quick:three", "quick:one"),
        ],
    },
    {"match": {"agent": "cyd", "prompt": "Without us.", "round": 2}, "reply": "{{results[2]}}"},
    {
        "match": {"agent": "cyd", "prompt": "Without us, but slowly.", "round": 1},
        "tool_calls": [
            _quick(3, "quick:three", "quick:one", rate={"count": 2, "per_s": 60}),
            _call("event_emit", event="quick:one", data={}),
        ],
    },
    {"match": {"prompt": "Are you there?"}, "reply": "{{agent}} is here"},
]


def _round(*names: str) -> list[str]:
    """What is heard when the baton goes round, from the first of these to the last."""
    return [f"{after} <- baton:passed of {before}" for before, after in pairwise(names)]


async def test_a_ring_that_agents_made_runs_grows_and_is_bounded(troupe) -> None:
    async with troupe(REPLIES) as stage:
        await stage.command("composition:create", document=PATTERN)
        run = (await stage.call("orchestration_start", pattern="ring"))["orchestration"]
        ids: dict[str, str] = {}
        for name in ("ada", "bob", "cyd"):
            wide = {"routing_level": "orchestration"}
            made = {"name": name, "prompt": "You run.", "capabilities": ABLE, "orchestration": run, "routing": wide}
            ids[name] = (await stage.call("agent_spawn", **made))["agent"]

        # Each makes its own rule, in its own turn.
        for name, following in (("ada", "bob"), ("bob", "cyd"), ("cyd", "ada")):
            await stage.ask(ids[name], f"Next to you is {following}.")
        rules = {rule["rule_id"]: rule for rule in (await stage.call("routing_query_rules"))["rules"]}
        assert {rule_id: rule["created_by"] for rule_id, rule in rules.items()} == {
            f"ring_{name}": f"agent:{agent}" for name, agent in ids.items()
        }

        # It goes round as often as the rates allow, and says so once.
        await stage.ask(ids["ada"], "Run!")
        laps = _round("ada", *["bob", "cyd", "ada"] * RATE["count"])
        assert await stage.heard() == laps
        (limited,) = await stage.data("routing:rate_limited")
        assert (limited["rule_id"], limited["count"], limited["per_s"]) == ("ring_ada", 3, 60)
        assert await stage.data("routing:loop_stopped") == []

        # A helper, in one turn of one of them: the ring is one longer, and as deep as the run may be.
        await stage.ask(ids["ada"], "Take a helper in.")
        helper = next(agent for agent, name in (await stage.names()).items() if name == "helper")
        rules = {rule["rule_id"]: rule for rule in (await stage.call("routing_query_rules"))["rules"]}
        assert rules["ring_ada"]["target"] == helper
        assert rules["ring_helper"]["created_by"] == f"agent:{ids['ada']}"
        assert rules["ring_helper"]["target"] == f"agent:{ids['bob']}"
        await stage.clock.advance(RATE["per_s"])
        await stage.ask(ids["ada"], "Run!")
        longer = _round("ada", *(["helper", "bob", "cyd", "ada"] * DEPTH)[: DEPTH - 1])
        assert await stage.heard() == laps + longer
        (stopped,) = await stage.data("routing:loop_stopped")
        assert (stopped["reason"], stopped["limit"], stopped["rule_id"]) == ("depth", DEPTH, "ring_helper")
        turns = [step.split(" (")[0].removeprefix("turn of ") for step in stopped["chain"][::2]]
        assert turns == ["ada", *(["helper", "bob", "cyd", "ada"] * DEPTH)[: DEPTH - 1]]
        assert len(await stage.data("routing:rate_limited")) == 1

        # The run is none the worse for it.
        status = await stage.call("orchestration_status", orchestration=run)
        assert status["state"] == "running"
        assert (status["census"]["failed"], status["census"]["pending"]) == (0, 0)
        for name in ("ada", "bob", "cyd"):
            assert await stage.ask(ids[name], "Are you there?") == f"{name} is here"
        await stage.clock.advance(RATE["per_s"])
        await stage.ask(ids["bob"], "Run!")
        assert (await stage.heard())[len(laps + longer) :][:4] == _round("bob", "cyd", "ada", "helper", "bob")


async def test_a_ring_of_events_is_refused_with_its_path_unless_a_rate_slows_it(troupe) -> None:
    async with troupe(REPLIES) as stage:
        cyd = (await stage.call("agent_spawn", name="cyd", prompt="You run.", capabilities=ABLE))["agent"]
        said = await stage.ask("cyd", "Without us.")
        path = "quick:three -> quick:one [quick_3] -> quick:two [quick_1] -> quick:three [quick_2]"
        assert path in said
        assert "rate" in said
        assert {rule["rule_id"] for rule in (await stage.call("routing_query_rules"))["rules"]} == {
            "quick_1",
            "quick_2",
        }
        (refused,) = await stage.data("system:refused")
        assert (refused["tool"], refused["actor"]) == ("routing_add_rule", f"agent:{cyd}")
        assert path in refused["reason"]

        await stage.ask("cyd", "Without us, but slowly.")
        assert len(await stage.events("quick:one")) == 1 + 2
        (limited,) = await stage.data("routing:rate_limited")
        assert limited["rule_id"] == "quick_3"
        assert await stage.data("routing:loop_stopped") == []
