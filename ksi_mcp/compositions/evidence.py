"""What runs show about two patterns: means with their intervals, the difference, and a verdict in words. Pure.

All intervals are at 95 %. A share of successes has the score interval of Wilson (1927), "Probable inference, the law of
succession, and statistical inference", JASA 22; the difference of two shares the hybrid of two of those: method 10 of
Newcombe (1998), "Interval estimation for the difference between independent proportions", Statistics in Medicine 17.
A mean has Student's interval; the difference of two means that of Welch (1947), "The generalization of 'Student's'
problem when several different population variances are involved", Biometrika 34, which does not take the variances to
be alike. None of them is corrected for looking several times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final, Literal

from ksi_mcp.errors import Invalid

MIN_RUNS: Final = 10
"""Runs of each side below which nothing is said about a difference."""
MAX_VALUE: Final = 1e12
"""Beyond this, up or down, a value is taken for a mistake: it would drown every other."""
LEVEL: Final = 0.95

Better = Literal["higher", "lower"]
Winner = Literal["a", "b"]

_TAIL: Final = 1 - LEVEL
_Z: Final = NormalDist().inv_cdf(1 - _TAIL / 2)
_TINY: Final = 1e-300
_LEAST: Final = 1e-100
"""Values nearer to nothing than this are nothing: their squares could not be told apart."""
_MOST_FREEDOM: Final = 1e6
_STEPS: Final = 300
_HALVINGS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean of `n` values and where the true one lies; `low` and `high` are None where two values are too few."""

    n: int
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """b minus a, and where the true difference lies."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sides and what can be said of them. `winner` is None where no difference is shown."""

    a: Estimate
    b: Estimate
    difference: Difference | None
    """None: not enough runs."""
    winner: Winner | None
    verdict: str


