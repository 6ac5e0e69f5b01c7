"""How one process tells the others on a data folder that something was committed.

A datagram of one byte to every socket in a private folder under the system's temporary directory. It
carries nothing, so a lost or forged ring does no harm: it only makes the others look. Where the
platform has no such sockets, and as a safety net, each process polls (`SqliteDatabase.foreign_change`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from ksi_mcp.ids import new_id

MOST_FOLDERS = 1_000
"""So many are looked at in one go."""
_FOLDER = re.compile(r"ksi-\d+-[0-9a-f]{16}")
_BELL = re.compile(r"\d+-b_[0-9a-z]+")


class Doorbell:
    """One process's bell, and the way to ring the others'.

    `ring` is cheap enough for every commit: rings of one loop tick are one.
    """

    def __init__(self, home: Path) -> None:
        digest = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]
        user = os.getuid() if hasattr(os, "getuid") else 0
        self._folder = Path(tempfile.gettempdir()) / f"ksi-{user}-{digest}"
        self._socket: socket.socket | None = None
        self._own: Path | None = None
        self._pending = False

    def open(self, heard: Callable[[], None]) -> bool:
        """Start to listen on the running loop; False where the platform or the folder does not allow it."""
        if not hasattr(socket, "AF_UNIX") or not self._private_folder():
            return False
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)
        self._own = self._folder / f"{os.getpid()}-{new_id('b')}"
        try:
            try:
                bell.bind(str(self._own))
            except FileNotFoundError:  # somebody else cleared the folder away before we were in it
                self._folder.mkdir(mode=0o700, exist_ok=True)
                bell.bind(str(self._own))
        except OSError:
            bell.close()
            self._own = None
            return False
        self._socket = bell

        def drain() -> None:
            with contextlib.suppress(BlockingIOError, OSError):
                while bell.recv(16):
                    pass
            heard()

        asyncio.get_running_loop().add_reader(bell.fileno(), drain)
        return True

    def ring(self) -> None:
        """Wake the other processes, once for all rings of this tick."""
        if self._socket is not None and not self._pending:
            self._pending = True
            asyncio.get_running_loop().call_soon(self._send)

    def close(self) -> None:
        """Stop listening and take the socket away."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        if self._own is not None:
            self._own.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _send(self) -> None:
        self._pending = False
        if self._socket is None:
            return
        try:
            bells = list(self._folder.iterdir())
        except OSError:
            return
        for other in bells:
            if other == self._own:
                continue
            try:
                self._socket.sendto(b"!", str(other))
            except (BlockingIOError, InterruptedError):
                pass  # it has rings enough waiting
            except OSError:  # its process is gone
                with contextlib.suppress(OSError):
                    other.unlink()

    def _private_folder(self) -> bool:
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
        return _is_private(self._folder)


def clear_away_the_dead() -> int:
    """Remove what processes that were killed have left behind of this user's, on any data folder; how many folders.

    Who is dead is asked of the sockets themselves: nobody answers at those of a process that is gone, whatever
    process has its number by now.
    """
    if not hasattr(socket, "AF_UNIX"):
        return 0
    removed = 0
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        mine = [Path(each.path) for each in entries if _FOLDER.fullmatch(each.name) and _is_private(Path(each.path))]
        for folder in mine[:MOST_FOLDERS]:
            removed += _clear(folder)
    return removed


def _clear(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            if not _BELL.fullmatch(file.name) or not stat.S_ISSOCK(file.lstat().st_mode):
                return False
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
                try:
                    asking.connect(str(file))
                except ConnectionRefusedError:
                    file.unlink(missing_ok=True)
                else:
                    return False
        folder.rmdir()
        return True
    return False


def _is_private(folder: Path) -> bool:
    """Whether it is a folder that only this user can enter: anything else might be another user's trap."""
    try:
        facts = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077
