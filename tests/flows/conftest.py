"""The stage for patterns: a server with scripted agents, and a client that orchestrates over MCP."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import TextContent
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home, MonitorConfig, ScriptedConfig
from ksi_mcp.testing import FakeClock
from ksi_mcp.transports.server import build_server
from ksi_mcp.yamlio import dump, safe_load

SCRIPTS = Path(__file__).parent / "patterns"
PATIENCE_S = 20
ALWAYS = {
    "composition_discover",
    "composition_get",
    "orchestration_start",
    "agent_wait",
    "event_query",
    "orchestration_status",
}
CLIENT_LED = ALWAYS | {"agent_send", "composition_track_decision", "orchestration_complete"}

TOOLS_OF: dict[str, set[str]] = {
    "pipeline_with_review": CLIENT_LED | {"routing_explain", "completion_answer"},
    "debate_with_judge": CLIENT_LED | {"agent_spawn", "orchestration_control"},
    "consensus": CLIENT_LED | {"event_emit", "composition_fork", "composition_diff", "composition_merge"},
    "adaptive_tournament": CLIENT_LED
    | {"event_emit", "routing_query_rules", "routing_delete_rule", "agent_terminate", "agent_list"},
    "map_reduce_research": CLIENT_LED | {"agent_spawn", "routing_add_rule"},
    "self_organizing_analysis_team": CLIENT_LED
    | {"routing_query_rules", "routing_modify_rule", "routing_explain", "help", "event_emit"},
    "triage_and_dispatch": CLIENT_LED | {"event_emit"},
    "base_orchestrator": ALWAYS,
}
"""The listed tools that the client uses to follow each strategy. Every run is held to its line when it ends."""


class Stage:
    """A client at work on one run. `call` follows the strategy; `look` only gathers evidence for the test."""

    def __init__(self, client: Client, home: Path) -> None:
        self._client = client
        self.home = home
        self.used: set[str] = set()
        self.run = ""
        self.pattern = ""
        self.strategy: str | None = None
        self.ids: dict[str, str] = {}

    async def call(self, tool: str, /, **args: Any) -> dict[str, Any]:
        self.used.add(tool)
        return await self.look(tool, **args)

    async def look(self, tool: str, /, **args: Any) -> dict[str, Any]:
        result = await self._client.call_tool(tool, args)
        text = result.content[0]
        assert isinstance(text, TextContent)
        assert not result.is_error, f"{tool}: {text.text}"
        assert result.structured_content == json.loads(text.text)
        return result.structured_content

    # ------------------------------------------------------------------------- following a strategy

    async def start(self, pattern: str, *, text: str, **more: Any) -> dict[str, Any]:
        """Find the pattern by what it is for, read it, start it."""
        found = await self.call("composition_discover", type="orchestration", text=text)
        assert pattern in [head["name"] for head in found["compositions"]]
        document = (await self.call("composition_get", name=pattern))["document"]
        started = await self.call("orchestration_start", pattern=pattern, **more)
        self.run, self.pattern, self.strategy = started["orchestration"], pattern, started.get("strategy")
        self.ids = {agent["name"]: agent["agent"] for agent in started["agents"]}
        assert set(document["agents"]) == set(self.ids) - {"orchestrator"}
        assert started.get("warnings") is None
        if self.strategy is not None:
            assert self.strategy == document["orchestration_logic"]["strategy"].rstrip()
            assert "agent_send" in started["includes"]["dsl_reference"]
        return started

    async def send(self, role: str, message: str) -> str:
        sent = await self.call("agent_send", agent=self.ids[role], message=message)
        return str(sent["turn"])

    async def gather(self, *turns: str) -> list[str]:
        """AWAIT turns; the texts, in the order of the turns."""
        gathered = await self.call("agent_wait", turns=list(turns), timeout_s=PATIENCE_S)
        assert gathered["census"]["ok"] == gathered["census"]["asked"] == len(turns), gathered
        texts = {turn["turn"]: turn["text"] for turn in gathered["turns"]}
        return [texts[turn] for turn in turns]

    async def events(self, name: str, count: int) -> list[dict[str, Any]]:
        """AWAIT EVENT: the data of the run's events of that name, oldest first, once there are `count`."""
        while True:
            page = await self.call("event_query", names=[name], orchestration=self.run, limit=200)
            found = page["events"][::-1]
            if len(found) >= count:
                assert len(found) == count, [event["data"] for event in found]
                return [event["data"] for event in found]
            since = found[-1]["event_id"] if found else 0
            wait = {"names": [name], "since": since, "timeout_s": PATIENCE_S}
            waited = (await self.look("event_emit", event="event:wait", data=wait))["result"]
            assert waited["complete"], f"no {name} after {len(found)}"

    async def settle(self, turns: int) -> None:
        """Let everything that is under way come to its end: so many turns in all."""
        await self.events("completion:result", turns)
        status = await self.call("orchestration_status", orchestration=self.run, events=0)
        assert status["census"] == {
            "asked": turns, "ok": turns, "failed": 0, "cancelled": 0, "timed_out": 0, "pending": 0
        }  # fmt: skip

    async def track(self, decision: str, **more: Any) -> dict[str, Any]:
        return await self.call("composition_track_decision", pattern=self.pattern, decision=decision, **more)

    async def complete(self, *, turns: int, **more: Any) -> dict[str, Any]:
        """COMPLETE; nothing was left open, and every turn is on the run's account."""
        ended = await self.call("orchestration_complete", orchestration=self.run, **more)
        assert ended["cancelled_turns"] == 0
        await self.check_account(ended["budget"], turns=turns)
        return ended

    # ------------------------------------------------------------------------------------- evidence

    async def check_account(self, budget: dict[str, Any], *, turns: int) -> None:
        paths = [(await self.look("budget_status", account=agent))["accounts"] for agent in self.ids.values()]
        # What an agent's child spends is on its own account, on its parent's, and on the run's.
        accounts = [path[-1] for path in paths if path[-2]["account"] == self.run]
        assert budget["spent_turns"] == sum(account["spent_turns"] for account in accounts) == turns
        assert budget["spent_tokens"] == sum(account["spent_tokens"] for account in accounts) > 0
        assert (budget["spent_usd"], budget["reserved_usd"]) == (0, 0)
        assert budget["limit_usd"] >= 3
        assert budget["limit_turns"] >= turns

    async def history(self, role: str) -> list[dict[str, Any]]:
        """The finished turns of an agent, oldest first; it may have ended."""
        past = await self.look("agent_history", agent=self.ids[role], limit=100)
        return list(past["turns"])

    async def participants(self) -> dict[str, int]:
        """Who took how many turns."""
        names = {agent: name for name, agent in self.ids.items()}
        done = await self._all("completion:result")
        taken = Counter(names[event["data"]["agent"]] for event in done)
        for name in names.values():
            assert len(await self.history(name)) == taken[name]
        return dict(taken)

    async def routes(self) -> dict[str, int]:
        """What was delivered how often: `who -event-> whom`."""
        names = {f"agent:{agent}": name for name, agent in self.ids.items()}
        sources = {event["event_id"]: event["source"] for event in await self._all("**")}
        delivered = await self._all("routing:delivered")
        facts = [event["data"] for event in delivered]
        return dict(
            Counter(
                f"{names.get(source := sources[fact['event_id']], source)} -{fact['event']}-> {names[fact['target']]}"
                for fact in facts
            )
        )

    def decisions(self) -> list[dict[str, Any]]:
        """The decisions file of the pattern."""
        (file,) = (self.home / "compositions").rglob(f"{self.pattern}_decisions.yaml")
        return list(safe_load(file.read_text("utf-8"), what=file.name))

    async def no_refusals(self) -> None:
        for name in ("routing:undeliverable", "routing:condition_failed", "routing:loop_stopped"):
            assert not await self._all(name), name
        assert not (await self.look("event_query", names=["system:refused", "completion:failed"]))["events"]

    async def _all(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor: dict[str, Any] = {}
        while True:
            page = await self.look("event_query", names=[name], orchestration=self.run, limit=200, **cursor)
            found += page["events"]
            if page.get("cursor") is None:
                return found
            cursor = {"cursor": page["cursor"]}


def _only(failure: BaseException) -> BaseException:
    """What failed, without the groups that the client's tasks put around it."""
    while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
        failure = failure.exceptions[0]
    return failure


Perform = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture(params=["auto", "legacy"])
def perform(request: pytest.FixtureRequest, tmp_path: Path) -> Perform:
    """`async with perform("consensus") as stage`: the agents follow `patterns/consensus.yaml`, in both protocol eras.

    A whole run is held to the tools of its strategy, and to nothing having been refused.
    """
    mode: str = request.param

    @asynccontextmanager
    async def stage(name: str, *more: str, whole: bool = True) -> AsyncIterator[Stage]:
        parts = [safe_load((SCRIPTS / f"{part}.yaml").read_text("utf-8"), what=part) for part in (name, *more)]
        script = {**parts[-1], "replies": [reply for part in parts for reply in part["replies"]]}
        (tmp_path / "script.yaml").write_text(dump(script), "utf-8")
        config = Config(provider="scripted", scripted=ScriptedConfig(script="script.yaml"))
        try:
            async with (
                App(Home(root=tmp_path), AppOptions(worker="inside"), config=config) as app,
                Client(build_server(app), mode=mode) as client,
            ):
                assert (client.protocol_version in MODERN_PROTOCOL_VERSIONS) == (mode == "auto")
                made = Stage(client, tmp_path)
                yield made
                if whole:
                    await made.no_refusals()
                    assert made.used == TOOLS_OF[name]
        except BaseExceptionGroup as group:
            raise _only(group) from None

    return stage


@pytest.fixture
def tools_of() -> dict[str, set[str]]:
    return TOOLS_OF


# Agents that wire themselves, without a pattern, in time that passes only when a test says so.


class Paced(FakeClock):
    """A clock that tells how many calls of each latency are under way."""

    def __init__(self) -> None:
        super().__init__()
        self._begun: defaultdict[float, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(0))

    async def sleep(self, seconds: float) -> None:
        self._begun[seconds].release()
        await super().sleep(seconds)

    async def under_way(self, calls: int, *, latency_s: float) -> None:
        """Until so many more calls of that latency have begun; time stands still, so none of them has ended."""
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(calls):
                await self._begun[latency_s].acquire()


class Troupe:
    """Scripted agents that route for themselves, and a client that asks and watches, all over MCP."""

    def __init__(self, client: Client, app: App, clock: Paced) -> None:
        self._client = client
        self.app = app
        self.clock = clock

    async def call(self, tool: str, /, **args: Any) -> dict[str, Any]:
        result = await self._client.call_tool(tool, args)
        text = result.content[0]
        assert isinstance(text, TextContent)
        assert not result.is_error, f"{tool}: {text.text}"
        return dict(result.structured_content or {})

    async def command(self, event: str, /, **data: Any) -> dict[str, Any]:
        """Run what is not listed by default."""
        return dict((await self.call("event_emit", event=event, data=data))["result"])

    async def ask(self, agent: str, message: str) -> str:
        """Send a message and wait for the reply; then for all that came of it."""
        turn = await self.call("agent_send", agent=agent, message=message, wait_s=PATIENCE_S)
        assert turn["status"] == "done", turn
        await self.rest()
        return str(turn["text"])

    async def rest(self) -> None:
        """Until nothing is under way: no turn, and no event on its way to somebody."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.app.unfinished():  # noqa: ASYNC110  what is awaited is a row, not this process's own doing
                await asyncio.sleep(0.005)

    async def play_out(self, step_s: float) -> None:
        """Let time pass, step by step, until nothing is under way."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.app.unfinished():
                await self.clock.advance(step_s)
                await asyncio.sleep(0.005)

    async def wait(self, name: str, count: int) -> list[dict[str, Any]]:
        """Until there are so many events of a name; all of them, oldest first."""
        async with asyncio.timeout(PATIENCE_S):
            waited = await self.call("event_wait", names=[name], since=0, min_count=count)
        return list(waited["events"])

    async def events(self, *names: str) -> list[dict[str, Any]]:
        """What is in the log, oldest first."""
        found: list[dict[str, Any]] = []
        cursor: dict[str, Any] = {}
        while True:
            page = await self.call("event_query", names=list(names) or None, limit=200, **cursor)
            found += page["events"]
            if page.get("cursor") is None:
                return found[::-1]
            cursor = {"cursor": page["cursor"]}

    async def data(self, *names: str) -> list[dict[str, Any]]:
        return [event["data"] for event in await self.events(*names)]

    async def names(self) -> dict[str, str]:
        """Everybody who was ever spawned: the name by `agent:<id>`."""
        spawned = await self.data("agent:spawned")
        return {f"agent:{fact['agent']}": fact["name"] for fact in spawned}

    async def heard(self) -> list[str]:
        """Who heard what of whom, in the order of the deliveries; nobody heard the same twice."""
        everything, names = await self.events(), await self.names()
        source = {event["event_id"]: event["source"] for event in everything}
        facts = [event["data"] for event in everything if event["event"] == "routing:delivered"]
        again = Counter((fact["event_id"], fact["target"]) for fact in facts)
        assert set(again.values()) <= {1}, again
        assert len({fact["turn"] for fact in facts if "turn" in fact}) == sum("turn" in fact for fact in facts)
        return [
            f"{names.get(fact['target'], fact['target'])} <- {fact['event']} of "
            f"{names.get(source[fact['event_id']], source[fact['event_id']])}"
            for fact in facts
        ]

    async def nothing_lost(self) -> None:
        bad = ("undeliverable", "condition_failed", "mapping_failed", "loop_stopped", "rate_limited", "refused")
        names = [f"routing:{name}" for name in bad] + ["system:refused", "completion:failed", "completion:cancelled"]
        assert await self.events(*names) == []


Assemble = Callable[..., AbstractAsyncContextManager[Troupe]]


@pytest.fixture
def troupe(tmp_path: Path) -> Assemble:
    """`async with troupe(replies) as stage`: whoever is spawned there follows these replies."""

    @asynccontextmanager
    async def assembled(replies: list[dict[str, Any]], **monitor: Any) -> AsyncIterator[Troupe]:
        (tmp_path / "script.yaml").write_text(dump({"replies": replies}), "utf-8")
        scripted = ScriptedConfig(script="script.yaml")
        config = Config(provider="scripted", scripted=scripted, monitor=MonitorConfig(every_s=3600, **monitor))
        clock = Paced()
        try:
            async with (
                App(Home(root=tmp_path), AppOptions(worker="inside"), config=config, clock=clock) as app,
                Client(build_server(app)) as client,
            ):
                yield Troupe(client, app, clock)
        except BaseExceptionGroup as group:
            raise _only(group) from None

    return assembled
