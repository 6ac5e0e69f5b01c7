"""Turns that go with batches of their provider: gathered, sent, asked after, taken in.

    batched turn --admission--> parked on `batch`, its money held, its call waiting to be sent (batch_id '')
    gathered     --one transaction: "leaving"--> submitted --one transaction: the provider's id--> open
    ended        --one transaction for some results--> answered, failed or tried again, like any other call

The id of a batch is stored before anybody asks how far it is. A worker that is lost between "leaving" and the id leaves
calls that may have been taken: they are paid in full as uncertain, and sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from ksi_mcp.budgets.model import Amount
from ksi_mcp.completions.chain import Choice
from ksi_mcp.completions.expecting import unexpected
from ksi_mcp.completions.model import Ended, Loaded, Sent
from ksi_mcp.completions.preparing import Preparing
from ksi_mcp.completions.turns import GetProvider
from ksi_mcp.completions.units import TurnUnits
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import KsiError, ProviderError, StoreError
from ksi_mcp.events.journal import Journal
from ksi_mcp.ids import WorkerId, new_id
from ksi_mcp.permissions import SYSTEM, fresh_context
from ksi_mcp.providers.base import Answer, BatchProvider, Request
from ksi_mcp.queues.model import Turn, changed
from ksi_mcp.queues.retry import Again, GiveUp, decide
from ksi_mcp.queues.session_queues import SessionQueues

GATHER_S: Final = 0.5
"""What is asked for together is sent together."""
LONGEST_NAP_S: Final = 5.0
MAX_REQUESTS: Final = 10_000
MAX_BYTES: Final = 64 * 1024 * 1024
"""Of one batch; the rest goes with the next."""
_CHUNK: Final = 50
"""Results that are taken in by one transaction."""
LEAVING: Final = "leaving:"
LEAVE_S: Final = 5.0
"""A worker that ends waits so long for the id of a batch that has left."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A call that is to go with a batch, as it was let out."""

    call_id: int
    sent: Sent
    item: Loaded
    provider: str
    request_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """What a batch says of one of its calls; `worst` is what was set aside for it."""

    sent: Sent
    item: Loaded
    worst: Amount
    said: Answer | ProviderError


