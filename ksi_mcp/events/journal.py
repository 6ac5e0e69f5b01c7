"""The one door down: state, queue, spend and events change in one transaction, announced after it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

from ksi_mcp.clock import Clock
from ksi_mcp.db import Database, Tx
from ksi_mcp.db.database import Work
from ksi_mcp.events import store
from ksi_mcp.events.model import Event, EventFilter, EventPage, encode_data, event_of
from ksi_mcp.ids import EventId
from ksi_mcp.permissions import Context

T = TypeVar("T")

SUBSCRIPTION_BACKLOG = 10_000
"""Events a slow subscriber may lag behind before it is told that it missed some."""
_TAIL_CHUNK = 1_000


class Recorder(Protocol):
    """What a unit needs to report what it does."""

    def record(
        self,
        tx: Tx,
        name: str,
        data: dict[str, Any],
        ctx: Context,
        *,
        agent_id: str | None = None,
        orchestration_id: str | None = None,
        routable: bool = True,
        subject: object = None,
    ) -> Event:
        """Write an event in the same transaction."""
        ...


Due = Literal["turns", "events", "delays"]
"""What may have become due: turns to claim, events to route, delayed events to fire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Woken:
    """Announced when there may be work of that kind; other processes hear it as a ring."""

    kind: Due


WOKEN = Woken(kind="turns")
DELAYED = Woken(kind="delays")
_ROUTABLE = Woken(kind="events")
_EVERYTHING: frozenset[Due] = frozenset({"turns", "events", "delays"})


