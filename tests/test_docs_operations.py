"""The page of operations says what the code does: its commands are run, its names and limits are those of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.access.tokens import MAX_TOKENS
from ksi_mcp.agents.hearing import MAX_ABOVE
from ksi_mcp.agents.model import MAX_MESSAGE_CHARS, MAX_SYSTEM_CHARS
from ksi_mcp.agents.roster import MAX_AGENTS_PER_RUN, MAX_TIMEOUT_S
from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.worker import DRAIN_S
from ksi_mcp.completions.worker import GIVE_BACK_S
from ksi_mcp.compositions.federation import EXPORTS_FOLDER, QUARANTINE_FOLDER, TRUSTED_FOLDER
from ksi_mcp.compositions.quarantine import MAX_WAITING
from ksi_mcp.config import Config, Home, ScriptedConfig, WorkerConfig
from ksi_mcp.db.wal import KEPT_BYTES, LARGE_BYTES
from ksi_mcp.events.model import MAX_DATA_BYTES
from ksi_mcp.events.retention import SWEEP_S
from ksi_mcp.launching import LOG_BYTES
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.providers.claude.cli import FOLDER as CLAUDE_FOLDER
from ksi_mcp.providers.credentials import FILE, FILE_KEY, MIN_FILE_KEY_CHARS
from ksi_mcp.tools.catalog import ALL_TOOLS
from ksi_mcp.transports.http import HEALTH_S, MAX_BODY_BYTES

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")


def _section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def _rows(title: str) -> list[list[str]]:
    lines = [line for line in _section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines][2:]


def _command(name: str) -> str:
    """A block of commands of the page."""
    (found,) = re.findall(rf"^```sh {name}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def _sh(script: str, bin_folder: Path, **variables: Path) -> None:
    """Run commands as the page has them, with the `python3` and `ksi-mcp` of this environment."""
    bin_folder.mkdir(exist_ok=True)
    for name, line in (("python3", ""), ("ksi-mcp", " -m ksi_mcp")):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{line} "$@"\n')
        (bin_folder / name).chmod(0o755)
    env = {"PATH": f"{bin_folder}:{os.defpath}", "HOME": str(bin_folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        env={**env, **{name: str(path) for name, path in variables.items()}},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def _call(app: App, tool: str, **given: Any) -> dict[str, Any]:
    return (await app.toolbox.call(fresh_context(OPERATOR), tool, given)).data


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell")
async def test_a_copy_that_is_made_while_turns_run_goes_on_where_the_original_was(tmp_path: Path, open_house) -> None:
    data, backup, restored = tmp_path / "data", tmp_path / "backup", tmp_path / "restored"
    script = {"replies": [{"match": {"prompt": "slow"}, "reply": "late", "latency_s": 5}], "default": {"reply": "ok"}}
    async with open_house(script, root=data) as house:
        (data / "compositions").mkdir()
        (data / "compositions" / "mine.yaml").write_text("name: mine\n")
        (data / "config.yaml").write_text("provider: scripted\nscripted: {script: script.yaml}\n")
        await house.spawn("ada")
        await house.ask("ada", "first")
        waiting = await house.call("agent_send", agent="ada", message="slow")
        await house.started()
        _sh(_command("backup"), tmp_path / "bin", DATA=data, BACKUP=backup)
        house.gate.opened.set()
        assert (await house.call("agent_wait", turns=[waiting["turn"]]))["census"]["ok"] == 1
    assert {path.name for path in backup.iterdir()} == {"ksi.db", "config.yaml", "compositions", "script.yaml"}
    assert (backup / "ksi.db").stat().st_mode & 0o077 == 0
    (backup / "script.yaml").write_text("default: {reply: on time}\n")

    _sh(_command("restore"), tmp_path / "bin", BACKUP=backup, RESTORED=restored)
    config = Config(provider="scripted", scripted=ScriptedConfig(script="script.yaml"), worker=WorkerConfig())
    async with App(Home(root=restored), AppOptions(worker="inside"), config=config) as app:
        done = await _call(app, "agent_wait", turns=[waiting["turn"]], timeout_s=20)
        assert [turn["text"] for turn in done["turns"]] == ["on time"]  # the copy made that call again
        history = await _call(app, "agent_history", agent="ada")
        assert [turn["reply"] for turn in history["turns"]] == ["ok", "on time"]
    assert (restored / "compositions" / "mine.yaml").exists()


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell")
async def test_a_copy_is_never_written_over_and_never_made_of_nothing(tmp_path: Path) -> None:
    data, backup = tmp_path / "the data", tmp_path / "back?up #1"
    backup.mkdir()
    with pytest.raises(AssertionError, match="unable to open database file"):
        _sh(_command("backup"), tmp_path / "bin", DATA=data, BACKUP=backup)
    assert list(backup.iterdir()) == []
    data.mkdir()
    async with App(Home(root=data), AppOptions(worker="none"), config=Config()):
        (backup / "ksi.db").write_text("an older copy")
        with pytest.raises(AssertionError, match="output file already exists|not a database"):
            _sh(_command("backup"), tmp_path / "bin", DATA=data, BACKUP=backup)
        assert (backup / "ksi.db").read_text() == "an older copy"


def test_every_file_of_the_data_folder_is_on_the_page() -> None:
    home = Home(root=Path("/d"))
    named = set(re.findall(r"`([^`]+)`", " ".join(row[0] for row in _rows("Files"))))
    paths = [getattr(home, name) for name, kind in vars(Home).items() if isinstance(kind, property)]
    known = {path.relative_to("/d").as_posix().removesuffix("/") for path in paths} - {"logs"}
    known |= {FILE, EXPORTS_FOLDER, QUARANTINE_FOLDER, TRUSTED_FOLDER, CLAUDE_FOLDER, "processes", "profiles.yaml"}
    assert known - {name.removesuffix("/") for name in named} == set()


def test_every_variable_of_the_environment_is_on_the_page() -> None:
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "ksi_mcp").rglob("*.py"))
    used = set(re.findall(r"\bKSI_(?:HOME|SAFE_MODE|DEBUG|CREDENTIALS_KEY|AGENT_TOKEN|AGENT_URL)\b", code))
    named = set(re.findall(r"^\| `(KSI_\w+)`|, `(KSI_\w+)` \|", PAGE, re.MULTILINE))
    assert used == {one or other for one, other in named}


def test_the_figures_on_the_page_are_those_of_the_code() -> None:
    assert MAX_MESSAGE_CHARS == MAX_SYSTEM_CHARS
    waits = {
        given["maximum"]
        for tool in ALL_TOOLS
        for name, given in tool.schema().get("properties", {}).items()
        if tool.waits and name in ("timeout_s", "wait_s") and tool.name in ("agent_wait", "event_wait")
    }
    assert [int(re.sub(r"\D", "", row[1])) for row in _rows("Limits")] == [
        MAX_MESSAGE_CHARS,
        MAX_DATA_BYTES,
        *waits,
        MAX_TIMEOUT_S,
        MAX_AGENTS_PER_RUN,
        MAX_ABOVE,
        MAX_BODY_BYTES,
        MAX_TOKENS,
        MAX_WAITING,
    ]
    said = PAGE.replace("\n", " ")
    for figure in (
        f"over {KEPT_BYTES // 1_000_000} MB, and above {LARGE_BYTES // 1_000_000} MB",
        f"put aside above {LOG_BYTES // 1_000_000} MB",
        f"those at work {DRAIN_S:g} seconds",
        f"{MIN_FILE_KEY_CHARS} characters or more",
    ):
        assert figure in said
    assert (HEALTH_S, GIVE_BACK_S, SWEEP_S, FILE_KEY) == (2.0, 30.0, 3_600.0, "KSI_CREDENTIALS_KEY")


def test_links_inside_the_page_lead_to_its_sections() -> None:
    sections = {title.lower().replace(" ", "-") for title in re.findall(r"^#{2,3} (.+)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= sections
