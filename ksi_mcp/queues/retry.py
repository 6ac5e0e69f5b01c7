"""Whether a failed model call is tried again, and when: a pure decision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ksi_mcp.errors import RETRYABLE_KINDS, ProviderErrorKind
from ksi_mcp.queues.model import ErrorClass, TurnState

MAX_TRIES: Final = 5
"""Provider attempts of one round, the first included."""
BACKOFF_S: Final = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
JITTER: Final = 0.25
"""A delay is spread over +-25 %, so that agents that failed together do not return together."""
RETRY_AFTER_CAP_S: Final = 60.0
"""A provider that asks for more is tried after this long all the same."""
SHORTEST_WAIT_S: Final = 1.0
"""A provider that asks for less to pass is not waiting for us: its refusals use up tries, or it would be hammered."""
PATIENCE_S: Final = 600.0
"""For so long a turn may be sent back by rate limits without using up tries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Try again after `delay_s` seconds. Unless it `counts`, this failure has not used up a try."""

    delay_s: float
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """End the turn with this state and class."""

    state: TurnState
    error_class: ErrorClass


def decide(
    kind: ProviderErrorKind,
    *,
    failed_tries: int,
    retry_after_s: float | None,
    spread: float,
    waited_s: float = math.inf,
) -> Again | GiveUp:
    """What follows the `failed_tries`-th failed attempt of a round (the first is 1).

    `spread` is a random number from 0 to 1. `Retry-After` outranks the backoff, up to its cap, and is only
    ever lengthened by the jitter: a provider's word is a lower bound.

    A rate limit that says when to come back is an appointment and not a failure: whoever keeps it has not tried in
    vain. It uses up no try for the turn's first ten minutes (`waited_s` is how long it has been under way), so that a
    turn outlasts the provider's minute; beyond them, as without `waited_s`, it counts like any other.
    """
    if kind not in RETRYABLE_KINDS:
        return GiveUp(state="failed", error_class=_class_of(kind))
    asked_s = retry_after_s if retry_after_s is not None and 0 <= retry_after_s < math.inf else None
    appointment = kind == "rate" and asked_s is not None and SHORTEST_WAIT_S <= asked_s <= RETRY_AFTER_CAP_S
    counts = not (appointment and waited_s < PATIENCE_S)
    if counts and failed_tries >= MAX_TRIES:
        return GiveUp(state="timed_out" if kind == "timeout" else "failed", error_class="infra")
    if asked_s is not None:
        return Again(delay_s=min(asked_s, RETRY_AFTER_CAP_S) * (1 + JITTER * spread), counts=counts)
    base = BACKOFF_S[min(failed_tries, len(BACKOFF_S)) - 1]
    return Again(delay_s=base * (1 - JITTER + 2 * JITTER * spread))


def _class_of(kind: ProviderErrorKind) -> ErrorClass:
    if kind == "budget":
        return "budget"
    if kind == "refused":
        return "refused"
    return "task" if kind == "request" else "infra"
