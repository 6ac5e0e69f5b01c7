"""Three-way merges keep their laws, and what both sides changed differently is a conflict with its path."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.compositions.merge import Merged, merge, merge_compositions
from ksi_mcp.compositions.numbering import Numbering
from ksi_mcp.compositions.paths import MISSING
from ksi_mcp.errors import Invalid

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from([1.0, 2.5]),
    st.sampled_from(["", "a", "l\n", "l\nm\nn\n", "l\nM\nn\no", "m\nn\n"]),
)
KEYS = st.sampled_from(["", "a", "b.c", "id", "name", "x[0]", '""'])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {"id": st.sampled_from("jklmn")}, optional={"name": st.sampled_from("jx"), "prompt": SCALARS}
)
RULES = st.fixed_dictionaries(
    {"from": st.sampled_from("ab")}, optional={"to": st.sampled_from("ab"), "pattern": st.just("x"), "ttl": SCALARS}
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "agents": st.lists(ENTRIES, max_size=5),
        "routing": st.lists(RULES, max_size=4),
        "text": st.lists(st.sampled_from("abcd"), max_size=8).map("\n".join),
        "other": TREES,
        "learnings": st.lists(SCALARS, max_size=3),
        "version": SCALARS,
        "lineage": TREES,
    },
)


def _same(one: Any, other: Any) -> bool:
    number = Numbering()
    return number.of(one) == number.of(other)


def _is(merged: Merged, document: Any) -> bool:
    return not merged.conflicts and _same(merged.document, document)


def _paths(merged: Merged) -> list[str]:
    return [conflict.path for conflict in merged.conflicts]


@given(DOCUMENTS, DOCUMENTS)
def test_what_only_one_side_changed_is_taken(base, a):
    assert _is(merge(base, a, base), a)
    assert _is(merge(base, base, a), a)
    assert _is(merge(base, a, a), a)


@given(DOCUMENTS, DOCUMENTS)
def test_compositions_keep_the_same_laws(base, a):
    assert _is(merge_compositions(base, a, base), a)
    assert _is(merge_compositions(base, a, a), a)


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_without_conflicts_the_sides_may_be_exchanged(base, a, b):
    one, other = merge(base, a, b), merge(base, b, a)
    assert len(one.conflicts) == len(other.conflicts)
    if not one.conflicts:
        assert _same(one.document, other.document)
    assert _same(merge(base, a, b, strategy="ours").document, merge(base, b, a, strategy="theirs").document)


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS, st.sampled_from(["ours", "theirs"]))
def test_every_conflict_can_be_resolved_by_its_path(base, a, b, side):
    paths = _paths(merge(base, a, b))
    assert len(set(paths)) == len(paths)
    assert _is(merge(base, a, b, resolve=dict.fromkeys(paths, side)), merge(base, a, b, strategy=side).document)


BASE = {
    "agents": [{"role": "judge", "prompt": "Judge.", "model": "m"}, {"role": "critic", "prompt": "Criticise."}],
    "routing": [{"from": "judge", "to": "critic", "pattern": "x:*"}],
    "orchestration_logic": {"strategy": "START\nAWAIT\nVOTE\nEND\n"},
    "tags": ["a"],
}


def _with(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(BASE), **changes}


def test_a_conflict_has_its_path_and_all_three_values():
    ours, theirs = _with(), _with()
    ours["agents"][0]["prompt"] = "Judge fairly."
    theirs["agents"][0]["prompt"] = "Judge quickly."
    theirs["agents"][1]["model"] = "n"
    merged = merge(BASE, ours, theirs)
    (conflict,) = merged.conflicts
    assert (conflict.path, conflict.base, conflict.ours, conflict.theirs) == (
        "agents.judge.prompt",
        "Judge.",
        "Judge fairly.",
        "Judge quickly.",
    )
    # What is no conflict is merged, and until it is resolved the place holds our value.
    assert merged.document["agents"][1]["model"] == "n"
    assert merged.document["agents"][0]["prompt"] == "Judge fairly."


def test_what_one_side_changed_and_the_other_took_away_is_a_conflict():
    ours, theirs = _with(), _with()
    del ours["agents"][1]
    theirs["agents"][1]["prompt"] = "Praise."
    (conflict,) = merge(BASE, ours, theirs).conflicts
    assert (conflict.path, conflict.ours, conflict.theirs["prompt"]) == ("agents.critic", MISSING, "Praise.")
    assert merge(BASE, ours, theirs, strategy="ours").document["agents"] == ours["agents"]
    assert merge(BASE, ours, theirs, strategy="theirs").document["agents"][1]["prompt"] == "Praise."


def test_agents_and_rules_that_both_sides_add_are_all_there():
    ours, theirs = _with(), _with()
    ours["agents"].append({"role": "scribe"})
    theirs["agents"].insert(1, {"role": "clerk"})
    ours["routing"].append({"from": "judge", "to": "scribe", "pattern": "y"})
    theirs["routing"].append({"from": "judge", "to": "clerk", "pattern": "y"})
    theirs["routing"][0]["condition"] = "x > 1"
    merged = merge(BASE, ours, theirs)
    assert merged.conflicts == ()
    assert [agent["role"] for agent in merged.document["agents"]] == ["judge", "clerk", "critic", "scribe"]
    assert merged.document["routing"] == [
        {"from": "judge", "to": "critic", "pattern": "x:*", "condition": "x > 1"},
        {"from": "judge", "to": "clerk", "pattern": "y"},
        {"from": "judge", "to": "scribe", "pattern": "y"},
    ]


def test_a_rule_in_conflict_is_named_by_what_it_connects():
    ours, theirs = _with(), _with()
    ours["routing"][0]["priority"], theirs["routing"][0]["priority"] = 1, 2
    assert _paths(merge(BASE, ours, theirs)) == ["routing.judge -> critic on x:*.priority"]


def test_one_side_may_reorder_what_the_other_changes():
    ours, theirs = _with(), _with()
    ours["agents"].reverse()
    theirs["agents"][0]["model"] = "n"
    assert merge(BASE, ours, theirs).document["agents"] == [BASE["agents"][1], theirs["agents"][0]]


def test_texts_are_merged_line_by_line_and_conflict_by_hunk():
    ours = _with(orchestration_logic={"strategy": "START now\nAWAIT\nVOTE\nEND ours\n"})
    theirs = _with(orchestration_logic={"strategy": "START\nAWAIT\nCOUNT\nVOTE\nEND theirs\n"})
    merged = merge(BASE, ours, theirs)
    (conflict,) = merged.conflicts
    assert (conflict.path, conflict.base, conflict.ours, conflict.theirs) == (
        "orchestration_logic.strategy[1]",
        "END",
        "END ours",
        "END theirs",
    )
    resolved = merge(BASE, ours, theirs, resolve={"orchestration_logic.strategy[1]": "END both\nreally"})
    strategy = resolved.document["orchestration_logic"]["strategy"]
    assert strategy == "START now\nAWAIT\nCOUNT\nVOTE\nEND both\nreally\n"
    whole = merge(BASE, ours, theirs, resolve={"orchestration_logic.strategy": "theirs"})
    assert whole.document["orchestration_logic"] == theirs["orchestration_logic"]


def test_a_list_without_names_is_merged_as_a_whole():
    merged = merge(BASE, _with(tags=["a", "b"]), _with(tags=["a", "c"]))
    assert _paths(merged) == ["tags"]
    assert merge(BASE, _with(tags=["b"]), _with(tags=["c"]), resolve={"tags": ["b", "c"]}).document["tags"] == [
        "b",
        "c",
    ]


def test_a_value_that_is_such_a_word_itself_can_be_chosen():
    ours, theirs = _with(owner="x"), _with(owner="y")
    assert merge(BASE, ours, theirs, resolve={"owner": {"value": "ours"}}).document["owner"] == "ours"
    assert merge(BASE, ours, theirs, resolve={"owner": {"value": None}}).document["owner"] is None
    assert merge(BASE, ours, theirs, resolve={"owner": {"a": 1}}).document["owner"] == {"a": 1}


@pytest.mark.parametrize("path", ["", "tags[0]", "nowhere", "__class__", "a" * 100_000, "tags.", "\x00", "../tags"])
def test_a_path_that_is_no_conflict_cannot_be_resolved(path):
    with pytest.raises(Invalid, match="no conflict at"):
        merge(BASE, _with(tags=["b"]), _with(tags=["c"]), resolve={"tags": "ours", path: "theirs"})


def test_what_resolves_a_conflict_must_be_storable():
    ours, theirs = _with(tags=["b"]), _with(tags=["c"])
    for bad in (float("nan"), {1: 2}, object(), "\ud800", 10**2_000):
        with pytest.raises(Invalid):
            merge(BASE, ours, theirs, resolve={"tags": bad})
    with pytest.raises(Invalid, match="limit"):
        merge(BASE, ours, theirs, resolve={str(n): "ours" for n in range(2_000)})
    text, other = ({"text": f"{line}\nb"} for line in ("x", "y"))
    with pytest.raises(Invalid, match="text"):
        merge({"text": "a\nb"}, text, other, resolve={"text[1]": 7})


def test_fields_are_taken_and_nothing_else():
    ours, theirs = _with(tags=["b"]), _with(tags=["c"], mood="x")
    theirs["agents"][0]["prompt"] = "Theirs."
    del theirs["routing"]
    merged = merge(BASE, ours, theirs, strategy="fields", fields=["agents.judge.prompt", "mood", "routing"])
    assert merged.document["tags"] == ["b"]
    assert merged.document["mood"] == "x"
    assert "routing" not in merged.document
    assert [agent["prompt"] for agent in merged.document["agents"]] == ["Theirs.", "Criticise."]
    for fields in (["nowhere"], [""], ["agents.nobody.prompt"], ["a["], []):
        with pytest.raises(Invalid):
            merge(BASE, ours, theirs, strategy="fields", fields=fields)
    with pytest.raises(Invalid, match="go together"):
        merge(BASE, ours, theirs, fields=["tags"])


def test_a_composition_stays_what_it_is_and_learns():
    base = {"name": "p", "version": "1", "learnings": ["old"], "x": 1}
    target = {"name": "p", "version": "3", "learnings": ["old", "own"], "lineage": {"parent": "r"}, "x": 1}
    source = {"name": "f", "version": "2", "learnings": ["new", "own"], "performance": {"s": 1}, "x": 2}
    assert _is(merge_compositions(base, target, source), {**target, "x": 2, "learnings": ["old", "own", "new"]})
    with pytest.raises(Invalid, match="cannot be merged"):
        merge_compositions(base, target, source, strategy="fields", fields=["lineage.parent"])


def test_without_a_base_what_only_one_side_has_is_kept_and_a_difference_is_a_conflict():
    merged = merge({}, {"a": 1, "c": {"x": 1}}, {"b": 2, "c": {"x": 2, "y": 3}})
    assert _paths(merged) == ["c.x"]
    assert merged.document == {"a": 1, "b": 2, "c": {"x": 1, "y": 3}}


@pytest.mark.parametrize(
    "make",
    [
        lambda n: {"text": "\n".join(f"{n}:{line}" for line in range(10_000))},
        lambda n: {"text": "\n".join(random.Random(n).choices("ab", k=50_000))},
        lambda n: {"list": random.Random(n).choices("ab", k=50_000)},
        lambda n: {"agents": [{"id": str(entry), "prompt": n} for entry in range(5_000)]},
        lambda n: {"routing": [{"from": "a", "to": "b", "condition": f"{n}{rule}"} for rule in range(3_000)]},
        lambda n: {"k" * 300_000: {str(key): n for key in range(10_000)}},
    ],
    ids=["no common line", "two words", "list", "agents", "rules", "long key"],
)
def test_documents_made_to_be_hard_are_merged_all_the_same(make):
    merged = merge(make(0), make(1), make(2))
    assert merged.conflicts
    assert sum(len(path) for path in _paths(merged)) < 1_000_000
    assert merge(make(0), make(1), make(2), strategy="theirs").conflicts == ()


def test_depth_is_bounded():
    deep: Any = 1
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(Invalid, match="deep"):
        merge({}, {"a": deep}, {})
