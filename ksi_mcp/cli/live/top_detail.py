"""One agent or one run in `ksi-mcp top`: budget, rules, what was said, what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.text import Text

from ksi_mcp.cli.escaping import one_line
from ksi_mcp.cli.live.lanes import HAPPENING_COLUMNS, lane_lines, spend_line
from ksi_mcp.cli.live.telling import tell, who_is
from ksi_mcp.cli.showing import Cell, Column, clock_time, lines_of, plain_lines, state, usd

MAX_LINES: Final = 3_000
_TEXT_LINES: Final = 40
RULE_COLUMNS: Final = (
    Column(title="rule", width=14),
    Column(title="hears"),
    Column(title="sends to", width=24),
    Column(title="scope", width=22, leaves=2),
    Column(title="by", width=16, leaves=1),
)


def agent_lines(detail: Mapping[str, Any], lane: Mapping[str, Any] | None, now: datetime, width: int) -> list[Text]:
    """An agent with its prompt, budget, rules, and the newest turns of its conversation."""
    head = Text.assemble((one_line(detail["name"]), "bold"), "  ", (detail["agent"], "bright_black"), "  ")
    head.append_text(state(detail["status"]))
    lines = [Text(""), head, Text("")]
    if lane is not None:
        lines += lane_lines([lane], now, width)
        lines.append(Text(""))
    facts = [("model", f"{detail['provider']}  {detail['model']}"), ("may", ", ".join(detail["capabilities"]))]
    about = ("orchestration", "parent", "composition", "successor")
    facts += [(key, one_line(str(detail[key]))) for key in about if detail.get(key)]
    facts.append(("made", f"{detail['created_at']} by {one_line(detail['created_by'])}"))
    lines += [Text.assemble((f"{key:<14}", "bright_black"), value) for key, value in facts]
    if budget := detail.get("budget"):
        lines += [Text.assemble((f"{'budget':<14}", "bright_black")).append_text(spend_line(budget, width - 14))]
    own = {detail["agent"]: detail["name"]}
    lines += _title("CONVERSATION")
    for turn in detail.get("history") or ():
        lines.append(Text(f"{clock_time(turn['at'])}  {turn['turn']}", "bold bright_black"))
        lines += _text(turn["prompt"], "  > ", "cyan")
        if tools := turn.get("tools"):
            lines.append(Text(f"  tools: {', '.join(one_line(each) for each in tools)}", "magenta"))
        lines += _text(turn["reply"], "  ", "")
    at_work = lane.get("now") if lane is not None else None
    if at_work and at_work.get("written"):
        lines.append(Text(f"now  {at_work['turn']}", "bold green"))
        lines += _text(at_work["written"], "  ", "green")
    if lines[-1].plain == "CONVERSATION":
        lines.append(Text("  none yet", "bright_black"))
    lines += _title("RULES") + _rules(detail.get("rules") or [], own, width)
    lines += _title("PROMPT") + _text(detail["system"], "  ", "")
    lines += _title("EVENTS") + _events(detail.get("events") or [], own, width)
    return _bounded(lines, width)


def run_lines(
    status: Mapping[str, Any], rules: Sequence[Mapping[str, Any]], names: Mapping[str, str], width: int
) -> list[Text]:
    """A run with its budget, agents, rules, what to do next, and its newest events."""
    names = {**names, **{each["agent"]: each["name"] for each in status["agents"]}}
    head = Text.assemble((one_line(status["pattern"].partition("@")[0]), "bold"), "  ")
    head.append(status["orchestration"], "bright_black").append("  ").append_text(state(status["state"]))
    lines = [Text(""), head, Text("")]
    census = ", ".join(f"{status['census'][key]:,} {key.replace('_', ' ')}" for key in status["census"])
    facts = [("started", status["started_at"]), ("ended", status.get("ended_at")), ("turns", census)]
    facts += [
        (key, one_line(str(status[key]))) for key in ("outcome", "score", "metrics") if status.get(key) is not None
    ]
    lines += [Text.assemble((f"{key:<14}", "bright_black"), str(value)) for key, value in facts if value]
    lines.append(
        Text.assemble((f"{'budget':<14}", "bright_black")).append_text(spend_line(status["budget"], width - 14))
    )
    if reserved := status["budget"]["reserved_usd"]:
        lines.append(Text(f"{'set aside':<14}{usd(reserved)}", "bright_black"))
    if status.get("summary"):
        lines += _title("SUMMARY") + _text(status["summary"], "  ", "")
    lines += _title("AGENTS")
    for each in status["agents"]:
        line = Text(f"  {one_line(each['name']):<24}").append_text(state(each["status"]))
        lines.append(line.append(f"  {each['pending_turns']} pending" if each["pending_turns"] else ""))
    lines += _title("RULES") + _rules(rules, names, width)
    lines += _title("NEXT") + [Text(f"  {one_line(step)}") for step in status["next"]]
    lines += _title("EVENTS") + _events(status["events"], names, width)
    return _bounded(lines, width)


def _title(text: str) -> list[Text]:
    return [Text(""), Text(text, "bold bright_black")]


def _text(text: str, mark: str, style: str) -> list[Text]:
    lines = plain_lines(text, limit=_TEXT_LINES + 1)
    shown = [Text(mark + line, style) for line in lines[:_TEXT_LINES]]
    return [*shown, Text(f"{mark}...", "bright_black")] if len(lines) > _TEXT_LINES else shown


def _rules(rules: Sequence[Mapping[str, Any]], names: Mapping[str, str], width: int) -> list[Text]:
    if not rules:
        return [Text("  none", "bright_black")]
    rows: list[list[Cell]] = []
    for rule in rules:
        target = rule["target"]
        to = ", ".join(who_is(str(each), names) for each in (target if isinstance(target, list) else [target]))
        hears = one_line(str(rule["source_pattern"]))
        if rule.get("condition"):
            hears += f" if {one_line(str(rule['condition']))}"
        by = who_is(str(rule.get("created_by", "")), names)
        rows.append([one_line(str(rule["rule_id"])), hears, to, one_line(str(rule.get("scope", ""))), by])
    return lines_of(RULE_COLUMNS, rows, width)


def _events(events: Sequence[Mapping[str, Any]], names: Mapping[str, str], width: int) -> list[Text]:
    rows: list[Sequence[Cell]] = []
    for event in reversed(events):
        told = tell({"data": {}, **event}, names)
        rows.append([(clock_time(event["at"]), "bright_black"), told.who, (told.what, told.style)])
    return lines_of(HAPPENING_COLUMNS, rows, width, room=20)[1:] if rows else [Text("  none", "bright_black")]


def _bounded(lines: list[Text], width: int) -> list[Text]:
    """Long lines go on in the next one, so that nothing of a conversation is lost at the edge."""
    wrapped: list[Text] = []
    for line in lines[:MAX_LINES]:
        if line.cell_len <= width:
            wrapped.append(line)
            continue
        plain, style = line.plain, line.style
        indent = " " * min(len(plain) - len(plain.lstrip(" >")), width // 4)
        while plain and len(wrapped) < MAX_LINES:
            piece = Text(plain, style)
            cut = _columns(plain, width)
            if cut < len(plain) and (space := plain.rfind(" ", width // 2, cut + 1)) > 0:
                cut = space
            piece = Text(plain[:cut].rstrip(), style)
            wrapped.append(piece)
            rest = plain[cut:].lstrip()
            plain = indent + rest if rest else ""
    return wrapped


def _columns(text: str, width: int) -> int:
    """How many characters fit into so many columns."""
    size = 0
    for place, character in enumerate(text):
        size += Text(character).cell_len
        if size > width:
            return max(place, 1)
    return len(text)
