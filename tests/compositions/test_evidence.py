"""Intervals, differences and verdicts: known values, and what must hold of all values."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ksi_mcp.compositions.evidence import (
    MAX_VALUE,
    Better,
    check_value,
    compare_means,
    compare_shares,
    mean_from,
    mean_of,
    share,
    t_quantile,
)
from ksi_mcp.errors import Invalid

values = st.floats(-MAX_VALUE, MAX_VALUE)
samples = st.lists(values, min_size=10, max_size=40)
small = st.lists(st.integers(-50, 50).map(lambda n: n / 4), min_size=10, max_size=40)
counts = st.integers(10, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (5, 2.57058), (9, 2.26216), (10, 2.22814), (30, 2.04227), (100, 1.98397)],
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_students_quantile_comes_to_that_of_the_normal_distribution() -> None:
    assert t_quantile(1e12) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-4)
    assert [t_quantile(n) for n in (1, 1.5, 2, 9, 9.5, 1e3)] == sorted(
        (t_quantile(n) for n in (1, 1.5, 2, 9, 9.5, 1e3)), reverse=True
    )


def test_wilsons_interval_has_the_published_values() -> None:
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
    for (x, n), bounds in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        found = share(x, n)
        assert (found.low, found.high) == pytest.approx(bounds, abs=5e-5)


def test_the_difference_of_shares_has_the_published_values() -> None:
    # Newcombe (1998), "Interval estimation for the difference", table II, method 10; there it is first minus second.
    for (first, second), bounds in {
        ((56, 70), (48, 80)): (0.0524, 0.3339),
        ((9, 10), (3, 10)): (0.1705, 0.8090),
        ((10, 10), (0, 20)): (0.6791, 1.0),
        ((10, 10), (0, 10)): (0.6075, 1.0),
    }.items():
        found = compare_shares(second, first).difference
        assert found is not None
        assert (found.low, found.high) == pytest.approx(bounds, abs=5e-5)


def test_welchs_interval_has_a_value_worked_out_by_hand() -> None:
    # a: 1..10, mean 5.5, variance 55/6. b: twice that, mean 11, variance 110/3. Error 2.1409, freedom 13.235.
    a = [float(n) for n in range(1, 11)]
    found = compare_means(a, [2 * n for n in a], better="higher")
    assert found.difference is not None
    error = math.sqrt(55 / 60 + 110 / 30)
    freedom = (55 / 60 + 110 / 30) ** 2 / ((55 / 60) ** 2 / 9 + (110 / 30) ** 2 / 9)
    assert (error, freedom) == (pytest.approx(2.1409, abs=5e-5), pytest.approx(13.2353, abs=5e-5))
    assert found.difference.mean == 5.5
    assert found.difference.high - 5.5 == pytest.approx(2.1564 * error, abs=1e-3)
    assert found.verdict == "b is better"
    assert mean_of(a).high == pytest.approx(5.5 + 2.26216 * math.sqrt(55 / 60), abs=5e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 1.0001e12, True, "0.8", None])
def test_what_is_no_number_to_reckon_with_is_refused(value: object) -> None:
    with pytest.raises(Invalid, match="no number between"):
        check_value(value, "the score")
    if isinstance(value, float):
        with pytest.raises(Invalid):
            mean_of([0.5, value])
        with pytest.raises(Invalid):
            compare_means([0.5] * 10, [0.5] * 9 + [value], better="higher")


def test_more_successes_than_runs_cannot_be() -> None:
    with pytest.raises(Invalid, match="cannot be"):
        share(3, 2)


def test_too_few_runs_say_which_side_lacks_how_many() -> None:
    assert compare_means([1.0] * 7, [2.0] * 30, better="higher").verdict == "not enough runs: 7 of 10 for a"
    found = compare_shares((1, 2), (0, 0))
    assert found.verdict == "not enough runs: 2 of 10 for a, 0 of 10 for b"
    assert (found.difference, found.winner) == (None, None)


def test_values_that_never_vary_differ_by_what_they_differ() -> None:
    tie = compare_means([0.1] * 10, [0.1] * 12, better="higher")
    assert tie.difference is not None
    assert (tie.difference.low, tie.difference.high, tie.verdict) == (0, 0, "no difference shown")
    found = compare_means([3.0] * 10, [2.0] * 10, better="lower")
    assert found.difference is not None
    assert (found.difference.low, found.difference.high, found.verdict) == (-1, -1, "b is better")
    one_side = compare_means([3.0] * 10, [2.0, 4.0] * 5, better="lower")
    assert one_side.verdict == "no difference shown"


@given(counts)
def test_a_share_lies_in_its_interval_and_that_within_all_and_none(given_counts: tuple[int, int]) -> None:
    found = share(*given_counts)
    assert found.low is not None
    assert found.mean is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.low < found.high


@given(counts, counts)
def test_comparing_shares_the_other_way_round_turns_everything_round(a: tuple[int, int], b: tuple[int, int]) -> None:
    there, back = compare_shares(a, b), compare_shares(b, a)
    assert there.difference is not None
    assert back.difference is not None
    assert (there.a, there.b) == (back.b, back.a)
    assert there.difference.low == pytest.approx(-back.difference.high, abs=1e-12)
    assert -1 <= there.difference.low <= there.difference.mean <= there.difference.high <= 1
    assert {there.winner, back.winner} in ({None}, {"a", "b"})


@given(counts)
def test_the_same_share_is_no_difference(a: tuple[int, int]) -> None:
    assert compare_shares(a, a).verdict == "no difference shown"


@given(samples, samples, st.sampled_from(["higher", "lower"]))
@example([0.0] * 9 + [1e-99], [0.0] * 9 + [-1e-99], "higher")
@example([MAX_VALUE, -MAX_VALUE] * 5, [MAX_VALUE] * 10, "higher")
def test_comparing_means_the_other_way_round_turns_everything_round(
    a: list[float], b: list[float], better: Better
) -> None:
    there, back = compare_means(a, b, better=better), compare_means(b, a, better=better)
    assert there.difference is not None
    assert back.difference is not None
    bounds = (there.difference.low, there.difference.mean, there.difference.high)
    assert all(map(math.isfinite, bounds))
    assert there.difference.low <= there.difference.mean <= there.difference.high
    assert there.difference.low == pytest.approx(-back.difference.high, rel=1e-9)
    assert {there.winner, back.winner} in ({None}, {"a", "b"})
    opposite = compare_means(a, b, better="lower" if better == "higher" else "higher")
    assert {there.winner, opposite.winner} in ({None}, {"a", "b"})


@given(small, small, st.integers(-100, 100), st.sampled_from([0.25, 0.5, 2, 1024]))
def test_neither_another_zero_nor_another_unit_changes_the_verdict(
    a: list[float], b: list[float], moved: int, scaled: float
) -> None:
    plain = compare_means(a, b, better="higher")
    assert plain.difference is not None
    assume(min(abs(plain.difference.low), abs(plain.difference.high)) > 1e-6 or plain.difference.low == 0)
    other = compare_means([scaled * (x + moved) for x in a], [scaled * (x + moved) for x in b], better="higher")
    assert other.difference is not None
    assert other.verdict == plain.verdict
    assert other.difference.mean == pytest.approx(scaled * plain.difference.mean, abs=1e-6 * scaled)


@given(small)
def test_the_same_sample_in_any_order_is_no_difference(a: list[float]) -> None:
    found = compare_means(a, a[::-1], better="higher")
    assert (found.difference is not None and found.difference.mean, found.verdict) == (0, "no difference shown")


@given(small)
def test_a_mean_from_its_sums_is_that_of_the_values(a: list[float]) -> None:
    mean = math.fsum(a) / len(a)
    found = mean_from(len(a), mean, math.fsum((x - mean) ** 2 for x in a))
    exact = mean_of(a)
    assert (found.mean, found.low, found.high) == pytest.approx((exact.mean, exact.low, exact.high), abs=1e-9)


def test_of_many_comparisons_without_a_difference_about_one_in_twenty_shows_one() -> None:
    # Of 400 comparisons, 20 are expected to be wrong; more than 36 or less than 6 would be seen once in 5,000 tries.
    draw = random.Random(7)
    wrong = 0
    for _ in range(400):
        a = [draw.gauss(0.5, 0.1) for _ in range(12)]
        b = [draw.gauss(0.5, 0.4) for _ in range(25)]
        wrong += compare_means(a, b, better="higher").winner is not None
    assert 6 <= wrong <= 36
    wrong = 0
    for _ in range(400):
        x, y = (sum(draw.random() < 0.6 for _ in range(30)) for _ in "ab")
        wrong += compare_shares((x, 30), (y, 30)).winner is not None
    assert wrong <= 36
