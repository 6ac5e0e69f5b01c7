"""`ksi-mcp top`: everything that goes on in a data folder, live."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ksi_mcp.cli.escaping import exact_json, one_line
from ksi_mcp.cli.running import run_until_told
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, offering
from ksi_mcp.errors import KsiError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ksi_mcp.app import App
    from ksi_mcp.cli.live.top_board import Board, Wish
    from ksi_mcp.cli.live.top_view import Money

EXIT_TERMINATED: Final = 143
TICK_S: Final = 1.0
"""While something is at work its time goes on; nothing is read for that."""
SLOW_TICK_S: Final = 15.0
"""While the rate of spending goes down."""
STEP_S: Final = 10.0
WINDOW_S: Final = 300.0
_STEPS: Final = 30
_EVENTS: Final = 60
_PIPED_ROWS: Final = 80
_LOOKS: Final = 3
"""In a row, where what was seen changes what there is room for."""


def command(
    orchestration: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this run.", autocompletion=offering("runs"))
    ] = None,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="Seconds between two looks, at the least.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print it once, as it is now, also into a pipe.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show what goes on: runs, agents and what each is at, queue, spend, newest events and deliveries.

    It looks when something was committed, and never changes anything unless you say so (s suspends or resumes a run).
    Keys: ? lists them. Without a terminal it prints one frame; --json prints the same as data.
    """
    code = run_until_told(_top(orchestration, interval, home, once=once, as_json=as_json))
    return EXIT_TERMINATED if code is None else code


async def _top(orchestration: str | None, interval: float, home: str | None, *, once: bool, as_json: bool) -> int:
    from ksi_mcp.app import App, AppOptions
    from ksi_mcp.cli.showing import make_console
    from ksi_mcp.config import find_home

    place = find_home(home)
    async with App(place, AppOptions(worker="none")) as app:
        console = make_console()
        if as_json or once or not console.is_terminal or console.is_dumb_terminal:
            top = Top(app, console, _shown(place.root), orchestration, interval)
            await top.begin()
            if as_json:
                money = top.money()
                print(exact_json({**top.seen, "today_usd": money.today, "usd_per_min": money.per_minute}))
            else:
                top.print_once()
            return 0
        await Top(app, console, _shown(place.root), orchestration, interval).show()
        return 0


def _shown(root: Path) -> str:
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{root.relative_to(Path.home())}"
    return str(root)


