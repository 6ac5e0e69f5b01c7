"""A server without a token: while one listens, no agent may run as a process, which could reach it as the operator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from filelock import FileLock, Timeout

from ksi_mcp.config import Home
from ksi_mcp.errors import Conflict

_RECORDS: Final = "claude_cli/processes"
"""Below the data folder: a file for each process of an agent that runs, named by its id."""
_LOOK_S: Final = 0.3
"""Whoever only looks holds the lock for far less."""


@contextmanager
def unguarded(home: Home) -> Iterator[None]:
    """For as long as a server of this data folder asks for no token.

    Raises:
        Conflict: another one does already, or an agent runs as a process, which was begun before this.
    """
    lock = FileLock(home.unguarded_lock)
    try:
        lock.acquire(timeout=_LOOK_S)
    except Timeout:
        raise Conflict(
            "another server without a token serves this data folder", hint="end that one, or leave the token on"
        ) from None
    try:
        if _has_processes(home):
            raise Conflict(
                "agents run as processes at this moment, and could reach a server without a token",
                hint="wait for the end of their turns and of claude_cli.keep_s, end the worker, or leave the token on",
            )
        yield
    finally:
        lock.release()


def is_unguarded(home: Home) -> bool:
    """Whether a server of this data folder asks for no token at this moment."""
    if not home.unguarded_lock.exists():
        return False
    look = FileLock(home.unguarded_lock)
    try:
        look.acquire(timeout=0)
    except Timeout:
        return True
    look.release()
    return False


def _has_processes(home: Home) -> bool:
    return any(_is_alive(file.stem) for file in (home.root / _RECORDS).glob("*.json"))


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True
