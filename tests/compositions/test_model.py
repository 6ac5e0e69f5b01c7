"""Documents become records; what is wrong is told all together, with its place."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp.compositions.drafts import (
    AgentDraft,
    BudgetWish,
    Problems,
    agents_of,
    budget_of,
    capabilities_of,
    variables_of,
)
from ksi_mcp.compositions.model import check_name, content_hash, parse_composition, parse_reference, text_of
from ksi_mcp.compositions.routes import StaticRule, rules_of
from ksi_mcp.errors import Invalid


def test_a_minimal_document_becomes_a_composition() -> None:
    document = {"name": "x", "component_type": "profile", "version": 1.2, "tags": "a, b", "odd": {"kept": [1]}}
    composition = parse_composition(document, what="it")
    assert (composition.name, composition.type, composition.version, composition.tags) == (
        "x",
        "agent",
        "1.2",
        ("a", "b"),
    )
    assert composition.document is document


@pytest.mark.parametrize(
    "name",
    ["", "A", "a b", "../x", "a/b", "a/../b", "/etc/passwd", "x" * 101, ".x", "-x", "a..b", "a\n", "é", None, 3, "x\0"],
)
def test_a_name_that_is_no_slug_is_refused(name: Any) -> None:
    with pytest.raises(Invalid):
        check_name(name)


@pytest.mark.parametrize("text", ["../x", "a/../b", "/etc/x", "~/x", "a//b", "x@", "x@a/b", "", None, ["x"], "a" * 500])
def test_a_reference_that_leads_out_is_refused(text: Any) -> None:
    with pytest.raises(Invalid):
        parse_reference(text)


def test_folders_and_endings_are_no_part_of_a_name() -> None:
    assert parse_reference("components/core/base_agent.md") == ("base_agent", None)
    assert parse_reference("judge@1.0.0") == ("judge", "1.0.0")
    assert parse_reference("v1.2") == ("v1.2", None)


def test_every_problem_of_the_head_is_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        parse_composition({"name": "A b", "type": "nonsense", "tags": 3, "description": []}, what="the file")
    for path in ("name:", "type:", "tags:"):
        assert path in str(caught.value)


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_a_document_that_is_no_mapping_is_refused(document: Any) -> None:
    with pytest.raises(Invalid, match="not a mapping"):
        parse_composition(document, what="the file")


def test_the_hash_is_of_behaviour_alone() -> None:
    document = {
        "name": "x",
        "agents": {"a": {"prompt": "p", "vars": {"description": "a value"}}},
        "variables": {"v": {"default": 1}},
        "orchestration_logic": {"strategy": "s"},
    }
    told = {
        **document,
        "description": "d",
        "author": "me",
        "performance": {"score": 1},
        "learnings": ["l"],
        "lineage": {"parent": "y"},
        "variables": {"v": {"default": 1, "description": "about v"}},
        "orchestration_logic": {"description": "d", "strategy": "s"},
    }
    assert content_hash(document) == content_hash(told) == content_hash(dict(reversed(list(told.items()))))
    for changed in (
        {**document, "odd": 1},
        {**document, "agents": {"a": {"prompt": "q"}}},
        {**document, "agents": {"a": {"prompt": "p", "vars": {"description": "another"}}}},
    ):
        assert content_hash(changed) != content_hash(document)


def test_agents_are_read_from_a_mapping_and_from_a_list() -> None:
    problems = Problems()
    mapping = agents_of({"agents": {"judge": {"profile": "agents/base.yaml", "prompt_template": "p"}}}, problems)
    listed = agents_of({"agents": [{"id": "judge", "composition": "base", "prompt": "p"}]}, problems)
    assert mapping == listed == (AgentDraft(role="judge", composition="base", prompt="p"),)
    assert agents_of({"agents": {"a": "base", "b": None}}, problems)[0].composition == "base"
    assert problems.found == []


def test_an_agent_carries_its_settings_budget_and_capabilities() -> None:
    problems = Problems()
    (agent,) = agents_of(
        {
            "agents": {
                "a": {
                    "capabilities": {"messaging": True, "base": True, "decisions": False},
                    "max_tokens": "2000",
                    "settings": {"effort": "high", "odd": 1},
                    "budget": {"usd": "$0.50", "turns": 3},
                }
            }
        },
        problems,
    )
    assert problems.found == []
    assert agent.capabilities == ("base", "messaging")
    assert agent.settings == {"effort": "high", "odd": 1, "max_tokens": 2000}
    assert agent.budget == BudgetWish(usd=0.5, turns=3)


def test_every_problem_of_the_parts_is_told_with_its_path() -> None:
    problems = Problems()
    document = {
        "agents": [
            {"id": "a", "capabilities": ["root"], "prompt": 3},
            {"id": "a"},
            {"prompt": "x"},
            7,
            {"id": "b", "vars": []},
        ],
        "routing": [
            {"from": "nobody", "to": "a", "pattern": "x:*"},
            {"to": "c", "pattern": "a b"},
            5,
            {"to": "a", "priority": -1},
        ],
        "budget": {"usd": -1, "tokens": 1.5},
        "variables": {"bad name": 1},
    }
    agents_of(document, problems)
    rules_of(document, ("a", "b"), problems)
    budget_of(document, "", problems)
    variables_of(document, problems)
    paths = {problem.path for problem in problems.found}
    assert {
        "agents.a.capabilities" if "agents.a.capabilities" in paths else "agents.0.capabilities",
        "agents.1",
        "agents.2",
        "agents.3",
        "routing.0.from",
        "routing.1.to",
        "routing.1.pattern",
        "routing.2",
        "routing.3.priority",
        "budget.usd",
        "budget.tokens",
        "variables.bad name",
    } <= paths


def test_operator_is_no_capability_of_an_agent() -> None:
    problems = Problems()
    assert capabilities_of(["base", "operator"], "c", problems) == ("base",)
    assert "'operator' is not a capability" in str(problems.found[0])


@pytest.mark.parametrize("key", [None, "rules", "static_rules"])
def test_static_routing_is_read_in_each_of_its_shapes(key: str | None) -> None:
    rules = [{"from": "a", "to": ["b", "log:entry"], "pattern": "x:*", "condition": "data.n > 1", "ttl": "60"}]
    problems = Problems()
    found = rules_of({"routing": rules if key is None else {key: rules}}, ("a", "b"), problems)
    assert found == (
        StaticRule(source="a", pattern="x:*", targets=("b", "log:entry"), condition="data.n > 1", ttl_s=60.0),
    )
    assert problems.found == []


def test_a_star_target_is_every_other_role() -> None:
    (rule,) = rules_of({"routing": [{"from": "a", "to": "*", "pattern": "x:y"}]}, ("a", "b", "c"), Problems())
    assert rule.targets == ("b", "c")


@pytest.mark.parametrize(
    ("document", "wish"),
    [
        ({"budget": {"usd": 5, "tokens": 1000, "turns": 10}}, BudgetWish(usd=5.0, tokens=1000, turns=10)),
        ({"budget": 2.5}, BudgetWish(usd=2.5)),
        (
            {"orchestration": {"budget_limit": "$5.00", "fallback_strategy": "deny"}},
            BudgetWish(usd=5.0, policy="deny"),
        ),
        ({"orchestration": {"budget_limit": {"usd": 1, "turns": "7"}}}, BudgetWish(usd=1.0, turns=7)),
        ({}, BudgetWish()),
    ],
)
def test_a_budget_is_read_in_each_of_its_shapes(document: dict[str, Any], wish: BudgetWish) -> None:
    problems = Problems()
    assert budget_of(document, "", problems) == wish
    assert problems.found == []


def test_variables_are_required_unless_they_have_a_default() -> None:
    problems = Problems()
    found = variables_of(
        {
            "variables": {
                "a": {"description": "d"},
                "b": {"default": None},
                "c": 3,
                "d": {"required": False},
                "e": {"x": 1},
            }
        },
        problems,
    )
    assert {name: (v.required, v.default) for name, v in found.items()} == {
        "a": (True, None),
        "b": (False, None),
        "c": (False, 3),
        "d": (False, None),
        "e": (False, {"x": 1}),
    }
    assert set(variables_of({"variables": ["a", {"name": "b", "default": 1}]}, problems)) == {"a", "b"}
    assert problems.found == []


def test_the_text_of_a_pattern_is_its_strategy() -> None:
    assert text_of({"orchestration_logic": {"strategy": " WHEN x \n"}}) == "WHEN x"
    assert text_of({"orchestration_logic": {"strategy": ["x"]}}) == ""


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["name", "id", "prompt", "vars", "capabilities", "budget", "from", "to", "usd", "settings"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(document=st.dictionaries(st.sampled_from(["agents", "routing", "budget", "variables", "orchestration"]), _json))
def test_no_document_breaks_the_reading_of_its_parts(document: dict[str, Any]) -> None:
    problems = Problems()
    agents_of(document, problems)
    rules_of(document, ("a",), problems)
    budget_of(document, "", problems)
    variables_of(document, problems)
    with contextlib.suppress(Invalid):
        parse_composition({"name": "x", **document}, what="it")
