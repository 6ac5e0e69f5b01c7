"""Named SQL: each capability keeps its statements in `queries.sql`, one line of why above each.

    -- insert
    -- why: the only way a row gets into the log.
    INSERT INTO event (...) VALUES (:name, ...);

is known as `events.insert`. Parameters are written `:name`.
"""

from __future__ import annotations

import re
import sqlite3
from importlib import resources

_HEAD = re.compile(r"^-- ([a-z][a-z0-9_]*)\n-- why: \S.*\n", re.MULTILINE)


def load_queries() -> dict[str, str]:
    """Every named statement of the package, keyed `capability.name`.

    Raises:
        ValueError: a name is used twice, or a file has text outside a named statement.
    """
    found: dict[str, str] = {}
    for folder in sorted(resources.files("ksi_mcp").iterdir(), key=lambda entry: entry.name):
        file = folder / "queries.sql"
        if folder.is_dir() and file.is_file():
            for name, statement in parse_queries(file.read_text("utf-8"), where=folder.name).items():
                found[f"{folder.name}.{name}"] = statement
    return found


def parse_queries(text: str, *, where: str) -> dict[str, str]:
    """Split one `queries.sql` into its statements."""
    heads = list(_HEAD.finditer(text))
    if text[: heads[0].start() if heads else len(text)].strip():
        raise ValueError(f"{where}/queries.sql: text before the first `-- name` / `-- why:` pair")
    statements: dict[str, str] = {}
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        name = head[1]
        body = text[head.end() : following.start() if following else len(text)].strip().removesuffix(";")
        if name in statements:
            raise ValueError(f"{where}/queries.sql: statement {name!r} is there twice")
        if not body or ";" in body:
            raise ValueError(f"{where}/queries.sql: {name!r} must hold exactly one statement")
        statements[name] = body
    return statements


def split_script(text: str) -> list[str]:
    """The statements of a migration, so that they can run inside one transaction."""
    statements: list[str] = []
    buffer = ""
    for line in text.splitlines(keepends=True):
        buffer += line
        if (line.rstrip().endswith(";") or "; --" in line) and sqlite3.complete_statement(buffer):
            statements.append(buffer.strip())
            buffer = ""
    if buffer.strip() and not all(line.startswith("--") or not line for line in buffer.strip().splitlines()):
        statements.append(buffer.strip())
    return statements
