from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ksi_mcp.provider_config import ClaudeCliConfig
from ksi_mcp.providers import guard
from ksi_mcp.providers.processes import Processes, end_recorded, process_cap

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc on this machine")


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def sleeper(sleepers: list[subprocess.Popen[bytes]], mark: str = "") -> subprocess.Popen[bytes]:
    process = subprocess.Popen(SLEEP, start_new_session=True, env={**os.environ, guard.MARK: mark})
    sleepers.append(process)
    return process


def guarding() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE, start_new_session=True)


def told(process: subprocess.Popen[bytes], mark: str = "none", start: str | None = None) -> bytes:
    start = start or guard.started(process.pid) or ""
    return f"+{process.pid} {start.replace(' ', '_')} {mark}\n".encode()


def test_when_the_pipe_closes_the_groups_that_are_left_are_killed(sleepers) -> None:
    mine, ended = sleeper(sleepers), sleeper(sleepers)
    process = guarding()
    process.communicate(told(mine) + told(ended) + f"-{ended.pid}\n".encode() + b"nonsense\n", timeout=20)
    assert process.returncode == 0
    assert mine.wait(timeout=20) == -signal.SIGKILL
    assert ended.poll() is None


def test_the_guard_is_deaf_to_what_ends_its_worker(sleepers) -> None:
    mine, process = sleeper(sleepers), guarding()
    assert process.stdin is not None
    process.stdin.write(told(mine) + b"nonsense\n" * 10_000)  # more than the pipe holds: it has begun to read
    process.stdin.flush()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    process.communicate(timeout=20)
    assert (process.returncode, mine.wait(timeout=20)) == (0, -signal.SIGKILL)


def test_a_number_that_belongs_to_somebody_else_by_now_is_left_alone(sleepers) -> None:
    stranger, process = sleeper(sleepers), guarding()
    process.communicate(told(stranger, start="1"), timeout=20)
    assert stranger.poll() is None


@LINUX
def test_what_has_left_its_group_is_known_by_its_mark(sleepers) -> None:
    leader, strayed, other = sleeper(sleepers, "one"), sleeper(sleepers, "one"), sleeper(sleepers, "two")
    process = guarding()
    process.communicate(told(leader, "one"), timeout=20)
    assert strayed.wait(timeout=20) == -signal.SIGKILL
    assert other.poll() is None


@LINUX
def test_what_is_recorded_is_ended_before_a_new_worker_begins(tmp_path: Path, sleepers) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()
    mine, strayed, stranger = sleeper(sleepers, "one"), sleeper(sleepers, "one"), sleeper(sleepers, "two")

    def record(name: str, pgid: int, start: str | None, mark: str) -> None:
        (folder / name).write_text(json.dumps({"pid": pgid, "pgid": pgid, "start": start, "mark": mark}))

    record("1.json", mine.pid, guard.started(mine.pid), "one")
    record("2.json", stranger.pid, "1", "three")  # the number was used again
    record("3.json", 1, guard.started(1), "four")
    (folder / "4.json").write_text("{half")
    assert end_recorded(folder) == 1
    assert (mine.wait(timeout=20), strayed.wait(timeout=20)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert stranger.poll() is None
    assert list(folder.iterdir()) == []
    assert end_recorded(tmp_path / "never") == 0


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    made = Processes(tmp_path / "processes")
    yield made
    await made.aclose()


async def test_a_program_is_recorded_while_it_runs_and_no_longer(tmp_path: Path, processes: Processes) -> None:
    running = await processes.start(SLEEP, cwd=tmp_path, env={"SECRET": "sk-canary-value"})
    (record,) = (tmp_path / "processes").iterdir()
    text = record.read_text()
    assert json.loads(text)["pgid"] == running.pid
    assert "canary" not in text
    assert record.stat().st_mode & 0o077 == 0
    assert processes.count == 1
    await running.end()
    await running.end()
    assert not record.exists()
    assert (processes.count, guard.alive(running.pid, running.mark)) == (0, [])


async def test_a_guard_that_was_killed_is_replaced_and_told_everything(tmp_path: Path, processes: Processes) -> None:
    first = await processes.start(SLEEP, cwd=tmp_path, env={})
    assert processes._guard is not None
    processes._guard.kill()
    await processes._guard.wait()
    await processes.start(SLEEP, cwd=tmp_path, env={})
    assert processes._guard.stdin is not None
    processes._guard.stdin.close()  # as when the worker is killed
    await processes._guard.wait()
    await first.process.wait()
    assert guard.alive(first.pid, first.mark) == []


async def test_a_program_that_cannot_be_started_leaves_nothing(tmp_path: Path, processes: Processes) -> None:
    with pytest.raises(OSError):
        await processes.start(["/nowhere/claude"], cwd=tmp_path, env={})
    assert processes.count == 0


def test_the_cap_is_as_configured_or_follows_the_free_memory() -> None:
    assert process_cap(ClaudeCliConfig(processes=7)) == 7
    assert 1 <= process_cap(ClaudeCliConfig()) <= 64
