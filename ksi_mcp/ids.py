"""Ids: short enough for a model to copy without a slip, random enough never to be met twice.

`<prefix>_<10 characters>` over an alphabet without look-alikes (Crockford's base 32, lower case): 50 random
bits, so 40 million ids give a chance of one in a million for any clash; a clash is refused by
the primary key, never overwritten.
"""

from __future__ import annotations

import base64
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

_LENGTH = 10
_RANDOM_BYTES = 7
_CROCKFORD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghjkmnpqrstvwxyz")


def new_id(prefix: str) -> str:
    """A fresh id, e.g. `a_7f3kq0m2xd`."""
    random = base64.b32encode(secrets.token_bytes(_RANDOM_BYTES))[:_LENGTH]
    return f"{prefix}_{random.translate(_CROCKFORD).decode()}"
