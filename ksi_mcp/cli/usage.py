"""`ksi-mcp usage`: what was spent, by run, model, agent or day."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from ksi_mcp.cli.escaping import exact_json, one_line
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, offering
from ksi_mcp.errors import Invalid

if TYPE_CHECKING:
    from rich.console import Console

    from ksi_mcp.app import App

By = Literal["run", "model", "agent", "day"]
_SPAN: Final = re.compile(r"(\d{1,6})(m|h|d|w)")
_UNITS: Final = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_TITLES: Final = {"runs": "run", "models": "model", "agents": "agent", "days": "day"}
_EXTRA: Final = (("failed", "failed_calls"), ("reused", "reused_calls"))
"""Columns that are there if there is something in them."""
_BAR: Final = 10
_WIDEST: Final = 120


def command(
    by: Annotated[By | None, typer.Option(help="Left out: by run, by model and by agent.")] = None,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="A day or moment (2027-01-31, in UTC), or 90m, 24h, 7d, 4w back.")
    ] = "24h",
    orchestration: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this run.", autocompletion=offering("runs"))
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=200, help="Rows of a table.")] = 20,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was spent, and on what: cost, tokens in, out and cached, calls, tries that failed, answers used again.

    What is not known is said: calls whose cost was not learned (booked in full), models without a known price, and
    what Claude Code would have cost where a subscription pays for it.
    """
    asyncio.run(_usage(by, since, orchestration, limit, home, as_json=as_json))


async def _usage(
    by: By | None, since: str, orchestration: str | None, limit: int, home: str | None, *, as_json: bool
) -> None:
    from ksi_mcp.app import App, AppOptions
    from ksi_mcp.cli.showing import make_console
    from ksi_mcp.config import find_home
    from ksi_mcp.permissions import OPERATOR, fresh_context

    span = _SPAN.fullmatch(since.strip())
    if span is None and not _is_moment(since):
        raise Invalid(
            f"--since cannot be {since[:80]!r}",
            hint="write 90m, 24h, 7d or 4w, or a day or moment in UTC: 2027-01-31, 2027-01-31T12:00:00Z",
        )
    window = {"since": since} if span is None else {"window_s": int(span[1]) * _UNITS[span[2]]}
    wanted = {"by": by, "orchestration": orchestration, "limit": limit, **window}
    given = {key: value for key, value in wanted.items() if value is not None}
    async with App(find_home(home), AppOptions(worker="none")) as app:
        report = (await app.toolbox.call(fresh_context(OPERATOR), "usage_report", given)).data
        models = report.get("models")
        if models is None:  # what must be said is said of models
            of_models = {**given, "by": "model", "limit": 200}
            models = (await app.toolbox.call(fresh_context(OPERATOR), "usage_report", of_models)).data["models"]
        unpriced = _unpriced(app, models)
        notes = _notes(report, models, unpriced)
    if as_json:
        print(exact_json({**report, "unpriced_models": unpriced, "notes": notes}))
        return
    show(make_console(), report, unpriced, notes)


def _is_moment(text: str) -> bool:
    try:
        datetime.fromisoformat(text.strip())
    except ValueError:
        return False
    return True


