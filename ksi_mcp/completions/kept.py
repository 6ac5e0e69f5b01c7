"""Conversations that the worker has in memory, so that a turn need not read again what the one before it has read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from ksi_mcp.agents.history import PastTurn, Round, tokens_bound
from ksi_mcp.agents.model import Agent
from ksi_mcp.completions.model import Loaded

MAX_SESSIONS = 1_000
MAX_SESSION_BYTES = 64 * 1024
"""Of a conversation that is kept; a longer one is read anew, which costs little beside its turns."""


def remembered(agent: Agent) -> int:
    """How many finished turns of an agent can be of use to its next one."""
    return agent.settings.context_messages // 2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    changes: int
    limit: int
    turns: list[PastTurn]
    size: int
    """Of the turns, and of some that were left out since it was counted; in bytes, as `tokens_bound` counts."""


class Kept:
    """The conversations that this process carried on last.

    Each change of a conversation, by whatever process, counts up `session.changes` in its transaction; what is kept
    is used only while nothing but the kept turn's own end has been counted. So it is what the store would give.
    `get` may run in the database's thread, `put` in the loop's.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, _Kept] = {}

    def get(self, agent: Agent) -> list[PastTurn] | None:
        """What was said before, oldest first, as `past_turns` would give it; None if it has to be read."""
        kept = self._sessions.get(agent.agent_id)
        if kept is None or kept.changes != agent.changes or kept.limit != remembered(agent):
            return None
        return kept.turns

    def put(self, item: Loaded, answer: Round) -> None:
        """Keep the conversation of a turn that has ended with this answer."""
        agent, limit = item.agent, remembered(item.agent)
        before = self._sessions.pop(agent.agent_id, None)
        turns = [*item.earlier, replace(item.now, rounds=(*item.rounds, answer))]
        if any(after.seq <= before.seq for before, after in pairwise(turns)):
            return  # some overtook others: which of them are the newest, the store says
        new = turns[-1:]
        turns = turns[-limit:]
        size = _size(turns) if before is None or before.turns is not item.earlier else before.size + _size(new)
        if size > MAX_SESSION_BYTES and (size := _size(turns)) > MAX_SESSION_BYTES:
            return
        self._sessions[agent.agent_id] = _Kept(changes=agent.changes + 1, limit=limit, turns=turns, size=size)
        if len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]


def _size(turns: list[PastTurn]) -> int:
    return sum(tokens_bound(turn.messages) for turn in turns)