class Batching:
    """One per data folder, in the process that runs the turns."""

    def __init__(
        self,
        journal: Journal,
        queues: SessionQueues,
        units: TurnUnits,
        preparing: Preparing,
        get_provider: GetProvider,
        *,
        worker_id: WorkerId,
        poll_s: float,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._journal = journal
        self._queues = queues
        self._units = units
        self._preparing = preparing
        self._get_provider = get_provider
        self._worker_id = worker_id
        self._poll_s = poll_s
        self._spread = spread
        self._bell = asyncio.Event()
        journal.on_wake(self._bell.set, "turns")

    async def run(self) -> None:
        """Send and ask until cancelled."""
        settled = False
        while True:
            self._bell.clear()
            await asyncio.sleep(GATHER_S)
            try:
                if not settled:
                    await self._journal.commit(self._settle_lost)
                    settled = True
                if await self._journal.read(lambda tx: tx.one("completions.batch_abandoned") is not None):
                    await self._journal.commit(self._release_abandoned)
                await self._send_all()
                await self._ask_all()
            except Exception:  # the turns that wait here have nobody else
                logger.exception("batches could not be looked after; trying again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._poll_s, LONGEST_NAP_S)):
                    await self._bell.wait()

    # ------------------------------------------------------------------------------------ sending

    async def _send_all(self) -> None:
        waiting = await self._journal.read(self._unsent)
        for provider in sorted({each.provider for each in waiting}):
            left = [each for each in waiting if each.provider == provider]
            while left:
                taken, requests, left = await self._fill(left)
                if taken:
                    await self._send(provider, taken, requests)

    def _unsent(self, tx: Tx) -> list[_Waiting]:
        rows = tx.all("completions.batch_unsent", {"limit": MAX_REQUESTS})
        return [
            _Waiting(
                call_id=row["call_id"],
                sent=Sent(call_id=row["call_id"], hold_id=row["hold_id"], number=row["round"]),
                item=self._units.load_again(tx, self._queues.get(tx, row["turn_id"])),
                provider=row["provider"],
                request_hash=row["request_hash"],
            )
            for row in rows
        ]

    async def _fill(self, waiting: Sequence[_Waiting]) -> tuple[list[_Waiting], list[Request], list[_Waiting]]:
        """As many as one batch holds; what is not as it was let out any more is let out anew."""
        taken: list[_Waiting] = []
        requests: list[Request] = []
        size = 0
        for place, each in enumerate(waiting):
            prepared = await self._preparing.prepare_all(each.item)
            if prepared.wanted.request_hash != each.request_hash:
                await self._fail(
                    [each], ProviderError("the agent has changed", kind="transport", billed="no"), at_once=True
                )
                continue
            size += prepared.wanted.worst.tokens  # counted in bytes
            if taken and size > MAX_BYTES:
                return taken, requests, list(waiting[place:])
            taken.append(each)
            requests.append(prepared.request)
        return taken, requests, []

    async def _send(self, provider: str, waiting: list[_Waiting], requests: list[Request]) -> None:
        try:
            batches = cast("BatchProvider", await self._get_provider(provider))
            await batches.ready()
        except KsiError as error:
            await self._fail(waiting, ProviderError(error.text(), kind="auth", billed="no"))
            return
        leaving = asyncio.create_task(self._leave(provider, batches, waiting, requests), name="ksi-batch-leaves")
        try:
            await asyncio.shield(leaving)
        except asyncio.CancelledError:  # an id that is on its way is worth a moment: else all of it would be paid twice
            await asyncio.wait({leaving}, timeout=LEAVE_S)
            leaving.cancel()
            raise

    async def _leave(
        self, provider: str, batches: BatchProvider, waiting: list[_Waiting], requests: list[Request]
    ) -> None:
        marker = LEAVING + new_id("b")
        calls = {"marker": marker, "call_ids": json.dumps([each.call_id for each in waiting])}
        await self._journal.commit(lambda tx: tx.run("completions.batch_leaving", calls))
        try:
            named = [(f"call_{each.call_id}", request) for each, request in zip(waiting, requests, strict=True)]
            batch_id = await batches.submit_batch(named)
        except ProviderError as error:
            await self._fail(waiting, error)
            return
        except Exception:
            logger.exception("a batch met an error that nobody expected")
            unknown = ProviderError("internal error; the log has it", kind="transport", billed="unknown")
            await self._fail(waiting, unknown)
            return

        def know(tx: Tx) -> None:
            tx.run("completions.batch_sent", {"batch_id": batch_id, "marker": marker})
            values = {"batch_id": batch_id, "provider": provider, "requests": len(waiting), "now_ms": tx.now_ms}
            tx.run("completions.batch_make", values)
            facts = {"batch": batch_id, "provider": provider, "requests": len(waiting)}
            self._journal.record(tx, "completion:batch_sent", facts, fresh_context(SYSTEM), routable=False)

        while True:
            try:
                await self._journal.commit(know)
            except StoreError:  # nobody else knows this id
                logger.exception("batch %s could not be stored; trying again", batch_id)
                await asyncio.sleep(GATHER_S)
            else:
                return

    async def _fail(self, waiting: Sequence[_Waiting], error: ProviderError, *, at_once: bool = False) -> None:
        for start in range(0, len(waiting), _CHUNK):
            chunk = waiting[start : start + _CHUNK]

            def work(tx: Tx, chunk: Sequence[_Waiting] = chunk) -> None:
                for each in chunk:
                    told = not at_once and each is waiting[0]  # one request has failed, not one for each turn
                    item = self._resumed(tx, each.item, each.call_id)
                    verdict = Again(delay_s=0, counts=False) if at_once else self._verdict(item.turn, error, tx.now_ms)
                    self._units.fail(tx, item, each.sent, error, verdict, told=told)

            await self._journal.commit(work)

    def _verdict(self, turn: Turn, error: ProviderError, now_ms: int) -> Again | GiveUp:
        return decide(
            error.kind,
            failed_tries=turn.tries + 1,
            retry_after_s=error.retry_after_s,
            spread=self._spread(),
            waited_s=(now_ms - (turn.started_at_ms or now_ms)) / 1000,
        )

    def _as_sent(self, tx: Tx, row: Row) -> Loaded:
        """The turn with the model that its call went to, whatever its agent has become since."""
        item = self._units.load_again(tx, self._queues.get(tx, row["turn_id"]))
        return replace(item, choice=Choice(link=item.turn.link, provider=row["provider"], model=row["model"]))

    def _resumed(self, tx: Tx, item: Loaded, call_id: int) -> Loaded:
        """The turn as this worker's, if it still waits for that call; else as somebody else's, to be settled only."""
        turn = self._queues.resume_batched(tx, item.turn.turn_id, self._worker_id, call_id)
        return replace(item, turn=turn or changed(self._queues.get(tx, item.turn.turn_id), owner=None))

    # ------------------------------------------------------------------------------------- asking

    async def _ask_all(self) -> None:
        now_ms = self._journal.clock.now_ms()
        before_ms = now_ms - int(self._poll_s * 1000)
        due = await self._journal.read(lambda tx: tx.all("completions.batch_due", {"before_ms": before_ms}))
        for row in due:
            try:
                await self._ask(row)
            except Exception:  # the other batches are none the worse for it
                logger.exception("batch %s could not be looked after; trying again", row["batch_id"])
                await self._asked(row["batch_id"], row["state"])

    async def _ask(self, row: Row) -> None:
        batch_id, state = row["batch_id"], row["state"]
        try:
            provider = cast("BatchProvider", await self._get_provider(row["provider"]))
            if not row["wanted"] and state == "open":
                await provider.cancel_batch(batch_id)
                state = "cancelling"
            results = await provider.batch_results(batch_id)
        except KsiError as error:
            if isinstance(error, ProviderError) and error.kind == "request":  # there is no such batch (any more)
                results = {}
            else:
                logger.warning("batch %s could not be asked after: %s", batch_id, error.message)
                results = None
        if results is None:
            await self._asked(batch_id, state)
            return
        await self._take_in(batch_id, results)
        await self._asked(batch_id, "ended")

    async def _asked(self, batch_id: str, state: str) -> None:
        def work(tx: Tx) -> None:
            tx.run("completions.batch_asked", {"batch_id": batch_id, "state": state, "now_ms": tx.now_ms})

        await self._journal.commit(work)

    async def _take_in(self, batch_id: str, results: dict[str, Answer | ProviderError]) -> None:
        def calls(tx: Tx) -> list[_Result]:
            return [
                _Result(
                    sent=Sent(call_id=row["call_id"], hold_id=row["hold_id"], number=row["round"]),
                    item=self._as_sent(tx, row),
                    worst=Amount(usd_micros=row["reserved_usd_micros"], tokens=row["reserved_tokens"]),
                    said=results.get(f"call_{row['call_id']}") or _missing(),
                )
                for row in tx.all("completions.batch_calls", {"batch_id": batch_id})
            ]

        found = await self._journal.read(calls)
        for start in range(0, len(found), _CHUNK):
            chunk = found[start : start + _CHUNK]
            wrongs = await asyncio.to_thread(_unexpected, chunk)

            def work(tx: Tx, chunk: list[_Result] = chunk, wrongs: list[str | None] = wrongs) -> None:
                for result, wrong in zip(chunk, wrongs, strict=True):
                    self._take(tx, result, self._resumed(tx, result.item, result.sent.call_id), wrong)

            await self._journal.commit(work)

    def _take(self, tx: Tx, result: _Result, item: Loaded, wrong: str | None) -> None:
        if isinstance(result.said, ProviderError):
            verdict = self._verdict(item.turn, result.said, tx.now_ms)
            self._units.fail(tx, item, result.sent, result.said, verdict, told=False)  # it speaks of a day ago
            return
        cost = self._preparing.cost(item, result.said, worst=result.worst, batch=True)
        follows = self._units.answer(tx, item, result.sent, result.said, cost, wrong=wrong)
        if follows is not None and not isinstance(follows, Ended):
            self._units.step_back(tx, item)  # its next round is an ordinary one

    # ----------------------------------------------------------------------------------- clearing up

    def _release_abandoned(self, tx: Tx) -> None:
        for row in tx.all("completions.batch_abandoned"):
            turn = self._queues.get(tx, row["turn_id"])
            self._units.unsent(tx, turn, row["hold_id"], row["call_id"])

    def _settle_lost(self, tx: Tx) -> None:
        error = ProviderError("the worker was lost while its batch left", kind="transport", billed="unknown")
        for row in tx.all("completions.batch_lost"):
            item = self._resumed(tx, self._as_sent(tx, row), row["call_id"])
            sent = Sent(call_id=row["call_id"], hold_id=row["hold_id"], number=1)
            self._units.fail(tx, item, sent, error, self._verdict(item.turn, error, tx.now_ms), told=False)


def _missing() -> ProviderError:
    return ProviderError("the batch has ended without a result for this request", kind="server", billed="unknown")


def _unexpected(chunk: Sequence[_Result]) -> list[str | None]:
    """A schema from outside may take long to compare with: not in a transaction."""
    return [
        unexpected(each.item, each.said.stop_reason, each.said.text) if isinstance(each.said, Answer) else None
        for each in chunk
    ]
