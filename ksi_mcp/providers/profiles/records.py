"""What profiles are once they are read: models and places by name, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ksi_mcp.providers.profiles.files import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A model of a chain. Without a provider it is wherever the agent is; without a model, whichever is there."""

    provider: str | None
    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile, ready for use."""

    name: str
    layer: Layer
    """The last one that says something of it."""
    first: Link
    chain: tuple[Link, ...]
    """What stands in, in order, no model twice."""
    settings: Mapping[str, Any]
    """`max_tokens`, `effort` and `timeout_s`, as far as it says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A place of its own at which a kind of provider is reached, with its own limit, breaker and key."""

    name: str
    """`kind@profile`."""
    base_url: str
    loopback: bool
    api_key_env: str | None
    in_flight: int | None
    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileProblem:
    """What is wrong in which layer's file; `profile` is None if it is the file as a whole."""

    layer: Layer
    profile: str | None
    message: str
