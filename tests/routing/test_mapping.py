from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.errors import Invalid
from ksi_mcp.routing.mapping import compile_mapping
from ksi_mcp.templates import MissingValue


def scope(data: dict[str, Any]) -> dict[str, Any]:
    return {"event": "a:b", "data": data, "source": "operator", "agent": None, "now": 7, "$": data}


def test_no_mapping_and_the_whole_pass_the_data_unchanged() -> None:
    data = {"x": [1, {"y": None}]}
    assert compile_mapping(None).apply(scope(data)) is data
    assert compile_mapping("{{$}}").apply(scope(data)) is data


def test_types_are_kept_and_dotted_keys_nest() -> None:
    mapping = compile_mapping(
        {
            "task.id": "{{data.id}}",
            "task.meta": {"score": "{{data.score}}", "ok": True},
            "task.meta.at": "{{now}}",
            "text": "{{event}} from {{source}} scored {{data.score}}",
            "all": "{{$}}",
            "who": "{{data.who|nobody}}",
            "list": ["{{data.id}}", 3],
        }
    )
    data = {"id": 5, "score": 0.5}
    assert mapping.apply(scope(data)) == {
        "task": {"id": 5, "meta": {"score": 0.5, "ok": True, "at": 7}},
        "text": "a:b from operator scored 0.5",
        "all": data,
        "who": "nobody",
        "list": [5, 3],
    }


def test_a_single_template_may_be_an_object() -> None:
    assert compile_mapping("{{data.inner}}").apply(scope({"inner": {"a": 1}})) == {"a": 1}
    with pytest.raises(Invalid):
        compile_mapping("{{data.inner}}").apply(scope({"inner": 5}))


def test_a_missing_value_is_an_error_that_names_it() -> None:
    with pytest.raises(MissingValue) as failure:
        compile_mapping({"a": "{{data.absent}}"}).apply(scope({}))
    assert failure.value.name == "data.absent"


def test_data_cannot_smuggle_a_template_in() -> None:
    assert compile_mapping({"a": "{{data.x}}"}).apply(scope({"x": "{{$}}"})) == {"a": "{{$}}"}


@pytest.mark.parametrize(
    "value",
    [
        "plain text",
        5,
        ["{{$}}"],
        {"": "x"},
        {"a..b": "x"},
        {"a": "x", "a.b": "y"},
        {"a.b": "x", "a": "y"},
        {"a.b": "x", "a": {"b": "y"}},
        {"a": "{{credentials}}"},
        {"a": "{{env.ANTHROPIC_API_KEY}}"},
        {"a": "{{__class__}}"},
        {"a": "{{data.x + 1}}"},
        {"a": "x" * 8_001},
        {f"k{i}": i for i in range(201)},
        {"a": [0] * 201},
        {"a": object()},
        {1: "x"},
        {"a": "\ud800"},
        {".".join("a" * 20): 1},
    ],
)
def test_a_mapping_that_cannot_be_one_is_refused(value: object) -> None:
    with pytest.raises(Invalid) as refusal:
        compile_mapping(value)
    assert len(refusal.value.text()) < 500


def test_a_template_reaches_nothing_but_the_event() -> None:
    for path in ("data.__class__", "data.__init__", "event.__class__", "$.__dict__", "data.items"):
        with pytest.raises(MissingValue):
            compile_mapping({"a": f"{{{{{path}}}}}"}).apply(scope({"x": 1}))


def test_a_mapping_that_would_grow_without_end_is_stopped() -> None:
    big = {"x": "y" * 60_000}
    for mapping in ({f"k{i}": "{{$}}" for i in range(200)}, {"a": "{{$}}" * 1_000}, {"a": ["{{$}}"] * 2}):
        with pytest.raises(Invalid):
            compile_mapping(mapping).apply(scope(big))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_a_value_that_is_passed_on_alone_stays_as_it_is(value: Any) -> None:
    assert compile_mapping({"out.x": "{{data.v}}"}).apply(scope({"v": value})) == {"out": {"x": value}}


@given(json_values)
def test_any_value_is_a_mapping_or_is_refused(value: Any) -> None:
    try:
        mapping = compile_mapping(value)
    except Invalid:
        return
    try:
        assert isinstance(mapping.apply(scope({})), dict)
    except Invalid:
        return
