"""What a call may cost and what it did cost, in micro-dollars, always rounded up.

Prices come from `genai-prices`, which is loaded at the first question; the configuration can override them by model.
The worst case of a call is the dearest thing that its bounds allow, whatever band, kind of cache or direction that is:
it is never below the true cost of a call within the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from ksi_mcp.errors import Invalid

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

FREE_PROVIDERS: Final = frozenset({"scripted", "external"})
"""They cost nothing unless an override says otherwise."""
# Whose price list a provider goes by; None is that of whoever makes the model.
_PRICE_LISTS: Final[Mapping[str, str | None]] = {
    "anthropic": "anthropic",
    "claude_cli": "anthropic",
    "openai_compatible": None,
}
_PER_MTOK: Final = ("input", "output", "cache_read", "cache_write")
_KEYS: Final = frozenset({*(f"{kind}_usd_per_mtok" for kind in _PER_MTOK), "request_usd"})
_MICROS: Final = Decimal(1_000_000)
_MAX_TOKENS: Final = 10**12

Override = Literal["free"] | Mapping[str, float | str]
"""`"free"`, or `input_usd_per_mtok` and `output_usd_per_mtok`, and if they differ from input `cache_read_usd_per_mtok`
and `cache_write_usd_per_mtok`; `request_usd` comes on top of each call."""


class TokenUsage(Protocol):
    """Tokens of one call; `input_tokens` excludes cache traffic."""

    @property
    def input_tokens(self) -> int:
        """Input that is neither read from nor written to a cache."""

    @property
    def output_tokens(self) -> int:
        """Output of any kind."""

    @property
    def cache_read_tokens(self) -> int:
        """Input read from a cache."""

    @property
    def cache_write_tokens(self) -> int:
        """Input written to a cache."""


class UnpricedModel(Invalid):
    """Nobody knows what the model costs, so no budget in dollars can be kept with it."""

    def __init__(self, provider: str, model: str) -> None:
        super().__init__(
            f"no price is known for model {model[:80]!r} of provider {provider[:80]!r}",
            hint="give the model a price in the configuration, or say that it is free",
        )
        self.provider = provider
        self.model = model


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """Tokens by what they are charged as; `write_1h` is a cache write that lives an hour."""

    plain: int = 0
    output: int = 0
    read: int = 0
    write: int = 0
    write_1h: int = 0


class Prices:
    """The price of every model, overrides first."""

    def __init__(self, overrides: Mapping[str, Override] | None = None) -> None:
        self._overrides = {model: _override(model, given) for model, given in (overrides or {}).items()}

    def worst_case_usd_micros(
        self, provider: str, model: str, input_tokens_max: int, max_tokens: int, *, caching: bool = False
    ) -> int:
        """Return the most that one call can cost with so much input at most, cached or not, and so much output.

        `caching` says that the call may write to a cache, which costs up to twice the input.
        Raises `UnpricedModel`, and `Invalid` for counts that are not.
        """
        most, output = _count("input_tokens_max", input_tokens_max), _count("max_tokens", max_tokens)
        rates = self._override_for(provider, model)
        if rates is not None:
            kinds = ["input", "cache_read", *(["cache_write"] if caching else [])]
            dearest = max(rates[kind] for kind in kinds)
            return _micros((dearest * most + rates["output"] * output) / _MICROS + rates["request"])
        info, list_name = _find(provider, model)
        # Within a band the cost is linear in each count, so its maximum lies where all input is of one kind, at the
        # end of a band. A later band may be the cheaper one, therefore each end that the bounds reach is tried.
        ends = [most, *(start for start in _band_starts(info) if start < most)]
        candidates: list[_Counts] = []
        for end in ends:
            candidates += [_Counts(plain=end, output=output), _Counts(read=end, output=output)]
            if caching:
                candidates += [_Counts(write=end, output=output), _Counts(write_1h=end, output=output)]
        return max(_micros(_listed(model, list_name, counts)) for counts in candidates)

    def cost_usd_micros(self, provider: str, model: str, usage: TokenUsage, *, hour_cache: bool = False) -> int:
        """Return what that usage cost. `hour_cache` says that cache writes were of the kind that lives an hour.

        Raises `UnpricedModel`, and `Invalid` for counts that are not.
        """
        written = _count("cache_write_tokens", usage.cache_write_tokens)
        counts = _Counts(
            plain=_count("input_tokens", usage.input_tokens),
            output=_count("output_tokens", usage.output_tokens),
            read=_count("cache_read_tokens", usage.cache_read_tokens),
            write=0 if hour_cache else written,
            write_1h=written if hour_cache else 0,
        )
        rates = self._override_for(provider, model)
        if rates is not None:
            tokens = rates["input"] * counts.plain + rates["output"] * counts.output
            tokens += rates["cache_read"] * counts.read + rates["cache_write"] * written
            return _micros(tokens / _MICROS + rates["request"])
        _, list_name = _find(provider, model)
        return _micros(_listed(model, list_name, counts))

    def is_priced(self, provider: str, model: str) -> bool:
        """Whether a price is known, free included."""
        try:
            self.worst_case_usd_micros(provider, model, 1, 1)
        except UnpricedModel:
            return False
        return True

    def _override_for(self, provider: str, model: str) -> Mapping[str, Decimal] | None:
        found = self._overrides.get(model)
        if found is None and provider in FREE_PROVIDERS:
            return _override(model, "free")
        return found


def _override(model: str, given: Override) -> Mapping[str, Decimal]:
    if isinstance(given, str):
        if given != "free":
            raise Invalid(f"the price of {model[:80]!r} is {given[:40]!r}", hint="write free, or prices per kind")
        return {**dict.fromkeys(_PER_MTOK, Decimal(0)), "request": Decimal(0)}
    if unknown := sorted(set(given) - _KEYS):
        raise Invalid(f"the price of {model[:80]!r} has an unknown {unknown[0][:80]!r}", hint=f"known: {sorted(_KEYS)}")
    for name in ("input_usd_per_mtok", "output_usd_per_mtok"):
        if name not in given:
            raise Invalid(f"the price of {model[:80]!r} lacks {name}", hint="give both input and output, or write free")
    plain = _usd(model, given["input_usd_per_mtok"])
    rates = {kind: _usd(model, given.get(f"{kind}_usd_per_mtok", plain)) for kind in _PER_MTOK}
    return {**rates, "request": _usd(model, given.get("request_usd", 0))}


def _usd(model: str, value: float | str | Decimal) -> Decimal:
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        price = Decimal("NaN")
    if isinstance(value, bool) or not price.is_finite() or not 0 <= price <= _MICROS:
        raise Invalid(f"the price of {model[:80]!r} holds {str(value)[:40]!r}", hint="prices are US dollars from 0 up")
    return price


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_TOKENS:
        raise Invalid(f"{name} is {str(value)[:40]}", hint="a count of tokens is a whole number from 0 up")
    return value


def _micros(usd: Decimal) -> int:
    return int((usd * _MICROS).to_integral_value(rounding=ROUND_CEILING))


def _find(provider: str, model: str) -> tuple[ModelInfo, str | None]:
    """The model in the price list, and which list."""
    import genai_prices

    if provider not in _PRICE_LISTS:
        raise UnpricedModel(provider, model)
    list_name = _PRICE_LISTS[provider]
    try:
        found = genai_prices.calc_price(genai_prices.Usage(), model, provider_id=list_name)
    except LookupError:
        raise UnpricedModel(provider, model) from None
    if found.model_price.input_mtok is None or found.model_price.output_mtok is None:  # listed, but without a price
        raise UnpricedModel(provider, model)
    return found.model, list_name


def _listed(model: str, list_name: str | None, counts: _Counts) -> Decimal:
    import genai_prices

    # This library counts all input as `input_tokens`, the cached part included, the other way round than the API.
    usage = genai_prices.Usage(
        input_tokens=counts.plain + counts.read + counts.write + counts.write_1h,
        output_tokens=counts.output,
        cache_read_tokens=counts.read,
        cache_write_tokens=counts.write + counts.write_1h,
        **({"cache_write_1h_tokens": counts.write_1h} if counts.write_1h else {}),
    )
    return genai_prices.calc_price(usage, model, provider_id=list_name).total_price


def _band_starts(info: ModelInfo) -> set[int]:
    """Where the bands of a model's prices begin, of any price it ever had."""
    sets: list[Any] = info.prices if isinstance(info.prices, list) else [info]
    return {tier.start for each in sets for price in vars(each.prices).values() for tier in getattr(price, "tiers", ())}
