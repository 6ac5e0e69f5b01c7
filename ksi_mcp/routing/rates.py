"""How often a rule may deliver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.errors import Invalid
from ksi_mcp.events.patterns import shorten

MAX_COUNT: Final = 1_000_000
MAX_WINDOW_S: Final = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """At most `count` events in each window of `per_s` seconds; what comes beyond is not delivered; said once."""

    count: int
    per_s: float

    @property
    def per_ms(self) -> int:
        """How long a window is in ms; at least one, so that no window is so short that the rate bounds nothing."""
        return max(1, round(self.per_s * 1000))

    @property
    def shown(self) -> dict[str, Any]:
        """As it is written and stored."""
        return {"count": self.count, "per_s": self.per_s}


def rate_of(value: object) -> Rate | None:
    """Read a rate.

    Raises:
        Invalid: it is not `{count, per_s}` with numbers in their bounds.
    """
    if value is None or isinstance(value, Rate):
        return value
    hint = 'e.g. {"count": 10, "per_s": 60}'
    if not isinstance(value, dict) or not set(value) <= {"count", "per_s"}:
        raise Invalid(f"the rate is {shorten(value)}", hint=hint)
    count, per_s = value.get("count"), value.get("per_s", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_COUNT:
        raise Invalid(f"count of the rate is {shorten(count)}", hint=f"a whole number from 1 to {MAX_COUNT:,}; {hint}")
    if not isinstance(per_s, int | float) or isinstance(per_s, bool) or not 0 < per_s <= MAX_WINDOW_S:
        raise Invalid(f"per_s of the rate is {shorten(per_s)}", hint=f"seconds, at most {MAX_WINDOW_S:,}; {hint}")
    return Rate(count=count, per_s=per_s)
