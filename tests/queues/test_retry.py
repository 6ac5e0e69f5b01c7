from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.errors import RETRYABLE_KINDS, ProviderErrorKind
from ksi_mcp.queues.retry import Again, GiveUp, decide

INFRA, TIMED_OUT = GiveUp(state="failed", error_class="infra"), GiveUp(state="timed_out", error_class="infra")


@pytest.mark.parametrize(
    ("kind", "failed", "retry_after_s", "spread", "expected"),
    [
        # The backoff doubles from 2 s; a spread of 0.5 is the middle of +-25 %.
        ("overload", 1, None, 0.5, Again(delay_s=2.0)),
        ("overload", 2, None, 0.5, Again(delay_s=4.0)),
        ("server", 3, None, 0.5, Again(delay_s=8.0)),
        ("transport", 4, None, 0.5, Again(delay_s=16.0)),
        ("rate", 1, None, 0.5, Again(delay_s=2.0)),  # without a word from the provider it is a failure like any other
        ("timeout", 2, None, 0.5, Again(delay_s=4.0)),
        ("overload", 1, None, 0.0, Again(delay_s=1.5)),  # 2 x 0.75
        ("overload", 1, None, 1.0, Again(delay_s=2.5)),  # 2 x 1.25
        ("timeout", 4, None, 1.0, Again(delay_s=20.0)),  # 16 x 1.25
        # The fifth failure is the last try.
        ("overload", 5, None, 0.5, INFRA),
        ("rate", 5, None, 0.5, INFRA),
        ("rate", 5, 1.0, 0.5, INFRA),  # nobody said for how long it has waited
        ("overload", 5, 1.0, 0.5, INFRA),
        ("transport", 6, None, 0.5, INFRA),
        ("timeout", 5, None, 0.5, TIMED_OUT),
        ("server", 99, None, 0.5, INFRA),
        # The provider's word is a lower bound, up to a minute, and is only ever lengthened.
        ("rate", 1, 10.0, 0.0, Again(delay_s=10.0)),
        ("rate", 1, 10.0, 1.0, Again(delay_s=12.5)),  # 10 x 1.25
        ("rate", 4, 1.0, 0.0, Again(delay_s=1.0)),  # it outranks the backoff of 16 s
        ("rate", 1, 0.0, 1.0, Again(delay_s=0.0)),
        ("overload", 1, 3600.0, 0.0, Again(delay_s=60.0)),
        ("overload", 1, 3600.0, 1.0, Again(delay_s=75.0)),  # 60 x 1.25
        ("overload", 1, -5.0, 0.5, Again(delay_s=2.0)),  # nonsense is no word
        ("overload", 2, float("nan"), 0.5, Again(delay_s=4.0)),
        ("overload", 3, float("inf"), 0.5, Again(delay_s=8.0)),
        # What another try cannot help, whatever it says.
        ("request", 1, None, 0.5, GiveUp(state="failed", error_class="task")),
        ("auth", 1, 5.0, 0.5, INFRA),
        ("bug", 1, None, 0.5, INFRA),
        ("budget", 1, 5.0, 0.5, GiveUp(state="failed", error_class="budget")),
        ("refused", 1, None, 0.5, GiveUp(state="failed", error_class="refused")),
    ],
)
def test_what_follows_a_failed_attempt(kind, failed, retry_after_s, spread, expected) -> None:
    assert decide(kind, failed_tries=failed, retry_after_s=retry_after_s, spread=spread) == expected


@pytest.mark.parametrize(
    ("kind", "failed", "retry_after_s", "waited_s", "expected"),
    [
        # A rate limit from 1 s to 60 s is an appointment: no try is used up for the first 600 s.
        ("rate", 1, 3.0, 0.0, Again(delay_s=3.0, counts=False)),
        ("rate", 5, 3.0, 30.0, Again(delay_s=3.0, counts=False)),
        ("rate", 5, 60.0, 599.9, Again(delay_s=60.0, counts=False)),
        ("rate", 1, 1.0, 0.0, Again(delay_s=1.0, counts=False)),
        # From then on it counts, and the turn has its five tries.
        ("rate", 1, 3.0, 600.0, Again(delay_s=3.0)),
        ("rate", 4, 3.0, 900.0, Again(delay_s=3.0)),
        ("rate", 5, 3.0, 600.0, INFRA),
        # Less than 1 s would be hammering, more than 60 s is a limit of the day and not of the minute.
        ("rate", 4, 0.9, 0.0, Again(delay_s=0.9)),
        ("rate", 5, 0.9, 0.0, INFRA),
        ("rate", 4, 60.1, 0.0, Again(delay_s=60.0)),
        ("rate", 5, 60.1, 0.0, INFRA),
        # What is no rate limit, or names no time, counts from the first.
        ("rate", 5, None, 0.0, INFRA),
        ("overload", 1, 3.0, 0.0, Again(delay_s=3.0)),
        ("overload", 5, 3.0, 0.0, INFRA),
        ("timeout", 5, 3.0, 0.0, TIMED_OUT),
        ("budget", 1, 3.0, 0.0, GiveUp(state="failed", error_class="budget")),
    ],
)
def test_a_rate_limit_that_says_when_to_come_back_uses_up_no_try(
    kind, failed, retry_after_s, waited_s, expected
) -> None:
    given_s = {"retry_after_s": retry_after_s, "waited_s": waited_s}
    assert decide(kind, failed_tries=failed, spread=0.0, **given_s) == expected


@given(
    kind=st.sampled_from(get_args(ProviderErrorKind)),
    failed=st.integers(1, 10),
    retry_after_s=st.none() | st.floats(),
    spread=st.floats(0, 1),
    waited_s=st.floats(0, 10_000),
)
def test_no_retry_is_sooner_than_asked_nor_later_than_75_s_and_nothing_else_is_retried(
    kind, failed, retry_after_s, spread, waited_s
) -> None:
    verdict = decide(kind, failed_tries=failed, retry_after_s=retry_after_s, spread=spread, waited_s=waited_s)
    if kind not in RETRYABLE_KINDS:
        assert isinstance(verdict, GiveUp)
    elif isinstance(verdict, GiveUp):
        assert failed >= 5
    else:
        assert 0 <= verdict.delay_s <= 75  # 60 x 1.25
        if retry_after_s is not None and 0 <= retry_after_s <= 60:
            assert verdict.delay_s >= retry_after_s