def _unpriced(app: App, models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Models that were asked, whose price nobody knows: their calls count as nothing."""
    found = []
    for each in models:
        provider, _, model = str(each["group"]).partition(":")
        free = (
            each["usd_micros"] or each.get("uncertain_usd_micros") or not each["input_tokens"] + each["output_tokens"]
        )
        if not free and not app.services.prices.is_priced(provider, model):
            found.append(str(each["group"]))
    return found


def _notes(report: Mapping[str, Any], models: Sequence[Mapping[str, Any]], unpriced: Sequence[str]) -> list[str]:
    from ksi_mcp.cli.showing import count, many, usd

    total, account = report["total"], report["account"]
    notes = []
    if calls := total.get("uncertain_calls"):
        cost = usd(total["uncertain_usd"])
        notes.append(f"{cost} of it is uncertain: the cost of {calls:,} calls was not learned, and booked in full")
    if under_way := total.get("calls_under_way"):
        notes.append(f"{under_way:,} calls are under way, {usd(total.get('reserved_usd') or 0)} is set aside for them")
    if failed := total.get("failed_calls"):
        notes.append(f"{failed:,} of {total['calls']:,} calls failed, and were tried again or given up")
    if reused := total.get("reused_calls"):
        saved = f", which had cost {usd(total['saved_usd'])}" if total.get("saved_usd") else ""
        notes.append(f"{reused:,} answers were there already{saved}: they were not bought again")
    if cached := total.get("cache_tokens"):
        share = cached / max(cached + total["input_tokens"], 1)
        notes.append(f"{count(cached)} tokens of input went through the provider's cache ({share:.0%} of the input)")
    if unpriced:
        named = ", ".join(one_line(each) for each in unpriced[:5])
        more = f" and {len(unpriced) - 5} more" if len(unpriced) > 5 else ""  # noqa: PLR2004  as many as are named
        notes.append(f"no price is known for {named}{more}: its calls count as $0 (`prices` in config.yaml sets one)")
    by_login = [each for each in models if str(each["group"]).partition(":")[0].partition("@")[0] == "claude_cli"]
    if by_login:
        cost = usd(sum(each["usd"] for each in by_login))
        worth = f"{cost} is what Claude Code says its calls are worth"
        notes.append(f"{worth}; with a subscription's login it bills nothing for them")
    spent, limit = account["spent_usd"], account.get("limit_usd")
    ever = f"since the account was opened: {usd(spent)}" + (f" of {usd(limit)}" if limit is not None else "")
    notes.append(f"{ever}, {count(account['spent_tokens'])} tokens, {many(account['spent_turns'], 'turn')}")
    return notes


def show(console: Console, report: Mapping[str, Any], unpriced: Sequence[str], notes: Sequence[str]) -> None:
    """Print the tables, and below them what must be known to read them."""
    from rich.text import Text

    from ksi_mcp.cli.showing import moment, usd

    begin, end = (f"{moment(report[key]).astimezone():%Y-%m-%d %H:%M}" for key in ("since", "until"))
    total = report["total"]
    booked = total["usd"] + total.get("uncertain_usd", 0)
    zone = moment(report["until"]).astimezone().tzname() or ""
    console.print(Text.assemble((usd(booked), "bold"), f"  from {begin} to {end} {zone}".rstrip()))
    for key, title in _TITLES.items():
        if report.get(key):
            _table(console, title, report[key], total, unpriced)
            if key in report.get("more", ()):
                console.print(
                    Text(f"  only the dearest {len(report[key])} are shown; --limit shows more", "bright_black")
                )
    if not total["calls"]:
        console.print(Text("\n  nothing was asked of a model in this time"))
    console.print()
    for note in notes:
        console.print(Text(f"  {note}", "bright_black"), soft_wrap=True)


def _table(
    console: Console, title: str, groups: Sequence[Mapping[str, Any]], total: Mapping[str, Any], unpriced: Sequence[str]
) -> None:
    from rich.text import Text

    from ksi_mcp.cli.showing import Cell, Column, bar, count, lines_of, usd

    most = max((_booked(each) for each in groups), default=0.0)
    named = any(each.get("name") for each in groups)
    columns = [
        Column(title=title.upper()),
        *([Column(title="id", width=12, leaves=6)] if named else []),
        Column(title="cost", width=10, right=True),
        Column(title="", width=_BAR, leaves=7),
        Column(title="turns", width=6, right=True, leaves=4),
        Column(title="calls", width=6, right=True, leaves=3),
        *(Column(title=name, width=6, right=True, leaves=5) for name, key in _EXTRA if total.get(key)),
        Column(title="in", width=6, right=True, leaves=1),
        Column(title="out", width=6, right=True, leaves=1),
        Column(title="cached", width=6, right=True, leaves=2),
    ]
    rows: list[list[Cell]] = []
    for each in (*groups, total):
        is_total = each is total
        known = is_total or each.get("group") not in unpriced
        cost = usd(_booked(each)) + ("*" if each.get("uncertain_calls") else " ") if known else "unknown "
        rows.append(
            [
                ("together" if is_total else _name(each), "bold" if is_total else ""),
                *([("" if is_total else one_line(str(each["group"])), "bright_black")] if named else []),
                (cost, "bold" if is_total else "" if known else "yellow"),
                Text(" " * _BAR) if is_total or not most else bar(_booked(each) / most, _BAR, style="blue"),
                f"{each['turns']:,}",
                f"{each['calls']:,}",
                *((f"{each.get(key, 0):,}", "yellow" if each.get(key) else "") for _, key in _EXTRA if total.get(key)),
                count(each["input_tokens"]),
                count(each["output_tokens"]),
                count(each.get("cache_tokens", 0)),
            ]
        )
    console.print()
    for line in lines_of(columns, rows, min(console.width, _WIDEST), room=22):
        console.print(line)


def _booked(each: Mapping[str, Any]) -> float:
    return float(each["usd"] + each.get("uncertain_usd", 0))


def _name(each: Mapping[str, Any]) -> str:
    group = one_line(str(each.get("group") or ""))
    if group == "none":
        return "outside of any run"
    return one_line(str(each["name"])) if each.get("name") else group
