"""A team that finds its own shape: analysts come with their routes, a specialist when a finding calls for one."""

from __future__ import annotations

from typing import Any

LEAD = ["base", "messaging", "spawn_agents", "routing_control"]


def _spawn(name: str, task: str, *rules: dict[str, Any]) -> dict[str, Any]:
    wanted = {"name": name, "prompt": task, "capabilities": ["base"], "routing": {"rules": list(rules)}}
    return {"name": "agent_spawn", "input": wanted}


def _emit(event: str, **data: Any) -> dict[str, Any]:
    return {"name": "event_emit", "input": {"event": event, "data": data}}


def _rule(rule_id: str, pattern: str, source: str, target: str, **more: Any) -> dict[str, Any]:
    return {"rule_id": rule_id, "source_pattern": pattern, "source_agent": source, "target": f"agent:{target}", **more}


REPLIES: list[dict[str, Any]] = [
    # The first shape: both analysts hear of the case, `logs` hears `metrics`, the coordinator hears both.
    {
        "match": {"agent": "coordinator", "prompt": "The shop is down.", "round": 1},
        "tool_calls": [
            _spawn(
                "metrics",
                "You read the graphs.",
                _rule("case_to_metrics", "case:opened", "coordinator", "self"),
                _rule("metrics_report", "finding:reported", "self", "coordinator"),
            ),
            _spawn(
                "logs",
                "You read the logs.",
                _rule("case_to_logs", "case:opened", "coordinator", "self"),
                _rule("logs_report", "finding:reported", "self", "coordinator"),
                _rule("metrics_to_logs", "finding:reported", "metrics", "self", condition="exists(data.when)"),
            ),
            _emit("case:opened", symptom="the shop is down"),
        ],
    },
    {
        "match": {"agent": "metrics", "prompt": "Event case:opened", "round": 1},
        "tool_calls": [_emit("finding:reported", what="writes stop", when="02:10", severity=2)],
    },
    {"match": {"agent": "logs", "prompt": "Event case:opened"}, "reply": "I need a time to look at."},
    {
        "match": {
            "agent": "logs",
            "prompt": '/Event finding:reported .* from agent metrics .*"when": "([^"]+)"/',
            "round": 1,
        },
        "tool_calls": [_emit("finding:reported", what="I/O errors at {{groups[1]}}", severity=5)],
    },
    # The second shape: a finding that the team has nobody for. Routes to the new one, and back from it.
    {
        "match": {
            "agent": "coordinator",
            "prompt": '/Event finding:reported .*"what": "([^"]+)", "severity": 5/',
            "round": 1,
        },
        "tool_calls": [
            _spawn(
                "forensic",
                "You look at what is left behind.",
                _rule("case_to_forensic", "case:escalated", "coordinator", "self"),
                _rule("logs_to_forensic", "evidence:given", "logs", "self"),
                _rule("forensic_to_logs", "evidence:wanted", "self", "logs"),
                _rule("forensic_to_coordinator", "case:solved", "self", "coordinator"),
            ),
            _emit("case:escalated", because="{{groups[1]}}"),
        ],
    },
    {
        "match": {"agent": "forensic", "prompt": "Event case:escalated", "round": 1},
        "tool_calls": [_emit("evidence:wanted", of="the kernel")],
    },
    {
        "match": {"agent": "logs", "prompt": '/Event evidence:wanted .*"of": "([^"]+)"/', "round": 1},
        "tool_calls": [_emit("evidence:given", of="{{groups[1]}}", line="ata1: hard resetting link")],
    },
    {
        "match": {"agent": "forensic", "prompt": '/Event evidence:given .*"line": "([^"]+)"/', "round": 1},
        "tool_calls": [_emit("case:solved", cause="a dying disk", proof="{{groups[1]}}")],
    },
    {
        "match": {"agent": "coordinator", "prompt": '/Event case:solved .*"cause": "([^"]+)", "proof": "([^"]+)"/'},
        "reply": "Solved: {{groups[1]}} ({{groups[2]}})",
    },
    # After the coordinator is gone.
    {
        "match": {"agent": "logs", "prompt": "Anything new?", "round": 1},
        "tool_calls": [_emit("finding:reported", what="more errors", when="03:00", severity=5)],
    },
]
FIRST = {"case_to_metrics", "metrics_report", "case_to_logs", "logs_report", "metrics_to_logs"}
SECOND = {"case_to_forensic", "logs_to_forensic", "forensic_to_logs", "forensic_to_coordinator"}
STORY = [
    "logs <- case:opened of coordinator",
    "metrics <- case:opened of coordinator",
    "coordinator <- finding:reported of metrics",
    "logs <- finding:reported of metrics",
    "coordinator <- finding:reported of logs",
    "forensic <- case:escalated of coordinator",
    "logs <- evidence:wanted of forensic",
    "forensic <- evidence:given of logs",
    "coordinator <- case:solved of forensic",
]


async def test_a_team_wires_itself_and_a_specialist_joins_it_in_both_directions(troupe) -> None:
    async with troupe(REPLIES) as stage:
        made = await stage.call("agent_spawn", name="coordinator", prompt="You lead.", capabilities=LEAD)
        coordinator = f"agent:{made['agent']}"
        await stage.ask("coordinator", "The shop is down.")

        # Who heard what, in which order; and what they made of it.
        assert await stage.heard() == STORY
        await stage.nothing_lost()
        past = (await stage.call("agent_history", agent="coordinator", limit=10))["turns"]
        assert past[-1]["reply"] == "Solved: a dying disk (ata1: hard resetting link)"
        taken = [result["agent_name"] for result in await stage.data("completion:result")]
        assert {name: taken.count(name) for name in taken} == {"coordinator": 4, "logs": 3, "metrics": 1, "forensic": 2}

        # Every rule is the coordinator's, made in its turns: the first shape before the finding, the second after it.
        rules = {rule["rule_id"]: rule for rule in (await stage.call("routing_query_rules"))["rules"]}
        assert set(rules) == FIRST | SECOND
        assert {(rule["created_by"], rule["scope"]) for rule in rules.values()} == {(coordinator, coordinator)}
        added = await stage.events("routing:rule_added")
        (severe,) = [e for e in await stage.events("finding:reported") if e["data"]["severity"] == 5]
        assert {e["data"]["rule_id"] for e in added if e["event_id"] < severe["event_id"]} == FIRST
        assert {e["data"]["rule_id"] for e in added if e["event_id"] > severe["event_id"]} == SECOND
        assert all(event["source"] == coordinator and event["cause"].startswith("turn:") for event in added)

        # The specialist and its routes came in one transaction: nothing stands between them in the log.
        born = next(e for e in await stage.events("agent:spawned") if e["data"]["name"] == "forensic")["event_id"]
        last = [event["event_id"] for event in added][-4:]
        assert last == [born + 1, born + 2, born + 3, born + 4]

        # With the coordinator its rules end; the others live on, and hear nothing of one another.
        await stage.call("agent_terminate", agent="coordinator")
        assert (await stage.call("routing_query_rules"))["rules"] == []
        ended = await stage.data("routing:rule_deleted")
        assert {(fact["rule_id"], fact["reason"]) for fact in ended} == {
            (rule_id, "its agent has ended") for rule_id in FIRST | SECOND
        }
        await stage.ask("logs", "Anything new?")
        assert len(await stage.events("finding:reported")) == len(["metrics", "logs", "logs again"])
        assert await stage.heard() == STORY
