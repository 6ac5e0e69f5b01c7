"""The Tasks extension as a client meets it: who declares it is given a handle for a call that waits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import httpx2
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.extension import ClientExtension, ResultClaim
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ElicitRequestFormParams, ElicitResult, Request, RequestParams, Result
from pydantic import TypeAdapter

from ksi_mcp.app import App, AppOptions
from ksi_mcp.clock import SystemClock
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.transports.faces.tasks import POLL_MS, TASKS
from ksi_mcp.transports.http import serve_http

OWN = "a-token-for-the-operator"
PROJECT = Path(__file__).parents[2]
JSON = TypeAdapter(dict[str, Any])
MODERN = pytest.mark.parametrize("era", ["auto"], indirect=True)
LEGACY = pytest.mark.parametrize("era", ["legacy"], indirect=True)
EXPECT = {"regex": "^[0-9]+$", "max_attempts": 1}


class Created(Result):
    result_type: Literal["task"] = "task"
    task_id: str
    status: str
    status_message: str | None = None
    created_at: str
    last_updated_at: str
    ttl_ms: int
    poll_interval_ms: int


class TaskRequest(Request[RequestParams, str]):
    method: str
    params: Any = None
    name_param: ClassVar[str | None] = "taskId"


async def ask(session: Any, method: str, task_id: Any, **more: Any) -> dict[str, Any]:
    request = TaskRequest(method=method, params={"taskId": task_id, **more})
    return await session.send_request(request, JSON)


class Tasks(ClientExtension):
    """Polls as a client does, a little faster, and answers questions."""

    identifier = TASKS

    def __init__(self, **answer: Any) -> None:
        self.answer = answer
        self.seen: list[dict[str, Any]] = []
        self.asked: dict[str, str] = {}

    def claims(self):
        return (ResultClaim(result_type="task", model=Created, resolve=self.finish),)

    async def finish(self, created: Created, context: Any) -> CallToolResult:
        while True:
            found = await ask(context.session, "tasks/get", created.task_id)
            self.seen.append(found)
            assert found["resultType"] == "complete"
            if found["status"] == "completed":
                return CallToolResult.model_validate(found["result"])
            assert found["status"] in ("working", "input_required")
            for key, request in found.get("inputRequests", {}).items():
                assert key not in self.asked
                form = ElicitRequestFormParams.model_validate(request["params"])
                self.asked[key] = form.message
                given = {key: self.answer, "unknown": {"ignored": True}}
                done = await ask(context.session, "tasks/update", created.task_id, inputResponses=given)
                assert done.keys() <= {"resultType", "_meta"}
                self.answer = {"action": "accept", "content": {"text": "42"}}
            await asyncio.sleep(0.01)


async def nobody(context, params):
    """Says that forms can be shown; tasks carry their questions themselves."""
    raise AssertionError


class Slow(SystemClock):
    """Nothing that is put off comes before it is let go."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        await self.opened.wait()


@pytest.fixture
def slow(home, monkeypatch):
    (home.root / "script.yaml").write_text("default: {reply: done, latency_s: 1}\n")
    (home.root / "config.yaml").write_text("provider: scripted\nscripted: {script: script.yaml}\n")
    clock = Slow()
    monkeypatch.setattr("ksi_mcp.app.SystemClock", lambda: clock)
    return clock


async def spawn(client: Client, name: str = "ada") -> None:
    assert not (await client.call_tool("agent_spawn", {"prompt": "x", "name": name})).is_error


async def created(client: Client, tool: str, **args: Any) -> Created:
    made = await client.session.call_tool(tool, args, allow_claimed=True)
    assert isinstance(made, Created), made
    return made


# ---------------------------------------------------------------------------------------- what is seen


@MODERN
async def test_a_call_that_waits_is_handed_over_and_its_result_is_that_of_the_plain_call(serve, slow):
    tasks = Tasks()
    async with serve(worker="inside", extensions=[tasks]) as (_, client):
        await spawn(client)
        asyncio.get_running_loop().call_later(0.2, slow.opened.set)
        fetched = await client.call_tool("agent_send", {"agent": "ada", "message": "hi", "wait_s": 5})
        turn = fetched.structured_content["turn"]
        assert tasks.seen[0]["status"] == "working"
        plain = await client.call_tool("agent_wait", {"turns": [turn], "timeout_s": 0})
        assert fetched.structured_content == plain.structured_content["turns"][0]
        assert json.loads(fetched.content[0].text) == fetched.structured_content
        assert fetched.content[0].text == json.dumps(
            fetched.structured_content, ensure_ascii=False, separators=(",", ":")
        )


