"""The page of tools and the table of settings are those of the code: `scripts/generate-docs` writes them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from ksi_mcp.cli.doctor import list_settings
from ksi_mcp.cli.twin.parameter_words import WORDS
from ksi_mcp.config import Config
from ksi_mcp.tools.catalog import ALL_TOOLS, DEFAULT_TOOLS
from ksi_mcp.tools.tool import Tool

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tools.md").read_text("utf-8")


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("scripts.generated_docs")


def _section(tool: Tool) -> str:
    return PAGE.split(f"\n### {tool.name}\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]


def test_the_pages_are_what_the_code_says(generated: ModuleType) -> None:
    late = [page.name for page in generated.outdated()]
    assert not late, f"run scripts/generate-docs and commit what it wrote: {late} differ from the declarations"


def test_the_same_code_gives_the_same_page(generated: ModuleType) -> None:
    assert generated.tools_page() == generated.tools_page()


def test_every_tool_is_in_the_index_and_has_a_section() -> None:
    index = PAGE.split("## Index\n", 1)[1].split("\n## ", 1)[0]
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(#\w+\)", index, re.MULTILINE)) == sorted(t.name for t in ALL_TOOLS)
    assert set(re.findall(r"^\| \[`(\w+)`\].*listed \|$", index, re.MULTILINE)) == set(DEFAULT_TOOLS)


@pytest.mark.parametrize("tool", ALL_TOOLS, ids=lambda tool: tool.name)
def test_a_section_has_each_parameter_and_other_name(tool: Tool) -> None:
    section = _section(tool)
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(tool.schema().get("properties", {}))
    assert all(f"`{other}` for `{ours}`" in section for other, ours in tool.aliases.items())
    assert all(f"`{name}`" in section for name in (tool.command, *tool.commands, tool.needs))


def test_every_parameter_has_words_and_no_words_are_left_over(generated: ModuleType) -> None:
    words: dict[str, str] = WORDS
    bare, used = [], set()
    for tool in ALL_TOOLS:
        schema = tool.model().model_json_schema()
        owners = {tool.name: schema.get("properties", {})}
        owners |= {name: shape.get("properties", {}) for name, shape in schema.get("$defs", {}).items()}
        for owner, parameters in owners.items():
            for name, given in parameters.items():
                if "description" in given:
                    continue
                used |= {f"{owner}.{name}"} & words.keys() or {name}
                bounded = "; ".join(generated._bounds(given))
                if not generated.words_for(owner, name, given) and not bounded:
                    bare.append(f"{owner}.{name}")
    assert not bare, f"describe them where they are declared, or in ksi_mcp/cli/twin/parameter_words.py: {bare}"
    assert not words.keys() - used, f"nothing needs these words any more: {sorted(words.keys() - used)}"


def test_every_setting_that_doctor_lists_is_in_the_table(generated: ModuleType) -> None:
    listed = set(re.findall(r"^\| `([\w.]+)` \|", generated.settings_table(), re.MULTILINE))
    assert {each["key"] for each in list_settings(Config)} <= listed
    assert all(key.startswith("mcp_servers.NAME.") for key in listed - {each["key"] for each in list_settings(Config)})
