"""`ksi-mcp worker`: run turns, without a client."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from ksi_mcp.cli.running import open_door, run_until_told
from ksi_mcp.cli.twin.options import HomeOption, ProjectOption, SafeModeOption

logger = logging.getLogger(__name__)

DRAIN_S = 10.0
"""So long turns at work may go on after SIGTERM."""


def command(
    home: HomeOption = None,
    until_idle: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="End after so long without work. Default: never.")
    ] = None,
    project: ProjectOption = None,
    safe_mode: SafeModeOption = False,
    launched: Annotated[
        bool, typer.Option("--launched", hidden=True, help="By a server: whether it is safe mode stays as it is.")
    ] = False,
) -> None:
    """Run turns, route events and fire delays of a data folder. Logs go to stderr.

    A data folder has one worker. Where another one is at work already, this one ends at once, with code 0.
    On SIGTERM it starts no more turns, gives those at work 10 seconds to come to the end of a round, and leaves the
    rest to the next worker; a second SIGTERM ends it at once.
    """
    from ksi_mcp.app import App, AppOptions
    from ksi_mcp.config import find_home, load_config
    from ksi_mcp.errors import Conflict
    from ksi_mcp.logs import configure_logging

    place = find_home(home)
    config = load_config(place)
    if not launched:
        config = config.with_safe_mode(asked=safe_mode)
    configure_logging(config.log_level)
    app = App(place, AppOptions(worker="inside", project=project, agent_door=open_door), config=config)

    async def work() -> None:
        try:
            async with app:
                await app.run_until_idle(until_idle)
        except Conflict as conflict:
            logger.info("not needed: %s", conflict.message)

    async def drain() -> None:
        if hasattr(app, "worker"):  # else it is still being opened
            await app.worker.drain(DRAIN_S)

    run_until_told(work(), drain=drain)
