"""The parts of a document that a run is made of: agents, budget, variables; its routing is in `routes`.

Each part may be written in several ways (a mapping or a list, KSI's keys or ours); here they become
records of one shape. Problems are gathered with their dotted paths, never raised one at a time. Pure.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from ksi_mcp.budgets.model import POLICIES, Policy
from ksi_mcp.compositions.model import parse_reference, shorten, text_of
from ksi_mcp.compositions.reading import Problems, join, kind_of, mapping, positive, whole
from ksi_mcp.compositions.settings import settings_of
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import AGENT_CAPABILITIES, Capability

MAX_AGENTS: Final = 100

_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_COMPOSITION_KEYS: Final = ("composition", "profile", "component", "extends")
_PROMPT_KEYS: Final = ("prompt", "system_prompt", "prompt_template", "instructions")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetWish:
    """What a document asks for; the operator's limits still stand above it. None: no limit asked."""

    usd: float | None = None
    tokens: int | None = None
    turns: int | None = None
    seconds: int | None = None
    """Of wall-clock time since the account was opened."""
    policy: Policy | None = None
    """What happens at the limit, where the document says so."""

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.usd, self.tokens, self.turns, self.seconds))

    def over(self, base: BudgetWish) -> BudgetWish:
        """This wish, and what it leaves out as another has it."""
        own = asdict(self)
        return replace(base, **{key: value for key, value in own.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDraft:
    """An agent as a document asks for it. `capabilities` is a request; None means nothing was said."""

    role: str
    composition: str | None = None
    prompt: str | None = None
    vars: dict[str, Any] = field(default_factory=dict)
    capabilities: tuple[Capability, ...] | None = None
    model: str | None = None
    provider: str | None = None
    budget: BudgetWish = field(default_factory=BudgetWish)
    settings: dict[str, Any] = field(default_factory=dict)
    """How its model is called (see `settings_of`), and whatever else stood under `settings`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable of a document. It must be given if it is `required` and has no default."""

    name: str
    default: Any = None
    required: bool = True
    description: str = ""


def agents_of(document: dict[str, Any], problems: Problems) -> tuple[AgentDraft, ...]:
    """The agents of a pattern, in the order of the document."""
    entries = role_entries(document.get("agents"), problems)
    if len(entries) > MAX_AGENTS:
        problems.add("agents", f"{len(entries)} agents, the limit is {MAX_AGENTS}")
        return ()
    drafts: dict[str, AgentDraft] = {}
    for role, body, path in entries:
        if not _ROLE.fullmatch(role):
            problems.add(path, f"{shorten(role)!r} is not a role's name")
        elif role in drafts:
            problems.add(path, f"the role {role!r} is there twice")
        else:
            drafts[role] = agent_of(role, body, path, problems)
    return tuple(drafts.values())


def role_entries(agents: object, problems: Problems) -> list[tuple[str, Any, str]]:
    """The agents as (role, body, path), whether they are a mapping or a list."""
    if agents is None:
        return []
    if isinstance(agents, dict):
        return [(role, body, f"agents.{role}") for role, body in agents.items()]
    if not isinstance(agents, list):
        problems.add("agents", f"must be a mapping of roles or a list, not {kind_of(agents)}")
        return []
    entries: list[tuple[str, Any, str]] = []
    for index, body in enumerate(agents):
        named = body if isinstance(body, dict) else {}
        role = next((named[key] for key in ("role", "id", "name") if key in named), None)
        entries.append((str(role) if role is not None else "", body, f"agents.{index}"))
    return entries


def agent_of(role: str, body: object, path: str, problems: Problems) -> AgentDraft:
    """One agent, written as a mapping, as the name of a composition, or as nothing at all."""
    if body is None:
        body = {}
    if isinstance(body, str):
        body = {"composition": body}
    if not isinstance(body, dict):
        problems.add(path, f"must be a mapping, not {kind_of(body)}")
        return AgentDraft(role=role)
    return AgentDraft(
        role=role,
        composition=_reference(body, path, problems),
        prompt=next((problems.text(body[key], f"{path}.{key}") for key in _PROMPT_KEYS if key in body), None),
        vars=mapping(body.get("vars", body.get("variables")), f"{path}.vars", problems),
        capabilities=capabilities_of(body.get("capabilities"), f"{path}.capabilities", problems),
        model=problems.text(body.get("model"), f"{path}.model"),
        provider=problems.text(body.get("provider"), f"{path}.provider"),
        budget=budget_of(body, path, problems),
        settings=settings_of(body, path, problems),
    )


def profile_of(document: dict[str, Any], role: str, problems: Problems) -> AgentDraft:
    """The agent that a document of type `agent` describes; its own variables are not its `vars`."""
    return AgentDraft(
        role=role,
        prompt=text_of(document) or None,
        vars=mapping(document.get("vars"), "vars", problems),
        capabilities=capabilities_of(document.get("capabilities"), "capabilities", problems),
        model=problems.text(document.get("model"), "model"),
        provider=problems.text(document.get("provider"), "provider"),
        budget=budget_of(document, "", problems),
        settings=settings_of(document, "", problems),
    )


def capabilities_of(value: object, path: str, problems: Problems) -> tuple[Capability, ...] | None:
    """The capabilities asked for: a list, or a mapping of name to yes or no."""
    if value is None:
        return None
    if isinstance(value, dict):
        value = [name for name, wanted in value.items() if wanted]
    if isinstance(value, str):
        value = [word.strip() for word in value.split(",") if word.strip()]
    if not isinstance(value, list):
        problems.add(path, f"must be a list, not {kind_of(value)}")
        return None
    for name in value:
        if name not in AGENT_CAPABILITIES:
            known = ", ".join(AGENT_CAPABILITIES)
            problems.add(path, f"{shorten(str(name))!r} is not a capability of an agent; there are {known}")
    return tuple(name for name in AGENT_CAPABILITIES if name in value)


def budget_of(body: dict[str, Any], path: str, problems: Problems) -> BudgetWish:
    """The budget asked for, under `budget` or under KSI's `orchestration.budget_limit`.

    KSI's `fallback_strategy` is the policy; its `cost_check_interval` has nothing left to say, since every call is
    checked before it leaves.
    """
    wish, where = body.get("budget"), join(path, "budget")
    orchestration = body.get("orchestration")
    policy = None
    if isinstance(orchestration, dict):
        strategy = join(path, "orchestration.fallback_strategy")
        policy = _policy(orchestration.get("fallback_strategy"), strategy, problems)
        if wish is None:
            wish, where = orchestration.get("budget_limit"), join(path, "orchestration.budget_limit")
    if wish is None:
        return BudgetWish(policy=policy)
    if not isinstance(wish, dict):
        wish = {"usd": wish}
    limits: dict[str, Any] = {}
    for key, aliases, read in (
        ("usd", ("usd", "limit_usd", "max_usd"), _usd),
        ("tokens", ("tokens", "max_tokens"), whole),
        ("turns", ("turns", "max_turns"), whole),
        ("seconds", ("seconds", "max_seconds"), whole),
    ):
        raw = next((wish[alias] for alias in aliases if wish.get(alias) is not None), None)
        limits[key] = read(raw) if raw is not None else None
        if raw is not None and limits[key] is None:
            problems.add(f"{where}.{key}", f"{shorten(str(raw))!r} is not an amount above 0")
    return BudgetWish(**limits, policy=_policy(wish.get("policy"), f"{where}.policy", problems) or policy)


def variables_of(document: dict[str, Any], problems: Problems) -> dict[str, Variable]:
    """The declared variables: `{name: {default, required, description} | default}` or a list of names."""
    variables = document.get("variables")
    if isinstance(variables, list):
        variables = {
            (item.get("name") if isinstance(item, dict) else item): (item if isinstance(item, dict) else None)
            for item in variables
            if isinstance(item, str) or (isinstance(item, dict) and isinstance(item.get("name"), str))
        }
    found: dict[str, Variable] = {}
    for name, spec in mapping(variables, "variables", problems).items():
        if not _VARIABLE.fullmatch(name):
            problems.add(f"variables.{shorten(name)}", "is not a name that {{...}} can hold")
        elif isinstance(spec, dict) and not spec.keys() - {"name", "default", "required", "description", "type"}:
            required = spec.get("required", "default" not in spec)
            description = problems.text(spec.get("description"), f"variables.{name}.description") or ""
            found[name] = Variable(
                name=name, default=spec.get("default"), required=bool(required), description=description
            )
        else:
            found[name] = Variable(name=name, default=spec, required=spec is None)
    return found


def _reference(body: dict[str, Any], path: str, problems: Problems) -> str | None:
    key = next((key for key in _COMPOSITION_KEYS if body.get(key) is not None), None)
    if key is None:
        return None
    try:
        name, version = parse_reference(body[key], what=key)
    except Invalid as invalid:
        problems.add(f"{path}.{key}", invalid.message)
        return None
    return f"{name}@{version}" if version else name


def _policy(value: object, path: str, problems: Problems) -> Policy | None:
    if value is None:
        return None
    word = value.strip().lower() if isinstance(value, str) else value
    found = next((policy for policy in POLICIES if policy == word), None)
    if found is None:
        problems.add(path, f"{shorten(str(value))!r} is not a policy; there are {', '.join(POLICIES)}")
    return found


def _usd(value: object) -> float | None:
    return positive(value.strip().removeprefix("$").removesuffix("USD") if isinstance(value, str) else value)
