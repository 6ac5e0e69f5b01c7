"""One claimed turn, from its next round to its end: the loop that everything else is there for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from ksi_mcp.agents.history import Round, plain
from ksi_mcp.budgets.model import Amount
from ksi_mcp.budgets.prices import Prices, UnpricedModel
from ksi_mcp.completions.request import deadline_s, input_tokens_bound, render
from ksi_mcp.completions.toolcalls import ToolRunner
from ksi_mcp.completions.units import Loaded, Sent, TurnUnits, context_of, with_result
from ksi_mcp.errors import KsiError, ProviderError
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import Slot
from ksi_mcp.providers.base import Answer, Provider, Request
from ksi_mcp.queues.retry import decide

GetProvider = Callable[[str], Awaitable[Provider]]
Resting = Callable[[], AbstractContextManager[None]]


class Cancelled(Protocol):
    """Whether a turn was cancelled, as opposed to the worker being stopped."""

    def __call__(self, turn_id: str, /) -> bool:
        """True if somebody cancelled the turn."""
        ...


class TurnRunner:
    """Runs one claimed turn at a time per call; it holds no state between calls.

    No transaction is open while a provider or a tool is at work. Each step is one unit of `TurnUnits`, so
    a turn that is taken over goes on after its last stored round and tool result.
    """

    def __init__(
        self,
        journal: Journal,
        units: TurnUnits,
        tools: ToolRunner,
        prices: Prices,
        get_provider: GetProvider,
        *,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._journal = journal
        self._units = units
        self._tools = tools
        self._prices = prices
        self._get_provider = get_provider
        self._spread = spread

    async def run(self, item: Loaded, *, resting: Resting, cancelled: Cancelled) -> None:
        """Carry the turn on until it ends, waits for a retry, is blocked, or belongs to somebody else.

        Raises:
            TakenOver: it belongs to somebody else by now; nothing of it is left to do here.
        """
        while True:
            if item.rounds and item.rounds[-1].tool_uses:
                item = await self._run_tools(item, item.rounds[-1], resting)
                if item.rounds[-1].number > item.agent.settings.max_tool_rounds:
                    limit = item.agent.settings.max_tool_rounds
                    error, partial = f"the model used all {limit} tool rounds without an answer", item.rounds[-1].text
                    await self._journal.commit(
                        lambda tx, item=item, partial=partial, error=error: self._units.give_up(  # type: ignore[misc]
                            tx, item, error=error, partial=partial
                        )
                    )
                    return
            answered = await self._round(item, cancelled)
            if answered is None or not answered.tool_uses:
                return
            # As in the store: an answered round ends the count of failed tries.
            item = replace(item, turn=replace(item.turn, tries=0), rounds=(*item.rounds, answered))

    # ----------------------------------------------------------------------------- the model

    async def _round(self, item: Loaded, cancelled: Cancelled) -> Round | None:
        request = render(item.agent, item.turn, item.earlier, item.rounds, self._tools.specs(item.agent.capabilities))
        wanted, unpriced = self._worst_case(item, request)
        number = len(item.rounds) + 1
        sent = await self._send(item, number, wanted, unpriced, cancelled)
        if sent is None:
            return None
        try:
            provider = await self._get_provider(item.agent.provider)
            answer = await provider.complete(request, deadline_s=deadline_s(item.turn, item.agent))
        except ProviderError as error:
            await self._failed(item, sent, error)
            return None
        except KsiError as error:  # the provider could not even be made: nothing left
            await self._failed(item, sent, ProviderError(error.text(), kind="auth", billed="no"))
            return None
        except asyncio.CancelledError:
            if cancelled(item.turn.turn_id):
                await asyncio.shield(self._journal.commit(lambda tx: self._units.stop(tx, item, sent)))
            raise
        cost = self._cost(item, answer)
        return await self._journal.commit(lambda tx: self._units.answer(tx, item, sent, answer, cost))

    async def _send(
        self, item: Loaded, number: int, wanted: Amount, unpriced: str | None, cancelled: Cancelled
    ) -> Sent | None:
        unit = asyncio.ensure_future(
            self._journal.commit(lambda tx: self._units.send(tx, item, number=number, wanted=wanted, unpriced=unpriced))
        )
        try:
            return await asyncio.shield(unit)
        except asyncio.CancelledError:
            # The unit commits all the same, so a cancelled turn still has to close what it set aside.
            if (sent := await unit) is not None and cancelled(item.turn.turn_id):
                await self._journal.commit(lambda tx: self._units.stop(tx, item, sent))
            raise

    async def _failed(self, item: Loaded, sent: Sent, error: ProviderError) -> None:
        verdict = decide(
            error.kind,
            failed_tries=item.turn.tries + 1,
            retry_after_s=error.retry_after_s,
            spread=self._spread(),
        )
        await self._journal.commit(lambda tx: self._units.fail(tx, item, sent, error, verdict))

    def _worst_case(self, item: Loaded, request: Request) -> tuple[Amount, str | None]:
        bound = input_tokens_bound(request)
        tokens = bound + request.max_tokens
        try:
            usd_micros = self._prices.worst_case_usd_micros(
                item.agent.provider, request.model, bound, request.max_tokens
            )
        except UnpricedModel as unknown:
            return Amount(usd_micros=0, tokens=tokens), unknown.text()
        return Amount(usd_micros=usd_micros, tokens=tokens), None

    def _cost(self, item: Loaded, answer: Answer) -> Amount:
        try:
            usd_micros = self._prices.cost_usd_micros(item.agent.provider, item.agent.model, answer.usage)
        except UnpricedModel:
            usd_micros = 0
        return Amount(usd_micros=usd_micros, tokens=answer.usage.total_tokens)

    # ----------------------------------------------------------------------------- the tools

    async def _run_tools(self, item: Loaded, current: Round, resting: Resting) -> Loaded:
        """Run the tool calls of a round that have no result yet, in the model's order."""
        turn = item.turn
        over = current.number > item.agent.settings.max_tool_rounds
        for index, use in enumerate(current.tool_uses):
            if index in current.results:
                continue
            slot = Slot(
                turn_id=turn.turn_id,
                attempt=turn.attempt,
                owner=turn.owner or "",  # type: ignore[arg-type]
                round=current.number,
                index=index,
            )
            if over:
                text, is_error, stored = "not run: no tool rounds are left", True, None
            elif self._tools.waits(use.name):
                with resting():
                    outcome = await self._tools.run(context_of(turn, slot=slot), use.name, use.input)
                text, is_error, stored = outcome.text, outcome.is_error, outcome.stored_text
            else:
                outcome = await self._tools.run(context_of(turn, slot=slot), use.name, use.input)
                text, is_error, stored = outcome.text, outcome.is_error, outcome.stored_text
            text = plain(text)
            if stored != text:
                await self._journal.commit(
                    lambda tx, slot=slot, use=use, text=text, is_error=is_error: self._units.result(  # type: ignore[misc]
                        tx, slot, tool=use.name, args=use.input, text=text, is_error=is_error
                    )
                )
            current = with_result(current, index, text, is_error=is_error)
        return replace(item, rounds=(*item.rounds[:-1], current))
