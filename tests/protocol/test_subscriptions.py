"""Notices of changed resources: `resources/subscribe` before 2026-07-28, `subscriptions/listen` since."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.subscriptions import ResourcesListChanged, ResourceUpdated
from mcp.types import ResourceListChangedNotification, ResourceUpdatedNotification

from ksi_mcp.app import App, AppOptions
from ksi_mcp.events.model import Event
from ksi_mcp.permissions import OPERATOR, Context, fresh_context
from ksi_mcp.transports.faces import notices
from ksi_mcp.transports.faces.notices import MAX_URIS, PAUSE_S
from ksi_mcp.transports.faces.touching import LIST, touched
from ksi_mcp.transports.http import serve_http
from ksi_mcp.transports.server import KsiServer, build_server

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")  # the older era's own requests

BOUND_S = 10


def me() -> Context:
    return fresh_context(OPERATOR)


async def do(app: App, tool: str, **args: Any) -> dict[str, Any]:
    return (await app.toolbox.call(me(), tool, args)).data


@dataclass
class Ear:
    """A client of either era, and what it was told: addresses, or "list"."""

    era: str
    client: Client | None = None
    told: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def message(self, message: object) -> None:
        if self.era != "legacy":  # what a stream brings is heard there
            return
        if isinstance(message, ResourceUpdatedNotification):
            self.told.put_nowait(str(message.params.uri))
        elif isinstance(message, ResourceListChangedNotification):
            self.told.put_nowait("list")

    @asynccontextmanager
    async def on(self, *uris: str, listing: bool = False) -> AsyncIterator[list[str]]:
        """Subscribe, for as long as this lasts. Gives the addresses that the server hears of."""
        assert self.client is not None
        if self.era == "legacy":
            for uri in uris:
                await self.client.subscribe_resource(uri)
            if listing:
                await self.client.list_resources()
            yield list(uris)
            for uri in uris:
                await self.client.unsubscribe_resource(uri)
            return
        async with self.client.listen(resource_subscriptions=uris, resources_list_changed=listing) as stream:

            async def listen() -> None:
                async for event in stream:
                    if isinstance(event, ResourceUpdated):
                        self.told.put_nowait(event.uri)
                    elif isinstance(event, ResourcesListChanged):
                        self.told.put_nowait("list")

            listening = asyncio.create_task(listen())
            try:
                yield list(stream.honored.resource_subscriptions or ())
            finally:
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await listening

    async def until(self, wanted: str) -> list[str]:
        """What was told up to the first notice of `wanted`, that one included."""
        heard: list[str] = []
        async with asyncio.timeout(BOUND_S):
            while wanted not in heard:
                heard.append(await self.told.get())
        return heard


@asynccontextmanager
async def in_memory(home, era: str) -> AsyncIterator[tuple[App, KsiServer, Ear]]:
    ear = Ear(era)
    async with App(home, AppOptions(worker="none")) as app:
        server = build_server(app)
        async with Client(server, mode=era, message_handler=ear.message) as client:
            ear.client = client
            yield app, server, ear


@asynccontextmanager
async def over_http(home, era: str, *, agent: str | None = None) -> AsyncIterator[tuple[App, Ear]]:
    """A client with a token of that agent, made first, or with a read-only one."""
    ear = Ear(era)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with App(home, AppOptions(worker="none")) as app:
        if agent is not None:
            await do(app, "agent_spawn", prompt="x", name=agent)
        token, _ = await app.services.access.make(me(), agent=agent)
        serving = asyncio.create_task(
            serve_http(app, host="127.0.0.1", port=0, token="x" * 30, on_ready=ready.set_result)
        )
        try:
            url = await asyncio.wait_for(ready, BOUND_S)
            async with (
                httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http,
                Client(
                    streamable_http_client(f"{url}/mcp", http_client=http), mode=era, message_handler=ear.message
                ) as client,
            ):
                ear.client = client
                yield app, ear
        finally:
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving


async def test_both_eras_are_told_that_resources_can_be_subscribed_to(home, era):
    async with in_memory(home, era) as (_, _, ear):
        offered = ear.client.server_capabilities.resources
    assert (offered.subscribe, offered.list_changed) == (True, True)


async def test_each_resource_is_told_of_by_what_changes_it(home, era):
    async with in_memory(home, era) as (app, _, ear):
        one = (await do(app, "agent_spawn", prompt="x", name="one"))["agent"]
        start = {"pattern": "consensus", "vars": {"question": "tea?"}}
        started = await do(app, "orchestration_start", **start)
        run, rule = started["orchestration"], started["rules"][0]
        await do(app, "composition_fork", parent="consensus", name="mine", reason="a try")
        root = (await do(app, "event_query", limit=1))["events"][0]["root"]
        changes: list[tuple[Sequence[str], str, dict[str, Any]]] = [
            (["ksi://agents", f"ksi://agents/{one}", "ksi://agents/one"], "agent_send", {"agent": one, "message": "x"}),
            (["ksi://orchestrations", f"ksi://orchestrations/{run}"], "orchestration_suspend", {"orchestration": run}),
            (["ksi://routing/graph"], "routing_add_rule", {"source_pattern": "a:*", "target": "b:c"}),
            ([f"ksi://rules/{rule}"], "routing_delete_rule", {"rule_id": rule}),
            (["ksi://usage"], "budget_set", {"account": "global", "limits": {"usd": 5}}),
            (
                ["ksi://compositions", "ksi://compositions/mine"],
                "composition_update",
                {"name": "mine", "modifications": {"description": "new"}, "reason": "why"},
            ),
        ]
        for uris, tool, args in changes:
            async with ear.on(*uris) as heard_of:
                assert heard_of == list(uris)
                await do(app, tool, **args)
                told = {await asyncio.wait_for(ear.told.get(), BOUND_S) for _ in uris}
                assert told == set(uris), tool
        async with ear.on(f"ksi://events/{root}"):
            emitted = fresh_context(OPERATOR)
            same = Context(actor=emitted.actor, root_id=root)
            await app.toolbox.call(same, "event_emit", {"event": "note:made"})
            assert await ear.until(f"ksi://events/{root}")


async def test_the_list_is_told_of_when_agents_runs_and_compositions_come_and_go(home, era):
    async with in_memory(home, era) as (app, _, ear), ear.on(listing=True):
        await do(app, "agent_spawn", prompt="x", name="one")
        await ear.until("list")
        await do(app, "composition_fork", parent="consensus", name="mine", reason="a try")
        await ear.until("list")
        run = await do(app, "orchestration_start", pattern="mine", vars={"question": "tea?"})
        await ear.until("list")
        await do(app, "orchestration_complete", orchestration=run["orchestration"], outcome="success")
        await ear.until("list")
        await do(app, "agent_terminate", agent="one")
        await ear.until("list")


async def test_what_another_process_changes_is_told_of(home, era):
    async with (
        in_memory(home, era) as (_, _, ear),
        ear.on("ksi://agents", listing=True),
        App(home, AppOptions(worker="none")) as other,
    ):
        await do(other, "agent_spawn", prompt="x", name="elsewhere")
        assert {await asyncio.wait_for(ear.told.get(), BOUND_S) for _ in range(2)} == {"ksi://agents", "list"}


async def test_a_thousand_events_are_a_few_notices(home, era):
    async with in_memory(home, era) as (app, _, ear):
        root = fresh_context(OPERATOR)
        await app.toolbox.call(root, "event_emit", {"event": "note:first"})
        uri = f"ksi://events/{root.root_id}"
        async with ear.on(uri, "ksi://routing/graph"):
            clock = asyncio.get_running_loop().time
            begun = clock()
            await asyncio.gather(
                *(app.toolbox.call(root, "event_emit", {"event": "note:made", "data": {"n": n}}) for n in range(1_000))
            )
            await do(app, "routing_add_rule", source_pattern="a:*", target="b:c")
            heard = await ear.until("ksi://routing/graph")
            took = clock() - begun
        assert 1 <= heard.count(uri) <= took / PAUSE_S + 2
        assert len(heard) < 100


async def test_nothing_listens_before_somebody_subscribes_and_after_the_last_has_gone(home, era):
    async with in_memory(home, era) as (app, server, ear):
        assert not server.notices.at_work
        async with ear.on("ksi://agents", "ksi://usage"):
            assert (server.notices.subscribers, server.notices.at_work) == (1, True)
        async with asyncio.timeout(BOUND_S):
            while server.notices.subscribers:  # noqa: ASYNC110  the end of a stream reaches the server in its own time
                await asyncio.sleep(0.002)
        assert not server.notices.at_work
        await do(app, "agent_spawn", prompt="x", name="one")
        assert ear.told.empty()


async def test_the_end_of_a_session_ends_its_subscriptions(home, era):
    ear = Ear(era)
    async with App(home, AppOptions(worker="none")) as app:
        server = build_server(app)
        async with contextlib.AsyncExitStack() as stack:
            ear.client = await stack.enter_async_context(Client(server, mode=era, message_handler=ear.message))
            await ear.client.list_resources()
            if era == "legacy":
                await ear.client.subscribe_resource("ksi://agents")
            else:
                await stack.enter_async_context(ear.client.listen(resource_subscriptions=["ksi://agents"]))
            assert server.notices.at_work
        assert (server.notices.subscribers, server.notices.at_work) == (0, False)
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("ksi-notices")]


async def test_subscribing_twice_is_subscribing_once_and_unsubscribing_ends_it(home):
    async with in_memory(home, "legacy") as (app, server, ear):
        client = ear.client
        for _ in range(3):
            await client.subscribe_resource("ksi://usage")
        await client.subscribe_resource("ksi://agents")
        await client.unsubscribe_resource("ksi://usage")
        await client.unsubscribe_resource("ksi://usage")
        await client.unsubscribe_resource("ksi://never/was")
        await do(app, "budget_set", account="global", limits={"usd": 5})
        await do(app, "agent_spawn", prompt="x", name="one")
        assert await ear.until("ksi://agents") == ["ksi://agents"]
        await client.unsubscribe_resource("ksi://agents")
        assert (server.notices.subscribers, server.notices.at_work) == (0, False)


async def test_a_wish_that_is_taken_back_at_once_is_answered_all_the_same(home):
    async with in_memory(home, "legacy") as (_, server, ear):
        for turns in range(60):  # of the loop: at every moment of the subscribing
            asked = asyncio.create_task(ear.client.subscribe_resource("ksi://usage"))
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(BOUND_S):
                await ear.client.unsubscribe_resource("ksi://usage")
                await asked
            await ear.client.unsubscribe_resource("ksi://usage")  # it may have come first
        assert (server.notices.subscribers, server.notices.at_work) == (0, False)


STRANGE = ["ksi://agents/nobody", "ksi://elsewhere", "file:///etc/passwd", "", "ksi://agents/%00", "x" * 20_000]


async def test_what_cannot_be_read_cannot_be_subscribed_to(home, era):
    async with in_memory(home, era) as (_, server, ear):
        if era == "legacy":
            for uri in STRANGE:
                with pytest.raises(MCPError) as failure:
                    await ear.client.subscribe_resource(uri)
                assert failure.value.code == -32602
            assert server.notices.subscribers == 0
        else:
            async with ear.on(*STRANGE, "ksi://agents") as heard_of:
                assert heard_of == ["ksi://agents"]


async def test_there_is_a_most_of_addresses_and_of_subscribers(home, era, monkeypatch):
    async with in_memory(home, era) as (app, server, ear):
        many = [f"ksi://compositions/{'consensus' if n == 0 else f'consensus@{n}'}" for n in range(MAX_URIS + 1)]
        if era == "legacy":
            agents = await asyncio.gather(
                *(do(app, "agent_spawn", prompt="x", name=f"a{n}") for n in range(MAX_URIS + 1))
            )
            for agent in agents[:MAX_URIS]:
                await ear.client.subscribe_resource(f"ksi://agents/{agent['agent']}")
            with pytest.raises(MCPError, match="unsubscribe from some"):
                await ear.client.subscribe_resource(f"ksi://agents/{agents[-1]['agent']}")
            monkeypatch.setattr(notices, "MAX_SUBSCRIBERS", 1)
            async with Client(server, mode="legacy") as other:
                with pytest.raises(MCPError, match="clients are subscribed"):
                    await other.subscribe_resource("ksi://agents")
                assert (await other.list_resources()).resources
            assert server.notices.subscribers == 1
            return
        with pytest.raises(MCPError, match="one stream takes 200"):
            async with ear.on(*many):
                pass
        monkeypatch.setattr(notices, "MAX_SUBSCRIBERS", 1)
        async with ear.on("ksi://agents"):
            with pytest.raises(MCPError, match="clients are subscribed"):
                async with ear.client.listen(resource_subscriptions=["ksi://usage"]):
                    pass
            assert server.notices.subscribers == 1
            await do(app, "agent_spawn", prompt="x", name="one")
            await ear.until("ksi://agents")


async def test_one_caller_leaves_room_for_the_others(home, monkeypatch):
    monkeypatch.setattr(notices, "MAX_SUBSCRIBERS", 2)
    async with over_http(home, "auto") as (_, ear), ear.on("ksi://agents"):
        with pytest.raises(MCPError, match="clients are subscribed"):
            async with ear.client.listen(resource_subscriptions=["ksi://usage"]):
                pass


async def test_an_agents_token_is_told_of_what_it_may_see_only(home, era):
    async with over_http(home, era, agent="inner") as (app, ear):
        stranger = (await do(app, "agent_spawn", prompt="x", name="stranger"))["agent"]
        own = ("ksi://agents", "ksi://orchestrations", "ksi://usage", "ksi://routing/graph", "ksi://agents/inner")
        async with ear.on(*own, listing=True):
            if era == "legacy":
                with pytest.raises(MCPError, match="unknown agent"):
                    await ear.client.subscribe_resource(f"ksi://agents/{stranger}")
            await do(app, "orchestration_start", pattern="consensus", vars={"question": "tea?"})
            await do(app, "agent_terminate", agent=stranger)
            await do(app, "budget_set", account="global", limits={"usd": 5})
            await do(app, "agent_update", agent="inner", reason="why", model="other")
            assert await ear.until("ksi://agents/inner") == ["ksi://agents", "ksi://agents/inner"]
            await do(app, "routing_add_rule", source_pattern="a:*", target="b:c")  # a global rule is its own, too
            assert await ear.until("ksi://routing/graph") == ["ksi://routing/graph"]


async def test_a_read_only_token_is_told_of_everything(home, era):
    async with over_http(home, era) as (app, ear), ear.on("ksi://agents", "ksi://routing/graph"):
        await do(app, "agent_spawn", prompt="x", name="one")
        assert await ear.until("ksi://agents") == ["ksi://agents"]
        await do(app, "routing_add_rule", source_pattern="a:*", target="b:c")
        await ear.until("ksi://routing/graph")


async def test_a_client_over_sse_is_told_too(home):
    ear = Ear("legacy")
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with App(home, AppOptions(worker="none")) as app:
        serving = asyncio.create_task(serve_http(app, host="127.0.0.1", port=0, token=None, on_ready=ready.set_result))
        try:
            url = await asyncio.wait_for(ready, BOUND_S)
            async with (
                Client(sse_client(f"{url}/sse"), mode="legacy", message_handler=ear.message) as ear.client,
                ear.on("ksi://agents", listing=True),
            ):
                await do(app, "agent_spawn", prompt="x", name="one")
                assert {await asyncio.wait_for(ear.told.get(), BOUND_S) for _ in range(2)} == {"ksi://agents", "list"}
        finally:
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving


async def test_a_client_on_stdin_of_another_process_hears_what_this_one_does(home, start):
    async with start("--worker", "none") as process:
        number = 0

        async def ask(method: str, **params: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            process.stdin.write(json.dumps(message).encode() + b"\n")
            async with asyncio.timeout(30):
                while True:
                    answer = json.loads(await process.stdout.readline())
                    if answer.get("id") == number:
                        return answer

        begun = await ask(
            "initialize",
            protocolVersion="2025-11-25",
            capabilities={},
            clientInfo={"name": "test", "version": "1"},
        )
        assert begun["result"]["capabilities"]["resources"] == {"subscribe": True, "listChanged": True}
        process.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        assert (await ask("resources/subscribe", uri="ksi://agents"))["result"] == {}
        assert (await ask("resources/subscribe", uri="ksi://nothing"))["error"]["code"] == -32602
        async with App(home, AppOptions(worker="none")) as app:
            await do(app, "agent_spawn", prompt="x", name="one")
            async with asyncio.timeout(30):
                told = json.loads(await process.stdout.readline())
        assert told == {
            "jsonrpc": "2.0",
            "method": "notifications/resources/updated",
            "params": {"uri": "ksi://agents"},
        }


def an_event(name: str, /, **data: Any) -> Event:
    return Event(
        event_id=1, name=name, data=data, source="system", agent_id=None, orchestration_id=None, cause_id=None,
        root_id="x_1", hops=0, depth=0, at_ms=0,
    )  # fmt: skip


def test_an_event_of_anybodys_own_making_changes_its_chain_only():
    hostile = {"agent": ["x"], "names": "everything", "name": None, "rule_id": {"a": 1}, "target": 3}
    assert touched(an_event("task:made", **hostile)) == {("events", "x_1")}
    assert touched(an_event("composition:created", **hostile)) == {("events", "x_1"), ("compositions", ""), LIST}
