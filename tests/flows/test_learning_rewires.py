"""What was learned changes the wiring: a line of three becomes two side by side, joined before the last."""

from __future__ import annotations

from datetime import datetime
from typing import Any

CHECK_S = 0.05
ROLES = ("author", "facts", "style", "editor")
# What the planner may fall back on; a script has templates of its own, so it reads those of the rule from here.
SIDE_BY_SIDE = {
    "rule_id": "both",
    "source_pattern": "*:checked",
    "scope": "orchestration",
    "join": {"all_of": ["facts:checked", "style:checked"], "by": "{{data.doc}}", "timeout_s": 600},
    "target": "agent:editor",
    "mapping": {
        "doc": "{{data.key}}",
        "facts": '{{data.parts["facts:checked"].found}}',
        "style": '{{data.parts["style:checked"].found}}',
    },
}
PATTERN = {
    "name": "review_desk",
    "type": "orchestration",
    "version": "1.0.0",
    "description": "A draft is checked for its facts and for its style, and then edited.",
    "agents": {role: {"prompt": f"You are {role}.", "capabilities": ["base"]} for role in ROLES},
    "metadata": {"side_by_side": SIDE_BY_SIDE},
}
ABLE = ["base", "routing_control", "decisions"]


def _call(name: str, /, **given: Any) -> dict[str, Any]:
    return {"name": name, "input": given}


def _rule(rule_id: str, pattern: str, source: str, target: str) -> dict[str, Any]:
    wanted = {"rule_id": rule_id, "source_pattern": pattern, "source_agent": source, "target": f"agent:{target}"}
    return _call("routing_add_rule", **wanted)


def _check(agent: str, prompt: str, event: str, **data: Any) -> dict[str, Any]:
    return {
        "match": {"agent": agent, "prompt": prompt, "round": 1},
        "latency_s": CHECK_S,
        "tool_calls": [_call("event_emit", event=event, data={"doc": "{{groups[1]}}", **data})],
    }


REWIRE = "facts and style do not need each other"
NEW = "{{results[0].document.metadata.side_by_side."
REPLIES: list[dict[str, Any]] = [
    {
        "match": {"agent": "author", "prompt": "/^Write (\\w+)$/", "round": 1},
        "tool_calls": [_call("event_emit", event="draft:ready", data={"doc": "{{groups[1]}}"})],
    },
    _check("facts", '/Event draft:ready .*"doc": "(\\w+)"/', "facts:checked", found="two wrong dates"),
    _check("style", '/Event draft:ready .*"doc": "(\\w+)"/', "style:checked", found="long sentences"),
    _check(
        "style",
        '/Event facts:checked .*"doc": "(\\w+)", "found": "([^"]+)"/',
        "style:checked",
        found="{{groups[2]}}, long sentences",
    ),
    _check(
        "editor",
        '/"doc": "(\\w+)", "facts": "([^"]+)", "style": "([^"]+)"/',
        "report:ready",
        text="{{groups[2]}}, {{groups[3]}}",
    ),
    _check("editor", '/"doc": "(\\w+)", "found": "([^"]+)"/', "report:ready", text="{{groups[2]}}"),
    {
        "match": {"agent": "planner", "prompt": "Build the line.", "round": 1},
        "tool_calls": [
            _rule("draft", "draft:ready", "author", "facts"),
            _rule("facts", "facts:checked", "facts", "style"),
            _rule("style", "style:checked", "style", "editor"),
        ],
    },
    {
        "match": {"agent": "planner", "prompt": REWIRE, "round": 1},
        "tool_calls": [_call("composition_get", name="review_desk")],
    },
    {
        "match": {"agent": "planner", "prompt": REWIRE, "round": 2},
        "tool_calls": [
            _call(
                "routing_apply",
                changes=[
                    {"op": "modify", "rule_id": "draft", "updates": {"target": ["agent:facts", "agent:style"]}},
                    {"op": "delete", "rule_id": "facts"},
                    {"op": "delete", "rule_id": "style"},
                    {"op": "add", **{key: NEW + key + "}}" for key in SIDE_BY_SIDE}},
                ],
                reason="{{prompt}}",
            )
        ],
    },
    {
        "match": {"agent": "planner", "prompt": "/In line: ([\\d.]+) s, side by side: ([\\d.]+) s/", "round": 1},
        "tool_calls": [
            _call(
                "composition_track_decision",
                pattern="review_desk",
                decision="side_by_side",
                context={"in_line_s": "{{groups[1]}}", "side_by_side_s": "{{groups[2]}}"},
                reasoning="facts and style do not need each other",
                outcome="kept",
            )
        ],
    },
]


