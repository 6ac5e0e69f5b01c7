from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from ksi_mcp.errors import Invalid
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimLimits, SimServer, serve_sim
from ksi_mcp.web.sim_wire import signature_of

BODY: dict[str, Any] = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
USE = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "seen"}]}


THOUGHT = [
    {"type": "thinking", "thinking": "hm", "signature": signature_of("hm")},
    {"type": "redacted_thinking", "data": "xyz"},
]


def thinking(text: str, signature: str | None) -> list[dict[str, Any]]:
    block = {"type": "thinking", "thinking": text, "signature": signature}
    return [{"role": "user", "content": "a"}, {"role": "assistant", "content": [block]}]


def sim_of(data: Any = None, **more: Any) -> SimServer:
    return SimServer(Script(parse_script(data)), **more)


def client_of(sim: SimServer, **headers: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=sim.url, headers=headers or {"x-api-key": "any"}, trust_env=False, timeout=10)


def events_of(text: str) -> list[dict[str, Any]]:
    frames = [frame.split("\n") for frame in text.strip().split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name.removeprefix("event: ") for name, _ in frames] == [event["type"] for event in events]
    return events


async def test_a_stream_has_the_events_of_the_real_api_in_order() -> None:
    script = {"replies": [{"reply": "hello there", "tool_calls": [{"name": "look", "input": {"at": "{{prompt}}"}}]}]}
    async with sim_of(script) as sim, client_of(sim) as client:
        response = await client.post("/v1/messages", json={**BODY, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(d["text"] for d in deltas if d["type"] == "text_delta") == "hello there"
    partial = "".join(d["partial_json"] for d in deltas if d["type"] == "input_json_delta")
    assert json.loads(partial) == {"at": "hi"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] > 1


async def test_tools_that_a_client_loads_by_reference_are_results_by_name() -> None:
    loaded = {**RESULT, "content": [{"type": "tool_reference", "tool_name": name} for name in ("look", "find")]}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [USE]},
        {"role": "user", "content": [loaded, {"type": "text", "text": "Tool loaded."}]},
    ]
    tools = [{"name": name, "input_schema": {"type": "object"}, "defer_loading": True} for name in ("look", "find")]
    heard: list[bytes] = []
    script = {"replies": [{"match": {"prompt": "hi", "round": 2}, "reply": "{{results[0]}}"}]}
    async with sim_of(script, heard=heard.append) as sim, client_of(sim) as client:
        body = {**BODY, "messages": messages, "tools": tools}
        answer = (await client.post("/v1/messages", json=body)).json()
    assert answer["content"] == [{"type": "text", "text": "look\nfind"}]
    assert [json.loads(raw) for raw in heard] == [body]


