from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp.errors import Invalid
from ksi_mcp.events.patterns import (
    RESERVED_SEGMENTS,
    check_event_name,
    check_pattern,
    compile_pattern,
    is_reserved,
    matches,
)


@pytest.mark.parametrize("name", ["a", "analysis:complete", "A.b-c_9:x:y", "x" * 200])
def test_event_names_are_segments_joined_by_colons(name: str) -> None:
    assert check_event_name(name) == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a::b", "empty segment"),
        (":a", "empty segment"),
        ("a:", "empty segment"),
        ("a b", "'a b'"),
        ("a:*", "'*'"),
        ("a\n", "a\\n"),
        ("é", "'é'"),
        ("x" * 201, "201 characters"),
        (7, "not text"),
        (None, "not text"),
    ],
)
def test_a_bad_event_name_is_refused_with_the_reason(name: object, why: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_event_name(name)
    assert why in refusal.value.text()


@pytest.mark.parametrize(
    ("pattern", "why"),
    [("", "empty"), ("a:**b", "inside the segment"), ("***", "inside the segment"), ("a::*", "empty segment"),
     ("a?b", "'a?b'"), ("[a-z]", "[a-z]"), ("task:*\n", "*\\n"), ("*" * 201, "201"), (["a"], "not text")],
)  # fmt: skip
def test_a_bad_pattern_is_refused_with_the_reason(pattern: object, why: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_pattern(pattern)
    assert why in refusal.value.text()


def test_a_long_bad_name_is_shortened_in_the_message() -> None:
    with pytest.raises(Invalid) as refusal:
        check_event_name("x" * 1_000_000)
    assert len(refusal.value.text()) < 300


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("task:*", "task:done", True),
        ("task:*", "task:done:late", False),
        ("task:*", "task", False),
        ("stage_*:done", "stage_2:done", True),
        ("stage_*:done", "stage_2:failed", False),
        ("*_done", "all_done", True),
        ("a*b*c", "axxbyyc", True),
        ("a*a", "a", False),
        ("task:**", "task", True),
        ("task:**", "task:a:b:c", True),
        ("**:done", "done", True),
        ("**:done", "a:b:done", True),
        ("a:**:z", "a:z", True),
        ("a:**:b:**:z", "a:x:b:y:z", True),
        ("a:**:b:**:b", "a:b", False),
        ("*", "a:b:c", True),
        ("**", "a", True),
        ("*:*", "a:b", True),
        ("*:*", "a", False),
    ],
)
def test_stars_stand_for_segments(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


@pytest.mark.parametrize("pattern", ["*", "**", "*:added", "**:added", "rout*:added", "*:*"])
def test_system_events_are_heard_only_when_the_first_segment_is_spelled_out(pattern: str) -> None:
    assert not matches(pattern, "routing:added")
    assert compile_pattern(pattern).fits("routing:added")
    assert matches("routing:*", "routing:added")
    assert matches("routing:**", "routing:added")


def test_reserved_names_are_those_of_the_servers_own_segments() -> None:
    assert all(is_reserved(segment + ":x") and is_reserved(segment) for segment in RESERVED_SEGMENTS)
    assert not is_reserved("agents:x")
    assert not is_reserved("my:routing")


def test_a_pattern_full_of_stars_is_matched_at_once() -> None:
    assert not matches("a*" * 99 + "b", "a" * 200)
    assert not matches(":".join(["**", "a"] * 33 + ["b"]), ":".join("a" * 100))


def reference_segment(pattern: str, text: str) -> bool:
    """The definition, by trying everything."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(reference_segment(pattern[1:], text[i:]) for i in range(len(text) + 1))
    return bool(text) and text[0] == pattern[0] and reference_segment(pattern[1:], text[1:])


def reference(pattern: list[str], name: list[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(reference(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return bool(name) and reference_segment(pattern[0], name[0]) and reference(pattern[1:], name[1:])


segments = st.text(alphabet="ab", min_size=1, max_size=4)
pattern_segments = st.one_of(
    st.just("**"), st.just("*"), st.text(alphabet="ab*", min_size=1, max_size=4).filter(lambda s: "**" not in s)
)


@settings(max_examples=400, deadline=None)
@given(st.lists(pattern_segments, min_size=1, max_size=5), st.lists(segments, min_size=1, max_size=5))
def test_the_matcher_agrees_with_its_definition(pattern: list[str], name: list[str]) -> None:
    expected = reference(["**"] if pattern == ["*"] else pattern, name)
    assert compile_pattern(":".join(pattern)).fits(":".join(name)) is expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_pattern_or_is_refused(text: str) -> None:
    try:
        pattern = compile_pattern(text)
    except Invalid:
        return
    if pattern.literal:
        assert pattern.fits(text)
