"""What a composition is: a named document that says what an agent or a pattern is made of.

The document is kept as it was loaded, unknown keys and all; the fields beside it are what the
library looks things up by. Pure: no files, no rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from ksi_mcp.errors import Invalid

CompositionType = Literal["orchestration", "ensemble", "agent", "component", "evaluation"]
COMPOSITION_TYPES: Final[tuple[CompositionType, ...]] = get_args(CompositionType)

FOLDERS: Final[dict[CompositionType, str]] = {
    "orchestration": "orchestrations",
    "ensemble": "ensembles",
    "agent": "agents",
    "component": "components",
    "evaluation": "evaluations",
}
"""Where compositions of a type are written."""

Layer = Literal["builtin", "user", "project"]
LAYERS: Final[tuple[Layer, ...]] = get_args(Layer)
"""Lowest first: a name is looked for in the highest layer that has it."""

MAX_NAME_CHARS: Final = 100
DEFAULT_VERSION: Final = "1.0.0"

_SLUG = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_REFERENCE = re.compile(
    r"(?:[a-z0-9_-][a-z0-9_.-]*/)*([a-z0-9][a-z0-9_.-]*?)(?:\.(?:ya?ml|md))?(?:@([A-Za-z0-9._+-]{1,80}))?"
)

# Words that other collections of compositions use for ours.
_TYPE_WORDS: Final[dict[str, CompositionType]] = {
    "profile": "agent",
    "pattern": "orchestration",
    "persona": "component",
    "behavior": "component",
    "core": "component",
    "fragment": "component",
    "prompt": "component",
    "tool": "component",
}

# What a version says about itself or has been through, not what it does.
_NOT_BEHAVIOUR: Final = frozenset({"performance", "learnings", "lineage", "description", "descriptions", "author"})
_TEXT_KEYS: Final = ("prompt", "system_prompt", "content", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong in a document, at a dotted path such as `agents.judge.prompt`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """One version of a composition. `hash` is of its behaviour alone (see `content_hash`)."""

    name: str
    type: CompositionType
    version: str
    description: str
    tags: tuple[str, ...]
    document: dict[str, Any]
    hash: str


def check_name(name: object, *, what: str = "the name") -> str:
    """`name` if it is a slug.

    Raises:
        Invalid: it is anything else, such as a path.
    """
    problem = name_problem(name)
    if problem:
        raise Invalid(
            f"{what} {problem}", hint="use lower-case letters, digits, '_', '-' and '.', such as 'my_pattern'"
        )
    return str(name)


def name_problem(name: object) -> str | None:
    """What keeps `name` from being a composition's name."""
    if not isinstance(name, str) or not name:
        return "must be text"
    if len(name) > MAX_NAME_CHARS:
        return f"{shorten(name)!r} is longer than {MAX_NAME_CHARS} characters"
    if not _SLUG.fullmatch(name) or ".." in name:
        return f"{shorten(name)!r} is not a plain name"
    return None


def parse_reference(text: object, *, what: str = "the name") -> tuple[str, str | None]:
    """(name, version or hash) of a reference such as `base_agent`, `agents/base_agent.yaml` or `judge@3f2a91`.

    Folders and endings are ways to write a name, never a part of it.

    Raises:
        Invalid: it is no such thing.
    """
    match = _REFERENCE.fullmatch(text) if isinstance(text, str) and len(text) <= 4 * MAX_NAME_CHARS else None
    if match is None or ".." in match.group(0).partition("@")[0] or len(match[1]) > MAX_NAME_CHARS:
        raise Invalid(f"{what} {shorten(str(text))!r} is not a composition's name", hint="see composition_discover")
    return match[1], match[2]


def parse_composition(document: object, *, what: str) -> Composition:
    """The composition that `document` describes; only its head is looked at.

    Raises:
        Invalid: with every problem of the head.
    """
    if not isinstance(document, dict):
        raise Invalid(f"{what} is not a mapping of keys", hint="a composition begins with `name:` and `type:`")
    problems: list[Problem] = []
    composition = parse_head(document, problems)
    if problems:
        raise Invalid(f"{what}: {join_problems(problems)}")
    return composition


