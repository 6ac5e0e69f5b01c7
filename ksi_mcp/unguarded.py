"""A server without a token: while one listens, no agent may run as a process, which could reach it as the operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from ksi_mcp.config import Home
from ksi_mcp.errors import Conflict
from ksi_mcp.locks import is_held

LOOK_S = 0.5
"""A mere look at the lock must not turn a server away."""


@contextmanager
def unguarded(home: Home, *, any_running: Callable[[], bool]) -> Iterator[None]:
    """For as long as a server of this data folder asks for no token.

    `any_running`: whether an agent runs as a process; asked when no other can begin any more.

    Raises:
        Conflict: another one does already, or an agent runs as a process.
    """
    lock = FileLock(home.unguarded_lock)
    try:
        lock.acquire(timeout=LOOK_S)
    except Timeout:
        raise Conflict(
            "another server without a token serves this data folder", hint="end that one, or leave the token on"
        ) from None
    try:
        if any_running():
            raise Conflict(
                "an agent of this data folder runs as a process, which could reach a server without a token",
                hint="wait until its worker has ended, or leave the token on",
            )
        yield
    finally:
        lock.release()


def is_unguarded(home: Home) -> bool:
    """Whether a server of this data folder asks for no token at this moment."""
    return is_held(home.unguarded_lock)
