"""Which of its targets a rule delivers to, when it delivers to one of them."""

from __future__ import annotations

import json

from ksi_mcp.db import Tx
from ksi_mcp.routing.rules import Rule
from ksi_mcp.routing.targets import Target


def takers(tx: Tx, rule: Rule) -> dict[str, int]:
    """The agents among a rule's targets that take messages, and how many turns wait for each."""
    agents = rule.target.agents
    rows = tx.all("routing.loads", {"agent_ids": json.dumps(agents)}) if agents else ()
    return {row["agent_id"]: row["pending"] for row in rows}


def choose(tx: Tx, rule: Rule) -> Target | None:
    """Whose turn it is, or who has the least to do, in the order of the rule; None: none of them takes messages."""
    targets, loads = rule.target, takers(tx, rule)
    able = [target for target in targets if target.kind == "event" or target.name in loads]
    if not able:
        return None
    if targets.mode == "round_robin":
        return _next(tx, rule, able)
    idle = [target for target in able if loads[target.name] == 0]
    if targets.mode == "first_idle" and idle:
        return idle[0]
    return min(able, key=lambda target: loads[target.name])


def take_turn(tx: Tx, rule: Rule, target: Target) -> None:
    """Keep in mind that it was that one's turn."""
    if rule.target.mode == "round_robin":
        tx.run("routing.take_turn", {"rule_id": rule.rule_id, "turn": rule.target.each.index(target) + 1})


def _next(tx: Tx, rule: Rule, able: list[Target]) -> Target:
    """The first after the last one served, in the order of the rule, that can be served."""
    row = tx.one("routing.state", {"rule_id": rule.rule_id})
    every = rule.target.each
    begin = 0 if row is None else row["turn"] % len(every)
    return next(target for target in (*every[begin:], *every[:begin]) if target in able)
