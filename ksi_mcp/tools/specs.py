"""From what a caller or a composition asks for to the agent that is to be made."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import Field

from ksi_mcp.agents.model import AgentSettings, AgentSpec
from ksi_mcp.budgets.model import Limits, limits_of
from ksi_mcp.compositions.drafts import AgentDraft, BudgetWish
from ksi_mcp.errors import Invalid
from ksi_mcp.services import Services
from ksi_mcp.tools.tool import Part

BASE_PROMPT = (
    "You are {name}, one of several agents that work together. Answer what you are asked, briefly and exactly."
)
_SETTINGS = frozenset(field.name for field in fields(AgentSettings))


class BudgetWants(Part):
    """Limits; what is left out is unlimited."""

    usd: float | None = Field(default=None, ge=0, le=1_000_000_000)
    tokens: int | None = Field(default=None, ge=0, le=2**53)
    turns: int | None = Field(default=None, ge=0, le=2**53)

    def limits(self) -> Limits:
        """As the ledger takes them."""
        return limits_of(usd=self.usd, tokens=self.tokens, turns=self.turns)


def limits_of_wish(wish: BudgetWish) -> Limits:
    """What a composition asks for, as limits."""
    return limits_of(usd=wish.usd, tokens=wish.tokens, turns=wish.turns)


def tightest(a: Limits, b: Limits) -> Limits:
    """The lower of two limits, each kind for itself."""

    def lower(x: int | None, y: int | None) -> int | None:
        return x if y is None else y if x is None else min(x, y)

    return Limits(
        usd_micros=lower(a.usd_micros, b.usd_micros), tokens=lower(a.tokens, b.tokens), turns=lower(a.turns, b.turns)
    )


def spec_of(svc: Services, draft: AgentDraft, *, name: str, composition: str | None, **over: Any) -> AgentSpec:
    """An agent as a composition asks for it, cut by what the operator's configuration grants.

    `over`: model, provider, capabilities, limits as a caller asked for them; they outrank the draft.
    """
    config = svc.config
    asked = over.get("capabilities")
    if asked is None:
        wished = draft.capabilities if draft.capabilities is not None else config.agents.default_capabilities
        asked = frozenset(wished) & frozenset(config.agents.grantable)
    provider = over.get("provider") or draft.provider or config.provider or svc.registry.settings.default_provider
    if provider not in svc.registry.known():
        raise Invalid(f"unknown provider {provider[:60]!r}", hint=f"there are {', '.join(svc.registry.known())}")
    settings: dict[str, Any] = {
        "max_tokens": config.agents.max_tokens,
        "max_tool_rounds": config.agents.max_tool_rounds,
        **{key: value for key, value in draft.settings.items() if key in _SETTINGS and value is not None},
    }
    return AgentSpec(
        name=name,
        system=draft.prompt or BASE_PROMPT.format(name=name),
        provider=provider,
        model=over.get("model") or draft.model or config.model or svc.registry.settings.default_model,
        capabilities=frozenset(asked),
        settings=AgentSettings(**settings),
        composition=composition,
        limits=tightest(over.get("limits") or Limits(), limits_of_wish(draft.budget)),
    )
