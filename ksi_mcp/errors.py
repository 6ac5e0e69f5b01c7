"""Every failure that a caller may see, as one tree.

    KsiError(message, hint=...)      .code, .hint, .text()
    ├── Refused                      the actor may not do this
    ├── Invalid                      the input is wrong: what, which value, what to do
    ├── NotFound                     no such agent, turn, rule, composition ...
    ├── Conflict                     it exists already, or it changed under you
    ├── Exhausted                    a budget or a limit stands in the way
    ├── ProviderError                a model call failed: .kind, .retryable, .retry_after_s
    └── StoreError                   the database could not take the change

The message names what was wrong and the value; the hint says what to do next. Neither ever
carries a path of this machine, a credential or a traceback.
"""

from __future__ import annotations

from typing import Literal

ErrorCode = Literal["refused", "invalid", "not_found", "conflict", "exhausted", "provider", "store"]

ProviderErrorKind = Literal[
    "overload", "rate", "server", "transport", "timeout", "request", "auth", "budget", "refused", "bug"
]
"""Why a model call failed. Only the first five are worth another try."""

RETRYABLE_KINDS: frozenset[str] = frozenset({"overload", "rate", "server", "transport", "timeout"})


class KsiError(Exception):
    """Base of all expected failures."""

    code: ErrorCode = "invalid"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # What was wrong may be quoted in it, half a character too, which no wire and no terminal takes.
        self.message = message.encode("utf-8", "replace").decode()
        super().__init__(self.message)
        self.hint = hint

    def text(self) -> str:
        """What the caller reads: the message, then the next step."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class Refused(KsiError):
    """The actor lacks the capability or the reach. `audited` once its entry in the log is written."""

    code: ErrorCode = "refused"
    audited = False


class Invalid(KsiError):
    """The input cannot be taken as it is."""

    code: ErrorCode = "invalid"


class NotFound(KsiError):
    """Nothing has that id or name within the actor's reach."""

    code: ErrorCode = "not_found"


class Conflict(KsiError):
    """The name is taken, or the thing changed in the meantime."""

    code: ErrorCode = "conflict"


class Exhausted(KsiError):
    """A budget or a server limit stands in the way."""

    code: ErrorCode = "exhausted"


class StoreError(KsiError):
    """The database could not take the change (disk full, locked, newer schema)."""

    code: ErrorCode = "store"


class ProviderError(KsiError):
    """A model call that gave no usable answer.

    `billed` says what is known of the cost: `no` (the provider refused before working), or
    `unknown` (the call may have left and may be charged: it settles at its full reserve).
    `cost_usd_micros`, if the provider has said it, is what it did cost; then that is booked.
    `partial_text` is what had streamed in before the failure.
    """

    code: ErrorCode = "provider"

    def __init__(
        self,
        message: str,
        *,
        kind: ProviderErrorKind,
        billed: Literal["no", "unknown"],
        retry_after_s: float | None = None,
        partial_text: str = "",
        cost_usd_micros: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind: ProviderErrorKind = kind
        self.billed: Literal["no", "unknown"] = billed
        self.retry_after_s = retry_after_s
        self.partial_text = partial_text
        self.cost_usd_micros = cost_usd_micros

    @property
    def retryable(self) -> bool:
        """Whether another attempt can help at all."""
        return self.kind in RETRYABLE_KINDS
