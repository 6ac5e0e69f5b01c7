"""What the names that agents give for models and providers stand for: profiles, places, what each has by default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ksi_mcp.config import Config
from ksi_mcp.errors import Invalid
from ksi_mcp.providers.choosing import DEFAULT_MODELS, Default, models_of
from ksi_mcp.providers.kinds import kind_of
from ksi_mcp.providers.profiles.layers import Profiles
from ksi_mcp.providers.profiles.records import Endpoint, Link, Profile
from ksi_mcp.providers.urls import check_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a profile means for an agent: a model, where it is, how it is asked, and what stands in."""

    profile: Profile
    model: str
    links: tuple[tuple[str | None, str], ...]
    """(provider, model); without a provider it is of another profile, for whichever answers by default."""
    default: str | None
    """Who answers by default, where that matters; None: nobody."""

    def provider(self, beside: str | None) -> str | None:
        """Where the model is; None if the profile leaves that open. A provider named `beside` it outranks it."""
        own = self.profile.first.provider
        return own if beside is None or beside == kind_of(own or "") else beside

    def fallback(self, provider: str) -> tuple[str, ...]:
        """What stands in for an agent at `provider`, as `provider:model`.

        At another one than the profile's own, only what the profile has there: nothing else was asked for.
        """
        own = self.profile.first.provider
        links, usual = self.links, provider
        if own not in (None, provider):
            links = tuple((provider, model) for place, model in links if place in (None, own))
        elif own is not None:
            links = tuple(link for link in links if link[0] or self.default)
            usual = self.default or provider
        first = f"{provider}:{self.model}"
        found = dict.fromkeys(f"{place or usual}:{model}" for place, model in links)
        return tuple(each for each in found if each != first)


class Names:
    """Looks names up for an agent that is made or changed now. `default` says who answers by default."""

    def __init__(self, config: Config, profiles: Profiles, default: Callable[[], Awaitable[Default]]) -> None:
        self._config = config
        self._profiles = profiles
        self._default = default

    async def named(self, name: str) -> Named | None:
        """What a profile of that name means; None if there is none.

        Raises:
            Invalid: it cannot be used, or a server that is to say which model it has does not answer.
        """
        profile = self._profiles.get(name)
        if profile is None:
            return None
        links = [await self._link(link) for link in profile.chain]
        _, model = await self._link(profile.first)
        open_ = profile.first.provider is not None and any(place is None for place, _ in links)
        usual = await self._usual() if open_ else None
        return Named(profile=profile, model=model, links=tuple(links), default=usual)

    async def fallback(self, entries: tuple[str, ...], *, provider: str, model: str) -> tuple[str, ...]:
        """What an agent's own list stands for: profiles are replaced by their models, no model comes twice.

        Raises:
            Invalid: an entry names a profile that cannot be used, or an unknown provider.
        """
        found: dict[tuple[str, str], str] = {}
        for entry in entries:
            plain = ":" not in entry and self._profiles.get(entry) is None
            for link in self._profiles.links(entry, at=provider):
                place, name = await self._link(link)
                if place is None and "@" in provider:  # a place of its own has its own models, not everybody's
                    place = await self._usual()
                    if place is None:
                        continue
                key = (place or provider, name)
                found.setdefault(key, entry if plain else ":".join(key))
        found.pop((provider, model), None)
        return tuple(found.values())

    async def model_at(self, provider: str) -> str:
        """The model for agents that name none there.

        Raises:
            Invalid: the provider has none that is always there, and none is configured.
        """
        if (known := DEFAULT_MODELS.get(provider)) is not None:
            return known
        place = self.place(provider)
        if place is not None and place.model is not None:
            return place.model
        if place is not None and (models := await models_of(place.base_url)):
            return models[0]
        silent = ", and no server there says which it has" if place is not None and place.loopback else ""
        raise Invalid(
            f"no model is named for provider {provider[:60]!r}{silent}",
            hint="name one with the agent, or as `model` in its profile or in config.yaml",
        )

    def place(self, provider: str) -> Endpoint | None:
        """Where calls to it go, if a profile or `openai_compatible` of config.yaml says so."""
        if "@" in provider:
            return self._profiles.endpoints().get(provider)
        given = self._config.openai_compatible
        if provider != "openai_compatible" or given.base_url is None:
            return None
        _, loopback = check_url(given.base_url, "openai_compatible")
        return Endpoint(
            name=provider,
            base_url=given.base_url,
            loopback=loopback,
            api_key_env=given.api_key_env,
            in_flight=given.in_flight,
            model=None,
        )

    async def _usual(self) -> str | None:
        found = await self._default()
        return found.provider if found.found else None

    async def _link(self, link: Link) -> tuple[str | None, str]:
        return link.provider, link.model or await self.model_at(str(link.provider))
