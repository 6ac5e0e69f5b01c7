"""Makes the calls of prefetches in the worker process, where and as long as nobody else wants the room."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from ksi_mcp.agents.history import plain
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Amount
from ksi_mcp.completions import prefetch
from ksi_mcp.completions.model import Loaded
from ksi_mcp.completions.prefetch import Standing, State, standing
from ksi_mcp.completions.prefetch_units import NOTHING, Begun, PrefetchUnits, turns_due
from ksi_mcp.completions.preparing import Preparing
from ksi_mcp.completions.request import deadline_s
from ksi_mcp.completions.slots import Slots
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import KsiError, ProviderError, StoreError
from ksi_mcp.events.journal import Journal
from ksi_mcp.providers.base import Answer, Provider
from ksi_mcp.queues.session_queues import SessionQueues

logger = logging.getLogger(__name__)

SPARE: Final = 2
"""Places that have to be free in the worker, and at the provider: a turn that comes has one at once."""
PACE_S: Final = 0.05
"""Between two looks: everything that happens rings the bell."""
LOOK_AGAIN_S: Final = 0.25
"""While something waits for room, of which no bell tells."""
LONGEST_NAP_S: Final = 5.0
STORE_PAUSE_S: Final = 1.0
SHORTEST_CALL_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the store says: how each open prefetch stands, and whether a turn could run at this moment."""

    rows: list[tuple[Row, Standing]]
    turns_due: bool