class Subscription:
    """Live events that fit a filter, from the moment it was entered. Use it as a context manager."""

    def __init__(self, journal: Journal, wants: Callable[[Event], bool], about: frozenset[str] | None) -> None:
        self._journal = journal
        self._wants = wants
        self.about = about
        self._events: deque[Event] = deque()
        self._bell = asyncio.Event()
        self.missed = 0
        """Events dropped because the subscriber did not keep up."""

    async def __aenter__(self) -> Self:
        await self._journal.attach(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.detach(self)

    def offer(self, event: Event) -> None:
        """Called by the journal, in the order of ids."""
        if not self._wants(event):
            return
        if len(self._events) >= SUBSCRIPTION_BACKLOG:
            self._events.popleft()
            self.missed += 1
        self._events.append(event)
        self._bell.set()

    def narrow(self, turns: Collection[str]) -> None:
        """From now on, hear only of these turns: others cost nothing, however many subscribers there are."""
        self._journal.detach(self, last=False)
        self.about = frozenset(turns)
        self._journal.join(self)
        self._events = deque(event for event in self._events if event.data.get("turn") in self.about)

    async def next(self, timeout_s: float | None) -> Event | None:
        """The next event, or None when the time is up."""
        while not self._events:
            self._bell.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._bell.wait()
            except TimeoutError:
                return None
        return self._events.popleft()

    def drain(self) -> list[Event]:
        """What has arrived and was not taken yet, without waiting."""
        waiting = list(self._events)
        self._events.clear()
        return waiting


class Journal:
    """Writes through one door and tells whoever listens.

    Contract of `commit(work)`: `work(tx)` is a plain function that may be run again and has no effect but
    through `tx`; when `commit` returns, everything it did is durable; when it raises, nothing of it is.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self.clock = clock
        self._db = db
        self._subscriptions: list[Subscription] = []
        self._by_turn: dict[str, list[Subscription]] = {}
        self._narrowed = 0
        self._wakers: list[tuple[Callable[[], None], frozenset[Due]]] = []
        self._last: int | None = None
        self._tailing: asyncio.Task[None] | None = None
        self._tail_again = False
        db.on_commit(self._announced)

    # -------------------------------------------------------------------------------- the door

    async def commit(self, work: Work[T]) -> T:
        """Run `work` in a transaction of its own; durable when this returns."""
        return await self._db.write(work)

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a consistent snapshot."""
        return await self._db.read(work)

    def record(
        self,
        tx: Tx,
        name: str,
        data: dict[str, Any],
        ctx: Context,
        *,
        agent_id: str | None = None,
        orchestration_id: str | None = None,
        routable: bool = True,
        subject: object = None,
    ) -> Event:
        """Write an event in the transaction at hand.

        `routable=False` keeps it from the router: what the router itself reports must not feed it. `subject` spares
        whoever hears it in this process a look into the store.
        """
        orchestration = orchestration_id or ctx.orchestration_id
        row = tx.one(
            "events.insert",
            {
                "name": name,
                "data": encode_data(name, data),
                "source": str(ctx.actor),
                "agent_id": agent_id or ctx.actor.agent_id,
                "orchestration_id": orchestration,
                "cause_id": ctx.cause_id,
                "root_id": ctx.root_id,
                "hops": ctx.hops,
                "depth": ctx.depth,
                "at_ms": tx.now_ms,
            },
        )
        assert row is not None  # noqa: S101  RETURNING always has a row
        event = Event(
            event_id=EventId(row["event_id"]),
            name=name,
            data=data,
            source=str(ctx.actor),
            agent_id=agent_id or ctx.actor.agent_id,
            orchestration_id=orchestration,
            cause_id=ctx.cause_id,
            root_id=ctx.root_id,
            hops=ctx.hops,
            depth=ctx.depth,
            at_ms=tx.now_ms,
            subject=subject,
        )
        if routable:
            tx.run("events.to_outbox", {"event_id": event.event_id})
            tx.announce(_ROUTABLE)
        tx.announce(event)
        return event

    # ------------------------------------------------------------------------------- listening

    def on_wake(self, waker: Callable[[], None], *kinds: Due) -> None:
        """Call `waker` on the loop whenever there may be new work of these kinds (or any), from whatever process."""
        self._wakers.append((waker, frozenset(kinds) or _EVERYTHING))

    def rung(self) -> None:
        """Another process has committed something."""
        if self._listened:
            self._tail()
        else:
            self._last = None
        self._wake(_EVERYTHING)

    def subscribe(self, wants: Callable[[Event], bool], *, about: Collection[str] | None = None) -> Subscription:
        """Live events for which `wants(event)`, of these turns if given; enter it with `async with`."""
        return Subscription(self, wants, None if about is None else frozenset(about))

    async def attach(self, subscription: Subscription) -> None:
        """Used by `Subscription`."""
        if self._last is not None:  # others listen already, so what follows will be heard
            self.join(subscription)
            return
        last = await self._db.read(lambda tx: tx.one("events.last_id"))
        if self._last is None and last is not None:
            self._last = last["event_id"]
        self.join(subscription)
        self._tail()

    def join(self, subscription: Subscription) -> None:
        """Used by `Subscription`."""
        if subscription.about is None:
            self._subscriptions.append(subscription)
            return
        self._narrowed += 1
        for turn in subscription.about:
            self._by_turn.setdefault(turn, []).append(subscription)

    def detach(self, subscription: Subscription, *, last: bool = True) -> None:
        """Used by `Subscription`. `last`: it does not come back."""
        if subscription.about is None:
            self._subscriptions.remove(subscription)
        else:
            self._narrowed -= 1
            for turn in subscription.about:
                others = self._by_turn[turn]
                others.remove(subscription)
                if not others:
                    del self._by_turn[turn]
        if last and not self._listened:
            self._last = None

    @property
    def _listened(self) -> bool:
        return bool(self._subscriptions) or self._narrowed > 0

    async def query(self, wanted: EventFilter, *, limit: int, cursor: str | None = None) -> EventPage:
        """Recorded events, newest first."""
        return await self._db.read(lambda tx: store.page(tx, wanted, limit=limit, cursor=cursor))

    async def close(self) -> None:
        """Stop reading what others commit."""
        if self._tailing is not None:
            self._tailing.cancel()
            await asyncio.wait([self._tailing])

    # --------------------------------------------------------------------------------- private

    def _announced(self, notes: Sequence[object]) -> None:
        if self._listened and self._last is not None:
            for note in notes:
                if not isinstance(note, Event) or note.event_id <= self._last:
                    continue
                if note.event_id != self._last + 1:  # another process was in between
                    self._tail()
                    break
                self._publish(note)
        if due := frozenset(note.kind for note in notes if isinstance(note, Woken)):
            self._wake(due)

    def _publish(self, event: Event) -> None:
        self._last = event.event_id
        for subscription in self._subscriptions:
            subscription.offer(event)
        if self._by_turn and (turn := event.data.get("turn")) is not None and isinstance(turn, str):
            for subscription in self._by_turn.get(turn, ()):
                subscription.offer(event)

    def _wake(self, due: frozenset[Due]) -> None:
        for waker, kinds in self._wakers:
            if kinds & due:
                waker()

    def _tail(self) -> None:
        self._tail_again = True
        if self._tailing is None:
            self._tailing = asyncio.get_running_loop().create_task(self._read_tail(), name="ksi-journal-tail")

    async def _read_tail(self) -> None:
        try:
            while self._tail_again and self._last is not None:
                self._tail_again = False
                after = self._last
                rows = await self._db.read(
                    lambda tx, after=after: tx.all("events.after", {"after_id": after, "limit": _TAIL_CHUNK})  # type: ignore[misc]
                )
                for row in rows:
                    if self._last is not None and row["event_id"] > self._last:
                        self._publish(event_of(row))
                self._tail_again = self._tail_again or len(rows) == _TAIL_CHUNK
        finally:
            self._tailing = None
