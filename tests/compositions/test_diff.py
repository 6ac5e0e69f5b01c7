"""A diff names every change, and making the changes it names gives the other document."""

from __future__ import annotations

import copy
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.compositions.aligning import MAX_EDITS, matches
from ksi_mcp.compositions.changes import Change, apply
from ksi_mcp.compositions.diff import diff
from ksi_mcp.compositions.numbering import Numbering
from ksi_mcp.compositions.paths import read_path, write_path
from ksi_mcp.errors import Invalid

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.sampled_from(["", "a", "1", "l\n", "l\nm\nn\n", "l\nM\nn", "m\nn\n", "\n", "\n\n", "a\r\nb"]),
)
KEYS = st.sampled_from(["", "a", "b.c", "id", "name", "role", "x[0]", "[0]", "\\", "\\.", '""', "0", "ü", "a\nb"])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {"id": st.sampled_from(["j", "k", "l", "0", "a.b"])},
    optional={"name": st.sampled_from(["j", "n"]), "prompt": SCALARS, "list": st.lists(SCALARS, max_size=3)},
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "from": st.sampled_from(["a", "b"]),
        "to": st.sampled_from(["a", ["a", "b"]]),
        "pattern": st.sampled_from(["x:*", "y"]),
        "id": st.sampled_from(["r1", "r2"]),
        "condition": SCALARS,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "agents": st.one_of(st.lists(ENTRIES, max_size=4), st.dictionaries(KEYS, TREES, max_size=3)),
        "routing": st.one_of(st.lists(RULES, max_size=5), st.fixed_dictionaries({"rules": st.lists(RULES)})),
        "orchestration_logic": st.lists(st.sampled_from("abcd"), max_size=8).map(
            lambda lines: {"strategy": "\n".join(lines)}
        ),
        "other": TREES,
    },
)


def _same(one: Any, other: Any) -> bool:
    number = Numbering()
    return number.of(one) == number.of(other)


def _kinds(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str]]:
    return [(change.kind, change.path) for change in diff(a, b).changes]


@given(DOCUMENTS, DOCUMENTS)
def test_making_the_changes_of_a_diff_gives_the_other_document_type_and_all(a, b):
    before = copy.deepcopy(a)
    assert _same(apply(diff(a, b), a), b)
    assert a == before


@given(DOCUMENTS)
def test_a_document_does_not_differ_from_itself(a):
    assert diff(a, copy.deepcopy(a)).changes == ()


@given(st.lists(st.one_of(KEYS, st.text(max_size=5).filter(lambda key: "\ud800" not in key), st.integers(0, 10**6))))
def test_a_path_is_read_back_as_it_was_written(steps):
    assert read_path(write_path(steps)) == tuple(steps)


@given(st.lists(st.sampled_from("abcdefgh"), max_size=20), st.lists(st.sampled_from("abcdefgh"), max_size=20))
def test_entries_that_stayed_are_the_same_and_in_order(before, after):
    found = matches(before, after)
    assert all(before[i] == after[j] for i, j in found)
    assert all(one[0] < next_[0] and one[1] < next_[1] for one, next_ in pairwise(found))


A = {
    "name": "p",
    "version": "1.0.0",
    "agents": {"judge": {"prompt": "Be fair.\nBe brief.\n", "model": "m"}, "critic": {"prompt": "Find faults."}},
    "routing": [
        {"from": "judge", "to": "critic", "pattern": "verdict:*"},
        {"from": "critic", "to": "judge", "pattern": "fault:*", "condition": "x > 1"},
    ],
    "orchestration_logic": {"strategy": "START\nAWAIT all\nVOTE\nEND"},
    "variables": {"rounds": {"default": 3}},
    "metadata": {"tags": ["a", "b"]},
}


def test_every_part_of_a_composition_is_named_with_its_section():
    b = copy.deepcopy(A)
    b["agents"]["judge"]["model"] = "n"
    b["agents"]["judge"]["prompt"] = "Be fair.\nBe quick.\n"
    b["agents"]["scribe"] = {"prompt": "Write."}
    del b["agents"]["critic"]
    b["routing"][1]["condition"] = "x > 2"
    b["orchestration_logic"]["strategy"] = "START\nAWAIT two\nVOTE\nSAY it\nEND"
    b["variables"]["rounds"]["default"] = 4
    b["metadata"]["tags"] = ["a", "c"]
    b["quorum"] = 2
    changes = {(change.section, change.kind, change.path): change for change in diff(A, b).changes}
    assert set(changes) == {
        ("agents", "changed", "agents.judge.model"),
        ("agents", "text", "agents.judge.prompt"),
        ("agents", "added", "agents.scribe"),
        ("agents", "removed", "agents.critic"),
        ("routing", "changed", "routing[1].condition"),
        ("dsl", "text", "orchestration_logic.strategy"),
        ("variables", "changed", "variables.rounds.default"),
        ("metadata", "changed", "metadata.tags[1]"),
        ("other", "added", "quorum"),
    }
    assert changes["agents", "changed", "agents.judge.model"].before == "m"
    assert changes["agents", "removed", "agents.critic"].before == {"prompt": "Find faults."}
    assert [change.hunk for change in diff(A, b).changes if change.section == "dsl"] == [
        "@@ -2,1 +2,1 @@\n-AWAIT all\n+AWAIT two",
        "@@ -4,0 +4,1 @@\n+SAY it",
    ]


