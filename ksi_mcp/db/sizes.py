"""How much each table takes, and which runs are the largest: measured beside the others, in bounded time."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

_STEPS = 2_000
"""Instructions of SQLite's machine between two looks at the clock: some milliseconds."""

_BY_TABLE = """
SELECT tbl_name AS kind, SUM(pgsize) AS bytes
FROM dbstat JOIN sqlite_schema USING (name) GROUP BY tbl_name
"""
_LARGEST_RUNS = """
SELECT run.orchestration_id, run.pattern, run.state, SUM(part.bytes) AS bytes FROM (
    SELECT orchestration_id, SUM(length(CAST(data AS BLOB)) + 200) AS bytes FROM event
    WHERE orchestration_id IS NOT NULL GROUP BY orchestration_id
    UNION ALL
    SELECT orchestration_id, SUM(500 + length(CAST(prompt AS BLOB)) + COALESCE(length(CAST(result AS BLOB)), 0))
    FROM turn WHERE orchestration_id IS NOT NULL GROUP BY orchestration_id
    UNION ALL
    SELECT turn.orchestration_id, SUM(500 + COALESCE(length(CAST(answer AS BLOB)), 0)) FROM provider_call
    JOIN turn USING (turn_id) WHERE turn.orchestration_id IS NOT NULL GROUP BY turn.orchestration_id
    UNION ALL
    SELECT turn.orchestration_id, SUM(100 + length(CAST(args AS BLOB)) + length(CAST(tool_call.result AS BLOB)))
    FROM tool_call JOIN turn USING (turn_id) WHERE turn.orchestration_id IS NOT NULL GROUP BY turn.orchestration_id
    UNION ALL
    SELECT orchestration_id, SUM(length(CAST(snapshot AS BLOB)) + 100) FROM checkpoint GROUP BY orchestration_id
) AS part JOIN orchestration AS run USING (orchestration_id)
GROUP BY run.orchestration_id ORDER BY bytes DESC, run.n LIMIT ?
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSize:
    """A run and the bytes of what it left: events, turns, answers, tool results, checkpoints."""

    orchestration_id: str
    pattern: str
    state: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes in the store. What could not be measured in the time given is None."""

    tables: dict[str, int] | None
    """Each with its indexes, largest first."""
    exact: bool
    """False where this SQLite cannot tell pages apart: then it is the contents alone."""
    free: int
    """Pages that nothing is in; they are filled before the file grows."""
    log: int
    """The write-ahead log."""
    runs: tuple[RunSize, ...] | None
    """The largest, largest first."""


def measure(database: Path, *, limit_s: float, runs: int = 10) -> Sizes:
    """Look at a database file for `limit_s` seconds at most, half of it for the tables and half for the runs."""
    log = database.with_name(database.name + "-wal")
    connection = sqlite3.connect(database, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA query_only = ON")
        (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        exact = connection.execute("SELECT 1 FROM pragma_module_list WHERE name = 'dbstat'").fetchone() is not None
        tables = None
        with _bounded(connection, limit_s / 2):
            tables = _by_table(connection) if exact else _by_contents(connection)
        largest = None
        with _bounded(connection, limit_s / 2):
            largest = tuple(
                RunSize(orchestration_id=row[0], pattern=row[1], state=row[2], bytes=row[3])
                for row in connection.execute(_LARGEST_RUNS, (runs,))
            )
    finally:
        connection.close()
    return Sizes(
        tables=None if tables is None else dict(sorted(tables.items(), key=lambda item: -item[1])),
        exact=exact,
        free=pages * page_bytes,
        log=log.stat().st_size if log.exists() else 0,
        runs=largest,
    )


class _bounded(contextlib.AbstractContextManager[None]):  # noqa: N801  reads as what it is
    """Break off what runs on a connection once the time is up; the statement is given up, silently."""

    def __init__(self, connection: sqlite3.Connection, seconds: float) -> None:
        self._connection = connection
        self._until = time.monotonic() + seconds

    def __enter__(self) -> None:
        self._connection.set_progress_handler(lambda: time.monotonic() > self._until, _STEPS)

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> bool:
        self._connection.set_progress_handler(None, 0)
        return isinstance(value, sqlite3.OperationalError) and "interrupted" in str(value)


def _by_table(connection: sqlite3.Connection) -> dict[str, int]:
    return {row["kind"]: row["bytes"] for row in connection.execute(_BY_TABLE)}


def _by_contents(connection: sqlite3.Connection) -> dict[str, int]:
    found = {}
    names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    for (table,) in connection.execute(names).fetchall():
        columns = [row["name"] for row in connection.execute(f'PRAGMA table_info("{table}")')]
        lengths = " + ".join(f'COALESCE(length(CAST("{column}" AS BLOB)), 0)' for column in columns)
        (size,) = connection.execute(f'SELECT COALESCE(SUM({lengths}), 0) FROM "{table}"').fetchone()  # noqa: S608
        found[table] = size
    return found