async def test_what_a_script_thinks_comes_first_and_signed() -> None:
    script = {"replies": [{"thinking": "about {{prompt}}", "reply": "so"}]}
    async with sim_of(script) as sim, client_of(sim) as client:
        whole = (await client.post("/v1/messages", json=BODY)).json()
        streamed = events_of((await client.post("/v1/messages", json={**BODY, "stream": True})).text)
    thought = {"type": "thinking", "thinking": "about hi", "signature": signature_of("about hi")}
    assert whole["content"] == [thought, {"type": "text", "text": "so"}]
    deltas = [event["delta"] for event in streamed if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "about hi"
    assert [delta["signature"] for delta in deltas if "signature" in delta] == [signature_of("about hi")]
    starts = [event["content_block"]["type"] for event in streamed if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text"]


async def test_usage_tells_the_caches_the_searches_and_the_tier_apart() -> None:
    usage = {"cache_read_tokens": 5, "cache_write_tokens": 3, "cache_write_1h_tokens": 2, "web_searches": 4}
    async with sim_of({"default": {"reply": "ok", "usage": usage}}) as sim, client_of(sim) as client:
        said = (await client.post("/v1/messages", json=BODY)).json()["usage"]
    assert said["cache_creation"] == {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2}
    assert (said["cache_creation_input_tokens"], said["cache_read_input_tokens"]) == (5, 5)
    assert said["server_tool_use"] == {"web_search_requests": 4, "web_fetch_requests": 0}
    assert said["service_tier"] == "standard"


async def test_a_cache_a_schema_and_an_effort_are_accepted() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    body = {
        **BODY,
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": schema}},
    }
    async with sim_of() as sim, client_of(sim) as client:
        assert (await client.post("/v1/messages", json=body)).status_code == 200


async def test_without_stream_the_answer_is_one_object() -> None:
    async with sim_of({"default": {"reply": "ok"}}) as sim, client_of(sim, authorization="Bearer any") as client:
        response = await client.post("/v1/messages", json={**BODY, "metadata": {"user_id": "ann"}})
    answer = response.json()
    assert answer["content"] == [{"type": "text", "text": "ok"}]
    assert (answer["stop_reason"], answer["role"], answer["usage"]["input_tokens"]) == ("end_turn", "assistant", 1)
    assert response.headers["request-id"]
    assert response.headers["anthropic-ratelimit-requests-remaining"]
    (seen,) = sim.log
    assert (seen.agent, seen.turn, seen.round, seen.status, seen.outcome) == ("ann", 1, 1, 200, "ok")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "model"),
        ({"max_tokens": 0}, "max_tokens: must be greater"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": []}, "at least one message"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "first message"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"messages": [{"role": "user", "content": ""}]}, "non-empty"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "non-whitespace"),
        ({"messages": [{"role": "user", "content": [{"type": "song"}]}]}, "'song'"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "unexpected `tool_use_id`"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [USE]}]}, "without"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": [USE]},
                    {"role": "user", "content": "b"},
                ]
            },
            "without `tool_result`",
        ),
        ({"temperature": 0.5}, "temperature: Extra inputs"),
        ({"top_p": 0.5}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools.0.name"),
        ({"tools": [{"name": "a", "input_schema": {}}]}, "input_schema"),
        ({"tools": [{"name": "a", "input_schema": {"type": "object"}}] * 2}, "unique"),
        ({"metadata": {"user_id": 7}}, "user_id"),
        ({"system": 7}, "system"),
        ({"stream": "yes"}, "stream"),
        ({"cache_control": {"type": "lasting"}}, "cache_control.type"),
        ({"cache_control": {"type": "ephemeral", "ttl": "1d"}}, "cache_control.ttl"),
        ({"output_config": "high"}, "output_config"),
        ({"output_config": {"effort": "extreme"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}, "additionalProperties"),
        ({"messages": thinking("hm", "made up")}, "Invalid `signature`"),
        ({"messages": thinking("hm", None)}, "signature: Field required"),
    ],
)
async def test_a_wrong_request_is_refused_as_the_api_does(change: dict[str, Any], said: str) -> None:
    async with sim_of() as sim, client_of(sim) as client:
        response = await client.post("/v1/messages", json={**BODY, **change})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert said in response.json()["error"]["message"]
    assert [(seen.status, seen.outcome) for seen in sim.log] == [(400, "error")]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"\xff"])
async def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    async with sim_of() as sim, client_of(sim) as client:
        response = await client.post("/v1/messages", content=body)
    assert response.status_code == 400


@pytest.mark.parametrize("name", ["model", "max_tokens", "messages"])
async def test_a_missing_field_is_named(name: str) -> None:
    body = {key: value for key, value in BODY.items() if key != name}
    async with sim_of() as sim, client_of(sim) as client:
        response = await client.post("/v1/messages", json=body)
    assert response.json()["error"]["message"] == f"{name}: Field required"


async def test_a_request_without_a_key_is_401() -> None:
    async with sim_of() as sim, client_of(sim, accept="*/*") as client:
        response = await client.post("/v1/messages", json=BODY)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


async def test_a_conversation_with_tools_and_system_parts_is_understood() -> None:
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [*THOUGHT, USE]},
        {"role": "user", "content": [RESULT]},
        {"role": "system", "content": "now hurry"},
    ]
    script = {"replies": [{"match": {"system": "/brief.*hurry/"}, "reply": "{{round}} {{results[0]}}"}]}
    system = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    async with sim_of(script) as sim, client_of(sim) as client:
        response = await client.post("/v1/messages", json={**BODY, "messages": messages, "system": system})
    assert response.json()["content"][0]["text"] == "2 seen"


