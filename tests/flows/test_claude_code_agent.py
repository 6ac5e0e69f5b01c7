"""A real Claude Code as an agent of a whole application; the Messages API behind it answers from a script."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.transports.agent_door import AgentDoor
from ksi_mcp.web.sim import SimServer

MODEL, OTHER = "claude-haiku-5-5", "claude-sonnet-5-5"
RIGHTS = ["base", "messaging", "routing_control"]


def rule(word: str) -> dict[str, Any]:
    """`word ID` makes the agent route something to the agent of that id."""
    wanted = {"source_pattern": f"{word}:done", "target": "agent:{{groups[1]}}"}
    return {
        "match": {"prompt": f"/{word} (\\w+)/", "round": 1},
        "tool_calls": [{"name": "mcp__ksi__routing_add_rule", "input": wanted}],
    }


SCRIPT: dict[str, Any] = {
    "replies": [
        rule("route"),
        {"match": {"prompt": "/^(route)/"}, "reply": "{{results[0]}}"},
        {
            "match": {"prompt": "/^delegate (\\w+)/", "round": 1},
            "tool_calls": [
                {
                    "name": "mcp__ksi__agent_send",
                    "input": {"agent": "{{groups[1]}}", "message": "6 x 7?", "wait_s": 20},
                }
            ],
        },
        {"match": {"prompt": "/^delegate/"}, "reply": "It says: {{results[0].text}}"},
        {"match": {"prompt": "/^linger/"}, "reply": "late", "latency_s": 60},
    ],
    "default": {"reply": "[{{model}}] turn {{turn}}"},
}


@dataclass
class Desk:
    app: App
    sim: SimServer
    root: Path

    async def call(self, tool: str, /, **args: Any) -> dict[str, Any]:
        return dict((await self.app.toolbox.call(fresh_context(OPERATOR), tool, args)).data)

    async def spawn(self, name: str, **more: Any) -> str:
        given = {"prompt": "You are Ada.", "provider": "claude_cli", "model": MODEL, "capabilities": RIGHTS, **more}
        return str((await self.call("agent_spawn", name=name, **given))["agent"])

    async def ask(self, agent: str, message: str) -> dict[str, Any]:
        return await self.call("agent_send", agent=agent, message=message, wait_s=30, timeout_s=30)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.root / "ksi.db", timeout=30)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def processes(self) -> list[Path]:
        return list((self.root / "claude_cli" / "processes").glob("*"))

    def paid(self) -> int:
        ((spent,),) = self.rows("SELECT spent_usd_micros FROM account WHERE account_id = 'global'")
        return int(spent)


OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]


@pytest.fixture
def open_desk(tmp_path: Path, claude_code) -> OpenDesk:
    @asynccontextmanager
    async def opened(sim: SimServer, **more: Any) -> AsyncIterator[Desk]:
        cli = {"command": claude_code.command, "env": claude_code.passed}
        config = Config(provider="scripted", claude_cli=cli, **more)
        environ = claude_code.environ(tmp_path / "user", sim.url)
        options = AppOptions(worker="inside", environ=environ, agent_door=AgentDoor)
        root = tmp_path / "home"
        root.mkdir(exist_ok=True)
        async with App(Home(root=root), options, config=config) as app:
            yield Desk(app=app, sim=sim, root=root)
        assert list((root / "claude_cli").glob("p*/*")) == []  # no process, no prompt

    return opened


async def test_claude_code_changes_routes_as_itself_and_no_others(open_desk) -> None:
    async with SimServer(Script(parse_script(SCRIPT))) as sim, open_desk(sim) as desk:
        ada, bob = await desk.spawn("ada"), await desk.spawn("bob")
        allowed = await desk.ask(ada, f"route {ada}")
        assert json.loads(allowed["text"])["created_by"] == f"agent:{ada}"
        refused = await desk.ask(ada, f"route {bob}")
        assert "beyond the routing level" in refused["text"]
        assert desk.rows("SELECT created_by FROM rule") == [(f"agent:{ada}",)]
        audited = "SELECT name, source FROM event WHERE name IN ('routing:rule_added', 'system:refused') ORDER BY 1"
        assert desk.rows(audited) == [("routing:rule_added", f"agent:{ada}"), ("system:refused", f"agent:{ada}")]
        effects = "SELECT turn_id, tool, is_error FROM tool_call ORDER BY at_ms"
        assert desk.rows(effects) == [(allowed["turn"], "routing_add_rule", 0)]


async def test_three_turns_cost_what_they_cost_kept_resumed_and_all(open_desk) -> None:
    async with SimServer(Script(parse_script(SCRIPT))) as sim:
        async with open_desk(sim) as desk:
            ada = await desk.spawn("ada")
            texts = [(await desk.ask(ada, word))["text"] for word in ("one", "two")]
        async with open_desk(sim) as desk:
            texts.append((await desk.ask(ada, "three"))["text"])
            assert texts == [f"[{MODEL}] turn {turn}" for turn in (1, 2, 3)]
            calls = desk.rows(
                "SELECT input_tokens * 0.1 + output_tokens * 0.5, cost_usd_micros FROM provider_call ORDER BY call_id"
            )
            assert [abs(cost - booked) <= 1 for cost, booked in calls] == [True] * 3
            assert desk.paid() == sum(booked for _, booked in calls)
            assert len(sim.log) == 3


async def test_every_earlier_turn_reaches_another_model(open_desk) -> None:
    async with SimServer(Script(parse_script(SCRIPT))) as sim, open_desk(sim) as desk:
        ada = await desk.spawn("ada")
        for number in range(10):
            assert (await desk.ask(ada, f"question {number}"))["text"] == f"[{MODEL}] turn {number + 1}"
        await desk.call("agent_update", agent=ada, model=OTHER)
        assert (await desk.ask(ada, "and now?"))["text"] == f"[{OTHER}] turn 11"
        newest = await desk.call("agent_history", agent=ada, limit=2)
        assert [turn["prompt"] for turn in newest["turns"]] == ["question 9", "and now?"]


async def test_a_turn_that_waits_for_another_agent_gives_its_place_away(open_desk) -> None:
    async with (
        SimServer(Script(parse_script(SCRIPT))) as sim,
        open_desk(sim, worker={"concurrency": 1}) as desk,
    ):
        ada = await desk.spawn("ada")
        helper = await desk.spawn("helper", provider="scripted", model="m", parent=ada, capabilities=["base"])
        assert (await desk.ask(ada, f"delegate {helper}"))["text"] == "It says: [helper] 6 x 7?"


async def test_a_cancelled_turn_ends_its_process(open_desk) -> None:
    async with SimServer(Script(parse_script(SCRIPT))) as sim, open_desk(sim) as desk:
        ada = await desk.spawn("ada")
        turn = (await desk.call("agent_send", agent=ada, message="linger", timeout_s=50))["turn"]
        async with asyncio.timeout(10):
            while not sim.max_in_flight:  # noqa: ASYNC110  the process is at the API
                await asyncio.sleep(0.01)
        assert len(desk.processes()) == 1
        await desk.call("completion_cancel", turn=turn)
        async with asyncio.timeout(5):
            while desk.processes():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await sim.idle()
        assert [call.outcome for call in sim.log] == ["left"]


async def test_no_credential_is_left_behind(open_desk, tmp_path, claude_code) -> None:
    async with SimServer(Script(parse_script(SCRIPT))) as sim:
        async with open_desk(sim) as desk:
            await desk.ask(await desk.spawn("ada"), "one")
            (process,) = desk.processes()
            arguments = Path("/proc") / process.stem / "cmdline"
            shown = arguments.read_bytes() if arguments.exists() else b""
            token = (Path("/proc") / process.stem / "environ").read_bytes().partition(b"KSI_AGENT_TOKEN=")[2]
            secrets = [b"simulated", *([token.partition(b"\0")[0]] if token else [])]
            assert not any(secret in shown for secret in secrets)
        for file in (tmp_path / "home").rglob("*"):
            if file.is_file():
                assert not any(secret in file.read_bytes() for secret in secrets), file.name
