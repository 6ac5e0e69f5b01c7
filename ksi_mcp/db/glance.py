"""A short look at a database that may be anything: read-only, soon over, and nothing rather than a failure."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ksi_mcp.db.statements import load_statements

LIMIT_S: Final = 0.3
_STEPS: Final = 2_000
"""Instructions of SQLite's machine between two looks at the clock."""


def glance(database: Path, statement: str, *, prefix: str, limit: int) -> list[str]:
    """The first column of a named statement's rows. Empty if it cannot be had at once, for whatever reason."""
    until = time.monotonic() + LIMIT_S
    prepared = load_statements()[statement]
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=LIMIT_S)) as connection:
            connection.execute("PRAGMA query_only = ON")
            connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
            rows = connection.execute(prepared.sql, prepared.values({"prefix": prefix, "limit": limit})).fetchall()
    except (sqlite3.Error, OSError):
        return []
    return [row[0] for row in rows if isinstance(row[0], str)]
