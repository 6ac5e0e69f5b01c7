"""Bring a file to the schema of this version: each step and its record are one transaction."""

from __future__ import annotations

import re
import sqlite3
from importlib import resources

from ksi_mcp.db.sql import split_script
from ksi_mcp.errors import StoreError

_FILE = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")


def migrations() -> list[tuple[int, str, str]]:
    """All steps as (version, name, SQL), in order."""
    files = (resources.files("ksi_mcp.db") / "migrations").iterdir()
    return sorted(
        (int(found[1]), found[2], file.read_text("utf-8")) for file in files if (found := _FILE.match(file.name))
    )


def migrate(connection: sqlite3.Connection, *, now_ms: int, whole: bool = False) -> int:
    """Apply the missing steps; the version reached. With `whole`, an empty file gets what they amount to, at once.

    Raises:
        StoreError: the file was written by a newer version of ksi_mcp.
    """
    steps = migrations()
    known = steps[-1][0]
    if (have := _version(connection)) > known:
        raise StoreError(
            f"the data folder's database has schema {have}, this version of ksi_mcp knows {known}",
            hint="install the newer ksi_mcp again, or choose another data folder with --home",
        )
    if whole and have == 0:
        have = _make_whole(connection, steps, now_ms=now_ms)
    missing = [step for step in steps if step[0] > have]
    if not missing:
        return known
    # A table is changed by making it anew, which others that refer to it must not notice; each step checks at its end.
    enforced = connection.execute("PRAGMA foreign_keys").fetchone()[0]
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        for version, name, script in missing:
            _apply(connection, version, name, script, now_ms=now_ms)
    finally:
        connection.execute(f"PRAGMA foreign_keys = {enforced}")
    return known


def _make_whole(connection: sqlite3.Connection, steps: list[tuple[int, str, str]], *, now_ms: int) -> int:
    """`schema.sql` is the sum of all steps (a test holds it to that), in a third of the time."""
    script = (resources.files("ksi_mcp.db") / "schema.sql").read_text("utf-8")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if (have := _version(connection)) == 0:  # another process may have been faster
            for statement in split_script(script):
                connection.execute(statement)
            rows = [(version, name, now_ms) for version, name, _ in steps]
            connection.executemany("INSERT INTO migration (version, name, applied_at_ms) VALUES (?, ?, ?)", rows)
            have = steps[-1][0]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return have


def _apply(connection: sqlite3.Connection, version: int, name: str, script: str, *, now_ms: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have been faster between the look and the lock.
        if version > _version(connection):
            for statement in split_script(script):
                connection.execute(statement)
            _check_references(connection, version)
            connection.execute(
                "INSERT INTO migration (version, name, applied_at_ms) VALUES (?, ?, ?)", (version, name, now_ms)
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_references(connection: sqlite3.Connection, version: int) -> None:
    if (broken := connection.execute("PRAGMA foreign_key_check").fetchone()) is not None:
        raise StoreError(
            f"the database cannot be brought to schema {version}: a row of {broken[0]} refers to nothing",
            hint="restore the data folder from a copy, and report this",
        )


def _version(connection: sqlite3.Connection) -> int:
    there = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migration'").fetchone()
    if there is None:
        return 0
    return int(connection.execute("SELECT COALESCE(MAX(version), 0) FROM migration").fetchone()[0])
