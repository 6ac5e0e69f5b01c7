"""Every composition that comes with the package can be used, and speaks of nothing that is not there."""

from __future__ import annotations

import re

import pytest

from ksi_mcp.compositions import files
from ksi_mcp.compositions.checking import check
from ksi_mcp.compositions.model import Composition
from ksi_mcp.compositions.resolve import resolve
from ksi_mcp.events.patterns import is_reserved
from ksi_mcp.routing.rules import RuleDraft

_TOOLS = frozenset(
    [
        "agent_spawn",
        "agent_send",
        "agent_wait",
        "agent_list",
        "agent_terminate",
        "event_emit",
        "event_query",
        "routing_add_rule",
        "routing_modify_rule",
        "routing_delete_rule",
        "routing_query_rules",
        "routing_explain",
        "composition_discover",
        "composition_get",
        "composition_fork",
        "composition_merge",
        "composition_diff",
        "composition_track_decision",
        "orchestration_start",
        "orchestration_status",
        "orchestration_control",
        "orchestration_complete",
        "completion_answer",
        "help",
    ]
)
_PATTERNS = {
    "adaptive_tournament",
    "consensus",
    "debate_with_judge",
    "map_reduce_research",
    "pipeline_with_review",
    "self_organizing_analysis_team",
    "triage_and_dispatch",
}


def _library() -> dict[str, Composition]:
    found, refused = files.scan(files.builtin_root())
    assert not refused
    read = [files.read_composition(files.builtin_root(), file.path) for file in found]
    return {composition.name: composition for composition in read if composition is not None}


def test_the_library_holds_what_it_promises() -> None:
    library = _library()
    assert {name for name, found in library.items() if found.type == "orchestration"} == _PATTERNS
    assert {name for name, found in library.items() if found.type == "agent"} == {"base_agent", "base_orchestrator"}


@pytest.mark.parametrize("name", sorted(_library()))
def test_a_composition_is_valid_without_warnings(name: str) -> None:
    library = _library()
    _composition, warnings = check(library[name].document, library.get, what=name)
    assert warnings == []
    assert library[name].description


@pytest.mark.parametrize("name", sorted(_PATTERNS))
def test_a_pattern_resolves_to_agents_with_complete_prompts(name: str) -> None:
    library = _library()
    required = {key: f"the {key}" for key, spec in library[name].document["variables"].items() if "default" not in spec}
    resolved = resolve(library[name], library.get, required)
    assert 3 <= len(resolved.agents) <= 6
    assert resolved.rules
    assert resolved.budget.usd
    assert resolved.includes["dsl_reference"].startswith("## Reading a strategy")
    assert resolved.warnings == ()
    for agent in resolved.agents:
        assert agent.prompt is not None
        assert "{{" not in agent.prompt, agent.role
        assert "## How you work with others" in agent.prompt
        assert "base" in (agent.capabilities or ())
    for value in required.values():
        assert any(value in (agent.prompt or "") for agent in resolved.agents)


@pytest.mark.parametrize("name", sorted(_PATTERNS))
def test_every_event_of_a_strategy_or_rule_is_one_that_somebody_emits(name: str) -> None:
    document = _library()[name].document
    strategy = document["orchestration_logic"]["strategy"]
    prompts = "\n".join(agent["prompt"] for agent in document["agents"].values())
    by_agents = set(re.findall(r"[Ee]mit\s+(?:one\s|a\scomplete\snew\s)?`([a-z_]+:[a-z_]+)`", prompts))
    by_orchestrator = set(re.findall(r'EMIT "([a-z_]+:[a-z_]+)"', strategy))
    emitted = by_agents | by_orchestrator
    named = set(re.findall(r'"([a-z_]+:[a-z_]+)"', strategy)) | {rule["pattern"] for rule in document["routing"]}
    assert named <= emitted
    assert not [event for event in emitted if is_reserved(event)]


@pytest.mark.parametrize("name", sorted(_PATTERNS))
def test_a_strategy_tracks_its_decision_and_completes_the_run(name: str) -> None:
    document = _library()[name].document
    strategy = document["orchestration_logic"]["strategy"]
    assert "TRACK " in strategy
    assert "COMPLETE WITH" in strategy
    assert document["performance"] == {}
    assert document["learnings"] == []


@pytest.mark.parametrize("name", sorted(_library()))
def test_only_tools_that_exist_are_named(name: str) -> None:
    text = str(_library()[name].document)
    named = set(re.findall(r"\b((?:agent|event|routing|composition|orchestration|completion)_[a-z_]+)\b", text))
    assert named - _TOOLS <= {"orchestration_logic", "event_etiquette", "routing_control", "routing_level"}


@pytest.mark.parametrize("name", sorted(_PATTERNS))
def test_every_static_rule_is_one_that_the_routing_table_takes(name: str) -> None:
    library = _library()
    resolved = resolve(library[name], library.get, {}, lenient=True)
    for rule in resolved.rules:
        for target in rule.targets:
            RuleDraft(
                source_pattern=rule.pattern, target=f"agent:{target}", condition=rule.condition, mapping=rule.mapping
            )
