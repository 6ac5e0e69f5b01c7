"""Files of other programs become compositions: what was mapped, kept and not read is told, and no right comes along."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.compositions.drafts import agents_of
from ksi_mcp.compositions.importers import reading
from ksi_mcp.compositions.importers.model import Imported, Unread, slug
from ksi_mcp.compositions.importers.reading import Harvest, read_source
from ksi_mcp.compositions.model import parse_composition
from ksi_mcp.compositions.reading import Problems
from ksi_mcp.errors import Invalid, NotFound

SAMPLES = Path(__file__).parent / "importers"


def _by_name(harvest: Harvest) -> dict[str, Imported]:
    return {str(each.document["name"]): each for each in harvest.imported}


def _unread(harvest: Harvest) -> dict[str, Unread]:
    return {each.path.rsplit("/", 1)[-1]: each for each in harvest.unread}


def _one(tmp_path: Path, name: str, text: str, **more: Any) -> Harvest:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    return read_source(tmp_path, **more)


@pytest.mark.parametrize("folder", ["ksi", "llm_orc", "claude"])
def test_whatever_is_imported_is_a_composition_and_survives_being_written(folder: str) -> None:
    harvest = read_source(SAMPLES / folder)
    assert len(harvest.imported) >= 5
    for each in harvest.imported:
        composition = parse_composition(each.document, what=each.path)
        assert yamlio.safe_load(yamlio.dump(each.document), what=each.path) == composition.document


# -------------------------------------------------------------------------------------------------- KSI


def test_a_broken_file_is_reported_with_its_line_and_the_rest_goes_on() -> None:
    harvest = read_source(SAMPLES / "ksi")
    assert len(harvest.imported) == 11
    (torn,) = harvest.unread
    assert (torn.path, torn.line in (4, 5)) == ("components/core/torn.md", True)
    assert harvest.skipped == ("README.md",)


def test_a_pattern_of_ksi_keeps_what_has_no_effect_here() -> None:
    debate = _by_name(read_source(SAMPLES / "ksi"))["two_sided_debate"]
    assert debate.document["coordination"]["turn_taking"]["max_silence"] == 2
    assert debate.document["created"] == "2025-03-04"
    assert debate.document["routing"]["rules"][2]["to"] == "*"
    assert debate.document["agents"]["for_side"]["capabilities"] == ["base", "messaging"]
    assert debate.document["agents"]["for_side"]["ksi_prompt_template"] == "conversation_debate"
    assert "coordination: kept" in debate.unused
    assert any("broadcast" in text for text in debate.mapped)


def test_expressions_of_ksi_stay_as_they_are_written() -> None:
    search = _by_name(read_source(SAMPLES / "ksi"))["adaptive_search"].document
    assert "{{topic|default: anything}}" in search["agents"]["orchestrator"]["vars"]["prompt"]
    assert search["transformers"][0]["mapping"]["id"] == "{{event.id|data.id|none}}"
    assert search["learnings"][0]["confidence"] == "0.7"


def test_security_settings_of_ksi_give_nothing_here() -> None:
    admin = _by_name(read_source(SAMPLES / "ksi"))["system_admin"]
    assert "capabilities" not in admin.document
    assert admin.document["ksi_capabilities"] == ["operator", "root", "all"]
    assert admin.document["permissions"]["profile"] == "unrestricted"
    assert any(text.startswith("security_profile: kept") for text in admin.unused)


def test_a_dependency_becomes_text_and_never_a_setting() -> None:
    analyst = _by_name(read_source(SAMPLES / "ksi"))["data_analyst"]
    assert analyst.document["components"] == ["base_agent", "plain_words"]
    assert analyst.document["dependencies"] == ["core/base_agent", "core/plain_words.md"]
    assert analyst.document["capabilities"] == ["base", "decisions"]
    assert analyst.document["content"] == "You are a senior data analyst."


def test_names_types_and_pages_without_front_matter_find_their_place() -> None:
    found = _by_name(read_source(SAMPLES / "ksi"))
    assert parse_composition(found["routing_words"].document, what="x").type == "component"
    assert found["events_as_tools"].document["component_type"] == "behavior"
    assert found["bare_rules"].document["type"] == "component"
    assert {"first_of_two", "second_of_two"} <= found.keys()


def test_a_collection_deep_in_a_checkout_is_found_with_its_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / ".git/refs/heads").mkdir(parents=True)
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git/refs/heads/main").write_text(f"{commit}\n")
    harvest = _one(tmp_path, "var/lib/compositions/components/core/kind.md", "Be kind.")
    assert harvest.source == f"{tmp_path.name} at commit {commit}"
    assert harvest.imported[0].document == {"name": "kind", "type": "component", "content": "Be kind."}


def test_a_file_of_our_own_comes_as_it_is_with_its_comments(tmp_path: Path) -> None:
    text = "# mine\nname: own\ntype: agent\nprompt: Hi. # here\n"
    (own,) = _one(tmp_path, "own.yaml", text).imported
    assert (own.format, own.text, own.mapped) == ("ksi_mcp", text, ())


# ---------------------------------------------------------------------------------------------- llm-orc


def test_an_ensemble_becomes_agents_that_wait_for_each_other() -> None:
    review = _by_name(read_source(SAMPLES / "llm_orc"))["code-review"].document
    assert review["type"] == "ensemble"
    assert list(review["agents"]) == ["security-reviewer", "performance-reviewer", "senior-reviewer"]
    assert review["agents"]["senior-reviewer"]["depends_on"] == ["security-reviewer", "performance-reviewer"]
    assert review["agents"]["security-reviewer"]["timeout_s"] == 60
    problems = Problems()
    drafts = agents_of(review, problems)
    assert (drafts[0].model, drafts[0].prompt, problems.found) == ("default-claude", "You look for holes.", [])


def test_a_coordinator_is_an_agent_after_all_others() -> None:
    board = _by_name(read_source(SAMPLES / "llm_orc"))["advisory-board"]
    chair = board.document["agents"]["coordinator"]
    assert chair["depends_on"] == ["investor", "architect", "marketer"]
    assert chair["prompt"] == "You chair the board.\n\nSum up in three points."
    assert board.document["agents"]["architect"]["provider"] == "openai_compatible@ollama"
    assert "provider" not in board.document["agents"]["marketer"]
    assert board.document["agents"]["marketer"]["llm_orc"] == {"provider": "google-gemini"}
    assert board.document["default_task"] == "Should the startup raise money?\n"
    assert "default_task: kept" in board.unused


def test_scripts_and_nested_ensembles_are_kept_and_said_to_wait() -> None:
    routing = _by_name(read_source(SAMPLES / "llm_orc"))["routing"]
    assert routing.document["agents"]["topic-analyst"]["fan_out"] is True
    assert routing.document["agents"]["synthesizer"]["depends_on"] == ["topic-analyst"]
    assert "agents.classifier.script: kept, not carried out by this version" in routing.unused


def test_ensembles_that_cannot_be_are_reported_and_spoil_no_other() -> None:
    harvest = read_source(SAMPLES / "llm_orc")
    assert _unread(harvest)["lost-dependency.yaml"].reason == "agents.a depends on 'nobody', which is not there"
    assert _unread(harvest)["twice.yaml"].reason == "two agents are named 'a'"
    assert _by_name(harvest).keys() == {"code-review", "advisory-board", "routing", "nested", "neural_mind_groe_2"}
    assert harvest.skipped == (".llm-orc/config.yaml",)


# --------------------------------------------------------------------------------------- .claude/agents


def test_a_subagent_becomes_a_profile_whose_tools_are_a_note() -> None:
    reviewer = _by_name(read_source(SAMPLES / "claude"))["code-reviewer"]
    assert reviewer.document["type"] == "agent"
    assert reviewer.document["model"] == "sonnet"
    assert reviewer.document["prompt"].startswith("You are a senior code reviewer.")
    assert reviewer.document["metadata"] == {"claude_agent": {"tools": "Read, Grep, Glob, Bash"}}
    assert "capabilities" not in reviewer.document
    assert reviewer.unused == ("tools: Read, Grep, Glob, Bash (tools of another program, no capabilities here)",)


def test_a_subagent_asks_for_nothing_whatever_it_says() -> None:
    grabber = _by_name(read_source(SAMPLES / "claude"))["grabber"]
    assert grabber.document.keys() == {"name", "type", "description", "prompt", "metadata"}
    designer = _by_name(read_source(SAMPLES / "claude"))["api_designer"]
    assert designer.document["metadata"]["claude_agent"]["hooks"] == {"Stop": [{"command": "rm -rf /"}]}
    assert "mcp_servers" not in designer.document
    assert "mcpServers" not in designer.document


def test_the_model_that_is_inherited_is_the_default_one() -> None:
    debugger = _by_name(read_source(SAMPLES / "claude"))["debugger"]
    assert "model" not in debugger.document
    assert "model: 'inherit', the agent gets the default model" in debugger.unused


def test_a_description_with_colons_is_read_as_that_program_reads_it() -> None:
    writer = _by_name(read_source(SAMPLES / "claude"))["writer"]
    assert writer.document["description"] == 'Writes documentation. Examples: "user asks for docs"'
    assert writer.document["prompt"].startswith("You write for people.")


def test_subagents_that_cannot_be_are_reported() -> None:
    unread = _unread(read_source(SAMPLES / "claude"))
    assert unread["empty.md"].reason == "there are no instructions below the front matter"
    assert unread["torn.md"].line in (4, 5)


# ------------------------------------------------------------------------------------------- any of them


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("name: secret\ntype: agent\nprompt: p\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.yaml").symlink_to(secret)
    (folder / "ok.yaml").write_text("name: ok\ntype: agent\nprompt: p\n")
    harvest = read_source(folder)
    assert [each.document["name"] for each in harvest.imported] == ["ok"]
    assert harvest.unread == (Unread(path="link.yaml", reason="a symbolic link: not followed"),)
    (tmp_path / "other").symlink_to(folder)
    with pytest.raises(Invalid, match="symbolic link"):
        read_source(tmp_path / "other")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert read_source(tmp_path).unread == (Unread(path="pipe.yaml", reason="not a regular file"),)


def test_what_asks_for_too_much_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "ok.yaml").write_text("name: ok\ntype: agent\nprompt: p\n")
    harvest = _one(tmp_path, "grab.yaml", "name: grab\ntype: agent\nprompt: p\nrouting_level: everything\n")
    assert [each.document["name"] for each in harvest.imported] == ["ok"]
    assert "asks for what no composition may have: routing_level" in harvest.unread[0].reason


def test_of_two_files_with_one_name_the_first_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: same\ntype: agent\nprompt: 1\n")
    (tmp_path / "b.yaml").write_text("name: same\ntype: agent\nprompt: 2\n")
    harvest = read_source(tmp_path)
    assert [each.path for each in harvest.imported] == ["a.yaml"]
    assert harvest.unread[0].reason == "the name 'same' is already that of a.yaml"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: x\ntype: !!python/object/apply:os.system [id]\n", "tag"),
        (
            "a0: &a0 [x, x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n}, ' * 9}]\n" for n in range(9)),
            "aliases expand",
        ),
        ("name: x\ntype: agent\nname: y\n", "stands twice"),
        ("name: ../../etc\ntype: agent\nprompt: p\n", None),
        ("name: '..'\ntype: agent\nprompt: p\n", None),
        ("[" * 400, "nested deeper"),
    ],
)
def test_hostile_files_are_refused_or_made_harmless(tmp_path: Path, text: str, reason: str | None) -> None:
    harvest = _one(tmp_path, "f.yaml", text)
    for each in harvest.imported:
        assert "/" not in each.document["name"]
        assert ".." not in each.document["name"]
    if reason is not None:
        assert reason in harvest.unread[0].reason


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_FILES", 2)
    for number in range(3):
        (tmp_path / f"{number}.yaml").write_text("name: x\n")
    with pytest.raises(Invalid, match="more than 2 files"):
        read_source(tmp_path)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(NotFound, match="no file or folder 'nothing'"):
        read_source(Path("/nonexistent/nothing"))


def test_progress_is_told_after_each_file() -> None:
    told: list[tuple[int, int]] = []
    read_source(SAMPLES / "llm_orc", step=lambda done, total: told.append((done, total)))
    assert told[-1] == (8, 8)
    assert [done for done, _ in told] == list(range(1, 9))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Code Reviewer!", "code_reviewer"),
        ("../../x", "x"),
        ("Größe", "groe"),
        ("", None),
        ("...", None),
        (7, "7"),
        (True, None),
        (None, None),
        ("a" * 500, "a" * 100),
    ],
)
def test_slug(theirs: object, ours: str | None) -> None:
    assert slug(theirs) == ours