def check_value(value: object, what: str) -> float:
    """A number that statistics can be made of.

    Raises:
        Invalid: it is none, not finite, or beyond a million millions.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_VALUE:
        raise Invalid(
            f"{what} is {str(value)[:40]}, which is no number between -{MAX_VALUE:g} and {MAX_VALUE:g}",
            hint="give a finite number on the pattern's own scale, such as 0.8",
        )
    return float(value) if abs(value) >= _LEAST else 0.0


def share(successes: int, n: int) -> Estimate:
    """The share of successes with Wilson's score interval.

    Raises:
        Invalid: there are more successes than runs, or less than none.
    """
    if not 0 <= successes <= n:
        raise Invalid(f"{successes} successes of {n} runs cannot be")
    if n == 0:
        return Estimate(n=0, mean=None, low=None, high=None)
    low, high = _wilson(successes, n)
    return Estimate(n=n, mean=successes / n, low=low, high=high)


def mean_of(values: Iterable[float]) -> Estimate:
    """The mean with Student's interval.

    Raises:
        Invalid: a value is not finite or too large.
    """
    sample = [check_value(value, "a value") for value in values]
    return mean_from(len(sample), *_moments(sample)) if sample else mean_from(0, 0.0, 0.0)


def mean_from(n: int, mean: float, squares: float) -> Estimate:
    """As `mean_of`, from the count, the mean and the sum of squared distances from it."""
    if n == 0:
        return Estimate(n=0, mean=None, low=None, high=None)
    if n == 1:
        return Estimate(n=1, mean=mean, low=None, high=None)
    error = math.sqrt(max(squares, 0.0) / (n - 1) / n)
    reach = t_quantile(n - 1) * error
    return Estimate(n=n, mean=mean, low=mean - reach, high=mean + reach)


def compare_shares(a: tuple[int, int], b: tuple[int, int], *, minimum: int = MIN_RUNS) -> Comparison:
    """Compare two shares given as (successes, runs); more is better."""
    one, other = share(*a), share(*b)
    if short := _too_few(one, other, minimum):
        return short
    (x, m), (y, n) = a, b
    difference = y / n - x / m
    (low_a, high_a), (low_b, high_b) = _wilson(x, m), _wilson(y, n)
    return _judged(
        one,
        other,
        Difference(
            mean=difference,
            low=difference - math.hypot(y / n - low_b, high_a - x / m),
            high=difference + math.hypot(high_b - y / n, x / m - low_a),
        ),
        better="higher",
    )


def compare_means(a: Iterable[float], b: Iterable[float], *, better: Better, minimum: int = MIN_RUNS) -> Comparison:
    """Compare two samples by Welch's interval. Where neither varies at all, the difference is what it is.

    Raises:
        Invalid: a value is not finite or too large.
    """
    first = [check_value(value, "a value") for value in a]
    second = [check_value(value, "a value") for value in b]
    one, other = mean_of(first), mean_of(second)
    if short := _too_few(one, other, minimum):
        return short
    (mean_a, squares_a), (mean_b, squares_b) = _moments(first), _moments(second)
    m, n = len(first), len(second)
    error_a, error_b = squares_a / (m - 1) / m, squares_b / (n - 1) / n
    difference, error = mean_b - mean_a, error_a + error_b
    reach = 0.0
    if error > 0:
        # Welch and Satterthwaite: the degrees of freedom, in shares of the error, whose squares do not vanish.
        of_a, of_b = error_a / error, error_b / error
        freedom = 1 / (of_a * of_a / (m - 1) + of_b * of_b / (n - 1))
        reach = t_quantile(freedom) * math.sqrt(error)
    return _judged(
        one,
        other,
        Difference(mean=difference, low=difference - reach, high=difference + reach),
        better=better,
    )


@lru_cache(maxsize=4096)
def t_quantile(freedom: float) -> float:
    """How many standard errors Student's interval reaches to each side with that many degrees of freedom.

    P(|T| > t) is the regularised incomplete beta function I(f / 2, 1 / 2) at f / (f + t * t): DLMF 8.17.
    """
    freedom = min(freedom, _MOST_FREEDOM)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _incomplete_beta(freedom / 2, 0.5, middle) < _TAIL:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom * (1 - high) / high)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), by the continued fraction DLMF 8.17.22, evaluated as Lentz (1976) does."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges quickly on one side only
        return 1 - _incomplete_beta(b, a, 1 - x)
    scale = a * math.log(x) + b * math.log1p(-x) - math.log(a) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    fraction, upper, lower = 1.0, 1.0, 0.0
    for step in range(_STEPS):
        m, odd = divmod(step, 2)
        if step == 0:
            part = 1.0
        elif odd:
            part = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            part = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / (_kept(1 + part * lower))
        upper = _kept(1 + part / upper)
        fraction *= upper * lower
        if step and abs(1 - upper * lower) < 1e-15:  # noqa: PLR2004  a bit more than the precision of a float
            break
    return math.exp(scale) * (fraction - 1)


def _kept(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _wilson(successes: int, n: int) -> tuple[float, float]:
    rate, z2 = successes / n, _Z * _Z
    middle = rate + z2 / (2 * n)
    reach = _Z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    low, high = (middle - reach) / (1 + z2 / n), (middle + reach) / (1 + z2 / n)
    # None and all are exact bounds, which rounding would miss by a hair.
    return (0.0 if successes == 0 else max(low, 0.0)), (1.0 if successes == n else min(high, 1.0))


def _moments(values: list[float]) -> tuple[float, float]:
    """The mean and the sum of squared distances from it; equal values have none, whatever rounding says."""
    if min(values) == max(values):
        return values[0], 0.0
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values)


def _too_few(a: Estimate, b: Estimate, minimum: int) -> Comparison | None:
    short = [f"{side.n} of {minimum} for {name}" for name, side in (("a", a), ("b", b)) if side.n < minimum]
    if not short:
        return None
    return Comparison(a=a, b=b, difference=None, winner=None, verdict=f"not enough runs: {', '.join(short)}")


def _judged(a: Estimate, b: Estimate, difference: Difference, *, better: Better) -> Comparison:
    winner: Winner | None = None
    if difference.low > 0 or difference.high < 0:
        winner = "b" if (difference.low > 0) == (better == "higher") else "a"
    verdict = "no difference shown" if winner is None else f"{winner} is better"
    return Comparison(a=a, b=b, difference=difference, winner=winner, verdict=verdict)
