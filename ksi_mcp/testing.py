"""For tests, ours and yours: a clock that only moves when told, and an application on a folder of its own.

async with open_test_app(replies=[{"match": {"agent": "ada"}, "reply": "42"}]) as app:
    await app.call("agent_spawn", name="ada", prompt="You answer.")
    turn = await app.call("agent_send", agent="ada", message="6 x 7?", wait_s=10)
    assert turn["text"] == "42"
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ksi_mcp import yamlio
from ksi_mcp.app import App, AppOptions
from ksi_mcp.clock import Clock
from ksi_mcp.config import Config, Home, ScriptedConfig
from ksi_mcp.permissions import OPERATOR, fresh_context

START_MS = 1_800_000_000_000
SCRIPT_FILE = "script.yaml"


class FakeClock:
    """Time that stands still until `advance`. Sleepers wake in the order of their times."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self._now_s = now_ms / 1000
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return round(self._now_s * 1000)

    def monotonic_s(self) -> float:
        """Seconds that only ever grow."""
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        """Return once time has been advanced by that much."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._count), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move time on, waking each sleeper at its own moment and letting it run before the next."""
        until_s = self._now_s + seconds
        while self._sleepers and self._sleepers[0][0] <= until_s:
            at_s, _, future = heapq.heappop(self._sleepers)
            self._now_s = max(self._now_s, at_s)
            if not future.done():
                future.set_result(None)
            await asyncio.sleep(0)
        self._now_s = until_s
        await asyncio.sleep(0)


class AppUnderTest:
    """An open application and the operator's way to call it."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool as the operator; its result.

        Raises:
            KsiError: as every caller would get it.
        """
        return (await self.app.toolbox.call(fresh_context(OPERATOR), tool, arguments)).data


@asynccontextmanager
async def open_test_app(
    *,
    replies: Sequence[dict[str, Any]] = (),
    default: dict[str, Any] | None = None,
    config: Config | None = None,
    home: Path | None = None,
    worker: str = "inside",
    clock: Clock | None = None,
) -> AsyncIterator[AppUnderTest]:
    """Open an application on a real SQLite file whose agents answer from a script.

    `replies` and `default` are those of the script format; without them a prompt is echoed. The folder is `home`,
    or one that goes with the application.
    """
    with tempfile.TemporaryDirectory(prefix="ksi-") as temporary:
        root = home or Path(temporary)
        chosen = config or Config(provider="scripted")
        if replies or default is not None:
            script: dict[str, Any] = {"replies": list(replies)}
            if default is not None:
                script["default"] = default
            (root / SCRIPT_FILE).write_text(yamlio.dump(script), "utf-8")
            chosen = chosen.model_copy(update={"scripted": ScriptedConfig(script=SCRIPT_FILE)})
        async with App(Home(root=root), AppOptions(worker=worker), config=chosen, clock=clock) as app:
            yield AppUnderTest(app)
