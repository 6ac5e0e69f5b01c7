from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp.budgets.prices import Prices, UnpricedModel
from ksi_mcp.errors import Invalid

MODELS = ["claude-fable-5-2", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-haiku-4-5"]
M = 1_000_000
SEARCH = 10_000  # 10 dollars for a thousand


@dataclass(frozen=True)
class Used:
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    web_searches: int = 0


def usd(text: str) -> Fraction:
    """Dollars for a million tokens, which is micro-dollars for a token."""
    return Fraction(text)


OVERRIDES: dict[str, Any] = {
    "mine": {
        "input_usd_per_mtok": 3,
        "output_usd_per_mtok": "0.15",
        "cache_read_usd_per_mtok": 7,
        "request_usd": 0.01,
        "web_search_usd": "0.002",
    },
    "writes": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2, "cache_write_usd_per_mtok": 9},
    "anthropic:writes": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2, "cache_write_1h_usd_per_mtok": "4.5"},
    "gratis": "free",
}

# Prices as published, in US dollars for a million tokens (input / output / cache read): Fable 5.2 8/40/0.20,
# Opus 5.5 4/20/0.20, Sonnet 5.5 2/10/0.10, Haiku 5.5 0.10/0.50/0.01 and five times that beyond 100,000 tokens of
# input, Haiku 4.5 1/5/0.10. A cache write is 1.25 times the input for five minutes and twice for an hour; a batch
# costs half but for its searches; a search is a cent.
RECORDED: list[tuple[str, bool, Used, Fraction | int]] = [
    ("claude-opus-5-5", False, Used(1200, 340), 1200 * 4 + 340 * 20),
    ("claude-opus-5-5", False, Used(3, 512, 40_960), 3 * 4 + 512 * 20 + 40_960 * usd("0.20")),
    ("claude-opus-5-5", False, Used(3, 512, 0, 4097), 3 * 4 + 512 * 20 + 4097 * usd("1.25") * 4),
    ("claude-opus-5-5", False, Used(3, 512, 0, 0, 4097), 3 * 4 + 512 * 20 + 4097 * 2 * 4),
    (
        "claude-opus-5-5",
        False,
        Used(100, 50, 5000, 200, 100, 2),
        100 * 4 + 50 * 20 + 5000 * usd("0.20") + 200 * 5 + 100 * 8 + 2 * SEARCH,
    ),
    (
        "claude-opus-5-5",
        True,
        Used(100, 50, 5000, 200, 100, 2),
        Fraction(100 * 4 + 50 * 20 + 5000 * usd("0.20") + 200 * 5 + 100 * 8, 2) + 2 * SEARCH,
    ),
    ("claude-sonnet-5-5", False, Used(7, 1), 7 * 2 + 1 * 10),
    ("claude-sonnet-5-5", False, Used(1, 0, 3), 1 * 2 + 3 * usd("0.10")),  # 2.3 becomes 3
    (
        "claude-sonnet-5-5",
        False,
        Used(11, 2048, 90_001, 333, 777),
        11 * 2 + 2048 * 10 + 90_001 * usd("0.10") + 333 * usd("2.50") + 777 * 4,
    ),
    ("claude-sonnet-5-5", True, Used(1001, 99), Fraction(1001 * 2 + 99 * 10, 2)),
    ("claude-haiku-5-5", False, Used(100_000, 1000), 100_000 * usd("0.10") + 1000 * usd("0.50")),  # the lower band
    ("claude-haiku-5-5", False, Used(100_001, 1000), 100_001 * usd("0.50") + 1000 * usd("2.50")),  # all at five times
    (
        "claude-haiku-5-5",
        False,
        Used(1, 1000, 60_000, 30_000, 10_000),  # cached input counts for the band
        1 * usd("0.50")
        + 1000 * usd("2.50")
        + 60_000 * usd("0.05")
        + 30_000 * usd("1.25") * usd("0.50")
        + 10_000 * 2 * usd("0.50"),
    ),
    (
        "claude-haiku-5-5",
        True,
        Used(100_001, 1000, 0, 0, 0, 1),
        (100_001 * usd("0.50") + 1000 * usd("2.50")) / 2 + SEARCH,
    ),
    ("claude-haiku-5-5", False, Used(1), 1 * usd("0.10")),  # a tenth of a micro-dollar is booked as one
    (
        "claude-fable-5-2",
        False,
        Used(1000, 100, 1000, 1000, 1000),
        1000 * 8 + 100 * 40 + 1000 * usd("0.20") + 1000 * 10 + 1000 * 16,
    ),
    ("claude-haiku-4-5", True, Used(150_000, 8), (150_000 * 1 + 8 * usd("5")) / 2),  # it has one band only
    (
        "claude-haiku-4-5",
        False,
        Used(9, 9, 9, 9, 9, 9),
        9 * 1 + 9 * 5 + 9 * usd("0.10") + 9 * usd("1.25") + 9 * 2 + 9 * SEARCH,
    ),
    (
        "mine",
        False,
        Used(10, 1, 1, 1, 1, 3),
        10_000 + 10 * 3 + 1 * usd("0.15") + 1 * 7 + 1 * 3 + 1 * 3 + 3 * 2000,
    ),
    ("gratis", False, Used(M, M, M, M, M, 1000), 0),
]


