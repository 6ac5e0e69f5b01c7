"""What a shell offers for a parameter: its words, or names from the data folder. Looks only, and fails in silence."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import typer

from ksi_mcp.cli.twin.arguments import Parameter
from ksi_mcp.cli.twin.calling import TOKEN_ENV, URL_ENV
from ksi_mcp.config import LOCAL, Home, is_trusted, user_home
from ksi_mcp.db.glance import glance
from ksi_mcp.tools.catalog import ALL_TOOLS
from ksi_mcp.tools.tool import Tool

TOOLS: Final = "tools"
"""The kind of names that no data folder is needed for."""
_MOST: Final = 50
_SAFE: Final = re.compile(r"[A-Za-z0-9_./@-]{1,120}")
"""A shell puts what it is offered on the command line as it stands: nothing in there may mean anything to it."""

_STATEMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "accounts": ("cli.run_ids", "cli.agent_names"),
    "agents": ("cli.agent_names",),
    "checkpoints": ("cli.checkpoint_ids",),
    "compositions": ("cli.composition_names",),
    "patterns": ("cli.pattern_names",),
    "rules": ("cli.rule_ids",),
    "runs": ("cli.run_ids",),
    "turns": ("cli.turn_ids",),
}
_KINDS: Final[Mapping[str, str]] = {
    "account": "accounts",
    "agent": "agents",
    "agents": "agents",
    "checkpoint": "checkpoints",
    "composition": "compositions",
    "orchestration": "runs",
    "rule_id": "rules",
    "source_agent": "agents",
    "suite": "compositions",
    "turn": "turns",
    "turns": "turns",
}
_KINDS_OF: Final[Mapping[tuple[str, str], str]] = {
    ("agent_spawn", "parent"): "agents",
    ("orchestration_start", "pattern"): "patterns",
    ("turn_move", "source"): "agents",
    ("turn_move", "target"): "agents",
    **{
        (tool, name): "compositions"
        for tool, names in {
            "composition_add_learning": ("name",),
            "composition_combine": ("a", "b"),
            "composition_compare": ("a", "b"),
            "composition_diff": ("a", "b"),
            "composition_discover": ("descends_from",),
            "composition_evaluate": ("name",),
            "composition_export": ("names",),
            "composition_fork": ("parent",),
            "composition_get": ("name",),
            "composition_lineage": ("name",),
            "composition_merge": ("source", "target"),
            "composition_promote": ("name", "over"),
            "composition_track_decision": ("pattern",),
            "composition_update": ("name",),
            "decision_import": ("pattern",),
            "decision_query": ("pattern",),
            "orchestration_list": ("pattern",),
        }.items()
        for name in names
    },
}

Completer = Callable[..., list[str]]
"""Of the text so far, and of the options before it if it needs them."""


def completer_of(tool: Tool, parameter: Parameter) -> Completer | None:
    """What is offered for a parameter; None: nothing, and files."""
    kind = _KINDS_OF.get((tool.name, parameter.name), _KINDS.get(parameter.name))

    def complete(incomplete: str) -> list[str]:
        return [each for each in parameter.choices if each.startswith(incomplete)]

    def look_up(ctx: typer.Context, incomplete: str) -> list[str]:
        given = ctx.params.get("home")
        return names(kind or "", incomplete, given if isinstance(given, str) else None)

    def tools(incomplete: str) -> list[str]:
        return names(TOOLS, incomplete, None)

    if parameter.choices:
        return complete
    if tool.name == "help":
        return tools
    return None if kind is None else look_up


def names(kind: str, prefix: str, home: str | None) -> list[str]:
    """Names of that kind in the data folder that begin so; none if there is no folder, or this is an agent.

    Tools are known without one.
    """
    if kind == TOOLS:
        return [each.name for each in ALL_TOOLS if each.name.startswith(prefix)]
    if TOKEN_ENV in os.environ or URL_ENV in os.environ:
        return []
    database = Home(root=_folder(home)).database
    if not database.is_file():
        return []
    found = ["global"] if kind == "accounts" and "global".startswith(prefix) else []
    for statement in _STATEMENTS[kind]:
        found += glance(database, statement, prefix=prefix, limit=_MOST)
    return [each for each in found if _SAFE.fullmatch(each) and not each.startswith("-")][:_MOST]


def _folder(given: str | None) -> Path:
    """The data folder, which is not made if it is not there."""
    if given or os.environ.get("KSI_HOME"):
        return Path(given or os.environ["KSI_HOME"]).expanduser()
    here = Path.cwd() / LOCAL
    return here if is_trusted(here) else user_home()
