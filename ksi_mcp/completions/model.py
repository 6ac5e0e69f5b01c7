"""What the units of a turn hand to the loop and take from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ksi_mcp.agents.history import PastTurn, Round
from ksi_mcp.agents.model import Agent
from ksi_mcp.budgets.model import Amount
from ksi_mcp.completions.chain import Choice
from ksi_mcp.providers.base import Request, ToolSpec
from ksi_mcp.queues.model import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A claimed turn with all that its next round is rendered from."""

    turn: Turn
    agent: Agent
    earlier: list[PastTurn]
    now: PastTurn
    """The turn itself: its prompt, what was put in, and the rounds it has so far."""
    choice: Choice
    """The model that is asked."""

    @property
    def rounds(self) -> tuple[Round, ...]:
        """What was answered so far."""
        return self.now.rounds

    def with_rounds(self, rounds: tuple[Round, ...]) -> Loaded:
        """The same turn, further on."""
        return replace(self, now=replace(self.now, rounds=rounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A round that asks to be let out: what it may cost at worst and how it can be known again.

    `unpriced` is the reason why the call has no price; it is refused under a USD limit.
    """

    number: int
    worst: Amount
    unpriced: str | None
    request_hash: str
    batch: bool = False
    """It goes with a batch of its provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A call that is paid for and may leave; `seconds_left` is what the wall clock of its accounts allows."""

    call_id: int
    hold_id: str
    number: int
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A turn that has ended, and the answer that ended it."""

    turn: Turn
    answer: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The request of a turn's next round, what it asks for to be let out, and the tools that its agent has."""

    request: Request
    wanted: Wanted
    tools: tuple[ToolSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A round that was let out in the transaction that claimed its turn: its answer is there, or its call may leave."""

    prepared: Prepared
    admitted: Sent | Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a claim took, and what it left: the providers that turns still wait for, and from when (ms) they may run."""

    taken: list[Claimed]
    waiting: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A claimed turn; `ready` is its next round, unless that is still to be prepared."""

    item: Loaded
    ready: Ready | None = None