@pytest.mark.parametrize(("model", "batch", "used", "micros"), RECORDED)
def test_twenty_recorded_usages_are_booked_as_by_hand(
    model: str, batch: bool, used: Used, micros: Fraction | int
) -> None:
    assert Prices(OVERRIDES).cost_usd_micros("anthropic", model, used, batch=batch) == ceil(micros)


def test_there_are_twenty_and_every_kind_is_among_them() -> None:
    assert len(RECORDED) == 20
    for name in Used.__annotations__:
        assert sum(getattr(used, name) > 0 for _, _, used, _ in RECORDED) >= 5


@pytest.mark.parametrize(
    ("model", "most", "output", "cache", "micros"),
    [
        ("claude-opus-5-5", 1000, 100, None, 4 * 1000 + 20 * 100),
        ("claude-opus-5-5", 1000, 100, "5m", 5 * 1000 + 20 * 100),  # all of it written to the cache
        ("claude-opus-5-5", 1000, 100, "1h", 8 * 1000 + 20 * 100),
        ("claude-haiku-5-5", 100_000, 100, None, 10_000 + 50),
        ("claude-haiku-5-5", 200_000, 100, None, 100_000 + 250),
        ("claude-haiku-5-5", 200_000, 100, "5m", 125_000 + 250),
        ("claude-haiku-5-5", 200_000, 100, "1h", 200_000 + 250),
        ("claude-haiku-5-5", 0, 100, None, 50),
        ("writes", 1000, 100, None, 1000 + 200),
        ("writes", 1000, 100, "5m", 1000 + 200),  # the override of the provider wins, which has no such price
        ("writes", 1000, 100, "1h", 4500 + 200),
    ],
)
def test_the_worst_case_is_the_dearest_kind_and_band(
    model: str, most: int, output: int, cache: Literal["5m", "1h"] | None, micros: int
) -> None:
    prices = Prices(OVERRIDES)
    assert prices.worst_case_usd_micros("anthropic", model, most, output, cache=cache) == micros
    halved = prices.worst_case_usd_micros("anthropic", model, most, output, cache=cache, batch=True)
    assert halved == ceil(Fraction(micros, 2))


@settings(deadline=None)
@given(
    st.sampled_from([*MODELS, "mine", "writes", "gratis"]),
    st.tuples(*[st.integers(0, 120_000)] * 4, st.integers(0, 64_000)),
    st.tuples(st.integers(0, 50_000), st.integers(0, 5_000)),
    st.sampled_from([None, "5m", "1h"]),
    st.tuples(st.sampled_from(["anthropic", "anthropic@gateway"]), st.booleans()),
)
def test_the_worst_case_is_never_below_the_cost(
    model: str,
    tokens: tuple[int, int, int, int, int],
    more: tuple[int, int],
    cache: Literal["5m", "1h"] | None,
    way: tuple[str, bool],
) -> None:
    plain, read, write, write_1h, output = tokens
    provider, batch = way
    used = Used(plain, output, read, write if cache is not None else 0, write_1h if cache == "1h" else 0)
    prices = Prices(OVERRIDES)
    most = plain + read + used.cache_write_tokens + used.cache_write_1h_tokens + more[0]
    worst = prices.worst_case_usd_micros(provider, model, most, output + more[1], cache=cache, batch=batch)
    assert worst >= prices.cost_usd_micros(provider, model, used, batch=batch)


