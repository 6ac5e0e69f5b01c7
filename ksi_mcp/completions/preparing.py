"""What a round asks for before it may leave: its request, and what it may cost at worst. Pure."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ksi_mcp.budgets.model import Amount
from ksi_mcp.budgets.prices import Prices, UnpricedModel
from ksi_mcp.completions.expecting import expected_of
from ksi_mcp.completions.model import Loaded, Prepared, Wanted
from ksi_mcp.completions.request import input_tokens_bound, render, request_hash
from ksi_mcp.completions.toolcalls import ToolRunner
from ksi_mcp.config import Config
from ksi_mcp.providers.base import Answer, Request, ToolSpec
from ksi_mcp.providers.kinds import kind_of, traits_of

logger = logging.getLogger(__name__)

_MICROS: Final = 1_000_000
_FAR: Final = 4
_MORE: Final = 10_000
_MOST_USD_MICROS: Final = 10**12
"""A million dollars for one call is nothing that a provider says."""


class Preparing:
    """Renders rounds and prices them."""

    def __init__(self, config: Config, tools: ToolRunner, prices: Prices) -> None:
        self._tools = tools
        self._prices = prices
        prompt_cache = config.anthropic.prompt_cache
        self._prompt_cache = None if prompt_cache == "off" else prompt_cache
        self._flat_usd_micros = {"claude_cli": round(config.claude_cli.max_usd_per_turn * _MICROS)}

    def prepare(self, item: Loaded) -> Prepared | None:
        """The next round of a turn, as it asks to be let out; None if its agent's tools must be asked for first."""
        tools = self._tools.specs(item.agent)
        return None if tools is None else self._prepared(item, tools)

    async def prepare_all(self, item: Loaded) -> Prepared:
        """The same, once the agent's tools are known."""
        if (prepared := self.prepare(item)) is not None:
            return prepared
        await self._tools.ready(item.agent)
        return self._prepared(item, self._tools.specs(item.agent) or ())

    def _prepared(self, item: Loaded, tools: tuple[ToolSpec, ...]) -> Prepared:
        traits = traits_of(item.choice.provider)
        shown = () if traits.agentic else tools
        request = render(item.agent, item.now, item.earlier, shown, model=item.choice.model)
        if (schema := _output_schema(item)) is not None:
            request = replace(request, output_schema=schema)
        if (session := _session(item)) is not None:
            request = replace(request, session=session)
        batch = bool(item.turn.batched) and traits.batches and not item.rounds
        return Prepared(request=request, wanted=self._wanted(item, request, batch=batch), tools=tools)

    def _wanted(self, item: Loaded, request: Request, *, batch: bool) -> Wanted:
        provider = item.choice.provider
        bound = input_tokens_bound(request)
        unpriced = None
        usd_micros = self._flat_usd_micros.get(kind_of(provider))
        if usd_micros is None:
            try:
                usd_micros = self._prices.worst_case_usd_micros(
                    provider,
                    request.model,
                    bound,
                    request.max_tokens,
                    cache=self._prompt_cache if kind_of(provider) == "anthropic" else None,
                    batch=batch,
                )
            except UnpricedModel as unknown:
                usd_micros, unpriced = 0, unknown.text()
        return Wanted(
            number=len(item.rounds) + 1,
            worst=Amount(usd_micros=usd_micros, tokens=bound + request.max_tokens),
            unpriced=unpriced,
            request_hash=request_hash(request, provider),
            batch=batch,
        )

    def cost(self, item: Loaded, answer: Answer, *, worst: Amount, batch: bool = False) -> Amount:
        """What an answer cost: as its provider says, else by the price table; nothing if nobody knows a price.

        It is all that was set aside (`worst`) if nobody says what was used, or if what is said cannot be: `worst` is
        counted in bytes, so a token count far above it is no count.
        """
        provider, usage = item.choice.provider, answer.usage
        said, metered = answer.cost_usd_micros, traits_of(provider).metered
        if metered and usage.total_tokens > _FAR * worst.tokens + _MORE:
            logger.warning("%s says that it used %d tokens: the reserve is booked", provider, usage.total_tokens)
            return worst
        if said is not None:
            believed = type(said) is int and 0 <= said <= _MOST_USD_MICROS
            return Amount(usd_micros=said, tokens=usage.total_tokens) if believed else worst
        if not metered or (usage.estimated and not usage.input_tokens):
            return worst
        try:
            usd_micros = self._prices.cost_usd_micros(provider, item.choice.model, usage, batch=batch)
        except UnpricedModel:
            usd_micros = 0
        return Amount(usd_micros=usd_micros, tokens=usage.total_tokens)


def _output_schema(item: Loaded) -> Mapping[str, Any] | None:
    asked = expected_of(item)
    if asked is None or not asked.structured or asked.json_schema is None:
        return None
    schema: dict[str, Any] = json.loads(asked.json_schema)
    return schema


def _session(item: Loaded) -> dict[str, Any] | None:
    """Where the provider stood after the answer before this prompt, if nothing can have moved it since."""
    turn = item.turn
    if turn.attempt > 1 or turn.tries or turn.link:
        return None
    if item.rounds:
        return item.rounds[-1].session
    if not item.earlier or item.earlier[-1].seq != turn.seq - 1 or not item.earlier[-1].rounds:
        return None
    return item.earlier[-1].rounds[-1].session