class Top:
    """The loop: look when something was committed, paint when something changed."""

    def __init__(self, app: App, console: Console, place: str, orchestration: str | None, interval: float) -> None:
        from ksi_mcp.cli.live.top_board import Board

        self._app = app
        self._console = console
        self._place = one_line(place)
        self._run = orchestration
        self._interval = interval
        self.board: Board = Board()
        self.seen: dict[str, Any] = {}
        self._detail: list[Text] = []
        self._looked_s = float("-inf")
        self._rung = True
        self._stir = asyncio.Event()
        self._wishes: deque[Wish] = deque()
        self._samples: deque[tuple[float, float]] = deque(maxlen=4_000)
        self._day = datetime.now().astimezone().date()
        self._before_today = 0.0
        self._notices: deque[str] = deque()
        self._live = False
        self._clock = asyncio.get_running_loop().time

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool as the operator."""
        from ksi_mcp.permissions import OPERATOR, fresh_context

        return (await self._app.toolbox.call(fresh_context(OPERATOR), tool, arguments)).data

    # --------------------------------------------------------------------------------------- looking

    async def begin(self) -> None:
        """The first look, and what was spent before it."""
        await self._look()
        await self._begin_day()
        lately = await self._spent(window_s=WINDOW_S)
        now_s, spent = self._clock(), self.seen["account"]["spent_usd"]
        self._samples.clear()
        self._samples.extend(((now_s - WINDOW_S, spent - lately), (now_s, spent)))

    async def _begin_day(self) -> None:
        midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        self._day = midnight.date()
        today = await self._spent(since=midnight.isoformat())
        self._before_today = self.seen["account"]["spent_usd"] - today

    async def _spent(self, **window: Any) -> float:
        run = {} if self._run is None else {"orchestration": self._run}
        total = (await self.call("usage_report", by="day", limit=1, **run, **window))["total"]
        return float(total["usd"] + total.get("uncertain_usd", 0))

    async def _look(self) -> None:
        board = self.board
        for _ in range(_LOOKS):
            self._rung, self._looked_s = False, self._clock()
            self.seen = await self.call(
                "monitor_overview",
                find=board.find or None,
                agents=min(board.page, 200),
                offset=board.offset,
                runs=20,
                events=_EVENTS,
                **({} if self._run is None else {"orchestration": self._run}),
            )
            if not (board.saw(self.seen) | self._fit()):
                break
        self._samples.append((self._looked_s, self.seen["account"]["spent_usd"]))
        if board.detail is not None:
            await self._look_closer()

    async def _look_closer(self) -> None:
        from ksi_mcp.cli.live.lanes import later
        from ksi_mcp.cli.live.top_detail import agent_lines, run_lines

        assert self.board.detail is not None  # noqa: S101  only then
        kind, name = self.board.detail
        width = self._console.width
        if kind == "agents":
            detail = await self.call("agent_get", agent=name, include=["history", "rules", "budget", "events"])
            lane = next((each for each in self.seen["agents"] if each["agent"] == name), None)
            self._detail = agent_lines(detail, lane, later(self.seen, self._clock() - self._looked_s), width)
            return
        status = await self.call("orchestration_status", orchestration=name, events=30)
        rules = await self.call("routing_query_rules", filter={"orchestration": name}, limit=50)
        self._detail = run_lines(status, rules["rules"], self.seen["names"], width)

    def money(self) -> Money:
        """What was spent today, and lately."""
        from ksi_mcp.cli.live.top_view import Money

        now_s, spent = self._clock(), self.seen["account"]["spent_usd"]
        past = [(at_s, amount) for at_s, amount in self._samples if now_s - at_s <= WINDOW_S + 1]
        before = past[0][1] if past else spent
        steps, last = [], before
        for n in range(_STEPS - 1, -1, -1):
            until = now_s - n * STEP_S
            amount = next((each for at_s, each in reversed(past) if at_s <= until), before)
            steps.append(max(amount - last, 0.0))
            last = amount
        rate = max(spent - before, 0.0) / (WINDOW_S / 60)
        return Money(today=max(spent - self._before_today, 0.0), per_minute=round(rate, 6), steps=tuple(steps))

    # --------------------------------------------------------------------------------------- showing

    def print_once(self) -> None:
        """One frame, as high as what there is to show."""
        self._paint_to(self._console.print, self._console.width, self._height, whole=False)

    async def show(self) -> None:
        """Until somebody leaves."""
        from ksi_mcp.cli.live.terminal import Notices, Terminal

        self._live, self._notices = True, Notices.install().lines
        self._app.services.journal.on_wake(self._ring)
        with Terminal(self._console, alternate=True, on_key=self._key, on_resize=self._resized) as terminal:
            await self.begin()
            while True:
                self._paint_to(terminal.painter.paint, self._console.width, self._height)
                await self._wait()
                try:
                    if not await self._act():
                        return
                except KsiError as failure:
                    self.board.said = failure.text()
                    self.board.detail = None
                    self._looked_s = self._clock()

    def _paint_to(self, paint: Any, width: int, height: int, *, whole: bool = True) -> None:
        from ksi_mcp.cli.live.lanes import later
        from ksi_mcp.cli.live.top_view import TopFrame

        frame = TopFrame(
            seen=self.seen,
            board=self.board,
            money=self.money(),
            now=later(self.seen, self._clock() - self._looked_s),
            place=self._place,
            notices=tuple(self._notices),
            detail=self._detail,
        )
        paint(frame.lines(max(width, 20), max(height, 5), whole=whole))

    async def _wait(self) -> None:
        """Until there is a key, another size, something new that is due to be looked at, or a second is over."""
        from ksi_mcp.pumps import nap

        busy = any(self.seen["queue"].get(name) for name in ("running", "waiting", "retrying"))
        limit = TICK_S if busy else SLOW_TICK_S if self.money().per_minute else 3600.0
        if self._rung and not self.board.paused:
            limit = max(self._looked_s + self._interval - self._clock(), 0.0)
        if limit > 0 and not self._wishes:
            await nap(self._stir, limit)
        self._stir.clear()

    async def _act(self) -> bool:
        """Do what keys asked for, and look if something is new; False: leave."""
        due = self._rung and not self.board.paused and self._clock() - self._looked_s >= self._interval
        while self._wishes:
            wish = self._wishes.popleft()
            if wish.kind == "quit":
                return False
            if wish.kind == "control":
                await self.call("orchestration_control", orchestration=wish.run, action=wish.action)
                self.board.said = f"{wish.run}: {wish.action}d" if wish.action == "resume" else f"{wish.run}: held"
            due = True
        if due:
            await self._look()
        if datetime.now().astimezone().date() != self._day:
            await self._begin_day()
        return True

    @property
    def _height(self) -> int:
        """A pipe has no height of its own, and a frame that stays leaves a line for the prompt."""
        if not self._console.is_terminal:
            return _PIPED_ROWS
        return self._console.height - (not self._live)

    def _fit(self) -> bool:
        """See that a page is as long as there is room for; True if other agents are to be read because of it."""
        from ksi_mcp.cli.live.top_view import plan_of, warnings_of

        warnings = len(warnings_of(self.seen, self._notices))
        return self.board.set_page(plan_of(self._height, runs=len(self.seen["runs"]), warnings=warnings).agents)

    def _resized(self) -> None:
        from ksi_mcp.cli.live.top_board import Wish

        self._wishes.append(Wish(kind="look"))
        self._stir.set()

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self._stir.set()

    def _key(self, key: str) -> None:
        if (wish := self.board.key(key)) is not None:
            self._wishes.append(wish)
        self._stir.set()
