"""A pattern that the base orchestrator carries out itself, and what all patterns together need."""

from __future__ import annotations

import json
from pathlib import Path

from ksi_mcp.tools.catalog import DEFAULT_TOOLS


async def test_the_base_orchestrator_carries_a_pattern_out_by_itself(perform) -> None:
    members = ["pragmatist", "sceptic", "strategist"]
    async with perform("base_orchestrator", "consensus") as stage:
        started = await stage.start(
            "consensus", text="consensus", vars={"question": "Which database?"}, orchestrator="agent"
        )
        assert "strategy" not in started
        waited = await stage.call("agent_wait", turns=[started["turn"]], timeout_s=20)
        print(json.dumps(waited, indent=1))
        status = await stage.call("orchestration_status", orchestration=stage.run)
        print(json.dumps(status, indent=1))
        h=await stage.history("orchestrator")
        print(h)
        assert 0


def test_the_patterns_together_use_every_listed_tool(tools_of: dict[str, set[str]]) -> None:
    assert set().union(*tools_of.values()) == set(DEFAULT_TOOLS)
