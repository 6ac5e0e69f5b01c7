"""Recorded events in words: who did what, on one line, for people who watch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.cli.escaping import one_line
from ksi_mcp.cli.showing import duration, usd

_LONGEST: Final = 400
_PARKED: Final = {"external": "waits for an answer", "budget": "waits for room in a budget"}
_BY_THE_WAY: Final = frozenset(
    {
        "agent:tool_answered", "agent:tool_called", "checkpoint:created", "completion:batched", "completion:injected",
        "completion:interrupted", "completion:prefetched", "completion:queued", "routing:delivered",
        "system:retention_swept",
    }
)  # fmt: skip
"""Events that a short account leaves out."""
_WITH_THE_RUN: Final = ("the orchestration was ", "its orchestration has ended", "its agent has ended")
"""Begins the reason for which agents and rules end that end with their run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An event in words. `matters`: a short account has it too."""

    who: str
    what: str
    style: str = ""
    matters: bool = True


def who_is(source: str | None, names: Mapping[str, str]) -> str:
    """`agent:a_7f3kq0m2xd` by its name."""
    if source is None:
        return "-"
    return one_line(names.get(source.removeprefix("agent:"), source))[:64]


def tell(event: Mapping[str, Any], names: Mapping[str, str]) -> Told:
    """An event as it stands in a result (`EventView`); all of it harmless for a terminal."""
    name, data = str(event["event"]), event["data"]
    who = str(data.get("agent_name") or data.get("name") or who_is(event.get("source"), names))
    if name == "completion:queued":
        who = who_is(str(data.get("from")), names)
    elif not _of_the_server(name):
        who = who_is(event.get("source"), names)
    elif who == "system" and event.get("agent"):
        who = who_is(event["agent"], names)
    what, style = _what(name, data, names)
    with_the_run = str(data.get("reason", "")).startswith(_WITH_THE_RUN)
    of_the_pattern = name == "routing:rule_added" and event.get("source") == "system"
    matters = not (name in _BY_THE_WAY or with_the_run or of_the_pattern)
    return Told(who=one_line(who)[:64], what=one_line(what[:_LONGEST]), style=style, matters=matters)


def _of_the_server(name: str) -> bool:
    return name.partition(":")[0] in (
        "agent", "budget", "checkpoint", "completion", "composition", "decision", "monitor", "orchestration", "routing",
        "system", "turn",
    )  # fmt: skip


def _what(name: str, data: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, str]:
    def of(key: str, default: object = "") -> Any:
        value = data.get(key)
        return default if value is None else value

    match name:
        case "completion:result":
            how = "again: " if data.get("reused") else f"by {of('answered_by')}: " if data.get("answered_by") else ""
            return f"✓ {how}{of('text')}", "green"
        case "completion:failed":
            return f"✗ {of('status', 'failed')} ({of('error_class', '?')}): {of('error')}", "red"
        case "completion:cancelled":
            return f"cancelled: {of('reason')}", "bright_black"
        case "completion:retrying":
            return f"tries again in {duration(float(of('delay_s', 0)))} after {of('kind')}: {of('error')}", "yellow"
        case "completion:parked":
            return _PARKED.get(str(of("reason")), f"waits: {of('reason')}"), "bold magenta"
        case "completion:substituted":
            return f"asks {of('to')} instead of {of('from')}: {of('error')}", "yellow"
        case "completion:rejected":
            return f"reply not as expected: {of('reason')}", "yellow"
        case "completion:queued":
            return f"message → {of('agent_name')}", "blue"
        case "completion:breaker_opened":
            return f"{of('provider')} {of('family')} is not asked for {duration(float(of('wait_s', 0)))}", "red"
        case "completion:breaker_closed":
            return f"{of('provider')} {of('family')} is asked again", "green"
        case "agent:spawned":
            return f"spawned{_from(data, 'composition')}", "cyan"
        case "agent:terminated" | "agent:failed" | "agent:draining" | "agent:given_up":
            return f"{name.partition(':')[2].replace('_', ' ')}: {of('reason')}", "bright_black"
        case "agent:budget_exceeded" | "budget:terminate":
            return f"out of budget: {of('reason')}", "red"
        case "budget:threshold":
            spent, limit = (_amount(of(key, 0), of("kind")) for key in ("spent", "limit"))
            account = who_is(str(of("account")), names)
            return f"{of('percent')} % of the limit of {account}: {spent} of {limit}", "yellow"
        case "budget:uncertain" | "budget:overrun":
            reserved = usd(float(of("reserved_usd_micros", 0)) / 1e6)
            word = "cost not learned, booked in full" if name == "budget:uncertain" else "cost more than was set aside"
            return f"{word}: {reserved}", "yellow"
        case "routing:rule_added":
            rule = data.get("rule")
            facts = rule if isinstance(rule, dict) else {}
            return f"rule {facts.get('source_pattern', '?')} → {_target(facts.get('target'), names)}", "magenta"
        case "routing:rule_deleted" | "routing:rule_expired":
            return f"rule {of('rule_id')} ended: {of('reason', 'its time is over')}", "bright_black"
        case "routing:undeliverable" | "routing:condition_failed" | "routing:mapping_failed" | "routing:loop_stopped":
            return f"{name.partition(':')[2].replace('_', ' ')}: {of('event')}: {of('reason')}", "red"
        case "decision:tracked":
            return f"decides {of('decision')} = {of('outcome')}: {of('reasoning')}", "cyan"
        case "orchestration:started":
            return f"run of {of('pattern')} begins", "bold"
        case "orchestration:completed" | "orchestration:failed" | "orchestration:stopped":
            score = f", score {of('score')}" if data.get("score") is not None else ""
            outcome = f": {of('outcome')}{score}" if data.get("outcome") else ""
            return f"run {name.partition(':')[2]}{outcome}", "bold"
        case "system:refused":
            return f"refused {of('tool')}: {of('reason')}", "red"
    short = json.dumps(dict(data), ensure_ascii=False, default=str) if data else ""
    if _of_the_server(name):
        return f"{name} {of('reason') or short}", "bright_black"
    return f"{name} {short}", ""


def _from(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return "" if not value else f" from {str(value).partition('@')[0]}"


def _target(target: object, names: Mapping[str, str]) -> str:
    texts = target if isinstance(target, list) else [target]
    return ", ".join(who_is(str(each), names) for each in texts)


def _amount(value: object, kind: str) -> str:
    number = float(value) if isinstance(value, int | float) else 0.0
    return usd(number) if kind == "usd" else f"{number:,.0f} {kind}"
