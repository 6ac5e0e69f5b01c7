"""Locks on files, as those see them who only look."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


def is_held(path: Path) -> bool:
    """Whether some process holds the lock at this moment. The look holds it itself for far less than that."""
    if not path.exists():
        return False
    look = FileLock(path)
    try:
        look.acquire(timeout=0)
    except Timeout:
        return True
    look.release()
    return False
