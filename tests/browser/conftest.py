"""A host page in a real browser, which shows the page of a real server behind real HTTP."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from ksi_mcp import yamlio
from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home
from ksi_mcp.transports.http import serve_http

HOST, SANDBOX = "https://host.test/", "https://sandbox.test/app"
PAGE_TOKEN = "a-token-for-the-browser-tests"
CSP = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; media-src 'self' data:; connect-src 'none'; frame-src 'none'; base-uri 'self'; "
    "object-src 'none'"
)
"""What a host must enforce for a page that names no other place."""
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
CAPABILITIES = {"serverTools": {}, "logging": {}}
WAIT_MS = 20_000
"""For what must come: usually two seconds, the time between two looks."""

BOARD = {
    "name": "review_board",
    "type": "orchestration",
    "version": "1.0.0",
    "description": "A team that writes a note and has it reviewed.",
    "agents": {
        name: {"composition": "base_agent", "capabilities": ["base", "messaging"], "prompt": f"You are the {name}."}
        for name in ("planner", "researcher", "writer", "critic", "editor")
    },
    "routing": [
        {"from": "planner", "to": ["researcher"], "pattern": "plan:ready"},
        {"from": "researcher", "to": ["writer", "critic"], "pattern": "notes:ready"},
        {"from": "writer", "to": ["critic"], "pattern": "draft:ready"},
        {"from": "critic", "to": ["writer"], "pattern": "review:note"},
        {"from": "critic", "to": ["editor"], "pattern": "draft:passed"},
    ],
    "orchestration_logic": {"description": "Each hands on to the next.", "strategy": "SEND planner: go"},
    "budget": {"usd": 1, "turns": 40},
}


def emits(agent: str, heard: str, event: str, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The script's entry for an agent that emits `event` once it is told of `heard`."""
    call = {"name": "event_emit", "input": {"event": event, "data": data}}
    return {"match": {"agent": agent, "prompt": heard, "round": 1}, "tool_calls": [call], **more}


REPLIES: list[dict[str, Any]] = [
    emits("planner", "go", "plan:ready", {"goal": "a note on retries", "steps": 3}),
    emits("researcher", "plan:ready", "notes:ready", {"found": HOSTILE, "sources": 4}),
    emits("writer", "notes:ready", "draft:ready", {"words": 420}),
    emits("critic", "draft:ready", "draft:passed", {"score": 8}),
    {"match": {"agent": "editor", "prompt": "how many"}, "reply": f"As many as it takes. {HOSTILE}"},
    {"match": {"prompt": "take your time"}, "reply": "later", "latency_s": 600},
    {"match": {"prompt": "fail"}, "fail": {"kind": "request", "message": "no such thing"}},
]
DEFAULT = {"reply": "Noted.", "usage": {"input_tokens": 1_400, "output_tokens": 180}}


@dataclass
class Stage:
    """A server with a run on it, and a browser whose host shows the run."""

    client: Client
    page: Any
    run: str = ""
    wrong: list[str] = field(default_factory=list)
    """Errors of the console, uncaught ones, and requests to any other place than the two pages."""

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool as the host does."""
        result = await self.client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        assert not result.is_error, result.content
        return dict(result.structured_content or {})

    async def start(self, *, play: bool = True) -> str:
        """Begin a run and, with `play`, let it go its way to the end of its chain of events."""
        self.run = (await self.call("orchestration_start", pattern="review_board"))["orchestration"]
        if play:
            await self.call("agent_send", agent="planner", message="go", wait_s=20)
            await self.call("event_wait", names=["draft:passed"], since=0, timeout_s=20, min_count=1)
            await self.call("agent_wait", agents=["writer", "critic", "editor"], timeout_s=20)
        return self.run

    async def park(self) -> str:
        """Let the editor's reply be none that will do; its turn."""
        expect = {"regex": "^[0-9]+$", "max_attempts": 1}
        submit = {"agent": "editor", "prompt": f"how many pages? {HOSTILE}", "expect": expect}
        return (await self.call("event_emit", event="completion:submit", data=submit))["result"]["turn"]

    async def show(self, *, dark: bool = False, capabilities: dict[str, Any] | None = None, **settings: Any) -> Any:
        """Let the host open the page for a call of `orchestration_status`; the frame it is in."""
        chosen = {
            "page": SANDBOX,
            "capabilities": CAPABILITIES if capabilities is None else capabilities,
            "context": {"theme": "dark" if dark else "light", "locale": "en-GB", "timeZone": "UTC"},
            "arguments": {"orchestration": self.run} if self.run else {},
            **settings,
        }
        await self.page.goto(HOST)
        await self.page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        await self.page.evaluate("chosen => open(chosen)", chosen)
        return self.page.frame_locator("#frame")

    async def calls(self, tool: str | None = None) -> int:
        """How many calls of tools the page has made."""
        return int(await self.page.evaluate("name => calls(name).length", tool))


