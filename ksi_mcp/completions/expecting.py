"""Whether the reply of a turn is what was asked for."""

from __future__ import annotations

import json

from ksi_mcp.agents.history import whole_text
from ksi_mcp.completions.expect import Expect, check, parse_expect
from ksi_mcp.completions.model import Loaded


def unexpected(item: Loaded, stop_reason: str, text: str) -> str | None:
    """What is wrong with a reply that is whole but not as expected, in words for the model; else None.

    `text` is that of the last round; what a pause had parted from it belongs to the reply.
    """
    asked = expected_of(item) if stop_reason in ("end_turn", "stop_sequence") else None
    if asked is None:
        return None
    paused = item.rounds and item.rounds[-1].stop_reason == "pause_turn"
    return check(asked, whole_text(item.rounds) + text if paused else text)


def expected_of(item: Loaded) -> Expect | None:
    """What the reply of a turn must be like: what it asks for itself, else what its agent's replies must be."""
    if item.turn.expect is not None:
        return parse_expect(json.loads(item.turn.expect))
    return None if item.agent.settings.expect is None else parse_expect(item.agent.settings.expect)
