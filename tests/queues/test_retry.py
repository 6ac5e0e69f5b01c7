from __future__ import annotations

import pytest

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
        ("overload", 1, None, 0.0, Again(delay_s=1.5)),  # 2 x 0.75
        ("overload", 1, None, 1.0, Again(delay_s=2.5)),  # 2 x 1.25
        ("timeout", 4, None, 1.0, Again(delay_s=20.0)),  # 16 x 1.25
        # The fifth failure is the last try.
        ("overload", 5, None, 0.5, INFRA),
        ("rate", 5, 1.0, 0.5, INFRA),
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
