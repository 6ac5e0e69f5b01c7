"""Parts of the server that react to events: each in the transaction in which the event is routed, exactly once."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError, StoreError
from ksi_mcp.events.journal import Recorder
from ksi_mcp.events.model import Event
from ksi_mcp.permissions import SYSTEM
from ksi_mcp.routing.outbox import MAX_REASON_CHARS, event_context

React = Callable[[Tx, Event], None]


class ListenerFailed(Exception):
    """A listener raised: the unit is undone, and run again without it."""

    def __init__(self, react: React, failure: Exception) -> None:
        super().__init__(str(failure))
        self.react = react
        self.failure = failure

    def report(self, tx: Tx, journal: Recorder, event: Event) -> None:
        """Say so in the log, for the event that is routed without it."""
        reason = self.failure.message if isinstance(self.failure, KsiError) else type(self.failure).__name__
        facts = {
            "event_id": event.event_id,
            "event": event.name,
            "listener": getattr(self.react, "__qualname__", type(self.react).__name__),
            "reason": reason[:MAX_REASON_CHARS],
        }
        ctx = event_context(event, SYSTEM)
        journal.record(tx, "system:listener_failed", facts, ctx, agent_id=event.agent_id, routable=False)


class Listeners:
    """Who reacts to which names. An event that nobody listens to costs one look into a dictionary."""

    def __init__(self, always: React | None = None) -> None:
        """`always` reacts to every event, whatever its name, after those that listen to the name."""
        self._always = () if always is None else (always,)
        self._by_name: dict[str, list[React]] = {}

    def add(self, names: Collection[str], react: React) -> None:
        """Call `react(tx, event)` for every event of these names."""
        for name in names:
            self._by_name.setdefault(name, []).append(react)

    def hear(self, tx: Tx, event: Event, *, without: Collection[React]) -> None:
        """Let everybody who listens react, in the order in which they came.

        Raises:
            ListenerFailed: one of them could not; what the others wrote is undone with this unit.
        """
        for react in (*self._by_name.get(event.name, ()), *self._always):
            if react in without:
                continue
            try:
                react(tx, event)
            except StoreError:
                raise  # nothing of this event is lost: it waits for the next attempt
            except Exception as failure:
                raise ListenerFailed(react, failure) from failure
