"""Model profiles: a name for a model, where it is reached, how it is asked and what stands in for it.

Three layers: those that come with the server, `profiles.yaml` of the data folder, `.ksi/profiles.yaml` of the project.
A later layer changes single keys of a profile of the same name. A project may come from somebody else: it chooses among
the providers that the operator has, and says neither where they are, nor which key they get, nor what they cost; of a
profile that the operator speaks of it does not say which model that is, nor what stands in for it.

Places and prices are those of the first look, since the one is worth nothing without the other: a free place that
becomes a paid one must not be called for nothing. All else is read again when a file has changed.

A mistake costs the profile, or the file, that it is in, and nothing else: whoever names it gets the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ksi_mcp.budgets.prices import Override, Prices
from ksi_mcp.errors import Invalid
from ksi_mcp.providers.credentials import FILE_KEY, check_credential_name
from ksi_mcp.providers.kinds import KINDS, kind_of
from ksi_mcp.providers.profiles.files import (
    Layer,
    Stamp,
    check_projects,
    check_said,
    checked,
    looks_like_a_model,
    mentions,
    parse,
    read_small,
    stamp_of,
)
from ksi_mcp.providers.profiles.records import Endpoint, Link, Profile, ProfileProblem
from ksi_mcp.providers.urls import check_url

FILE: Final = "profiles.yaml"
PROJECT_FOLDER: Final = ".ksi"
MAX_CHAIN: Final = 20
"""Models that stand in for one, those of other profiles included; also how deep profiles name each other."""
ENDPOINT_KINDS: Final = ("openai_compatible", "anthropic")
"""The kinds that can be reached at more than one place."""

_SETTINGS: Final = ("max_tokens", "effort", "timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """What all layers say together."""

    profiles: Mapping[str, Profile]
    endpoints: Mapping[str, Endpoint]
    prices: Mapping[str, Override]
    problems: tuple[ProfileProblem, ...]
    broken: Mapping[str, Invalid]
    """Why a profile cannot be used, by its name."""
    unread: tuple[tuple[str, Invalid], ...]
    """The text of each file that could not be read as a whole, and why."""
    stale: frozenset[str]
    """The places that a file gives now, and not at the first look."""


class Profiles:
    """The profiles of all layers, read when they are first asked for and again when a file has changed.

    `knows` says whether a name that is no kind of ours is a provider all the same. `bare`: there was no file but the
    built-in one when this began; the places of any other are new.
    """

    def __init__(
        self, *, user: Path | None, project: Path | None, knows: Callable[[str], bool], bare: bool = False
    ) -> None:
        self._paths: list[tuple[Layer, Path]] = [("built-in", Path(__file__).with_name(FILE))]
        if user is not None:
            self._paths.append(("user", user / FILE))
        # A data folder inside the project is the operator's all the same.
        if project is not None and (user is None or user.resolve() != (project / PROJECT_FOLDER).resolve()):
            self._paths.append(("project", project / PROJECT_FOLDER / FILE))
        self._knows = knows
        self._bare = bare
        self._seen: list[Stamp | None] = []
        self._first: _Table | None = None
        self._table: _Table

    def get(self, name: str) -> Profile | None:
        """The profile of that name; None if there is none.

        Raises:
            Invalid: a file says something of it that cannot be used.
        """
        table = self._read()
        if name in table.broken:
            raise table.broken[name]
        for text, wrong in table.unread:
            if mentions(text, name):
                raise wrong
        return table.profiles.get(name)

    def links(self, entry: str, *, at: str | None) -> Iterator[Link]:
        """What an entry of a fallback stands for: a profile with all that stands in for it, or a model.

        `at` is the provider beside which it is written.

        Raises:
            Invalid: it names a provider or profile that there is not.
        """
        profile = self.get(entry)
        if profile is None:
            yield self._model(entry, at)
        else:
            yield profile.first
            yield from profile.chain

    def all(self) -> dict[str, Profile]:
        """Every profile that can be used, by name."""
        return dict(sorted(self._read().profiles.items()))

    def endpoints(self) -> Mapping[str, Endpoint]:
        """The places that profiles have of their own, by the provider's name, as they were at the first look."""
        return self._read().endpoints

    def prices(self) -> Mapping[str, Override]:
        """What the operator says of prices, by `provider:model` or `provider:*`, as it was at the first look."""
        return self._read().prices

    def check_place(self, provider: str) -> None:
        """Raises `Invalid` if a file gives that provider a place that it did not have at the first look."""
        if provider in self._read().stale:
            raise _stale(f"the place of provider {provider[:60]!r}")

    def problems(self) -> tuple[ProfileProblem, ...]:
        """What is wrong in the files."""
        return self._read().problems

    def _read(self) -> _Table:
        stamps = [stamp_of(path) for _, path in self._paths]
        if self._first is None:
            self._first = self._table = _Reading(self._knows).table(self._paths[:1] if self._bare else self._paths)
            self._seen = [] if self._bare else stamps
        if stamps != self._seen:
            self._table = _Reading(self._knows, self._first).table(self._paths)
            self._seen = stamps
        return self._table

    def _model(self, entry: str, at: str | None) -> Link:
        return _model(entry, at, self._is_provider)

    def _is_provider(self, name: str) -> bool:
        return name in KINDS or name in self._read().endpoints or ("@" not in name and self._knows(name))


