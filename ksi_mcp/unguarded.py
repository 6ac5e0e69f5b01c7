"""A server without a token: while one listens, no agent may run as a process, which could reach it as the operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from ksi_mcp.config import Home
from ksi_mcp.errors import Conflict


@contextmanager
def unguarded(home: Home) -> Iterator[None]:
    """For as long as a server of this data folder asks for no token.

    Raises:
        Conflict: another one does already.
    """
    lock = FileLock(home.unguarded_lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Conflict(
            "another server without a token serves this data folder", hint="end that one, or leave the token on"
        ) from None
    try:
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
