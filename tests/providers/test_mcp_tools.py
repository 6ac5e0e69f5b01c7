from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.errors import Invalid
from ksi_mcp.provider_config import McpServerConfig
from ksi_mcp.providers.mcp.tools import CHANGED_S, McpTools
from ksi_mcp.testing import FakeClock

HERE = Path(__file__).parent
ALL = {"s": None}


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most servers here do not go by themselves."""
    monkeypatch.setattr("ksi_mcp.providers.mcp.stdio.GRACE_S", 0.3)


def echo(**more: Any) -> McpServerConfig:
    return McpServerConfig(command=sys.executable, args=(str(HERE / "echo_server.py"),), **more)


def hostile(how: str, **more: Any) -> McpServerConfig:
    return McpServerConfig(command=sys.executable, args=("-S", str(HERE / "hostile_server.py"), how), **more)


@asynccontextmanager
async def opened(
    home: Path, config: McpServerConfig, *, clock: Any = None, variables: dict[str, str] | None = None
) -> AsyncIterator[McpTools]:
    tools = McpTools({"s": config}, clock=clock or SystemClock(), lookup=(variables or {}).get, home=home)
    try:
        yield tools
    finally:
        await tools.aclose()


async def names(tools: McpTools, wanted: Any = ALL) -> list[str]:
    await tools.ready(wanted)
    offered = tools.offered(wanted)
    assert offered is not None
    return [tool.spec.name for tool in offered]


async def call(tools: McpTools, name: str, /, **args: Any) -> tuple[str, bool]:
    if tools.offered(ALL) is None:
        await tools.ready(ALL)
    tool = next(tool for tool in tools.offered(ALL) or () if tool.name == name)
    result = await tools.call(tool, args)
    return result.text, result.is_error


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while alive(pid):  # noqa: ASYNC110  another process's end
            await asyncio.sleep(0.01)


async def test_the_tools_of_a_server_over_stdio_are_listed_and_called(tmp_path):
    async with opened(tmp_path, echo()) as tools:
        assert tools.offered(ALL) is None
        assert await names(tools) == [
            "s__add", "s__die", "s__echo", "s__fail", "s__note", "s__picture", "s__variable", "s__whoami",
        ]  # fmt: skip
        assert tools.offered(ALL) is tools.offered({"s": None})
        assert await call(tools, "echo", text="hé") == ("hé", False)
        assert await call(tools, "add", a=1, b=2) == ('{\n  "sum": 3\n}', False)
        assert await call(tools, "fail", text="on purpose") == ("Error executing tool fail: on purpose", True)
        assert await call(tools, "picture") == ("[image image/png, 402 bytes, not shown]", False)
        text, is_error = await call(tools, "echo")
        assert is_error
        assert "text" in text


async def test_calls_of_many_agents_share_one_process_and_run_side_by_side(tmp_path):
    async with opened(tmp_path, echo()) as tools:
        said = await asyncio.gather(*(call(tools, "echo", text=str(n)) for n in range(60)))
        assert [text for text, _ in said] == [str(n) for n in range(60)]
        pids = {text for text, _ in await asyncio.gather(*(call(tools, "whoami") for _ in range(5)))}
        assert len(pids) == 1


async def serve(port: int) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(sys.executable, str(HERE / "echo_server.py"), "http", str(port))
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return process


async def test_a_server_over_http_is_used_also_after_it_was_away(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await serve(port)
    try:
        config = McpServerConfig(url=f"http://127.0.0.1:{port}/mcp", headers={"Authorization": "Bearer ${KEY}"})
        async with opened(tmp_path, config, variables={"KEY": "canary-1234"}) as tools:
            assert await call(tools, "echo", text="over a socket") == ("over a socket", False)
            process.kill()
            await process.wait()
            text, is_error = await call(tools, "echo", text="too late")
            assert is_error
            assert "canary" not in text
            process = await serve(port)
            assert await call(tools, "echo", text="and again") == ("and again", False)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_server_gets_no_more_of_the_environment_than_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary")
    async with opened(tmp_path, echo(env={"TOKEN": "Bearer ${MINE}"}), variables={"MINE": "canary-1234"}) as tools:
        assert await call(tools, "variable", name="ANTHROPIC_API_KEY") == ("(not set)", False)
        assert await call(tools, "variable", name="TOKEN") == ("Bearer [key]", False)
        assert (await call(tools, "variable", name="PATH"))[0] == os.environ["PATH"]


async def test_a_variable_that_is_missing_is_named_and_nothing_is_started(tmp_path, caplog):
    async with opened(tmp_path, echo(env={"TOKEN": "${NONE_SUCH}"})) as tools:
        with caplog.at_level(logging.WARNING):
            assert await names(tools) == []
        assert "wants ${NONE_SUCH}, which is not set" in caplog.text
        assert not list((tmp_path / "processes").glob("*"))


@pytest.mark.parametrize(
    "config",
    [
        {"url": "http://example.com/mcp"},
        {"url": "https://user:pw@example.com/mcp"},
        {"url": "ftp://localhost/"},
        {},
        {"command": "x", "url": "https://example.com/mcp"},
    ],
)
def test_a_server_that_cannot_be_reached_as_it_is_written_is_refused_at_the_start(tmp_path, config):
    with pytest.raises(Invalid):
        McpTools({"s": McpServerConfig(**config)}, clock=SystemClock(), lookup=lambda _: None, home=tmp_path)


@pytest.mark.parametrize("name", ["a__b", "a_", "_a", "a b", "", "a.b", "x" * 33, "a\n"])
def test_the_name_of_a_server_must_stand_before_the_names_of_its_tools(tmp_path, name):
    with pytest.raises(Invalid, match="cannot be a server's name"):
        McpTools({name: McpServerConfig(command="x")}, clock=SystemClock(), lookup=lambda _: None, home=tmp_path)


async def test_an_agent_gets_what_both_the_operator_and_its_own_list_allow(tmp_path):
    async with opened(tmp_path, echo(tools=("e*", "add", "whoami"))) as tools:
        assert await names(tools) == ["s__add", "s__echo", "s__whoami"]
        assert await names(tools, {"s": ["*d*", "echo"]}) == ["s__add", "s__echo"]
        assert await names(tools, {"s": ["die"]}) == []
        assert await names(tools, {"s": []}) == []
        assert await names(tools, {"removed": None}) == []


async def test_a_server_that_dies_during_a_call_is_started_again_at_the_next_one(tmp_path):
    async with opened(tmp_path, echo()) as tools:
        first, _ = await call(tools, "whoami")
        text, is_error = await call(tools, "die", words="out of cheese")
        assert is_error
        assert "was lost during the call" in text
        assert "out of cheese" in text
        assert "look before you repeat it" in text
        second, is_error = await call(tools, "whoami")
        assert not is_error
        assert first != second


async def test_one_that_died_in_between_is_started_again_as_well(tmp_path):
    async with opened(tmp_path, echo()) as tools:
        pid = int((await call(tools, "whoami"))[0])
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while not tools._servers["s"]._connection.ended:  # noqa: ASYNC110  another process's end
                await asyncio.sleep(0.01)
        assert (await call(tools, "echo", text="again"))[1] is False


async def test_one_that_dies_again_and_again_is_given_a_pause(tmp_path):
    clock = FakeClock()
    async with opened(tmp_path, echo(), clock=clock) as tools:
        for _ in range(2):
            assert "was lost" in (await call(tools, "die", words="x"))[0]
        text, is_error = await call(tools, "echo", text="?")
        assert is_error
        assert text == "not done: MCP server 's': it could not be used 2 times in a row; it is tried again in 4 s"
        await clock.advance(5)
        assert await call(tools, "echo", text="!") == ("!", False)


async def test_one_that_cannot_be_started_is_left_out_and_tried_again_later(tmp_path, caplog):
    clock = FakeClock()
    config = McpServerConfig(command=str(tmp_path / "nothing"))
    async with opened(tmp_path, config, clock=clock) as tools:
        with caplog.at_level(logging.WARNING):
            assert await names(tools) == []
        assert "there is no such program" in caplog.text
        assert str(tmp_path) not in caplog.text
        assert tools.offered(ALL) == ()
        await clock.advance(1.5)
        assert tools.offered(ALL) is None


async def test_why_a_server_did_not_start_is_in_the_log_in_its_own_words(tmp_path, caplog):
    async with opened(tmp_path, hostile("dead")) as tools:
        with caplog.at_level(logging.WARNING):
            assert await names(tools) == []
    assert "no licence" in caplog.text


async def test_one_that_never_answers_is_left_after_its_time_and_then_given_up(tmp_path):
    async with opened(tmp_path, hostile("silent", timeout_s=0.2)) as tools:
        for _ in range(3):
            text, is_error = await call(tools, "go")
            assert is_error
            assert "gave no answer within 0.2 s" in text
            assert "look before you repeat it" in text
        assert tools._servers["s"]._connection.ended


async def test_one_that_does_not_even_greet_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("ksi_mcp.providers.mcp.connection.START_S", 0.3)
    async with opened(tmp_path, hostile("mute")) as tools:
        with caplog.at_level(logging.WARNING):
            assert await names(tools) == []
    assert "did not answer within 0.3 s" in caplog.text


async def test_a_call_that_is_cancelled_is_cancelled_at_the_server_and_harms_nobody_else(tmp_path):
    async with opened(tmp_path, echo()) as tools:
        pid, _ = await call(tools, "whoami")
        waiting = asyncio.create_task(call(tools, "note", path=str(tmp_path / "n"), text="x"))
        async with asyncio.timeout(10):
            while not (tmp_path / "n").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await call(tools, "whoami") == (pid, False)


async def test_ten_thousand_tools_are_fifty(tmp_path, caplog):
    async with opened(tmp_path, hostile("many")) as tools:
        with caplog.at_level(logging.WARNING):
            assert await names(tools) == [f"s__t{n:05}" for n in range(50)]
    assert "9950 more than 50" in caplog.text


async def test_a_list_without_an_end_is_read_so_far_and_no_further(tmp_path):
    async with opened(tmp_path, hostile("paging")) as tools:
        assert await names(tools) == ["s__go"]


async def test_whatever_a_tool_is_called_it_has_a_name_of_its_own_that_models_take(tmp_path):
    async with opened(tmp_path, hostile("names")) as tools:
        shown = await names(tools)
        assert "agent_spawn" not in shown
        assert {"s__agent_spawn", "s____", "s__a"} < set(shown)
        assert len(shown) == len(set(shown)) == 8
        assert all(len(name) <= 64 and name.startswith("s__") for name in shown)
        assert all(name.replace("_", "").replace("-", "").isalnum() or name == "s____" for name in shown)
        assert all(name.isascii() for name in shown)
        assert await call(tools, "with space") == ("done", False)


async def test_descriptions_are_short_and_hold_nothing_that_nobody_sees(tmp_path):
    async with opened(tmp_path, hostile("descriptions")) as tools:
        await tools.ready(ALL)
        said = {tool.name: tool.spec.description for tool in tools.offered(ALL) or ()}
        assert len(said["long"]) == 1000
        assert said["control"] == "a b [31m c"


async def test_a_schema_that_would_spoil_every_call_of_its_agents_is_left_out(tmp_path, caplog):
    async with opened(tmp_path, hostile("schemas")) as tools:
        with caplog.at_level(logging.WARNING):
            assert await names(tools) == ["s__choice", "s__good"]
        choice = next(tool.spec.input_schema for tool in tools.offered(ALL) or () if tool.name == "choice")
        assert choice == {"type": "object", "properties": {"x": {"type": "string"}}}
    assert "'deep'" in caplog.text


@pytest.mark.parametrize(
    ("how", "said"),
    [("bottomless", "its answer cannot be read"), ("malformed", "its answer is not as the protocol wants it")],
)
async def test_a_list_that_nobody_can_read_is_no_list(tmp_path, caplog, how, said):
    async with opened(tmp_path, hostile(how)) as tools:
        with caplog.at_level(logging.WARNING):
            assert await names(tools) == []
    assert said in caplog.text


@pytest.mark.parametrize("how", ["big", "big_last"])
async def test_a_result_of_fifty_megabytes_is_an_error_and_the_server_goes_on(tmp_path, how):
    async with opened(tmp_path, hostile(how)) as tools:
        await tools.ready(ALL)
        pid = tools._servers["s"]._connection.pid
        text, is_error = await call(tools, "go")
        assert is_error
        assert text == "the call failed: its answer is longer than 16,777,216 bytes"
        assert tools._servers["s"]._connection.pid == pid


async def test_one_that_never_ends_its_line_is_left_after_its_time(tmp_path):
    async with opened(tmp_path, hostile("endless", timeout_s=0.3)) as tools:
        text, is_error = await call(tools, "go")
        assert is_error
        assert "gave no answer within 0.3 s" in text


async def test_an_answer_that_is_none_fails_its_call_and_no_other(tmp_path):
    async with opened(tmp_path, hostile("nonsense")) as tools:
        text, is_error = await call(tools, "go")
        assert is_error
        assert text == "the call failed: its answer is not as the protocol wants it"
        assert not tools._servers["s"]._connection.ended


async def test_a_refusal_by_the_protocol_is_an_error_that_the_model_reads(tmp_path):
    async with opened(tmp_path, hostile("refusing")) as tools:
        assert await call(tools, "go") == ("the call failed: no such thing", True)


@pytest.mark.parametrize("how", ["noisy", "chatty", "old"])
async def test_one_that_prints_what_is_no_answer_or_knows_only_the_handshake_is_used_all_the_same(tmp_path, how):
    async with opened(tmp_path, hostile(how)) as tools:
        assert await call(tools, "go") == ("done", False)


async def test_a_server_is_offered_neither_a_model_nor_a_person_nor_folders(tmp_path):
    async with opened(tmp_path, hostile("asking")) as tools:
        assert await call(tools, "go") == ("[true, true, true]", False)


async def test_a_list_that_changes_is_asked_for_again_but_not_at_once(tmp_path):
    clock = FakeClock()
    async with opened(tmp_path, hostile("changing"), clock=clock) as tools:
        assert await names(tools) == ["s__now_0"]
        before = tools.offered(ALL)
        await call(tools, "now_0")
        assert tools.offered(ALL) is before
        await clock.advance(CHANGED_S + 1)
        assert tools.offered(ALL) is None
        assert await names(tools) == ["s__now_1"]


async def test_a_list_that_is_the_same_stays_the_same_object(tmp_path):
    clock = FakeClock()
    async with opened(tmp_path, hostile("plain"), clock=clock) as tools:
        await tools.ready(ALL)
        before = tools.offered(ALL)
        await clock.advance(700)
        assert tools.offered(ALL) is None
        await tools.ready(ALL)
        assert tools.offered(ALL) is before


async def test_closing_ends_a_server_that_will_not_go(tmp_path):
    async with opened(tmp_path, hostile("stubborn")) as tools:
        await tools.ready(ALL)
        pid = tools._servers["s"]._connection.pid
        assert alive(pid)
    assert not alive(pid)
    assert not list((tmp_path / "processes").glob("*"))


HOLDER = """
import asyncio, sys
from pathlib import Path
from ksi_mcp.clock import SystemClock
from ksi_mcp.provider_config import McpServerConfig
from ksi_mcp.providers.mcp.tools import McpTools
async def main():
    config = McpServerConfig(command=sys.executable, args=("-S", sys.argv[2], "stubborn"))
    tools = McpTools({"s": config}, clock=SystemClock(), lookup=lambda _: None, home=Path(sys.argv[1]))
    await tools.ready({"s": None})
    print(tools._servers["s"]._connection.pid, flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


async def test_no_server_outlives_a_worker_that_is_killed(tmp_path):
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(tmp_path), str(HERE / "hostile_server.py"),
        stdout=asyncio.subprocess.PIPE, cwd=HERE.parents[1],
    )  # fmt: skip
    assert holder.stdout is not None
    pid = int(await holder.stdout.readline())
    assert alive(pid)
    holder.kill()
    await holder.wait()
    await gone(pid)


