"""The configurations that are handed out: they name commands that exist, one version, and one lock."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from ksi_mcp import __version__
from ksi_mcp.cli import serve

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
CLIENTS = sorted((PACKAGING / "clients").glob("*.json"))
DOCKERFILE = (PACKAGING / "Dockerfile").read_text("utf-8")
REGISTRY: dict[str, Any] = json.loads((PACKAGING / "server.json").read_text("utf-8"))


def _takes(arguments: list[str]) -> bool:
    """Whether `ksi-mcp serve` understands these arguments; nothing is run."""
    application = typer.Typer()
    application.command()(serve.command)
    get_command(application).make_context("serve", arguments[1:])
    return arguments[0] == "serve"


def _pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", lock.read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.name)
def test_a_configuration_of_a_client_names_a_command_that_is_understood(path: Path) -> None:
    document = json.loads(path.read_text("utf-8"))
    (server,) = (document.get("mcpServers") or document["servers"]).values()
    if "url" in server:
        assert server["url"] == "http://127.0.0.1:8765/mcp"
        assert server["headers"]["Authorization"].startswith("Bearer ${")
    else:
        assert server["command"].startswith("/")
        assert _takes(server["args"])


def test_the_entry_of_the_registry_is_what_its_schema_asks_for() -> None:
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", REGISTRY["name"])
    assert len(REGISTRY["description"]) <= 100
    (package,) = REGISTRY["packages"]
    assert (REGISTRY["version"], package["version"]) == (__version__, __version__)
    assert (package["registryType"], package["identifier"], package["transport"]) == (
        "pypi",
        "ksi-mcp",
        {"type": "stdio"},
    )
    assert _takes([argument["value"] for argument in package["packageArguments"]])


def test_the_readme_says_whose_package_it_is() -> None:
    assert f"mcp-name: {REGISTRY['name']}\n" in (ROOT / "README.md").read_text("utf-8").replace(" -->", "\n")


def test_the_image_serves_with_a_command_that_is_understood_and_not_as_root() -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    arguments = json.loads(command)
    assert _takes(arguments)
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [arguments[arguments.index("--port") + 1]]
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert "--require-hashes" in DOCKERFILE


def test_the_image_is_made_of_files_that_are_let_through() -> None:
    let_through = set(re.findall(r"^!(\S+)$", (PACKAGING / "Dockerfile.dockerignore").read_text("utf-8"), re.MULTILINE))
    copied = [
        shlex.split(line)[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line
    ]
    assert {name for names in copied for name in names} == let_through
    assert all((ROOT / name).exists() for name in let_through)


def test_the_lock_of_the_image_has_the_versions_that_were_tested() -> None:
    tested, shipped = _pins(ROOT / "requirements.lock"), _pins(PACKAGING / "requirements.lock")
    assert {name: tested.get(name) for name in shipped} == shipped, "run `make lock`"
    assert not {"pytest", "mypy", "ruff", "hypothesis"} & shipped.keys()
    assert "://" not in (PACKAGING / "requirements.lock").read_text("utf-8")
