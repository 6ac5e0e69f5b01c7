"""What a composition is found by: the words of its name, tags, description, uses, roles and text. Pure.

A document may say what it is for in so many words, at its top or under `metadata`: `good_for`, `use_cases`,
`when_to_use`, `keywords`, `examples`; and under `not_for` what it is not for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp.compositions.model import COMPOSITION_TYPES, text_of
from ksi_mcp.compositions.purposes import Cues
from ksi_mcp.compositions.terms import COMMON, STOP_WORDS, Stemmer

FIELDS: Final = ("name", "tags", "uses", "description", "roles", "summary", "variables", "text")
_WEIGHTS: Final = {
    "name": 3.0,
    "tags": 2.5,
    "uses": 2.0,
    "description": 2.0,
    "roles": 1.0,
    "summary": 1.0,
    "variables": 0.5,
}
_PURPOSE_WEIGHTS: Final = {
    "name": 3.0, "tags": 2.0, "uses": 1.0, "description": 1.2, "roles": 0.4, "summary": 0.4, "variables": 0.2,
}  # fmt: skip
_PURPOSE_MOST: Final = {"name": 1.0, "tags": 1.5, "uses": 3.0}
_HALF: Final = 0.8
"""So much said of a purpose makes a half; more comes near to 1, and a word in passing is next to nothing."""
_SECOND: Final = 1.5
"""A further purpose counts in full from two thirds of the main one."""
_USES: Final = ("good_for", "use_cases", "use_case", "when_to_use", "keywords", "examples", "purpose")
_MAX_USES: Final = 40
_MAX_USE_CHARS: Final = 300
_MAX_ROLES: Final = 40
_TEXT_CHARS: Final = 2_000
_PROMPT_CHARS: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A composition as its features are taken from."""

    name: str
    tags: tuple[str, ...]
    description: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What one composition is found by.

    `terms` are stems with their weight and the fields they stand in, as bits in the order of `FIELDS`; `text` the stems
    that stand in its prompts and strategy alone; `purposes` from 0 to 1.
    """

    terms: Mapping[str, tuple[float, int]]
    text: frozenset[str]
    purposes: Mapping[str, float]
    not_for: tuple[tuple[str, frozenset[str]], ...]


class Extractor:
    """Takes documents apart. One for all of them: it remembers the stems of words."""

    def __init__(self) -> None:
        self.stemmer = Stemmer()
        self.cues = Cues(self.stemmer)
        self.stop = self.stemmer.all_of(STOP_WORDS)
        self.common = self.stemmer.all_of([*COMMON, *COMPOSITION_TYPES, "pattern", "profile", "composition"])

    def features(self, of: Described, *, purposes: Mapping[str, float] | None = None) -> Features:
        """What the composition is found by. `purposes`, if they are known, need not be looked for again."""
        texts = _texts(of)
        terms: dict[str, tuple[float, int]] = {}
        masses: defaultdict[str, float] = defaultdict(float)
        prose: frozenset[str] = frozenset()
        for bit, field in enumerate(FIELDS):
            found = [self.stemmer.stems(text) for text in texts[field]]
            if purposes is None and field in _PURPOSE_WEIGHTS:
                for purpose, said in self._said(found, _PURPOSE_MOST.get(field, 1.2)).items():
                    masses[purpose] += said * _PURPOSE_WEIGHTS[field]
            stems = {stem for each in found for stem in each if stem not in self.stop}
            if field == "text":
                prose = frozenset(stems) - terms.keys()
                continue
            for stem in stems:
                weight, fields = terms.get(stem, (0.0, 0))
                terms[stem] = (weight + _WEIGHTS[field], fields | 1 << bit)
        return Features(
            terms=terms,
            text=prose,
            purposes=_proportioned(masses) if purposes is None else purposes,
            not_for=tuple((text, self._content(text)) for text in _said_under(of.document, ("not_for",))),
        )

    def _said(self, texts: Iterable[list[str]], most: float) -> dict[str, float]:
        total: defaultdict[str, float] = defaultdict(float)
        for stems in texts:
            for purpose, said in self.cues.spoken_of(stems).items():
                total[purpose] = min(most, total[purpose] + min(said, 1.0))
        return dict(total)

    def _content(self, text: str) -> frozenset[str]:
        return frozenset(stem for stem in self.stemmer.stems(text) if stem not in self.stop)


def _texts(of: Described) -> dict[str, list[str]]:
    """The texts of each field."""
    document = of.document
    roles, prompts = _agents(document.get("agents"))
    logic = document.get("orchestration_logic")
    summary = logic.get("description") if isinstance(logic, dict) else None
    variables = document.get("variables")
    described = [
        f"{key} {spec.get('description', '') if isinstance(spec, dict) else ''}"
        for key, spec in (variables.items() if isinstance(variables, dict) else ())
    ]
    return {
        "name": [of.name],
        "tags": list(of.tags),
        "uses": _said_under(document, _USES),
        "description": [of.description],
        "roles": roles,
        "summary": [summary] if isinstance(summary, str) else [],
        "variables": described[:_MAX_ROLES],
        "text": [text_of(dict(document))[:_TEXT_CHARS], *prompts],
    }


def _proportioned(masses: Mapping[str, float]) -> dict[str, float]:
    """From how much is said of each purpose to a number from 0 to 1: much in itself, and beside the main purpose."""
    most = max(masses.values(), default=0.0)
    return {
        purpose: mass**2 / (mass**2 + _HALF**2) * min(1.0, _SECOND * mass / most)
        for purpose, mass in masses.items()
        if mass > 0
    }


def _agents(agents: object) -> tuple[list[str], list[str]]:
    """The names of the roles and the beginnings of their prompts, whichever way they are written."""
    if isinstance(agents, dict):
        listed: list[tuple[object, object]] = list(agents.items())
    elif isinstance(agents, list):
        listed = [
            (next((agent[key] for key in ("name", "role", "id") if key in agent), ""), agent)
            for agent in agents
            if isinstance(agent, dict)
        ]
    else:
        return [], []
    roles = [str(role) for role, _ in listed[:_MAX_ROLES]]
    prompts = [text_of(agent)[:_PROMPT_CHARS] for _, agent in listed[:_MAX_ROLES] if isinstance(agent, dict)]
    return roles, prompts


def _said_under(document: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    metadata = document.get("metadata")
    found: list[str] = []
    for holder in (document, metadata):
        for key in keys:
            value = holder.get(key) if isinstance(holder, dict) else None
            entries = value if isinstance(value, list) else [value]
            found += [entry[:_MAX_USE_CHARS] for entry in entries[:_MAX_USES] if isinstance(entry, str)]
    return found[:_MAX_USES]
