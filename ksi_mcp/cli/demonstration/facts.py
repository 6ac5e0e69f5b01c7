"""What a demonstration shows, as the server and the simulator recorded it, and what of it is missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ksi_mcp.cli.demonstration.run import FIELD, MODEL, PATTERN, Evidence

if TYPE_CHECKING:
    from ksi_mcp.transports.stdio_client import ToolClient
    from ksi_mcp.web.sim import SimRequest

OVERLOADED: Final = 529
LEAST_AGENTS: Final = 4
LEAST_AT_ONCE: Final = 2


async def gather_facts(
    client: ToolClient, evidence: Evidence, log: Sequence[SimRequest], *, most_at_once: int
) -> dict[str, Any]:
    """Ask the server for everything it recorded of the run, and put the simulator's log beside it."""
    events = await _events(client, evidence.run)
    turns = await _turns(client, events)
    names = {agent: name for name, agent in evidence.ids.items()}
    decisions = await client.command("decision:query", pattern=PATTERN, limit=20)
    decision_id = evidence.decision["decision_id"]
    fork = await client.call("composition_get", name=evidence.fork["name"])
    status = await client.call("orchestration_status", orchestration=evidence.run, events=0)
    return {
        "protocol": client.protocol_version,
        "model": MODEL,
        "pattern": evidence.found,
        "agents": _agents(evidence, turns, log),
        "turns": turns,
        "routes": _routes(events, names, evidence),
        "messages": _messages(events, names),
        "rules_by_agents": _rules_by_agents(evidence.rules, names),
        "budget": {**status["budget"], "calls_usd": round(sum(turn.get("cost_usd") or 0 for turn in turns), 6)},
        "calls": {
            "made": len(log),
            "answered": sum(call.outcome == "ok" for call in log),
            "refused": [
                {"agent": call.agent, "status": call.status, "turn": call.turn}
                for call in log
                if call.outcome == "error"
            ],
            "unscripted": sum(call.rule in ("default", "echo") for call in log),
            "most_at_once": most_at_once,
        },
        "retries": [
            {"agent": names.get(str(event["agent"])), **_only(event["data"], "turn", "kind", "delay_s", "error")}
            for event in _named(events, "completion:retrying")
        ],
        "denied": [
            {
                **_only(event["data"], "agent_name", "turn", "limit_kind", "reason"),
                **_turn_of(turns, event["data"]["turn"]),
            }
            for event in _named(events, "agent:budget_exceeded")
        ],
        "table": evidence.table,
        "decision": next((each for each in decisions["decisions"] if each["decision_id"] == decision_id), None),
        "fork": {
            **_only(fork, "name", "version", "hash", "layer"),
            **_only(fork["document"]["lineage"], "parent", "fork_reason"),
        },
        "outcome": _only(status, "orchestration", "state", "outcome", "score", "summary"),
        "agents_ended": evidence.ended["agents_ended"],
        "census": status["census"],
    }


def missing(facts: dict[str, Any]) -> list[str]:
    """What was promised and did not happen; each in a few words."""
    turns, calls, budget = facts["turns"], facts["calls"], facts["budget"]
    done = {turn["agent_name"] for turn in turns if turn["status"] == "done"}
    retried = [turn["turn"] for turn in turns if turn["status"] == "done" and (turn.get("attempts") or 1) > 1]
    by_agents = {rule["rule_id"]: rule["by"] for rule in facts["rules_by_agents"]}
    outcome, fork, decision = facts["outcome"], facts["fork"], facts["decision"] or {}
    happened = {
        f"at least {LEAST_AGENTS} agents take turns": len(done) >= LEAST_AGENTS,
        "every contestant takes its turn": set(FIELD) <= done,
        f"at least {LEAST_AT_ONCE} model calls under way at once": calls["most_at_once"] >= LEAST_AT_ONCE,
        "every call answered by the script": calls["unscripted"] == 0,
        "an overloaded API on the way": OVERLOADED in [call["status"] for call in calls["refused"]],
        "a retry that succeeds": any(
            retry["kind"] == "overload" and retry["turn"] in retried for retry in facts["retries"]
        ),
        "an agent adds a rule that brings an event of its own to another agent": any(
            by_agents.get(route["rule"]) == route["from"] != route["to"] for route in facts["routes"]
        ),
        "events reach agents by the pattern's rules": any(
            route["made_by"] == PATTERN and route["pattern"] for route in facts["routes"]
        ),
        "a turn denied by its budget": any(
            denied["error_class"] == "budget" and denied["limit_kind"] == "usd" and denied["cost_usd"] == 0
            for denied in facts["denied"]
        ),
        "no other turn fails": facts["census"]["asked"] - facts["census"]["ok"] == len(facts["denied"]),
        "money spent, within the budget": 0 < budget["spent_usd"] <= budget["limit_usd"],
        "every cost booked": budget["spent_usd"] == budget["calls_usd"] and budget["reserved_usd"] == 0,
        "a tracked decision": decision.get("decision") == "winner",
        "a fork with its lineage": str(fork.get("parent", "")).startswith(f"{PATTERN}@")
        and fork.get("layer") == "user",
        "a completed run with score and summary": outcome.get("state") == "completed"
        and outcome.get("score") is not None
        and bool(outcome.get("summary")),
        "no process left": not facts["left_running"],
    }
    return [promise for promise, kept in happened.items() if not kept]


