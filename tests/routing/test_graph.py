"""The picture of the table: what leads where, and that nothing in it can be more than text."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.ids import RuleId
from ksi_mcp.routing import graph
from ksi_mcp.routing.graph import Graph, draw, mermaid
from ksi_mcp.routing.joins import join_of
from ksi_mcp.routing.rates import rate_of
from ksi_mcp.routing.rules import Rule
from ksi_mcp.routing.targets import targets_of

# The grammar of what is drawn: one statement a line, and every text in quotes that only its end can end.
TEXT = r'"(?:[A-Za-z0-9 _:.,/=\-]|#\d+;)+"'
NODE = re.compile(rf"  (n\d+)(?:\(\[{TEXT}\]\)|\[{TEXT}\]|\{{\{{{TEXT}\}}\}})\Z")
EDGE = re.compile(rf"  (n\d+) (?:-->|-\.->|-\.-)(?:\|{TEXT}\|)? (n\d+)\Z")
COMMENT = re.compile(r"  %% left out: \d+ rules, \d+ edges\Z")


def rule(rule_id: str, pattern: str, target: Any, **fields: Any) -> Rule:
    values: dict[str, Any] = {
        "source_agent": None, "condition": None, "mapping": None, "priority": 100, "scope": "global",
        "orchestration_id": None, "enabled": True, "created_by": "operator", "version": 1, "created_at_ms": 0,
        "expires_at_ms": None, "metadata": {}, **fields,
    }  # fmt: skip
    return Rule(rule_id=RuleId(rule_id), source_pattern=pattern, target=targets_of(target), **values)


def check(text: str) -> None:
    """The text is a flow chart: every edge joins two nodes that are there, and no line is anything else."""
    first, *lines = text.split("\n")
    assert first == "flowchart LR"
    nodes = [match[1] for line in lines if (match := NODE.match(line))]
    edges = [(match[1], match[2]) for line in lines if (match := EDGE.match(line))]
    assert len(nodes) == len(set(nodes))
    assert {end for edge in edges for end in edge} <= set(nodes)
    assert len(nodes) + len(edges) + sum(bool(COMMENT.match(line)) for line in lines) == len(lines)


def told(picture: Graph) -> set[tuple[str, str, str]]:
    labels = {node.node_id: node.label for node in picture.nodes}
    return {(edge.kind, labels[edge.start], labels[edge.end]) for edge in picture.edges}


def test_rules_lead_from_what_they_hear_to_where_they_go() -> None:
    rules = [
        rule("r_1", "task:new", {"round_robin": ["agent:a_1", "agent:a_2"]}),
        rule("r_2", "task:*", "log:seen", source_agent="a_1"),
        rule("r_3", "log:*", "agent:a_2"),
    ]
    picture = draw(rules, {"a_1": "ada"})
    assert told(picture) == {
        ("rule", "task:new", "ada a_1"),
        ("rule", "task:new", "a_2"),
        ("from", "ada a_1", "task:* from ada"),
        ("rule", "task:* from ada", "log:seen"),
        ("rule", "log:*", "a_2"),
        ("hears", "log:seen", "log:*"),
    }
    check(mermaid(picture))


def test_an_event_that_a_rule_makes_and_another_hears_by_its_name_is_one_node() -> None:
    picture = draw([rule("r_1", "a:x", "b:x"), rule("r_2", "b:x", "c:x")], {})
    assert told(picture) == {("rule", "a:x", "b:x"), ("rule", "b:x", "c:x")}
    assert len(picture.nodes) == 3


def test_what_is_special_about_a_rule_stands_beside_it() -> None:
    special = rule(
        "r_1", "part:*", {"first_idle": ["agent:a_1"]}, condition="data.x > 1", enabled=False, priority=7,
        rate=rate_of({"count": 5, "per_s": 60}), join=join_of({"all_of": ["part:a", "agent:a_2"]}),
    )  # fmt: skip
    exclusive = rule("r_2", "other:*", "log:seen", exclusive=True)
    picture = draw([special, exclusive], {})
    text = mermaid(picture)
    check(text)
    assert '"r_1, p7, first_idle, disabled, 5 in 60 s, join of 2, if data.x #62; 1"' in text
    assert '"r_2, p100, exclusive"' in text
    assert {("part", "part:a", "part:*"), ("part", "a_2", "part:*")} <= told(picture)
    facts = next(edge.facts for edge in picture.edges if edge.rule_id == "r_1" and edge.kind == "rule")
    assert facts == {
        "priority": 7, "condition": "data.x > 1", "mode": "first_idle", "disabled": True,
        "rate": {"count": 5, "per_s": 60}, "join": {"all_of": ["part:a", "agent:a_2"]},
    }  # fmt: skip


def test_a_hostile_text_stays_a_text() -> None:
    hostile = 'x == "]; click n0 href \\"javascript:alert(1)\\"\n  n9 --> n0 %%{init: {}}%% `**b**` <img src=x> #quot;'
    text = mermaid(draw([rule("r_1", "a:x", "b:x", condition=hostile)], {}))
    check(text)
    assert "click" in text  # it is told, not hidden
    assert len(text.split("\n")) == 4


@given(st.text(max_size=60), st.text(min_size=1, max_size=60), st.text(max_size=30))
def test_whatever_conditions_and_names_hold_the_picture_is_valid(condition: str, name: str, source: str) -> None:
    rules = [
        rule("r_1", "a:*", ["agent:a_1", "b:x"], condition=condition, source_agent=source or None),
        rule("r_2", "b:**", "agent:a_1", metadata={"note": condition}),
    ]
    check(mermaid(draw(rules, {"a_1": name, source: name}), rules_left_out=3))


@given(st.permutations([("r_1", "a:*"), ("r_2", "a:*"), ("r_3", "b:x"), ("r_4", "c:**")]))
def test_the_same_rules_in_the_same_order_give_the_same_picture(order: list[tuple[str, str]]) -> None:
    rules = [rule(rule_id, pattern, ["b:x", "c:y"]) for rule_id, pattern in order]
    assert mermaid(draw(rules, {})) == mermaid(draw(list(rules), {}))
    again = draw(sorted(rules, key=lambda each: each.order()), {})
    assert told(again) == told(draw(rules, {}))


def test_a_picture_is_bounded_and_says_what_was_left_out(monkeypatch) -> None:
    monkeypatch.setattr(graph, "MAX_EDGES", 3)
    picture = draw([rule(f"r_{i}", f"a:x{i}", "b:x") for i in range(5)], {})
    assert (len(picture.edges), picture.edges_left_out) == (3, 2)
    text = mermaid(picture, rules_left_out=7)
    check(text)
    assert text.endswith("%% left out: 7 rules, 2 edges")


def test_an_empty_table_is_a_picture_too() -> None:
    assert mermaid(draw([], {})) == "flowchart LR"
