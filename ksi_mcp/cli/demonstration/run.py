"""The client's part of `ksi-mcp demo`: it follows the strategy of `adaptive_tournament` by tool calls.

Only the client's decisions are written down here. What came of them is asked of the server in `facts.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any, Final

from ksi_mcp.errors import Conflict
from ksi_mcp.transports.stdio_client import ToolClient

PATTERN: Final = "adaptive_tournament"
MODEL: Final = "claude-haiku-5-5"
"""Its price is known, so the budget in dollars is a real one."""
TASK: Final = "A customer taps Pay twice on a bad connection. The card must be charged once."
RUN_BUDGET: Final = {"usd": 1.0, "turns": 40}
TINY_BUDGET: Final = {"usd": 0.0005}
"""Less than a call can cost at worst, so that it is refused before it leaves."""
FIELD: Final = ("contestant_direct", "contestant_inventive", "contestant_rigorous")
PATIENCE_S: Final = 20.0

Say = Callable[[str, str], None]
"""Told after each step: the tool that was called, and what came of it."""


class Evidence:
    """What tool calls returned on the way, for the facts that are gathered at the end."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.started: dict[str, Any] = {}
        self.ids: dict[str, str] = {}
        self.rules: list[dict[str, Any]] = []
        self.solutions: dict[str, str] = {}
        self.table: dict[str, int] = {}
        self.decision: dict[str, Any] = {}
        self.fork: dict[str, Any] = {}
        self.ended: dict[str, Any] = {}

    @property
    def run(self) -> str:
        """The id of the run."""
        return str(self.started["orchestration"])


async def tournament(client: ToolClient, say: Say) -> Evidence:
    """One round of the tournament, from finding the pattern to completing the run.

    Raises:
        ToolFailed: a tool answered with an error.
        Conflict: something that the strategy awaits did not come.
    """
    tour = _Tournament(client, say)
    await tour.begin()
    opened = await tour.open_round()
    await tour.overspend()
    await tour.collect_entries(opened)
    await tour.ask_critic()
    results = await tour.play(list(combinations(FIELD, 2)), first=1)
    await tour.rematch(results)
    await tour.tell_losers()
    await tour.settle()
    await tour.learn()
    await tour.complete()
    return tour.evidence


