"""What every test gets: a machine without keys, a small Hypothesis, and `open_house` for an application of its own.

Other set-up belongs into the test that needs it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from ksi_mcp.agents.store import past_turns
from ksi_mcp.app import App, AppOptions
from ksi_mcp.budgets.model import Limits
from ksi_mcp.clock import SystemClock
from ksi_mcp.completions.kept import remembered
from ksi_mcp.completions.model import Loaded
from ksi_mcp.completions.units import TurnUnits
from ksi_mcp.config import Config, Home
from ksi_mcp.db import Tx
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.providers import choosing
from ksi_mcp.queues.model import Turn

settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=2_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL")


@pytest.fixture(autouse=True)
def no_real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may spend money or depend on whose machine it runs on."""
    for name in [*_KEYS, *(name for name in os.environ if name.startswith("KSI_"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", "/nonexistent")  # nobody is logged in
    monkeypatch.setattr(choosing, "LOCAL", {})  # and no models run here


@pytest.fixture(autouse=True)
def kept_is_stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does to a conversation, a turn is given the very one that the store holds."""
    load, wrong = TurnUnits._load, []

    def looked(units: TurnUnits, tx: Tx, turn: Turn) -> Loaded:
        item = load(units, tx, turn)
        stored = past_turns(tx, turn.session_id, limit=remembered(item.agent))
        if item.earlier != stored:
            wrong.append(f"{turn.turn_id} was given {item.earlier}, the store has {stored}")
        return item

    monkeypatch.setattr(TurnUnits, "_load", looked)
    yield
    assert wrong == []


@dataclass(frozen=True)
class ClaudeCode:
    """The real program, and the environment in which it meets nobody but a server on this machine."""

    command: str
    passed: tuple[str, ...] = (
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_API_KEY",
        "DISABLE_TELEMETRY",
        "DISABLE_ERROR_REPORTING",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    )

    def environ(self, root: Path, url: str) -> dict[str, str]:
        root.mkdir(parents=True, exist_ok=True)
        own = {"HOME": str(root), "CLAUDE_CONFIG_DIR": str(root / "claude"), "PATH": os.environ["PATH"]}
        return own | dict(zip(self.passed, (url, "simulated", "1", "1", "1"), strict=True))


@pytest.fixture(scope="session")
def claude_code() -> ClaudeCode:
    """KSI_TEST_CLAUDE, `claude` on PATH, or the one in the package claude_agent_sdk."""
    found = os.environ.get("KSI_TEST_CLAUDE") or shutil.which("claude")
    if not found and (spec := importlib.util.find_spec("claude_agent_sdk")) and spec.origin:
        found = str(Path(spec.origin).parent / "_bundled" / "claude")
    if not found or not os.access(found, os.X_OK):
        pytest.skip("there is no Claude Code: set KSI_TEST_CLAUDE to it, see scripts/claude-for-tests")
    return ClaudeCode(command=found)


# An application with its worker inside, on a folder of its own, answered by a script.

PRICES = {"m": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}


class Gate(SystemClock):
    """A scripted latency lasts until the gate opens; the time of day can be put forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0
        self.opened = asyncio.Event()
        self.in_flight = asyncio.Semaphore(0)

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms

    async def sleep(self, seconds: float) -> None:
        self.in_flight.release()
        await self.opened.wait()


@dataclass
class House:
    app: App
    home: Home
    gate: Gate = field(default_factory=Gate)

    async def call(self, tool: str, **args: Any) -> dict[str, Any]:
        return (await self.app.toolbox.call(fresh_context(OPERATOR), tool, args)).data

    async def spawn(self, name: str, capabilities: tuple[str, ...] = (), **more: Any) -> str:
        made = await self.call(
            "agent_spawn", name=name, prompt="You help.", model="m", capabilities=list(capabilities), **more
        )
        return str(made["agent"])

    async def run(self, orchestration_id: str) -> None:
        values = {
            "orchestration_id": orchestration_id, "pattern": "p", "pattern_hash": "h", "orchestrator": "client",
            "vars": "{}", "max_depth": 256, "created_by": "operator", "now_ms": 0,
        }  # fmt: skip
        services = self.app.services

        def make(tx: Tx) -> None:
            tx.run("orchestrations.insert", values)
            services.ledger.open(tx, orchestration_id, parent_id="global", limits=Limits())

        await services.journal.commit(make)

    async def ask(self, agent: str, message: str = "go", **more: Any) -> dict[str, Any]:
        """Send and wait for the end of the turn, however it ends."""
        return await self.call("agent_send", agent=agent, message=message, wait_s=20, **more)

    async def started(self) -> None:
        """Until one more provider call is in flight behind the gate."""
        async with asyncio.timeout(5):
            await self.gate.in_flight.acquire()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110  what is awaited is a row, not this process's own doing
                await asyncio.sleep(0.002)

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.home.database) as connection:
            found = connection.execute(sql, values).fetchall()
        connection.close()
        return found

    def events(self, *names: str) -> list[dict[str, Any]]:
        marks = ",".join("?" * len(names))
        found = self.rows(f"SELECT data FROM event WHERE name IN ({marks}) ORDER BY event_id", *names)
        return [json.loads(row[0]) for row in found]

    def calls(self) -> list[tuple[Any, ...]]:
        """(round, state) of every provider call, in order."""
        return self.rows("SELECT round, state FROM provider_call ORDER BY call_id")

    def books(self) -> None:
        """At rest nothing is set aside, and every sum adds up."""
        open_holds = self.rows("SELECT * FROM hold WHERE state IN ('reserved', 'sent')")
        assert open_holds == []
        assert self.rows("SELECT account_id FROM account WHERE reserved_usd_micros <> 0 OR reserved_tokens <> 0") == []
        ((usd, tokens),) = self.rows("SELECT TOTAL(cost_usd_micros), TOTAL(cost_tokens) FROM hold")
        ((spent_usd, spent_tokens, turns),) = self.rows(
            "SELECT spent_usd_micros, spent_tokens, spent_turns FROM account WHERE account_id = 'global'"
        )
        assert (spent_usd, spent_tokens) == (usd, tokens)
        ((prefetched,),) = self.rows("SELECT TOTAL(cost_usd_micros) FROM prefetch")
        ((held, tokens_held),) = self.rows(
            "SELECT TOTAL(cost_usd_micros), TOTAL(cost_tokens) FROM hold WHERE turn_id LIKE 'prefetch:%'"
        )
        assert prefetched == held
        ((of_turns, tokens_of_turns),) = self.rows("SELECT TOTAL(cost_usd_micros), TOTAL(tokens) FROM turn")
        assert (of_turns + prefetched, tokens_of_turns + tokens_held) == (usd, tokens)
        ((of_calls,),) = self.rows("SELECT TOTAL(cost_usd_micros) FROM provider_call")
        assert of_calls + prefetched == usd
        ((called,),) = self.rows("SELECT COUNT(DISTINCT turn_id) FROM provider_call WHERE reused_from IS NULL")
        assert turns == called
        assert self.rows("SELECT * FROM turn_wait") == []


def write_script(root: Path, script: dict[str, Any]) -> None:
    root.mkdir(exist_ok=True)
    (root / "script.yaml").write_text(json.dumps(script))


OpenHouse = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def open_house(tmp_path: Path) -> OpenHouse:
    @asynccontextmanager
    async def opened(
        script: dict[str, Any] | None = None, root: Path = tmp_path, **config: Any
    ) -> AsyncIterator[House]:
        write_script(root, script or {})
        gate = Gate()
        chosen = Config(**{"provider": "scripted", "scripted": {"script": "script.yaml"}, "prices": PRICES, **config})
        home = Home(root=root)
        async with App(home, AppOptions(worker="inside"), config=chosen, clock=gate) as app:
            yield House(app=app, home=home, gate=gate)

    return opened
