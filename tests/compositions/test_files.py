"""Nothing outside a layer is read or written, and a file is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ksi_mcp.compositions import files
from ksi_mcp.errors import Conflict, Invalid, NotFound


def test_a_scan_finds_compositions_and_nothing_else(tmp_path: Path) -> None:
    for path in (
        "a.yaml",
        "sub/b.yml",
        "sub/deep/c.md",
        "notes.txt",
        ".hidden.yaml",
        ".git/x.yaml",
        "x_decisions.yaml",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("name: x")
    (tmp_path / "decisions").mkdir()
    (tmp_path / "decisions" / "y.yaml").write_text("- id: d_1")
    found, refused = files.scan(tmp_path)
    assert [file.path for file in found] == ["a.yaml", "sub/b.yml", "sub/deep/c.md"]
    assert refused == []
    assert files.scan(tmp_path / "gone") == ([], [])


def test_links_that_lead_out_are_refused_and_links_inside_are_fine(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = tmp_path / "secret.yaml"
    outside.write_text("name: secret")
    (root / "real.yaml").write_text("name: real")
    (root / "inside.yaml").symlink_to("real.yaml")
    (root / "out.yaml").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "broken.yaml").symlink_to("nowhere.yaml")
    found, refused = files.scan(root)
    assert [file.path for file in found] == ["inside.yaml", "real.yaml"]
    assert [path for path, _ in refused] == ["broken.yaml", "out.yaml"]
    for path in ("out.yaml", "folder/secret.yaml", "../secret.yaml", str(outside), "a/../../secret.yaml", "", "a\0b"):
        with pytest.raises(Invalid):
            files.read_text(root, path)
        with pytest.raises(Invalid):
            files.create_file(root, path, "x")
    assert outside.read_text() == "name: secret"
    assert files.read_text(root, "inside.yaml") == "name: real"


def test_a_pipe_and_a_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    found, refused = files.scan(tmp_path)
    assert found == []
    assert [path for path, _ in refused] == ["pipe.yaml"]
    for path in ("pipe.yaml", "folder.yaml"):
        with pytest.raises(Invalid):
            files.read_text(tmp_path, path)


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"x" * 10_000_000)
    (tmp_path / "binary.yaml").write_bytes(b"name: x\n\xff\xfe")
    with pytest.raises(Invalid, match="larger than"):
        files.read_text(tmp_path, "large.yaml")
    with pytest.raises(Invalid, match="line 2"):
        files.read_text(tmp_path, "binary.yaml")
    with pytest.raises(NotFound):
        files.read_text(tmp_path, "gone.yaml")


def test_a_file_is_created_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    files.create_file(root, "agents/x.yaml", "name: x\n")
    with pytest.raises(Conflict):
        files.create_file(root, "agents/x.yaml", "name: other\n")
    assert [path.name for path in root.rglob("*")] == ["agents", "x.yaml"]
    assert (root / "agents/x.yaml").read_text() == "name: x\n"


def test_a_text_beyond_the_limit_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="limit"):
        files.create_file(tmp_path, "x.yaml", "x" * 1_000_001)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links_still_creates_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_args: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "link", no_links)
    files.create_file(tmp_path, "x.yaml", "one")
    with pytest.raises(Conflict):
        files.create_file(tmp_path, "x.yaml", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]
    assert (tmp_path / "x.yaml").read_text() == "one"


def test_markdown_with_front_matter_is_a_composition_with_its_body_as_text(tmp_path: Path) -> None:
    (tmp_path / "helper.md").write_text("---\ntype: agent\ntags: [a]\n---\n\n# Helper\n\n---\nYou help.\n")
    (tmp_path / "crlf.md").write_bytes(b"---\r\nname: crlf\r\ntype: component\r\n---\r\nBody\r\n")
    (tmp_path / "plain.md").write_text("# Just notes\n")
    helper = files.read_composition(tmp_path, "helper.md")
    assert helper is not None
    assert (helper.name, helper.type, helper.document["prompt"]) == ("helper", "agent", "# Helper\n\n---\nYou help.")
    crlf = files.read_composition(tmp_path, "crlf.md")
    assert crlf is not None
    assert crlf.document["content"] == "Body"
    (tmp_path / "README.md").write_text("# Just notes\n")
    assert files.read_composition(tmp_path, "README.md") is None
    with pytest.raises(Invalid, match="line 1: there is no front matter"):
        files.read_composition(tmp_path, "plain.md")


def test_markdown_without_front_matter_is_what_its_folder_says(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/careful.md").write_text("\nYou are careful.\n")
    careful = files.read_composition(tmp_path, "agents/careful.md")
    assert careful is not None
    assert careful.document == {"name": "careful", "type": "agent", "prompt": "You are careful."}


def test_what_the_front_matter_says_is_not_replaced_by_the_text_below_it(tmp_path: Path) -> None:
    (tmp_path / "both.md").write_text("---\ntype: agent\nprompt: from above\n---\nfrom below\n")
    both = files.read_composition(tmp_path, "both.md")
    assert both is not None
    assert (both.document["prompt"], both.document["body"]) == ("from above", "from below")
    (tmp_path / "three.md").write_text("---\ntype: agent\nprompt: a\nbody: b\n---\nc\n")
    with pytest.raises(Invalid, match="'body'"):
        files.read_composition(tmp_path, "three.md")
    (tmp_path / "open.md").write_text("\n---\ntype: agent\nno end\n")
    with pytest.raises(Invalid, match="begins at line 2 has no end"):
        files.read_composition(tmp_path, "open.md")


def test_an_error_names_the_line_of_the_file_not_of_the_front_matter(tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_text("---\nname: x\nname: y\n---\nbody\n")
    with pytest.raises(Invalid, match="line 3"):
        files.read_composition(tmp_path, "bad.md")


def test_the_name_of_a_decision_log_is_kept_for_decision_logs() -> None:
    assert files.path_for("agent", "judge") == "agents/judge.yaml"
    with pytest.raises(Invalid, match="decision log"):
        files.path_for("component", "x_decisions")
