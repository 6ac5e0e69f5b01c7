"""The stories of the examples page happen as it says: each is run against a real application, with its own script."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.db import Tx
from ksi_mcp.errors import KsiError
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.tools.catalog import ALL_TOOLS

PAGE = (Path(__file__).parent.parent / "docs" / "examples.md").read_text("utf-8")
STORIES = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)


def _blocks(text: str, info: str) -> list[str]:
    return re.findall(rf"^```{info}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _story(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A call, what the page shows of its result or refusal, and the name under which later calls speak of it."""

    tool: str
    given: dict[str, ast.expr]
    shown: list[Any]
    refused: str | None
    known_as: str | None


def _steps(block: str) -> Iterator[Step]:
    lines, calls = block.splitlines(), ast.parse(block).body
    for at, statement in enumerate(calls):
        assert isinstance(statement, ast.Expr | ast.Assign)
        call = statement.value
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        assert call.args == []
        after = lines[statement.end_lineno : calls[at + 1].lineno - 1 if at + 1 < len(calls) else len(lines)]
        notes = [line for line in after if line.startswith("# ")]
        yield Step(
            tool=call.func.id,
            given={str(word.arg): word.value for word in call.keywords},
            shown=[ast.literal_eval(note.removeprefix("# -> ")) for note in notes if note.startswith("# -> ")],
            refused=next((note.removeprefix("# refused: ") for note in notes if note.startswith("# refused: ")), None),
            known_as=ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else None,
        )


def _value(given: ast.expr, known: dict[str, Any]) -> Any:
    match given:
        case ast.Name():
            return known[given.id]
        case ast.Subscript():
            return _value(given.value, known)[ast.literal_eval(given.slice)]
        case ast.List():
            return [_value(each, known) for each in given.elts]
        case ast.Dict():
            names = [ast.literal_eval(key) for key in given.keys if key is not None]
            return dict(zip(names, (_value(each, known) for each in given.values), strict=True))
    return ast.literal_eval(given)


def _missing(said: Any, found: Any, where: str = "") -> list[str]:
    """What a page shows of a result and is not there; `...` in a text stands for anything."""
    if isinstance(said, dict) and isinstance(found, dict):
        return [wrong for key, value in said.items() for wrong in _missing(value, found.get(key), f"{where}.{key}")]
    if isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        pairs = enumerate(zip(said, found, strict=True))
        return [wrong for at, (one, other) in pairs for wrong in _missing(one, other, f"{where}[{at}]")]
    if isinstance(said, str) and "..." in said and isinstance(found, str):
        fits = re.fullmatch(".*".join(map(re.escape, said.split("..."))), found, re.DOTALL) is not None
    else:
        fits = type(said) is type(found) and said == found
    return [] if fits else [f"{where or 'it'}: the page says {said!r}, there is {found!r}"]


def _under_way(tx: Tx) -> bool:
    """Turns that could go on, and deliveries."""
    turns, outbox = tx.one("queues.open_turns"), tx.one("events.outbox_waiting")
    return bool(turns and turns["open"]) or bool(outbox and outbox["waiting"])


async def _at_rest(app: App) -> None:
    async with asyncio.timeout(20):
        while await app.services.journal.read(_under_way):  # noqa: ASYNC110  what is awaited is a row
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("title", STORIES)
async def test_a_story_happens_as_the_page_says(title: str, tmp_path: Path) -> None:
    story = _story(title)
    (config,) = _blocks(PAGE, "yaml config")
    (script,) = _blocks(story, "yaml script")
    (tmp_path / "script.yaml").write_text(script)
    chosen = Config.model_validate(yamlio.safe_load(config, what="config.yaml"))
    known: dict[str, Any] = {}
    async with App(Home(root=tmp_path), AppOptions(worker="inside"), config=chosen) as app:
        for step in (step for block in _blocks(story, "python calls") for step in _steps(block)):
            given = {name: _value(value, known) for name, value in step.given.items()}
            try:
                found: Any = (await app.toolbox.call(fresh_context(OPERATOR), step.tool, given)).data
            except KsiError as failure:
                found = failure.text()
            if step.known_as is not None:
                known[step.known_as] = found
            if step.refused is not None:
                assert isinstance(found, str), f"{step.tool} was not refused: {found}"
                assert step.refused in found
                continue
            assert not isinstance(found, str), f"{step.tool}: {found}"
            wrong = [each for shown in step.shown for each in _missing(shown, found)]
            assert not wrong, f"{step.tool}: {wrong} in {json.dumps(found, indent=1)}"
            if step.tool in ("orchestration_start", "event_wait", "orchestration_control"):
                await _at_rest(app)


def test_every_call_on_the_page_shows_what_comes_of_it_or_gives_it_a_name() -> None:
    steps = [step for block in _blocks(PAGE, "python calls") for step in _steps(block)]
    assert len(steps) > 30
    assert [step.tool for step in steps if not (step.shown or step.refused or step.known_as)] == []
    assert {step.tool for step in steps} <= {tool.name for tool in ALL_TOOLS}


def test_what_is_shown_and_is_not_there_is_found() -> None:
    found = {"turns": [{"text": "ready"}], "n": 1}
    assert _missing({"turns": [{"text": "re..."}], "n": 1}, found) == []
    for wrong in ({"n": True}, {"turns": []}, {"turns": [{"text": "x..."}]}, {"m": 1}):
        assert len(_missing(wrong, found)) == 1
