"""How many calls a provider takes at once, learnt from what it refuses.

Two different things are called a rate limit, and each has its remedy:

* too many calls **at once**: the limit grows while calls succeed (doubling with each round trip until the first
  refusal, then by one a round trip) and falls to 70 % on a refusal. Refusals come at once and answers take seconds,
  so between the first answer and the first failure silence counts too: while all places are taken and nothing has
  been heard for a while since the newest call left, the limit doubles, an eighth of the way at a time;
* too much **in this minute**: after a refusal with status 429 nothing leaves until the provider's `Retry-After` is
  over, and then one call alone, the probe. Only its success lets the others go. A hundred agents that are refused
  therefore cost a few probes, not a hundred refusals each time.

In memory, in the one worker: what it has learnt is soon learnt again. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ksi_mcp.clock import Clock

UNLIMITED: Final = 1_000_000_000
"""A ceiling that says: this provider is never held back, not even by what it refuses."""
CUT: Final = 0.7
RESTART: Final = 2
"""How many calls at once the first success after a closing lets through."""
CLOSED_CAP_S: Final = 60.0
PROBE_S: Final = 600.0
"""No call lasts longer: a probe of that age was forgotten by its caller."""
NEAR_PACE_S: Final = 0.02
FAR_PACE_S: Final = 0.25
"""How long silence takes to double the limit. A refusal from this machine is here within milliseconds; one from far
away within a quarter of a second, the handshake of a new connection included."""
STEPS: Final = 8
"""Of a doubling by silence: of those let out in one step few are refused before the next is taken."""
_SLOWING: Final[frozenset[str]] = frozenset({"rate", "overload"})
_BREAKING_SILENCE: Final[frozenset[str]] = _SLOWING | {"server", "transport", "timeout"}
_SMOOTHING: Final = 0.2
_UNKNOWN_LATENCY_S: Final = 1.0
_ROUNDING: Final = 1e-3


@dataclass(slots=True, kw_only=True)
class _Door:
    """What is known of one provider."""

    ceiling: int
    start: int
    limit: float
    pace_s: float | None
    """How long silence takes to double the limit; None once a call has failed for the provider's sake."""
    heard: bool = False
    """It has answered a call, with whatever. Before that, silence may mean that nothing has left here yet."""
    in_flight: int = 0
    slow_until: float = math.inf
    """Below it the limit grows by one a success, which doubles it each round trip; above it by one a round trip."""
    full_s: float | None = None
    """When the newest call took the last place; None while there is one left."""
    latency_s: float | None = None
    """Of answers, smoothed."""
    peak: int = 0
    earlier_peak: int = 0
    """The most calls at once in the latency that runs and in the one before."""
    peak_since_s: float = -math.inf
    cut_s: float = -math.inf
    first_s: float | None = None
    """When the first call left since it was opened last."""
    answered: bool = False
    """Since then. A refusal before any answer tells of the time, not of how many are too many."""
    closed_s: float | None = None
    """Since when it is closed; None while it is open."""
    opens_s: float = 0.0
    refusals: int = 0
    """Refusals in a row, the probes' included."""
    probe_s: float | None = None
    """Since when the probe is under way."""
    earlier: int = 0
    """Calls still under way that had left before it was closed."""


