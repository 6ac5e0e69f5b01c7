"""What `ksi-mcp top` shows: lines that fit the terminal, however narrow, wide or low it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rich.console import Group
from rich.text import Text

from ksi_mcp.cli.escaping import one_line
from ksi_mcp.cli.live.lanes import (
    DELIVERY_COLUMNS,
    HAPPENING_COLUMNS,
    delivery_row,
    happenings,
    lane_lines,
    queue_text,
)
from ksi_mcp.cli.live.top_board import Board
from ksi_mcp.cli.showing import (
    Cell,
    Column,
    bar,
    clip,
    clock_time,
    count,
    duration,
    lines_of,
    moment,
    spark,
    state,
    usd,
)

WIDE: Final = 132
"""From here on there are two columns of what happens."""
_PLACE: Final = 80
_LOW: Final = 14
_PARKED_SHOWN: Final = 20
"""A look has no more than these."""
_KEYS: Final = "q quit  ↑↓ select  Tab runs/agents  Enter look  / filter  s suspend/resume  p pause  ? help"
_BAR: Final = 6

RUN_COLUMNS: Final = (
    Column(title="run", width=12),
    Column(title="pattern"),
    Column(title="state", width=10),
    Column(title="agents", width=6, right=True, leaves=4),
    Column(title="done", width=5, right=True, leaves=2),
    Column(title="wait", width=5, right=True, leaves=1),
    Column(title="spent", width=9, right=True),
    Column(title="of limit", width=12, leaves=3),
    Column(title="for", width=6, right=True, leaves=5),
)
HELP: Final = (
    ("↑ ↓ j k", "select; PgUp PgDn Home End by pages"),
    ("Tab", "between runs and agents"),
    ("Enter", "look at what is selected; Esc back"),
    ("/", "show agents of that name, id, model or run only; Esc shows all"),
    ("s", "suspend the selected run, or resume it"),
    ("p", "stand still"),
    ("q", "leave; nothing of what is shown depends on it"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """What was spent today, and lately: per minute, and in steps of some seconds for a line."""

    today: float
    per_minute: float
    steps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many lines each part gets."""

    runs: int
    agents: int
    happenings: int


