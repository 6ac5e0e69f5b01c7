from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.completions.limiter import FAR_PACE_S, NEAR_PACE_S, UNLIMITED, Limits
from ksi_mcp.queues.retry import Again, decide
from ksi_mcp.testing import FakeClock


class Now(FakeClock):
    """Time that is set, not waited for."""

    def set(self, to_s: float) -> None:
        self._now_s = to_s


def limits_of(clock: Now, *, ceiling: int | None = 64, start: int = 8, near: bool = True) -> Limits:
    return Limits(clock, ceiling=lambda _: ceiling, start=start, near=lambda _: near)


def run(
    limits: Limits, clock: Now, outcome: str, *, latency_s: float = 1.0, retry_after_s: float | None = None
) -> None:
    """One call from start to end, `latency_s` later."""
    limits.started("p")
    clock.set(clock.monotonic_s() + latency_s)
    end(limits, outcome, latency_s=latency_s, retry_after_s=retry_after_s)


def end(limits: Limits, outcome: str, *, latency_s: float = 1.0, retry_after_s: float | None = None) -> None:
    ok = outcome == "ok"
    kind = None if outcome in ("ok", "cut off") else outcome
    limits.ended("p", ok=ok, kind=kind, latency_s=latency_s, retry_after_s=retry_after_s)


def wave(limits: Limits, clock: Now, outcome: str = "ok") -> int:
    """As many calls at once as may start, all of one second; how many those were."""
    size = limits.free("p")
    for _ in range(size):
        limits.started("p")
    assert limits.free("p") == 0
    clock.set(clock.monotonic_s() + 1)
    for _ in range(size):
        end(limits, outcome)
    return size


# -- how many at once -------------------------------------------------------------------------------


def test_the_limit_doubles_each_round_trip_up_to_its_ceiling_until_something_is_refused() -> None:
    clock = Now()
    limits = limits_of(clock)
    assert [wave(limits, clock) for _ in range(5)] == [8, 16, 32, 64, 64]


def test_an_overloaded_provider_is_cut_to_seventy_percent_once_for_a_crowd_and_then_grows_by_one() -> None:
    clock = Now()
    limits = limits_of(clock)
    assert [wave(limits, clock) for _ in range(2)] == [8, 16]
    assert wave(limits, clock, "overload") == 32
    assert wave(limits, clock) == 22  # 32 x 0.7 = 22.4, once, though all 32 were refused
    assert [wave(limits, clock) for _ in range(3)] == [23, 24, 25]  # + 1 a round trip


def test_there_is_at_most_one_cut_per_latency_however_fast_refusals_come() -> None:
    clock = Now()
    limits = limits_of(clock)
    wave(limits, clock)  # a latency of 1 s is known
    for _ in range(9):
        run(limits, clock, "overload", latency_s=0.1)
    assert limits.free("p") == 11  # 16 x 0.7 = 11.2 within that second
    for _ in range(3):
        run(limits, clock, "overload", latency_s=0.1)
    assert limits.free("p") == 7  # 11.2 x 0.7 = 7.84 in the next


def test_the_limit_never_falls_below_one() -> None:
    clock = Now()
    limits = limits_of(clock)
    for _ in range(30):
        run(limits, clock, "overload", latency_s=2)
    assert limits.free("p") == 1


def test_a_limit_that_nobody_uses_does_not_grow() -> None:
    clock = Now()
    limits = limits_of(clock)
    for _ in range(100):
        run(limits, clock, "ok")  # one at a time, of eight
    assert limits.free("p") == 8


@pytest.mark.parametrize("kind", ["request", "auth", "budget", "server", "transport", "timeout", "cut off"])
def test_what_is_no_sign_of_too_much_changes_no_limit_and_frees_its_place(kind: str) -> None:
    clock = Now()
    limits = limits_of(clock)
    run(limits, clock, kind)
    assert (limits.free("p"), limits.opens_at_s("p")) == (8, None)


def test_the_ceiling_holds_from_the_start_and_each_provider_has_its_own() -> None:
    limits = Limits(Now(), ceiling={"small": 3, "large": 100}.__getitem__)
    assert (limits.free("small"), limits.free("large")) == (3, 8)
    limits.started("small")
    assert (limits.free("small"), limits.free("large")) == (2, 8)


