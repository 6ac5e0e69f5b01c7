"""What the guard tells apart, on the published pairs and in general."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.completions.paraphrase_guard import difference
from ksi_mcp.yamlio import safe_load

PAIRS: dict[str, dict[str, list[list[str]]]] = safe_load(
    (Path(__file__).parent / "near_misses.yaml").read_text("utf-8"), what="near_misses.yaml"
)


def pairs(kind: str, *halves: str) -> list[Any]:
    return [pair for half in halves for pair in PAIRS[half][kind]]


def test_the_published_set_is_large_enough_to_say_something() -> None:
    assert len(pairs("near_misses", "a", "b")) >= 60
    assert len(pairs("paraphrases", "a", "b")) >= 40
    said = [tuple(pair[1:]) for kind in ("near_misses", "paraphrases") for pair in pairs(kind, "a", "b", "c")]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize(("category", "one", "other"), pairs("near_misses", "a", "b"))
def test_a_near_miss_is_told_apart(category: str, one: str, other: str) -> None:
    assert difference(one, other) is not None


def test_the_figures_in_the_docs_are_those_of_the_set() -> None:
    passed = {
        (half, kind): sum(difference(one, other) is None for _, one, other in PAIRS[half][kind])
        for half in "abc"
        for kind in ("near_misses", "paraphrases")
    }
    assert passed == {
        ("a", "near_misses"): 0, ("b", "near_misses"): 0, ("c", "near_misses"): 3,
        ("a", "paraphrases"): 13, ("b", "paraphrases"): 11, ("c", "paraphrases"): 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Multiply it by .5", "Multiply it by 5"),
        ("What is f'(2)?", "What is f(2)?"),
        ("Add \u20135 to it", "Add 5 to it"),
        ("What is 10^\u20133?", "What is 10^3?"),
        ("What is 2\u00b3?", "What is 23?"),
        ("Is it 5' long?", 'Is it 5" long?'),
        ("Explain !ready", "Explain ready"),
    ],
)
def test_a_sign_that_carries_the_sense_tells_them_apart(one: str, other: str) -> None:
    assert difference(one, other) is not None


def test_what_the_guard_is_known_to_miss() -> None:
    missed = [category for category, one, other in pairs("near_misses", "c") if difference(one, other) is None]
    assert missed == ["comma", "request", "fronted"]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("Wait 7 days.", "Wait 70 days.", "number: 7 / 70"),
        ("It is safe.", "It is not safe.", "negation: - / not"),
        ("Go from A to B.", "Go from B to A.", "order: "),
        ("Run it for 5 ms.", "Run it for 5 s.", "unit: ms / s"),
        ("Say 'yes' twice.", "Say 'no' twice.", "quoted: yes / no"),
        ("Give me read access.", "Give me write access.", "opposite: read / write"),
        ("Ask Ann.", "Ask Bob.", "name: ann / bob"),
        ("Do it today.", "Do it tomorrow.", "time: today / tomorrow"),
        ("List the files.", "List the hidden files.", "words: - / hidden"),
    ],
)
def test_the_reason_names_what_differs(one: str, other: str, said: str) -> None:
    found = difference(one, other)
    assert found is not None
    assert found.text().startswith(said)


def test_a_prompt_in_another_script_is_told_apart_by_any_change() -> None:
    assert difference("Сколько стоит билет до Москвы?", "Сколько стоит билет до Минска?") is not None
    assert difference("東京から大阪まで", "大阪から東京まで") is not None
    assert difference("東京から大阪まで", "東京から大阪まで") is None


def test_two_long_prompts_that_differ_in_one_word_at_the_end_are_told_apart() -> None:
    text = "The committee met and talked about the same matters as before. " * 100
    assert difference(text + "Approve.", text + "Decline.") is not None


def test_a_reason_stays_short() -> None:
    found = difference("a" * 5_000, "b" * 5_000)
    assert found is not None
    assert len(found.text()) < 200


@given(st.text(max_size=200), st.text(max_size=200))
def test_telling_apart_is_symmetric(one: str, other: str) -> None:
    assert (difference(one, other) is None) == (difference(other, one) is None)


@given(st.text(max_size=200))
def test_a_prompt_asks_the_same_as_itself(text: str) -> None:
    assert difference(text, text) is None


@given(st.integers(min_value=0), st.integers(min_value=0), st.sampled_from([p[1] for p in pairs("near_misses", "a")]))
def test_another_number_is_another_question(one: int, other: int, text: str) -> None:
    assert (difference(f"{text} Use {one} of them.", f"{text} Use {other} of them.") is None) == (one == other)


WORDS = st.lists(st.sampled_from(["red", "green", "blue", "from", "to", "not", "before", "all"]), max_size=8)


@given(WORDS, WORDS)
def test_other_words_or_another_order_make_another_question(one: list[str], other: list[str]) -> None:
    assert (difference(" ".join(one), " ".join(other)) is None) == (one == other)