def parse_head(document: dict[str, Any], problems: list[Problem]) -> Composition:
    """The composition that `document` describes, as far as it can be read; what is wrong goes to `problems`."""
    name = document.get("name")
    if problem := name_problem(name):
        problems.append(Problem(path="name", message=problem))
    kind = _type_of(document, problems)
    version = document.get("version", DEFAULT_VERSION)
    if isinstance(version, bool) or not isinstance(version, str | int | float) or not str(version):
        problems.append(Problem(path="version", message="must be text such as '1.0.0'"))
    description = document.get("description") or ""
    if not isinstance(description, str):
        problems.append(Problem(path="description", message="must be text"))
    tags = _tags_of(document.get("tags"), problems)
    return Composition(
        name=str(name),
        type=kind,
        version=str(version),
        description=str(description).strip(),
        tags=tags,
        document=document,
        hash=content_hash(document),
    )


def content_hash(document: dict[str, Any]) -> str:
    """SHA-256 (hex) over what the composition does.

    Left out: descriptions, authorship, and what was measured or learned, so that none of these makes
    a new version.
    """
    behaviour = {key: value for key, value in document.items() if key not in _NOT_BEHAVIOUR}
    for key in ("variables", "agents", "routing"):
        if key in behaviour:
            behaviour[key] = _undescribed_items(behaviour[key])
    if isinstance(behaviour.get("orchestration_logic"), dict):
        behaviour["orchestration_logic"] = _undescribed(behaviour["orchestration_logic"])
    canonical = json.dumps(behaviour, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def text_of(document: dict[str, Any]) -> str:
    """The text a composition contributes where it is included: its prompt, or a pattern's strategy."""
    for key in _TEXT_KEYS:
        if isinstance(document.get(key), str):
            return str(document[key]).strip()
    logic = document.get("orchestration_logic")
    strategy = logic.get("strategy") if isinstance(logic, dict) else logic
    return strategy.strip() if isinstance(strategy, str) else ""


def join_problems(problems: list[Problem], limit: int = 12) -> str:
    """All problems in one line; beyond `limit` they are counted."""
    shown = "; ".join(str(problem) for problem in problems[:limit])
    return shown if len(problems) <= limit else f"{shown}; and {len(problems) - limit} more"


def shorten(text: str, limit: int = 60) -> str:
    """`text` on one line and not longer than `limit`, for messages."""
    flat = " ".join(text[: 4 * limit].split())
    return flat if len(flat) <= limit and len(text) <= 4 * limit else flat[: limit - 3] + "..."


def _type_of(document: dict[str, Any], problems: list[Problem]) -> CompositionType:
    key = "type" if "type" in document else "component_type"
    word = document.get(key)
    if word is None:
        return "orchestration" if "orchestration_logic" in document or "agents" in document else "component"
    for kind in COMPOSITION_TYPES:
        if word == kind:
            return kind
    if isinstance(word, str) and word in _TYPE_WORDS:
        return _TYPE_WORDS[word]
    problems.append(
        Problem(path=key, message=f"{shorten(str(word))!r} is not a type; use one of {', '.join(COMPOSITION_TYPES)}")
    )
    return "component"


def _tags_of(tags: object, problems: list[Problem]) -> tuple[str, ...]:
    if tags is None:
        return ()
    if isinstance(tags, str):
        return tuple(tag.strip() for tag in tags.split(",") if tag.strip())
    if isinstance(tags, list) and all(isinstance(tag, str | int | float) for tag in tags):
        return tuple(str(tag) for tag in tags)
    problems.append(Problem(path="tags", message="must be a list of words"))
    return ()


def _undescribed_items(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _undescribed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_undescribed(item) for item in value]
    return value


def _undescribed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key != "description"}
    return value