def test_the_price_at_a_provider_wins_over_the_one_of_the_model() -> None:
    def flat(price: int) -> dict[str, int]:
        return {"input_usd_per_mtok": price, "output_usd_per_mtok": price}

    kind = "openai_compatible"
    prices = Prices({"llama3:8b": flat(1), f"{kind}:llama3:8b": flat(2), f"{kind}:*": flat(3), f"{kind}@a:*": "free"})
    one = Used(1)
    assert prices.cost_usd_micros(kind, "llama3:8b", one) == 2
    assert prices.cost_usd_micros(kind, "other", one) == 3
    assert prices.cost_usd_micros(f"{kind}@a", "llama3:8b", one) == 0
    assert prices.cost_usd_micros(f"{kind}@b", "llama3:8b", one) == 1  # another endpoint: not the price of the kind
    assert prices.cost_usd_micros("anthropic", "llama3:8b", one) == 1
    assert not prices.is_priced(f"{kind}@b", "other")


def test_an_endpoint_goes_by_the_price_list_of_its_kind() -> None:
    assert Prices().cost_usd_micros("anthropic@gateway", "claude-opus-5-5", Used(1000)) == 4000
    assert Prices().worst_case_usd_micros("scripted@mine", "whatever", M, M) == 0
    with pytest.raises(UnpricedModel, match="nobody@x"):
        Prices().cost_usd_micros("nobody@x", "claude-opus-5-5", Used(1000))


def test_an_override_wins_and_rounds_up() -> None:
    prices = Prices({**OVERRIDES, "claude-opus-5-5": "free"})
    assert prices.cost_usd_micros("openai_compatible", "mine", Used(10, 1, 1, 1)) == 10_000 + 30 + 1 + 7 + 3
    assert prices.worst_case_usd_micros("anthropic", "mine", 10, 0) == 10_000 + 70
    assert prices.cost_usd_micros("anthropic", "claude-opus-5-5", Used(1000, 1000)) == 0
    assert prices.worst_case_usd_micros("x", "gratis", 1000, 1000) == 0


def test_scripted_is_free_unless_it_is_given_a_price() -> None:
    assert Prices().worst_case_usd_micros("scripted", "claude-opus-5-5", M, M) == 0
    assert Prices(OVERRIDES).cost_usd_micros("scripted", "mine", Used(M)) == 3 * M + 10_000


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-mythos-5"),
        ("anthropic", "gpt-4o"),
        ("anthropic", "claude-opus-5-5[1m]"),
        ("openai_compatible", "llama3:8b"),
        ("nobody", "claude-opus-5-5"),
        ("anthropic", ""),
    ],
)
def test_a_model_without_a_price_is_refused_with_a_way_out(provider: str, model: str) -> None:
    prices = Prices()
    with pytest.raises(UnpricedModel) as caught:
        prices.worst_case_usd_micros(provider, model, 1, 1)
    assert "free" in caught.value.text()
    assert not prices.is_priced(provider, model)
    with pytest.raises(UnpricedModel):
        prices.cost_usd_micros(provider, model, Used())


@pytest.mark.parametrize(
    "given",
    [
        "cheap",
        {"input_usd_per_mtok": 1},
        {"input_usd_per_mtok": 1, "output_usd_per_mtok": -1},
        {"input_usd_per_mtok": 1, "output_usd_per_mtok": "a lot"},
        {"input_usd_per_mtok": 1, "output_usd_per_mtok": float("inf")},
        {"input_usd_per_mtok": 1, "output_usd_per_mtok": True},
        {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1, "price": 1},
    ],
)
def test_a_wrong_override_is_refused(given: Any) -> None:
    with pytest.raises(Invalid, match="'mine'") as caught:
        Prices({"mine": given})
    assert caught.value.hint


@pytest.mark.parametrize("count", [-1, 1.5, True, 10**13])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(Invalid, match="input_tokens_max"):
        Prices().worst_case_usd_micros("anthropic", "claude-opus-5-5", count, 1)
