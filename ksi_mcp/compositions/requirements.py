"""What a composition must have to be chosen at all. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.compositions.asks import (
    Documents,
    ancestors_of,
    budget_of,
    capabilities_of,
    required_variables,
    roles_of,
)
from ksi_mcp.compositions.evidence import Estimate
from ksi_mcp.compositions.filters import matcher
from ksi_mcp.compositions.model import LAYERS, parse_reference, shorten
from ksi_mcp.compositions.runs import Performance
from ksi_mcp.compositions.store import Head
from ksi_mcp.errors import Invalid

MAX_WORDS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A composition as it is looked at: its document, that of every other one, and what its runs came to."""

    head: Head
    document: Mapping[str, Any]
    documents: Documents
    performance: Performance | None

    def as_document(self) -> dict[str, Any]:
        """What a filter sees: `performance` measured here, `claimed` as it came with the file."""
        return filtered_document(self.document, self.performance)


def filtered_document(document: Mapping[str, Any], performance: Performance | None) -> dict[str, Any]:
    """A document with `performance` as it was measured here, and under `claimed` what came with the file."""
    measured = {"runs": 0} if performance is None else performance.as_document()
    return {**document, "performance": measured, "claimed": document.get("performance") or {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """Whether a requirement is met, and a sentence that says so with the figures."""

    met: bool
    reason: str


Check = Callable[[Candidate], Met]


def checks_of(requirements: Mapping[str, Any]) -> list[Check]:
    """A test for each requirement.

    Raises:
        Invalid: a key is unknown or a value is not what it must be; all are named at once.
    """
    unknown = [key for key in requirements if key not in _KINDS]
    if unknown:
        listed = ", ".join(repr(shorten(str(key))) for key in unknown[:5])
        raise Invalid(
            f"unknown requirement{'s' if len(unknown) > 1 else ''} {listed}",
            hint=f"there are {', '.join(_KINDS)}; anything else of a document goes under metadata, such as"
            " {'metadata': {'author': 'me'}}",
        )
    checks: list[Check] = []
    problems: list[str] = []
    for key, value in requirements.items():
        try:
            checks.append(_KINDS[key](key, value))
        except Invalid as problem:
            problems.append(problem.message)
    if problems:
        raise Invalid("; ".join(problems), hint="numbers are plain numbers, lists are lists of words")
    return checks


def _tags(key: str, value: Any) -> Check:
    wanted = {word.lower() for word in _words(key, value)}

    def check(candidate: Candidate) -> Met:
        missing = wanted - {tag.lower() for tag in candidate.head.tags}
        return _met(missing, f"it has the tags {_list(wanted)}", "it lacks the tags {}")

    return check


def _capabilities(key: str, value: Any) -> Check:
    wanted = set(_words(key, value))

    def check(candidate: Candidate) -> Met:
        missing = wanted - capabilities_of(candidate.document, candidate.documents)
        return _met(missing, f"its agents ask for {_list(wanted)}", "none of its agents asks for {}")

    return check


def _without_capabilities(key: str, value: Any) -> Check:
    unwanted = set(_words(key, value))

    def check(candidate: Candidate) -> Met:
        asked = unwanted & capabilities_of(candidate.document, candidate.documents)
        return _met(asked, f"no agent of it asks for {_list(unwanted)}", "an agent of it asks for {}")

    return check


def _variables(key: str, value: Any) -> Check:
    given = set(_words(key, list(value) if isinstance(value, dict) else value))

    def check(candidate: Candidate) -> Met:
        missing = set(required_variables(candidate.document)) - given
        return _met(missing, "it needs no other variables", "it needs the variables {} too")

    return check


def _descends_from(key: str, value: Any) -> Check:
    name, _ = parse_reference(value, what=key)

    def check(candidate: Candidate) -> Met:
        found = name in ancestors_of(candidate.document, candidate.documents)
        return Met(met=found, reason=f"it {'descends' if found else 'does not descend'} from {name!r}")

    return check


def _metadata(key: str, value: Any) -> Check:
    if not isinstance(value, dict):
        raise Invalid(f"{key} must be a filter such as {{'author': 'me'}}, not {shorten(repr(value))}")
    matches = matcher(value)

    def check(candidate: Candidate) -> Met:
        found = matches(candidate.as_document())
        shown = shorten(", ".join(str(path) for path in value), 120)
        return Met(met=found, reason=f"{shown} {'is' if found else 'is not'} as asked for")

    return check


def _layer(key: str, value: Any) -> Check:
    if value not in LAYERS:
        raise Invalid(f"{key} {shorten(repr(value))} is none of {', '.join(LAYERS)}")
    return lambda candidate: Met(
        met=candidate.head.layer == value, reason=f"it is in the {candidate.head.layer} library"
    )


def _budget(key: str, value: Any) -> Check:
    unit = key.removeprefix("max_")
    most = _number(key, value)

    def check(candidate: Candidate) -> Met:
        own = budget_of(candidate.document, unit)
        if own is None:
            return Met(met=False, reason=f"it names no budget in {unit}, and at most {most:g} is asked for")
        return Met(met=own <= most, reason=f"its budget of {own:g} {unit} is {_within(own <= most)} {most:g}")

    return check


def _agents(key: str, value: Any) -> Check:
    bound, least = _number(key, value), key.startswith("min_")

    def check(candidate: Candidate) -> Met:
        own = roles_of(candidate.document)
        met = own >= bound if least else own <= bound
        return Met(met=met, reason=f"it has {own} agents, {'at least' if least else 'at most'} {bound:g} are asked for")

    return check


def _runs(key: str, value: Any) -> Check:
    least = _number(key, value)

    def check(candidate: Candidate) -> Met:
        own = candidate.performance.runs if candidate.performance is not None else 0
        return Met(met=own >= least, reason=f"it has run {own} times here, at least {least:g} are asked for")

    return check


def _rate(key: str, value: Any) -> Check:
    least = _number(key, value)
    name = "success rate" if key == "min_success_rate" else "average score"

    def check(candidate: Candidate) -> Met:
        found = candidate.performance
        own: Estimate | None = None
        if found is not None:
            own = found.success if key == "min_success_rate" else found.score
        if own is None or own.mean is None:
            return Met(met=False, reason=f"it has no measured {name}, and at least {least:g} is asked for")
        return Met(met=own.mean >= least, reason=f"its {name} is {own.mean:.2f}, at least {least:g} is asked for")

    return check


_KINDS: Final[dict[str, Callable[[str, Any], Check]]] = {
    "tags": _tags,
    "capabilities": _capabilities,
    "without_capabilities": _without_capabilities,
    "variables": _variables,
    "descends_from": _descends_from,
    "metadata": _metadata,
    "layer": _layer,
    "max_usd": _budget,
    "max_turns": _budget,
    "min_agents": _agents,
    "max_agents": _agents,
    "min_runs": _runs,
    "min_success_rate": _rate,
    "min_score": _rate,
}
REQUIREMENTS: Final = tuple(_KINDS)


def _words(key: str, value: Any) -> list[str]:
    entries = [value] if isinstance(value, str) else value
    if isinstance(entries, list) and len(entries) <= MAX_WORDS and all(isinstance(entry, str) for entry in entries):
        return entries
    raise Invalid(f"{key} must be a list of at most {MAX_WORDS} words, not {shorten(repr(value))}")


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise Invalid(f"{key} must be a number of 0 or more, not {shorten(repr(value))}")
    return float(value)


def _met(wrong: set[str], well: str, badly: str) -> Met:
    return Met(met=not wrong, reason=badly.format(_list(wrong)) if wrong else well)


def _list(wanted: set[str]) -> str:
    return shorten(", ".join(sorted(wanted)), 200) or "none"


def _within(met: bool) -> str:
    return "within" if met else "above"