@pytest.fixture
def chromium() -> str:
    """Where Chromium is; `scripts/chromium-for-tests` installs it."""
    found = os.environ.get("KSI_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found or not Path(found).is_file():
        pytest.skip("no Chromium: scripts/chromium-for-tests installs one, KSI_TEST_CHROMIUM names one")
    return found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    root = tmp_path / "home"
    (root / "compositions").mkdir(parents=True)
    (root / "compositions" / "review_board.yaml").write_text(yamlio.dump(BOARD), "utf-8")
    (root / "script.yaml").write_text(yamlio.dump({"replies": REPLIES, "default": DEFAULT}), "utf-8")
    (root / "config.yaml").write_text("provider: scripted\nscripted: {script: script.yaml}\n", "utf-8")
    return Home(root=root)


@asynccontextmanager
async def serving(home: Home) -> AsyncIterator[Client]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    kinds = frozenset({"http"})
    async with App(home, AppOptions(worker="inside")) as app:
        serving = asyncio.create_task(
            serve_http(app, host="127.0.0.1", port=0, kinds=kinds, token=PAGE_TOKEN, on_ready=ready.set_result)
        )
        try:
            url = await asyncio.wait_for(ready, 10)
            headers = {"Authorization": f"Bearer {PAGE_TOKEN}"}
            async with (
                httpx2.AsyncClient(headers=headers, timeout=60) as http,
                Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
            ):
                yield client
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving


OpenStage = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def stage(home: Home, chromium: str) -> OpenStage:
    """`async with stage(width=900) as s`: opened inside the test, because a client belongs to one task."""
    playwright = pytest.importorskip("playwright.async_api", reason="no playwright: the test extra brings it")
    playwright.expect.set_options(timeout=WAIT_MS)

    @asynccontextmanager
    async def opened(*, width: int = 900, height: int = 900, calm: bool = False) -> AsyncIterator[Stage]:
        async with serving(home) as client, playwright.async_playwright() as driver:
            browser = await driver.chromium.launch(
                executable_path=chromium,
                args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"],
            )
            try:
                context = await browser.new_context(
                    viewport={"width": width, "height": height}, reduced_motion="reduce" if calm else "no-preference"
                )
                page = await context.new_page()
                made = Stage(client=client, page=page)
                await _listen(made, client)
                yield made
                assert made.wrong == []
            finally:
                await browser.close()

    return opened


async def _listen(stage: Stage, client: Client) -> None:
    """Give the host page its server, serve the two pages there are, and note whatever should not happen."""
    read = await client.read_resource("ui://ksi/dashboard")
    html = read.contents[0].text
    host = Path(__file__).with_name("host.html").read_text("utf-8")

    async def call_tool(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        result = await client.call_tool(tool, arguments)
        return dict(result.model_dump(mode="json", by_alias=True, exclude_none=True))

    async def route(route: Any) -> None:
        url = route.request.url
        if url == HOST:
            await route.fulfill(body=host, content_type="text/html")
        elif url == SANDBOX:
            headers = {"Content-Security-Policy": CSP}
            await route.fulfill(body=html, content_type="text/html; charset=utf-8", headers=headers)
        else:
            stage.wrong.append(f"request to {url}")
            await route.abort()

    page = stage.page
    await page.route("**/*", route)
    await page.expose_function("mcp", call_tool)
    page.on("console", lambda said: stage.wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: stage.wrong.append(str(error)))
    await page.clock.install()
