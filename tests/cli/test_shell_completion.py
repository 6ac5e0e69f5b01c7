"""Shell completion, asked by real shells: commands, options, their words, and names from a data folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command, get_install_completion_arguments

from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.twin import commands as twin
from ksi_mcp.cli.twin import completing, groups
from ksi_mcp.cli.twin.completing import names
from ksi_mcp.config import Home
from ksi_mcp.db import glance as glancing
from ksi_mcp.db.glance import glance
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.tools.catalog import ALL_TOOLS

ROOT = Path(__file__).parent.parent.parent
ENV = {
    **{name: value for name, value in os.environ.items() if not name.startswith("KSI_")},
    "PYTHONPATH": str(ROOT),
}
BASH = """
eval "$(ksi-mcp shell-completion bash)"
complete -p ksi-mcp >/dev/null || exit 1
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE}
    _ksi_mcp_completion ksi-mcp
    IFS=' '; echo "${COMPREPLY[*]}"; unset IFS
done
"""
ZSH = """
compdef() { true }
_files() { print FILES }
_describe() { print -r -- "${(@P)${@[-1]}}" }
eval "$(ksi-mcp shell-completion zsh)"
for line in "$@"; do
    words=("${(@s: :)line}") CURRENT=${#words}
    _ksi_mcp_completion
done
"""
FISH = """
ksi-mcp shell-completion fish | source
for line in $argv
    complete -C $line
    echo END
end
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    root = tmp_path / "home"
    root.mkdir()

    async def fill() -> None:
        async with App(Home(root=root), AppOptions(worker="none")) as app:
            for name in ("ada", "adam", "bob"):
                await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"name": name, "prompt": "x"})
            rule = {"rule_id": "mine", "source_pattern": "a:b", "target": "c:d"}
            await app.toolbox.call(fresh_context(OPERATOR), "routing_add_rule", rule)
            await app.toolbox.call(fresh_context(OPERATOR), "composition_discover", {})

    asyncio.run(fill())
    return root