class _Reading:
    """Puts the layers together, once."""

    def __init__(self, knows: Callable[[str], bool], first: _Table | None = None) -> None:
        self._knows = knows
        self._first_look = first
        self._users: set[str] = set()
        self._stale: set[str] = set()
        self._said: dict[str, dict[str, Any]] = {}
        self._layer: dict[str, Layer] = {}
        self._problems: list[ProfileProblem] = []
        self._broken: dict[str, Invalid] = {}
        self._unread: list[tuple[str, Invalid]] = []
        self._endpoints: dict[str, Endpoint] = {}
        self._prices: dict[str, Override] = {}
        self._chains: dict[str, tuple[Link, ...]] = {}

    def table(self, paths: list[tuple[Layer, Path]]) -> _Table:
        for layer, path in paths:
            if layer != "project":
                self._take(layer, path)
        # Where a model is reached and what it costs is settled before a project says anything: a price is that of the
        # model that the operator named, and not of one that a project puts in its place.
        for name in list(self._said):
            self._try(name, self._settle)
        if self._first_look is not None:
            self._keep(self._first_look)
        for layer, path in paths:
            if layer == "project":
                self._take(layer, path)
        profiles: dict[str, Profile] = {}
        for name in list(self._said):
            if (made := self._try(name, self._profile)) is not None:
                profiles[name] = made
        return _Table(
            profiles=profiles,
            endpoints=self._endpoints,
            prices=self._prices,
            problems=tuple(self._problems),
            broken=self._broken,
            unread=tuple(self._unread),
            stale=frozenset(self._stale),
        )

    def _keep(self, first: _Table) -> None:
        """Places and prices stay those of the first look; a profile whose place is another one cannot be used."""
        now, self._endpoints, self._prices = self._endpoints, dict(first.endpoints), dict(first.prices)
        for name in now.keys() | first.endpoints.keys():
            owner = name.partition("@")[2]
            place, before = now.get(name), first.endpoints.get(name)
            if place is not None and before is not None and replace(before, model=place.model) == place:
                self._endpoints[name] = place
            elif owner in self._said:
                self._stale.add(name)
                if owner not in self._broken:
                    self._fail(owner, _stale("its base_url, api_key_env or in_flight"))

    def _take(self, layer: Layer, path: Path) -> None:
        what, text = f"{FILE} ({layer})", ""
        try:
            text = read_small(path, layer, what)
            document = parse(text, what)
        except Invalid as wrong:
            self._unread.append((text, wrong))
            self._problems.append(ProfileProblem(layer=layer, profile=None, message=wrong.text()))
            return
        for name, given in document.items():
            self._layer[name] = layer
            before = self._said.get(name)
            self._said.setdefault(name, {})
            if layer == "user":
                self._users.add(name)
            try:
                said = check_said(name, given, layer)
                if layer == "project":
                    check_projects(name, said, lower=before, users=name in self._users)
            except Invalid as wrong:
                self._fail(name, wrong)
                continue
            self._said[name].update(said)

    def _try(self, name: str, work: Callable[[str], Any]) -> Any:
        """What `work` makes of a profile; None if it cannot be used."""
        if name in self._broken:
            return None
        try:
            return work(name)
        except Invalid as wrong:
            self._fail(name, wrong)
            return None

    def _fail(self, name: str, wrong: Invalid) -> None:
        layer, shown = self._layer[name], name[:60]
        self._broken[name] = Invalid(f"profile {shown!r} in {FILE} ({layer}): {wrong.message}", hint=wrong.hint)
        self._problems.append(ProfileProblem(layer=layer, profile=shown, message=wrong.text()))

    def _settle(self, name: str) -> None:
        """Its place and its price, as the operator says them."""
        wants = checked(self._said[name])
        provider = wants.provider
        loopback = False
        if wants.base_url is None:
            if (
                alone := next((key for key in ("api_key_env", "in_flight") if getattr(wants, key) is not None), None)
            ) is not None:
                raise Invalid(
                    f"{alone} goes with a base_url",
                    hint="the key and the limit of a provider without one are in config.yaml",
                )
        else:
            kind = provider or "openai_compatible"
            if kind not in ENDPOINT_KINDS:
                raise Invalid(
                    f"provider {kind[:60]!r} has no base_url", hint=f"those that have are {', '.join(ENDPOINT_KINDS)}"
                )
            _, loopback = check_url(wants.base_url, f"profile {name}")
            if wants.api_key_env is not None:
                check_credential_name(wants.api_key_env)
                if wants.api_key_env == FILE_KEY:
                    raise Invalid(f"{FILE_KEY} is nobody's API key", hint="name the variable that holds the key")
            provider = f"{kind}@{name}"
            self._endpoints[provider] = Endpoint(
                name=provider,
                base_url=wants.base_url,
                loopback=loopback,
                api_key_env=wants.api_key_env,
                in_flight=wants.in_flight,
                model=wants.model,
            )
            if loopback and kind == "openai_compatible" and wants.price is None:
                self._prices[f"{provider}:*"] = "free"
        if wants.price is not None:
            if provider is None:  # it would be that of every model of this name, wherever it is
                raise Invalid("price goes with a provider or a base_url", hint="say where the model costs that")
            if wants.model is None and wants.base_url is None:
                raise Invalid("price goes with a model")
            key = f"{provider}:{wants.model or '*'}"
            Prices({key: wants.price})
            if self._prices.setdefault(key, wants.price) != wants.price:
                raise Invalid(f"another profile gives {key[:100]!r} another price")

    def _profile(self, name: str) -> Profile:
        wants = checked(self._said[name])
        settings = {key: value for key in _SETTINGS if (value := getattr(wants, key)) is not None}
        return Profile(
            name=name,
            layer=self._layer[name],
            first=self._first(name),
            chain=self._chain(name, (name,)),
            settings=settings,
        )

    def _first(self, name: str) -> Link:
        said = self._said[name]
        provider, model = said.get("provider"), said.get("model")
        own = next((f"{kind}@{name}" for kind in ENDPOINT_KINDS if f"{kind}@{name}" in self._endpoints), None)
        if own is not None:
            return Link(provider=own, model=model)
        if model is None:
            raise Invalid("it names no model")
        if provider is not None and not self._is_provider(provider):
            raise Invalid(f"unknown provider {provider[:60]!r}", hint=f"there are {', '.join(self._known())}")
        return Link(provider=provider, model=model)

    def _chain(self, name: str, path: tuple[str, ...]) -> tuple[Link, ...]:
        """Everything that stands in for a profile, depth first. `path` is how one came here."""
        if name in self._chains:
            return self._chains[name]
        first = self._first(name)
        found: dict[Link, None] = {}
        for entry in self._said[name].get("fallback") or ():
            if entry not in self._said:
                found[self._named(entry, first.provider)] = None
                continue
            if entry in path:
                circle = " -> ".join((*path[path.index(entry) :], entry))
                raise Invalid(f"its fallbacks go in a circle: {circle}", hint="take one of them out")
            if len(path) >= MAX_CHAIN:
                raise Invalid(f"its fallbacks lead through more than {MAX_CHAIN} profiles")
            if entry in self._broken:
                raise Invalid(f"its fallback {entry[:60]!r} cannot be used: {self._broken[entry].message}")
            found[self._first(entry)] = None
            found.update(dict.fromkeys(self._chain(entry, (*path, entry))))
        found.pop(first, None)
        if len(found) > MAX_CHAIN:
            raise Invalid(f"{len(found)} models stand in for it, the limit is {MAX_CHAIN}")
        self._chains[name] = tuple(found)
        return self._chains[name]

    def _named(self, entry: str, at: str | None) -> Link:
        if ":" not in entry and not looks_like_a_model(entry):
            raise Invalid(
                f"unknown fallback {entry[:80]!r}",
                hint="it is no profile; write a model as provider:model",
            )
        return _model(entry, at, self._is_provider)

    def _is_provider(self, name: str) -> bool:
        return name in KINDS or name in self._endpoints or ("@" not in name and self._knows(name))

    def _known(self) -> list[str]:
        return sorted({*KINDS, *self._endpoints})


def _stale(what: str) -> Invalid:
    return Invalid(f"{what} is not what it was when the server started", hint="restart the server")


def _model(entry: str, at: str | None, is_provider: Callable[[str], bool]) -> Link:
    """`model`, or `provider:model`; models of local servers have colons of their own."""
    provider, colon, model = entry.partition(":")
    if not colon:
        return Link(provider=at, model=entry)
    if is_provider(provider) and model:
        return Link(provider=provider, model=model)
    if at is not None and kind_of(at) == "openai_compatible":
        return Link(provider=at, model=entry)
    raise Invalid(
        f"fallback {entry[:80]!r} names the unknown provider {provider[:60]!r}",
        hint="write provider:model; `ksi-mcp doctor` shows the providers",
    )
