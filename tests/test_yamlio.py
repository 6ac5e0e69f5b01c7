"""What goes through YAML comes back as it was, and hostile text gets a clear no."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ksi_mcp import yamlio
from ksi_mcp.errors import Invalid

_TRICKY = [
    "yes",
    "No",
    "ON",
    "null",
    "~",
    "",
    "1",
    "-1",
    "+1",
    "0x1f",
    "0o17",
    "017",
    "1_000",
    "1e5",
    "1.5",
    ".5",
    ".inf",
    ".NaN",
    "2024-01-31",
    "2024-01-31T10:00:00Z",
    "12:30",
    "190:20:30",
    "a: b",
    "- a",
    "# c",
    "a #c",
    "'",
    '"',
    "<<",
    "=",
    "*a",
    "&a",
    "!x",
    "%x",
    "@x",
    "`x",
    "|",
    ">",
    "?",
    "? a",
    "[",
    "{",
    "...",
    "---",
    "--- a",
    " a",
    "a ",
    "\ta",
    "a\t",
    "a\n",
    "\na",
    "a\n\n",
    "a \nb",
    "a\n b",
    " a\nb",
    "a\n\tb",
    "a\rb",
    "a\r\nb",
    "a\x85b",
    "a\u2028b\nc",
    "\x00",
    "\x07\nx",
    "\x7f",
    "\ufeffa",
    "a\n\ufeffb",
    "\U0001f600",
    "e\u0301",
    "{{name}}",
    "line one\nWHEN x: y\n  EMIT 'a:b' WITH {c: 1}\n",
    "a\n...\nb",
    "a\n---\nb",
    "\u3000\nx",
]

_text = st.one_of(
    st.sampled_from(_TRICKY),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20),
    st.text(alphabet="ab \n\t:-#'\"|>1.e", max_size=12),
)
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), _text),
    lambda children: st.one_of(st.lists(children, max_size=4), st.dictionaries(_text, children, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(value=_values)
def test_what_is_dumped_loads_as_it_was(value: Any) -> None:
    text = yamlio.dump(value)
    loaded = yamlio.safe_load(text, what="the document")
    assert loaded == value
    assert repr(loaded) == repr(value)
    assert yamlio.dump(loaded) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab01:-[]{},&*!|>'\"#% \n\t.?<~", max_size=40))
@example(text="a: &x [1, *x]")
@example(text="? [a]\n: b")
def test_any_text_either_loads_into_what_round_trips_or_is_refused(text: str) -> None:
    try:
        documents = yamlio.safe_load_all(text, what="the document")
    except Invalid:
        return
    for document in documents:
        assert yamlio.safe_load(yamlio.dump(document), what="the document") == document


@pytest.mark.parametrize("text", _TRICKY)
def test_a_tricky_string_survives_as_value_key_and_item(text: str) -> None:
    document = {text: text, "list": [text, {"deep": text}]}
    assert yamlio.safe_load(yamlio.dump(document), what="x") == document


def test_dates_and_times_stay_text() -> None:
    text = "a: 2024-01-31\nb: 2024-01-31T10:00:00Z\nc: 12:30:45\nd: !!timestamp 2024-01-31\n"
    loaded = yamlio.safe_load(text, what="x")
    assert loaded == {"a": "2024-01-31", "b": "2024-01-31T10:00:00Z", "c": "12:30:45", "d": "2024-01-31"}


def test_scalars_get_their_types() -> None:
    loaded = yamlio.safe_load("[1, 1_000, -2, 0x1f, 0o17, 1.5, 1e3, .5, yes, Off, TRUE, ~, null, 007, yEs]", what="x")
    assert loaded == [1, 1000, -2, 31, 15, 1.5, 1000.0, 0.5, True, False, True, None, None, "007", "yEs"]


def test_keys_are_always_text() -> None:
    loaded = yamlio.safe_load("1: a\non: b\n2024-01-31: c\n~: d", what="x")
    assert loaded == {"1": "a", "on": "b", "2024-01-31": "c", "~": "d"}


def test_merge_keys_and_aliases_are_written_out() -> None:
    text = "base: &b {a: 1, c: {d: 2}}\nmade: {<<: *b, a: 3}\nboth: {<<: [{a: 5}, *b]}\nsame: *b\n"
    loaded = yamlio.safe_load(text, what="x")
    assert loaded["made"] == {"a": 3, "c": {"d": 2}}
    assert loaded["both"] == {"a": 5, "c": {"d": 2}}
    assert loaded["same"] == loaded["base"]
    assert loaded["same"] is not loaded["base"]
    assert "*" not in yamlio.dump(loaded)


def test_multi_line_text_is_written_as_a_block() -> None:
    assert yamlio.dump({"b": "one\n\n  two: 2\n", "a": 1}) == "b: |\n  one\n\n    two: 2\na: 1\n"


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("a: 1\na: 2", "line 2, column 1: the key 'a' stands twice"),
        ("a: [1, 2", "line [12]"),
        ("a: b: c", "line 1, column 5"),
        ("a: !!python/object/apply:os.system ['x']", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: !custom x", "tag"),
        ("a: &x [*x]", "inside its own anchor"),
        ("a: *nope", "line 1"),
        ("? [1]\n: x", "a key must be plain text"),
        ("a: .nan", "not a number"),
        ("a: 1.0e+999", "not a number"),
        ("a: " + "9" * 5000, "not a number"),
        ("a: !!int x", "'x' is no int"),
        ("a: \x01", "U+0001|control characters"),
        ("a\n---\nb", "2 YAML documents"),
        ("<<: 1", "mapping or a list"),
        ("a: \ud800", "UTF-8"),
        (b"a: \xff", "UTF-8"),
        ("[" * 100_000, "deeper than 64"),
        ("- " * 5_000, "deeper than 64"),
        ("x" * 2_000_001, "too large"),
        ("é" * 1_500_000, "too large"),
    ],
)
def test_bad_input_is_refused_with_its_place(text: str | bytes, needle: str) -> None:
    with pytest.raises(Invalid, match=needle.replace("+", r"\+")) as caught:
        yamlio.safe_load(text, what="the input")
    assert str(caught.value).startswith("the input")
    assert len(caught.value.text()) < 400


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(Invalid, match="aliases expand"):
        yamlio.safe_load("\n".join(lines), what="bomb")


def test_an_alias_bomb_by_depth_is_refused() -> None:
    lines = ["l0: &l0 [x]"] + [f"l{n}: &l{n} [*l{n - 1}]" for n in range(1, 100)]
    with pytest.raises(Invalid, match="deeper than"):
        yamlio.safe_load("\n".join(lines), what="bomb")


def test_a_merge_bomb_is_refused() -> None:
    lines = ["l0: &l0 {" + ", ".join(f"k{n}: 1" for n in range(50)) + "}"]
    lines += [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 50)}], n{n}: 1}}" for n in range(1, 60)]
    with pytest.raises(Invalid, match="aliases expand"):
        yamlio.safe_load("\n".join(lines), what="bomb")


def test_nothing_and_a_byte_order_mark_are_fine() -> None:
    assert yamlio.safe_load("", what="x") is None
    assert yamlio.safe_load("# only a comment", what="x") is None
    assert yamlio.safe_load_all("", what="x") == []
    assert yamlio.safe_load("\ufeffa: 1".encode(), what="x") == {"a": 1}


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1}}, [float("nan")], "\ud800", object(), 10**500])
def test_what_a_file_cannot_hold_is_not_dumped(value: Any) -> None:
    with pytest.raises(Invalid):
        yamlio.dump(value)
