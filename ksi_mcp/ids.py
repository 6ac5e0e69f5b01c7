"""Ids: short enough for a model to copy without a slip, random enough never to be met twice.

`<prefix>_<10 characters>` over an alphabet without look-alikes (Crockford's base 32, lower case): 50 random
bits, so 40 million ids give a chance of one in a million for any clash; a clash is refused by
the primary key, never overwritten.
"""

from __future__ import annotations

import secrets
from typing import NewType

AgentId = NewType("AgentId", str)
TurnId = NewType("TurnId", str)
OrchestrationId = NewType("OrchestrationId", str)
RuleId = NewType("RuleId", str)
DecisionId = NewType("DecisionId", str)
AccountId = NewType("AccountId", str)
HoldId = NewType("HoldId", str)
RootId = NewType("RootId", str)
WorkerId = NewType("WorkerId", str)
EventId = NewType("EventId", int)

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]


def new_id(prefix: str) -> str:
    """A fresh id, e.g. `a_7f3kq0m2xd`."""
    bits = secrets.randbits(50)
    pairs = (_PAIRS[bits >> shift & 1023] for shift in (40, 30, 20, 10, 0))
    return f"{prefix}_{''.join(pairs)}"
