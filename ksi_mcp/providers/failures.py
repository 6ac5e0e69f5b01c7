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


def safe_text(text: str, *, secret: str | None = None) -> str:
    """`text` on one line and shortened, without the secret, anything that looks like a key, or a URL's user."""
    text = text[: 10 * _MAX_CHARS]
    if secret:
        text = text.replace(secret, "[key]")
    text = _KEY.sub("[key]", _USERINFO.sub("://", _CONTROL.sub(" ", text))).strip()
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 3]}..."
