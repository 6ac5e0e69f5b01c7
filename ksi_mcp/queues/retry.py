"""Whether a failed model call is tried again, and when: a pure decision."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Try again after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """End the turn with this state and class."""

    state: TurnState
    error_class: ErrorClass


def decide(kind: ProviderErrorKind, *, failed_tries: int, retry_after_s: float | None, spread: float) -> Again | GiveUp:
    """What follows the `failed_tries`-th failed attempt of a round (the first is 1).

    `spread` is a random number from 0 to 1. `Retry-After` outranks the backoff, up to its cap, and is only
    ever lengthened by the jitter: a provider's word is a lower bound.
    """
    if kind not in RETRYABLE_KINDS:
        return GiveUp(state="failed", error_class=_class_of(kind))
    if failed_tries >= MAX_TRIES:
        return GiveUp(state="timed_out" if kind == "timeout" else "failed", error_class="infra")
    if retry_after_s is not None and retry_after_s >= 0:
        return Again(delay_s=min(retry_after_s, RETRY_AFTER_CAP_S) * (1 + JITTER * spread))
    base = BACKOFF_S[min(failed_tries, len(BACKOFF_S)) - 1]
    return Again(delay_s=base * (1 - JITTER + 2 * JITTER * spread))


def _class_of(kind: ProviderErrorKind) -> ErrorClass:
    if kind == "budget":
        return "budget"
    if kind == "refused":
        return "refused"
    return "task" if kind == "request" else "infra"
