"""An evaluation: cases with an input and what its answer must be like, put to a pattern or a profile, and counted.

Every run of a case is a run like any other, with its agents, account and record. Here is what cases are, and the rows
that say which runs were made of them; who starts and judges the runs is the tool.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.completions.expect import Expect, parse_expect, problems_of
from ksi_mcp.compositions.model import name_problem, shorten
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.orchestrations.model import Ending
from ksi_mcp.queues.model import Turn

MAX_CASES: Final = 200
MAX_REPEATS: Final = 100
MAX_RUNS: Final = 2_000
MAX_INPUT_CHARS: Final = 100_000
MAX_WEIGHT: Final = 1e6
_MAX_PROBLEMS: Final = 5

PASSED, FAILED, UNJUDGED = "passed", "failed", "not judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case. `weight` is its part of the whole score, `repeats` how often it is run."""

    name: str
    input: str
    expect: Expect
    weight: float
    repeats: int
    vars: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A pattern or profile under evaluation; `suite` is `name@hash` of the cases."""

    evaluation_id: str
    name: str
    hash: str
    suite: str
    repeats: int | None
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRun:
    """A run of a case. `problems` is None until its answer was looked at; `outcome` is of its record."""

    run_id: str
    case_name: str
    turn_id: str
    problems: tuple[str, ...] | None
    outcome: str | None


def parse_cases(document: Mapping[str, Any], *, what: str, repeats: int | None = None) -> list[Case]:
    """The cases of an evaluation composition; `repeats` overrides theirs.

    Raises:
        Invalid: with the path of what is wrong.
    """
    given = document.get("cases")
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_CASES:
        raise Invalid(
            f"{what}: cases must be a list of 1 to {MAX_CASES}",
            hint="each is {name?, input, expect, weight?, runs?, vars?}",
        )
    usual = _whole(document.get("runs", 1), f"{what}: runs")
    cases = [_case(each, f"{what}: cases.{place}", place, usual, repeats) for place, each in enumerate(given)]
    if twice := [name for name, count in Counter(case.name for case in cases).items() if count > 1]:
        raise Invalid(f"{what}: two cases are named {twice[0]!r}", hint="give each a name of its own")
    if (total := sum(case.repeats for case in cases)) > MAX_RUNS:
        raise Invalid(f"{what}: that is {total:,} runs, the limit is {MAX_RUNS:,}", hint="fewer runs of each case")
    return cases


def plan(cases: Sequence[Case], made: Mapping[str, int]) -> Iterator[Case]:
    """The runs still to be made, each case's first run before any second: what is cut short is still even."""
    for turn in range(max(case.repeats for case in cases)):
        for case in cases:
            if made.get(case.name, 0) <= turn < case.repeats:
                yield case


def judged(case: Case, turn: Turn) -> tuple[Ending, list[str]]:
    """How a run ends whose turn has ended, and what of its answer was not as expected.

    What the budget, the provider or somebody's cancelling kept from answering is no failure of what is evaluated: it
    ends without a verdict.
    """
    if turn.state == "cancelled" or turn.error_class in ("infra", "budget"):
        problem = turn.error or f"the turn was {turn.state}"
        return Ending(state="stopped", outcome=UNJUDGED, summary=problem[:500]), [problem[:200]]
    problems = problems_of(case.expect, turn.result or "") if turn.state == "done" else [turn.error or turn.state]
    passed = not problems
    ending = Ending(
        state="completed",
        outcome=PASSED if passed else FAILED,
        score=float(passed),
        metrics={"success": passed},
    )
    return ending, [problem[:200] for problem in problems[:_MAX_PROBLEMS]]


def insert(tx: Tx, made: Evaluation) -> None:
    """Begin an evaluation; one that there is already stays."""
    tx.run(
        "orchestrations.insert_evaluation",
        {
            "evaluation_id": made.evaluation_id,
            "name": made.name,
            "hash": made.hash,
            "suite": made.suite,
            "repeats": made.repeats,
            "created_by": made.created_by,
            "now_ms": tx.now_ms,
        },
    )