async def _took_s(stage: Any) -> float:
    """From the newest draft to the newest report."""
    draft, report = [
        datetime.fromisoformat((await stage.events(f"{what}:ready"))[-1]["at"]) for what in ("draft", "report")
    ]
    return (report - draft).total_seconds()


async def _busy(stage: Any) -> list[str]:
    return [agent["name"] for agent in (await stage.call("agent_list", filter={"status": "busy"}))["agents"]]


async def test_a_line_is_rewired_side_by_side_with_a_join_and_both_times_are_reported(troupe, record_property) -> None:
    async with troupe(REPLIES) as stage:
        await stage.command("composition:create", document=PATTERN)
        run = (await stage.call("orchestration_start", pattern="review_desk"))["orchestration"]
        wide = {"routing_level": "orchestration"}
        made = {"name": "planner", "prompt": "You plan.", "capabilities": ABLE, "orchestration": run, "routing": wide}
        planner = (await stage.call("agent_spawn", **made))["agent"]
        await stage.ask(planner, "Build the line.")

        async def write(doc: str, *steps: list[str]) -> float:
            author = next(agent for agent, name in (await stage.names()).items() if name == "author")
            turn = await stage.call(
                "agent_send", agent=author.removeprefix("agent:"), message=f"Write {doc}", wait_s=20
            )
            assert turn["status"] == "done", turn
            for together in steps:
                await stage.clock.under_way(len(together), latency_s=CHECK_S)  # all of them before the end of any
                assert await _busy(stage) == together
                await stage.clock.advance(CHECK_S)
            await stage.rest()
            return await _took_s(stage)

        built = (await stage.events("routing:rule_added"))[-1]["event_id"]
        in_line_s = await write("one", ["facts"], ["style"], ["editor"])
        line = await stage.heard()
        assert line == [
            "facts <- draft:ready of author",
            "style <- facts:checked of facts",
            "editor <- style:checked of style",
        ]

        await stage.ask(planner, f"It takes {in_line_s} s, and {REWIRE}.")
        changes = [event for event in await stage.events("routing:rule_*") if event["event_id"] > built]
        assert [(event["event"].removeprefix("routing:rule_"), event["data"]["rule_id"]) for event in changes] == [
            ("modified", "draft"),
            ("deleted", "facts"),
            ("deleted", "style"),
            ("added", "both"),
        ]
        assert len({event["data"]["version"] for event in changes}) == 1  # nobody met the half of it
        assert {event["source"] for event in changes} == {f"agent:{planner}"}

        side_by_side_s = await write("two", ["facts", "style"], ["editor"])
        joined = (await stage.heard())[len(line) :]
        assert joined[:2] == ["facts <- draft:ready of author", "style <- draft:ready of author"]
        assert len(joined) == 3
        assert joined[2].startswith("editor <- ")

        # The last one had exactly one turn for the draft, with what both had found.
        (fact,) = await stage.data("routing:joined")
        assert (fact["rule_id"], fact["key"], fact["partial"], len(fact["events"])) == ("both", "two", False, 2)
        assert [report["text"] for report in await stage.data("report:ready")] == [
            "two wrong dates, long sentences"
        ] * 2
        assert [done["agent_name"] for done in await stage.data("completion:result")].count("editor") == 2
        await stage.nothing_lost()

        # Both wirings were measured, by the log's own clock; the planner keeps what it learned with the evidence.
        assert (in_line_s, side_by_side_s) == (0.15, 0.1)  # three steps, two steps
        await stage.ask(planner, f"In line: {in_line_s} s, side by side: {side_by_side_s} s. Keep what you learned.")
        (kept,) = (await stage.command("decision:query", pattern="review_desk"))["decisions"]
        assert kept["context"] == {"in_line_s": "0.15", "side_by_side_s": "0.1"}
        assert (kept["agent"], kept["orchestration"]) == (planner, run)
        record_property("in_line_s", in_line_s)
        record_property("side_by_side_s", side_by_side_s)
