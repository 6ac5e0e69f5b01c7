"""Which model answers: an agent's first choice and those that stand in for it."""

from __future__ import annotations

from dataclasses import dataclass

from ksi_mcp.agents.model import Agent


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A model of an agent's chain; `link` is its place, 0 the first choice."""

    link: int
    provider: str
    model: str


def chain_of(agent: Agent) -> tuple[Choice, ...]:
    """An agent's models in the order in which they are asked. `provider:model`, or `model` at the agent's provider."""
    chain = [Choice(link=0, provider=agent.provider, model=agent.model)]
    for link, name in enumerate(agent.settings.fallback, start=1):
        provider, colon, model = name.partition(":")
        chain.append(Choice(link=link, provider=provider if colon else agent.provider, model=model if colon else name))
    return tuple(chain)


def choice_of(agent: Agent, link: int) -> Choice:
    """The model at that place; the last one if the chain has become shorter meanwhile."""
    chain = chain_of(agent)
    return chain[min(link, len(chain) - 1)]
