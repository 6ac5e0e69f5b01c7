"""What deliveries of a replay run on: a store in memory, and the agents and runs as the log has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from ksi_mcp.db import Row, Tx
from ksi_mcp.routing.recording import AgentFacts, Recording
from ksi_mcp.routing.targets import AGENT

_WRITTEN_DOWN_ELSEWHERE = frozenset({"routing.stat"})


class Loads:
    """Which turns wait for which agents."""

    def __init__(self) -> None:
        self._turns: dict[str, set[str]] = {}
        self._owner: dict[str, str] = {}

    def add(self, agent_id: str, ref: str) -> None:
        """A turn was put in."""
        if ref not in self._owner:
            self._owner[ref] = agent_id
            self._turns.setdefault(agent_id, set()).add(ref)

    def done(self, ref: str) -> None:
        """A turn has ended, or never was."""
        agent_id = self._owner.get(ref)
        if agent_id is not None:
            self._turns[agent_id].discard(ref)

    def of(self, agent_id: str) -> int:
        """How many wait."""
        return len(self._turns.get(agent_id, ()))


class ScratchTx:
    """A transaction of the store in memory, at a moment of the recording.

    Contract: nothing of the real store is behind it. Agents and runs are answered from the recording: an agent is
    there until its recorded end, also before it was made, so that one can ask how it would have been with it.
    """

    def __init__(self, tx: Tx, recording: Recording) -> None:
        self.now_ms = 0
        self.loads = Loads()
        self.proven: str | None = None
        """An agent that the log shows to have taken the delivery at hand."""
        self.chosen: str | None = None
        """Whom the log shows to have been chosen by load for the delivery at hand."""
        self._tx = tx
        self._agents = recording.agents
        self._depths = recording.depths
        self._families = recording.families
        self._answers: Mapping[str, Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]] = {
            "agents.is_below": self._is_below,
            "routing.agent": self._agent,
            "routing.orchestration": self._orchestration,
            "routing.loads": self._loads,
            "routing.cause_event": lambda _values: (),
            "routing.cause_turn": lambda _values: (),
        }
        for agent_id, turns in recording.pending.items():
            for ref in turns:
                self.loads.add(agent_id, ref)
        for root_id, deliveries in recording.spent.items():
            tx.run("routing.replay_spend", {"root_id": root_id, "deliveries": deliveries})

    def run(self, name: str, params: dict[str, Any] | None = None, /) -> int:
        """Run a statement; the number of rows it changed."""
        return 0 if name in _WRITTEN_DOWN_ELSEWHERE else self._tx.run(name, params)

    def one(self, name: str, params: dict[str, Any] | None = None, /) -> Row | None:
        """The first row, or None."""
        if name in self._answers:
            rows = self.all(name, params)
            return rows[0] if rows else None
        return self._tx.one(name, params)

    def all(self, name: str, params: dict[str, Any] | None = None, /) -> Sequence[Row]:
        """Every row."""
        answer = self._answers.get(name)
        return self._tx.all(name, params) if answer is None else cast("Sequence[Row]", answer(params or {}))

    def announce(self, note: object, /) -> None:
        """Nobody listens."""

    def agent(self, agent_id: str) -> AgentFacts | None:
        """Who that is."""
        return self._agents.get(agent_id)

    def name_of(self, agent_id: str) -> str | None:
        """The name of an agent."""
        agent = self._agents.get(agent_id)
        return None if agent is None else agent.name

    def _lives(self, agent: AgentFacts) -> bool:
        ended = agent.ended_at_ms
        return ended is None or self.now_ms < ended or AGENT + agent.agent_id == self.proven

    def _agent(self, values: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        agent = self._agents.get(values["agent_id"])
        if agent is None:
            return ()
        facts = {"agent_id": agent.agent_id, "name": agent.name, "orchestration_id": agent.orchestration_id}
        return ({**facts, "status": "active" if self._lives(agent) else "terminated"},)

    def _is_below(self, values: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        family = self._families.get(values["elder_id"], frozenset())
        return ({"agent_id": values["elder_id"]},) if values["agent_id"] in family else ()

    def _orchestration(self, values: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        depth = self._depths.get(values["orchestration_id"])
        return () if depth is None else ({"state": "running", "max_depth": depth},)

    def _loads(self, values: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        wanted: list[str] = json.loads(values["agent_ids"])
        if self.chosen in wanted:  # the log knows better than any count
            return ({"agent_id": self.chosen, "pending": 0},)
        known = (self._agents.get(agent_id) for agent_id in wanted)
        return [
            {"agent_id": agent.agent_id, "pending": self.loads.of(agent.agent_id)}
            for agent in known
            if agent is not None and self._lives(agent)
        ]
