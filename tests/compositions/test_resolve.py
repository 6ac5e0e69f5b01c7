"""Parents merge into children, circles show their path, variables are filled in where they belong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp.compositions.checking import check
from ksi_mcp.compositions.flatten import Flattener, Lookup, merge
from ksi_mcp.compositions.model import Composition, parse_composition, parse_reference
from ksi_mcp.compositions.resolve import Resolved, resolve
from ksi_mcp.errors import Invalid, NotFound


def _library(*documents: dict[str, Any]) -> tuple[dict[str, Composition], Lookup]:
    found = {document["name"]: parse_composition(document, what="it") for document in documents}
    return found, lambda reference: found.get(parse_reference(reference)[0])


def _resolve(name: str, *documents: dict[str, Any], **given: Any) -> Resolved:
    found, lookup = _library(*documents)
    return resolve(found[name], lookup, given)


def test_the_child_overrides_its_parents_deeply_and_lists_are_replaced() -> None:
    flat = _resolve(
        "child",
        {"name": "grand", "budget": {"usd": 1, "turns": 1}, "tags": ["g"], "x": [1, 2], "odd": {"a": {"b": 1}}},
        {"name": "parent", "extends": "grand", "budget": {"turns": 2}, "description": "of the parent"},
        {"name": "mixed", "x": [3], "odd": {"a": {"c": 2}}},
        {"name": "child", "extends": ["parent"], "mixins": "mixed", "budget": {"tokens": 9}},
    )
    assert flat.document["budget"] == {"usd": 1, "turns": 2, "tokens": 9}
    assert flat.document["x"] == [3]
    assert flat.document["odd"] == {"a": {"b": 1, "c": 2}}
    assert not flat.document.keys() & {"extends", "mixins", "tags", "description"}
    assert (flat.budget.usd, flat.budget.turns, flat.budget.tokens) == (1.0, 2, 9)


def test_a_circle_shows_its_path() -> None:
    documents = ({"name": "a", "extends": "b"}, {"name": "b", "mixins": ["c"]}, {"name": "c", "extends": "a"})
    with pytest.raises(Invalid, match="a -> b -> c -> a"):
        _resolve("a", *documents)
    with pytest.raises(Invalid, match="x -> x"):
        _resolve("x", {"name": "x", "extends": "x"})


def test_a_missing_parent_shows_its_path() -> None:
    with pytest.raises(NotFound, match="a -> b -> gone: 'gone' is not in the library"):
        _resolve("a", {"name": "a", "extends": "b"}, {"name": "b", "extends": "gone"})


def test_too_many_generations_are_refused() -> None:
    chain = [{"name": f"n{n}", "extends": f"n{n + 1}"} for n in range(30)] + [{"name": "n30"}]
    with pytest.raises(Invalid, match="more than 20 deep"):
        _resolve("n0", *chain)


def test_a_wide_diamond_is_merged_once_a_node() -> None:
    layers = [{"name": f"{side}{n}", "extends": [f"a{n + 1}", f"b{n + 1}"]} for n in range(15) for side in "ab"]
    found, lookup = _library(*layers, {"name": "a15"}, {"name": "b15"})
    asked: list[str] = []

    def counted(reference: str) -> Composition | None:
        asked.append(reference)
        return lookup(reference)

    Flattener(counted).flatten(found["a0"])
    assert len(asked) <= 4 * 16


def test_components_are_put_before_the_own_prompt() -> None:
    flat = _resolve(
        "me",
        {"name": "one", "type": "component", "content": "First."},
        {"name": "two", "type": "component", "prompt": "Second.", "components": ["one"]},
        {
            "name": "me",
            "type": "agent",
            "prompt": "Mine.",
            "components": ["two", {"inline": "Inline."}, {"name": "ctx", "source": "components/one.md"}],
        },
    )
    assert flat.agents[0].prompt == "First.\n\nSecond.\n\nInline.\n\nFirst.\n\nMine."
    assert flat.document["prompt"] == flat.agents[0].prompt


def test_variables_are_filled_into_prompts_and_vars_and_nowhere_else() -> None:
    flat = _resolve(
        "p",
        {
            "name": "p",
            "type": "orchestration",
            "variables": {"topic": {}, "rounds": 3, "note": {"default": "none"}},
            "agents": {
                "a": {
                    "prompt": "On {{topic}}, {{rounds}}x, {{unknown}}, {{ 1 + 1 }}, {{x|y z}}",
                    "vars": {"n": "{{rounds}}"},
                },
                "b": {
                    "prompt": "{{n}} {{note|default: x}} {{deep.er}}",
                    "vars": {"n": [1, "{{topic}}!"], "deep": {"er": True}},
                },
            },
            "orchestration_logic": {"strategy": "TRACK {{topic}}"},
        },
        topic="{{rounds}} bees",
    )
    first, second = flat.agents
    assert first.prompt == "On {{rounds}} bees, 3x, {{unknown}}, {{ 1 + 1 }}, {{x|y z}}"
    assert first.vars == {"n": 3}
    assert second.vars["n"] == [1, "{{rounds}} bees!"]
    assert second.prompt == '[1, "{{rounds}} bees!"] none true'
    assert flat.strategy == "TRACK {{topic}}"
    assert flat.vars == {"topic": "{{rounds}} bees", "rounds": 3, "note": "none"}


def test_all_missing_variables_are_told_together() -> None:
    with pytest.raises(Invalid) as caught:
        _resolve(
            "p",
            {
                "name": "base",
                "type": "agent",
                "prompt": "{{tone}}",
                "variables": {"tone": {"description": "how it sounds"}},
            },
            {
                "name": "p",
                "variables": {"topic": {"description": "what about"}, "aim": None, "fine": 1},
                "agents": {"a": {"composition": "base", "prompt": "{{topic}} {{aim}} {{fine}}"}},
            },
        )
    assert str(caught.value) == (
        "'p' needs variables that were not given: topic (what about), aim, agents.a.vars.tone (how it sounds)"
    )


def test_an_agent_takes_what_it_does_not_say_from_its_composition() -> None:
    flat = _resolve(
        "p",
        {
            "name": "base",
            "type": "agent",
            "prompt": "I am {{role}}.",
            "variables": {"role": "somebody"},
            "capabilities": ["base", "messaging"],
            "model": "m1",
            "settings": {"max_tokens": 5, "effort": "low"},
        },
        {
            "name": "p",
            "agents": {
                "a": {
                    "composition": "base",
                    "prompt": "Judge.",
                    "vars": {"role": "a judge"},
                    "settings": {"max_tokens": 7},
                },
                "b": {"composition": "agents/base", "capabilities": ["base"], "model": "m2"},
            },
        },
    )
    first, second = flat.agents
    assert first.prompt == "I am a judge.\n\nJudge."
    assert second.prompt == "I am somebody."
    assert (first.capabilities, second.capabilities) == (("base", "messaging"), ("base",))
    assert (first.model, second.model) == ("m1", "m2")
    assert first.settings == {"max_tokens": 7, "effort": "low"}
    assert first.composition == f"base@{flat.used[0].hash[:12]}"


def test_includes_come_with_their_own_includes_and_circles_end() -> None:
    flat = _resolve(
        "p",
        {"name": "p", "includes": ["x"], "orchestration_logic": {"strategy": "s"}},
        {"name": "x", "content": "text x", "includes": "y"},
        {"name": "y", "content": "text y", "includes": ["x"]},
    )
    assert flat.includes == {"x": "text x", "y": "text y"}
    with pytest.raises(NotFound, match="'p' includes 'gone'"):
        _resolve("p", {"name": "p", "includes": ["gone"]})


def test_a_variable_that_nothing_uses_is_a_warning() -> None:
    flat = _resolve("p", {"name": "p", "agents": {"a": {"prompt": "{{extra}}"}}}, extra="used", typo=1)
    assert flat.agents[0].prompt == "used"
    assert flat.warnings == ("the variable 'typo' is not used by 'p'",)


def test_a_prompt_cannot_be_blown_up_by_a_variable() -> None:
    document = {"name": "p", "variables": {"v": {}}, "agents": {"a": {"prompt": "{{v}}" * 1000}}}
    with pytest.raises(Invalid, match="characters"):
        _resolve("p", document, v="x" * 100_000)


def test_check_tells_every_structural_problem_together() -> None:
    found, lookup = _library({"name": "ok", "type": "agent", "prompt": "p"})
    assert found
    with pytest.raises(Invalid) as caught:
        check(
            {
                "name": "p",
                "agents": {"a": {"composition": "gone"}, "b": {"model": 3}},
                "routing": [{"to": "zz", "pattern": "x"}],
                "budget": {"usd": "much"},
            },
            lookup,
            what="it",
        )
    for part in ("agents.b.model", "routing.0.to", "budget.usd"):
        assert part in str(caught.value)


_docs = st.recursive(
    st.integers(0, 3),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(a=_docs, b=_docs)
def test_merging_the_same_twice_changes_nothing_and_the_child_always_wins(a: Any, b: Any) -> None:
    merged = merge(a, b)
    assert merge(merged, b) == merged
    assert merge(a, a) == a
    if not (isinstance(a, dict) and isinstance(b, dict)):
        assert merged == b