REDIRECTS = {
    "elsewhere": "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.2:1/mcp\r\nContent-Length: 0\r\n\r\n",
    "a login page": "HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n",
    "a page": "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
    "compressed": "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
    "Content-Length: 2\r\n\r\nhi",
    "not for you": "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
    "endless": "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + "x" * 17 * 1024 * 1024,
}


@pytest.mark.parametrize("what", REDIRECTS)
async def test_over_http_whatever_is_no_mcp_server_is_left_out_and_gets_the_key_only_once_asked(tmp_path, what, caplog):
    asked = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        try:
            writer.write(REDIRECTS[what].encode())
            await writer.drain()
        except OSError:
            pass
        writer.close()

    web = await asyncio.start_server(respond, "127.0.0.1", 0)
    port = web.sockets[0].getsockname()[1]
    config = McpServerConfig(url=f"http://127.0.0.1:{port}/mcp", headers={"X-Key": "${KEY}"})
    async with web, opened(tmp_path, config, variables={"KEY": "canary-1234"}) as tools:
        with caplog.at_level(logging.WARNING):
            assert await names(tools) == []
        assert "cannot be used" in caplog.text
        assert "canary" not in caplog.text
        assert all(b"canary-1234" in request and b"accept-encoding: identity" in request.lower() for request in asked)
