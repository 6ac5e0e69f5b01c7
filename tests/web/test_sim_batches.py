from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimLimits, SimServer

BATCHES = "/v1/messages/batches"
PARAMS: dict[str, Any] = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}


class SteppedClock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nobody sleeps for a batch, least of all {seconds} s")


def sim_of(data: Any = None, **more: Any) -> SimServer:
    return SimServer(Script(parse_script(data)), **more)


def client_of(sim: SimServer, **headers: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=sim.url, headers=headers or {"x-api-key": "any"}, trust_env=False, timeout=10)


def batch_of(*prompts: str) -> dict[str, Any]:
    return {
        "requests": [
            {"custom_id": prompt, "params": {**PARAMS, "messages": [{"role": "user", "content": prompt}]}}
            for prompt in prompts
        ]
    }


def results_of(response: httpx2.Response) -> dict[str, Any]:
    return {item["custom_id"]: item["result"] for item in map(json.loads, response.text.splitlines())}


async def test_a_batch_ends_when_its_slowest_request_is_ready() -> None:
    clock = SteppedClock()
    script = {"replies": [{"match": {"prompt": "slow"}, "reply": "late", "latency_s": 60}, {"reply": "soon"}]}
    async with sim_of(script, clock=clock) as sim, client_of(sim) as client:
        made = (await client.post(BATCHES, json=batch_of("slow", "quick"))).json()
        assert (made["type"], made["processing_status"], made["results_url"]) == ("message_batch", "in_progress", None)
        assert made["request_counts"]["processing"] == 2
        one = f"{BATCHES}/{made['id']}"
        assert (await client.get(f"{one}/results")).status_code == 404
        clock.now_s += 60
        ended = (await client.get(one)).json()
        assert (ended["processing_status"], ended["request_counts"]["succeeded"]) == ("ended", 2)
        results = results_of(await client.get(ended["results_url"]))
    assert list(results) == ["quick", "slow"]
    assert results["slow"]["message"]["content"] == [{"type": "text", "text": "late"}]
    assert results["slow"]["message"]["usage"]["service_tier"] == "batch"


async def test_each_request_ends_in_its_own_way() -> None:
    script = {
        "replies": [
            {"match": {"prompt": "full"}, "fail": {"kind": "overload"}},
            {"match": {"prompt": "cut"}, "fail": {"kind": "drop"}},
            {"match": {"prompt": "long"}, "fail": {"kind": "timeout"}},
            {"reply": "ok"},
        ]
    }
    asked = batch_of("full", "cut", "long", "good")
    asked["requests"].append({"custom_id": "wrong", "params": {"model": "m"}})
    async with sim_of(script) as sim, client_of(sim) as client:
        made = (await client.post(BATCHES, json=asked)).json()
        results = results_of(await client.get(f"{BATCHES}/{made['id']}/results"))
    assert {name: result["type"] for name, result in results.items()} == {
        "full": "errored",
        "cut": "errored",
        "long": "expired",
        "good": "succeeded",
        "wrong": "errored",
    }
    types = {name: results[name]["error"]["error"]["type"] for name in ("full", "cut", "wrong")}
    assert types == {"full": "overloaded_error", "cut": "api_error", "wrong": "invalid_request_error"}


async def test_what_is_not_ready_when_a_batch_is_canceled_is_left_undone() -> None:
    clock = SteppedClock()
    script = {"replies": [{"match": {"prompt": "slow"}, "reply": "late", "latency_s": 60}, {"reply": "soon"}]}
    async with sim_of(script, clock=clock) as sim, client_of(sim) as client:
        one = f"{BATCHES}/{(await client.post(BATCHES, json=batch_of('slow', 'quick'))).json()['id']}"
        assert (await client.post(f"{one}/cancel")).json()["processing_status"] == "canceling"
        assert (await client.get(one)).json()["request_counts"]["canceled"] == 1
        results = results_of(await client.get(f"{one}/results"))
        assert (await client.post(f"{one}/cancel")).status_code == 400
    assert {name: result["type"] for name, result in results.items()} == {"slow": "canceled", "quick": "succeeded"}


async def test_batches_are_listed_newest_first_and_by_pages() -> None:
    async with sim_of() as sim, client_of(sim) as client:
        ids = [(await client.post(BATCHES, json=batch_of("a"))).json()["id"] for _ in range(3)]
        first = (await client.get(BATCHES, params={"limit": 2})).json()
        assert ([batch["id"] for batch in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
        last = (await client.get(BATCHES, params={"after_id": first["last_id"]})).json()
        assert ([batch["id"] for batch in last["data"]], last["has_more"]) == ([ids[0]], False)
        assert (await client.get(BATCHES, params={"limit": "many"})).status_code == 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "requests"),
        ({"requests": []}, "requests"),
        ({"requests": ["a"]}, "requests.0.custom_id"),
        ({"requests": [{"custom_id": "a b", "params": PARAMS}]}, "requests.0.custom_id"),
        ({"requests": [{"custom_id": "a" * 65, "params": PARAMS}]}, "requests.0.custom_id"),
        ({"requests": [{"custom_id": "a"}]}, "requests.0.params"),
        ({"requests": [{"custom_id": "a", "params": PARAMS}] * 2}, "not unique"),
    ],
)
async def test_a_wrong_batch_is_refused(body: dict[str, Any], said: str) -> None:
    async with sim_of() as sim, client_of(sim) as client:
        response = await client.post(BATCHES, json=body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert said in response.json()["error"]["message"]


async def test_nothing_is_told_without_a_key_or_of_what_is_not_there() -> None:
    async with sim_of() as sim, client_of(sim, accept="*/*") as stranger, client_of(sim) as client:
        assert (await stranger.post(BATCHES, json=batch_of("a"))).status_code == 401
        assert (await client.post(BATCHES, content=b"{")).status_code == 400
        for call in (client.get(f"{BATCHES}/nothing"), client.get(f"{BATCHES}/nothing/results")):
            assert (await call).status_code == 404
        assert (await client.post(f"{BATCHES}/nothing/cancel")).status_code == 404


async def test_submitting_counts_for_the_rate() -> None:
    limits = SimLimits(requests_per_second=1)
    async with sim_of(clock=SteppedClock(), limits=limits) as sim, client_of(sim) as client:
        assert (await client.post(BATCHES, json=batch_of("a"))).status_code == 200
        refused = await client.post(BATCHES, json=batch_of("b"))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
