"""The tool that has prompts answered beforehand: who may use it, for which agents, and what it says."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.agents.model import MAX_MESSAGE_CHARS
from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import Conflict, Exhausted, Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context
from ksi_mcp.tools.catalog import DEFAULT_TOOLS

PRICES = {"m": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}, "f": "free"}

Caller = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def open_app(tmp_path: Path) -> Callable[..., Any]:
    """Without a worker: what is asked for waits."""

    @asynccontextmanager
    async def opened(**config: Any) -> AsyncIterator[tuple[App, Caller]]:
        chosen = Config(**{"provider": "scripted", "prices": PRICES, **config})
        async with App(Home(root=tmp_path), AppOptions(worker="none"), config=chosen) as app:

            async def call(tool: str, actor: Any = OPERATOR, **args: Any) -> dict[str, Any]:
                return (await app.toolbox.call(fresh_context(actor), tool, args)).data

            yield app, call

    return opened


async def spawn(call: Caller, name: str = "a", **more: Any) -> str:
    wanted = {"prompt": "You help.", "model": "m", "capabilities": [], **more}
    return str((await call("agent_spawn", name=name, **wanted))["agent"])


def shown(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["prompt"], one["status"]) for one in found["prefetches"]]


async def test_prompts_wait_and_can_be_looked_at(open_app) -> None:
    async with open_app() as (_, call):
        agent = await spawn(call)
        assert await call("completion_prefetch", agent="a") == {"agent": agent, "name": "a", "prefetches": []}
        made = await call("completion_prefetch", agent="a", prompts=["one", "two", "one"])
        assert shown(made) == [("two", "waiting"), ("one", "waiting")]
        assert made["account"] == {
            "account": f"p_{agent}", "spent_usd": 0.0, "reserved_usd": 0.0, "limit_usd": 0.1,
            "spent_tokens": 0, "spent_turns": 0,
        }  # fmt: skip
        assert await call("completion_prefetch", agent=agent) == made


async def test_who_asks_for_the_same_again_keeps_it_for_longer(open_app) -> None:
    async with open_app() as (_, call):
        await spawn(call)
        first = await call("completion_prefetch", agent="a", prompts=["one"], keep_s=10)
        again = await call("completion_prefetch", agent="a", prompts=["one"], keep_s=100)
        once_more = await call("completion_prefetch", agent="a", prompts=["one"], keep_s=10)
        assert [one["prefetches"][0]["prefetch"] for one in (first, again, once_more)] == [1, 1, 1]
        assert first["prefetches"][0]["expires_at"] < again["prefetches"][0]["expires_at"]
        assert again == once_more


async def test_an_agent_has_three_and_the_oldest_make_room(open_app) -> None:
    async with open_app() as (_, call):
        await spawn(call)
        await call("completion_prefetch", agent="a", prompts=["1", "2", "3"])
        made = await call("completion_prefetch", agent="a", prompts=["4", "5"])
        assert shown(made) == [("5", "waiting"), ("4", "waiting"), ("3", "waiting"), ("2", "stale"), ("1", "stale")]
        assert "newer ones" in made["prefetches"][3]["reason"]


async def test_what_came_to_nothing_keeps_the_beginning_of_its_prompt_only(open_app) -> None:
    async with open_app() as (app, call):
        await spawn(call)
        for number in range(2):
            await call("completion_prefetch", agent="a", prompts=[f"{number}{place}" + "x" * 5_000 for place in "abc"])

        def lengths(tx: Any) -> list[int]:
            rows = [tx.one("completions.prefetch_one", {"prefetch_id": number}) for number in range(1, 7)]
            return [len(row["prompt"]) for row in rows]

        assert await app.services.journal.read(lengths) == [200] * 3 + [5_002] * 3


async def test_another_prompt_makes_it_stale_at_once_and_the_same_one_keeps_what_is_answered(open_app) -> None:
    async with open_app() as (_, call):
        await spawn(call)
        await call("completion_prefetch", agent="a", prompts=["one"])
        sent = await call("agent_send", agent="a", message="other")
        assert shown(await call("completion_prefetch", agent="a")) == [("one", "stale")]
        made = await call("completion_prefetch", agent="a", prompts=["one"])  # for what comes after that turn
        assert shown(made) == [("one", "waiting"), ("one", "stale")]
        await call("completion_cancel", turn=sent["turn"])
        assert shown(await call("completion_prefetch", agent="a"))[0] == ("one", "waiting")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"prompts": ["1", "2", "3", "4"]}, "at most 3"),
        ({"prompts": [" \n"]}, "empty"),
        ({"prompts": ["x" * (MAX_MESSAGE_CHARS + 1)]}, "200,001 characters"),
        ({"prompts": [{"text": "x"}]}, "string"),
        ({"prompts": ["x"], "keep_s": 0}, "greater than 0"),
        ({"prompts": ["x"], "keep_s": 86_401}, "86400"),
        ({"prompts": ["x"], "keep_s": float("nan")}, "keep_s"),
    ],
)
async def test_what_cannot_be_asked_leaves_nothing(open_app, args: dict[str, Any], message: str) -> None:
    async with open_app() as (_, call):
        agent = await spawn(call)
        with pytest.raises(Invalid, match=message):
            await call("completion_prefetch", agent="a", **args)
        assert await call("completion_prefetch", agent="a") == {"agent": agent, "name": "a", "prefetches": []}


async def test_a_prompt_with_half_a_character_is_stored_without_it(open_app) -> None:
    async with open_app() as (_, call):
        await spawn(call)
        assert shown(await call("completion_prefetch", agent="a", prompts=["a\ud800b"])) == [("a?b", "waiting")]


@pytest.mark.parametrize("provider", ["claude_cli", "external", "external@desk"])
async def test_agents_that_nobody_calls_one_by_one_are_refused(open_app, provider: str) -> None:
    async with open_app() as (app, call):
        agent = await spawn(call)
        change_provider(app, agent, provider)
        with pytest.raises(Conflict, match="cannot be prefetched") as refused:
            await call("completion_prefetch", agent="a", prompts=["x"])
        assert provider in refused.value.text()


def change_provider(app: App, agent: str, provider: str) -> None:
    with sqlite3.connect(app.home.database) as connection:
        connection.execute("UPDATE agent SET provider = ? WHERE agent_id = ?", [provider, agent])
    connection.close()


async def test_a_model_without_a_price_is_refused_and_one_that_is_free_is_not(open_app) -> None:
    async with open_app(prefetch={"usd": 0}) as (app, call):
        unpriced = await spawn(call, "unpriced", model="nobody-knows-it")
        change_provider(app, unpriced, "openai_compatible")
        with pytest.raises(Conflict, match="no price is known"):
            await call("completion_prefetch", agent="unpriced", prompts=["x"])
        await spawn(call, "free", model="f")
        assert shown(await call("completion_prefetch", agent="free", prompts=["x"])) == [("x", "waiting")]


async def test_without_room_to_spare_or_without_money_it_says_so(open_app) -> None:
    async with open_app(worker={"concurrency": 2}) as (_, call):
        await spawn(call)
        with pytest.raises(Conflict, match="never room to spare: 2 turns at once"):
            await call("completion_prefetch", agent="a", prompts=["x"])
    async with open_app(prefetch={"usd": 0}) as (_, call):
        await spawn(call, "b")
        with pytest.raises(Exhausted, match=r"used up: \$0\.0 of \$0\.0") as refused:
            await call("completion_prefetch", agent="b", prompts=["x"])
        assert "budget_set" in refused.value.text()


async def test_an_agent_that_has_ended_takes_no_prompts(open_app) -> None:
    async with open_app() as (_, call):
        await spawn(call)
        await call("completion_prefetch", agent="a", prompts=["x"])
        await call("agent_terminate", agent="a")
        with pytest.raises(Conflict, match="terminated"):
            await call("completion_prefetch", agent="a", prompts=["y"])
        assert shown(await call("completion_prefetch", agent="a")) == [("x", "stale")]


async def test_agents_of_a_run_share_one_account_inside_that_of_the_run(open_app) -> None:
    async with open_app() as (_, call):
        pattern = {
            "name": "pair", "type": "orchestration", "description": "two",
            "agents": {name: {"prompt": "help", "model": "m"} for name in ("x", "y")},
            "orchestration_logic": {"strategy": "ask"},
        }  # fmt: skip
        await call("composition_create", document=pattern)
        run = (await call("orchestration_start", pattern="pair", budget={"usd": 10}))["orchestration"]
        agents = (await call("agent_list", filter={"orchestration": run}))["agents"]
        for agent in agents:
            made = await call("completion_prefetch", agent=agent["agent"], prompts=["x"])
            assert made["account"]["account"] == f"p_{run}"
            assert made["account"]["limit_usd"] == 0.5
        path = (await call("budget_status", account=f"p_{run}"))["accounts"]
        assert [each["account"] for each in path] == ["global", run, f"p_{run}"]
        assert (await call("budget_report"))["total"]["usd"] == 0


async def test_an_agent_prefetches_for_whom_it_sees_and_needs_messaging(open_app) -> None:
    async with open_app() as (_, call):
        maker = await spawn(call, "maker", capabilities=["messaging", "spawn_agents"])
        mute = await spawn(call, "mute", capabilities=["base"])
        await spawn(call, "stranger")
        child = (await call("agent_spawn", agent_actor(maker), name="child", prompt="p", model="m"))["agent"]
        made = await call("completion_prefetch", agent_actor(maker), agent=child, prompts=["x"])
        assert shown(made) == [("x", "waiting")]
        with pytest.raises(NotFound):
            await call("completion_prefetch", agent_actor(maker), agent="stranger", prompts=["x"])
        with pytest.raises(NotFound):
            await call("completion_prefetch", agent_actor(maker), agent="stranger")
        with pytest.raises(Refused, match="messaging"):
            await call("completion_prefetch", agent_actor(mute), agent=mute, prompts=["x"])
        with pytest.raises(KsiError):
            await call("completion_prefetch", agent_actor(child), agent=maker, prompts=["x"])


async def test_the_command_is_the_tool_and_it_is_not_listed_by_default(open_app) -> None:
    async with open_app() as (_, call):
        await spawn(call)
        done = await call("event_emit", event="completion:prefetch", data={"agent_id": "a", "prompts": ["x"]})
        assert shown(done["result"]) == [("x", "waiting")]
    assert "completion_prefetch" not in DEFAULT_TOOLS
