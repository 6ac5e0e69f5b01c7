from __future__ import annotations

import ast
import re
import sqlite3
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.db.migrate import migrate, migrations
from ksi_mcp.db.sql import load_queries, parse_queries, split_script
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import StoreError

PACKAGE = Path(str(resources.files("ksi_mcp")))
QUERIES = load_queries()
SCHEMA = (PACKAGE / "db" / "schema.sql").read_text("utf-8")


def migrated() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, now_ms=0)
    return connection


def shape(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """Every object of the schema without its comments and layout."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    plain = {
        (kind, name): re.sub(r"\s*([(),])\s*", r"\1", " ".join(re.sub(r"--[^\n]*", "", sql).split()))
        for kind, name, sql in rows
    }
    # A table that was made anew and renamed has its name in quotes.
    return {key: sql.replace(f'CREATE TABLE "{key[1]}"', f"CREATE TABLE {key[1]}") for key, sql in plain.items()}


def strings_of(node: ast.AST) -> set[str]:
    return {
        item.value for item in ast.walk(node) if isinstance(item, ast.Constant) and isinstance(item.value, str)
    }  # fmt: skip


def named_in_calls() -> set[str]:
    """Every string in the first argument of `tx.run`, `tx.one` and `tx.all`."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            if node.func.attr in ("run", "one", "all") and ast.unparse(node.func.value).endswith("tx"):
                found |= strings_of(node.args[0])
    return found


def test_the_schema_is_the_sum_of_the_migrations() -> None:
    fresh = sqlite3.connect(":memory:")
    fresh.executescript(SCHEMA)
    stepped = migrated()
    assert shape(fresh) == shape(stepped)
    for connection in (fresh, stepped):
        assert connection.execute("SELECT control_id, routing_version FROM control").fetchall() == [(1, 0)]
    fresh.close()
    stepped.close()


def test_rows_of_the_first_schema_are_all_there_in_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    steps = migrations()
    with monkeypatch.context() as early:
        early.setattr("ksi_mcp.db.migrate.migrations", lambda: steps[:1])
        migrate(connection, now_ms=0)
    rows = {
        "account": "('global', NULL, 5, NULL, NULL, 1, 0, 1, 0, 1, 0)",
        "orchestration": "(1, 'o_1', 'p', 'h', 'running', 'client', '{}', 9, 'me', 1, NULL, NULL, NULL, NULL, NULL)",
        "agent": "(1, 'a_1', 'one', NULL, NULL, 'o_1', 'active', 's', 'm', '', '[]', '{}', 'operator', 1, 1, NULL)",
        "session": "('a_1', 1, 1)",
        "hold": "('h_1', 'global', 't_1', 'sent', 1, 1, NULL, NULL, 0)",
    }
    for table, values in rows.items():
        connection.execute(f"INSERT INTO {table} VALUES {values}")
    connection.execute(
        "INSERT INTO turn (n, turn_id, session_id, seq, state, run_at_ms, provider, prompt, created_by, root_id, hops,"
        " depth, created_at_ms) VALUES (7, 't_1', 'a_1', 1, 'running', 1, 's', 'hi', 'operator', 'r', 0, 0, 1)"
    )
    connection.execute(
        "INSERT INTO provider_call (turn_id, round, attempt, hold_id, provider, model, state, sent_at_ms)"
        " VALUES ('t_1', 1, 1, 'h_1', 's', 'm', 'sent', 1)"
    )
    before = {table: len(connection.execute(f"SELECT * FROM {table}").fetchall()) for table in (*rows, "turn")}
    assert migrate(connection, now_ms=9) == len(steps)
    assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    after = {table: len(connection.execute(f"SELECT * FROM {table}").fetchall()) for table in before}
    assert after == before == dict.fromkeys(before, 1)
    assert connection.execute("SELECT n, prompt, state, held FROM turn").fetchall() == [(7, "hi", "running", 0)]
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT INTO tool_call VALUES ('t_none', 1, 0, 'x', '{}', '', 0, 1)")
    connection.close()


def test_every_table_is_explained_once_by_name() -> None:
    tables = re.findall(r"^CREATE TABLE (\w+)", SCHEMA, re.MULTILINE)
    assert len(tables) == len(set(tables))


def test_versions_of_migrations_count_up_from_one() -> None:
    assert [version for version, _, _ in migrations()] == list(range(1, len(migrations()) + 1))


def test_migrating_again_changes_nothing() -> None:
    connection = migrated()
    before = connection.execute("SELECT * FROM migration").fetchall()
    assert migrate(connection, now_ms=99) == len(before)
    assert connection.execute("SELECT * FROM migration").fetchall() == before
    connection.close()


async def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "ksi.db"
    await (await open_sqlite(file, SystemClock())).close()
    with sqlite3.connect(file) as connection:
        connection.execute("INSERT INTO migration VALUES (9999, 'future', 0)")
    connection.close()
    with pytest.raises(StoreError, match="has schema 9999, this version of ksi_mcp knows") as refused:
        await open_sqlite(file, SystemClock())
    assert "newer ksi_mcp" in (refused.value.hint or "")


def test_a_step_that_fails_leaves_neither_its_tables_nor_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [*migrations(), (len(migrations()) + 1, "broken", "CREATE TABLE extra (a);\nCREATE TABLE extra (a);\n")]
    monkeypatch.setattr("ksi_mcp.db.migrate.migrations", lambda: steps)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, now_ms=0)
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert "event" in names
    assert "extra" not in names
    assert connection.execute("SELECT MAX(version) FROM migration").fetchone()[0] == len(steps) - 1
    connection.close()


