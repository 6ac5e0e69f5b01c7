"""What is said of the tools beforehand is what their modules say, and a start loads none of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ksi_mcp.tools import bodies, catalog
from ksi_mcp.tools.tool import Elsewhere

PROJECT = Path(__file__).parents[2]


def test_the_declarations_are_those_of_the_modules():
    stored = Path(catalog.__file__).with_name("declared.json").read_text("utf-8")
    assert stored == bodies.declarations(), "a tool has changed: run scripts/declare-tools"


def test_every_tool_finds_its_body():
    assert [tool.name for tool in catalog.ALL_TOOLS] == [tool.name for tool in bodies.WRITTEN]
    for tool, written in zip(catalog.ALL_TOOLS, bodies.WRITTEN, strict=True):
        assert isinstance(tool.body, Elsewhere)
        assert tool.body.tool() is written
        assert tool.model() is written.model()


@pytest.mark.parametrize("module", ["ksi_mcp.transports.stdio", "ksi_mcp.completions.worker"])
def test_a_start_loads_neither_the_bodies_nor_what_only_they_need(module):
    code = f"import sys, ksi_mcp.app, {module}; print(*(name for name in sys.modules if name.startswith('ksi_mcp')))"
    environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    loaded = set(done.stdout.split())
    assert "ksi_mcp.tools.catalog" in loaded
    lazy = ("tools.agents", "tools.federation", "tools.evaluating", "tools.routing_table", "tools.composition_changes")
    pure = ("compositions.federation", "compositions.importers.reading", "compositions.merge", "routing.graph")
    assert {f"ksi_mcp.{name}" for name in (*lazy, *pure)} & loaded == set()
