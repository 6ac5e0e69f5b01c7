"""Which data folder is taken: one that came with somebody's repository is not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ksi_mcp.__main__ import main
from ksi_mcp.config import find_home, is_trusted, trust, user_home


@pytest.fixture(autouse=True)
def own_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user" / "data"))
    return tmp_path


def test_a_folder_that_came_with_a_repository_is_not_a_data_folder(
    own_user: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = own_user / "project"
    (project / ".ksi").mkdir(parents=True)
    (project / ".ksi" / "config.yaml").write_text("mcp_servers: {x: {command: evil}}")
    (project / ".ksi" / "homes").write_text(str(project / ".ksi"))  # nothing in it can vouch for it
    with caplog.at_level(logging.WARNING):
        assert find_home(None, {}, project).root == user_home().resolve()
    assert "ksi-mcp init --home .ksi" in caplog.text


def test_one_that_was_made_here_is(own_user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = own_user / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["init", "--home", ".ksi"])
        assert ended.value.code == 0
    assert find_home(None, {}, project).root == (project / ".ksi").resolve()
    assert (user_home() / "homes").read_text().count("\n") == 1


def test_the_trust_is_in_the_place_and_not_in_the_name(own_user: Path) -> None:
    one, other = own_user / "one" / ".ksi", own_user / "other" / ".ksi"
    one.mkdir(parents=True)
    other.mkdir(parents=True)
    trust(one)
    assert (is_trusted(one), is_trusted(other)) == (True, False)
    link = own_user / "third"
    link.mkdir()
    (link / ".ksi").symlink_to(one)
    assert is_trusted(link / ".ksi")  # it leads to the very folder that was made here


def test_who_names_a_folder_gets_it(own_user: Path) -> None:
    folder = own_user / "project" / ".ksi"
    assert find_home(str(folder), {}, own_user).root == folder.resolve()
    assert find_home(None, {"KSI_HOME": str(folder)}, own_user).root == folder.resolve()
