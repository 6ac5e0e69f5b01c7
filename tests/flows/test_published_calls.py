"""Calls as KSI's design documents print them work as written, through `event_emit`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.permissions import OPERATOR, fresh_context

Emit = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


@asynccontextmanager
async def emitting(home: Path) -> AsyncIterator[Emit]:
    async with App(Home(root=home), AppOptions(worker="inside"), config=Config(provider="scripted")) as app:

        async def emit(event: str, data: dict[str, Any]) -> dict[str, Any]:
            args = {"event": event, "data": data}
            done = await app.toolbox.call(fresh_context(OPERATOR), "event_emit", args)
            return done.data.get("result", done.data)

        yield emit


async def test_routing_add_rule_takes_ttl_and_numbers_as_text(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        rule = await emit(
            "routing:add_rule",
            {
                "rule_id": "test_route",
                "source_pattern": "test:dynamic",
                "target": "test:transformed",
                "priority": "200",
                "ttl": "10",
            },
        )
        assert (rule["rule_id"], rule["priority"]) == ("test_route", 200)
        assert "expires_at" in rule
        sent = await emit("test:dynamic", {"message": "test"})
        assert sent["matched_rules"] == ["test_route"]


async def test_routing_add_rule_takes_a_target_agent_and_a_literal_mapping(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        for name in ("analyzer_7", "reviewer_7"):
            await emit("agent:spawn", {"agent_id": name, "prompt": "work"})
        rule = await emit(
            "routing:add_rule",
            {
                "rule_id": "analyzer_to_reviewer_v2",
                "source_pattern": "analysis:complete",
                "source_agent": "analyzer_7",
                "target_agent": "reviewer_7",
                "mapping": {"priority": "high"},
            },
        )
        assert rule["target"].startswith("agent:a_")
        assert rule["mapping"] == {"priority": "high"}


async def test_routing_modify_delete_and_query_routes_work(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        await emit("routing:add_rule", {"rule_id": "old", "source_pattern": "a:b", "target": "c:d"})
        changed = await emit("routing:modify_rule", {"rule_id": "old", "updates": {"priority": 300, "ttl": 60}})
        assert changed["priority"] == 300
        listed = await emit("routing:query_routes", {"filter": {"event": "a:b"}})
        assert [rule["rule_id"] for rule in listed["rules"]] == ["old"]
        await emit("routing:delete_rule", {"rule_id": "old", "reason": "replaced"})
        assert (await emit("routing:query_rules", {}))["rules"] == []


async def test_agent_spawn_with_routing_makes_agent_and_rules_at_once(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        await emit("agent:spawn", {"agent_id": "coordinator", "prompt": "coordinate"})
        made = await emit(
            "agent:spawn_with_routing",
            {
                "agent_id": "specialist_analyzer",
                "component": "components/base_agent",
                "routing": {
                    "parent": "coordinator",
                    "rules": [{"pattern": "task:*", "target_agent": "specialist_analyzer", "ttl": 600}],
                },
            },
        )
        assert made["name"] == "specialist_analyzer"
        assert made["composition"].startswith("base_agent@")
        rules = (await emit("routing:query_routes", {"agent_scope": made["agent"]}))["rules"]
        assert [rule["rule_id"] for rule in rules] == made["rules"]
        assert rules[0]["target"] == f"agent:{made['agent']}"


async def test_a_refused_rule_takes_the_spawn_with_it(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        routing = {"rules": [{"pattern": "a:b", "target": "routing:add_rule"}]}
        with pytest.raises(Refused, match="only the server emits it"):
            await emit("agent:spawn_with_routing", {"agent_id": "x", "prompt": "x", "routing": routing})
        assert (await emit("agent:list", {}))["agents"] == []


async def test_agent_send_message_and_completion_async_give_a_turn(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        await emit("agent:spawn", {"agent_id": "worker", "prompt": "work"})
        first = await emit("agent:send_message", {"agent_id": "worker", "message": {"type": "task", "n": 1}})
        second = await emit("completion:async", {"agent_id": "worker", "prompt": "Analyze this"})
        done = await emit("agent:wait", {"turns": [first["turn"], second["turn"]], "timeout": "20"})
        assert done["census"]["ok"] == 2


async def test_event_emit_inside_event_emit_runs_the_inner_event(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        filtered = {
            "type": "orchestration",
            "metadata_filter": {"tags": ["tournament"], "performance.avg_score": {"exists": False}},
        }
        inner = {"event": "composition:discover", "data": filtered}
        found = (await emit("event:emit", inner))["result"]
        assert [each["name"] for each in found["compositions"]] == ["adaptive_tournament"]
        with pytest.raises(Invalid, match="event:emit inside event:emit"):
            await emit("event:emit", {"event": "event:emit", "data": inner})


async def test_composition_fork_and_track_decision_take_the_published_parameters(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        forked = await emit(
            "composition:fork",
            {
                "parent": "adaptive_tournament",
                "name": "adaptive_tournament_improved",
                "reason": "Consistent 15%+ performance improvement",
                "modifications": {"orchestration_logic.strategy": "WHEN starting: PAIR by strength"},
            },
        )
        assert forked["name"] == "adaptive_tournament_improved"
        got = await emit("composition:get", {"name": "adaptive_tournament_improved"})
        assert got["document"]["orchestration_logic"]["strategy"] == "WHEN starting: PAIR by strength"
        assert got["document"]["lineage"]["parent"].startswith("adaptive_tournament@")
        tracked = await emit(
            "composition:track_decision",
            {
                "pattern": "adaptive_tournament_improved",
                "decision": "reduced_complexity",
                "context": {"timeout_rate": 0.4},
                "outcome": "pending",
                "confidence": "0.85",
                "agent_id": "orchestrator_7f3e",
            },
        )
        assert (tracked["confidence"], tracked["agent"]) == (0.85, "orchestrator_7f3e")


async def test_a_delay_is_taken_under_its_published_name(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        later = await emit("event:emit", {"event": "reminder:due", "data": {"n": 1}, "delay": "3600"})
        assert later["delayed_until"].endswith("Z")


async def test_an_unheard_event_says_so_and_names_the_nearest_command(tmp_path: Path) -> None:
    async with emitting(tmp_path) as emit:
        sent = await emit("compositon:track_decision", {})
        assert sent["unheard"] is True
        assert sent["did_you_mean"] == "composition:track_decision"
