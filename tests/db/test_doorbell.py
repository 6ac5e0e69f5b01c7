from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksi_mcp.db.doorbell import Doorbell, clear_away_the_dead

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="k") as folder:  # short: a socket's path has about 100 characters
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


async def heard_within(bell: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(5):
            await bell.wait()
    except TimeoutError:
        return False
    return True


async def test_a_ring_reaches_the_others_of_the_folder_and_not_oneself(tmp_path: Path) -> None:
    one, two, stranger = Doorbell(tmp_path), Doorbell(tmp_path), Doorbell(tmp_path / "other")
    rung = [asyncio.Event() for _ in range(3)]
    assert all(bell.open(event.set) for bell, event in zip((one, two, stranger), rung, strict=True))
    one.ring()
    assert await heard_within(rung[1])
    assert not rung[0].is_set()
    assert not rung[2].is_set()
    for bell in (one, two, stranger):
        bell.close()


async def test_rings_of_one_tick_are_one(tmp_path: Path) -> None:
    one, two = Doorbell(tmp_path), Doorbell(tmp_path)
    count = 0
    bell = asyncio.Event()

    def heard() -> None:
        nonlocal count
        count += 1
        bell.set()

    one.open(lambda: None)
    two.open(heard)
    for _ in range(1000):
        one.ring()
    assert await heard_within(bell)
    assert count == 1
    one.close()
    two.close()


async def test_the_socket_of_a_dead_process_is_cleared_away(tmp_path: Path) -> None:
    one, dead = Doorbell(tmp_path), Doorbell(tmp_path)
    one.open(lambda: None)
    dead.open(lambda: None)
    file = dead._own
    assert file is not None
    assert dead._socket is not None
    asyncio.get_running_loop().remove_reader(dead._socket.fileno())
    dead._socket.close()  # as the kernel does when its process is killed: the name stays
    dead._socket = None
    one.ring()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not file.exists()
    one.close()


async def test_a_bell_after_its_close_is_silent_and_its_folder_is_gone(tmp_path: Path) -> None:
    bell = Doorbell(tmp_path)
    bell.open(lambda: None)
    folder = bell._folder
    bell.ring()
    bell.close()
    await asyncio.sleep(0)
    bell.ring()
    bell.close()
    assert not folder.exists()


async def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path) -> None:
    bell = Doorbell(tmp_path)
    bell._folder.mkdir(mode=0o700)
    bell._folder.chmod(0o777)
    assert not bell.open(lambda: None)
    bell.ring()
    bell.close()
    assert list(bell._folder.iterdir()) == []


def left_behind(home: Path) -> Path:
    """The folder of a process that was killed: a process that binds its bell and dies without closing it."""
    code = (
        "import asyncio, os, sys, tempfile\n"
        "from pathlib import Path\n"
        "from ksi_mcp.db.doorbell import Doorbell\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "async def main():\n"
        "    bell = Doorbell(Path(sys.argv[2]))\n"
        "    assert bell.open(lambda: None)\n"
        "    print(bell._folder, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, tempfile.gettempdir(), str(home)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    return Path(killed.stdout.strip())


async def test_what_killed_processes_left_behind_is_cleared_away_and_what_lives_is_left(tmp_path: Path) -> None:
    dead = left_behind(tmp_path / "dead")
    living = Doorbell(tmp_path / "living")
    living.open(lambda: None)
    shared = left_behind(tmp_path / "living")
    assert shared == living._folder
    assert len(list(dead.iterdir())) == 1
    assert clear_away_the_dead() == 1
    assert not dead.exists()
    assert living._own is not None
    assert living._own.exists()
    living.close()


async def test_what_is_not_ours_is_never_cleared_away(tmp_path: Path) -> None:
    temporary = Path(tempfile.gettempdir())
    foreign = temporary / f"ksi-{os.getuid()}-0123456789abcdef"
    foreign.mkdir(mode=0o700)
    (foreign / "123-b_0000000000").write_text("a file, no socket")
    (foreign / "letters").write_text("precious")
    entrance = temporary / f"ksi-{os.getuid()}-fedcba9876543210"
    entrance.symlink_to(left_behind(tmp_path))
    open_to_all = temporary / f"ksi-{os.getuid()}-aaaaaaaaaaaaaaaa"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (temporary / "ksi-notes").mkdir(mode=0o700)
    assert clear_away_the_dead() == 1  # the one behind the link, by its own name
    assert len(list(foreign.iterdir())) == 2
    assert entrance.is_symlink()
    assert open_to_all.exists()
    assert (temporary / "ksi-notes").exists()
