"""The routing page says what the code does: its examples are run, its tables are those of the code."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, DampingConfig, Home, RetentionConfig
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, KsiError
from ksi_mcp.events.patterns import compile_pattern
from ksi_mcp.permissions import OPERATOR, ROUTING_LEVELS, agent_actor, fresh_context
from ksi_mcp.routing import conditions
from ksi_mcp.routing.conditions import ConditionError, compile_condition
from ksi_mcp.routing.governance import Quotas
from ksi_mcp.routing.joins import MAX_PARTS
from ksi_mcp.routing.mapping import compile_mapping
from ksi_mcp.routing.matching import Outcome
from ksi_mcp.routing.outbox import DEFAULT_MAX_DEPTH, Limits
from ksi_mcp.routing.rules import DRAFT_FIELDS, MAX_METADATA_CHARS, MAX_PRIORITY, MAX_TTL_S, RuleDraft
from ksi_mcp.routing.targets import MAX_TARGETS, MODES
from ksi_mcp.templates import MissingValue
from ksi_mcp.tools.catalog import ALL_TOOLS
from ksi_mcp.tools.routing import RuleWants
from ksi_mcp.tools.routing_table import MAX_CHANGES

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "routing.md").read_text("utf-8")


def _section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def _table(title: str) -> list[list[str]]:
    """The rows of a section's table, without its head; cells as they are written."""
    lines = [line for line in _section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return cells[2:]


def _codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ------------------------------------------------------------------------------------------ examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A call; what is to come of it, and under which name later ones speak of that."""

    tool: str
    given: dict[str, ast.expr]
    caller: str | None
    returns: Any
    refused: str | None
    known_as: str | None

    def filled(self, known: dict[str, Any]) -> dict[str, Any]:
        """Its arguments: literals, or parts of what earlier examples returned."""
        return {name: _value(given, known) for name, given in self.given.items()}


def _examples() -> Iterator[Example]:
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        lines = block.splitlines()
        calls = ast.parse(block).body
        for at, statement in enumerate(calls):
            assert isinstance(statement, ast.Expr | ast.Assign)
            call = statement.value
            assert isinstance(call, ast.Call)
            assert isinstance(call.func, ast.Name)
            assert call.args == []
            before = calls[at - 1].end_lineno if at else 0
            after = calls[at + 1].lineno - 1 if at + 1 < len(calls) else len(lines)
            notes = lines[before : statement.lineno - 1], lines[statement.end_lineno : after]
            said = [line.removeprefix("# as ") for line in notes[0] if line.startswith("# as ")]
            told = [line.removeprefix("# -> ") for line in notes[1] if line.startswith("# -> ")]
            wrong = [line.removeprefix("# refused: ") for line in notes[1] if line.startswith("# refused: ")]
            yield Example(
                tool=call.func.id,
                given={str(word.arg): word.value for word in call.keywords},
                caller=said[0] if said else None,
                returns=ast.literal_eval(told[0]) if told else None,
                refused=wrong[0] if wrong else None,
                known_as=ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else None,
            )


def _value(given: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(given, ast.Name):
        return known[given.id]
    if isinstance(given, ast.Subscript):
        return _value(given.value, known)[ast.literal_eval(given.slice)]
    return ast.literal_eval(given)


def _shows(said: Any, found: Any) -> bool:
    """Whether what a page shows of a result is there; `...` in a text stands for anything."""
    if isinstance(said, dict):
        return isinstance(found, dict) and all(_shows(value, found.get(key)) for key, value in said.items())
    if isinstance(said, list):
        return isinstance(found, list) and len(said) == len(found) and all(map(_shows, said, found))
    if isinstance(said, str) and "..." in said:
        return re.fullmatch(".*".join(map(re.escape, said.split("..."))), str(found), re.DOTALL) is not None
    return type(said) is type(found) and said == found


async def _said(app: App, example: Example, known: dict[str, Any]) -> dict[str, Any] | str:
    """What comes of a call: its result, or the text of its error."""
    actor = OPERATOR
    if example.caller is not None:
        agents = (await app.toolbox.call(fresh_context(OPERATOR), "agent_list", {})).data["agents"]
        actor = agent_actor(next(agent["agent"] for agent in agents if agent["name"] == example.caller))
    try:
        done = await app.toolbox.call(fresh_context(actor), example.tool, example.filled(known))
        found: dict[str, Any] | str = done.data
    except KsiError as failure:
        found = failure.text()
    async with asyncio.timeout(20):
        while await app.services.journal.read(_under_way):  # noqa: ASYNC110  what is awaited is a row
            await asyncio.sleep(0.005)
    return found


def _under_way(tx: Tx) -> bool:
    """Turns and deliveries; a join may wait for longer than the example does."""
    turns, outbox = tx.one("queues.open_turns"), tx.one("events.outbox_waiting")
    return bool(turns and turns["open"]) or bool(outbox and outbox["waiting"])


async def test_every_example_does_what_the_page_says(tmp_path: Path) -> None:
    examples = list(_examples())
    wanted = {tool.name for tool in ALL_TOOLS if tool.name.startswith("routing_")} | {"event_replay"}
    assert {each.tool for each in examples} >= wanted
    async with App(Home(root=tmp_path), AppOptions(worker="inside"), config=Config(provider="scripted")) as app:
        known: dict[str, Any] = {}
        for each in examples:
            found = await _said(app, each, known)
            if each.known_as is not None:
                known[each.known_as] = found
            if each.refused is not None:
                assert isinstance(found, str), f"{each} was not refused: {found}"
                assert each.refused in found, each
            else:
                assert not isinstance(found, str), f"{each}: {found}"
                assert each.returns is None or _shows(each.returns, found), f"{each}: {json.dumps(found, indent=1)}"


def test_what_a_page_shows_of_a_result_has_to_be_there() -> None:
    found = {"rules": [{"rule_id": "a", "target": "agent:a_1"}], "n": 1}
    assert _shows({"rules": [{"target": "agent:..."}], "n": 1}, found)
    for wrong in ({"n": True}, {"rules": []}, {"rules": [{"rule_id": "b"}]}, {"m": 1}, {"rules": [{"target": "x..."}]}):
        assert not _shows(wrong, found)


# --------------------------------------------------------------------------------------------- tables


def test_the_fields_of_a_rule_are_all_on_the_page_with_their_defaults() -> None:
    rows = {_codes(field)[0]: default for field, _, default in _table("A rule")}
    assert set(rows) == set(DRAFT_FIELDS) == set(RuleWants.model_fields)
    given = {field.name: field.default for field in fields(RuleDraft) if field.default is not MISSING}
    plain = {
        name: ast.literal_eval(rows[name].strip("`").capitalize()) for name in ("enabled", "exclusive", "modifiable")
    }
    assert plain == {name: given[name] for name in plain}
    assert int(rows["priority"]) == given["priority"]
    said = _section("A rule")
    for limit in (f"0 to {MAX_PRIORITY:,}", f"{MAX_TTL_S // 86_400} days", f"{MAX_METADATA_CHARS:,} characters"):
        assert limit in said


@pytest.mark.parametrize(("pattern", "hears", "deaf"), _table("Patterns"))
def test_a_pattern_hears_what_the_page_says(pattern: str, hears: str, deaf: str) -> None:
    compiled = compile_pattern(_codes(pattern)[0])
    assert [name for name in _codes(hears) + _codes(deaf) if compiled.matches(name)] == _codes(hears)


@pytest.mark.parametrize(("condition", "data", "outcome"), _table("Conditions"))
def test_a_condition_decides_what_the_page_says(condition: str, data: str, outcome: str) -> None:
    scope = {"event": "a:b", "data": json.loads(_codes(data)[0]), "source": "operator", "agent": None, "now": 0}
    try:
        decided = {True: "holds", False: "does not hold"}[compile_condition(_codes(condition)[0]).evaluate(scope)]
    except ConditionError:
        decided = "cannot be decided"
    assert decided == outcome


def test_the_functions_of_conditions_are_all_on_the_page() -> None:
    with pytest.raises(Invalid) as refused:
        compile_condition("nothing(1)")
    listed = set(str(refused.value.hint).removeprefix("there are ").split(", "))
    (named,) = [code for code in _codes(_section("Conditions")) if code.startswith("len ")]
    assert set(named.split()) == listed


@pytest.mark.parametrize(("mapping", "data", "result"), _table("Mapping"))
def test_a_mapping_makes_what_the_page_says(mapping: str, data: str, result: str) -> None:
    given = json.loads(_codes(data)[0])
    compiled = compile_mapping(json.loads(_codes(mapping)[0]))
    scope = {"event": "a:b", "data": given, "source": "operator", "agent": None, "now": 0, "$": given}
    if result == "fails":
        with pytest.raises(MissingValue):
            compiled.apply(scope)
    else:
        assert compiled.apply(scope) == json.loads(_codes(result)[0])


def test_modes_levels_and_outcomes_on_the_page_are_those_of_the_code() -> None:
    shown = [json.loads(code.replace("...", "")) for row in _table("Targets") for code in _codes(row[0])]
    assert tuple(mode for target in shown if isinstance(target, dict) for mode in target) == MODES
    assert tuple(_codes(level)[0] for level, _ in _table("Who may change what")) == ROUTING_LEVELS
    assert {"fires", *_codes(_section("Why did it go there?"))} >= set(get_args(Outcome))


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    damping = DampingConfig()
    assert [int(limit.replace(",", "")) for _, limit, _ in _table("Loops and limits")] == [
        Limits().max_hops,
        DEFAULT_MAX_DEPTH,
        Limits().deliveries_per_root,
        Quotas().per_agent,
        Quotas().total,
        MAX_TARGETS,
        MAX_PARTS,
        damping.changes,
        damping.undone,
    ]
    assert (damping.window_s, damping.frozen_s) == (60, 60)
    assert f"up to {MAX_CHANGES} changes" in _section("Several changes at once")
    assert f"{RetentionConfig().rule_versions:,} versions" in _section("Versions and rollback").replace("\n", " ")
    assert f"{conditions.MAX_CHARS:,} characters and {conditions.MAX_NODES} parts" in _section("Conditions")


def test_the_events_that_the_page_names_are_on_the_events_page() -> None:
    listed = (DOCS / "events.md").read_text("utf-8")
    named = set(re.findall(r"`(routing:[a-z_]+)`", PAGE))
    assert len(named) > 5
    assert [name for name in sorted(named) if f"| `{name}` |" not in listed] == []
