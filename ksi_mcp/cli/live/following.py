"""Following a run: look when something was committed, show it, ask what it asks, until there is a verdict."""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from rich.console import Console

from ksi_mcp.cli.escaping import exact_json, one_line
from ksi_mcp.cli.live.lanes import later
from ksi_mcp.cli.live.run_asking import ask_about, confirm
from ksi_mcp.cli.live.run_view import Frame, Verdict, facts_of, line_of, show, verdict_of
from ksi_mcp.cli.live.telling import tell
from ksi_mcp.cli.live.terminal import Notices, Terminal
from ksi_mcp.cli.showing import clock_time, moment
from ksi_mcp.errors import Refused
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.pumps import nap, new_bell
from ksi_mcp.tools.views import EventView

if TYPE_CHECKING:
    from ksi_mcp.app import App
    from ksi_mcp.events.journal import Subscription
    from ksi_mcp.events.model import Event

Mode = Literal["live", "lines", "silent"]
LOOK_S: Final = 0.2
"""Between two looks, however much is committed."""
TICK_S: Final = 1.0
PAID_S: Final = 10.0
"""What was at work as the run ended may take so long to be paid, or the last figures are without it."""
SETTLED_S: Final = 1.0
"""What may still change by itself must hold for so long before it is a verdict."""
MAX_SHOWN: Final = 100


class Follower:
    """One run, from its start or from now on, until there is a verdict on it; use it as a context manager."""

    def __init__(self, app: App, console: Console, *, mode: Mode, home: str | None, may_ask: bool) -> None:
        self._app = app
        self._console = console
        self._mode = mode
        self._home = home
        self._names: dict[str, str] = {}
        self._left: set[str] = set()
        self._seen: dict[str, Any] = {}
        self._since: tuple[str, float] | None = None
        self._patient = False
        self.may_ask = may_ask
        self.run_id = ""
        self._live: Subscription = app.services.journal.subscribe(self._is_ours)

    async def __aenter__(self) -> Self:
        if self._mode == "lines":
            await self._live.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mode == "lines":
            await self._live.__aexit__(kind, value, trace)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool as the operator."""
        return (await self._app.toolbox.call(fresh_context(OPERATOR), tool, arguments)).data

    # ----------------------------------------------------------------------------------- its beginning

    async def confirm_start(self) -> None:
        """A run that nothing bounds is started on purpose.

        Raises:
            Refused: the person said no.
        """
        with Terminal(self._console, alternate=False) as terminal:
            if terminal.has_keys and not await confirm(terminal, "Nothing limits what this run may spend. Start it?"):
                raise Refused("not started", hint="give it a limit with --budget or --turns")

    async def begin(self, start: dict[str, Any]) -> None:
        """Start it."""
        started = await self.call("orchestration_start", **start)
        self.run_id = started["orchestration"]
        for warning in started.get("warnings", ()):
            print(f"warning: {one_line(warning)}", file=sys.stderr)

    async def find(self, run_id: str) -> None:
        """One that was started before.

        Raises:
            NotFound: there is none.
        """
        found = await self.call("orchestration_status", orchestration=run_id, events=0)
        self.run_id = found["orchestration"]
        self._patient = True

    # ----------------------------------------------------------------------------------- while it goes on

    async def follow(self) -> Verdict:
        """Until there is a verdict."""
        return await (self._show_live() if self._mode == "live" else self._until_settled())

    async def _until_settled(self) -> Verdict:
        bell = new_bell(self._app.services.journal)
        if self._mode == "lines":
            await self._look()
            run = self._seen["runs"][0]
            print(f"{clock_time(run['started_at'])}  {self.run_id}  {run['pattern'].partition('@')[0]}  {run['state']}")
        while True:
            bell.clear()
            await self._look()
            if self._mode == "lines":
                for event in self._live.drain():
                    self._print(event)
            if (verdict := self._settled()) is not None:
                return verdict
            await asyncio.sleep(LOOK_S)
            await nap(bell, TICK_S)

    async def _show_live(self) -> Verdict:
        bell = new_bell(self._app.services.journal)
        notices, clock = Notices.install(), asyncio.get_running_loop().time
        with Terminal(self._console, alternate=False, on_resize=bell.set) as terminal:
            while True:
                bell.clear()
                await self._look()
                looked_s = clock()
                for waiting in self._seen.get("parked", ()) if self.may_ask and terminal.has_keys else ():
                    if waiting["turn"] not in self._left:
                        if not await ask_about(waiting, terminal, self.call):
                            self._left.add(waiting["turn"])
                        bell.set()
                if (verdict := self._settled()) is not None:
                    return verdict
                while True:
                    now = later(self._seen, clock() - looked_s)
                    frame = Frame(seen=self._seen, now=now, notices=tuple(notices.lines))
                    terminal.painter.paint(frame.lines(self._console.width, self._console.height - 1))
                    await asyncio.sleep(LOOK_S)
                    await nap(bell, TICK_S - LOOK_S)
                    if bell.is_set() or self._since is not None:
                        break

    async def _look(self) -> None:
        self._seen = await self.call(
            "monitor_overview", orchestration=self.run_id, ended=True, agents=MAX_SHOWN, runs=1, events=20
        )
        self._names |= self._seen["names"] | {lane["agent"]: lane["name"] for lane in self._seen["agents"]}

    def _settled(self) -> Verdict | None:
        """A verdict that is one: what could still change by itself has held for a while."""
        verdict = verdict_of(self._seen)
        run = self._seen["runs"][0]
        if verdict is None:
            self._since = None
            return None
        if run["state"] not in ("running", "suspended") and (
            not (run["pending"] or run["budget"]["reserved_usd"])
            or (moment(self._seen["at"]) - moment(run["ended_at"])).total_seconds() > PAID_S
        ):
            return verdict
        somebody_may = self._patient or self._mode == "live"
        if verdict.word == "idle" and run["orchestrator"] == "client" and somebody_may:
            return None
        if verdict.word == "suspended" and self._mode == "live":
            return None
        if verdict.word == "parked" and self.may_ask and any(each["turn"] not in self._left for each in self._parked):
            return None
        if run["state"] not in ("running", "suspended"):
            return None
        now_s = asyncio.get_running_loop().time()
        if self._since is None or self._since[0] != verdict.word:
            self._since = verdict.word, now_s
            return None
        return verdict if now_s - self._since[1] >= SETTLED_S else None

    @property
    def _parked(self) -> list[dict[str, Any]]:
        return list(self._seen.get("parked", ()))

    def _is_ours(self, event: Event) -> bool:
        return not self.run_id or event.orchestration_id == self.run_id

    def _print(self, event: Event) -> None:
        view = EventView.of(event).as_json()
        if event.name == "agent:spawned":
            self._names[str(event.data.get("agent"))] = str(event.data.get("name"))
        told = tell({"data": {}, **view}, self._names)
        if told.matters and event.orchestration_id == self.run_id:
            print(f"{clock_time(view['at'])}  {told.who:<20}  {told.what}".rstrip(), flush=True)

    # ------------------------------------------------------------------------------------- what came of it

    async def report(self, verdict: Verdict, *, as_json: bool, quiet: bool) -> None:
        """Print it."""
        status = await self.call("orchestration_status", orchestration=self.run_id, events=0)
        facts = facts_of(self._seen, status, verdict, self._home)
        if as_json:
            print(exact_json(facts))
        elif quiet:
            print(line_of(facts))
        else:
            show(self._console, facts)