def plan_of(height: int, *, runs: int, warnings: int) -> Plan:
    """Divide the height: the head, runs, agents, what happens, one line of keys."""
    room = height - 3 - warnings  # two lines of head, and the keys
    run_rows = min(runs, max(room // 6, 2)) if room >= _LOW - 3 else min(runs, 1)
    room -= run_rows + 2 if runs else 0
    feed = max(room // 3, 3) if room >= _LOW else 0
    return Plan(runs=run_rows, agents=max(room - 2 - (feed + 2 if feed else 0), 1), happenings=feed)


def warnings_of(seen: Mapping[str, Any], notices: Sequence[str]) -> list[tuple[str, str]]:
    """What somebody should know first, with its colour; at most three."""
    texts: list[tuple[str, str]] = []
    for each in seen.get("breakers", ()):
        since = f" since {clock_time(each['since'])}" if each.get("since") else ""
        word = "is tried again" if each["state"] == "half_open" else "is not asked"
        texts.append((f"{each['provider']} {each['family']} {word}{since}: it failed too often", "red"))
    if seen.get("routing_paused"):
        texts.append(("safe mode: no event is delivered", "yellow"))
    if waiting := seen.get("parked"):
        who = ", ".join(sorted({one_line(each["agent_name"]) for each in waiting})[:4])
        more = " or more" if len(waiting) == _PARKED_SHOWN else ""
        words = "turn waits" if len(waiting) == 1 else "turns wait"
        texts.append((f"{len(waiting)}{more} {words} for somebody: {who}", "magenta"))
    return [*texts, *((one_line(notice), "yellow") for notice in list(notices)[-1:])][:3]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopFrame:
    """Everything at one moment."""

    seen: Mapping[str, Any]
    board: Board
    money: Money
    now: datetime
    place: str
    notices: Sequence[str] = ()
    detail: Sequence[Text] = ()

    def lines(self, width: int, height: int, *, whole: bool = True) -> Group:
        """Exactly so many lines; or (not `whole`) as many as there are, without the keys."""
        warnings = self._warnings(width)
        head = [*self._head(width), *warnings]
        body = self._body(width, height - len(head) - 1, len(warnings), height)
        body = body[: height - len(head) - 1]
        if not whole:
            return Group(*head, *body)
        filler = [Text("") for _ in range(height - len(head) - 1 - len(body))]
        return Group(*head, *body, *filler, self._foot(width))

    def _body(self, width: int, room: int, warnings: int, height: int) -> list[Text]:
        if self.board.helping:
            said = [Text.assemble(f"  {key:<10}", text) for key, text in HELP]
            for line in said:
                line.truncate(width, overflow="ellipsis")
            return [Text(""), *said]
        if self.board.detail is not None:
            most = max(len(self.detail) - room, 0)
            self.board.scroll = min(self.board.scroll, most)
            return list(self.detail[self.board.scroll : self.board.scroll + room])
        plan = plan_of(height, runs=len(self.seen["runs"]), warnings=warnings)
        lines = self._runs(width, plan.runs) if plan.runs else []
        lines += [Text(""), *self._agents(width, plan.agents)]
        return lines + ([Text(""), *self._happenings(width, plan.happenings)] if plan.happenings else [])

    # --------------------------------------------------------------------------------------- parts

    def _head(self, width: int) -> list[Text]:
        seen, account = self.seen, self.seen["account"]
        first = Text.assemble(("ksi", "bold"), " " if width >= _PLACE else "  ", no_wrap=True)
        if width >= _PLACE:
            first.append(self.place if width >= WIDE else clip(self.place, width // 6), "bright_black")
            first.append("  ")
        open_runs = seen["runs_open"]
        running = open_runs.get("running", 0)
        first.append(f"{running:,}", "bold")
        first.append(" run" if running == 1 else " runs")
        if held := open_runs.get("suspended"):
            first.append(f" +{held:,} held", "yellow")
        first.append(f"  {seen['agents_living']:,}", "bold")
        first.append(" agent  " if seen["agents_living"] == 1 else " agents  ")
        first.append_text(queue_text(seen["queue"], (self.now - moment(seen["at"])).total_seconds()))
        mark = Text(" paused ", "reverse yellow") if self.board.paused else Text(clock_time(seen["at"]), "bright_black")
        first.truncate(max(width - mark.cell_len - 1, 0), overflow="ellipsis")
        first.append(" " * max(width - first.cell_len - mark.cell_len, 1))
        first.append_text(mark)
        second = Text.assemble(("today ", "bright_black"), no_wrap=True)
        second.append(usd(self.money.today), "bold")
        rate = self.money.per_minute
        second.append(f"  {usd(rate)}/min", "yellow" if rate else "bright_black")
        if any(self.money.steps):
            second.append(" " + spark(self.money.steps, 20 if width >= WIDE else 10), "yellow")
        second.append("   in all ", "bright_black")
        second.append(usd(account["spent_usd"]))
        if (limit := account.get("limit_usd")) is not None:
            second.append(f" of {usd(limit)} ")
            second.append_text(bar(account["spent_usd"] / limit if limit else 1.0, _BAR))
        if account["reserved_usd"]:
            second.append(f"  +{usd(account['reserved_usd'])} set aside", "bright_black")
        second.append("   tokens ", "bright_black")
        second.append(count(account["spent_tokens"]))
        second.append("   turns ", "bright_black")
        second.append(count(account["spent_turns"]))
        second.truncate(width, overflow="ellipsis")
        return [first, second]

    def _warnings(self, width: int) -> list[Text]:
        lines = [Text(f"! {text}", style, no_wrap=True) for text, style in warnings_of(self.seen, self.notices)]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines

    def _runs(self, width: int, rows: int) -> list[Text]:
        board = self.board
        first = min(max(board.run_at - rows + 1, 0), max(len(board.runs) - rows, 0))
        shown = board.runs[first : first + rows]
        chosen = board.run_at - first if board.focus == "runs" else None
        columns = [Column(title="RUN", width=12), *RUN_COLUMNS[1:]]
        return [Text(""), *lines_of(columns, [self._run(run) for run in shown], width, selected=chosen, room=24)]

    def _run(self, run: Mapping[str, Any]) -> list[Cell]:
        budget = run["budget"]
        limit = budget.get("limit_usd")
        share = budget["spent_usd"] / limit if limit else 0.0
        until = moment(run["ended_at"]) if run.get("ended_at") else self.now
        over = Text.assemble(bar(share, _BAR), f" {share:>4.0%}") if limit else Text("")
        word = "draining" if run.get("draining") else run["state"]
        pattern = one_line(run["pattern"].partition("@")[0])
        if run.get("outcome"):
            score = "" if run.get("score") is None else f" {run['score']:g}"
            pattern += f"  {one_line(run['outcome'])}{score}"
        return [
            run["orchestration"],
            pattern,
            state(word),
            str(run["agents"]),
            count(run["done"]),
            (count(run["pending"]), "" if run["pending"] else "bright_black"),
            usd(budget["spent_usd"]),
            over,
            duration((until - moment(run["started_at"])).total_seconds()),
        ]

    def _agents(self, width: int, rows: int) -> list[Text]:
        board = self.board
        chosen = board.agent_at - board.offset if board.focus == "agents" else None
        lanes = board.agents[:rows]
        lines = lane_lines(lanes, self.now, width, selected=chosen, runs=len(board.runs) > 1)
        title = Text("AGENT" + " " * 15, "bold bright_black")
        lines[0] = title.append_text(lines[0][20:])
        last = board.offset + len(lanes)
        if board.fitting > len(lanes) or board.find:
            where = f" {board.offset + 1 if lanes else 0:,}-{last:,} of {board.fitting:,} "
            lines[0].truncate(width - len(where), pad=True)
            lines[0].append(where, "bright_black")
        return lines

    def _happenings(self, width: int, rows: int) -> list[Text]:
        names = self.seen["names"]
        if width < WIDE:
            cells = happenings(self.seen, rows)
            lines = lines_of(HAPPENING_COLUMNS, cells, width, room=20)
            lines[0] = Text("EVENTS AND DELIVERIES", "bold bright_black")
            return lines
        left_width = width * 3 // 5
        left = lines_of(HAPPENING_COLUMNS, happenings(self.seen, rows, deliveries=False), left_width, room=20)
        left[0] = Text("EVENTS", "bold bright_black")
        went = [delivery_row(each, names) for each in reversed(self.seen["deliveries"][:rows])]
        right = lines_of(DELIVERY_COLUMNS, went, width - left_width - 2, room=40)
        right[0] = Text("DELIVERIES", "bold bright_black")
        lines = []
        for n in range(max(len(left), len(right))):
            line = left[n] if n < len(left) else Text("")
            line.pad_right(max(left_width + 2 - line.cell_len, 0))
            lines.append(line.append_text(right[n]) if n < len(right) else line)
        return lines

    def _foot(self, width: int) -> Text:
        board = self.board
        if board.asking is not None:
            foot = Text(f"{board.asking.action} {board.asking.run}? y/n", "bold yellow")
        elif board.typing:
            foot = Text.assemble(
                ("filter: ", "bold"), board.find, ("▏", "bold"), ("  Enter keeps it, Esc shows all", "bright_black")
            )
        elif board.said:
            foot = Text(one_line(board.said), "yellow")
        elif board.detail is not None:
            foot = Text("Esc back  ↑↓ scroll  s suspend/resume  p pause  q quit", "bright_black")
        else:
            foot = Text(_KEYS, "bright_black")
            if board.find:
                foot = Text.assemble((f"filter: {board.find}  ", "bold"), foot)
        foot.truncate(width, overflow="ellipsis")
        return foot
