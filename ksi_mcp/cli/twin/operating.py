"""Tools called as the operator of a data folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import find_home
from ksi_mcp.logs import configure_logging
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.tools.call import Progress


class Operator:
    """The operator of this machine, in an open application."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def find(self, name: str) -> tuple[str, Mapping[str, Any]]:
        """A tool's exact name and schema."""
        toolbox = self._app.toolbox
        found = toolbox.command(name) or toolbox.get(name.replace("-", "_"))
        return found.name, found.schema()

    async def call(self, name: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Call a tool."""
        return (await self._app.toolbox.call(fresh_context(OPERATOR), name, args, progress=progress)).data


@asynccontextmanager
async def operate(home: str | None, project: Path | None) -> AsyncIterator[Operator]:
    """Open the data folder, with a worker that outlives this command."""
    async with App(find_home(home), AppOptions(worker="detached", project=project)) as app:
        configure_logging(app.config.log_level)
        yield Operator(app)
