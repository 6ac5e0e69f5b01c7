"""The router's own delivery, at work on nothing: each step is told to whoever rehearses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ksi_mcp.db import Tx
from ksi_mcp.events.model import Event
from ksi_mcp.ids import EventId
from ksi_mcp.permissions import Context
from ksi_mcp.routing.collecting import Collected
from ksi_mcp.routing.outbox import EventDelivery, Limits
from ksi_mcp.routing.rules import CompiledRule, Rule
from ksi_mcp.routing.targets import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a simulated turn ends with: the event, and how many tools it called that were not run."""

    name: str
    data: Mapping[str, Any]
    not_run: int = 0


Answers = Callable[[str, str], Reply]
"""How a simulated turn of an agent (its id, the prompt) ends."""


class Rehearsal(Protocol):
    """What is told of each delivery, in this order: `begin`, then for each target `attempt`, what it makes, `end`."""

    def begin(self, rule: Rule, event: Event) -> None:
        """A rule fires."""
        ...

    def attempt(self, rule: Rule, target: Target, event: Event) -> str | None:
        """It delivers to one place; the reason if that must fail."""
        ...

    def turn(self, ctx: Context, agent_id: str, prompt: str) -> str:
        """It makes a turn; the id."""
        ...

    def emitted(self, name: str, data: dict[str, Any], ctx: Context, agent_id: str | None) -> int:
        """It makes an event; the id.

        Raises:
            Invalid: that cannot be one.
        """
        ...

    def end(self) -> None:
        """That delivery was made."""
        ...

    def fire(self, compiled: CompiledRule, done: Collected) -> int:
        """A join is complete; how many deliveries were made."""
        ...

    def report(self, name: str, data: Mapping[str, Any]) -> None:
        """What the router would say of it in the log."""
        ...


class RehearsedDelivery(EventDelivery):
    """See `EventDelivery`. What it writes goes to the transaction it is given, and nowhere else."""

    def __init__(self, rehearsal: Rehearsal, tx: Tx, limits: Limits, event: Event, *, joined: bool = False) -> None:
        self._rehearsal = rehearsal
        super().__init__(tx, _Reports(rehearsal), _Turns(rehearsal), limits, event, joined=joined)

    def deliver(self, rule: Rule, data: dict[str, Any]) -> int:
        """Deliver by one rule; how many deliveries were made."""
        self._rehearsal.begin(rule, self._event)
        return super().deliver(rule, data)

    def deliver_to(self, rule: Rule, target: Target, data: dict[str, Any]) -> bool:
        """Deliver to one place; whether it was made."""
        reason = self._rehearsal.attempt(rule, target, self._event)
        if reason is not None:
            self.undeliverable(reason, rule=rule, target=target, data=data)
            return False
        if not super().deliver_to(rule, target, data):
            return False
        self._rehearsal.end()
        return True

    def fire(self, compiled: CompiledRule, done: Collected) -> int:
        """Deliver what a join has collected; how many deliveries were made."""
        return self._rehearsal.fire(compiled, done)


def event_made(
    event_id: int, name: str, data: Mapping[str, Any], ctx: Context, agent_id: str | None, *, at_ms: int
) -> Event:
    """An event as the journal would have made it."""
    return Event(
        event_id=EventId(event_id),
        name=name,
        data=dict(data),
        source=str(ctx.actor),
        agent_id=agent_id or ctx.actor.agent_id,
        orchestration_id=ctx.orchestration_id,
        cause_id=ctx.cause_id,
        root_id=ctx.root_id,
        hops=ctx.hops,
        depth=ctx.depth,
        at_ms=at_ms,
    )


@dataclass(frozen=True, slots=True)
class _Turns:
    rehearsal: Rehearsal

    def deliver_turn(self, tx: Tx, ctx: Context, agent_id: str, prompt: str) -> str:  # noqa: ARG002
        return self.rehearsal.turn(ctx, agent_id, prompt)


@dataclass(frozen=True, slots=True)
class _Reports:
    rehearsal: Rehearsal

    def record(
        self,
        tx: Tx,
        name: str,
        data: dict[str, Any],
        ctx: Context,
        *,
        agent_id: str | None = None,
        orchestration_id: str | None = None,  # noqa: ARG002
        routable: bool = True,
        subject: object = None,  # noqa: ARG002
    ) -> Event:
        event_id = 0
        if routable:
            event_id = self.rehearsal.emitted(name, data, ctx, agent_id)
        else:
            self.rehearsal.report(name, data)
        return event_made(event_id, name, data, ctx, agent_id, at_ms=tx.now_ms)