@MODERN
async def test_the_handle_says_how_long_it_lasts_and_when_to_ask(serve, slow):
    async with serve(worker="inside", extensions=[Tasks()]) as (_, client):
        await spawn(client)
        made = await created(client, "agent_send", agent="ada", message="hi", wait_s=5)
        assert (made.status, made.ttl_ms, made.poll_interval_ms) == ("working", 86_400_000, POLL_MS)
        assert made.status_message.startswith("turn t_")
        found = await ask(client.session, "tasks/get", made.task_id)
        for mine in ("taskId", "createdAt", "ttlMs", "pollIntervalMs"):
            assert found[mine] == made.model_dump(by_alias=True)[mine]
        assert not found.keys() & {"result", "error", "inputRequests", "requestState", "task", "ttl", "pollInterval"}
        slow.opened.set()


@MODERN
async def test_an_error_of_the_tool_is_told_at_once_and_in_the_same_words(serve):
    args = {"turns": ["t_none"]}
    async with serve(extensions=[Tasks()]) as (_, client):
        handed = await client.call_tool("agent_wait", args)
    async with serve() as (_, client):
        plain = await client.call_tool("agent_wait", args)
    assert handed.is_error
    assert handed.content == plain.content


@MODERN
async def test_who_does_not_declare_the_extension_sees_nothing_of_it(serve, slow):
    async with serve(worker="inside") as (_, client):
        await spawn(client)
        asyncio.get_running_loop().call_later(0.2, slow.opened.set)
        result = await client.call_tool("agent_send", {"agent": "ada", "message": "hi", "wait_s": 20})
        assert result.structured_content["status"] == "done"
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            with pytest.raises(MCPError) as refused:
                await ask(client.session, method, "task_x", inputResponses={})
            assert refused.value.code == -32021
            assert refused.value.data == {"requiredCapabilities": {"extensions": {TASKS: {}}}}


@LEGACY
async def test_before_2026_07_28_there_are_no_tasks(serve, slow):
    async with serve(worker="inside", extensions=[Tasks()]) as (_, client):
        await spawn(client)
        asyncio.get_running_loop().call_later(0.2, slow.opened.set)
        result = await client.call_tool("agent_send", {"agent": "ada", "message": "hi", "wait_s": 20})
        assert result.structured_content["status"] == "done"
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            with pytest.raises(MCPError) as refused:
                await ask(client.session, method, "task_x", inputResponses={})
            assert refused.value.code == -32601


@MODERN
async def test_the_server_says_that_it_knows_tasks(serve):
    async with serve() as (_, client):
        assert client.server_capabilities.extensions[TASKS] == {}
        assert client.server_capabilities.model_dump().get("tasks") is None


# ------------------------------------------------------------------------------------------ cancel, ids


@MODERN
async def test_giving_up_is_no_more_than_that(serve, slow):
    async with serve(worker="inside", extensions=[Tasks()]) as (_, client):
        await spawn(client)
        made = await created(client, "agent_send", agent="ada", message="hi", wait_s=5)
        for _ in range(2):
            done = await ask(client.session, "tasks/cancel", made.task_id)
            assert done.keys() <= {"resultType", "_meta"}
            found = await ask(client.session, "tasks/get", made.task_id)
            assert found["status"] == "cancelled"
            assert "the turns go on: agent_wait" in found["statusMessage"]
        slow.opened.set()
        waited = await client.call_tool("agent_wait", {"agents": ["ada"]})
        assert waited.structured_content["census"]["ok"] == 1


@MODERN
@pytest.mark.parametrize(
    "task_id", ["", "task_none", "x" * 200_000, "'; DROP TABLE task; --", "\x00", "a\nb", "\N{SNOWMAN}"]
)
async def test_an_unknown_id_is_an_error_that_says_what_to_do(serve, task_id):
    async with serve(extensions=[Tasks()]) as (_, client):
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            with pytest.raises(MCPError) as missing:
                await ask(client.session, method, task_id, inputResponses={})
            assert missing.value.code == -32602
            assert missing.value.message.startswith(f"unknown task {task_id[:60]!r}")
            assert "known to whoever made the call, for 24 hours" in missing.value.message


@MODERN
@pytest.mark.parametrize(
    "params", [{}, None, {"taskId": 7}, {"taskId": None}, {"taskId": ["a"]}, {"taskId": {"a": 1}}, {"task_id": "x"}]
)
async def test_what_is_no_id_is_refused_by_the_protocol(serve, params):
    class Bare(TaskRequest):
        name_param = None

    async with serve(extensions=[Tasks()]) as (_, client):
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            with pytest.raises(MCPError) as refused:
                await client.session.send_request(Bare(method=method, params=params), JSON)
            assert refused.value.code == -32602
        for method in ("tasks/result", "tasks/list"):
            with pytest.raises(MCPError) as unknown:
                await client.session.send_request(Bare(method=method, params=params), JSON)
            assert unknown.value.code == -32601


