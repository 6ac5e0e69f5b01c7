"""The door for agent processes: who may do what through it, as seen by real MCP clients of both eras."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from ksi_mcp.permissions import Slot, agent_actor, fresh_context
from ksi_mcp.providers.base import Behalf
from ksi_mcp.providers.door import Door, Grant, LazyDoor
from ksi_mcp.tools.agent_tools import AgentTools
from ksi_mcp.transports import agent_door
from ksi_mcp.transports.agent_door import AgentDoor
from ksi_mcp.transports.http import MAX_BODY_BYTES

HEADERS = {"Accept": "application/json, text/event-stream"}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


class Place:
    """An agent's place in the worker: given away while it rests."""

    def __init__(self) -> None:
        self.given_away = 0
        self.times = 0

    @contextmanager
    def resting(self) -> Iterator[None]:
        self.given_away += 1
        self.times += 1
        try:
            yield
        finally:
            self.given_away -= 1


class Hall:
    """A house with a door to it."""

    def __init__(self, house: Any) -> None:
        self.house = house
        services = house.app.services
        self.tools = AgentTools(house.app.toolbox)
        self.door = LazyDoor(
            lambda: AgentDoor(
                self.tools, lambda agent: services.journal.read(lambda tx: services.roster.get(tx, agent))
            )
        )
        self.place = Place()
        self.lost = asyncio.Event()

    async def behalf(self, agent_id: str, slot: Slot | None = None) -> Behalf:
        services = self.house.app.services
        agent = await services.journal.read(lambda tx: services.roster.get(tx, agent_id))
        ctx = replace(fresh_context(agent_actor(agent_id)), slot=slot)
        return Behalf(ctx=ctx, tools=self.tools.specs(agent) or (), resting=self.place.resting)

    async def admit(self, agent_id: str) -> Grant:
        return await self.door.admit(agent_id, (await self.behalf(agent_id)).tools)

    async def enter(self, grant: Grant, agent_id: str, slot: Slot | None = None) -> None:
        self.door.enter(grant.token, await self.behalf(agent_id, slot), self.lost.set)


OpenHall = Callable[[], AbstractAsyncContextManager[Hall]]


@pytest.fixture
def open_hall(open_house) -> OpenHall:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Hall]:
        async with open_house({"default": {"reply": "late", "latency_s": 1}}) as house:
            hall = Hall(house)
            try:
                yield hall
            finally:
                house.gate.opened.set()
                await hall.door.aclose()

    return opened


@asynccontextmanager
async def client_of(grant: Grant, era: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {grant.token}"}, timeout=30) as http,
        Client(streamable_http_client(grant.url, http_client=http), mode=era) as client,
    ):
        yield client


async def call(client: Client, tool: str, **args: Any) -> tuple[bool, str]:
    result = await client.call_tool(tool, args)
    return bool(result.is_error), str(result.content[0].text)  # type: ignore[union-attr]


async def test_a_door_that_nobody_asks_for_is_never_built() -> None:
    built: list[Door] = []
    door = LazyDoor(lambda: built[0])
    door.close("unknown")
    await door.leave("unknown")
    await door.aclose()
    assert built == []


async def test_an_agent_acts_as_itself_within_its_reach_and_no_further(open_hall, era) -> None:
    async with open_hall() as hall:
        house = hall.house
        ada = await house.spawn("ada", ("base", "routing_control"))
        bob = await house.spawn("bob")
        grant = await hall.admit(ada)
        await hall.enter(grant, ada)
        async with client_of(grant, era) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert names == {spec.name for spec in (await hall.behalf(ada)).tools}
            assert "agent_spawn" not in names
            failed, text = await call(client, "routing_add_rule", source_pattern="a:b", target=f"agent:{ada}")
            assert not failed, text
            assert json.loads(text)["created_by"] == f"agent:{ada}"
            failed, text = await call(client, "routing_add_rule", source_pattern="a:b", target=f"agent:{bob}")
            assert failed
            assert "beyond the routing level" in text
            # Whoever else it says it is, the token decides.
            failed, text = await call(client, "agent_spawn", prompt="x", name="eve")
            assert (failed, text) == (True, "refused: 'agent_spawn' is not one of your tools")
        sources = (
            "SELECT name, source FROM event WHERE name IN ('routing:rule_added', 'system:refused') ORDER BY event_id"
        )
        assert house.rows(sources) == [("routing:rule_added", f"agent:{ada}"), ("system:refused", f"agent:{ada}")]


async def test_outside_of_a_turn_nothing_can_be_called(open_hall, era) -> None:
    async with open_hall() as hall:
        ada = await hall.house.spawn("ada", ("base",))
        grant = await hall.admit(ada)
        async with client_of(grant, era) as client:
            assert len((await client.list_tools()).tools) > 0
            refused = (True, "refused: no turn of yours is at work")
            assert await call(client, "agent_list") == refused
            await hall.enter(grant, ada)
            assert not (await call(client, "agent_list"))[0]
            await hall.door.leave(grant.token)
            assert await call(client, "agent_list") == refused


