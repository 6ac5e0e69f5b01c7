"""Everything that is wrong with a document, before it is written or when somebody asks. Pure over a look-up function.

What leads nowhere is a warning here, since it may come yet, and an error when a run is started.
"""

from __future__ import annotations

from dataclasses import dataclass

from ksi_mcp.compositions.drafts import AgentDraft, variables_of
from ksi_mcp.compositions.flatten import Flattener, Lookup, included_texts
from ksi_mcp.compositions.model import Composition, Problem, join_problems, parse_head, parse_reference, text_of
from ksi_mcp.compositions.reading import Problems
from ksi_mcp.compositions.resolve import parts_of
from ksi_mcp.errors import Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What a document is, if it could be used, and all that is wrong or doubtful."""

    composition: Composition | None
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]


def examine(document: object, lookup: Lookup) -> Examined:
    """Look at all of a document: its head, what it inherits, agents, routing, variables, settings, references."""
    problems = Problems()
    if not isinstance(document, dict):
        problems.add("", "it is not a mapping of keys; a composition begins with `name:` and `type:`")
        return Examined(composition=None, problems=tuple(problems.found), warnings=())
    composition = parse_head(document, problems.found)
    dangling: list[str] = []
    flat = composition
    lookup = _with_itself(composition, lookup)
    try:
        flat = Flattener(lookup, dangling).flatten(composition)
    except Invalid as invalid:  # a circle, or something that is no reference: its own parts can be checked still
        problems.add("extends", invalid.message)
    variables_of(flat.document, problems)
    agents, _rules, _budget = parts_of(flat, problems)
    if flat.type != "agent":
        for agent in agents:
            _check_profile(agent, lookup, dangling, problems)
    try:
        included_texts(flat, lookup, dangling)
    except Invalid as invalid:
        problems.add("includes", invalid.message)
    return Examined(
        composition=None if problems.found else composition,
        problems=tuple(problems.found),
        warnings=(*dict.fromkeys(dangling), *_doubts(flat)),
    )


def check(document: object, lookup: Lookup, *, what: str) -> tuple[Composition, list[str]]:
    """Whether a document could be used; returns it with warnings about what is still open.

    Raises:
        Invalid: with everything that is wrong in its structure.
    """
    found = examine(document, lookup)
    if found.composition is None:
        raise Invalid(f"{what}: {join_problems(list(found.problems))}")
    return found.composition, list(found.warnings)


def _with_itself(composition: Composition, lookup: Lookup) -> Lookup:
    """What the library would find if the document were in it: a document that extends itself is a circle."""

    def found(reference: str) -> Composition | None:
        name, version = parse_reference(reference)
        return composition if name == composition.name and version is None else lookup(reference)

    return found


def _check_profile(agent: AgentDraft, lookup: Lookup, dangling: list[str], problems: Problems) -> None:
    if agent.composition is None:
        return
    found = lookup(agent.composition)
    if found is None:
        dangling.append(f"agents.{agent.role}: composition {agent.composition!r} is not in the library")
        return
    try:
        Flattener(lookup, dangling).flatten(found)
    except Invalid as invalid:
        problems.add(f"agents.{agent.role}", invalid.message)


def _doubts(flat: Composition) -> list[str]:
    doubts = []
    if flat.type == "orchestration" and not text_of({"orchestration_logic": flat.document.get("orchestration_logic")}):
        doubts.append("orchestration_logic.strategy is empty: an orchestrator has nothing to follow")
    if flat.type == "agent" and not text_of(flat.document):
        doubts.append("prompt is empty: the agent has no instructions")
    return doubts
