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
            self._console.print(line, overflow="crop", no_wrap=True)


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
    table.add_column("agent", overflow="fold")
    table.add_column("turns", justify="right")
    table.add_column("ended as", overflow="fold")
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
    table.add_column("event", overflow="fold")
    table.add_column("from", overflow="fold")
    table.add_column("to", overflow="fold")
    table.add_column("times", justify="right")
    table.add_column("because of", overflow="fold")
    for route in facts["routes"]:
        table.add_row(
            route["event"],
            route["from"],
            route["to"],
            str(route["times"]),
            Text(_because(route), "magenta" if route["why"] else ""),
        )
    for message in facts["messages"]:
        table.add_row("-", message["from"], message["to"], str(message["times"]), "sent to it directly")
    console.print(table)


def _because(route: dict[str, Any]) -> str:
    text = f"rule of {route['made_by']}"
    if route["pattern"] != route["event"]:
        text += f" for {route['pattern']}"
    if route["only_from"]:
        text += f", only from {route['only_from']}"
    return f"{text}: {route['why']}" if route["why"] else text


def _notes(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label, text and style of each thing that is no table."""
    budget, calls, decision, fork = facts["budget"], facts["calls"], facts["decision"], facts["fork"]
    notes = [("cost", _cost(budget, facts["model"]), ""), ("model calls", _calls(calls), "")]
    for retry in facts["retries"]:
        text = f"{retry['agent']} after {retry['delay_s']:.1f} s, because of {retry['kind']}: {retry['error']}"
        notes.append(("retried", text, "yellow"))
    for denied in facts["denied"]:
        text = f"{denied['agent_name']}: {denied['reason']}"
        ending = f"{denied['status']}, class {denied['error_class']}, cost {_usd(denied['cost_usd'])}"
        notes.append(("denied", f"{text} ({ending})", "red"))
    if decision is not None:
        made = f"{decision['decision']} = {decision['outcome']}, confidence {decision['confidence']:g}"
        notes.append(("decision", f"{made}: {decision['reasoning']}", ""))
    notes.append(("fork", f"{fork['name']} from {fork['parent']}: {fork['fork_reason']}", ""))
    notes.append(("outcome", _outcome(facts["outcome"], facts["agents_ended"]), "green"))
    served = f"MCP {facts['protocol']} over stdio, to a server process; the turns ran in a worker process"
    return [*notes, ("client", served, "")]


def _cost(budget: dict[str, Any], model: str) -> str:
    spent = f"{_usd(budget['spent_usd'])} of {_usd(budget['limit_usd'])}"
    turns = f"{budget['spent_turns']} of {budget['limit_turns']} turns"
    return f"{spent}, {turns}, {_usd(budget['reserved_usd'])} still set aside (prices of {model}; nothing was paid)"


def _calls(calls: dict[str, Any]) -> str:
    refused = ", ".join(f"{call['status']} for {call['agent']}" for call in calls["refused"]) or "none"
    made = f"{calls['made']} made, {calls['answered']} answered, refused: {refused}"
    return f"{made}; at most {calls['most_at_once']} under way at once"


def _outcome(outcome: dict[str, Any], agents_ended: int) -> str:
    score = "none" if outcome["score"] is None else f"{outcome['score']:g}"
    head = f"{outcome['orchestration']} {outcome['state']}: {outcome['outcome']}, score {score}"
    return f"{head}; its {agents_ended} agents ended with it. {outcome['summary']}"


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
