from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import Invalid, KsiError, Refused
from ksi_mcp.routing.rules import RuleDraft, check_not_command, compile_source
from ksi_mcp.routing.targets import Target, target_of


def draft(**fields: Any) -> RuleDraft:
    return RuleDraft(**{"source_pattern": "task:*", "target": "review:start", **fields})


def test_a_draft_needs_only_a_pattern_and_a_target() -> None:
    made = draft()
    assert (made.priority, made.enabled, made.ttl_s, made.condition) == (100, True, None, None)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"source_pattern": "a b"}, "pattern"),
        ({"source_pattern": None}, "pattern"),
        ({"target": []}, "0 targets"),
        ({"target": ["a:b"] * 51}, "51 targets"),
        ({"target": {"any": ["a:b"]}}, "target"),
        ({"target": {"all": ["a:b"], "round_robin": ["c:d"]}}, "target"),
        ({"target": {"least_busy": ["a:b"]}}, "least_busy chooses among agents"),
        ({"target": "a b"}, "event name"),
        ({"target": "a:*"}, "event name"),
        ({"target": "agent:"}, "names no agent"),
        ({"target": "agent:{{data.x}}"}, "names no agent"),
        ({"target": 7}, "target"),
        ({"condition": "data.x ="}, "condition"),
        ({"condition": "x" * 1_000_000}, "condition"),
        ({"mapping": "text"}, "mapping"),
        ({"priority": -1}, "priority"),
        ({"priority": 10_001}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": True}, "priority"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": float("nan")}, "ttl_s"),
        ({"ttl_s": 31 * 24 * 3600}, "ttl_s"),
        ({"ttl_s": "60"}, "ttl_s"),
        ({"source_agent": ""}, "source_agent"),
        ({"source_agent": "a b"}, "source_agent"),
        ({"source_agent": "{{secrets.key}}"}, "secrets.key"),
        ({"scope": "everywhere"}, "scope"),
        ({"scope": "agent:a b"}, "scope"),
        ({"enabled": "yes"}, "enabled"),
        ({"metadata": {"x": "y" * 5_000}}, "metadata"),
        ({"metadata": {"x": object()}}, "metadata"),
        ({"metadata": {"x": "\ud800"}}, "metadata"),
        ({"metadata": []}, "metadata"),
        ({"rule_id": "Upper"}, "rule_id"),
        ({"rule_id": "a" * 65}, "rule_id"),
        ({"rule_id": "x\n"}, "rule_id"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid) as refusal:
        draft(**fields)
    assert named in refusal.value.text()
    assert len(refusal.value.text()) < 600


@pytest.mark.parametrize("target", ["routing:rule_added", "completion:result", "system:x", "turn:done", "budget"])
def test_a_rule_cannot_forge_an_event_of_the_server(target: str) -> None:
    with pytest.raises(Refused):
        draft(target=target)


def test_a_rule_cannot_run_a_command() -> None:
    with pytest.raises(Refused):
        check_not_command("agent:spawn", {"agent:spawn"}.__contains__)
    with pytest.raises(Refused):
        check_not_command({"round_robin": ["a:b", "agent:spawn"]}, {"agent:spawn"}.__contains__)
    check_not_command("agent:worker", {"agent:spawn"}.__contains__)


def test_targets_are_events_or_agents() -> None:
    assert target_of("agent:worker-1") == Target(kind="agent", name="worker-1")
    assert str(target_of("agent:worker-1")) == "agent:worker-1"
    assert target_of("a:b") == Target(kind="event", name="a:b")


def test_a_source_is_an_id_a_name_a_glob_or_a_template() -> None:
    def hears(text: str, agent_id: str | None, name: str | None, data: dict[str, Any]) -> bool:
        return compile_source(text).hears(agent_id, lambda: name, {"data": data})

    assert hears("a_1", "a_1", None, {})
    assert hears("agent:a_1", "a_1", None, {})
    assert hears("planner", "a_1", "planner", {})
    assert hears("plan*", "a_1", "planner", {})
    assert not hears("plan*", None, None, {})
    assert not hears("planner", "a_2", "worker", {})
    assert hears("{{data.who}}", "a_1", "planner", {"who": "planner"})
    assert hears("{{data.who}}", "a_1", "planner", {"who": "agent:a_1"})
    assert not hears("{{data.who}}", "a_1", "planner", {"who": "*"})
    assert not hears("{{data.who}}", "a_1", "planner", {"who": ["a_1"]})
    with pytest.raises(KsiError):
        hears("{{data.who}}", "a_1", "planner", {})