def asked(shell: str, script: str, tmp_path: Path, *lines: str, **more: str) -> list[str]:
    """What a shell offers at the end of each line."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    command = folder / "ksi-mcp"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ksi_mcp "$@"\n')
    command.chmod(0o755)
    env = {**ENV, "PATH": f"{folder}:{ENV['PATH']}", "HOME": str(tmp_path), **more}
    flags = {"bash": ["--norc", "-c", script, "bash"], "zsh": ["-f", "-c", script, "zsh"]}.get(
        shell, ["--no-config", "-c", script]
    )
    ended = subprocess.run([program, *flags, *lines], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert ended.stderr == ""
    return ended.stdout.split("\n")[:-1]


def test_bash_is_offered_what_fits(tmp_path: Path, home: Path) -> None:
    lines = {
        "ksi-mcp agent se": "send",
        "ksi-mcp agent send a": "adam ada",
        "ksi-mcp agent send --op-class m": "multi_step",
        "ksi-mcp agent send ada hi --wa": "--wait-s",
        "ksi-mcp routing delete-rule ": "mine",
        "ksi-mcp orchestration start deb": "debate_with_judge",
        "ksi-mcp serve --transport s": "stdio sse",
        "ksi-mcp help routing_add": "routing_add_rule",
        "ksi-mcp call routing_add": "routing_add_rule",
        "ksi-mcp run deb": "debate_with_judge",
        "ksi-mcp export base_a": "base_agent",
        "ksi-mcp tokens create --agent ad": "adam ada",
        f"ksi-mcp agent get --home {tmp_path}/nowhere a": "",
        "ksi-mcp agent send 'unclosed": "",
    }
    assert dict(zip(lines, asked("bash", BASH, tmp_path, *lines, KSI_HOME=str(home)), strict=True)) == lines
    assert not (tmp_path / "nowhere").exists()


def test_bash_is_offered_every_command_and_nothing_that_is_no_word(tmp_path: Path) -> None:
    (line,) = asked("bash", BASH, tmp_path, "ksi-mcp ")
    offered = line.split()
    assert {*groups.GROUPS, "serve", "help", "call", "shell-completion"} <= set(offered)
    assert len(offered) == len(set(offered))


def test_zsh_is_offered_names_with_what_they_are(tmp_path: Path, home: Path) -> None:
    given = ["ksi-mcp agent se", "ksi-mcp agent send ad", "ksi-mcp agent send --op-class m", "ksi-mcp agent zz"]
    assert asked("zsh", ZSH, tmp_path, *given, KSI_HOME=str(home)) == [
        "send:Send a message to an agent", "adam ada", "multi_step", "FILES",
    ]  # fmt: skip


def test_fish_is_offered_names_with_what_they_are(tmp_path: Path, home: Path) -> None:
    given = ["ksi-mcp agent se", "ksi-mcp agent send ad", "ksi-mcp agent send --op-class m"]
    assert asked("fish", FISH, tmp_path, *given, KSI_HOME=str(home)) == [
        "send\tSend a message to an agent", "END", "ada", "adam", "END", "multi_step", "END",
    ]  # fmt: skip


@pytest.mark.parametrize("group", sorted(groups.GROUPS))
def test_every_command_can_be_completed(group: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("COLUMNS", "10000")
    for name in twin.commands_of(group):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"ksi-mcp {name} --")
        monkeypatch.setenv("_KSI_MCP_COMPLETE", "complete_fish")
        get_install_completion_arguments()
        command = get_command(twin.group_of(group))
        with pytest.raises(SystemExit) as ended:
            command.main(args=[], prog_name="ksi-mcp", standalone_mode=False)
        assert ended.value.code == 0
        words = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
        assert all(word.startswith("--") for word in words), (name, words)
        assert {"--json", "--help"} <= set(words)


def test_names_that_would_mean_something_to_a_shell_are_not_offered(home: Path) -> None:
    connection = sqlite3.connect(home / "ksi.db")
    for name in ("a$(id)", "a;b", "a b", "a'b", "a\nb", "a`b`", "a*", "-a", "a\x1b[2J"):
        with connection:
            connection.execute("UPDATE rule SET rule_id = ?", (name,))
        assert names("rules", "", str(home)) == []
    connection.close()


def test_looking_up_names_makes_nothing_and_fails_in_silence(tmp_path: Path, home: Path, monkeypatch) -> None:
    assert names("agents", "", str(tmp_path / "nowhere")) == []
    assert not (tmp_path / "nowhere").exists()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "ksi.db").write_bytes(b"no database" * 1000)
    assert names("agents", "", str(broken)) == []
    (broken / "ksi.db").write_bytes(b"")
    assert names("agents", "", str(broken)) == []
    assert names("accounts", "g", str(home)) == ["global"]
    assert names("agents", "%", str(home)) == []
    monkeypatch.setenv("KSI_AGENT_TOKEN", "")
    assert names("agents", "a", str(home)) == []


def test_a_look_gives_up_after_a_moment(home: Path, monkeypatch) -> None:
    assert glance(home / "ksi.db", "cli.agent_names", prefix="", limit=10) == ["bob", "adam", "ada"]
    monkeypatch.setattr(glancing, "_STEPS", 1)
    monkeypatch.setattr(time, "monotonic", iter(range(10**6)).__next__)
    assert glance(home / "ksi.db", "cli.agent_names", prefix="", limit=10) == []


def test_what_is_looked_up_is_a_parameter_of_its_tool() -> None:
    tools = {tool.name: tool for tool in ALL_TOOLS}
    for tool, name in completing._KINDS_OF:
        assert name in tools[tool].schema()["properties"]
    every = {name for tool in ALL_TOOLS for name in tool.schema()["properties"]}
    assert set(completing._KINDS) <= every
    assert {*completing._KINDS.values(), *completing._KINDS_OF.values()} == set(completing._STATEMENTS)