@pytest.mark.parametrize("ceiling", [None, UNLIMITED])
def test_a_provider_without_a_limit_is_never_held_back(ceiling: int | None) -> None:
    clock = Now()
    limits = limits_of(clock, ceiling=ceiling)
    for _ in range(1_000):
        limits.started("p")
    end(limits, "rate", retry_after_s=60)
    assert (limits.free("p"), limits.opens_at_s("p")) == (UNLIMITED, None)


# -- growing by silence ------------------------------------------------------------------------------


def answering(clock: Now, *, ceiling: int = 64, near: bool = True) -> Limits:
    """Of a provider that has answered a call."""
    limits = limits_of(clock, ceiling=ceiling, near=near)
    run(limits, clock, "ok")
    return limits


def fill(limits: Limits) -> int:
    """As many calls as may start, and they stay; how many those were."""
    size = limits.free("p")
    for _ in range(size):
        limits.started("p")
    return size


@pytest.mark.parametrize(("near", "pace_s"), [(True, NEAR_PACE_S), (False, FAR_PACE_S)])
def test_silence_doubles_a_limit_that_is_fully_used_an_eighth_of_the_way_at_a_time(near: bool, pace_s: float) -> None:
    clock = Now()
    limits = answering(clock, ceiling=512, near=near)
    began_s, in_flight = clock.monotonic_s(), [fill(limits)]
    while (grows_s := limits.grows_at_s("p")) is not None:
        assert limits.free("p") == 0
        assert clock.monotonic_s() < grows_s <= clock.monotonic_s() + pace_s
        clock.set(grows_s)
        in_flight.append(in_flight[-1] + fill(limits))
    assert in_flight[:6] == [8, 9, 10, 11, 12, 13]
    assert in_flight[-1] == 512
    assert all(after <= before * 1.2 for before, after in itertools.pairwise(in_flight))  # small waves, not one crowd
    assert clock.monotonic_s() - began_s == pytest.approx(6 * pace_s, rel=0.1)


def test_however_late_somebody_looks_silence_has_doubled_the_limit_once() -> None:
    clock = Now()
    limits = answering(clock)
    fill(limits)
    clock.set(clock.monotonic_s() + 1000)
    assert fill(limits) == 8
    assert limits.free("p") == 0


def test_silence_says_nothing_while_nobody_knows_whether_a_call_has_left_at_all() -> None:
    clock = Now()
    limits = limits_of(clock)
    fill(limits)
    clock.set(clock.monotonic_s() + 10)
    assert (limits.free("p"), limits.grows_at_s("p")) == (0, None)
    end(limits, "cut off")
    limits.started("p")
    clock.set(clock.monotonic_s() + 10)
    assert (limits.free("p"), limits.grows_at_s("p")) == (0, None)
    end(limits, "request")  # an answer, if not one to be glad of
    limits.started("p")
    assert limits.grows_at_s("p") is not None


def test_a_limit_that_is_not_fully_used_does_not_grow_by_silence() -> None:
    clock = Now()
    limits = answering(clock)
    for _ in range(7):
        limits.started("p")
    clock.set(clock.monotonic_s() + 1)
    assert (limits.free("p"), limits.grows_at_s("p")) == (1, None)


def test_the_end_of_a_call_begins_the_silence_anew() -> None:
    clock = Now()
    limits = answering(clock)
    fill(limits)
    clock.set(clock.monotonic_s() + 0.9 * NEAR_PACE_S)
    end(limits, "cut off")
    clock.set(clock.monotonic_s() + 0.2 * NEAR_PACE_S)
    limits.started("p")
    assert limits.free("p") == 0


@pytest.mark.parametrize("kind", ["overload", "server", "transport", "timeout"])
def test_the_first_failure_for_the_providers_sake_ends_the_growing_by_silence(kind: str) -> None:
    clock = Now()
    limits = answering(clock)
    fill(limits)
    end(limits, kind, latency_s=0.001)
    fill(limits)
    clock.set(clock.monotonic_s() + 10)
    assert (limits.free("p"), limits.grows_at_s("p")) == (0, None)


