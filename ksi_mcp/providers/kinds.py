"""The kinds of providers that come with the server, and what each is like.

A provider's name is its kind, or `kind@endpoint` for one of several places that are reached in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ksi_mcp.providers.base import Traits

KINDS: Final[Mapping[str, Traits]] = {
    "anthropic": Traits(batches=True),
    "claude_cli": Traits(agentic=True, metered=False),
    "external": Traits(parks=True),
    "openai_compatible": Traits(),
    "scripted": Traits(),
}
_UNKNOWN: Final = Traits()


def kind_of(provider: str) -> str:
    """The kind of a provider by its name: what stands before `@`."""
    return provider.partition("@")[0]


def traits_of(provider: str) -> Traits:
    """What is to be known of a provider without building it; one from another package is an ordinary one."""
    return KINDS.get(kind_of(provider), _UNKNOWN)