# ------------------------------------------------------------------------------------------- questions


async def parked(client: Client) -> str:
    await spawn(client, "counter")
    submit = {"event": "completion:submit", "data": {"agent": "counter", "prompt": "how many?", "expect": EXPECT}}
    return str((await client.call_tool("event_emit", submit)).structured_content["result"]["turn"])


@MODERN
async def test_a_parked_turn_asks_through_the_task_and_its_answer_ends_it(serve):
    tasks = Tasks(action="accept", content={"text": "many"})
    async with serve(worker="inside", extensions=[tasks], elicitation_callback=nobody) as (_, client):
        turn = await parked(client)
        waited = await client.call_tool("agent_wait", {"turns": [turn]})
        (answered,) = waited.structured_content["turns"]
        assert (answered["status"], answered["text"], answered["answered_by"]) == ("done", "42", "operator")
    first, second = tasks.asked.values()
    assert first.startswith("Agent counter needs an answer")
    assert second.startswith("That was not taken: the text is not what turn")
    assert any(found["status"] == "input_required" for found in tasks.seen)


@MODERN
async def test_a_turn_without_room_in_its_budget_asks_for_a_higher_limit(serve):
    tasks = Tasks(action="accept", content={"turns": 5})
    async with serve(worker="inside", extensions=[tasks], elicitation_callback=nobody) as (_, client):
        spawned = {"prompt": "x", "name": "poor", "budget": {"turns": 1, "policy": "park"}}
        assert not (await client.call_tool("agent_spawn", spawned)).is_error
        for message in ("one", "two"):
            done = await client.call_tool("agent_send", {"agent": "poor", "message": message, "wait_s": 20})
            assert done.structured_content["status"] == "done"
    (asked,) = tasks.asked.values()
    assert "Agent poor waits for room in its budget" in asked


@MODERN
async def test_an_answer_that_is_none_is_refused_and_a_declined_question_is_not_asked_again(serve):
    async with serve(worker="inside", extensions=[Tasks()], elicitation_callback=nobody) as (_, client):
        turn = await parked(client)
        made = await created(client, "agent_wait", turns=[turn])
        while True:
            found = await ask(client.session, "tasks/get", made.task_id)
            if found["status"] == "input_required":
                break
        ((key, request),) = found["inputRequests"].items()
        assert request["method"] == "elicitation/create"
        assert request["params"]["mode"] == "form"
        for bad in (7, "yes", [], {"action": "maybe"}, {"content": {"text": "7"}}, None):
            with pytest.raises(MCPError) as refused:
                await ask(client.session, "tasks/update", made.task_id, inputResponses={key: bad})
            assert refused.value.code == -32602
            assert "nothing was done" in refused.value.message
        assert (await ask(client.session, "tasks/get", made.task_id))["inputRequests"] == found["inputRequests"]
        declined = ElicitResult(action="decline").model_dump(by_alias=True, exclude_none=True)
        for _ in range(2):
            await ask(client.session, "tasks/update", made.task_id, inputResponses={key: declined})
        found = await ask(client.session, "tasks/get", made.task_id)
        assert (found["status"], "inputRequests" in found) == ("working", False)
        assert "completion_answer" in found["statusMessage"]
        await client.call_tool("completion_answer", {"turn": turn, "text": "9"})
        found = await ask(client.session, "tasks/get", made.task_id)
        assert found["result"]["structuredContent"]["turns"][0]["text"] == "9"


@MODERN
async def test_of_two_questions_one_can_be_answered_first(serve):
    async with serve(worker="inside", extensions=[Tasks()], elicitation_callback=nobody) as (_, client):
        turns = []
        for name in ("one", "two"):
            await spawn(client, name)
            submit = {"event": "completion:submit", "data": {"agent": name, "prompt": "how many?", "expect": EXPECT}}
            turns.append((await client.call_tool("event_emit", submit)).structured_content["result"]["turn"])
        made = await created(client, "agent_wait", turns=turns)
        while len((await ask(client.session, "tasks/get", made.task_id)).get("inputRequests", {})) < 2:
            pass
        keys = list((await ask(client.session, "tasks/get", made.task_id))["inputRequests"])
        yes = {"action": "accept", "content": {"text": "7"}}
        await ask(client.session, "tasks/update", made.task_id, inputResponses={keys[0]: yes})
        found = await ask(client.session, "tasks/get", made.task_id)
        assert (found["status"], list(found["inputRequests"])) == ("input_required", keys[1:])
        await ask(client.session, "tasks/update", made.task_id, inputResponses=dict.fromkeys(keys, yes))
        found = await ask(client.session, "tasks/get", made.task_id)
        assert [turn["text"] for turn in found["result"]["structuredContent"]["turns"]] == ["7", "7"]