class Prefetcher:
    """One per worker. `run` returns when it is cancelled, and pays what it had under way.

    What it guarantees: a call leaves only while no turn that could run waits and `SPARE` places are free beside those
    that it holds; its money is set aside before in an account of its own; it is settled once, whatever happens.
    """

    def __init__(
        self,
        journal: Journal,
        queues: SessionQueues,
        roster: Roster,
        ledger: Ledger,
        *,
        preparing: Preparing,
        get_provider: Callable[[str], Awaitable[Provider]],
        slots: Slots,
        free_places: Callable[[], int],
        claiming: asyncio.Lock,
    ) -> None:
        """`free_places` and `claiming` are the worker's; who holds that lock keeps calls from beginning here too."""
        self._journal = journal
        self._queues = queues
        self._units = PrefetchUnits(journal, queues, roster, ledger, preparing=preparing)
        self._preparing = preparing
        self._get_provider = get_provider
        self._slots = slots
        self._free_places = free_places
        self._claiming = claiming
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._providers: dict[int, str] = {}
        self._reasons: dict[int, tuple[State, str]] = {}
        self._unpaid: list[Callable[[Tx], None]] = []
        self._bell = asyncio.Event()
        self._draining = False
        journal.on_wake(self._bell.set)

    @property
    def busy(self) -> bool:
        """Whether a call is under way here."""
        return bool(self._tasks)

    def begin(self, tx: Tx) -> None:
        """What a process does that has become the worker: pay in full what a lost one had under way."""
        self._units.begin(tx)

    def yield_room(self, provider: str | None = None) -> None:
        """A turn waits for room (at that provider, or anywhere): what is under way makes way at once."""
        for prefetch_id, asked in self._providers.items():
            if provider in (None, asked):
                self._stop(prefetch_id, "cancelled", "a turn waited for its place")

    async def drain(self) -> None:
        """Begin no more, and end what is under way."""
        self._draining = True
        async with self._claiming:  # one that is being begun is under way then
            running = dict(self._tasks)
        for prefetch_id in running:
            self._stop(prefetch_id, "cancelled", "its worker ended")
        await asyncio.gather(*running.values(), return_exceptions=True)

    async def run(self) -> None:
        """Look and call until cancelled."""
        try:
            while True:
                self._bell.clear()
                try:
                    nap_s = await self.look()
                except Exception:  # what could not be begun now may be later
                    logger.exception("prefetching failed; trying again")
                    nap_s = STORE_PAUSE_S
                await asyncio.sleep(PACE_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(nap_s):
                        await self._bell.wait()
        finally:
            await asyncio.sleep(0)  # a call that was just begun takes its first step: only then it pays for itself
            running = dict(self._tasks)
            for prefetch_id, task in running.items():
                self._reasons.setdefault(prefetch_id, ("cancelled", "its worker ended"))
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    # -------------------------------------------------------------------------------- one look

    async def look(self) -> float:
        """Do what is to be done; how long there will be nothing more unless somebody rings."""
        while self._unpaid:
            await self._journal.commit(self._unpaid[0])
            del self._unpaid[0]
        look = await self._journal.read(self._see)
        seen = {row["prefetch_id"]: row for row, _ in look.rows if row["state"] == "sent"}
        for prefetch_id in self._tasks.keys() - seen.keys():  # it gave its place to newer ones, or was never stored
            self._stop(prefetch_id, "stale", "nobody wants it any more")
        gone = [(row, how.gone) for row, how in look.rows if how.gone is not None]
        for row, why in gone:
            if row["prefetch_id"] in self._tasks:
                self._stop(row["prefetch_id"], "stale", why)
        if forgotten := [(row["prefetch_id"], why) for row, why in gone if row["state"] == "waiting"]:
            await self._journal.commit(lambda tx: self._forget(tx, forgotten))
        waiting = [(row, how) for row, how in look.rows if how.gone is None and row["state"] == "waiting"]
        if not look.turns_due:
            for row, how in waiting:
                if how.ready:
                    await self._try(row["prefetch_id"], row["provider"])
        return LOOK_AGAIN_S if waiting or self._tasks else LONGEST_NAP_S

    def _see(self, tx: Tx) -> _Look:
        rows = [(row, standing(row, tx.now_ms)) for row in prefetch.open_ones(tx)]
        return _Look(rows=rows, turns_due=bool(rows) and turns_due(tx, self._queues))

    def _forget(self, tx: Tx, forgotten: list[tuple[int, str]]) -> None:
        for prefetch_id, why in forgotten:
            prefetch.over(tx, prefetch_id, "stale", error=why)

    def _room(self, provider: str) -> bool:
        return self._free_places() - len(self._tasks) >= SPARE and self._slots.free(provider) >= SPARE

    async def _try(self, prefetch_id: int, provider: str) -> None:
        """Let a prefetch out, if there is room and nothing has changed."""
        if not self._room(provider):
            return
        await self._make_ready(prefetch_id)
        async with self._claiming:
            if self._draining or not self._room(provider) or not self._slots.take(provider):
                return
            begun = None
            unit = asyncio.ensure_future(self._journal.commit(lambda tx: self._units.send(tx, prefetch_id, provider)))
            try:
                begun = await asyncio.shield(unit)
            except asyncio.CancelledError:
                if (left := await unit) is not None:  # it commits all the same, and the call never leaves
                    await self._pay(
                        lambda tx: self._units.close(tx, left, NOTHING, state="cancelled", error="its worker ended")
                    )
                raise
            finally:
                if begun is None:
                    self._slots.leave(provider)
            if begun is not None:
                task = asyncio.create_task(self._call(begun), name=f"ksi-prefetch-{prefetch_id}")
                self._tasks[prefetch_id], self._providers[prefetch_id] = task, provider
                task.add_done_callback(lambda _task: self._ended(prefetch_id))

    def _ended(self, prefetch_id: int) -> None:
        del self._tasks[prefetch_id], self._providers[prefetch_id]
        self._reasons.pop(prefetch_id, None)
        self._bell.set()

    async def _make_ready(self, prefetch_id: int) -> None:
        """Find out what the agent's tools are, if that takes asking: no transaction can."""

        def load(tx: Tx) -> Loaded | None:
            row = prefetch.find(tx, prefetch_id)
            return None if row is None else self._units.load(tx, row)

        item = await self._journal.read(load)
        if item is not None and self._preparing.prepare(item) is None:
            await self._preparing.prepare_all(item)

    # --------------------------------------------------------------------------------- one call

    async def _call(self, begun: Begun) -> None:
        """The call itself, in the slot that was taken; in any case it is paid."""
        prefetch_id, name = begun.row["prefetch_id"], begun.item.choice.provider
        limit_s, _ = deadline_s(begun.item.turn, begun.item.agent)
        if begun.seconds_left is not None:
            limit_s = min(limit_s, max(begun.seconds_left, SHORTEST_CALL_S))
        cost: Amount | None = None
        answer: Answer | None = None
        state: State = "failed"
        error: str | None
        try:
            async with self._slots.call(name):
                provider = await self._provider(name)
                answer = await provider.complete(begun.request, deadline_s=limit_s)
            cost, error = self._preparing.cost(begun.item, answer, worst=begun.worst), _unusable(answer)
        except ProviderError as failure:
            cost, error = NOTHING if failure.billed == "no" else None, plain(failure.text())
        except asyncio.CancelledError:
            state, error = self._reasons.get(prefetch_id, ("cancelled", "its worker ended"))
            await asyncio.shield(self._pay(lambda tx: self._units.close(tx, begun, None, state=state, error=error)))
            raise
        except Exception:
            logger.exception("prefetch %d met an error that nobody expected", prefetch_id)
            error = "internal error; the server's log has it"
        await self._pay(lambda tx: self._units.close(tx, begun, cost, state=state, error=error, answer=answer))

    async def _pay(self, close: Callable[[Tx], None]) -> None:
        try:
            await self._journal.commit(close)
        except StoreError:
            logger.exception("a prefetch could not be stored; trying again")
            self._unpaid.append(close)

    async def _provider(self, name: str) -> Provider:
        try:
            return await self._get_provider(name)
        except KsiError as error:  # it could not even be made: nothing left
            raise ProviderError(error.text(), kind="auth", billed="no") from None

    def _stop(self, prefetch_id: int, state: State, why: str | None) -> None:
        task = self._tasks.get(prefetch_id)
        if task is None or prefetch_id in self._reasons:
            return
        self._reasons[prefetch_id] = (state, why or state)
        # After its first step, which may be due in this very tick: only then it pays for itself.
        asyncio.get_running_loop().call_soon(task.cancel)


def _unusable(answer: Answer) -> str | None:
    """Why an answer cannot stand for a turn's: only what ends it at once does, for what tools do is not repeated."""
    if answer.tool_uses or answer.stop_reason == "tool_use":
        return "the model asked for tools, which only a turn runs"
    if answer.stop_reason != "end_turn":
        return f"the answer is not whole: it ended with {answer.stop_reason}"
    return None
