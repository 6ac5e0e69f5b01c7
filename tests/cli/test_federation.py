"""`ksi-mcp export` and `ksi-mcp import` as a person or a program runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ROOT / "tests/compositions/importers"
ENV = {**{name: value for name, value in os.environ.items() if not name.startswith("KSI_")}, "PYTHONPATH": str(ROOT)}


def ksi(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ksi_mcp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=50, check=False)


def _home(root: Path, *, with_helper: bool = False) -> str:
    root.mkdir()
    (root / "config.yaml").write_text("provider: scripted\n")
    if with_helper:
        (root / "compositions").mkdir()
        (root / "compositions/helper.yaml").write_text("# mine\nname: helper\ntype: agent\nprompt: Help.\n")
    return str(root)


def test_export_and_import_from_folder_to_folder(tmp_path: Path) -> None:
    here, there = _home(tmp_path / "here", with_helper=True), _home(tmp_path / "there")
    file = str(tmp_path / "helper.ksi.zip")
    out = ksi("export", "helper", "-o", file, "--home", here)
    assert (out.returncode, out.stderr) == (0, "")
    assert out.stdout.startswith(f"{file}: 1 composition, 0 runs")
    looked = ksi("import", file, "--home", there)
    assert looked.returncode == 0
    assert "      new  helper (agent 1.0.0" in looked.stdout
    bundle = looked.stdout.split("in quarantine as ")[1].split(";")[0]
    assert bundle in ksi("import", "--home", there).stdout
    placed = ksi("import", bundle, "--allow", "--home", there)
    assert placed.stdout.endswith("placed in the library: helper\n")
    assert "nothing waits" in ksi("import", "--home", there).stdout
    again = json.loads(ksi("import", file, "--allow", "--json", "--home", there).stdout)
    assert again["state"] == "present"
    assert list((tmp_path / "here/exports").iterdir()) == []


def test_export_writes_over_nothing_unless_told(tmp_path: Path) -> None:
    home = _home(tmp_path / "here", with_helper=True)
    file = tmp_path / "f.ksi.zip"
    file.write_text("precious")
    refused = ksi("export", "helper", "-o", str(file), "--home", home)
    assert (refused.returncode, file.read_text()) == (4, "precious")
    assert "error: 'f.ksi.zip' exists; choose another file, or say --force" in refused.stderr
    assert ksi("export", "helper", "-o", str(file), "--force", "--home", home).returncode == 0
    assert file.read_bytes().startswith(b"PK")


def test_a_name_that_is_taken_needs_a_prefix(tmp_path: Path) -> None:
    here, there = _home(tmp_path / "here", with_helper=True), _home(tmp_path / "there")
    (tmp_path / "there/compositions").mkdir()
    (tmp_path / "there/compositions/helper.yaml").write_text("name: helper\ntype: agent\nprompt: Mine.\n")
    made = json.loads(ksi("export", "helper", "--json", "--home", here).stdout)
    file = str(tmp_path / "here" / made["file"])
    refused = ksi("import", file, "--allow", "--home", there)
    assert refused.returncode == 4
    assert "other compositions named 'helper'; give a prefix" in refused.stderr
    placed = ksi("import", file, "--allow", "--prefix", "acme_", "--json", "--home", there)
    assert json.loads(placed.stdout)["placed"] == ["acme_helper"]


def test_a_folder_of_another_program_is_reported_file_by_file(tmp_path: Path) -> None:
    home = _home(tmp_path / "home")
    done = ksi("import", str(SAMPLES / "llm_orc"), "--allow", "--only", "code-review", "--home", home)
    assert done.returncode == 0
    assert "      new  code-review (ensemble 1.0.0" in done.stdout
    assert "lost-dependency.yaml: not read: agents.a depends on 'nobody'" in done.stdout
    assert "classifier.script: kept, not carried out" in done.stdout
    assert "placed in the library: code-review\nin quarantine as b_" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["export", "nothing"], 2, "there is no composition 'nothing' to export"),
        (["export"], 2, "missing argument"),
        (["import", "/nonexistent/x"], 2, "there is no file or folder 'x'"),
        (["import", "b_00000000000000000000", "--allow"], 2, "no bundle b_00000000000000000000 is in quarantine"),
        (["import", "--allow"], 2, "there is nothing to allow or discard"),
        (["import", "x.zip", "--discard"], 2, "--discard takes a bundle's id"),
        (["import", "x", "--format", "toml"], 2, "toml"),
    ],
)
def test_failures_are_one_line_with_an_exit_code(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    home = _home(tmp_path / "home")
    done = ksi(*arguments, "--home", home)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_signed_bundle_says_so(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    home = _home(tmp_path / "here", with_helper=True)
    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(private)
    file = str(tmp_path / "f.ksi.zip")
    made = ksi("export", "helper", "-o", file, "--sign", str(tmp_path / "key.pem"), "--json", "--home", home)
    assert json.loads(made.stdout)["signed"] is True
    looked = ksi("import", file, "--home", _home(tmp_path / "there"))
    assert "signed: unknown key " in looked.stdout