async def test_faults_reach_a_caller_that_does_not_stream() -> None:
    script = {
        "replies": [
            {"match": {"prompt": kind}, "reply": "x", "fail": {"kind": kind, "retry_after_s": 1.5}}
            for kind in ("rate", "mid_stream", "drop")
        ]
    }

    def asking(prompt: str) -> dict[str, Any]:
        return {**BODY, "messages": [{"role": "user", "content": prompt}]}

    async with sim_of(script) as sim, client_of(sim) as client:
        limited = await client.post("/v1/messages", json=asking("rate"))
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "2")
        assert limited.headers["retry-after-ms"] == "1500"
        overloaded = await client.post("/v1/messages", json=asking("mid_stream"))
        assert (overloaded.status_code, overloaded.json()["error"]["type"]) == (529, "overloaded_error")
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post("/v1/messages", json=asking("drop"))
        await sim.idle()
    assert [seen.status for seen in sim.log] == [429, 529, None]


async def test_models_tokens_and_unknown_paths() -> None:
    async with sim_of() as sim, client_of(sim) as client:
        models = (await client.get("/v1/models")).json()
        assert "claude-haiku-5-5" in [model["id"] for model in models["data"]]
        assert (await client.get("/v1/models/claude-haiku-5-5")).json()["id"] == "claude-haiku-5-5"
        body = {"model": "m", "messages": [{"role": "user", "content": "x" * 40}]}
        assert (await client.post("/v1/messages/count_tokens", json=body)).json() == {"input_tokens": 10}
        assert (await client.post("/v1/messages/count_tokens", json={})).status_code == 400
        nothing = await client.get("/v1/nothing")
        assert (nothing.status_code, nothing.json()["error"]["type"]) == (404, "not_found_error")
        assert (await client.get("/v1/messages")).status_code == 405


class StillClock:
    """Time stands still, and whoever sleeps waits for `wake`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.wake = asyncio.Event()
        self.asleep = asyncio.Semaphore(0)

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.asleep.release()
        await self.wake.wait()


async def test_requests_beyond_the_rate_get_429_until_time_passes() -> None:
    clock = StillClock()
    limits = SimLimits(requests_per_second=2)
    async with sim_of(clock=clock, limits=limits) as sim, client_of(sim) as client:
        answers = [await client.post("/v1/messages", json=BODY) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].headers["retry-after-ms"] == "500"
        clock.now_s += 0.5
        assert (await client.post("/v1/messages", json=BODY)).status_code == 200


async def test_requests_beyond_the_concurrency_get_429_and_the_log_shows_it() -> None:
    clock = StillClock()
    script = {"defaults": {"latency_s": 1}}
    async with (
        asyncio.timeout(10),
        sim_of(script, clock=clock, limits=SimLimits(max_in_flight=2)) as sim,
        client_of(sim) as client,
    ):
        slow = [asyncio.create_task(client.post("/v1/messages", json=BODY)) for _ in range(2)]
        for _ in slow:
            await clock.asleep.acquire()
        refused = await client.post("/v1/messages", json=BODY)
        assert refused.status_code == 429
        log = (await client.get("/_sim/log")).json()
        assert (log["in_flight"], log["max_in_flight"], len(log["requests"])) == (2, 3, 1)
        clock.wake.set()
        assert [(await call).status_code for call in slow] == [200, 200]
        assert sim.max_in_flight == 3


async def test_a_client_that_leaves_while_waiting_is_noticed() -> None:
    clock = StillClock()
    slow = {"defaults": {"latency_s": 1}}
    async with asyncio.timeout(10), sim_of(slow, clock=clock) as sim, client_of(sim) as client:
        call = asyncio.create_task(client.post("/v1/messages", json=BODY))
        await clock.asleep.acquire()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await sim.idle()
    assert [(seen.status, seen.outcome) for seen in sim.log] == [(None, "left")]


async def test_closing_the_server_ends_what_is_under_way() -> None:
    clock = StillClock()
    async with asyncio.timeout(10):
        async with sim_of({"defaults": {"latency_s": 1}}, clock=clock) as sim:
            client = client_of(sim)
            call = asyncio.create_task(client.post("/v1/messages", json=BODY))
            await clock.asleep.acquire()
        with pytest.raises(httpx2.TransportError):
            await call
        await client.aclose()


async def test_a_port_in_use_is_said_without_a_traceback() -> None:
    async with sim_of() as sim:
        port = int(sim.url.rsplit(":", 1)[1])
        with pytest.raises(Invalid, match=f"port {port}"):
            async with sim_of(port=port):
                pass


async def test_serve_sim_serves_until_it_is_cancelled() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_sim(Script(parse_script(None)), on_ready=ready.set_result))
    async with asyncio.timeout(10):
        url = await ready
        assert url.startswith("http://127.0.0.1:")
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/v1/models")).status_code == 200
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
