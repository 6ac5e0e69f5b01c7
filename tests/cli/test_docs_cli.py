"""docs/cli.md says what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ksi_mcp.__main__ import COMMANDS
from ksi_mcp.cli.twin import commands as twin
from ksi_mcp.cli.twin import groups
from ksi_mcp.cli.twin.arguments import parameters_of
from ksi_mcp.tools.catalog import ALL_TOOLS

PAGE = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text("utf-8")


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_page_names_every_command_and_every_group() -> None:
    named = set(
        re.findall(
            r"`([a-z-]+)`", " ".join(re.findall(r"^\| (.*?) \|", section("Commands of their own"), re.MULTILINE))
        )
    )
    assert named == set(COMMANDS)
    rows = re.findall(r"^\| `([a-z]+)` \|", section("Groups of tools"), re.MULTILINE)
    assert rows == list(groups.GROUPS)


def test_the_page_has_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", section("Exit codes"), re.MULTILINE)
    assert {int(code): text.partition(" (")[0] for code, text in rows} == groups.EXIT_CODES


EXAMPLES = [
    shlex.split(line.partition(" | ")[0])[2:]
    for line in PAGE.splitlines()
    if line.startswith("$ ksi-mcp ") and line.split()[2] in groups.GROUPS
]


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_the_examples_of_the_page_are_taken(words: list[str], monkeypatch) -> None:
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(twin, "_run", lambda tool, parameters, given: taken.append(dict(given)) or 0)
    tool = next(each for each in ALL_TOOLS if list(twin.words_of(each)) == words[:2])
    command: Any = get_command(twin.group_of(words[0]))
    command.main(args=words[1:], standalone_mode=False)
    tool.validate(twin._arguments(tool, parameters_of(tool), taken[0]))
