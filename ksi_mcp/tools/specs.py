"""From what a caller or a composition asks for to the agent that is to be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from ksi_mcp.agents.model import AgentSettings, AgentSpec
from ksi_mcp.agents.servers import permitted
from ksi_mcp.budgets.model import Limits, Policy, limits_of
from ksi_mcp.completions.expect import parse_expect
from ksi_mcp.compositions.drafts import AgentDraft, BudgetWish
from ksi_mcp.permissions import RoutingLevel, lower_level
from ksi_mcp.services import Services
from ksi_mcp.tools.tool import Part

BASE_PROMPT = (
    "You are {name}, one of several agents that work together. Answer what you are asked, briefly and exactly."
)
_SETTINGS = frozenset(field.name for field in fields(AgentSettings))
_HEARING = ("subscription_level", "error_level", "wake")

LevelWants = Annotated[RoutingLevel, BeforeValidator(lambda given: given.lower() if isinstance(given, str) else given)]
"""A routing level; published patterns write it in capitals."""


def _unsaid(schema: dict[str, Any]) -> None:
    """Two tools that every client is shown have it: each word of it is paid for in every conversation."""
    schema.pop("description", None)


class BudgetWants(Part):
    """Limits; what is left out is unlimited.

    `seconds` are of wall-clock time from now. `policy` is what happens at a limit: deny (the default), downgrade,
    park or terminate.
    """

    model_config = ConfigDict(json_schema_extra=_unsaid)

    usd: float | None = Field(default=None, ge=0, le=1_000_000_000)
    tokens: int | None = Field(default=None, ge=0, le=2**53 - 1)
    turns: int | None = Field(default=None, ge=0, le=2**53 - 1)
    seconds: int | None = Field(default=None, ge=0, le=2**53 - 1)
    policy: Policy | None = None

    def limits(self) -> Limits:
        """As the ledger takes them."""
        return limits_of(usd=self.usd, tokens=self.tokens, turns=self.turns, seconds=self.seconds, policy=self.policy)


def limits_of_wish(wish: BudgetWish) -> Limits:
    """What a composition asks for, as limits."""
    return limits_of(usd=wish.usd, tokens=wish.tokens, turns=wish.turns, seconds=wish.seconds, policy=wish.policy)


def tightest(a: Limits, b: Limits) -> Limits:
    """The lower of two limits, each kind for itself; the policy of the first that has one."""

    def lower(x: int | None, y: int | None) -> int | None:
        return x if y is None else y if x is None else min(x, y)

    return Limits(
        usd_micros=lower(a.usd_micros, b.usd_micros),
        tokens=lower(a.tokens, b.tokens),
        turns=lower(a.turns, b.turns),
        seconds=lower(a.seconds, b.seconds),
        policy=a.policy or b.policy,
    )


async def spec_of(svc: Services, draft: AgentDraft, *, name: str, composition: str | None, **over: Any) -> AgentSpec:
    """An agent as a composition asks for it, cut by what the operator's configuration grants.

    `over`: model, provider, capabilities, limits, routing_level, subscription_level as a caller asked for them; they
    outrank the draft. A model may be a profile: what the caller or the draft say themselves outranks what it says.
    """
    config = svc.config
    asked = over.get("capabilities")
    if asked is None:
        wished = draft.capabilities if draft.capabilities is not None else config.agents.default_capabilities
        asked = frozenset(wished) & frozenset(config.agents.grantable)
    answering = await _answering(svc, draft, model=over.get("model"), provider=over.get("provider"))
    settings: dict[str, Any] = {
        "max_tokens": config.agents.max_tokens,
        "max_tool_rounds": config.agents.max_tool_rounds,
        **answering.settings,
        **{key: value for key, value in draft.settings.items() if key in _SETTINGS and value is not None},
        "fallback": answering.fallback,
        "mcp_servers": permitted(draft.settings.get("mcp_servers"), config.mcp_servers),
    }
    made = AgentSettings(**settings)
    hearing = {key: draft.settings[key] for key in _HEARING if draft.settings.get(key) is not None}
    level = over.get("routing_level")
    if level is None and "routing_control" in asked and (wish := draft.settings.get("routing_level")) is not None:
        level = lower_level(wish, config.agents.grantable_level)
    if (asked_level := over.get("subscription_level")) is not None:
        hearing["subscription_level"] = asked_level
    if made.expect is not None:
        parse_expect(made.expect)
    return AgentSpec(
        name=name,
        system=draft.prompt or BASE_PROMPT.format(name=name),
        provider=answering.provider,
        model=answering.model,
        capabilities=frozenset(asked),
        settings=made,
        composition=composition,
        limits=tightest(over.get("limits") or Limits(), limits_of_wish(draft.budget)),
        routing_level=level,
        **hearing,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answering:
    """Who answers for an agent, and who stands in."""

    provider: str
    model: str
    fallback: tuple[str, ...]
    settings: Mapping[str, Any]


async def _answering(svc: Services, draft: AgentDraft, *, model: str | None, provider: str | None) -> _Answering:
    names, registry = svc.registry.names, svc.registry
    asked = model or draft.model or svc.config.model
    profile = None if asked is None else await names.named(asked)
    wanted = provider or draft.provider
    if profile is not None:
        # What counts is said where the model is, or above: who calls with a profile does not want the draft's provider.
        wanted = profile.provider(provider if model else wanted) or wanted
    if wanted:
        place, usual = registry.check(wanted), None
    else:
        default = await registry.default()
        place, usual = registry.check(default.provider), default.model
    chosen = profile.model if profile is not None else asked or usual or await names.model_at(place)
    listed = draft.settings.get("fallback")
    if listed is not None:
        fallback = await names.fallback(tuple(listed), provider=place, model=chosen)
    else:
        fallback = () if profile is None else profile.fallback(place)
    return _Answering(
        provider=place, model=chosen, fallback=fallback, settings={} if profile is None else profile.profile.settings
    )
