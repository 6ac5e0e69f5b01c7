"""A data folder, and real clients of both protocol eras on a real App."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home
from ksi_mcp.tools.catalog import ALL_TOOLS
from ksi_mcp.tools.tool import Tool
from ksi_mcp.tools.toolbox import Toolbox
from ksi_mcp.transports.server import build_server

PROJECT = Path(__file__).parents[2]
Start = Callable[..., AbstractAsyncContextManager[asyncio.subprocess.Process]]
Serve = Callable[..., AbstractAsyncContextManager[tuple[App, Client]]]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    root = tmp_path / "home"
    root.mkdir()
    (root / "config.yaml").write_text("provider: scripted\nworker: {idle_s: 1}\n")
    return Home(root=root)


@pytest.fixture(params=["auto", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serve(home: Home, era: str) -> Serve:
    """`async with serve() as (app, client)`: opened inside the test, because a client belongs to one task."""

    @asynccontextmanager
    async def served(
        worker: str = "none", tools: str = "default", more: tuple[Tool, ...] = (), **options: Any
    ) -> AsyncIterator[tuple[App, Client]]:
        async with App(home, AppOptions(worker=worker)) as app:
            app.toolbox = Toolbox(app.services, (*ALL_TOOLS, *more))
            async with Client(build_server(app, tools=tools), mode=era, **options) as client:
                yield app, client

    return served


@pytest.fixture
def start(home: Home) -> Start:
    """`async with start("--worker", "none") as process`: `ksi-mcp serve` on the data folder."""

    @asynccontextmanager
    async def started(*options: str) -> AsyncIterator[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ksi_mcp", "serve", "--home", str(home.root), *options),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    return started