# ----------------------------------------------------------------------------------------------- HTTP


@asynccontextmanager
async def listening(home: Any) -> AsyncIterator[tuple[App, str]]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with App(home, AppOptions(worker="none")) as app:
        serving = asyncio.create_task(serve_http(app, host="127.0.0.1", port=0, token=OWN, on_ready=ready.set_result))
        try:
            yield app, await asyncio.wait_for(ready, 10)
        finally:
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving


@asynccontextmanager
async def over_http(url: str, token: str, **headers: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}", **headers}) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), extensions=[Tasks()]) as client,
    ):
        yield client


async def test_over_http_a_task_is_found_by_whose_token_made_it_through_any_server(home):
    async with listening(home) as (app, one), listening(home) as (_, two):
        operator = fresh_context(OPERATOR)
        ada = (await app.toolbox.call(operator, "agent_spawn", {"name": "ada", "prompt": "x"})).data["agent"]
        reader = (await app.services.access.make(operator, agent=None))[0]
        agent = (await app.services.access.make(operator, agent=ada))[0]
        made = {}
        for token in (OWN, reader, agent):
            async with over_http(one, token) as client:
                made[token] = await created(client, "event_wait", names=["note:made"])
                refused = await client.call_tool("agent_send", {"agent": "ada", "message": "x", "wait_s": 1, "bad": 1})
                assert refused.is_error
        for token in made:
            async with over_http(two, token) as client:
                assert (await ask(client.session, "tasks/get", made[token].task_id))["status"] == "working"
                for foreign in made.keys() - {token}:
                    for method in ("tasks/get", "tasks/update", "tasks/cancel"):
                        with pytest.raises(MCPError) as missing:
                            await ask(client.session, method, made[foreign].task_id, inputResponses={})
                        assert missing.value.message.startswith("unknown task")


async def test_a_request_that_was_routed_to_another_task_is_refused(home):
    class Misrouted(TaskRequest):
        name_param = None

    async with listening(home) as (_, url), over_http(url, OWN, **{"Mcp-Name": "task_other"}) as client:
        request = Misrouted(method="tasks/get", params={"taskId": "task_mine"})
        with pytest.raises(MCPError) as refused:
            await client.session.send_request(request, JSON)
        assert refused.value.code == -32020


# --------------------------------------------------------------------------- processes that come and go


def server_of(home: Any, *more: str) -> StdioServerParameters:
    args = ["-m", "ksi_mcp", "serve", "--home", str(home.root), *more]
    return StdioServerParameters(command=sys.executable, args=args, env={**os.environ, "PYTHONPATH": str(PROJECT)})


def servers(home: Any) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(home.root).encode() in line and b"serve" in line:
                found.append(int(folder.name))
    return found


async def test_a_server_that_is_killed_takes_no_task_with_it(home):
    (home.root / "script.yaml").write_text("default: {reply: '42', latency_s: 3}\n")
    (home.root / "config.yaml").write_text("provider: scripted\nscripted: {script: script.yaml}\nworker: {idle_s: 1}\n")
    made: list[Created] = []
    with pytest.raises(BaseException):  # noqa: B017, PT012  the connection dies in the middle
        async with Client(server_of(home), extensions=[Tasks()]) as first:
            await spawn(first)
            made.append(await created(first, "agent_send", agent="ada", message="6 x 7?", wait_s=5))
            made.append(await created(first, "event_wait", names=["note:made"], timeout_s=5))
            assert (await ask(first.session, "tasks/get", made[0].task_id))["status"] == "working"
            for server in servers(home):
                os.kill(server, signal.SIGKILL)
            await ask(first.session, "tasks/get", made[0].task_id)
    tasks = Tasks()
    async with Client(server_of(home), extensions=[tasks]) as second, asyncio.timeout(40):
        for task_id in (made[0].task_id, made[1].task_id):
            assert (await ask(second.session, "tasks/get", task_id))["status"] in ("working", "completed")
        await second.call_tool("event_emit", {"event": "note:made", "data": {"x": 1}})
        context = type("Context", (), {"session": second.session})
        answer = await tasks.finish(made[0], context)
        event = await tasks.finish(made[1], context)
        history = await second.call_tool("agent_history", {"agent": "ada"})
    assert answer.structured_content["text"] == "42"
    assert [turn["prompt"] for turn in history.structured_content["turns"]] == ["6 x 7?"]  # sent once
    assert event.structured_content["events"][0]["data"] == {"x": 1}
