"""DBOS as both of its scripts use it: SQLite with a write-ahead log and every commit on the disk."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from dbos import DBOS


@contextlib.contextmanager
def launched(home: Path) -> Iterator[None]:
    engine = sqlalchemy.create_engine(f"sqlite:///{home / 'dbos.sqlite'}")

    @sqlalchemy.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"  # these three as in the engine that DBOS makes itself
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA journal_mode=WAL")  # and these two by hand
        connection.execute("PRAGMA synchronous=FULL")

    DBOS(
        config={
            "name": "bench",
            "system_database_engine": engine,
            "run_admin_server": False,
            "log_level": "ERROR",
            "executor_id": "bench",
            "application_version": "1",
        }
    )
    logging.disable(logging.ERROR)
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()
