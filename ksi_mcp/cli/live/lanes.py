"""Rows of agents and of what happened, as `run` and `top` show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from rich.text import Text

from ksi_mcp.cli.escaping import one_line
from ksi_mcp.cli.live.telling import tell, who_is
from ksi_mcp.cli.showing import (
    STATE_STYLES,
    Cell,
    Column,
    Tail,
    bar,
    clock_time,
    count,
    duration,
    lines_of,
    moment,
    usd,
)

WAITS_FOR_A_PERSON: Final = ("answer", "budget")
"""What a parked turn waits for that does not come by itself."""
_BAR: Final = 8
_WIDE: Final = 110
_QUEUE: Final = (
    ("running", "green"),
    ("waiting", ""),
    ("retrying", "yellow"),
    ("blocked", "yellow"),
    ("parked", "bold magenta"),
)

LANE_COLUMNS: Final = (
    Column(title="agent", width=20),
    Column(title="run", width=12, leaves=6),
    Column(title="state", width=10),
    Column(title="for", width=6, right=True, leaves=4),
    Column(title="done", width=4, right=True, leaves=2),
    Column(title="wait", width=4, right=True, leaves=1),
    Column(title="tokens", width=6, right=True, leaves=5),
    Column(title="cost", width=9, right=True, leaves=3),
    Column(title="says"),
)


def lane_lines(
    lanes: Sequence[Mapping[str, Any]], now: datetime, width: int, *, selected: int | None = None, runs: bool = False
) -> list[Text]:
    """Agents as lines; with `runs` also which run each is of, if there is room."""
    rows = [lane_row(lane, now) for lane in lanes]
    if runs:
        return lines_of(LANE_COLUMNS, rows, width, selected=selected)
    without = [LANE_COLUMNS[0], *LANE_COLUMNS[2:]]
    return lines_of(without, [[row[0], *row[2:]] for row in rows], width, selected=selected)


def lane_row(lane: Mapping[str, Any], now: datetime) -> list[Cell]:
    """An agent as a row of `LANE_COLUMNS`."""
    state, style = state_of(lane)
    at_work = lane.get("now")
    since = duration((now - moment(at_work["since"])).total_seconds()) if at_work else ""
    waiting = max(lane["pending"] - 1, 0) if at_work and at_work["state"] != "queued" else lane["pending"]
    return [
        (one_line(lane["name"]), "bold" if at_work else ""),
        (one_line(lane.get("orchestration") or ""), "bright_black"),
        (state, style),
        since,
        str(lane["done"]) if lane["done"] else ("0", "bright_black"),
        (str(waiting), "yellow") if waiting else ("0", "bright_black"),
        (count(lane["tokens"]), "" if lane["tokens"] else "bright_black"),
        (usd(lane["usd"]), "red" if lane.get("closed") else "" if lane["usd"] else "bright_black"),
        says(lane, now),
    ]


def state_of(lane: Mapping[str, Any]) -> tuple[str, str]:
    """What an agent is at, in a word, and the colour of it."""
    at_work = lane.get("now")
    if lane["status"] == "suspended":
        return "suspended", "yellow"
    if not at_work:
        word = "draining" if lane.get("draining") else lane["status"]
        return word, str(STATE_STYLES.get(word, ""))
    word = at_work["state"]
    if word == "running":
        if at_work.get("waits_for"):
            return "waits", "cyan"
        return ("writes", "green") if at_work.get("streamed_chars") else ("thinks", "green")
    return word, str(STATE_STYLES.get(word, ""))


def says(lane: Mapping[str, Any], now: datetime) -> tuple[str, str]:
    """The end of what an agent writes, why it does not, or the beginning of what it said last."""
    at_work = lane.get("now")
    if at_work and at_work["state"] == "running":
        if waits := at_work.get("waits_for"):
            return f"waits for {waits} turn{'s' if waits > 1 else ''} of others", "cyan"
        if written := at_work.get("written"):
            return Tail("…" + one_line(written[-300:])), ""
        number = f", round {at_work['round']}" if at_work.get("round") else ""
        return f"asks {one_line(at_work.get('model') or lane['model'])}{number}", "bright_black"
    if at_work and at_work["state"] == "retrying":
        left = (moment(at_work["retry_at"]) - now).total_seconds()
        when = f"in {duration(left)}" if left > 0 else "now"
        return f"tries again {when}: {one_line(at_work.get('error') or '')}", "yellow"
    if at_work and at_work["state"] == "parked":
        on = at_work.get("parked_on")
        what = {
            "answer": "needs an answer",
            "budget": "needs room in a budget",
            "breaker": "its model is not asked now",
        }
        return f"{what.get(on or '', f'parked on {on}')}: {one_line(at_work.get('error') or '')}".rstrip(
            ": "
        ), "magenta"
    if said := lane.get("said"):
        good = lane.get("said_state") == "done"
        return f"{'✓' if good else '✗'} {one_line(said)}", "" if good else "red"
    return "", ""


HAPPENING_COLUMNS: Final = (
    Column(title="time", width=8, leaves=1),
    Column(title="who", width=20),
    Column(title="what"),
)


DELIVERY_COLUMNS: Final = (
    Column(title="time", width=8, leaves=2),
    Column(title="from", width=14, leaves=1),
    Column(title="what"),
)


def happenings(seen: Mapping[str, Any], limit: int, *, deliveries: bool = True) -> list[list[Cell]]:
    """The newest events and deliveries as rows of `HAPPENING_COLUMNS`, newest last."""
    names = seen["names"]
    routed = {each.get("turn") for each in seen["deliveries"]}
    rows: list[tuple[int, list[Cell]]] = []
    for event in seen["events"]:
        if event["event"] == "completion:queued" and event["data"].get("turn") in routed:
            continue
        told = tell(event, names)
        if told.matters or event["event"] == "completion:queued":
            row: list[Cell] = [(clock_time(event["at"]), "bright_black"), told.who, (told.what, told.style)]
            rows.append((event["event_id"], row))
    if deliveries:
        rows += [(each["event_id"], delivery_row(each, names)) for each in seen["deliveries"]]
    return [row for _, row in sorted(rows, key=lambda item: item[0])[-limit:]] if limit > 0 else []


def delivery_row(each: Mapping[str, Any], names: Mapping[str, str]) -> list[Cell]:
    """What went where."""
    what = f"{one_line(each['event'])} → {who_is(each['target'], names)}"
    return [(clock_time(each["at"]), "bright_black"), who_is(each.get("source"), names), (what, "blue")]


def spend_line(budget: Mapping[str, Any], width: int, *, rate: float | None = None) -> Text:
    """What was spent of what may be, with a bar a limit."""
    line = Text(no_wrap=True, overflow="crop")
    line.append("spent ", "bright_black")
    line.append(usd(budget["spent_usd"]), "bold")
    limit = budget.get("limit_usd")
    if limit is not None:
        line.append(f" of {usd(limit)} ")
        share = budget["spent_usd"] / limit if limit else 1.0
        line.append_text(bar(share, _BAR))
        line.append(f" {share:.0%}")
    if budget["reserved_usd"] and width >= _WIDE:
        line.append(f"  +{usd(budget['reserved_usd'])} set aside", "bright_black")
    if rate:
        line.append(f"  {usd(rate)}/min", "yellow")
    turns, most = budget["spent_turns"], budget.get("limit_turns")
    line.append("   turns ", "bright_black")
    line.append(f"{turns:,}", "bold")
    if most is not None:
        line.append(f" of {most:,} ")
        line.append_text(bar(turns / most if most else 1.0, _BAR))
    line.append("   tokens ", "bright_black")
    line.append(count(budget["spent_tokens"]), "bold")
    if (tokens := budget.get("limit_tokens")) is not None:
        line.append(f" of {count(tokens)} ")
        line.append_text(bar(budget["spent_tokens"] / tokens if tokens else 1.0, _BAR))
    if budget.get("closed"):
        line.append("   closed: a call cost more than was set aside", "bold red")
    line.truncate(width, overflow="ellipsis")
    return line


def queue_text(queue: Mapping[str, Any], seconds_on: float = 0.0) -> Text:
    """The queue in words, what waits for somebody in the colour of that."""
    line = Text(no_wrap=True, overflow="crop")
    for name, style in _QUEUE:
        number = queue.get(name) or 0
        if number or name in ("running", "waiting"):
            line.append(f"{'  ' if line else ''}{number:,} ", style if number else "bright_black")
            line.append(name, "" if number else "bright_black")
    if oldest := queue.get("oldest_wait_s"):
        line.append(f"  oldest wait {duration(oldest + seconds_on)}", "yellow" if oldest > 60 else "")  # noqa: PLR2004
    return line


def stuck(lanes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether somebody must act before anything of this goes on: who is not parked waits for others."""
    at_work = [lane["now"] for lane in lanes if lane.get("now")]
    parked = [each for each in at_work if each.get("parked_on") in WAITS_FOR_A_PERSON]
    return bool(parked) and all(each in parked or each.get("waits_for") for each in at_work)


def later(seen: Mapping[str, Any], seconds: float) -> datetime:
    """The moment of a look, so many seconds on."""
    return moment(seen["at"]) + timedelta(seconds=seconds)