async def test_a_token_opens_for_one_agent_until_its_process_has_ended(open_hall) -> None:
    async with open_hall() as hall, httpx2.AsyncClient() as http:
        ada, bob = await hall.house.spawn("ada", ("base",)), await hall.house.spawn("bob")
        grant, other = await hall.admit(ada), await hall.admit(bob)
        assert grant.token != other.token
        assert len(grant.token) >= 43
        with pytest.raises(ValueError, match="another agent"):
            await hall.enter(grant, bob)

        async def status(headers: dict[str, str], url: str = grant.url, **more: Any) -> int:
            return int((await http.post(url, headers={**HEADERS, **headers}, **(more or {"json": LIST}))).status_code)

        mine = {"Authorization": f"Bearer {grant.token}"}
        assert [await status(each) for each in ({}, {"Authorization": "Bearer x"}, {"Authorization": grant.token})] == [
            401
        ] * 3
        assert await status({**mine, "Host": "evil.example"}) == 421
        assert await status({**mine, "Origin": "http://127.0.0.1:1"}) == 403
        assert await status(mine, content=b"x" * (MAX_BODY_BYTES + 1)) == 413
        assert await status(mine, url=grant.url.replace("/mcp", "/sse")) == 404
        assert await status(mine) != 401
        hall.door.close(grant.token)
        assert await status(mine) == 401
        assert grant.url.startswith("http://127.0.0.1:")


async def test_a_tool_that_waits_gives_the_turns_place_away_once(open_hall, era) -> None:
    async with open_hall() as hall:
        house = hall.house
        ada = await house.spawn("ada", ("base", "messaging"))
        helper = await house.spawn("helper", parent=ada)
        turns = [(await house.call("agent_send", agent=helper, message="go"))["turn"]]
        grant = await hall.admit(ada)
        await hall.enter(grant, ada)
        async with client_of(grant, era) as client:
            waits = [asyncio.create_task(call(client, "agent_wait", turns=turns, timeout_s=20)) for _ in range(2)]
            await house.started()
            await house.until(lambda: hall.place.given_away == 1)
            assert not (await call(client, "agent_list"))[0]  # others go on meanwhile
            house.gate.opened.set()
            assert [json.loads(text)["census"]["ok"] for _, text in await asyncio.gather(*waits)] == [1, 1]
        assert hall.place.given_away == 0


async def test_a_tool_that_takes_long_says_now_and_then_that_it_is_at_work(open_hall, era, monkeypatch) -> None:
    monkeypatch.setattr(agent_door, "PROGRESS_S", 0.01)
    async with open_hall() as hall:
        house = hall.house
        ada = await house.spawn("ada", ("base", "messaging"))
        helper = await house.spawn("helper", parent=ada)
        turn = (await house.call("agent_send", agent=helper, message="go"))["turn"]
        grant = await hall.admit(ada)
        await hall.enter(grant, ada)
        heard: list[str | None] = []

        async def hear(_done: float, _total: float | None, message: str | None) -> None:
            heard.append(message)
            house.gate.opened.set()

        async with client_of(grant, era) as client:
            args = {"turns": [turn], "timeout_s": 20}
            assert not (await client.call_tool("agent_wait", args, progress_callback=hear)).is_error
        assert set(heard) == {"waiting"}


async def test_calls_under_way_end_with_the_turn(open_hall, era) -> None:
    async with open_hall() as hall:
        house = hall.house
        ada = await house.spawn("ada", ("base", "messaging"))
        helper = await house.spawn("helper", parent=ada)
        turn = (await house.call("agent_send", agent=helper, message="go"))["turn"]
        grant = await hall.admit(ada)
        await hall.enter(grant, ada)
        async with client_of(grant, era) as client:
            waiting = asyncio.create_task(call(client, "agent_wait", turns=[turn], timeout_s=20))
            await house.until(lambda: hall.place.given_away == 1)
            await hall.door.leave(grant.token)
            assert hall.place.given_away == 0
            assert await waiting == (True, "refused: no turn of yours is at work")


async def test_a_turn_that_was_taken_over_is_told_so(open_hall, era) -> None:
    async with open_hall() as hall:
        ada = await hall.house.spawn("ada", ("base", "routing_control"))
        grant = await hall.admit(ada)
        await hall.enter(grant, ada, Slot(turn_id="t_gone", attempt=1, owner="w_old", round=1, index=0))  # type: ignore[arg-type]
        async with client_of(grant, era) as client:
            failed, text = await call(client, "routing_add_rule", source_pattern="a:b", target=f"agent:{ada}")
            assert failed
            assert "taken over" in text
        assert hall.lost.is_set()
        assert hall.house.rows("SELECT * FROM rule") == []


async def test_arguments_may_be_anything(open_hall, era) -> None:
    async with open_hall() as hall:
        ada = await hall.house.spawn("ada", ("base", "routing_control"))
        grant = await hall.admit(ada)
        await hall.enter(grant, ada)
        async with client_of(grant, era) as client:
            failed, text = await call(client, "routing_add_rule", source_pattern=[1], actor="operator")
            assert failed
            assert "actor" in text
            assert (await call(client, "x" * 5000))[0]
