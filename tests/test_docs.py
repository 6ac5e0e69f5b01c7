"""The reference pages say what the code does: every command and every system event, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from ksi_mcp.events.patterns import RESERVED_SEGMENTS
from ksi_mcp.orchestrations.model import OrchestrationState
from ksi_mcp.tools.catalog import ALL_TOOLS

ROOT = Path(__file__).parent.parent
EVENTS = (ROOT / "docs" / "events.md").read_text("utf-8")
_ROW = re.compile(r"^\| `([a-z_]+(?::[a-z_]+)?)` \|(.*)\|$", re.MULTILINE)


def _section(title: str) -> str:
    return EVENTS.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_command_is_on_the_events_page_with_its_other_names() -> None:
    rows = {match[1]: re.findall(r"`([^`]+)`", match[2]) for match in _ROW.finditer(_section("Commands"))}
    assert rows == {tool.command: [tool.name, *tool.commands] for tool in ALL_TOOLS}


def test_every_system_event_that_the_code_emits_is_on_the_events_page() -> None:
    listed = {match[1] for match in _ROW.finditer(_section("System events"))}
    assert listed == _emitted()


def test_the_reserved_names_on_the_events_page_are_those_of_the_code() -> None:
    sentence = _section("System events").split("names that begin with", 1)[1].split(". Rules", 1)[0]
    assert set(re.findall(r"`([a-z]+):`", sentence)) == RESERVED_SEGMENTS


def _emitted() -> set[str]:
    """Names in the code whose first segment is reserved and that are no commands."""
    commands = {name for tool in ALL_TOOLS for name in (tool.command, *tool.commands)}
    quoted = re.compile('f?"((?:' + "|".join(sorted(RESERVED_SEGMENTS)) + '):[a-z_{}.]+)"')
    found: set[str] = set()
    for file in (ROOT / "ksi_mcp").rglob("*.py"):
        found.update(quoted.findall(file.read_text("utf-8")))
    found -= commands
    found -= {"agent:self", "agent:critic"}  # whom a rule reaches or waits for, no events
    made = {
        "agent:{life}": {"agent:terminated"},
        "orchestration:{ending.state}": {f"orchestration:{s}" for s in get_args(OrchestrationState) if s != "running"},
        "routing:{outcome}": {"routing:condition_failed", "routing:mapping_failed"},
    }
    for template, names in made.items():
        found = (found - {template}) | names
    return {name for name in found if "{" not in name}
