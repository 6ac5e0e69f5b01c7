from __future__ import annotations

import json
import string

from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.tools.bounding import MAX_RESULT_CHARS, bounded, fitting, result_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=2_000),
    lambda inner: st.lists(inner, max_size=60) | st.dictionaries(st.text(string.ascii_letters, max_size=8), inner),
    max_leaves=200,
)


def test_a_result_that_fits_is_left_as_it_is():
    data = {"agents": [{"name": "one", "texts": ["x" * 1_000]}], "cursor": None}
    assert bounded(data) == (data, '{"agents":[{"name":"one","texts":["' + "x" * 1_000 + '"]}],"cursor":null}')


def test_long_texts_are_cut_and_say_how_much_is_missing_and_ids_stay():
    data = {"turns": [{"turn": f"t_{n}", "text": "word " * 10_000} for n in range(5)]}
    smaller, text = bounded(data)
    assert len(text) <= MAX_RESULT_CHARS
    assert json.loads(text) == smaller
    assert [turn["turn"] for turn in smaller["turns"]] == [f"t_{n}" for n in range(5)]
    assert all(turn["text"].endswith("... [cut: 4,000 of 50,000 characters]") for turn in smaller["turns"])
    assert "this result has 250," in smaller["cut"]
    assert "ask for less at a time (limit)" in smaller["cut"]


def test_long_lists_are_cut_last_and_say_how_much_is_missing():
    smaller, text = bounded({"events": [{"event_id": n, "name": "a:b", "data": {"n": n}} for n in range(10_000)]})
    assert len(text) <= MAX_RESULT_CHARS
    assert [event["event_id"] for event in smaller["events"]] == list(range(200))
    assert "cut as well: events (200 of 10,000)" in smaller["cut"]


def test_a_page_that_lost_entries_has_no_cursor_to_go_on_from():
    page = {"rules": [{"rule_id": f"r_{n}", "why": "x" * 240} for n in range(1_000)], "cursor": "5"}
    smaller, _ = bounded(page)
    assert "cursor" not in smaller
    assert "cursor" in bounded({"rules": [{"why": "x" * 100_000}], "cursor": "5"})[0]


def test_as_many_fit_as_there_is_room_for_and_one_at_least():
    assert fitting([]) == 0
    assert fitting(["x" * 100] * 10, 1_000) == 9
    assert fitting(["x" * 5_000] * 3, 1_000) == 1
    assert fitting([1, 2, 3], 1_000) == 3


def test_what_is_never_small_enough_leaves_the_reason():
    smaller, text = bounded({"k" * 50_000: 1})
    assert list(smaller) == ["cut"]
    assert len(text) < MAX_RESULT_CHARS


@given(VALUES, st.integers(400, 5_000))
def test_whatever_it_is_the_result_is_json_and_no_longer_than_the_limit(value, limit):
    data = {"value": value}
    text = result_text(data, limit)
    assert len(text) <= limit
    assert len(text) == limit or json.loads(text) == data or "cut" in json.loads(text)


def test_halves_of_surrogates_are_in_neither_form_of_a_result():
    smaller, text = bounded({"name": "bad\udcff", "of\ud800": ["x\udfff"], "n": 2**70})
    assert smaller == {"name": "bad?", "of?": ["x?"], "n": 2**70}
    assert json.loads(text) == smaller
