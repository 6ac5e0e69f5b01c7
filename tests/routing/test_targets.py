from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.errors import Invalid, KsiError, Refused
from ksi_mcp.routing.joins import MAX_PARTS, Join, join_of
from ksi_mcp.routing.rates import Rate, rate_of
from ksi_mcp.routing.targets import MAX_TARGETS, MODES, Target, Targets, stored_targets, target_of, targets_of


@pytest.mark.parametrize(
    ("written", "mode", "names", "shown"),
    [
        ("log:seen", "all", ["log:seen"], "log:seen"),
        ("agent:ada", "all", ["agent:ada"], "agent:ada"),
        (["log:seen"], "all", ["log:seen"], "log:seen"),
        (["log:a", "agent:ada"], "all", ["log:a", "agent:ada"], ["log:a", "agent:ada"]),
        (("log:a", "log:a", "log:b"), "all", ["log:a", "log:b"], ["log:a", "log:b"]),
        ({"all": ["log:a", "log:b"]}, "all", ["log:a", "log:b"], ["log:a", "log:b"]),
        ({"round_robin": ["log:a", "agent:b"]}, "round_robin", ["log:a", "agent:b"], None),
        ({"least_busy": ["agent:a", "agent:b"]}, "least_busy", ["agent:a", "agent:b"], None),
        ({"first_idle": "agent:a"}, "first_idle", ["agent:a"], {"first_idle": ["agent:a"]}),
    ],
)
def test_every_written_form_is_read_shown_and_stored(written: Any, mode: str, names: list[str], shown: Any) -> None:
    targets = targets_of(written)
    assert (targets.mode, [str(each) for each in targets]) == (mode, names)
    assert targets.shown == (written if shown is None else shown)
    assert targets_of(targets.shown) == stored_targets(json.loads(json.dumps(targets.shown))) == targets
    assert targets_of(targets) is targets


def test_the_agents_and_the_events_among_targets() -> None:
    targets = targets_of(["log:a", "agent:b", "c:d", "agent:e"])
    assert (targets.agents, targets.events) == (("b", "e"), ("log:a", "c:d"))
    assert str(targets) == "log:a, agent:b, c:d, agent:e"
    assert str(targets_of({"round_robin": ["log:a", "log:b"]})) == "round_robin(log:a, log:b)"
    assert targets_of(Target(kind="agent", name="x")).agents == ("x",)


def test_two_targets_that_become_one_are_there_once() -> None:
    targets = targets_of(["agent:old", "agent:new", "log:a"])
    same = targets.renamed(lambda each: Target(kind="agent", name="new") if each.name == "old" else each)
    assert [str(each) for each in same] == ["agent:new", "log:a"]


@pytest.mark.parametrize(
    "hostile",
    [
        None, 7, True, "", [], {}, [[]], [None], [["log:a"]], {"all": []}, {"all": None}, {"any": ["log:a"]},
        {"all": ["log:a"], "round_robin": ["log:b"]}, {"all": {"all": ["log:a"]}}, {7: ["log:a"]}, {"all": [{}]},
        "agent:", "agent:a b", "agent:*", "agent:{{data.x}}", "agent:" + "a" * 65, "agent:\n", "agent:ada\n", "log:*",
        "a b", "log:", ":", "x" * 10_000, {"least_busy": ["agent:a", "log:b"]}, {"first_idle": ["log:b"]}, b"log:a",
        [f"log:n{n}" for n in range(MAX_TARGETS + 1)], "log:\ud800",
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused_in_few_words(hostile: Any) -> None:
    with pytest.raises(Invalid) as refusal:
        targets_of(hostile)
    assert len(refusal.value.text()) < 500


@pytest.mark.parametrize("reserved", ["routing:rule_added", "completion:result", "agent", "system:x", "turn:x"])
def test_events_of_the_server_are_no_targets_in_any_form(reserved: str) -> None:
    for written in (reserved, ["log:a", reserved], {"round_robin": [reserved, "log:a"]}):
        with pytest.raises(Refused):
            targets_of(written)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30) | st.sampled_from(["log:a", "agent:b", "a:*"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(MODES) | st.text(max_size=5), inner),
    max_leaves=8,
)


@given(json_values)
def test_whatever_is_given_is_read_or_refused(value: Any) -> None:
    for read in (targets_of, target_of, join_of, rate_of):
        try:
            found = read(value)
        except KsiError:
            continue
        assert found is None or isinstance(found, Targets | Target | Join | Rate)


@pytest.mark.parametrize(
    "hostile",
    [
        7, "x", [], {}, {"all_of": []}, {"all_of": ["a:b"]}, {"all_of": "a:b"}, {"all_of": ["a:b", "a:b"]},
        {"all_of": ["a:b", None]}, {"all_of": ["a:b", "agent:"]}, {"all_of": ["a:b", "c d"]},
        {"all_of": ["a:b", "c:d"], "by": "task"}, {"all_of": ["a:b", "c:d"], "by": "{{nobody.x}}"},
        {"all_of": ["a:b", "c:d"], "by": "{{data.x" * 60}, {"all_of": ["a:b", "c:d"], "timeout_s": 0},
        {"all_of": ["a:b", "c:d"], "timeout_s": True}, {"all_of": ["a:b", "c:d"], "timeout_s": float("inf")},
        {"all_of": ["a:b", "c:d"], "timeout_s": float("nan")}, {"all_of": ["a:b", "c:d"], "other": 1},
        {"all_of": [f"a:n{n}" for n in range(MAX_PARTS + 1)]}, {"all_of": ["a:b", "agent:" + "x" * 10_000]},
        {"all_of": ["a:b", "agent:x y"]},
    ],
)  # fmt: skip
def test_what_is_no_join_is_refused_in_few_words(hostile: Any) -> None:
    with pytest.raises(Invalid) as refusal:
        join_of(hostile)
    assert len(refusal.value.text()) < 500


def test_a_join_is_shown_as_it_was_written() -> None:
    written = {"all_of": ["a:*", "agent:ada"], "by": "{{data.id}}", "timeout_s": 1.5}
    join = join_of(written)
    assert join is not None
    assert join.shown == written
    assert join_of(join.shown) == join
    assert join_of(None) is None


def test_the_narrowest_part_is_asked_first() -> None:
    join = join_of({"all_of": ["**", "a:**", "a:*", "a:b*", "agent:x", "a:b", "*"]})
    assert join is not None
    ordered = [part.text for part in sorted(join.parts, key=lambda part: part.breadth)]
    assert ordered == ["a:b", "a:b*", "agent:x", "a:*", "a:**", "**", "*"]


@pytest.mark.parametrize(
    "hostile",
    [
        7, [], {}, {"count": 0}, {"count": 1.5}, {"count": True}, {"count": 10**9}, {"count": 1, "per_s": 0},
        {"count": 1, "per_s": -1}, {"count": 1, "per_s": float("nan")}, {"count": 1, "per_s": 1e9},
        {"count": 1, "x": 2}, {"per_s": 2}, {"count": "1"},
    ],
)  # fmt: skip
def test_what_is_no_rate_is_refused(hostile: Any) -> None:
    with pytest.raises(Invalid):
        rate_of(hostile)


def test_a_rate_is_by_the_second_unless_told() -> None:
    assert rate_of({"count": 3}) == Rate(count=3, per_s=1)
    assert rate_of({"count": 3, "per_s": 0.5}) == Rate(count=3, per_s=0.5)
