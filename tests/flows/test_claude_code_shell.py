"""The shell of a real Claude Code agent: `ksi-mcp` in there is the agent, in its turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.transports.agent_door import AgentDoor
from ksi_mcp.web.sim import SimServer

ROOT = Path(__file__).parent.parent.parent
MODEL = "claude-haiku-5-5"
COMMANDS = (
    "ksi-mcp routing add-rule task:done agent:$1 --json; ksi-mcp events; echo code $?; "
    "ksi-mcp agent list --json; echo home $KSI_HOME."
)


async def test_what_it_does_in_its_shell_it_does_as_itself(tmp_path: Path, claude_code) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ksi-mcp"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m ksi_mcp "$@"\n')
    program.chmod(0o755)
    bash = {"name": "Bash", "input": {"command": COMMANDS.replace("$1", "{{groups[1]}}"), "description": "look"}}
    script: dict[str, Any] = {
        "replies": [
            {"match": {"prompt": "/shellwork (\\w+)/", "round": 1}, "tool_calls": [bash]},
            {"match": {"prompt": "/shellwork/"}, "reply": "{{results[0]}}"},
        ]
    }
    root = tmp_path / "home"
    root.mkdir()
    async with SimServer(Script(parse_script(script))) as sim:
        environ = claude_code.environ(tmp_path / "user", sim.url)
        environ["PATH"] = f"{folder}:{environ['PATH']}"
        environ["KSI_HOME"] = str(root)
        cli = {"command": claude_code.command, "env": claude_code.passed, "tools": ("Bash",)}
        options = AppOptions(worker="inside", environ=environ, agent_door=AgentDoor)
        async with App(Home(root=root), options, config=Config(provider="scripted", claude_cli=cli)) as app:

            async def call(tool: str, **args: Any) -> dict[str, Any]:
                return dict((await app.toolbox.call(fresh_context(OPERATOR), tool, args)).data)

            spawned = {"prompt": "You are Ada.", "provider": "claude_cli", "model": MODEL}
            rights = ["base", "messaging", "routing_control"]
            ada = (await call("agent_spawn", name="ada", capabilities=rights, **spawned))["agent"]
            await call("agent_spawn", name="bob", prompt="You are Bob.")
            done = await call("agent_send", agent=ada, message=f"shellwork {ada}", wait_s=50, timeout_s=50)
            said = done["text"]
            rule, *rest = said.splitlines()
            assert json.loads(rule)["created_by"] == f"agent:{ada}", said
            assert "needs the data folder, and this is an agent" in rest[0]
            assert rest[1] == "code 3"
            assert [each["name"] for each in json.loads(rest[2])["agents"]] == ["ada"]
            assert rest[3] == "home ."
            rules = (await call("routing_query_rules"))["rules"]
            assert [each["created_by"] for each in rules] == [f"agent:{ada}"]