def test_a_refusal_while_others_are_under_way_tells_how_many_are_too_many() -> None:
    clock = Now()
    limits = answering(clock)
    fill(limits)
    grows_s = limits.grows_at_s("p")
    assert grows_s is not None
    clock.set(grows_s)
    assert fill(limits) == 1
    clock.set(grows_s + 0.002)
    end(limits, "rate", latency_s=0.002, retry_after_s=1)
    for _ in range(8):
        end(limits, "ok")
    clock.set(clock.monotonic_s() + 1)
    run(limits, clock, "ok")
    assert [wave(limits, clock) for _ in range(5)] == [2, 4, 7, 8, 9]  # doubles to 9 x 0.7, then one more each time


# -- closed until Retry-After -----------------------------------------------------------------------


def test_a_rate_limit_closes_the_provider_until_it_says_and_then_lets_one_call_through() -> None:
    clock = Now()
    limits = limits_of(clock)
    run(limits, clock, "rate", retry_after_s=5)
    closed_s = clock.monotonic_s()
    assert (limits.free("p"), limits.opens_at_s("p")) == (0, closed_s + 5)
    clock.set(closed_s + 4.9)
    assert limits.free("p") == 0
    clock.set(closed_s + 5)
    assert limits.free("p") == 1
    limits.started("p")
    assert limits.free("p") == 0
    clock.set(closed_s + 6)
    assert limits.free("p") == 0  # the probe has not come back
    end(limits, "rate", retry_after_s=3)
    assert limits.opens_at_s("p") == closed_s + 9
    clock.set(closed_s + 9)
    run(limits, clock, "ok")
    assert (limits.free("p"), limits.opens_at_s("p")) == (2, None)


def test_after_a_closing_the_limit_starts_small_and_doubles_to_where_it_was_cut() -> None:
    clock = Now()
    limits = limits_of(clock)
    assert [wave(limits, clock) for _ in range(2)] == [8, 16]
    for _ in range(32):
        limits.started("p")
    clock.set(clock.monotonic_s() + 1)
    for _ in range(32):
        end(limits, "rate", retry_after_s=1)
    clock.set(clock.monotonic_s() + 1)
    run(limits, clock, "ok")
    # Twice as many each time up to 32 x 0.7 = 22.4, where the last whole step ends at 23; then one more a round trip.
    assert [wave(limits, clock) for _ in range(6)] == [2, 4, 8, 16, 23, 24]


def test_a_refusal_before_any_answer_says_nothing_of_how_many_are_too_many() -> None:
    clock = Now()
    limits = limits_of(clock)
    run(limits, clock, "rate", retry_after_s=1)
    clock.set(clock.monotonic_s() + 1)
    run(limits, clock, "ok")
    assert [wave(limits, clock) for _ in range(5)] == [2, 4, 8, 16, 32]


def test_without_a_word_from_the_provider_the_closing_doubles_up_to_a_minute() -> None:
    clock = Now()
    limits = limits_of(clock)
    closed = []
    for _ in range(8):
        run(limits, clock, "rate", retry_after_s=None)
        opens_s = limits.opens_at_s("p")
        assert opens_s is not None
        closed.append(opens_s - clock.monotonic_s())
        clock.set(opens_s)
    assert closed == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("said", "closed_s"), [(3600.0, 60), (float("inf"), 1), (float("nan"), 1), (-1.0, 1), (0.0, 0)]
)
def test_a_long_retry_after_is_capped_and_a_nonsense_one_is_none(said: float, closed_s: float) -> None:
    clock = Now()
    limits = limits_of(clock)
    run(limits, clock, "rate", retry_after_s=said)
    assert limits.opens_at_s("p") == clock.monotonic_s() + closed_s


def test_calls_that_had_left_before_the_closing_are_not_taken_for_the_probe() -> None:
    clock = Now()
    limits = limits_of(clock)
    for _ in range(4):
        limits.started("p")
    clock.set(clock.monotonic_s() + 1)
    end(limits, "rate", retry_after_s=2)
    closed_s = clock.monotonic_s()
    end(limits, "rate", retry_after_s=4)  # of the same crowd; its word counts as well
    assert limits.opens_at_s("p") == closed_s + 4
    clock.set(closed_s + 4)
    limits.started("p")  # the probe
    clock.set(closed_s + 5)
    end(limits, "ok", latency_s=6)  # had left before
    assert (limits.free("p"), limits.opens_at_s("p") is not None) == (0, True)
    end(limits, "ok", latency_s=1)
    assert limits.opens_at_s("p") is None


