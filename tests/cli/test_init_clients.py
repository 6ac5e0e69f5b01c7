"""What `ksi-mcp init` tells clients, and what it writes into files that hold more than ours."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.__main__ import run
from ksi_mcp.cli.clients import Client, Setup, server_command, setup_for, write
from ksi_mcp.cli.init import CONFIG_TEMPLATE, set_budget
from ksi_mcp.config import Home, load_config, user_home
from ksi_mcp.errors import Conflict, Invalid

FILED = [client for client in Client if client is not Client.INSPECTOR]


def _setup(client: Client, root: Path) -> Setup:
    made = setup_for(client, Home(root=root / "home"), cwd=root)
    if client is Client.CLAUDE_DESKTOP:  # the real one is this user's
        return Setup(text=made.text, file=root / "claude_desktop_config.json", key=made.key, then=made.then)
    return made


@pytest.mark.parametrize("client", FILED)
def test_a_client_is_told_absolute_paths(client: Client, tmp_path: Path) -> None:
    made = _setup(client, tmp_path)
    entry = json.loads(made.text)[made.key]["ksi"]
    assert Path(entry["command"]).is_absolute()
    assert entry["args"][-3:] == ["serve", "--home", str(tmp_path / "home")]


def test_the_users_own_data_folder_needs_no_name() -> None:
    assert server_command(Home(root=user_home().resolve()))[-1] == "serve"


@pytest.mark.parametrize("client", FILED)
def test_the_server_is_added_to_what_is_there(client: Client, tmp_path: Path) -> None:
    made = _setup(client, tmp_path)
    assert made.file is not None
    made.file.parent.mkdir(exist_ok=True)
    made.file.write_text(json.dumps({"theme": "dark", made.key: {"other": {"command": "x"}}}))
    made.file.chmod(0o640)
    assert write(made) is True
    assert write(made) is False
    found: dict[str, Any] = json.loads(made.file.read_text())
    assert (found["theme"], set(found[made.key])) == ("dark", {"other", "ksi"})
    assert stat.S_IMODE(made.file.stat().st_mode) == 0o640
    assert [each.name for each in made.file.parent.iterdir() if each.name.startswith(f".{made.file.name}.")] == []


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    made = _setup(Client.VSCODE, tmp_path)
    write(made)
    assert made.file is not None
    assert stat.S_IMODE(made.file.stat().st_mode) == 0o600


def test_another_server_of_that_name_stays(tmp_path: Path) -> None:
    made = _setup(Client.CLAUDE_CODE, tmp_path)
    before = '{"mcpServers": {"ksi": {"command": "mine"}}}'
    (tmp_path / ".mcp.json").write_text(before)
    with pytest.raises(Conflict, match="another server"):
        write(made)
    assert (tmp_path / ".mcp.json").read_text() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"mcpServers": []}', "\udcff"])
def test_a_file_that_is_not_the_clients_stays_as_it_is(text: str, tmp_path: Path) -> None:
    file = tmp_path / ".mcp.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Invalid):
        write(_setup(Client.CLAUDE_CODE, tmp_path))
    assert file.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_only_what_belongs_into_a_file_is_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--client", "cursor", "--home", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert set(json.loads(said.out)) == {"mcpServers"}
    assert "--write" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\x00"])
def test_a_file_that_is_no_json_is_left_as_it_is(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".mcp.json").write_text(text)
    assert run(["init", "--home", str(tmp_path / "home"), "--client", "claude-code", "--write"]) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err
    assert (tmp_path / ".mcp.json").read_text() == text


@pytest.mark.parametrize(
    "arguments", [["--write"], ["--client", "vscode", "--budget", "5"], ["--client", "inspector", "--write"]]
)
def test_options_that_make_no_sense_together_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "--home", str(tmp_path), *arguments]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "before",
    [
        "",
        CONFIG_TEMPLATE,
        "# no newline at the end",
        "provider: scripted  # mine\nbudget: {turns: 3}\n",
    ],
)
def test_a_budget_is_written_between_what_is_there(before: str, tmp_path: Path) -> None:
    home = Home(root=tmp_path)
    home.config.write_text(before)
    assert set_budget(home, 12.5) is True
    assert set_budget(home, 12.5) is False
    config = load_config(home)
    assert config.budget.usd == 12.5
    assert config.budget.turns == (3 if "turns: 3" in before else None)
    after = home.config.read_text()
    assert all(line in after for line in before.splitlines() if line.startswith("#"))
    assert ("# mine" in after) == ("# mine" in before)


@pytest.mark.parametrize("usd", [-1.0, float("nan"), float("inf"), 1e12])
def test_a_budget_that_is_none_leaves_the_file_as_it_was(usd: float, tmp_path: Path) -> None:
    home = Home(root=tmp_path)
    home.config.write_text("provider: scripted\n")
    with pytest.raises(Invalid, match="budget"):
        set_budget(home, usd)
    assert home.config.read_text() == "provider: scripted\n"
