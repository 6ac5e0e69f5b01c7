"""From a document to what a run starts with: flattened, and its agents' variables filled in.

Pure over a look-up function. The strategy of a pattern is text for a model and is never parsed or
filled in; only agents' prompts and `vars` are.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ksi_mcp import templates
from ksi_mcp.compositions.drafts import (
    AgentDraft,
    BudgetWish,
    Variable,
    agents_of,
    budget_of,
    profile_of,
    variables_of,
)
from ksi_mcp.compositions.flatten import Flattener, Lookup, included_texts
from ksi_mcp.compositions.model import (
    Composition,
    CompositionType,
    join_problems,
    shorten,
    text_of,
)
from ksi_mcp.compositions.reading import Problems
from ksi_mcp.compositions.routes import StaticRule, rules_of
from ksi_mcp.errors import Invalid, NotFound

MAX_PROMPT_CHARS: Final = 200_000

_HASH_SHOWN: Final = 12
_EXPRESSION = re.compile(r"\{\{([^{}]{1,1000})\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Everything a run needs of a composition.

    `document` is the merged document with its variables not yet filled in, and `hash` is of it;
    `agents` have complete prompts. For a composition of type `agent`, `agents` is that one agent.
    """

    name: str
    version: str
    type: CompositionType
    hash: str
    document: dict[str, Any]
    includes: dict[str, str]
    warnings: tuple[str, ...]
    agents: tuple[AgentDraft, ...]
    rules: tuple[StaticRule, ...]
    budget: BudgetWish
    vars: dict[str, Any]
    """The variables' values: what was given, else the defaults."""
    used: tuple[Composition, ...] = ()
    """The flat compositions that the agents come from, to be remembered with it."""

    @property
    def reference(self) -> str:
        """`name@hash`, as agents and runs remember it."""
        return f"{self.name}@{self.hash[:_HASH_SHOWN]}"

    @property
    def strategy(self) -> str:
        """The text that an orchestrator follows; empty for anything but a pattern."""
        return text_of({"orchestration_logic": self.document.get("orchestration_logic")})


def resolve(
    composition: Composition, lookup: Lookup, given: dict[str, Any] | None = None, *, lenient: bool = False
) -> Resolved:
    """Flatten `composition` and fill in its agents.

    With `lenient`, variables that were not given and references that lead nowhere are listed among the warnings: for
    a look, not for a run.

    Raises:
        NotFound: a parent, component, include or agent's composition is missing; the message shows the path.
        Invalid: parents in a circle or too deep, problems of structure, variables that were not given.
    """
    dangling: list[str] | None = [] if lenient else None
    flat = Flattener(lookup, dangling).flatten(composition)
    problems = Problems()
    variables = variables_of(flat.document, problems)
    agents, rules, budget = parts_of(flat, problems)
    if problems.found:
        raise Invalid(f"composition {flat.name!r}: {join_problems(problems.found)}")
    filler = _Filler(lookup, dangling)
    scope = {**_defaults(variables), **(given or {})}
    filler.need(variables, scope, prefix="")
    if composition.type == "agent":
        agents = tuple(filler.profile(agent, scope, set(variables) | set(given or {})) for agent in agents)
    else:
        agents = tuple(filler.agent(agent, scope, set(variables) | set(given or {})) for agent in agents)
    if not lenient:
        filler.finish(flat.name)
    unused = sorted(set(given or {}) - set(variables) - filler.used)
    warnings = [f"the variable {shorten(name)!r} is not used by {flat.name!r}" for name in unused]
    includes = included_texts(flat, lookup, dangling)
    warnings += dict.fromkeys(dangling or [])
    if filler.missing:
        warnings.append(f"variables to be given: {', '.join(dict.fromkeys(filler.missing))}")
    return Resolved(
        name=flat.name,
        version=flat.version,
        type=flat.type,
        hash=flat.hash,
        document=flat.document,
        includes=includes,
        warnings=tuple(warnings),
        agents=agents,
        rules=rules,
        budget=budget,
        vars=scope,
        used=tuple(filler.profiles.values()),
    )


def _defaults(variables: dict[str, Variable]) -> dict[str, Any]:
    return {v.name: v.default for v in variables.values() if not v.required or v.default is not None}


def parts_of(
    flat: Composition, problems: Problems
) -> tuple[tuple[AgentDraft, ...], tuple[StaticRule, ...], BudgetWish]:
    """Agents, rules and budget of a flat composition; what is wrong goes to `problems`."""
    if flat.type == "agent":
        return (profile_of(flat.document, flat.name, problems),), (), budget_of(flat.document, "", problems)
    agents = agents_of(flat.document, problems)
    rules = rules_of(flat.document, tuple(agent.role for agent in agents), problems)
    return agents, rules, budget_of(flat.document, "", problems)