@pytest.mark.parametrize("outcome", ["cut off", "transport", "request"])
def test_a_probe_that_finds_nothing_out_leaves_its_place_to_the_next(outcome: str) -> None:
    clock = Now()
    limits = limits_of(clock)
    run(limits, clock, "rate", retry_after_s=1)
    clock.set(clock.monotonic_s() + 1)
    run(limits, clock, outcome)
    assert limits.free("p") == 1
    assert limits.opens_at_s("p") is not None


def test_a_probe_that_was_forgotten_does_not_keep_the_provider_closed_for_ever() -> None:
    clock = Now()
    limits = limits_of(clock)
    run(limits, clock, "rate", retry_after_s=1)
    clock.set(clock.monotonic_s() + 1)
    limits.started("p")
    assert limits.opens_at_s("p") == clock.monotonic_s() + 600
    clock.set(clock.monotonic_s() + 600)
    assert limits.free("p") == 1
    limits.started("p")
    assert limits.free("p") == 0


outcomes = st.sampled_from(["ok", "rate", "overload", "server", "cut off"])
steps = st.lists(
    st.tuples(outcomes, st.floats(0, 5), st.none() | st.floats(0, 9), st.floats(0, 3)), min_size=1, max_size=60
)


@given(steps=steps, ceiling=st.integers(1, 40), start=st.integers(1, 50))
def test_whatever_happens_no_more_than_the_ceiling_leave_and_one_while_closed(steps, ceiling: int, start: int) -> None:
    clock = Now()
    limits = limits_of(clock, ceiling=ceiling, start=start)
    under_way: list[float] = []
    for outcome, latency_s, retry_after_s, pause_s in steps:
        free = limits.free("p")
        closed = limits.opens_at_s("p") is not None
        assert 0 <= free <= (1 if closed else ceiling)
        for _ in range(free):
            limits.started("p")
            under_way.append(clock.monotonic_s())
        assert len(under_way) <= ceiling + 1  # a probe may join those that had left before
        assert limits.free("p") == 0
        clock.set(clock.monotonic_s() + pause_s)
        if under_way:
            left_s = under_way.pop(int(latency_s) % len(under_way))
            end(limits, outcome, latency_s=clock.monotonic_s() - left_s, retry_after_s=retry_after_s)


# -- simulations: agents, a provider, and time that jumps from event to event ------------------------

Provider = Callable[[float, int], tuple[str, float, float | None]]
"""(now_s, in flight with this one) -> (outcome, latency_s, retry_after_s)"""


@dataclass
class Story:
    """What became of a crowd of turns that each want one answer."""

    requests: int = 0
    refused: int = 0
    answered: int = 0
    given_up: int = 0
    took_s: float = 0.0
    refused_by_turn: dict[int, int] = field(default_factory=dict)


def play(
    turns: int, provider: Provider, *, ceiling: int = 64, seed: int = 1, near: bool = True, answers: bool = False
) -> Story:
    clock, spread = Now(0), random.Random(seed)
    limits = answering(clock, ceiling=ceiling, near=near) if answers else limits_of(clock, ceiling=ceiling, near=near)
    began_s = clock.monotonic_s()
    story, order = Story(), itertools.count()
    ready: list[tuple[float, int]] = [(began_s, turn) for turn in range(turns)]  # (not before, turn)
    ending: list[tuple[float, int, int, float, str, float | None]] = []
    tries: dict[int, int] = {}
    first_s: dict[int, float] = {}
    while ready or ending:
        now_s = clock.monotonic_s()
        while ready and ready[0][0] <= now_s and limits.free("p") > 0:
            _, turn = heapq.heappop(ready)
            limits.started("p")
            story.requests += 1
            first_s.setdefault(turn, now_s)
            outcome, latency_s, retry_after_s = provider(now_s, len(ending) + 1)
            heapq.heappush(ending, (now_s + latency_s, next(order), turn, now_s, outcome, retry_after_s))
        times = [ending[0][0]] if ending else []
        if ready and limits.free("p") > 0:
            times.append(ready[0][0])
        elif ready and (opens_s := limits.opens_at_s("p")) is not None:
            times.append(max(opens_s, ready[0][0]))
        elif ready and (grows_s := limits.grows_at_s("p")) is not None:
            times.append(max(grows_s, ready[0][0]))
        clock.set(max(now_s, min(times)))
        while ending and ending[0][0] <= clock.monotonic_s():
            at_s, _, turn, left_s, outcome, retry_after_s = heapq.heappop(ending)
            end(limits, outcome, latency_s=at_s - left_s, retry_after_s=retry_after_s)
            if outcome == "ok":
                story.answered += 1
                continue
            story.refused += 1
            verdict = decide(
                "rate",
                failed_tries=tries.get(turn, 0) + 1,
                retry_after_s=retry_after_s,
                spread=spread.random(),
                waited_s=at_s - first_s[turn],
            )
            if isinstance(verdict, Again):
                tries[turn] = tries.get(turn, 0) + verdict.counts
                heapq.heappush(ready, (at_s + verdict.delay_s, turn))
            else:
                story.given_up += 1
        story.took_s = clock.monotonic_s() - began_s
    return story