class Limits:
    """The limits of all providers. Each call is announced by `started` and ends with exactly one `ended`.

    `ceiling` gives the most calls at once by provider, from the configuration; None (or `UNLIMITED`) is no limit.
    `start` is where the limit begins, unless the ceiling is lower. `near` says of a provider that it is on this
    machine, where refusals are heard sooner.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        ceiling: Callable[[str], int | None],
        start: int = 8,
        near: Callable[[str], bool] = lambda _provider: False,
    ) -> None:
        self._clock = clock
        self._ceiling = ceiling
        self._start = start
        self._near = near
        self._doors: dict[str, _Door] = {}

    def free(self, provider: str) -> int:
        """How many more calls may start now; 0 while closed, 1 when it is time for the probe."""
        door = self._door(provider)
        if door.ceiling >= UNLIMITED:
            return UNLIMITED
        now_s = self._clock.monotonic_s()
        if door.closed_s is None:
            return max(0, int(_limit(door, now_s)) - door.in_flight)
        return 1 if now_s >= _opens_s(door) else 0

    def opens_at_s(self, provider: str) -> float | None:
        """When a closed provider may be probed; None while it is open. `ended` may change it at any time."""
        door = self._door(provider)
        return None if door.closed_s is None else _opens_s(door)

    def grows_at_s(self, provider: str) -> float | None:
        """When there will be room at a provider that is full, if silence lasts; None if only an answer makes room.

        Times that lie in the past mean: now. `started` and `ended` may change it at any time.
        """
        door = self._door(provider)
        if door.pace_s is None or door.full_s is None or door.closed_s is not None or not door.heard:
            return None
        for steps in range(1, STEPS + 1):
            if int(_grown(door, steps)) > door.in_flight:
                return door.full_s + door.pace_s * steps / STEPS
        return None

    def started(self, provider: str) -> None:
        """A call leaves; while closed, it is the probe."""
        door, now_s = self._door(provider), self._clock.monotonic_s()
        if door.closed_s is not None and door.probe_s is None:
            door.probe_s = now_s
        elif door.probe_s is not None and now_s >= _opens_s(door):
            door.probe_s = now_s  # the one before it was forgotten
        if door.first_s is None:
            door.first_s = now_s
        grown_s = _grow_by_silence(door, now_s)
        door.in_flight += 1
        door.full_s = grown_s if door.in_flight >= int(door.limit) else None
        _watch(door, now_s)

    def ended(
        self, provider: str, *, ok: bool, kind: str | None, latency_s: float, retry_after_s: float | None
    ) -> None:
        """A call that had started is over: answered, failed with `kind`, or cut off (neither `ok` nor a kind).

        `latency_s` is how long it was under way, `retry_after_s` what the provider asked for.
        """
        door = self._door(provider)
        if door.ceiling >= UNLIMITED:
            return
        now_s = self._clock.monotonic_s()
        _watch(door, now_s)
        door.in_flight = max(0, door.in_flight - 1)
        door.full_s = None
        door.heard |= ok or kind is not None
        if kind in _BREAKING_SILENCE:
            door.pace_s = None
        left_s = now_s - max(0.0, latency_s)
        if ok:
            seen_s = door.latency_s
            door.latency_s = latency_s if seen_s is None else seen_s + _SMOOTHING * (latency_s - seen_s)
        if door.closed_s is not None:
            _while_closed(door, now_s, left_s, ok=ok, kind=kind, retry_after_s=retry_after_s)
        elif ok:
            door.answered, door.refusals = True, 0
            _grow(door)
        elif kind in _SLOWING:
            # Others have been under way for longer than a refusal takes: they were let in, and this one was too many.
            door.answered |= door.first_s is not None and now_s - door.first_s > 2 * latency_s
            _cut(door, now_s, left_s)
            if kind == "rate":
                _close(door, now_s, retry_after_s)

    def _door(self, provider: str) -> _Door:
        door = self._doors.get(provider)
        if door is None:
            given = self._ceiling(provider)
            ceiling = UNLIMITED if given is None else max(1, given)
            start = max(1, min(self._start, ceiling))
            pace_s = NEAR_PACE_S if self._near(provider) else FAR_PACE_S
            door = self._doors[provider] = _Door(ceiling=ceiling, start=start, limit=start, pace_s=pace_s)
        return door


def _opens_s(door: _Door) -> float:
    return door.opens_s if door.probe_s is None else door.probe_s + PROBE_S


def _steps(door: _Door, now_s: float) -> int:
    """How many eighths of a doubling are due since the newest call took the last place."""
    if door.pace_s is None or door.full_s is None or not door.heard:
        return 0
    # What is due by the clock is due, whatever the last bit of a sum says.
    return min(int((now_s - door.full_s) / door.pace_s * STEPS + _ROUNDING), STEPS)


def _limit(door: _Door, now_s: float) -> float:
    """The limit with what silence has added: it counts once somebody uses it, and is forgotten if a call ends first."""
    return _grown(door, _steps(door, now_s))


def _grow_by_silence(door: _Door, now_s: float) -> float:
    """Make that the limit; return since when the silence is to be counted that follows."""
    steps = _steps(door, now_s)
    if not steps or door.pace_s is None or door.full_s is None:
        return now_s
    door.limit = _grown(door, steps)
    step_s = door.pace_s / STEPS
    # Timers are always a little late: that is not taken off the silence, unless it is more than a step.
    return max(door.full_s + steps * step_s, now_s - step_s)


def _grown(door: _Door, steps: int) -> float:
    return min(door.limit * math.exp2(steps / STEPS), float(door.ceiling))


def _watch(door: _Door, now_s: float) -> None:
    latency_s = _UNKNOWN_LATENCY_S if door.latency_s is None else door.latency_s
    if now_s - door.peak_since_s > latency_s:
        door.earlier_peak, door.peak, door.peak_since_s = door.peak, 0, now_s
    door.peak = max(door.peak, door.in_flight)


def _grow(door: _Door) -> None:
    # A limit that was not used has proved nothing: it must not creep up to where a rush would run into refusals.
    if max(door.peak, door.earlier_peak) * 2 >= int(door.limit):
        step = 1.0 if door.limit < door.slow_until else 1.0 / door.limit
        door.limit = min(door.limit + step, float(door.ceiling))


def _cut(door: _Door, now_s: float, left_s: float) -> None:
    """At most once per latency, and not for calls that had left under the limit before: one crowd, one cut."""
    latency_s = _UNKNOWN_LATENCY_S if door.latency_s is None else door.latency_s
    if left_s < door.cut_s or now_s - door.cut_s < latency_s:
        return
    door.cut_s = now_s
    door.limit = max(1.0, door.limit * CUT)
    if door.answered:
        door.slow_until = max(door.limit, door.start / 2)


def _close(door: _Door, now_s: float, retry_after_s: float | None) -> None:
    door.closed_s, door.opens_s, door.probe_s = now_s, now_s, None
    door.earlier = door.in_flight
    _refused(door, now_s, retry_after_s)


def _refused(door: _Door, now_s: float, retry_after_s: float | None) -> None:
    """Closed for as long as the provider says, else 1, 2, 4 .. s."""
    asked_s = _wait(retry_after_s)
    backoff_s = min(2.0 ** min(door.refusals, 10), CLOSED_CAP_S)
    door.opens_s = max(door.opens_s, now_s + (backoff_s if asked_s is None else asked_s))
    door.refusals += 1


def _wait(retry_after_s: float | None) -> float | None:
    if retry_after_s is None or not (math.isfinite(retry_after_s) and retry_after_s >= 0):
        return None
    return min(retry_after_s, CLOSED_CAP_S)


def _while_closed(
    door: _Door, now_s: float, left_s: float, *, ok: bool, kind: str | None, retry_after_s: float | None
) -> None:
    # Calls have no names here; one that left after the closing, or the only one there is, can only be the probe.
    is_probe = door.probe_s is not None and (door.earlier == 0 or left_s >= (door.closed_s or 0.0))
    if not is_probe:  # it had left before; no word of one shortens what another was told
        door.earlier = max(0, door.earlier - 1)
        if kind == "rate" and (asked_s := _wait(retry_after_s)) is not None:
            door.opens_s = max(door.opens_s, now_s + asked_s)
        return
    door.probe_s = None
    if ok:
        door.closed_s, door.first_s, door.answered, door.refusals = None, None, False, 0
        door.limit = float(min(RESTART, door.ceiling))
    elif kind in _SLOWING:
        _refused(door, now_s, retry_after_s)