@dataclass(slots=True)
class _Filler:
    """Fills in agents and gathers what is missing, so that all of it is told at once."""

    lookup: Lookup
    dangling: list[str] | None = None
    missing: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    profiles: dict[str, Composition] = field(default_factory=dict)

    def need(self, variables: dict[str, Variable], scope: dict[str, Any], *, prefix: str) -> None:
        """Note the variables that must be given and were not."""
        for variable in variables.values():
            if variable.required and variable.name not in scope:
                about = f" ({shorten(variable.description)})" if variable.description else ""
                self.missing.append(f"{prefix}{variable.name}{about}")
                self.told.add(variable.name)

    def profile(self, agent: AgentDraft, scope: dict[str, Any], declared: set[str]) -> AgentDraft:
        """An agent that is the composition itself."""
        own_vars = {name: self.fill(value, scope, declared, agent.role) for name, value in agent.vars.items()}
        scope = {**own_vars, **scope}
        prompt = self.fill_text(agent.prompt, scope, declared | set(own_vars), agent.role)
        return replace(agent, prompt=prompt, vars=own_vars)

    def agent(self, agent: AgentDraft, scope: dict[str, Any], declared: set[str]) -> AgentDraft:
        """An agent of a pattern: its composition's prompt, then its own."""
        where = f"agents.{agent.role}"
        own_vars = {name: self.fill(value, scope, declared, f"{where}.vars") for name, value in agent.vars.items()}
        scope, declared = {**scope, **own_vars}, declared | set(own_vars)
        base = AgentDraft(role=agent.role)
        reference = None
        if agent.composition is not None:
            reference = agent.composition
            flat = self._profile_flat(agent.composition, where)
            if flat is not None:
                reference = f"{flat.name}@{flat.hash[:_HASH_SHOWN]}"
                base, scope, declared = self._from_profile(flat, scope, declared, where)
        prompts = [base.prompt, self.fill_text(agent.prompt, scope, declared, f"{where}.prompt")]
        return AgentDraft(
            role=agent.role,
            composition=reference,
            prompt="\n\n".join(prompt for prompt in prompts if prompt) or None,
            vars={**base.vars, **own_vars},
            capabilities=agent.capabilities if agent.capabilities is not None else base.capabilities,
            model=agent.model or base.model,
            provider=agent.provider or base.provider,
            budget=agent.budget.over(base.budget),
            settings={**base.settings, **agent.settings},
        )

    def fill(self, value: Any, scope: dict[str, Any], declared: set[str], where: str) -> Any:
        """Fill declared variables into `value`, at any depth; a lone `{{name}}` keeps its type."""
        if isinstance(value, dict):
            return {key: self.fill(item, scope, declared, where) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, scope, declared, where) for item in value]
        if not isinstance(value, str):
            return value
        whole = _EXPRESSION.fullmatch(value)
        if whole is not None and self._is_declared(value, declared):
            return self._render(value, scope, where)
        return self.fill_text(value, scope, declared, where)

    def fill_text(self, text: str | None, scope: dict[str, Any], declared: set[str], where: str) -> str | None:
        """`text` with declared variables filled in; every other `{{...}}` stays as it is."""
        if text is None:
            return None
        pieces: list[str] = []
        at = length = 0
        for match in _EXPRESSION.finditer(text):
            if not self._is_declared(match[0], declared):
                continue
            value = self._render(match[0], scope, where)
            piece = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            pieces += [text[at : match.start()], piece]
            at = match.end()
            length += len(piece)
            if length > MAX_PROMPT_CHARS:
                raise Invalid(f"{where}: more than {MAX_PROMPT_CHARS:,} characters once its variables are filled in")
        return "".join([*pieces, text[at:]])

    def finish(self, name: str) -> None:
        """Raise Invalid if anything is missing."""
        if self.missing:
            missing = ", ".join(dict.fromkeys(self.missing))
            raise Invalid(f"{name!r} needs variables that were not given: {missing}", hint="give them in `vars`")

    def _profile_flat(self, reference: str, where: str) -> Composition | None:
        found = self.lookup(reference)
        if found is None:
            message = f"{where}: composition {reference!r} is not in the library"
            if self.dangling is None:
                raise NotFound(message, hint="composition_discover lists what is there")
            self.dangling.append(message)
            return None
        flat = Flattener(self.lookup, self.dangling).flatten(found)
        self.profiles[flat.hash] = flat
        return flat

    def _from_profile(
        self, flat: Composition, scope: dict[str, Any], declared: set[str], where: str
    ) -> tuple[AgentDraft, dict[str, Any], set[str]]:
        problems = Problems()
        variables = variables_of(flat.document, problems)
        profile = profile_of(flat.document, flat.name, problems)
        if problems.found:
            raise Invalid(f"{where}: composition {flat.name!r}: {join_problems(problems.found)}")
        scope, declared = {**_defaults(variables), **scope}, declared | set(variables)
        self.need(variables, scope, prefix=f"{where}.vars.")
        filled = self.profile(profile, scope, declared)
        return filled, {**filled.vars, **scope}, declared | set(filled.vars)

    def _is_declared(self, expression: str, declared: set[str]) -> bool:
        try:
            roots = {re.split(r"[.\[]", path, maxsplit=1)[0] for path in templates.names(expression)}
        except Invalid:
            return False  # not our language: text that the prompt's author means literally
        self.used |= roots & declared
        return bool(roots & declared)

    def _render(self, expression: str, scope: dict[str, Any], where: str) -> Any:
        try:
            return templates.render(expression, scope, max_chars=MAX_PROMPT_CHARS)
        except templates.MissingValue as missing:
            root = re.split(r"[.\[]", missing.name, maxsplit=1)[0]
            if root in scope:
                self.missing.append(f"{missing.name} (used in {where})")
            elif root not in self.told:
                self.missing.append(f"{root} (used in {where})")
            return expression
