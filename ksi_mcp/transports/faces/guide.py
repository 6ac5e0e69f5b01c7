"""What a model reads before it has seen a single tool: the instructions."""

from __future__ import annotations

INSTRUCTIONS = """\
KSI runs teams of agents for you: durable conversations that exchange messages by events and rules, under a budget. \
Everything is stored as it happens; nothing depends on this connection.

Begin:
1. composition_discover(task="what is to be done") ranks patterns with reasons, or says that none fits.
2. orchestration_start(pattern, vars, budget={"usd": 1}) makes the agents and rules and returns `strategy`: \
carry it out with the tools below, or pass orchestrator="agent" to let an agent do it.
3. orchestration_status shows agents, spend, and what to do next.
For a single helper, agent_spawn(prompt, name, message) is enough.

- Handles: calls return ids (agent a_, turn t_, run o_, rule r_). Use them in any later call, from any client.
- Waiting: agent_send returns at once with a turn id. agent_wait(turns=[...]) collects replies; when the time is up it \
returns what is there (`partial`, `next`): call it again. Send to several agents first, then wait once.
- Rules: routing_add_rule sends every event that matches a pattern to an agent; routing_explain says why it went where.
- Events: event_emit("name:what", data) triggers rules. With the name of a command it runs any tool, also those not \
listed: event_emit("agent:history", {"agent": "judge"}). help lists them all, help(topic) explains one.
- TRACK what you decide with composition_track_decision; patterns evolve on it.
- Budget: a run stops spending at its limit; a reply then fails with the reason.
- Always finish with orchestration_complete(orchestration, outcome, score, summary): it ends the agents and frees names.

An error says what to do next. To end an agent call agent_terminate itself: as a command it needs the user's \
confirmation."""
