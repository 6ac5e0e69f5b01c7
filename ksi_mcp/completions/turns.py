"""One claimed turn, from its next round to its end: the loop that everything else is there for."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from ksi_mcp.agents.history import Round, plain
from ksi_mcp.completions.endings import context_of
from ksi_mcp.completions.expecting import expected_of, unexpected
from ksi_mcp.completions.latency import Latencies
from ksi_mcp.completions.looked import Looked
from ksi_mcp.completions.model import Claimed, Ended, Loaded, Prepared, Ready, Sent
from ksi_mcp.completions.preparing import Preparing
from ksi_mcp.completions.request import deadline_s
from ksi_mcp.completions.semantic import SemanticCache
from ksi_mcp.completions.slots import Slots
from ksi_mcp.completions.streaming import Streaming
from ksi_mcp.completions.toolcalls import ToolRunner
from ksi_mcp.completions.units import TurnUnits, with_result
from ksi_mcp.errors import KsiError, ProviderError
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import Slot
from ksi_mcp.providers.base import Behalf, Provider, Request
from ksi_mcp.providers.kinds import traits_of
from ksi_mcp.queues.model import Turn, changed
from ksi_mcp.queues.retry import decide

GetProvider = Callable[[str], Awaitable[Provider]]
Resting = Callable[[], AbstractContextManager[None]]
Entering = Callable[[], None]
SHORTEST_CALL_S = 1.0
"""A call that its accounts' wall clock would end sooner is given this long all the same."""


