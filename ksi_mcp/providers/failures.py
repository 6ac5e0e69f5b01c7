"""What a failed model call means, by status, and how to speak of it without giving a secret away."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from ksi_mcp.errors import ProviderErrorKind

PAYMENT_REQUIRED: Final = 402
TOO_MANY_REQUESTS: Final = 429
SERVER_ERROR: Final = 500
OVERLOADED: Final = 529

_MAX_CHARS: Final = 300
_USERINFO = re.compile(r"://[^\s/@]*@")
_KEY = re.compile(r"\b(?:sk|pk|key)-[\w-]{8,}|(?i:bearer)\s+[\w.~+/=-]{8,}")
# Codes and wordings of a limit on money, which waiting does not lift. The wordings are for the two refusals that the
# Messages API sends without a code; they never outvote a limit on a span of time.
_SPENT_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_SPENT_SUFFIXES: Final = ("spend_limit_reached", "billing_unavailable")
_SPENT = re.compile(
    r"credit balance is too low|reached your specified [\w ]{0,30}usage limits|spend(?:ing)? limit", re.IGNORECASE
)
_PER_TIME = re.compile(r"rate limit|per[- ](?:second|minute|hour|day)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def kind_of_status(status: int) -> ProviderErrorKind:
    """Why a call failed, by its HTTP status. 529 is the Messages API's "overloaded"."""
    if status == PAYMENT_REQUIRED:
        return "budget"
    if status == TOO_MANY_REQUESTS:
        return "rate"
    if status == OVERLOADED:
        return "overload"
    if status >= SERVER_ERROR or status in (408, 409):
        return "server"
    return "auth" if status in (401, 403) else "request"


def kind_of_error(
    status: int, *, error_type: str | None = None, code: str | None = None, message: str = ""
) -> ProviderErrorKind:
    """Why a call failed, by its status and what its body says: a spend limit may come as a 400 or a 429 as well.

    `error_type` and `code` are the body's own (`error.type`; `error.details.error_code` or `error.code`).
    """
    if error_type == "billing_error" or code in _SPENT_CODES or (code or "").endswith(_SPENT_SUFFIXES):
        return "budget"
    if status in (400, 403, TOO_MANY_REQUESTS) and _SPENT.search(message) and not _PER_TIME.search(message):
        return "budget"
    return kind_of_status(status)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (seconds, or a date against the answer's own `date`)."""
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / per_second
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        until, now = (parsedate_to_datetime(headers[name]) for name in ("retry-after", "date"))
        return max(0.0, (until - now).total_seconds())
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):  # absent, or no dates
        return None


def masked(text: str, secret: str | None) -> str:
    """`text` without the secret. For names that others choose and that are kept as they are."""
    return text.replace(secret, "[key]") if secret else text


def safe_text(text: str, *, secret: str | None = None) -> str:
    """`text` on one line and shortened, without the secret, anything that looks like a key, or a URL's user."""
    text = masked(text[: 10 * _MAX_CHARS], secret)
    text = _KEY.sub("[key]", _USERINFO.sub("://", _CONTROL.sub(" ", text))).strip()
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 3]}..."
