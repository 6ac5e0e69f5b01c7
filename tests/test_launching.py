"""Starting the worker process, and what is seen when it does not start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ksi_mcp import launching
from ksi_mcp.clock import SystemClock
from ksi_mcp.config import Home
from ksi_mcp.launching import STARTED, WorkerLauncher, last_error, last_words, shown


class Ahead(SystemClock):
    """The time of day is the machine's; the other one can be put forward."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


async def test_a_worker_that_cannot_start_says_why_and_is_not_started_at_each_call(tmp_path: Path) -> None:
    home, clock = Home(root=tmp_path), Ahead()
    home.config.write_text("worker: {concurency: 3}\n")
    launcher = WorkerLauncher(home, clock, idle_s=0, project=None)
    assert "worker.concurency" in (await launcher.ensure() or "")
    starts = home.worker_log.read_text().count(STARTED)
    assert starts == 1
    assert await launcher.ensure() is None
    assert home.worker_log.read_text().count(STARTED) == starts
    clock.ahead_s += 1.5
    assert "worker.concurency" in (await launcher.ensure() or "")
    clock.ahead_s += 1.5  # the second pause is longer
    assert await launcher.ensure() is None
    assert home.worker_log.read_text().count(STARTED) == 2
    home.config.write_text("provider: scripted\n")
    clock.ahead_s += 60
    assert await launcher.ensure() is None
    assert home.worker_log.read_text().count(STARTED) == 3
    assert last_error(home) is None  # what earlier ones said is over
    assert launcher._child is not None
    await asyncio.to_thread(launcher._child.wait, 30)
    assert not launcher.lives()


async def test_a_long_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "LOG_BYTES", 100)
    home = Home(root=tmp_path)
    home.config.write_text("nonsense: 1\n")
    home.logs.mkdir()
    home.worker_log.write_text("x" * 200)
    await WorkerLauncher(home, SystemClock(), idle_s=0, project=None).ensure()
    assert home.worker_log.read_text().startswith(STARTED)
    assert (home.logs / "worker.old.log").read_text() == "x" * 200


def test_only_errors_of_the_newest_start_count(tmp_path: Path) -> None:
    home = Home(root=tmp_path)
    assert last_error(home) is last_words(home) is None
    home.logs.mkdir()
    home.worker_log.write_text(f"{STARTED}\nerror: old\n{STARTED}\n2026 ERROR ksi_mcp: new\nand on\n")
    assert last_error(home) == "2026 ERROR ksi_mcp: new"
    assert last_words(home) == "and on"
    home.worker_log.write_text(f"{STARTED}\nerror: old\n{STARTED}\nall is well\n")
    assert last_error(home) is None


@pytest.mark.parametrize(
    "secret",
    [
        "/etc/secret/file.txt", "'/var/lib/some one/x.db'", "C:\\Users\\me\\x.txt", "~/private/key", "sk-ant-abc123",
        "Authorization: Bearer abcdef", "token=abcdef", '"api_key": "abcdef"', "0123456789abcdef0123456789abcdef0123",
    ],
)  # fmt: skip
def test_neither_folders_nor_credentials_of_a_log_are_shown(secret: str) -> None:
    line = shown(f"2026-01-01 ERROR ksi_mcp: {secret} was in the way", Home(root=Path("/data/my home")))
    assert line.startswith("2026-01-01 ERROR ksi_mcp: ")
    assert line.endswith("was in the way")
    for part in ("secret", "Users", "private", "ant", "abcdef", "lib"):
        assert part not in line


def test_the_data_folder_is_not_named(tmp_path: Path) -> None:
    home = Home(root=tmp_path / "my home")
    assert shown(f"cannot read {home.root}/ksi.db", home) == "cannot read <data folder><path>"
