"""What a call may cost and what it did cost, in micro-dollars, always rounded up.

Prices come from `genai-prices`, which is loaded at the first question; the configuration can override them by model, or
by provider and model.
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
    from genai_prices.types import ModelInfo, ModelPrice, PriceCalculation, TieredPrices

FREE_PROVIDERS: Final = frozenset({"scripted", "external"})
"""Kinds that cost nothing unless an override says otherwise."""
# Whose price list a kind of provider goes by; None is that of whoever makes the model.
_PRICE_LISTS: Final[Mapping[str, str | None]] = {
    "anthropic": "anthropic",
    "claude_cli": "anthropic",
    "openai_compatible": None,
}
_PER_MTOK: Final = ("input", "output", "cache_read", "cache_write", "cache_write_1h")
_PER_PIECE: Final = ("request", "web_search")
_KEYS: Final = frozenset({*(f"{kind}_usd_per_mtok" for kind in _PER_MTOK), *(f"{kind}_usd" for kind in _PER_PIECE)})
_WRITES: Final[Mapping[str | None, tuple[str, ...]]] = {
    None: (),
    "5m": ("cache_write",),
    "1h": ("cache_write", "cache_write_1h"),
}
_MICROS: Final = Decimal(1_000_000)
_MAX_TOKENS: Final = 10**12

Override = Literal["free"] | Mapping[str, float | str]
"""`"free"`, or `input_usd_per_mtok` and `output_usd_per_mtok`, and if they differ from input `cache_read_usd_per_mtok`,
`cache_write_usd_per_mtok` and `cache_write_1h_usd_per_mtok` (which is as the one before if that alone is given);
`request_usd` comes on top of each call, `web_search_usd` on top of each search."""
Cache = Literal["5m", "1h"]
"""The cache that a call may write to, by how long it keeps what is written."""


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
        """Input written to a cache that keeps it five minutes."""

    @property
    def cache_write_1h_tokens(self) -> int:
        """Input written to a cache that keeps it an hour."""

    @property
    def web_searches(self) -> int:
        """Searches of the web that the provider made."""


class UnpricedModel(Invalid):
    """Nobody knows what the model costs, so no budget in dollars can be kept with it."""

    def __init__(self, provider: str, model: str) -> None:
        super().__init__(
            f"no price is known for model {model[:80]!r} of provider {provider[:80]!r}",
            hint="give it one under `prices` in config.yaml, in USD per million tokens, or say `free` there",
        )
        self.provider = provider
        self.model = model


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """Tokens by what they are charged as, and web searches."""

    plain: int = 0
    output: int = 0
    read: int = 0
    write: int = 0
    write_1h: int = 0
    searches: int = 0


class Prices:
    """The price of every model, overrides first: those of `provider:model`, of `provider:*`, of the model alone.

    A provider is named by its kind, or as `kind@endpoint`, which goes by the price list of the kind but not by its
    overrides: another endpoint has other prices. What is asked in a batch costs half, searches and what an override
    charges by the call excepted.
    """

    def __init__(self, overrides: Mapping[str, Override] | None = None) -> None:
        self._overrides = {name: _override(name, given) for name, given in (overrides or {}).items()}

    def worst_case_usd_micros(
        self,
        provider: str,
        model: str,
        input_tokens_max: int,
        max_tokens: int,
        *,
        cache: Cache | None = None,
        batch: bool = False,
    ) -> int:
        """Return the most that one call can cost with so much input at most, cached or not, and so much output.

        `cache` says which cache the call may write to, which costs more than plain input. Searches of the web are not
        in it: the calls that are bounded offer no tool of the provider's own.
        Raises `UnpricedModel`, and `Invalid` for counts that are not.
        """
        most, output = _count("input_tokens_max", input_tokens_max), _count("max_tokens", max_tokens)
        rates = self._override_for(provider, model)
        if rates is not None:
            dearest = max(rates[kind] for kind in ("input", "cache_read", *_WRITES[cache]))
            return _micros(_overridden(rates, dearest * most + rates["output"] * output, searches=0, batch=batch))
        found, list_name = _find(provider, model, batch=batch)
        # Within a band the cost is linear in each count, so its maximum lies where all input is of one kind, at the
        # end of a band. A later band may be the cheaper one, therefore each end that the bounds reach is tried.
        starts = sorted(_band_starts(found.model))
        kinds = _dearest(found.model_price, starts, ("cache_read", "input", *_WRITES[cache]))
        ends = [most, *(start for start in starts if start < most)]
        candidates = [_all_of(kind, end, output) for end in ends for kind in kinds]
        return max(_micros(_listed(model, list_name, counts, batch=batch)) for counts in candidates)

    def cost_usd_micros(self, provider: str, model: str, usage: TokenUsage, *, batch: bool = False) -> int:
        """Return what that usage cost.

        Raises `UnpricedModel`, and `Invalid` for counts that are not.
        """
        counts = _Counts(
            plain=_count("input_tokens", usage.input_tokens),
            output=_count("output_tokens", usage.output_tokens),
            read=_count("cache_read_tokens", usage.cache_read_tokens),
            write=_count("cache_write_tokens", usage.cache_write_tokens),
            write_1h=_count("cache_write_1h_tokens", usage.cache_write_1h_tokens),
            searches=_count("web_searches", usage.web_searches),
        )
        rates = self._override_for(provider, model)
        if rates is not None:
            tokens = rates["input"] * counts.plain + rates["output"] * counts.output
            tokens += rates["cache_read"] * counts.read + rates["cache_write"] * counts.write
            tokens += rates["cache_write_1h"] * counts.write_1h
            return _micros(_overridden(rates, tokens, searches=counts.searches, batch=batch))
        _, list_name = _find(provider, model, batch=batch)
        return _micros(_listed(model, list_name, counts, batch=batch))

    def is_priced(self, provider: str, model: str) -> bool:
        """Whether a price is known, free included."""
        try:
            self.worst_case_usd_micros(provider, model, 1, 1)
        except UnpricedModel:
            return False
        return True

    def _override_for(self, provider: str, model: str) -> Mapping[str, Decimal] | None:
        for name in (f"{provider}:{model}", f"{provider}:*", model):
            if (found := self._overrides.get(name)) is not None:
                return found
        return _override(model, "free") if _kind(provider) in FREE_PROVIDERS else None


def _kind(provider: str) -> str:
    return provider.partition("@")[0]


def _override(name: str, given: Override) -> Mapping[str, Decimal]:
    if isinstance(given, str):
        if given != "free":
            raise Invalid(f"the price of {name[:80]!r} is {given[:40]!r}", hint="write free, or prices per kind")
        return dict.fromkeys((*_PER_MTOK, *_PER_PIECE), Decimal(0))
    if unknown := sorted(set(given) - _KEYS):
        raise Invalid(f"the price of {name[:80]!r} has an unknown {unknown[0][:80]!r}", hint=f"known: {sorted(_KEYS)}")
    for key in ("input_usd_per_mtok", "output_usd_per_mtok"):
        if key not in given:
            raise Invalid(f"the price of {name[:80]!r} lacks {key}", hint="give both input and output, or write free")
    plain = given["input_usd_per_mtok"]
    write = given.get("cache_write_usd_per_mtok", plain)
    absent = {"cache_read": plain, "cache_write": write, "cache_write_1h": write}
    rates = {kind: _usd(name, given.get(f"{kind}_usd_per_mtok", absent.get(kind, plain))) for kind in _PER_MTOK}
    return {**rates, **{kind: _usd(name, given.get(f"{kind}_usd", 0)) for kind in _PER_PIECE}}


def _overridden(rates: Mapping[str, Decimal], tokens: Decimal, *, searches: int, batch: bool) -> Decimal:
    """US dollars for tokens that are charged so many micro-dollars, and what comes on top of them."""
    of_tokens = tokens / _MICROS / (2 if batch else 1)
    return of_tokens + rates["request"] + rates["web_search"] * searches


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


def _find(provider: str, model: str, *, batch: bool) -> tuple[PriceCalculation, str | None]:
    """The model in the price list with its prices, and which list."""
    import genai_prices

    kind = _kind(provider)
    if kind not in _PRICE_LISTS:
        raise UnpricedModel(provider, model)
    list_name = _PRICE_LISTS[kind]
    try:
        found = genai_prices.calc_price(
            genai_prices.Usage(), model, provider_id=list_name, price_context=_context(batch=batch)
        )
    except LookupError:
        raise UnpricedModel(provider, model) from None
    if found.model_price.input_mtok is None or found.model_price.output_mtok is None:  # listed, but without a price
        raise UnpricedModel(provider, model)
    return found, list_name


def _context(*, batch: bool) -> dict[str, str] | None:
    return {"processing": "batch"} if batch else None


def _listed(model: str, list_name: str | None, counts: _Counts, *, batch: bool) -> Decimal:
    import genai_prices

    # This library counts all input as `input_tokens`, the cached part included, the other way round than the API.
    usage = genai_prices.Usage(
        input_tokens=counts.plain + counts.read + counts.write + counts.write_1h,
        output_tokens=counts.output,
        cache_read_tokens=counts.read,
        cache_write_tokens=counts.write + counts.write_1h,
        **({"cache_write_1h_tokens": counts.write_1h} if counts.write_1h else {}),
        **({"web_searches": counts.searches} if counts.searches else {}),
    )
    context = _context(batch=batch)
    return genai_prices.calc_price(usage, model, provider_id=list_name, price_context=context).total_price


def _all_of(kind: str, tokens: int, output: int) -> _Counts:
    """A call whose input is all of one kind."""
    return _Counts(
        plain=tokens if kind == "input" else 0,
        read=tokens if kind == "cache_read" else 0,
        write=tokens if kind == "cache_write" else 0,
        write_1h=tokens if kind == "cache_write_1h" else 0,
        output=output,
    )


def _dearest(prices: ModelPrice, starts: list[int], kinds: tuple[str, ...]) -> list[str]:
    """The kinds of input that another one does not outdo in every band: a calculation takes a while."""
    kept: list[tuple[str, list[Decimal] | None]] = []
    for kind in reversed(kinds):  # the dear ones come last
        rates = _by_band(getattr(prices, f"{kind}_mtok"), starts)
        if rates is None or not any(
            other is not None and all(a >= b for a, b in zip(other, rates, strict=True)) for _, other in kept
        ):
            kept.append((kind, rates))
    return [kind for kind, _ in kept]


def _by_band(price: Decimal | TieredPrices | None, starts: list[int]) -> list[Decimal] | None:
    """The price below the first start, and from each on; None if there is none of its own."""
    if price is None or isinstance(price, Decimal):
        return None if price is None else [price] * (len(starts) + 1)
    tiers = {tier.start: tier.price for tier in price.tiers}
    rates = [price.base]
    for start in starts:
        rates.append(tiers.get(start, rates[-1]))
    return rates


def _band_starts(info: ModelInfo) -> set[int]:
    """Where the bands of a model's prices begin, of any price it ever had."""
    sets: list[Any] = [*(info.prices if isinstance(info.prices, list) else [info]), *(info.price_variants or ())]
    return {tier.start for each in sets for price in vars(each.prices).values() for tier in getattr(price, "tiers", ())}
