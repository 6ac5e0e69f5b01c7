"""The wheel has everything inside, and works where nothing of the repository is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from ksi_mcp import __version__
from ksi_mcp.tools.catalog import DEFAULT_TOOLS

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "packaging" / "requirements.lock"
THOROUGH = os.environ.get("KSI_TEST_THOROUGH", "") not in ("", "0")
NOT_SHIPPED = {"__pycache__", ".DS_Store"}


def _build(kind: str, into: Path, source: Path = ROOT) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(into)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (made,) = into.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def _files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and not NOT_SHIPPED & set(path.parts))
    return {path.relative_to(folder).as_posix() for path in found}


def test_every_file_of_the_package_and_the_library_is_in_the_wheel(tmp_path: Path) -> None:
    wheel = _build("wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in inside if name.endswith(".dist-info/METADATA"))
    assert {f"ksi_mcp/{name}" for name in _files(ROOT / "ksi_mcp")} <= inside
    assert {f"ksi_mcp/_compositions/{name}" for name in _files(ROOT / "compositions")} <= inside
    assert {"ksi_mcp/py.typed", "ksi_mcp/db/schema.sql", "ksi_mcp/providers/profiles/profiles.yaml"} <= inside
    assert all(name.startswith(("ksi_mcp/", f"ksi_mcp-{__version__}.dist-info/")) for name in inside)
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment with the wheel that the source distribution makes, far from the repository."""
    root = tmp_path_factory.mktemp("installed")
    with tarfile.open(_build("sdist", root / "sdist")) as archive:
        archive.extractall(root, filter="data")
    wheel = _build("wheel", root / "wheel", root / f"ksi_mcp-{__version__}")
    subprocess.run([sys.executable, "-m", "venv", str(root / "env")], check=True)
    pip = [str(root / "env" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    return root / "env" / "bin"


def _run(*command: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.defpath, "HOME": str(home), "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
    given = [str(part) for part in command]
    return subprocess.run(given, cwd="/", env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(not THOROUGH, reason="KSI_TEST_THOROUGH is not set: it makes an environment")
@pytest.mark.timeout(600)
async def test_the_installed_wheel_serves_a_real_client(installed: Path, tmp_path: Path) -> None:
    for command in ([installed / "ksi-mcp"], [installed / "python", "-m", "ksi_mcp"]):
        assert _run(*command, "--version", home=tmp_path).stdout == f"ksi-mcp {__version__}\n"
    facts = json.loads(_run(installed / "ksi-mcp", "doctor", "--json", "--home", tmp_path / "d", home=tmp_path).stdout)
    assert [each for each in facts["missing"] if each["essential"]] == []
    assert facts["compositions"] > 8
    told = json.loads(_run(installed / "ksi-mcp", "init", "--client", "cursor", home=tmp_path).stdout)
    assert told == {"mcpServers": {"ksi": {"command": str(installed / "ksi-mcp"), "args": ["serve"]}}}
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.yaml").write_text("provider: scripted\nworker: {idle_s: 0}\n")
    server = StdioServerParameters(
        command=str(installed / "ksi-mcp"), args=["serve", "--home", str(home)], env={"HOME": str(tmp_path)}, cwd="/"
    )
    async with Client(server) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == list(DEFAULT_TOOLS)
        await client.call_tool("agent_spawn", {"name": "one", "prompt": "You answer.", "message": "hello"})
        waited = await client.call_tool("agent_wait", {"agents": ["one"]})  # a worker process of its own answers
    assert waited.structured_content is not None
    assert "hello" in waited.structured_content["turns"][0]["text"]
