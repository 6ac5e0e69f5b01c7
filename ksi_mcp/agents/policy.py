"""What becomes of a prompt whose turn was lost for good. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

from ksi_mcp.errors import Invalid

OnFailure = Literal["none", "retry", "respawn", "redistribute", "escalate"]
ON_FAILURE: tuple[str, ...] = get_args(OnFailure)
MAX_RESCUES = 2
"""How often a prompt is taken up again, unless somebody says otherwise."""
MOST_RESCUES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is done when a turn ends with class `infra`, and how often for one prompt.

    `retry` its agent gets the prompt again, before all that wait · `respawn` a new agent takes the place of the old
    one · `redistribute` another agent of the same composition gets it, and what waits with it · `escalate` it is
    parked for a person or a client to answer.
    """

    on_failure: OnFailure = "none"
    most: int = MAX_RESCUES


def policy_of(value: object) -> Policy:
    """A policy as a composition writes it: a word, or a mapping of `on_failure` and `max`.

    Raises:
        Invalid: it is neither; what was wrong is named.
    """
    if isinstance(value, str):
        return Policy(on_failure=_word(value))
    if not isinstance(value, dict):
        raise Invalid(f"supervision is {str(value)[:60]!r}", hint=f"write one of {', '.join(ON_FAILURE)}")
    if unknown := sorted(str(key)[:40] for key in set(value) - {"on_failure", "max"}):
        raise Invalid(f"supervision has no {', '.join(unknown[:5])}", hint="there are on_failure and max")
    most = value.get("max", MAX_RESCUES)
    if isinstance(most, bool) or not isinstance(most, int) or not 0 <= most <= MOST_RESCUES:
        raise Invalid(f"supervision max is {str(most)[:40]!r}", hint=f"it goes from 0 to {MOST_RESCUES}")
    return Policy(on_failure=_word(value.get("on_failure", "none")), most=most)


def _word(value: object) -> OnFailure:
    if value not in ON_FAILURE:
        raise Invalid(f"supervision is {str(value)[:60]!r}", hint=f"there are {', '.join(ON_FAILURE)}")
    return cast("OnFailure", value)
