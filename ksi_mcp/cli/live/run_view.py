"""What `ksi-mcp run` shows: a frame while the run goes on, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from ksi_mcp.cli.escaping import one_line
from ksi_mcp.cli.live.lanes import (
    HAPPENING_COLUMNS,
    happenings,
    lane_lines,
    queue_text,
    spend_line,
    stuck,
)
from ksi_mcp.cli.showing import Cell, Column, bar, count, duration, lines_of, moment, plain_lines, state, usd

EXIT_FAILED: Final = 5
EXIT_PARTIAL: Final = 6
MAX_HAPPENINGS: Final = 10
_UNPRICED: Final = "no price is known"
"""So begins a failure that no budget of any size would have prevented, and that is booked as one of the budget."""
_NARROW: Final = 72
_WIDEST: Final = 140
_ENDED_COLUMNS: Final = (
    Column(title="agent", width=24),
    Column(title="done", width=5, right=True, leaves=2),
    Column(title="tokens", width=6, right=True, leaves=1),
    Column(title="cost", width=9, right=True),
    Column(title="said last"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a run as far as it was followed: a word, the exit code, and why, where that is not clear."""

    word: str
    code: int
    why: str = ""


def verdict_of(seen: Mapping[str, Any]) -> Verdict | None:
    """What came of a run; None while it goes on."""
    run = seen["runs"][0]
    match run["state"]:
        case "completed":
            outcome = run.get("outcome") or "success"
            return Verdict(word=outcome, code=EXIT_PARTIAL if outcome == "partial" else 0)
        case "failed" | "stopped":
            return Verdict(word=run["state"], code=EXIT_FAILED, why=run.get("outcome") or "")
        case "suspended":
            return Verdict(
                word="suspended", code=EXIT_PARTIAL, why="it is held; nothing of it starts until it is resumed"
            )
    if stuck(seen["agents"]):
        return Verdict(word="parked", code=EXIT_PARTIAL, why="it waits for somebody")
    if run["pending"] or run.get("undelivered_events") or run.get("next_due_s") is not None:
        return None
    chief = next((lane for lane in seen["agents"] if lane["name"] == "orchestrator"), None)
    if run["orchestrator"] == "agent" and chief is not None and chief.get("said_state") not in (None, "done"):
        why = f"its orchestrator failed: {one_line(chief.get('said') or '')}"
        if chief.get("said_class") == "budget" and not (chief.get("said") or "").startswith(_UNPRICED):
            return Verdict(word="out of budget", code=EXIT_PARTIAL, why=why)
        return Verdict(word="failed", code=EXIT_FAILED, why=why)
    return Verdict(word="idle", code=EXIT_PARTIAL, why="it is open, nothing is pending, and nobody goes on with it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What is on the terminal at one moment."""

    seen: Mapping[str, Any]
    now: datetime
    notices: tuple[str, ...] = field(default=())
    hint: str = "Ctrl-C leaves; the run goes on"

    def lines(self, width: int, height: int) -> Group:
        """Lines that fit: the head and the agents first, then as much of what happened as there is room for."""
        run = self.seen["runs"][0]
        head = [*self._head(run, width), Text("")]
        lanes = self.seen["agents"]
        room = max(height - len(head) - 3, 1)
        most = max(room - 1 - min(MAX_HAPPENINGS + 2, room // 3), 1)
        shown = lanes[:most] if len(lanes) <= most else lanes[: most - 1]
        body = lane_lines(shown, self.now, width)
        if left := self.seen["agents_fitting"] - len(shown):
            body.append(Text(f"... and {left:,} more", "bright_black"))
        rows = happenings(self.seen, min(MAX_HAPPENINGS, room - len(body) - 1))
        feed = [Text(""), *lines_of(HAPPENING_COLUMNS, rows, width, room=20)[1:]] if rows else []
        foot = [Text(one_line(notice), "yellow") for notice in self.notices[-1:]]
        foot.append(Text(self.hint, "bright_black"))
        for line in foot:
            line.truncate(width, overflow="ellipsis")
        return Group(*head, *body, *feed, *foot)

    def _head(self, run: Mapping[str, Any], width: int) -> list[Text]:
        first = Text(no_wrap=True, overflow="crop")
        first.append(one_line(run["pattern"].partition("@")[0]), "bold")
        first.append("  ")
        first.append_text(state("draining" if run.get("draining") else run["state"]))
        first.append(f"  {duration((self.now - moment(run['started_at'])).total_seconds())}", "bold")
        first.append(f"  {run['orchestration']}", "bright_black")
        first.truncate(width, overflow="ellipsis")
        asked = run["done"] + run["pending"]
        second = Text(no_wrap=True, overflow="crop")
        second.append_text(bar(run["done"] / asked if asked else 0.0, 10 if width < _NARROW else 24, style="green"))
        second.append(f" {run['done']:,} of {asked:,} turns  ")
        second.append_text(queue_text(self.seen["queue"]))
        second.truncate(width, overflow="ellipsis")
        return [first, second, spend_line(run["budget"], width)]


# ---------------------------------------------------------------------------------------- what came of it


def facts_of(seen: Mapping[str, Any], status: Mapping[str, Any], verdict: Verdict, home: str | None) -> dict[str, Any]:
    """All of it, for `--json`."""
    run = seen["runs"][0]
    ended = run.get("ended_at") or seen["at"]
    return {
        "orchestration": run["orchestration"],
        "pattern": run["pattern"],
        "state": run["state"],
        "verdict": verdict.word,
        "exit_code": verdict.code,
        "why": verdict.why or None,
        "outcome": run.get("outcome"),
        "score": run.get("score"),
        "summary": run.get("summary"),
        "metrics": status.get("metrics"),
        "seconds": round((moment(ended) - moment(run["started_at"])).total_seconds(), 3),
        "census": status["census"],
        "budget": status["budget"],
        "agents": [{key: value for key, value in lane.items() if key != "now"} for lane in seen["agents"]],
        "agents_left_out": seen["agents_fitting"] - len(seen["agents"]) or None,
        "waits": seen.get("parked") or [],
        "next": further(run, verdict, home),
    }


def further(run: Mapping[str, Any], verdict: Verdict, home: str | None) -> list[str]:
    """Commands with which to go on."""
    place = f" --home {shlex.quote(home)}" if home else ""
    name = run["orchestration"]
    steps = []
    if verdict.word == "suspended":
        steps.append(f"ksi-mcp orchestration resume {name}{place}")
    if verdict.word == "parked":
        steps.append(f"ksi-mcp run --attach {name}{place}")
    if run["state"] in ("running", "suspended"):
        steps.append(f"ksi-mcp orchestration control {name} stop{place}")
    steps.append(f"ksi-mcp events --orchestration {name}{place}")
    steps.append(f"ksi-mcp agent history AGENT_ID{place}")
    return steps


def show(console: Console, facts: Mapping[str, Any]) -> None:
    """The summary, for people."""
    mark, style = {0: ("✓", "bold green"), EXIT_PARTIAL: ("●", "bold yellow")}.get(
        facts["exit_code"], ("✗", "bold red")
    )
    head = Text.assemble((f"{mark} {one_line(facts['verdict'])}", style))
    if facts["score"] is not None:
        head.append(f"  score {facts['score']:g}", "bold")
    head.append(f"  {one_line(facts['pattern'].partition('@')[0])}  {duration(facts['seconds'])}")
    head.append(f"  {facts['orchestration']}", "bright_black")
    console.print(head, soft_wrap=True)
    said = [one_line(facts["why"])] if facts["why"] else []
    for words in [*said, *plain_lines(facts["summary"] or "", limit=40)]:
        _indented(console, Text(words))
    console.print()
    if facts["agents"]:
        for line in lines_of(_ENDED_COLUMNS, [_ended(lane) for lane in facts["agents"]], min(console.width, _WIDEST)):
            line.rstrip()
            console.print(line, soft_wrap=True)
        console.print()
    for text in (_census(facts["census"]), _spent(facts["budget"])):
        console.print(Text(text), soft_wrap=True)
    for each in facts["waits"]:
        on = "an answer" if each["parked_on"] == "answer" else "room in its budget"
        waits = Text.assemble((f"{one_line(each['agent_name'])} waits for {on}: ", "magenta"))
        console.print(waits.append(one_line((each.get("question") or "")[:300])), soft_wrap=True)
    console.print()
    for step in facts["next"]:
        console.print(Text(f"  {step}", "bright_black"), soft_wrap=True)


def _indented(console: Console, line: Text) -> None:
    """A terminal would begin the rest of a long line at its edge; a pipe gets it whole."""
    if console.is_terminal:
        console.print(Padding(line, (0, 0, 0, 2)))
    else:
        console.print(Text("  ").append_text(line), soft_wrap=True)


def _ended(lane: Mapping[str, Any]) -> list[Cell]:
    good = lane.get("said_state") in (None, "done")
    said = one_line((lane.get("said") or "")[:200])
    cost = usd(lane["usd"])
    return [
        one_line(lane["name"]),
        str(lane["done"]),
        count(lane["tokens"]),
        cost,
        (said, "") if good else (f"✗ {said}", "red"),
    ]


def _census(census: Mapping[str, int]) -> str:
    others = [name for name in ("failed", "cancelled", "timed_out", "pending") if census[name]]
    parts = [f"{census[name]:,} {name.replace('_', ' ')}" for name in others]
    return ", ".join([f"{census['ok']:,} of {census['asked']:,} turns done", *parts])


def _spent(budget: Mapping[str, Any]) -> str:
    parts = []
    for spent, limit, shown, what in (
        ("spent_usd", "limit_usd", usd, "spent"),
        ("spent_turns", "limit_turns", count, "turns paid"),
        ("spent_tokens", "limit_tokens", count, "tokens"),
    ):
        most = budget.get(limit)
        parts.append(f"{shown(budget[spent])}{'' if most is None else f' of {shown(most)}'} {what}")
    return ", ".join(parts)


def line_of(facts: Mapping[str, Any]) -> str:
    """All of it on one line, for `--quiet`."""
    score = "" if facts["score"] is None else f", score {facts['score']:g}"
    why = f" ({one_line(facts['why'])})" if facts["why"] else ""
    spent = f"{usd(facts['budget']['spent_usd'])}, {duration(facts['seconds'])}"
    return f"{facts['orchestration']}  {one_line(facts['verdict'])}{score}{why}  {spent}"