def test_agents_in_a_list_are_told_apart_by_name_and_may_move():
    a = {"agents": [{"role": "a", "prompt": "1"}, {"role": "b"}, {"role": "c"}]}
    b = {"agents": [{"role": "c"}, {"role": "a", "prompt": "2"}, {"role": "d"}]}
    assert _kinds(a, b) == [
        ("moved", "agents.a"),
        ("changed", "agents.a.prompt"),
        ("removed", "agents.b"),
        ("added", "agents.d"),
    ]
    assert apply(diff(a, b), a) == b


def test_rules_are_told_apart_by_what_they_connect():
    a = {"routing": [{"from": "a", "to": "b", "pattern": "x"}, {"from": "b", "to": "c", "pattern": "y", "ttl": 1}]}
    moved = {"routing": a["routing"][::-1]}
    assert [kind for kind, _ in _kinds(a, moved)] == ["moved"]
    redirected = {"routing": [{"from": "a", "to": "d", "pattern": "x"}, a["routing"][1]]}
    assert _kinds(a, redirected) == [("changed", "routing[0].to")]
    by_id = {"routing": [{"id": "r", "from": "a", "to": "b", "pattern": "x"}]}
    rewritten = {"routing": [{"id": "r", "from": "c", "to": "d", "pattern": "z"}]}
    assert [path for _, path in _kinds(by_id, rewritten)] == ["routing.r.from", "routing.r.to", "routing.r.pattern"]


def test_a_number_a_yes_and_a_text_are_not_the_same():
    a, b = {"a": 1, "b": True, "c": "1", "d": None}, {"a": 1.0, "b": 1, "c": 1, "d": ""}
    assert _kinds(a, b) == [("changed", key) for key in a]


def test_a_key_may_hold_dots_brackets_backslashes_or_nothing():
    a = {"a.b": {"": {"[0]": {"\\": {'""': 1}}}}}
    b = {"a.b": {"": {"[0]": {"\\": {'""': 2}}}}}
    (change,) = diff(a, b).changes
    assert change.path == 'a\\.b.""' + '.\\[0\\].\\\\.\\""'
    assert apply([change], a) == b


def test_the_end_of_a_text_is_a_line_of_its_own():
    for one, other in [("a\nb", "a\nb\n"), ("\n", ""), ("a\n\nb", "a\nb"), ("x", "x\n"), ("", "\n\n")]:
        assert apply(diff({"t": one}, {"t": other}), {"t": one}) == {"t": other}


def test_changes_of_another_document_are_refused():
    change = diff({"a": {"t": "one\ntwo"}}, {"a": {"t": "one\n2"}}).changes[0]
    for document in ({"a": {"t": "other\nlines"}}, {"a": {"t": 1}}, {"a": 1}, {}, {"a": [1]}):
        with pytest.raises(Invalid):
            apply([change], document)
    for change in (
        Change(path="a", kind="added", section="other", after=1),
        Change(path="a[7]", kind="removed", section="other"),
        Change(path="a[0]", kind="added", section="other", after=1, index=9),
        Change(path="a[0", kind="changed", section="other", after=1),
    ):
        with pytest.raises(Invalid):
            apply([change], {"a": [1]})


def test_only_documents_of_a_bearable_depth_are_compared():
    deep: Any = 1
    for _ in range(5_000):
        deep = {"a": deep}
    with pytest.raises(Invalid, match="deep"):
        diff({"a": deep}, {})
    with pytest.raises(Invalid, match="documents"):
        diff([], {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("\n".join(f"a{n}" for n in range(10_000)), "\n".join(f"b{n}" for n in range(10_000))),
        ("\n".join(random.Random(1).choices("ab", k=50_000)), "\n".join(random.Random(2).choices("ab", k=50_000))),
        ("\n".join("ab" * 30_000), "\n".join("ba" * 30_000)),
        ([*range(20_000)], [*range(20_000)][::-1]),
        ([{"id": str(n), "v": 0} for n in range(10_000)], [{"id": str(n), "v": 1} for n in range(10_000)][::-1]),
        (["a"] * 20_000 + ["b"] * MAX_EDITS * 2, ["b"] * MAX_EDITS * 2 + ["a"] * 20_000),
        ({"k" * 300_000: [*range(20_000)]}, {"k" * 300_000: [*range(1, 20_001)]}),
    ],
    ids=["no common line", "two words", "shifted", "reversed", "named reversed", "swapped", "long key"],
)
def test_documents_made_to_be_hard_are_compared_all_the_same(before, after):
    a, b = {"x": before}, {"x": after}
    found = diff(a, b)
    assert apply(found, a) == b
    # As much as was there, and not more: a long key is not repeated for each of its entries.
    assert sum(len(change.path) for change in found.changes) < 1_000_000


def test_many_rules_that_connect_the_same_are_compared_all_the_same():
    rules = [{"from": "a", "to": "b", "pattern": "x", "condition": str(n)} for n in range(5_000)]
    a, b = {"routing": rules}, {"routing": [{**rule, "condition": f"!{rule['condition']}"} for rule in rules]}
    assert len(diff(a, b).changes) == 5_000
    assert apply(diff(a, b), a) == b
