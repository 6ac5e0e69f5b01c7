"""`ksi-mcp events`: the log, as it was and as it grows."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.escaping import print_json, visible
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, offering
from ksi_mcp.config import find_home
from ksi_mcp.events.model import Event, EventFilter
from ksi_mcp.events.patterns import compile_pattern
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.tools.views import EventView

_SHOWN_CHARS = 160


def command(
    names: Annotated[list[str] | None, typer.Option("--names", metavar="PATTERN", help="e.g. completion:*")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, max=10_000, help="How many of the newest to begin with.")
    ] = 20,
    orchestration: Annotated[
        str | None, typer.Option(metavar="ID", help="Only those of this run.", autocompletion=offering("runs"))
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show recorded events, the oldest first: one a line; with --json one JSON object a line."""
    patterns = [compile_pattern(name) for name in names or ()]
    place = find_home(home)

    def wants(event: Event) -> bool:
        if orchestration is not None and event.orchestration_id != orchestration:
            return False
        return not patterns or any(pattern.fits(event.name) for pattern in patterns)

    async def run() -> None:
        async with App(place, AppOptions(worker="none")) as app, app.services.journal.subscribe(wants) as live:
            if orchestration is not None:  # one that is not there is a mistake, and no silence
                await app.toolbox.call(
                    fresh_context(OPERATOR), "orchestration_status", {"orchestration": orchestration, "events": 0}
                )
            wanted = EventFilter(names=tuple(names or ()), orchestration_id=orchestration)
            page = await app.services.journal.query(wanted, limit=limit) if limit else None
            shown = 0
            for event in reversed(page.events if page is not None else ()):
                _show(event, as_json=as_json)
                shown = event.event_id
            while follow:
                new = await live.next(None)
                if new is not None and new.event_id > shown:
                    _show(new, as_json=as_json)

    asyncio.run(run())


def _show(event: Event, *, as_json: bool) -> None:
    view = EventView.of(event)
    if as_json:
        print_json(view.as_json())
        return
    data = json.dumps(event.data, ensure_ascii=False)
    cut = data if len(data) <= _SHOWN_CHARS else data[:_SHOWN_CHARS] + "..."
    typer.echo(visible(f"{view.at}  {event.event_id:>6}  {event.name:<26}  {event.source:<20}  {cut}"))
