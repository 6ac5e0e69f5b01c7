"""The rules of the house that no linter knows. docs/architecture.md says why they are there."""

from __future__ import annotations

import ast
import configparser
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ksi_mcp"
CODE_FOLDERS = ("ksi_mcp", "tests", "scripts", "benchmarks")
MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = sorted(
    path
    for folder in CODE_FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if not any(part.startswith(".env-") for part in path.parts)  # what benchmarks compare with
)
SQL = sorted(PACKAGE.rglob("*.sql"))
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

MODULE_CEILING_LINES = 400
CONTRIBUTING_CEILING_LINES = 150
ADR_CEILING_LINES = 40
SERVER_CEILING_LINES = 15

# Written in two halves, so that this file passes its own test.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK")) + r")\b")
SQL_STATEMENT = re.compile(
    r"\s*(SELECT\s.+\sFROM\s|INSERT\s+(OR\s+\w+\s+)?INTO\s|UPDATE\s.+\sSET\s|DELETE\s+FROM\s)", re.DOTALL
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared_layers() -> list[list[str]]:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    rows = contracts["importlinter:contract:layers"]["layers"].split("\n")
    return [re.findall(r"\w+", row) for row in rows if row.strip()]


# -- modules ----------------------------------------------------------------------------------------


def test_no_module_grows_beyond_its_ceiling() -> None:
    too_long = {name_of(path): len(lines_of(path)) for path in MODULES if len(lines_of(path)) > MODULE_CEILING_LINES}
    assert not too_long, f"split along a seam: {too_long}"


def test_the_entry_script_stays_trivial() -> None:
    assert len(lines_of(ROOT / "server.py")) <= SERVER_CEILING_LINES


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc"}
    assert not [name_of(path) for path in MODULES if path.stem in drawers or path.parent.name in drawers]


def test_nothing_is_left_marked_as_unfinished() -> None:
    found = [
        f"{name_of(path)}:{number}"
        for path in [*CODE, *SQL, *DOCS, ROOT / "server.py", ROOT / "Makefile", ROOT / "pyproject.toml"]
        for number, line in enumerate(lines_of(path), start=1)
        if UNFINISHED.search(line)
    ]
    assert not found, f"do it, or write down why not: {found}"


def test_records_are_frozen_slotted_and_keyword_only() -> None:
    loose = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            has_fields = any(isinstance(item, ast.AnnAssign) for item in node.body)
            wanted = {"frozen", "slots", "kw_only"} if has_fields else {"frozen", "slots"}
            for decorator in node.decorator_list:
                call = decorator.func if isinstance(decorator, ast.Call) else decorator
                if ast.unparse(call) not in {"dataclass", "dataclasses.dataclass"}:
                    continue
                keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
                if wanted - {keyword.arg for keyword in keywords if ast.unparse(keyword.value) == "True"}:
                    loose.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert not loose, f"what is not a record is a plain class: {loose}"


def test_sql_lives_in_sql_files() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0] != "db"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL_STATEMENT.match(node.value)
    ]
    assert not found, f"move it to the capability's queries.sql: {found}"


def test_tests_are_files_not_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py")), "pytest runs with --import-mode=importlib"


# -- the lock ---------------------------------------------------------------------------------------


def test_the_lock_pins_everything_the_project_asks_for() -> None:
    project = pyproject()["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0].lower() for requirement in wanted}
    locked = set(
        re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert names <= locked, f"run `make lock`: {sorted(names - locked)}"


def test_the_lock_names_no_index_and_no_folder() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links|/|\.)", lock, re.MULTILINE)


# -- documents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_links_of_a_document_lead_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = [target.split("#")[0] for target in LINK.findall(text)]
    local = [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]
    assert not [target for target in local if not (path.parent / target).exists()]


def test_contributing_stays_short() -> None:
    assert len(lines_of(ROOT / "CONTRIBUTING.md")) < CONTRIBUTING_CEILING_LINES


def test_the_architecture_document_draws_the_layers_that_are_enforced() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = re.search(r"```layers\n(.*?)```", text, re.DOTALL)
    assert drawn is not None
    assert [re.findall(r"\w+", row) for row in drawn[1].splitlines()] == declared_layers()


def test_every_layer_exists() -> None:
    names = {name for row in declared_layers() for name in row}
    assert not [name for name in sorted(names) if not ((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file())]


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=name_of)
def test_a_decision_record_is_half_a_page_with_its_four_parts(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.match(r"\d{4}-[a-z0-9-]+\.md$", path.name)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Choice", "Rejected", "How to undo"]
    assert len(text.splitlines()) <= ADR_CEILING_LINES


def test_decision_records_are_numbered_without_a_gap() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_changelog_knows_the_version() -> None:
    version = re.search(r'__version__ = "([^"]+)"', (PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert version is not None
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert version[1] in headings or headings == ["Unreleased"], "a released version has its own section"
