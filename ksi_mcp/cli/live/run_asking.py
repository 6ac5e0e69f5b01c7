"""Questions of a run, asked at the terminal: turns that need an answer, and budgets that need room."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from ksi_mcp.cli.escaping import one_line
from ksi_mcp.cli.live.terminal import Terminal
from ksi_mcp.cli.showing import plain_lines, usd
from ksi_mcp.errors import KsiError

Call = Callable[..., Awaitable[dict[str, Any]]]
"""Calls a tool as the operator."""
_LIMITS: Final = (
    ("usd", "limit_usd", "spent_usd", "US dollars"),
    ("tokens", "limit_tokens", "spent_tokens", "tokens"),
    ("turns", "limit_turns", "spent_turns", "turns"),
    ("seconds", "limit_seconds", "seconds_used", "seconds"),
)
_TRIES: Final = 3
_SHOWN_LINES: Final = 20
_CUT: Final = re.compile(r" \.\.\. \[cut at [\d,]+ of [\d,]+ characters\]$")
_LABEL: Final = 17
"""Columns before a text."""
_LEAST: Final = 20


async def ask_about(waiting: Mapping[str, Any], terminal: Terminal, call: Call) -> bool:
    """Show what a turn waits for and do what the person says; False if it is left as it is."""
    console = terminal.console
    with terminal.aside():
        name = one_line(waiting["agent_name"])
        if waiting["parked_on"] == "budget":
            return await _ask_for_room(waiting, name, terminal, call)
        console.print(Text(f"{name} needs an answer", "bold magenta"))
        why = None if is_one(waiting.get("question"), waiting.get("prompt")) else waiting.get("question")
        for label, text in (("asked", waiting.get("prompt")), ("why", why), ("its last reply", waiting.get("reply"))):
            _show(console, label, text)
        for _ in range(_TRIES):
            answer = await terminal.ask("answer for it (Enter leaves it parked): ")
            if answer is None or not answer.strip():
                return False
            try:
                await call("completion_answer", turn=waiting["turn"], text=answer)
            except KsiError as failure:
                console.print(Text(f"not taken: {one_line(failure.text())}", "red"), soft_wrap=True)
                continue
            return True
    return False


async def _ask_for_room(waiting: Mapping[str, Any], name: str, terminal: Terminal, call: Call) -> bool:
    console = terminal.console
    console.print(Text(f"{name} needs room in a budget", "bold magenta"))
    _show(console, "why", waiting.get("question"))
    account = (await call("budget_status", account=waiting["account"]))["accounts"][-1]
    raised: dict[str, float] = {}
    for kind, limit, spent, unit in _LIMITS:
        if (most := account.get(limit)) is None:
            continue
        used = account.get(spent) or 0
        shown = f"{usd(used)} of {usd(most)}" if kind == "usd" else f"{used:,.0f} of {most:,.0f} {unit}"
        line = f"account {account['account']} has used {shown}; new limit in {unit} (Enter leaves it): "
        if (value := await _number(line, terminal, more_than=most)) is not None:
            raised[kind] = value if kind == "usd" else int(value)
    if not raised:
        return False
    changed = await call("budget_set", account=account["account"], limits=raised)
    console.print(Text(f"raised; {changed.get('resumed_turns', 0)} turns go on", "green"))
    return True


async def _number(prompt: str, terminal: Terminal, *, more_than: float) -> float | None:
    for _ in range(_TRIES):
        text = await terminal.ask(prompt)
        if text is None or not text.strip():
            return None
        try:
            value = float(text.strip().removeprefix("$"))
        except ValueError:
            value = math.nan
        if math.isfinite(value) and value > more_than:
            return value
        terminal.console.print(Text(f"that is no number above {more_than:,g}", "red"))
    return None


async def confirm(terminal: Terminal, question: str) -> bool:
    """Yes or no; no is what Enter says."""
    with terminal.aside():
        answer = await terminal.ask(f"{question} [y/N] ")
    return (answer or "").strip().lower() in ("y", "yes")


def is_one(question: str | None, prompt: str | None) -> bool:
    """Whether both are the same text, of which each may be cut somewhere else."""
    cut, whole = sorted((_CUT.sub("", text or "") for text in (question, prompt)), key=len)
    return bool(cut) and whole.startswith(cut)


def _show(console: Console, label: str, text: str | None) -> None:
    if not text:
        return
    room = max(console.width - _LABEL - 1, _LEAST)
    for n, line in enumerate(plain_lines(text, limit=_SHOWN_LINES)):
        margin = " " * (len(line) - len(line.lstrip(" ")))
        for m, part in enumerate(textwrap.wrap(line, room, subsequent_indent=margin) or [""]):
            head = Text(f"  {label if n == m == 0 else '':<{_LABEL - 2}}", "bright_black")
            console.print(head.append(part, "default"), soft_wrap=True)