class _Tournament:
    def __init__(self, client: ToolClient, say: Say) -> None:
        self._call = client.call
        self._command = client.command
        self._say = say
        self._feedback: dict[str, str] = {}
        self.evidence = Evidence()

    # ------------------------------------------------------------------------------- the strategy

    async def begin(self) -> None:
        """Find the pattern by what it is for, read it, start it under a budget."""
        found = await self._call("composition_discover", type="orchestration", text="tournament")
        names = [head["name"] for head in found["compositions"]]
        self._say("composition_discover", f"{found['total']} found: {', '.join(names)}"[:90])
        read = await self._call("composition_get", name=PATTERN)
        lines = read["document"]["orchestration_logic"]["strategy"].rstrip().count("\n") + 1
        self._say("composition_get", f"{read['name']} {read['version']}: {lines} lines of strategy to follow")
        self.evidence.found = {"name": read["name"], "version": read["version"], "hash": read["hash"]}
        started = await self._call(
            "orchestration_start",
            pattern=PATTERN,
            vars={"task": TASK, "criteria": "never two charges, also after a crash", "matches_to_decide": 2},
            budget=RUN_BUDGET,
            model=MODEL,
        )
        self.evidence.started = started
        self.evidence.ids = {agent["name"]: agent["agent"] for agent in started["agents"]}
        budget = started["budget"]
        self._say(
            "orchestration_start",
            f"{started['orchestration']}: {len(started['agents'])} agents, {len(started['rules'])} rules, "
            f"at most ${budget['limit_usd']:g} and {budget['limit_turns']} turns",
        )

    async def open_round(self) -> int:
        """EMIT the round: all contestants hear it. Returns the event's id."""
        emitted = await self._call(
            "event_emit",
            event="tournament:round",
            data={"round": 1, "task": TASK, "what_to_improve": ""},
            orchestration=self.evidence.run,
        )
        self._say("event_emit", f"tournament:round goes to {emitted['delivered']} agents")
        return int(emitted["event_id"])

    async def overspend(self) -> None:
        """A second opinion that may cost next to nothing: its budget forbids the call."""
        spawned = await self._spawn(
            "bargain",
            prompt="You give a second opinion.",
            capabilities=["base"],
            budget=TINY_BUDGET,
            message=f"What do you think of this task? {TASK}",
        )
        gathered = await self._call("agent_wait", turns=[spawned["turn"]], timeout_s=PATIENCE_S)
        turn = gathered["turns"][0]
        why = f" ({turn['error_class']})" if turn.get("error_class") else ""
        self._say("agent_wait", f"bargain, with ${TINY_BUDGET['usd']:g} to spend: {turn['status']}{why}")

    async def collect_entries(self, opened: int) -> None:
        """AWAIT an entry of everybody in the field."""
        events = await self._await("tournament:entry", len(FIELD), since=opened)
        names = {f"agent:{agent}": name for name, agent in self.evidence.ids.items()}
        self.evidence.solutions = {names[event["source"]]: event["data"]["solution"] for event in events}
        self._say("event_wait", f"{len(events)} entries, the last from {names[events[-1]['source']]}")

    async def ask_critic(self) -> None:
        """SPAWN an agent that may change the routing; what it finds must have reached the judge before any match."""
        spawned = await self._spawn(
            "critic",
            prompt="You look for the risk that all solutions share, and see to it that the judge hears of it.",
            capabilities=["base", "routing_control"],
            routing={"routing_level": "orchestration"},
            message={"review:solutions": list(self.evidence.solutions.values())},
        )
        gathered = await self._call("agent_wait", turns=[spawned["turn"]], timeout_s=PATIENCE_S)
        self._say("agent_wait", f"critic: {gathered['turns'][0].get('text') or gathered['turns'][0]['status']}"[:90])
        heard = await self._call("agent_wait", agents=["judge"], timeout_s=PATIENCE_S)
        self._say("agent_wait", f"judge: {heard['turns'][0].get('text') or heard['turns'][0]['status']}"[:90])

    async def play(self, pairs: list[tuple[str, str]], *, first: int) -> list[dict[str, Any]]:
        """Let the judge compare; it sees solutions, never names. Returns the results in the order of the pairs."""
        solutions, since = self.evidence.solutions, 0
        for number, (a, b) in enumerate(pairs, first):
            match = {"match": f"1-{number}", "A": solutions[a], "B": solutions[b]}
            emitted = await self._call(
                "event_emit", event="tournament:match", data=match, orchestration=self.evidence.run
            )
            since = since or int(emitted["event_id"])
        arrived = await self._await("tournament:result", len(pairs), since=since)
        results = {str(event["data"]["match"]): event["data"] for event in arrived}
        ordered = [results[f"1-{number}"] for number in range(first, first + len(pairs))]
        for (a, b), result in zip(pairs, ordered, strict=True):
            winner, loser = (a, b) if result["winner"] == "A" else (b, a)
            self.evidence.table[winner] = self.evidence.table.get(winner, 0) + 1
            self._feedback[loser] = result["feedback"]["B" if result["winner"] == "A" else "A"]
            self._say("event_wait", f"match {result['match']}: {winner} beats {loser}")
        return ordered

    async def rematch(self, results: list[dict[str, Any]]) -> None:
        """The first two meet again with A and B exchanged, so that the position cannot have decided."""
        first, second = (name for name, _ in Counter(self.evidence.table).most_common(2))
        met = next(pair for pair in combinations(FIELD, 2) if set(pair) == {first, second})
        await self.play([(met[1], met[0])], first=len(results) + 1)

    async def tell_losers(self) -> None:
        """SEND each loser the judge's words for it, and nothing of the other's solution."""
        turns = [
            (await self._call("agent_send", agent=self.evidence.ids[name], message=f"tournament:feedback {text}"))[
                "turn"
            ]
            for name, text in self._feedback.items()
        ]
        gathered = await self._call("agent_wait", turns=turns, timeout_s=PATIENCE_S)
        self._say(
            "agent_wait", f"{gathered['census']['ok']} of {gathered['census']['asked']} losers have their feedback"
        )

    async def settle(self) -> None:
        """Wait until nothing is under way, and look at the rules while they live."""
        everybody = [agent for name, agent in self.evidence.ids.items() if name != "bargain"]
        gathered = await self._call("agent_wait", agents=everybody, timeout_s=PATIENCE_S)
        if gathered["census"]["pending"]:
            raise Conflict(f"{gathered['census']['pending']} turns of the demonstration did not end")
        found = await self._call("routing_query_rules", filter={"orchestration": self.evidence.run}, limit=200)
        self.evidence.rules = found["rules"]

    async def learn(self) -> None:
        """TRACK what was decided and why, and fork the pattern with what was learned."""
        insight = (await self._await("tournament:insight", 1))[-1]["data"]
        winner, wins = Counter(self.evidence.table).most_common(1)[0]
        self.evidence.decision = await self._call(
            "composition_track_decision",
            pattern=PATTERN,
            decision="winner",
            context={"table": self.evidence.table, "rounds": 1},
            reasoning=insight["pattern"],
            confidence=insight["confidence"],
            outcome=winner.removeprefix("contestant_"),
            score=wins / sum(self.evidence.table.values()),
            orchestration=self.evidence.run,
        )
        self._say("composition_track_decision", f"{self.evidence.decision['decision_id']}: {winner}")
        taken = await self._call("composition_discover", type="orchestration", text=f"{PATTERN}_demo", limit=100)
        names = {head["name"] for head in taken["compositions"]}
        number = next(n for n in range(1, taken["total"] + 2) if f"{PATTERN}_demo_{n}" not in names)
        self.evidence.fork = await self._call(
            "composition_fork",
            parent=PATTERN,
            name=f"{PATTERN}_demo_{number}",
            reason=insight["pattern"],
            modifications={"variables.criteria.default": "what a crash leaves behind first, then clarity"},
        )
        self._say("composition_fork", f"{self.evidence.fork['name']} from {self.evidence.fork['parent']}")

    async def complete(self) -> None:
        """COMPLETE with what the matches say."""
        winner, wins = Counter(self.evidence.table).most_common(1)[0]
        matches = sum(self.evidence.table.values())
        self.evidence.ended = await self._call(
            "orchestration_complete",
            orchestration=self.evidence.run,
            outcome="success",
            score=round(wins / matches, 2),
            metrics={"rounds": 1, "matches": matches, "wins": self.evidence.table},
            summary=self.evidence.solutions[winner],
        )
        self._say("orchestration_complete", f"{self.evidence.ended['state']}: {self.evidence.ended['outcome']}")

    # ------------------------------------------------------------------------------------- helpers

    async def _spawn(self, name: str, **more: Any) -> dict[str, Any]:
        spawned = await self._call("agent_spawn", name=name, model=MODEL, orchestration=self.evidence.run, **more)
        self.evidence.ids[name] = spawned["agent"]
        self._say("agent_spawn", f"{name}, who may: {', '.join(spawned['capabilities'])}")
        return spawned

    async def _await(self, name: str, count: int, *, since: int = 0) -> list[dict[str, Any]]:
        """AWAIT EVENT: `count` events of the run, oldest first."""
        waited = await self._command(
            "event:wait",
            names=[name],
            orchestration=self.evidence.run,
            since=since,
            min_count=count,
            timeout_s=PATIENCE_S,
        )
        if not waited["complete"]:
            raise Conflict(f"only {waited['arrived']} of {count} events {name} came within {PATIENCE_S:g} s")
        events: list[dict[str, Any]] = waited["events"]
        return events
