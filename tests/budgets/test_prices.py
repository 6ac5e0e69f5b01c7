from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp.budgets.prices import Prices, UnpricedModel
from ksi_mcp.errors import Invalid

MODELS = ["claude-fable-5-2", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-haiku-4-5"]
M = 1_000_000


@dataclass(frozen=True)
class Used:
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@pytest.mark.parametrize(
    ("model", "used", "micros"),
    [
        # dollars per million tokens = micro-dollars per token: in, out, cache read; a write is 1.25 x in
        ("claude-fable-5-2", Used(1000, 100, 1000, 1000), 8 * 1000 + 40 * 100 + 200 + 10 * 1000),
        ("claude-opus-5-5", Used(1000, 100, 1000, 1000), 4 * 1000 + 20 * 100 + 200 + 5 * 1000),
        ("claude-sonnet-5-5", Used(1000, 100, 1000, 1000), 2 * 1000 + 10 * 100 + 100 + 2500),
        ("claude-haiku-4-5", Used(1000, 100, 1000, 1000), 1000 + 5 * 100 + 100 + 1250),
        ("claude-haiku-5-5", Used(1000, 100, 1000, 1000), 100 + 50 + 10 + 125),
        ("claude-haiku-5-5", Used(100_000, 1000), 10_000 + 500),  # the last of the lower band
        ("claude-haiku-5-5", Used(100_001, 1000), 50_001 + 2500),  # 50,000.5 rounded up, all at five times
        ("claude-haiku-5-5", Used(1, 1000, 100_000), 1 + 5_000 + 2_500),  # cached input counts for the band
        ("claude-haiku-5-5", Used(1, 0), 1),  # 0.1 micro-dollars
        ("claude-opus-5-5", Used(), 0),
    ],
)
def test_a_cost_is_what_the_price_list_says_by_hand(model: str, used: Used, micros: int) -> None:
    assert Prices().cost_usd_micros("anthropic", model, used) == micros


def test_a_cache_write_of_an_hour_costs_twice_the_input() -> None:
    used = Used(cache_write_tokens=1000)
    assert Prices().cost_usd_micros("anthropic", "claude-opus-5-5", used, hour_cache=True) == 2 * 4 * 1000


@pytest.mark.parametrize(
    ("model", "most", "output", "caching", "micros"),
    [
        ("claude-opus-5-5", 1000, 100, False, 4 * 1000 + 20 * 100),
        ("claude-opus-5-5", 1000, 100, True, 8 * 1000 + 20 * 100),  # all of it written to the hour's cache
        ("claude-haiku-5-5", 100_000, 100, False, 10_000 + 50),
        ("claude-haiku-5-5", 200_000, 100, False, 100_000 + 250),
        ("claude-haiku-5-5", 200_000, 100, True, 200_000 + 250),
        ("claude-haiku-5-5", 0, 100, False, 50),
    ],
)
def test_the_worst_case_is_the_dearest_kind_and_band(
    model: str, most: int, output: int, caching: bool, micros: int
) -> None:
    assert Prices().worst_case_usd_micros("anthropic", model, most, output, caching=caching) == micros


OVERRIDES: dict[str, Any] = {
    "mine": {"input_usd_per_mtok": 3, "output_usd_per_mtok": "0.15", "cache_read_usd_per_mtok": 7, "request_usd": 0.01},
    "gratis": "free",
}


@settings(deadline=None)
@given(
    st.sampled_from([*MODELS, "mine", "gratis"]),
    st.tuples(st.integers(0, 120_000), st.integers(0, 120_000), st.integers(0, 120_000), st.integers(0, 64_000)),
    st.tuples(st.integers(0, 50_000), st.integers(0, 5_000)),
    st.booleans(),
    st.booleans(),
)
def test_the_worst_case_is_never_below_the_cost(
    model: str, tokens: tuple[int, int, int, int], more: tuple[int, int], caching: bool, hour_cache: bool
) -> None:
    plain, read, write, output = tokens
    used = Used(plain, output, read, write if caching else 0)
    prices = Prices(OVERRIDES)
    most = used.input_tokens + used.cache_read_tokens + used.cache_write_tokens + more[0]
    worst = prices.worst_case_usd_micros("anthropic", model, most, output + more[1], caching=caching)
    assert worst >= prices.cost_usd_micros("anthropic", model, used, hour_cache=hour_cache)


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
