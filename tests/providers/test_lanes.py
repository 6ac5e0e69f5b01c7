from __future__ import annotations

import asyncio

import httpx2
import pytest

from ksi_mcp.providers.lanes import environment_proxy, open_client
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimServer


def client_of(sim: SimServer, *, connections: int, keep_s: float = 60, local: bool = True) -> httpx2.AsyncClient:
    return open_client({}, base_url=sim.url, connections=connections, keep_s=keep_s, connect_s=10, local=local)


async def test_calls_one_after_another_use_one_connection() -> None:
    async with SimServer(Script(parse_script(None))) as sim, client_of(sim, connections=100) as client:
        for _ in range(5):
            assert (await client.get(f"{sim.url}/v1/models")).status_code == 200
            assert sim.open_connections == 1


@pytest.mark.parametrize("local", [True, False])
async def test_many_calls_at_once_spread_and_no_more_connections_are_opened_than_allowed(local: bool) -> None:
    async with SimServer(Script(parse_script(None))) as sim, client_of(sim, connections=40, local=local) as client:
        asked = [client.get(f"{sim.url}/v1/models") for _ in range(200)]
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
        assert 16 < sim.open_connections <= 40


async def test_pools_that_nobody_needs_any_more_are_closed() -> None:
    async with SimServer(Script(parse_script(None))) as sim, client_of(sim, connections=40, keep_s=0) as client:
        await asyncio.gather(*(client.get(f"{sim.url}/v1/models") for _ in range(40)))
        async with asyncio.timeout(10):
            while sim.open_connections > 16:  # those of the first pool, which is in use
                await client.get(f"{sim.url}/v1/models")


async def test_a_call_that_fails_gives_its_place_back() -> None:
    async with SimServer(Script(parse_script(None))) as sim, client_of(sim, connections=1) as client:
        for _ in range(20):
            with pytest.raises(httpx2.ConnectError):
                await client.get("http://127.0.0.1:1/")
        async with asyncio.timeout(10):
            assert (await client.get(f"{sim.url}/v1/models")).status_code == 200


@pytest.mark.parametrize(
    ("environ", "url", "wanted"),
    [
        ({}, "https://a.example/v1", None),
        ({"https_proxy": "http://p:1"}, "https://a.example/v1", "http://p:1"),
        ({"https_proxy": "p:1"}, "https://a.example/v1", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "https://a.example/v1", None),
        ({"all_proxy": "http://p:1"}, "https://a.example/v1", "http://p:1"),
        ({"https_proxy": "http://p:1", "no_proxy": "a.example"}, "https://a.example/v1", None),
        ({"https_proxy": "http://p:1", "no_proxy": "b.example"}, "https://a.example/v1", "http://p:1"),
        ({"https_proxy": "http://p:1", "no_proxy": "*"}, "https://a.example/v1", None),
    ],
)
def test_the_proxy_is_the_one_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], url: str, wanted: str | None
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert environment_proxy(url) == wanted
