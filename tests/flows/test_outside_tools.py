"""Agents that use the tools of another MCP server: a real one, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home, load_config
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context
from ksi_mcp.tools.agent_tools import UNKNOWN_OUTCOME

ROOT = Path(__file__).parents[2]
ECHO = {"command": sys.executable, "args": [str(ROOT / "tests" / "providers" / "echo_server.py")]}
CONFIG = {"mcp_servers": {"echo": ECHO}}


def calling(*calls: tuple[str, dict[str, Any]], agent: str = "a") -> dict[str, Any]:
    """An agent that makes these calls, and then says what came back."""
    said = " | ".join(f"{{{{results[{n}]}}}}" for n in range(len(calls)))
    return {
        "replies": [
            {
                "match": {"agent": agent, "round": 1},
                "reply": "a moment",
                "tool_calls": [{"name": name, "input": args} for name, args in calls],
            },
            {"match": {"agent": agent, "round": 2}, "reply": said},
        ]
    }


async def make(house: Any, servers: Any, *, name: str = "a", **more: Any) -> str:
    document = {"name": f"of_{name}", "type": "agent", "prompt": "You help.", "model": "m", "mcp_servers": servers}
    await house.call("composition_create", document={**document, "capabilities": ["base", "spawn_agents"]})
    return str((await house.call("agent_spawn", composition=f"of_{name}", name=name, **more))["agent"])


async def test_an_agent_uses_ours_and_theirs_in_one_turn(open_house) -> None:
    script = calling(
        ("echo__echo", {"text": "hello"}), ("event_emit", {"event": "note:x"}), ("echo__fail", {"text": "oh no"})
    )
    async with open_house(script, **CONFIG) as house:
        agent = await make(house, ["echo"])
        turn = await house.ask("a")
        assert turn["status"] == "done"
        assert turn["text"].startswith("hello | ")
        assert "oh no" in turn["text"]
        stored = house.rows("SELECT tool, result, is_error FROM tool_call ORDER BY idx")
        assert [(tool, is_error) for tool, _, is_error in stored] == [
            ("echo__echo", 0), ("event_emit", 0), ("echo__fail", 1),
        ]  # fmt: skip
        assert house.events("note:x") == [{}]
        came = house.events("agent:tool_answered")
        assert [(each["tool"], each["is_error"], each["turn"]) for each in came] == [
            ("echo", False, turn["turn"]), ("fail", True, turn["turn"]),
        ]  # fmt: skip
        assert {each["agent"] for each in came} == {agent}
        house.books()


async def test_what_an_agent_was_given_holds_in_its_next_life(open_house, tmp_path) -> None:
    script = calling(("echo__echo", {"text": "x"}))
    async with open_house(script, **CONFIG) as house:
        await make(house, {"echo": {"tools": ["echo"]}})
    async with open_house(script, **CONFIG) as house:
        assert (await house.ask("a"))["text"] == "x"
    # What the operator has taken back is gone, whatever the agent was given.
    async with open_house(script) as house:
        assert "unknown tool 'echo__echo'" in (await house.ask("a"))["text"]


async def test_a_server_that_cannot_be_reached_costs_its_tools_and_not_the_turn(open_house) -> None:
    config = {"mcp_servers": {"echo": {"command": "no-such-program-anywhere"}}}
    async with open_house({"default": {"reply": "without"}}, **config) as house:
        await make(house, ["echo"])
        assert (await house.ask("a"))["text"] == "without"


async def test_nothing_is_started_that_the_operator_has_not_permitted(open_house) -> None:
    async with open_house(**CONFIG) as house:
        for name, servers, kind, said in (
            ("x", ["shell"], Invalid, "MCP server 'shell' is not in config.yaml; it permits echo"),
            ("y", {"echo": {"command": "sh", "args": ["-c", "id"]}}, Refused, "is another one than"),
            ("z", {"echo": {**ECHO, "args": [*ECHO["args"], "http"]}}, Refused, "is another one than"),
        ):
            with pytest.raises(kind) as error:
                await make(house, servers, name=name)
            assert said in error.value.text()
        assert house.rows("SELECT name FROM agent") == []
        # The same one, written as other programs write it; what it says of the environment has no effect.
        await make(house, {"echo": {**ECHO, "env": {"LD_PRELOAD": "/evil.so"}}}, name="w")
        assert house.rows("SELECT json_extract(settings, '$.mcp_servers') FROM agent") == [('{"echo":null}',)]
    async with open_house() as house:
        assert "it permits none" in (await refusal(make(house, ["echo"], name="v"))).text()


async def refusal(work: Any) -> Any:
    with pytest.raises((Invalid, Refused)) as error:
        await work
    return error.value


async def test_an_agent_gives_its_children_no_more_servers_than_it_has(open_house) -> None:
    async with open_house(**CONFIG) as house:
        narrow = await make(house, {"echo": {"tools": ["echo"]}}, name="narrow")
        for name, servers in (("wide", ["echo"]), ("same", {"echo": {"tools": ["echo"]}})):
            document = {"name": name, "type": "agent", "prompt": "p", "model": "m", "capabilities": []}
            await house.call("composition_create", document={**document, "mcp_servers": servers})

        async def spawn(composition: str) -> dict[str, Any]:
            ctx = fresh_context(agent_actor(narrow))
            done = await house.app.toolbox.call(ctx, "agent_spawn", {"composition": composition, "name": composition})
            return dict(done.data)

        error = await refusal(spawn("wide"))
        assert "cannot grant MCP servers that it does not have: echo" in error.text()
        await spawn("same")
        assert house.rows("SELECT name FROM agent ORDER BY n") == [("narrow",), ("same",)]
        audited = house.events("system:refused")
        assert [each["tool"] for each in audited] == ["agent_spawn"]


async def test_no_run_that_an_agent_starts_is_a_way_to_servers_it_has_not_got(open_house) -> None:
    async with open_house({}, **CONFIG) as house:
        boss = await house.spawn("boss", ("base", "messaging", "compositions", "orchestration"))
        pattern = {
            "name": "steals", "type": "orchestration",
            "agents": {"helper": {"prompt": "You help.", "model": "m", "mcp_servers": ["echo"]}},
            "orchestration_logic": {"strategy": "Ask helper."},
        }  # fmt: skip
        await house.call("composition_create", document=pattern)
        ctx = fresh_context(agent_actor(boss))
        with pytest.raises(Refused, match="cannot grant MCP servers that it does not have: echo"):
            await house.app.toolbox.call(ctx, "orchestration_start", {"pattern": "steals"})
        assert house.rows("SELECT COUNT(*) FROM orchestration") == [(0,)]
        run = (await house.call("orchestration_start", pattern="steals"))["orchestration"]  # the operator may
        assert house.rows("SELECT COUNT(*) FROM agent WHERE orchestration_id = ?", run) == [(1,)]


async def test_a_turn_that_is_cancelled_meanwhile_leaves_the_server_to_the_others(open_house, tmp_path) -> None:
    script = calling(("echo__note", {"path": str(tmp_path / "n"), "text": "x"}))
    script["replies"] += calling(("echo__echo", {"text": "still here"}), agent="b")["replies"]
    async with open_house(script, **CONFIG) as house:
        await make(house, ["echo"])
        await make(house, ["echo"], name="b")
        turn = (await house.call("agent_send", agent="a", message="go"))["turn"]
        await house.until((tmp_path / "n").exists)
        await house.call("completion_cancel", turn=turn)
        assert (await house.ask("b"))["text"] == "still here"
        ((result, is_error),) = house.rows("SELECT result, is_error FROM tool_call WHERE turn_id = ?", turn)
        assert (result, is_error) == (UNKNOWN_OUTCOME, 1)
        house.books()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
async def test_a_call_whose_worker_was_killed_is_not_made_again_and_its_server_is_gone(tmp_path) -> None:
    home, marks = tmp_path / "home", tmp_path / "marks"
    home.mkdir()
    (home / "script.yaml").write_text(json.dumps(calling(("echo__note", {"path": str(marks), "text": "paid"}))))
    (home / "config.yaml").write_text(
        json.dumps({"provider": "scripted", "scripted": {"script": "script.yaml"}, "prices": {"m": "free"}, **CONFIG})
    )
    place = Home(root=home)
    async with App(place, AppOptions(worker="none"), config=load_config(place)) as app:

        async def call(tool: str, **args: Any) -> dict[str, Any]:
            return dict((await app.toolbox.call(fresh_context(OPERATOR), tool, args)).data)

        document = {
            "name": "of_a",
            "type": "agent",
            "prompt": "p",
            "model": "m",
            "mcp_servers": ["echo"],
            "capabilities": [],
        }
        await call("composition_create", document=document)
        await call("agent_spawn", composition="of_a", name="a")
        turn = (await call("agent_send", agent="a", message="go"))["turn"]
        first = await worker(home)
        async with asyncio.timeout(20):
            while not marks.exists() or not marks.read_text():  # noqa: ASYNC110  what another process does
                await asyncio.sleep(0.02)
        server = int(marks.read_text().split()[1])
        os.kill(first.pid, signal.SIGKILL)
        await first.wait()
        async with asyncio.timeout(20):
            while running(server):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        second = await worker(home)
        answer = await call("agent_wait", turns=[turn], timeout_s=20)
        assert UNKNOWN_OUTCOME in json.dumps(answer)
        assert marks.read_text().count("paid") == 1
        second.terminate()
        await second.wait()
    with sqlite3.connect(home / "ksi.db") as store:
        assert store.execute("SELECT result, is_error FROM tool_call").fetchall() == [(UNKNOWN_OUTCOME, 1)]
        names = [row[0] for row in store.execute("SELECT name FROM event WHERE name LIKE 'agent:tool_%'")]
    store.close()
    assert names == ["agent:tool_called"]


async def worker(home: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ksi_mcp", "worker", "--home", str(home), cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