async def _events(client: ToolClient, run: str) -> list[dict[str, Any]]:
    """All events of the run, oldest first."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    while True:
        page = await client.call("event_query", orchestration=run, limit=200, **cursor)
        found += page["events"]
        if page.get("cursor") is None:
            return found[::-1]
        cursor = {"cursor": page["cursor"]}


async def _turns(client: ToolClient, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every turn of the run that ended, in the order in which they ended."""
    ended = [event["data"]["turn"] for event in _named(events, "completion:result", "completion:failed")]
    gathered = await client.call("agent_wait", turns=ended, timeout_s=0)
    order = {turn: place for place, turn in enumerate(ended)}
    return sorted(gathered["turns"], key=lambda turn: order[turn["turn"]])


def _agents(evidence: Evidence, turns: list[dict[str, Any]], log: Sequence[SimRequest]) -> list[dict[str, Any]]:
    of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for turn in turns:
        of[turn["agent_name"]].append(turn)
    return [
        {
            "name": name,
            "turns": len(of[name]),
            "statuses": dict(Counter(turn["status"] for turn in of[name])),
            "attempts": sum(turn.get("attempts") or 1 for turn in of[name]),
            "calls": sum(call.agent == name for call in log),
            "tokens": sum(turn.get("tokens") or 0 for turn in of[name]),
            "cost_usd": round(sum(turn.get("cost_usd") or 0 for turn in of[name]), 6),
        }
        for name in evidence.ids
    ]


def _routes(events: list[dict[str, Any]], names: dict[str, str], evidence: Evidence) -> list[dict[str, Any]]:
    """What was delivered: event, from whom, to whom, how often, by which rule and whose rule that is."""
    sources = {event["event_id"]: event["source"] for event in events}
    known = {rule["rule_id"]: rule for rule in evidence.rules}
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for event in _named(events, "routing:delivered"):
        fact = event["data"]
        sender, target = _name(sources.get(fact["event_id"], "?"), names), _name(fact["target"], names)
        counts[fact["event"], sender, target, fact["rule_id"]] += 1
    routes = []
    for (event_name, sender, target, rule_id), times in counts.items():
        rule = known.get(rule_id, {})
        routes.append(
            {
                "event": event_name,
                "from": sender,
                "to": target,
                "times": times,
                "rule": rule_id,
                "pattern": rule.get("source_pattern"),
                "only_from": _name(f"agent:{rule['source_agent']}", names) if rule.get("source_agent") else None,
                "made_by": PATTERN
                if rule_id in evidence.started["rules"]
                else _name(str(rule.get("created_by")), names),
                "why": (rule.get("metadata") or {}).get("reason"),
            }
        )
    return routes


def _messages(events: list[dict[str, Any]], names: dict[str, str]) -> list[dict[str, Any]]:
    """What came to an agent without a rule: from whom, to whom, how often."""
    routed = {event["data"].get("turn") for event in _named(events, "routing:delivered")}
    counts = Counter(
        (_name(event["data"]["from"], names), event["data"]["agent_name"])
        for event in _named(events, "completion:queued")
        if event["data"]["turn"] not in routed
    )
    return [{"from": sender, "to": target, "times": times} for (sender, target), times in counts.items()]


def _rules_by_agents(rules: list[dict[str, Any]], names: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {**_only(rule, "rule_id", "source_pattern"), "by": _name(rule["created_by"], names)}
        for rule in rules
        if rule["created_by"].startswith("agent:")
    ]


def _name(actor: str, names: dict[str, str]) -> str:
    """`agent:<id>` as the agent's name; others as they are."""
    return names.get(actor.removeprefix("agent:"), actor)


def _named(events: list[dict[str, Any]], *wanted: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] in wanted]


def _turn_of(turns: list[dict[str, Any]], turn_id: str) -> dict[str, Any]:
    turn = next((turn for turn in turns if turn["turn"] == turn_id), {})
    return {key: turn.get(key) for key in ("status", "error_class", "cost_usd")}


def _only(source: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: source.get(key) for key in keys}