def find(tx: Tx, evaluation_id: str) -> Evaluation:
    """An evaluation by its id.

    Raises:
        NotFound: there is none.
    """
    row = tx.one("orchestrations.evaluation", {"evaluation_id": evaluation_id})
    if row is None:
        raise NotFound(f"unknown evaluation {shorten(evaluation_id)!r}", hint="leave it out to begin one")
    return Evaluation(**{name: row[name] for name in Evaluation.__slots__})


def add_run(tx: Tx, evaluation_id: str, case: Case, *, run_id: str, turn_id: str) -> None:
    """Remember which run was made of a case, in the transaction that starts it."""
    values = {"evaluation_id": evaluation_id, "case_name": case.name, "run_id": run_id, "turn_id": turn_id}
    tx.run("orchestrations.insert_evaluation_run", values)


def end(tx: Tx, evaluation_id: str) -> bool:
    """Remember that it has ended; False if that was so already."""
    return tx.run("orchestrations.end_evaluation", {"evaluation_id": evaluation_id, "now_ms": tx.now_ms}) > 0


def set_problems(tx: Tx, run_id: str, problems: Sequence[str]) -> None:
    """Remember what was found, in the transaction that ends the run."""
    values = {"run_id": run_id, "problems": json.dumps(list(problems), ensure_ascii=False)}
    tx.run("orchestrations.set_evaluation_problems", values)


def case_runs(tx: Tx, evaluation_id: str) -> list[CaseRun]:
    """The runs made so far, in the order of their making."""
    return [
        CaseRun(
            run_id=row["run_id"],
            case_name=row["case_name"],
            turn_id=row["turn_id"],
            problems=None if row["problems"] is None else tuple(json.loads(row["problems"])),
            outcome=row["outcome"],
        )
        for row in tx.all("orchestrations.evaluation_runs", {"evaluation_id": evaluation_id})
    ]


def _case(given: Any, path: str, place: int, usual: int, repeats: int | None) -> Case:
    if not isinstance(given, dict):
        raise Invalid(f"{path} is not a mapping", hint="each is {name?, input, expect, weight?, runs?, vars?}")
    name = str(given.get("name", f"case_{place + 1}"))
    if problem := name_problem(name):
        raise Invalid(f"{path}.name {problem}")
    text = given.get("input")
    if isinstance(text, dict | list):
        text = json.dumps(text, ensure_ascii=False)
    if not isinstance(text, str) or not 0 < len(text) <= MAX_INPUT_CHARS:
        raise Invalid(f"{path}.input is no text of 1 to {MAX_INPUT_CHARS:,} characters")
    expect = given.get("expect")
    if expect is None:
        raise Invalid(f"{path}.expect is missing", hint="a text it must contain, or {contains, regex, json_schema ...}")
    try:
        wanted = parse_expect({"contains": expect} if isinstance(expect, str | list) else expect)
    except Invalid as wrong:
        raise Invalid(f"{path}.{wrong.message}", hint=wrong.hint) from None
    weight = given.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= MAX_WEIGHT:
        raise Invalid(f"{path}.weight {shorten(str(weight))!r} is no number above 0")
    given_vars = given.get("vars") or {}
    if not isinstance(given_vars, dict):
        raise Invalid(f"{path}.vars is not a mapping")
    return Case(
        name=name,
        input=text,
        expect=wanted,
        weight=float(weight),
        repeats=repeats if repeats is not None else _whole(given.get("runs", usual), f"{path}.runs"),
        vars=given_vars,
    )


def _whole(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Invalid(f"{path} {shorten(str(value))!r} is no whole number")
    if value != int(value) or not 1 <= value <= MAX_REPEATS:
        raise Invalid(f"{path} {shorten(str(value))!r} is no whole number from 1 to {MAX_REPEATS}")
    return int(value)
