"""What a model reads before it has seen a single tool: the instructions, and the prompt to start from."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server import MCPServer
from pydantic import Field

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


def add_prompts(server: MCPServer[Any]) -> None:
    """Offer `orchestrate`, which clients show as a command to the user."""

    @server.prompt(title="Orchestrate a team of agents")
    def orchestrate(
        goal: Annotated[str, Field(description="what the team is to achieve")],
        pattern: Annotated[str, Field(description="a pattern's name; empty: let the model choose")] = "",
    ) -> str:
        """Reach a goal with a team of agents."""
        choice = (
            f"Use the pattern {pattern!r} (composition_get shows it)."
            if pattern
            else "Choose a pattern: composition_discover(task=...) and composition_get."
        )
        return (
            f"Goal: {goal}\n\n{choice} Start it with orchestration_start and a budget, carry out the strategy it "
            "returns with the tools of this server, watch orchestration_status, record decisions with "
            "composition_track_decision, and finish with orchestration_complete. Then report the outcome, what it "
            "cost, and who said what that mattered."
        )