@pytest.fixture(scope="module")
def schema() -> Iterator[sqlite3.Connection]:
    connection = migrated()
    yield connection
    connection.close()


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_every_statement_fits_the_schema(schema: sqlite3.Connection, name: str) -> None:
    sql = QUERIES[name]
    schema.execute(f"EXPLAIN {sql}", dict.fromkeys(re.findall(r":([a-z_][a-z0-9_]*)", sql)))


def test_every_statement_that_the_code_names_is_there() -> None:
    named = named_in_calls()
    assert len(named) > 50
    assert named - set(QUERIES) == set()


def test_every_statement_is_used() -> None:
    strings = {text for path in PACKAGE.rglob("*.py") for text in strings_of(ast.parse(path.read_text("utf-8")))}
    assert set(QUERIES) - strings == set()


def test_the_loader_says_what_is_wrong_and_where() -> None:
    good = "-- one\n-- why: to see.\nSELECT 1;\n\n-- two\n-- why: more.\nSELECT\n  2\n"
    assert parse_queries(good, where="x") == {"one": "SELECT 1", "two": "SELECT\n  2"}
    for text, message in (
        ("SELECT 1;\n" + good, "x/queries.sql: text before the first"),
        ("-- one\nSELECT 1;\n", "x/queries.sql: text before the first"),
        (good + good, "x/queries.sql: statement 'one' is there twice"),
        ("-- one\n-- why: to see.\nSELECT 1; SELECT 2;\n", "x/queries.sql: 'one' must hold exactly one statement"),
        ("-- one\n-- why: to see.\n\n-- two\n-- why: more.\nSELECT 2\n", "x/queries.sql: 'one' must hold exactly one"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_queries(text, where="x")


def test_a_script_is_split_at_statements_not_at_semicolons() -> None:
    script = (
        "-- a heading; with a semicolon\nCREATE TABLE a (x TEXT DEFAULT ';'); -- the first\n"
        "CREATE TRIGGER t AFTER INSERT ON a BEGIN\n  DELETE FROM a;\n  SELECT 1;\nEND;\n-- the end\n"
    )
    parts = split_script(script)
    assert len(parts) == 2
    connection = sqlite3.connect(":memory:")
    for part in parts:
        connection.execute(part)
    assert len(connection.execute("SELECT name FROM sqlite_master").fetchall()) == 2
    connection.close()