class Cancelled(Protocol):
    """Whether the turn was taken away from this attempt, as opposed to the worker being stopped."""

    def __call__(self) -> bool:
        """True if somebody cancelled or interrupted it."""
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
        preparing: Preparing,
        get_provider: GetProvider,
        *,
        slots: Slots,
        latencies: Latencies,
        semantic: SemanticCache | None = None,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._journal = journal
        self._units = units
        self._tools = tools
        self._preparing = preparing
        self._get_provider = get_provider
        self._slots = slots
        self._latencies = latencies
        self._semantic = semantic
        self._spread = spread

    async def begin(self) -> None:
        """What a process does once it has become the worker: close what a lost one left open, and read what it knew."""
        await self._journal.commit(self._units.begin)
        await self._journal.read(self._latencies.load)

    def prepare(self, item: Loaded) -> Prepared | None:
        """The next round of a turn, as it asks to be let out; pure. None if that cannot be said at once."""
        prepared = self._preparing.prepare(item)
        return None if prepared is None or self._is_looked_up(item, prepared) else prepared

    def _is_looked_up(self, item: Loaded, prepared: Prepared) -> bool:
        return self._semantic is not None and self._semantic.applies(item, prepared.request)

    async def run(
        self,
        claimed: Claimed,
        *,
        resting: Resting,
        cancelled: Cancelled,
        entering: Entering,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """Carry the turn on until it ends, waits for a retry, is parked or blocked, or belongs to somebody else.

        A call that may leave already has its slot. `entering` is told when a slot is asked for; `leaving` says that
        the worker is about to end: then the turn is given back before its next round.

        Raises:
            TakenOver: it belongs to somebody else by now; nothing of it is left to do here.
        """
        item, ready = claimed.item, claimed.ready
        while True:
            if item.rounds and item.rounds[-1].tool_uses:
                item = await self._run_tools(item, item.rounds[-1], resting)
                if item.rounds[-1].number > item.agent.settings.max_tool_rounds + item.turn.checks:
                    await self._give_up(item)
                    return
            if ready is None and leaving():
                await self._journal.commit(lambda tx: self._units.step_back(tx, item))  # noqa: B023
                return
            answered = await self._round(item, ready, cancelled, entering, resting)
            if answered is None:
                return
            ready = None
            # As in the store: an answered round ends the count of failed tries.
            checks = item.turn.checks + (answered.note is not None and answered.stop_reason != "pause_turn")
            item = replace(item, turn=changed(item.turn, tries=0, checks=checks)).with_rounds((*item.rounds, answered))

    async def _give_up(self, item: Loaded) -> None:
        error = f"the model used all {item.agent.settings.max_tool_rounds} tool rounds without an answer"
        partial = item.rounds[-1].text
        await self._journal.commit(lambda tx: self._units.give_up(tx, item, error=error, partial=partial))

    # ----------------------------------------------------------------------------- the model

    async def _round(
        self, item: Loaded, ready: Ready | None, cancelled: Cancelled, entering: Entering, resting: Resting
    ) -> Round | None:
        if ready is not None:
            if not isinstance(ready.admitted, Sent):
                return ready.admitted
            return await self._call(item, ready.prepared, ready.admitted, cancelled, resting)
        provider, prepared = item.choice.provider, await self._preparing.prepare_all(item)
        looked = None
        if self._semantic is not None and self._is_looked_up(item, prepared):
            looked = await self._semantic.look(item, prepared.request)
        entering()  # the room that was kept for the first call is free again, and taken at once
        await self._slots.enter(provider)
        sent = None
        try:
            sent = await self._send(item, prepared, cancelled, looked)
        finally:
            if not isinstance(sent, Sent):
                self._slots.leave(provider)
        return (
            await self._call(item, prepared, sent, cancelled, resting, looked=looked)
            if isinstance(sent, Sent)
            else sent
        )

    async def _call(
        self,
        item: Loaded,
        prepared: Prepared,
        sent: Sent,
        cancelled: Cancelled,
        resting: Resting,
        *,
        looked: Looked | None = None,
    ) -> Round | None:
        turn, choice = item.turn, item.choice
        allowed_s = self._deadline_s(item, sent)
        began_s = self._journal.clock.monotonic_s()
        request = self._on_behalf(item, prepared, sent, resting)
        try:
            async with self._slots.call(choice.provider), Streaming(self._journal, self._units, item) as stream:
                provider = await self._provider(choice.provider)
                answer = await provider.complete(request, deadline_s=allowed_s, on_text=stream.told)
            wrong = None
            if expected_of(item) is not None:  # a schema from outside may take long to compare with
                wrong = await asyncio.to_thread(unexpected, item, answer.stop_reason, answer.text)
        except ProviderError as error:
            if error.kind == "timeout" and sent.seconds_left is None:
                self._latencies.observe(choice.model, turn.op_class, allowed_s)
            await self._failed(item, sent, error)
            return None
        except asyncio.CancelledError:
            if cancelled():
                await asyncio.shield(self._journal.commit(lambda tx: self._units.stop(tx, item, sent)))
            raise
        self._latencies.observe(choice.model, turn.op_class, self._journal.clock.monotonic_s() - began_s)
        cost = self._preparing.cost(item, answer, worst=prepared.wanted.worst)
        follows = await self._journal.commit(
            lambda tx: self._units.answer(tx, item, sent, answer, cost, wrong=wrong, looked=looked)
        )
        if isinstance(follows, Ended):
            self._units.keep(item, follows)
            return None
        return follows

    async def _provider(self, name: str) -> Provider:
        try:
            return await self._get_provider(name)
        except KsiError as error:  # it could not even be made: nothing left
            raise ProviderError(error.text(), kind="auth", billed="no") from None

    def _deadline_s(self, item: Loaded, sent: Sent) -> float:
        limit_s, asked = deadline_s(item.turn, item.agent)
        if not asked:
            limit_s = self._latencies.deadline_s(item.choice.model, item.turn.op_class, floor_s=limit_s)
        return limit_s if sent.seconds_left is None else min(limit_s, max(sent.seconds_left, SHORTEST_CALL_S))

    async def _send(
        self, item: Loaded, prepared: Prepared, cancelled: Cancelled, looked: Looked | None
    ) -> Sent | Round | None:
        unit = asyncio.ensure_future(
            self._journal.commit(lambda tx: self._units.send(tx, item, prepared.wanted, looked=looked))
        )
        try:
            return await asyncio.shield(unit)
        except asyncio.CancelledError:
            # The unit commits all the same, so a cancelled turn still has to close what it set aside.
            if isinstance(sent := await unit, Sent) and cancelled():
                await self._journal.commit(lambda tx: self._units.stop(tx, item, sent))
            raise

    async def _failed(self, item: Loaded, sent: Sent, error: ProviderError) -> None:
        now_ms = self._journal.clock.now_ms()
        verdict = decide(
            error.kind,
            failed_tries=item.turn.tries + 1,
            retry_after_s=error.retry_after_s,
            spread=self._spread(),
            waited_s=(now_ms - (item.turn.started_at_ms or now_ms)) / 1000,
        )
        await self._journal.commit(lambda tx: self._units.fail(tx, item, sent, error, verdict))

    def _on_behalf(self, item: Loaded, prepared: Prepared, sent: Sent, resting: Resting) -> Request:
        """For a provider that runs tools itself: as whom, which, and how its turn gives its place away meanwhile."""
        if not traits_of(item.choice.provider).agentic:
            return prepared.request
        turn, provider = item.turn, item.choice.provider

        @contextlib.contextmanager
        def rest() -> Iterator[None]:
            with resting(), self._slots.resting(provider):
                yield

        slot = _slot(turn, sent.number, 0)
        behalf = Behalf(ctx=context_of(turn, slot=slot), tools=prepared.tools, resting=rest)
        return replace(prepared.request, behalf=behalf)

    # ----------------------------------------------------------------------------- the tools

    async def _run_tools(self, item: Loaded, current: Round, resting: Resting) -> Loaded:
        """Run the tool calls of a round that have no result yet, in the model's order."""
        turn = item.turn
        over = current.number > item.agent.settings.max_tool_rounds + turn.checks
        for index, use in enumerate(current.tool_uses):
            if index in current.results:
                continue
            slot = _slot(turn, current.number, index)
            if over:
                text, is_error, stored = "not run: no tool rounds are left", True, None
            elif self._tools.waits(use.name):
                with resting():
                    outcome = await self._tools.run(context_of(turn, slot=slot), item.agent, use.name, use.input)
                text, is_error, stored = outcome.text, outcome.is_error, outcome.stored_text
            else:
                outcome = await self._tools.run(context_of(turn, slot=slot), item.agent, use.name, use.input)
                text, is_error, stored = outcome.text, outcome.is_error, outcome.stored_text
            text = plain(text)
            if stored != text:
                await self._journal.commit(
                    lambda tx, slot=slot, use=use, text=text, is_error=is_error: self._units.result(  # type: ignore[misc]
                        tx, slot, tool=use.name, args=use.input, text=text, is_error=is_error
                    )
                )
            current = with_result(current, index, text, is_error=is_error)
        return item.with_rounds((*item.rounds[:-1], current))


def _slot(turn: Turn, number: int, index: int) -> Slot:
    return Slot(
        turn_id=turn.turn_id,
        attempt=turn.attempt,
        owner=turn.owner or "",  # type: ignore[arg-type]
        round=number,
        index=index,
    )
