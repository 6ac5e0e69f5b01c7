"""The report of `ksi-mcp demo`: in colour on a terminal, plain when piped, never wider than where it goes."""

from __future__ import annotations

from typing import Any, Final

from rich.box import ASCII2, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH: Final = 100


class Steps:
    """Prints each step as it happens; nothing without a console."""

    def __init__(self, console: Console | None) -> None:
        self._console = console

    def say(self, tool: str, said: str) -> None:
        """A tool was called, and this came of it."""
        if self._console is not None:
            line = Text.assemble("  ", (f"{tool:<27}", "cyan"), said)
            self._console.print(line, overflow="ellipsis", no_wrap=True)


def show(console: Console, facts: dict[str, Any]) -> None:
    """Print all of it."""
    _head(console, "Who did what")
    _agents(console, facts)
    _head(console, "Where each message went, and why")
    _routes(console, facts)
    _head(console, "What happened on the way")
    for label, text, style in _notes(facts):
        row = Table.grid(padding=(0, 2))
        row.add_column(width=14)
        row.add_column(ratio=1)
        row.add_row(Text(f"  {label}", "bold"), Text(text, style))
        console.print(row)
    console.print()
    if facts["missing"]:
        console.print(Text(f"  Missing: {'; '.join(facts['missing'])}", "bold red"))
    else:
        console.print(Text(f"  All of it happened, in {facts['seconds']:g} s; no process is left.", "bold green"))
    console.print(Text.assemble("  Data folder: ", (facts["data_folder"], "bold")), soft_wrap=True)


def _agents(console: Console, facts: dict[str, Any]) -> None:
    table = _table(console)
    table.add_column("agent", no_wrap=True)
    table.add_column("turns", justify="right")
    table.add_column("ended as")
    for title in ("attempts", "calls", "tokens", "cost"):
        table.add_column(title, justify="right", no_wrap=True)
    for agent in facts["agents"]:
        failed = set(agent["statuses"]) - {"done"}
        table.add_row(
            agent["name"],
            str(agent["turns"]),
            Text(
                ", ".join(f"{count} {status}" for status, count in agent["statuses"].items()), "red" if failed else ""
            ),
            Text(str(agent["attempts"]), "yellow" if agent["attempts"] > agent["turns"] else ""),
            str(agent["calls"]),
            f"{agent['tokens']:,}",
            _usd(agent["cost_usd"]),
        )
    table.add_section()
    table.add_row(
        Text("together", "bold"),
        str(sum(agent["turns"] for agent in facts["agents"])),
        f"{facts['census']['ok']} done, {facts['census']['failed']} failed",
        str(sum(agent["attempts"] for agent in facts["agents"])),
        str(facts["calls"]["made"]),
        f"{facts['budget']['spent_tokens']:,}",
        _usd(facts["budget"]["spent_usd"]),
    )
    console.print(table)


def _routes(console: Console, facts: dict[str, Any]) -> None:
    table = _table(console)
    table.add_column("event", no_wrap=True)
    table.add_column("from")
    table.add_column("to")
    table.add_column("times", justify="right")
    table.add_column("because of")
    for route in facts["routes"]:
        only = f" of {route['only_from']}" if route["only_from"] else ""
        why = f", as {route['why']}" if route["why"] else ""
        table.add_row(
            route["event"],
            route["from"],
            route["to"],
            str(route["times"]),
            Text(f"rule of {route['made_by']}: {route['pattern']}{only}{why}", "magenta" if why else ""),
        )
    console.print(table)


def _notes(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label, text and style of each thing that is no table."""
    budget, calls, outcome = facts["budget"], facts["calls"], facts["outcome"]
    refused = ", ".join(f"{call['status']} for {call['agent']}" for call in calls["refused"]) or "none"
    notes = [
        (
            "cost",
            f"{_usd(budget['spent_usd'])} of {_usd(budget['limit_usd'])}, {budget['spent_turns']} of "
            f"{budget['limit_turns']} turns; {_usd(budget['reserved_usd'])} still set aside "
            f"(prices of {facts['model']}; the calls went to the simulator)",
            "",
        ),
        (
            "model calls",
            f"{calls['made']}, of which {calls['answered']} answered; at most {calls['most_at_once']} at once; "
            f"refused: {refused}",
            "",
        ),
    ]
    notes += [
        (
            "retried",
            f"{retry['agent']} after {retry['delay_s']:.1f} s, because of {retry['kind']}: {retry['error']}",
            "yellow",
        )
        for retry in facts["retries"]
    ]
    notes += [
        (
            "denied",
            f"{denied['agent_name']}: {denied['reason']} ({denied['status']}, class {denied['error_class']}, "
            f"cost {_usd(denied['cost_usd'])})",
            "red",
        )
        for denied in facts["denied"]
    ]
    if decision := facts["decision"]:
        notes.append(
            (
                "decision",
                f"{decision['decision']} = {decision['outcome']}, confidence {decision['confidence']:g}: "
                f"{decision['reasoning']}",
                "",
            )
        )
    fork = facts["fork"]
    notes += [
        ("fork", f"{fork['name']} from {fork['parent']}: {fork['fork_reason']}", ""),
        (
            "outcome",
            f"{outcome['orchestration']} {outcome['state']}: {outcome['outcome']}, score {outcome['score']:g}, "
            f"{facts['agents_ended']} agents ended with it. {outcome['summary']}",
            "green",
        ),
        (
            "client",
            f"MCP {facts['protocol']} over stdio, to a server process of its own; turns in a worker process",
            "",
        ),
    ]
    return notes


def make_console() -> Console:
    """Where the report goes. A pipe has no width of its own."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def _table(console: Console) -> Table:
    box = SIMPLE_HEAD if console.encoding.startswith("utf") else ASCII2
    return Table(box=box, pad_edge=True, show_edge=False, header_style="bold", padding=(0, 1))


def _head(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, "bold underline"))


def _usd(amount: float | None) -> str:
    return "-" if amount is None else f"${amount:.6f}".rstrip("0").rstrip(".")
