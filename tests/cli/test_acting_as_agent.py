"""With an agent's token in the environment the command line is that agent, and never the operator instead."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.cli.twin import calling
from ksi_mcp.errors import Invalid, KsiError, Refused
from ksi_mcp.permissions import agent_actor, fresh_context
from ksi_mcp.providers.base import Behalf
from ksi_mcp.providers.claude import command as claude_command
from ksi_mcp.providers.door import Grant
from ksi_mcp.tools.agent_tools import AgentTools
from ksi_mcp.transports import remote
from ksi_mcp.transports.agent_door import AgentDoor
from ksi_mcp.transports.http import serve_http
from ksi_mcp.transports.results import ERROR_CODE

ROOT = Path(__file__).parent.parent.parent
OPERATOR_TOKEN = "the-operators-token-0123456789"


class Shell:
    """A shell of an agent: it knows the door, and a data folder in which it would be the operator."""

    def __init__(self, house: Any, grant: Grant, agent_id: str, door: AgentDoor | None) -> None:
        self.house = house
        self.grant = grant
        self.agent_id = agent_id
        self.door = door

    async def ksi(self, *arguments: str, **more: str | None) -> tuple[int, str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
        env |= {"PYTHONPATH": str(ROOT), "KSI_HOME": str(self.house.app.home.root)}
        env |= {"KSI_AGENT_URL": self.grant.url, "KSI_AGENT_TOKEN": self.grant.token}
        env |= {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
        given = {name: value for name, value in (env | more).items() if value is not None}
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "ksi_mcp", *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=given)
        said, complained = await asyncio.wait_for(process.communicate(), 40)
        assert process.returncode is not None
        return process.returncode, said.decode(), complained.decode()


OpenShell = Callable[..., AbstractAsyncContextManager[Shell]]


@pytest.fixture
def open_shell(open_house) -> OpenShell:
    @asynccontextmanager
    async def opened(*capabilities: str) -> AsyncIterator[Shell]:
        async with open_house({"default": {"reply": "ok"}}) as house:
            services = house.app.services
            ada = await house.spawn("ada", capabilities)
            tools = AgentTools(house.app.toolbox)

            async def load(agent: str) -> Any:
                return await services.journal.read(lambda tx: services.roster.get(tx, agent))

            door = AgentDoor(tools, load)
            specs = tools.specs(await load(ada)) or ()
            grant = await door.admit(ada, specs)
            ctx = replace(fresh_context(agent_actor(ada)), slot=None)
            door.enter(grant.token, Behalf(ctx=ctx, tools=specs, resting=nullcontext), lambda: None)
            try:
                yield Shell(house, grant, ada, door)
            finally:
                await door.aclose()

    return opened


async def test_an_agent_in_its_turn_changes_its_own_routes_and_no_others(open_shell) -> None:
    async with open_shell("base", "routing_control") as shell:
        bob = await shell.house.spawn("bob")
        code, said, _ = await shell.ksi("routing", "add-rule", "task:*", f"agent:{shell.agent_id}",
                                        "--source-agent", shell.agent_id, "--json")  # fmt: skip
        assert (code, json.loads(said)["created_by"]) == (0, f"agent:{shell.agent_id}")
        code, said, complained = await shell.ksi("routing", "add-rule", "task:*", f"agent:{bob}", "--source-agent", bob)
        assert (code, said, "routing level" in complained) == (3, "", True), complained
        code, said, _ = await shell.ksi("agent", "list")
        assert (code, "bob" in said) == (0, False)  # it sees its family
        code, said, _ = await shell.ksi("call", "agent:list", "--json")
        assert [each["name"] for each in json.loads(said)["agents"]] == ["ada"]


async def test_what_is_not_offered_is_not_there(open_shell) -> None:
    async with open_shell("base") as shell:
        code, said, _ = await shell.ksi("help", "--json")
        offered = {each["tool"] for each in json.loads(said)["tools"]}
        assert (code, "agent_list" in offered, "agent_spawn" in offered) == (0, True, False)
        assert "monitor_metrics" not in offered
        code, said, _ = await shell.ksi("monitor", "metrics", "--json")  # by its command
        assert (code, "total" in json.loads(said)) == (0, True)
        code, said, complained = await shell.ksi("agent", "spawn", "--prompt", "x", "--name", "eve")
        assert (code, said, "spawn_agents" in complained) == (3, "", True), complained
        code, _, complained = await shell.ksi("call", "agent_spawn", "prompt=x")
        assert (code, "is not one of the tools offered here" in complained) == (2, True)
        agents = (await shell.house.call("agent_list"))["agents"]
        assert [each["name"] for each in agents] == ["ada"]


async def test_a_token_is_worth_nothing_after_the_turn_or_the_process(open_shell) -> None:
    async with open_shell("base") as shell:
        await shell.door.leave(shell.grant.token)
        code, _, complained = await shell.ksi("agent", "list")
        assert (code, "no turn of yours is at work" in complained) == (3, True)
        shell.door.close(shell.grant.token)
        code, said, complained = await shell.ksi("agent", "list", "--json")
        assert (code, json.loads(said)["error"]["code"]) == (3, "refused"), complained
        assert shell.grant.token not in said + complained
        await shell.door.aclose()
        code, said, complained = await shell.ksi("agent", "list")
        assert (code, said, "cannot be reached" in complained) == (5, "", True)


@pytest.mark.parametrize(
    ("arguments", "changed", "code", "says"),
    [
        (("agent", "list"), {"KSI_AGENT_TOKEN": None}, 3, "KSI_AGENT_TOKEN is missing"),
        (("agent", "list"), {"KSI_AGENT_URL": None}, 3, "KSI_AGENT_URL is missing"),
        (("agent", "list"), {"KSI_AGENT_TOKEN": "", "KSI_AGENT_URL": ""}, 3, "nothing was opened as the operator"),
        (("agent", "list"), {"KSI_AGENT_URL": "http://192.0.2.1/mcp"}, 2, "plain HTTP would show the token"),
        (("agent", "list"), {"KSI_AGENT_URL": "file:///etc/passwd"}, 2, "malformed"),
        (("agent", "list"), {"KSI_AGENT_URL": "http://[::1"}, 2, "malformed"),
        (("agent", "list"), {"KSI_AGENT_TOKEN": "two words"}, 2, "that is no token"),
        (("agent", "list", "--home", "/tmp"), {}, 3, "an agent chooses no folder"),
        (("call", "agent_list", "--home", "/tmp"), {}, 3, "an agent chooses no folder"),
        (("serve",), {}, 3, "needs the data folder, and this is an agent"),
        (("worker", "--until-idle", "0"), {}, 3, "needs the data folder"),
        (("events",), {}, 3, "needs the data folder"),
        (("events", "--names", "--help"), {}, 3, "needs the data folder"),
        (("import", "--", "--help"), {}, 3, "needs the data folder"),
        (("--", "events"), {}, 3, "needs the data folder"),
        (("usage",), {}, 3, "needs the data folder"),
        (("top",), {}, 3, "needs the data folder"),
        (("export", "debate"), {}, 3, "needs the data folder"),
        (("credentials", "list"), {}, 3, "needs the data folder"),
        (("tokens", "create", "--read-only"), {"KSI_AGENT_TOKEN": None}, 3, "KSI_AGENT_TOKEN is missing"),
        (("doctor", "--json"), {}, 3, "needs the data folder"),
    ],
)
async def test_nobody_becomes_the_operator_by_a_token_that_is_wrong(
    tmp_path, arguments, changed, code: int, says: str
) -> None:
    class Nowhere:
        class app:  # noqa: N801
            class home:  # noqa: N801
                root = tmp_path / "home"

    shell = Shell(Nowhere, Grant(url="http://127.0.0.1:9/mcp", token="some-token-of-an-agent"), "a_1", None)
    ended, said, complained = await shell.ksi(*arguments, **changed)
    assert (ended, says in complained) == (code, True), complained
    assert "Traceback" not in complained
    assert not (tmp_path / "home").exists()
    if "--json" in arguments:
        assert json.loads(said)["error"]["code"] == "refused"


async def test_help_needs_no_door(tmp_path) -> None:
    class Nowhere:
        class app:  # noqa: N801
            class home:  # noqa: N801
                root = tmp_path / "home"

    shell = Shell(Nowhere, Grant(url="http://127.0.0.1:9/mcp", token="some-token-of-an-agent"), "a_1", None)
    for arguments in (("--help",), ("agent", "send", "--help"), ("serve", "--help"), ("--version",)):
        assert (await shell.ksi(*arguments))[0] == 0
    assert not (tmp_path / "home").exists()


async def test_a_token_of_the_main_server_is_who_it_was_made_for(open_house) -> None:
    async with open_house({"default": {"reply": "ok"}}) as house:
        access = house.app.services.access
        ada = await house.spawn("ada", ("base", "messaging"))
        await house.spawn("bob")
        operator = fresh_context(replace(agent_actor(ada), kind="operator", agent_id=None))
        agents, _ = await access.make(operator, agent="ada", label=None, days=1)
        readers, _ = await access.make(operator, agent=None, label=None, days=1)
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            serve_http(house.app, host="127.0.0.1", port=0, kinds=frozenset({"http"}), token=OPERATOR_TOKEN,
                       on_ready=ready.set_result)
        )  # fmt: skip
        url = (await ready).rstrip("/")
        url = url if url.endswith("/mcp") else url + "/mcp"
        try:
            shell = Shell(house, Grant(url=url, token=agents), ada, None)
            code, said, complained = await shell.ksi("agent", "list", "--json")
            assert (code, [each["name"] for each in json.loads(said)["agents"]]) == (0, ["ada"]), complained
            code, _, complained = await shell.ksi("agent", "spawn", "--prompt", "x")
            assert (code, "spawn_agents" in complained) == (3, True), complained
            reader = Shell(house, Grant(url=url, token=readers), ada, None)
            code, said, _ = await reader.ksi("agent", "list", "--json")
            assert (code, len(json.loads(said)["agents"])) == (0, 2)
            code, _, complained = await reader.ksi("agent", "terminate", "bob")
            assert (code, "read-only" in complained) == (3, True), complained
            nobody = Shell(house, Grant(url=url, token="not-a-token-that-was-ever-made"), ada, None)
            code, said, complained = await nobody.ksi("agent", "list")
            assert (code, said, "token is not good" in complained) == (3, "", True)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def test_the_tools_of_another_kind_of_failure_keep_their_kind() -> None:
    for text, code, kind in (
        ("x: refused", "refused", Refused),
        ("x: wrong", "invalid", Invalid),
        ("refused: no turn", None, Refused),
        ("gone wrong", None, remote.RemoteFailed),
        ("gone wrong", 7, remote.RemoteFailed),
    ):
        meta = {} if code is None else {ERROR_CODE: code}
        result = remote.CallToolResult(content=[remote.TextContent(type="text", text=text)], is_error=True, _meta=meta)
        with pytest.raises(KsiError) as caught:
            remote._data_of("x", result)
        assert type(caught.value) is kind


def test_the_process_of_an_agent_is_told_by_the_names_that_the_command_line_reads() -> None:
    assert (claude_command.TOKEN_ENV, claude_command.URL_ENV) == (calling.TOKEN_ENV, calling.URL_ENV)
