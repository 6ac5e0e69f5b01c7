from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimLimits, SimServer

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CALL = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
LOOKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
PATH = "/v1/chat/completions"


def sim_of(data: Any = None, **more: Any) -> SimServer:
    return SimServer(Script(parse_script(data)), **more)


def client_of(sim: SimServer) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=sim.url, trust_env=False, timeout=10)


def chunks_of(text: str) -> list[dict[str, Any]]:
    frames = text.strip().split("\n\n")
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


async def test_a_stream_has_the_chunks_of_the_real_api_in_order() -> None:
    script = {"replies": [{"reply": "hello there", "tool_calls": [{"name": "look", "input": {"at": "{{prompt}}"}}]}]}
    async with sim_of(script) as sim, client_of(sim) as client:
        wanted = {**BODY, "stream": True, "stream_options": {"include_usage": True}, "user": "ann"}
        response = await client.post(PATH, json=wanted)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"]
    *chunks, last = chunks_of(response.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(delta.get("content") or "" for delta in deltas) == "hello there"
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert (calls[0]["index"], calls[0]["function"]["name"]) == (0, "look")
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"at": "hi"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "tool_calls"]
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    (seen,) = sim.log
    assert (seen.agent, seen.stream, seen.outcome) == ("ann", True, "ok")


async def test_usage_comes_in_a_stream_only_if_it_is_asked_for() -> None:
    async with sim_of() as sim, client_of(sim) as client:
        response = await client.post(PATH, json={**BODY, "stream": True})
    assert all("usage" not in chunk for chunk in chunks_of(response.text))


async def test_without_stream_the_answer_is_one_object() -> None:
    usage = {"input_tokens": 3, "output_tokens": 2, "cache_read_tokens": 5, "cache_write_tokens": 1}
    async with sim_of({"default": {"reply": "ok", "usage": usage}}) as sim, client_of(sim) as client:
        answer = (await client.post(PATH, json=BODY)).json()
    (choice,) = answer["choices"]
    assert (answer["object"], choice["message"]["content"], choice["finish_reason"]) == (
        "chat.completion",
        "ok",
        "stop",
    )
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (9, 2)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 5, "cache_write_tokens": 1}


async def test_a_conversation_with_tools_is_understood_as_one_turn_of_two_rounds() -> None:
    result = {"role": "tool", "tool_call_id": "t1", "content": [{"type": "text", "text": '{"colour": "blue"}'}]}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "look"},
        LOOKED,
        result,
        {"role": "developer", "content": "now hurry"},
    ]
    script = {"replies": [{"match": {"system": "/brief.*hurry/"}, "reply": "{{turn}} {{round}} {{results[0].colour}}"}]}
    async with sim_of(script) as sim, client_of(sim) as client:
        answer = (await client.post(PATH, json={**BODY, "messages": messages})).json()
    assert answer["choices"][0]["message"]["content"] == "1 2 blue"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "tool_call_id": "t1", "content": "r"}]}, "preceding 'tool_calls'"),
        ({"messages": [{"role": "user", "content": "a"}, LOOKED]}, "tool messages"),
        ({"messages": [LOOKED, {"role": "user", "content": "a"}]}, "t1"),
        ({"messages": [{**LOOKED, "tool_calls": [{"id": "t1", "function": {"name": "f"}}]}]}, "arguments"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "same time"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"user": 7}, "user"),
    ],
)
async def test_a_wrong_request_is_refused_as_the_api_does(change: dict[str, Any], said: str) -> None:
    async with sim_of() as sim, client_of(sim) as client:
        response = await client.post(PATH, json={**BODY, **change})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert said in response.json()["error"]["message"]
    assert [(seen.status, seen.outcome) for seen in sim.log] == [(400, "error")]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"\xff"])
async def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    async with sim_of() as sim, client_of(sim) as client:
        assert (await client.post(PATH, content=body)).status_code == 400


async def test_limits_and_faults_speak_the_same_language() -> None:
    fail = {"kind": "mid_stream", "after_chars": 3, "status": 429}
    script = {"replies": [{"match": {"prompt": "break"}, "reply": "hello", "fail": fail}]}
    async with sim_of(script, limits=SimLimits(max_in_flight=0)) as sim, client_of(sim) as client:
        limited = await client.post(PATH, json=BODY)
        assert (limited.status_code, limited.json()["error"]["type"]) == (429, "rate_limit_exceeded")
        assert limited.headers["retry-after-ms"] == "100"
        assert limited.headers["x-ratelimit-limit-requests"]
    async with sim_of(script) as sim, client_of(sim) as client:
        asked = {**BODY, "messages": [{"role": "user", "content": "break"}], "stream": True}
        broken = (await client.post(PATH, json=asked)).text.strip().split("\n\n")
    assert json.loads(broken[-1].removeprefix("data: "))["error"]["code"] == 429


async def test_models_are_listed_for_either_kind_of_client() -> None:
    async with sim_of() as sim, client_of(sim) as client:
        listed = (await client.get("/v1/models")).json()
        assert (listed["object"], listed["data"][0]["object"]) == ("list", "model")
        assert (await client.get("/v1/models/m")).json()["object"] == "model"
        version = {"anthropic-version": "2026-10-21"}
        assert "has_more" in (await client.get("/v1/models", headers=version)).json()
        assert (await client.get("/v1/models/m", headers=version)).json()["type"] == "model"