@pytest.mark.parametrize("retry_after_s", [0.1, None])
def test_a_provider_that_takes_eight_at_once_refuses_few_of_three_hundred_calls(retry_after_s: float | None) -> None:
    dice = random.Random(7)

    def eight_at_once(now_s: float, in_flight: int) -> tuple[str, float, float | None]:
        return ("ok", dice.uniform(0.06, 0.11), None) if in_flight <= 8 else ("rate", 0.002, retry_after_s)

    story = play(300, eight_at_once)
    assert (story.answered, story.given_up) == (300, 0)
    assert story.refused <= 30  # sixty-four at once, whatever the answer, was refused 870 times


def test_a_provider_far_away_that_takes_eight_at_once_refuses_few_before_the_first_refusal_is_heard() -> None:
    dice = random.Random(7)

    def eight_at_once(now_s: float, in_flight: int) -> tuple[str, float, float | None]:
        return ("ok", dice.uniform(1, 3), None) if in_flight <= 8 else ("rate", 0.15, 1.0)

    story = play(300, eight_at_once, near=False, answers=True)
    assert (story.answered, story.given_up) == (300, 0)
    assert story.refused <= 30


def test_five_hundred_and_twelve_calls_of_a_second_take_little_more_than_a_second_at_a_provider_that_answers() -> None:
    story = play(512, lambda _now_s, _in_flight: ("ok", 1.0, None), ceiling=512, answers=True)
    assert (story.answered, story.refused) == (512, 0)
    assert story.took_s <= 1.2  # 7 s if only round trips counted


@pytest.mark.parametrize("seed", range(5))
def test_ninety_seven_agents_against_half_a_minute_of_refusals_cost_half_as_many_requests_again_at_most(
    seed: int,
) -> None:
    dice = random.Random(seed)

    def shut_for_30_s(now_s: float, in_flight: int) -> tuple[str, float, float | None]:
        return ("rate", 0.01, dice.uniform(2, 5)) if now_s < 30 else ("ok", dice.uniform(0.5, 2), None)

    story = play(97, shut_for_30_s, seed=seed)
    assert (story.answered, story.given_up) == (97, 0)
    assert story.requests <= 1.5 * 97
    assert story.took_s < 60


def test_one_agent_alone_outlasts_half_a_minute_of_refusals() -> None:
    def shut_for_30_s(now_s: float, in_flight: int) -> tuple[str, float, float | None]:
        return ("rate", 0.01, 2.0) if now_s < 30 else ("ok", 1.0, None)

    story = play(1, shut_for_30_s)
    assert (story.answered, story.given_up) == (1, 0)
    assert story.requests <= 16


def test_a_limit_of_requests_per_minute_is_used_up_and_then_waited_for() -> None:
    served: list[float] = []

    def fifty_a_minute(now_s: float, in_flight: int) -> tuple[str, float, float | None]:
        minute = [at_s for at_s in served if at_s > now_s - 60]
        if len(minute) >= 50:
            return "rate", 0.01, minute[0] + 60 - now_s
        served.append(now_s)
        return "ok", 1.0, None

    story = play(200, fifty_a_minute)
    assert (story.answered, story.given_up) == (200, 0)
    assert story.requests <= 1.5 * 200
    assert story.took_s < 300  # 200 at 50 a minute take 180 s at best
