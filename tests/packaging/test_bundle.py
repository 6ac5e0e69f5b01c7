"""The bundle for desktop clients: its manifest, and the bundle itself, unpacked and started as a host would."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from ksi_mcp import __version__
from ksi_mcp.config import Home, load_config
from ksi_mcp.tools.catalog import DEFAULT_TOOLS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "packaging" / "mcpb"
MANIFEST: dict[str, Any] = json.loads((SOURCES / "manifest.json").read_text("utf-8"))
MCPB = re.findall(r'^MCPB = "(.+)"$', (ROOT / "scripts" / "build-mcpb").read_text("utf-8"), re.MULTILINE)[0]
THOROUGH = os.environ.get("KSI_TEST_THOROUGH", "") not in ("", "0")


def test_the_manifest_has_the_version_and_the_tools_of_the_code() -> None:
    assert MANIFEST["version"] == __version__
    assert [each["name"] for each in MANIFEST["tools"]] == list(DEFAULT_TOOLS)


def test_every_setting_reaches_the_server_by_environment_and_the_key_is_secret() -> None:
    env = MANIFEST["server"]["mcp_config"]["env"]
    used = {name for value in env.values() for name in re.findall(r"\$\{user_config\.(\w+)\}", value)}
    assert used == set(MANIFEST["user_config"])
    assert MANIFEST["user_config"]["anthropic_api_key"]["sensitive"] is True
    assert not any("user_config" in argument for argument in MANIFEST["server"]["mcp_config"]["args"])


def test_the_icon_is_of_the_recommended_size() -> None:
    picture = (SOURCES / MANIFEST["icon"]).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (512, 512)


def _start(home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the start file of the bundle to the end of an empty input."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KSI_", "ANTHROPIC_"))}
    return subprocess.run(
        [sys.executable, str(SOURCES / "server.py")],
        env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(home), "XDG_DATA_HOME": str(home / "data"), **env},
        cwd=home,
        input="",
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_settings_that_were_left_empty_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    names = {"KSI_HOME": "${user_config.data_folder}", "ANTHROPIC_API_KEY": "", "KSI_BUNDLE_BUDGET_USD": ""}
    done = _start(tmp_path, **names)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert {each.name for each in tmp_path.iterdir()} == {"data"}


def test_the_budget_is_kept_in_the_data_folder(tmp_path: Path) -> None:
    home = tmp_path / "kept"
    done = _start(tmp_path, KSI_HOME=str(home), KSI_BUNDLE_BUDGET_USD="12.5")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (home / "config.yaml").read_text() == "budget: {usd: 12.5}\n"


def test_without_the_budget_that_was_asked_for_nothing_starts(tmp_path: Path) -> None:
    done = _start(tmp_path, KSI_HOME=str(tmp_path / "kept"), KSI_BUNDLE_BUDGET_USD="ten")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'ten' cannot be set" in done.stderr


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A freshly built bundle, in a folder as a host makes it."""
    look = [str(shutil.which("npx")), "-y", MCPB, "--version"]
    if subprocess.run(look, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip(f"{MCPB} cannot be had from npm")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build-mcpb")], check=True, capture_output=True)
    folder = tmp_path / "extension"
    with zipfile.ZipFile(ROOT / "dist" / f"ksi-mcp-{__version__}.mcpb") as archive:
        archive.extractall(folder)
    return folder


UV = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(not THOROUGH, reason="KSI_TEST_THOROUGH is not set: it builds a bundle and an environment")
@pytest.mark.skipif(UV is None or shutil.which("npx") is None, reason="uv and npx are needed")
@pytest.mark.timeout(600)
async def test_an_unpacked_bundle_starts_as_a_host_starts_it(unpacked: Path, tmp_path: Path) -> None:
    folder, home = unpacked, tmp_path / "home"
    home.mkdir()
    (home / "config.yaml").write_text("worker: {idle_s: 0}  # none stays behind\n")
    config = MANIFEST["server"]["mcp_config"]
    chosen = {"data_folder": str(home), "anthropic_api_key": "", "budget_usd": "3"}

    def filled(text: str) -> str:
        text = text.replace("${__dirname}", str(folder))
        return re.sub(r"\$\{user_config\.(\w+)\}", lambda found: chosen[found[1]], text)

    passed = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_", "SSL_"))}
    server = StdioServerParameters(
        command=str(UV),
        args=[filled(argument) for argument in config["args"]],
        env={**passed, **{name: filled(value) for name, value in config["env"].items()}},
        cwd="/",
    )
    async with Client(server) as client:
        listed = await client.list_tools()
        found = await client.call_tool("composition_discover", {"type": "orchestration"})
        await client.call_tool(
            "agent_spawn", {"name": "one", "prompt": "You answer.", "provider": "scripted", "message": "hello"}
        )
        waited = await client.call_tool("agent_wait", {"agents": ["one"]})  # by a worker process of its own
    assert [tool.name for tool in listed.tools] == list(DEFAULT_TOOLS)
    assert found.structured_content is not None
    assert found.structured_content["total"] > 5
    assert waited.structured_content is not None
    assert "hello" in waited.structured_content["turns"][0]["text"]
    assert load_config(Home(root=home)).budget.usd == 3
    assert "# none stays behind" in (home / "config.yaml").read_text()
