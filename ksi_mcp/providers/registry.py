"""The providers by name, each built when it is first asked for.

A name is a kind that comes with the server, `kind@profile` for a place that a profile has of its own, or what another
package offers as an entry point of the group `ksi_mcp.providers`. A key goes to the place that it was configured for
and to no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ksi_mcp import yamlio
from ksi_mcp.clock import Clock
from ksi_mcp.config import Config
from ksi_mcp.errors import Conflict, Invalid, NotFound, ProviderError
from ksi_mcp.providers.base import Provider, Traits
from ksi_mcp.providers.credentials import Credentials
from ksi_mcp.providers.kinds import KINDS, kind_of, traits_of
from ksi_mcp.providers.processes import end_recorded
from ksi_mcp.providers.urls import check_url, is_loopback_url

# What is not needed for every start is imported where it is needed: a server starts for each session of a client, and
# most of them ask none of these.
if TYPE_CHECKING:
    from ksi_mcp.budgets.prices import Override
    from ksi_mcp.providers.choosing import Default
    from ksi_mcp.providers.claude.cli import Door
    from ksi_mcp.providers.naming import Names
    from ksi_mcp.providers.plugins import Plugins
    from ksi_mcp.providers.profiles.layers import Profiles
    from ksi_mcp.providers.profiles.records import Profile

logger = logging.getLogger(__name__)

BUILT_IN_PRICES: Final[Mapping[str, Override]] = {
    "openai_compatible@ollama:*": "free",
    "openai_compatible@lm_studio:*": "free",
}
"""What the built-in profiles say of prices: a start without other profiles reads no file for it."""
NOBODY: Final = "nobody answers by itself here ({why}): its turns wait until somebody answers them (completion_answer)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """What the configuration and the folders say about providers. No key is in it, only where each is.

    Without `scripted_script` the scripted provider echoes the prompt.
    """

    config: Config = field(default_factory=Config)
    root: Path | None = None
    """The data folder; without one there are neither profiles of the operator's nor kept credentials."""
    project: Path | None = None
    scripted_script: Mapping[str, Any] | None = None


class ProviderRegistry:
    """Builds providers, keeps them, closes them. `environ` is where keys are looked up first.

    `door` is how an agent that runs in a process of its own reaches our tools; without one there are none.
    """

    def __init__(
        self, settings: ProviderSettings, clock: Clock, environ: Mapping[str, str], *, door: Door | None = None
    ) -> None:
        self.settings = settings
        self.credentials = Credentials(environ, settings.root)
        self._clock = clock
        self._environ = environ
        self._door = door
        self._built: dict[str, Provider] = {}
        self._building = asyncio.Lock()
        self._choosing = asyncio.Lock()
        self._default: Default | None = None
        self._profiles: Profiles | None = None
        self._bare = False
        """There was no file of profiles at the first look, which is what places and prices are of."""
        self._names: Names | None = None
        self._plugins: Plugins | None = None
        self._closed = False

    # ------------------------------------------------------------------------------- by name

    async def get(self, name: str | None = None) -> Provider:
        """Return the provider of that name, the default one without a name.

        Raises `NotFound` for an unknown name, `Invalid` if its settings are wrong or nobody is called there
        (`external`), `ProviderError` if another package could not build it, `Conflict` once closed. A missing key or
        package shows at its first call, as `ProviderError`: see `available`.
        """
        name = name or (await self.default()).provider
        if self._closed:
            raise Conflict("the providers are closed", hint="start the server again")
        if not self._usable(name):
            if self.traits(name).parks:
                raise Invalid(f"provider {name!r} is never called", hint="somebody answers with completion_answer")
            async with self._building:
                if not self._usable(name):
                    self._built[name] = await self._build(name)
        return self._built[name]

    def _usable(self, name: str) -> bool:
        """Whether it is built. One that lacks its key is built again: it may have been set meanwhile."""
        return name in self._built and not getattr(self._built[name], "lacks_key", False)

    def known(self) -> list[str]:
        """The names, sorted."""
        return sorted({*KINDS, *self.profiles.endpoints(), *self.plugins.names()})

    def knows(self, name: str) -> bool:
        """Whether there is a provider of that name. Looks no further than it must."""
        return name in KINDS or (name in self.profiles.endpoints() if "@" in name else name in self.plugins.names())

    def check(self, name: str) -> str:
        """The name of a provider that there is.

        Raises:
            Invalid: there is none of that name, or its place is not the one that it had at the start.
        """
        if "@" in name:
            self.profiles.check_place(name)
        if not self.knows(name):
            raise Invalid(f"unknown provider {name[:60]!r}", hint=f"there are {', '.join(self.known())}")
        return name

    def traits(self, name: str) -> Traits:
        """What is to be known of a provider; one from another package may say so itself once it is built."""
        said = getattr(self._built.get(name), "traits", None)
        return said if isinstance(said, Traits) and kind_of(name) not in KINDS else traits_of(name)

    def in_flight(self, name: str) -> int | None:
        """How many calls may be under way there at once; None: as many as there are turns at work."""
        config, kind = self.settings.config, kind_of(name)
        if kind == "claude_cli":
            from ksi_mcp.providers.processes import process_cap  # noqa: PLC0415  as above

            return process_cap(config.claude_cli)
        place = self.profiles.endpoints().get(name) if "@" in name else None
        if place is not None and place.in_flight is not None:
            return place.in_flight
        if kind in KINDS:
            return config.in_flight(kind)
        most = config.providers.get(name, {}).get("in_flight")
        return most if isinstance(most, int) and not isinstance(most, bool) and most > 0 else None

    def near(self, name: str) -> bool:
        """Whether a provider is reached on this machine, where a refusal comes at once."""
        if "@" in name:
            place = self.profiles.endpoints().get(name)
            return place is not None and is_loopback_url(place.base_url)
        config, kind = self.settings.config, kind_of(name)
        urls = {"anthropic": config.anthropic.base_url, "openai_compatible": config.openai_compatible.base_url}
        return is_loopback_url(urls.get(kind))

    # ------------------------------------------------------------------------------ profiles

    @property
    def profiles(self) -> Profiles:
        """The model profiles of all layers."""
        if self._profiles is None:
            from ksi_mcp.providers.profiles.layers import Profiles as All  # noqa: PLC0415  as above

            project = self.settings.project
            self._profiles = All(
                user=self.settings.root,
                project=project,
                knows=lambda name: name in self.plugins.names(),
                bare=self._bare,
            )
        return self._profiles

    @property
    def plugins(self) -> Plugins:
        """What other packages offer."""
        if self._plugins is None:
            from ksi_mcp.providers.plugins import Plugins as Offered  # noqa: PLC0415  as above

            self._plugins = Offered(self.settings.config.providers, self.credentials.get)
        return self._plugins

    def profile(self, name: str) -> Profile | None:
        """The profile of that name; None if there is none. Raises `Invalid` if it cannot be used."""
        return self.profiles.get(name)

    @property
    def names(self) -> Names:
        """What the names that agents give for models stand for."""
        if self._names is None:
            from ksi_mcp.providers.naming import Names as Given  # noqa: PLC0415  as above

            self._names = Given(self.settings.config, self.profiles, self.default)
        return self._names

    def price_overrides(self) -> dict[str, Override]:
        """Prices by `provider:model`, `provider:*` or `model`: what config.yaml says, then what profiles say.

        They, and the places of profiles, are those of the first look.
        """
        config = self.settings.config
        found: dict[str, Override] = {}
        if is_loopback_url(config.openai_compatible.base_url):
            found["openai_compatible:*"] = "free"
        if self._profiles is None and not self._bare:
            self._bare = self.settings.root is None or not (self.settings.root / "profiles.yaml").exists()
        found.update(BUILT_IN_PRICES if self._bare else self.profiles.prices())
        return {**found, **config.prices}

    # ------------------------------------------------------------------------------- default

    async def default(self) -> Default:
        """The provider for agents that name none: what config.yaml says, else what this machine has.

        It is decided once. Nothing leaves the machine for it, and it takes no longer than a keyring and 0.3 s.
        """
        if self._default is None:
            async with self._choosing:
                if self._default is None:
                    from ksi_mcp.providers.choosing import choose  # noqa: PLC0415  as above

                    self._default = await choose(self.settings.config, self.credentials, self.profiles, self._environ)
                    said = logging.INFO if self._default.found else logging.WARNING
                    logger.log(
                        said, "agents that name no provider get %s: %s", self._default.provider, self._default.why
                    )
        return self._default

    def note(self, provider: str) -> str | None:
        """What whoever makes an agent there should know; None: nothing."""
        if self._default is None or self._default.found or provider != self._default.provider:
            return None
        return NOBODY.format(why=self._default.why)

    # ------------------------------------------------------------------------------ building

    async def _build(self, name: str) -> Provider:
        config, kind = self.settings.config, kind_of(name)
        most = self.in_flight(name) or config.worker.concurrency
        if name == "scripted":
            return self._scripted()
        if name == "claude_cli":
            return self._claude_cli()
        if name == "anthropic":
            key = await self._key(config.anthropic.api_key_env)
            return self._anthropic(key, config.anthropic.base_url, most)
        place = self.names.place(name)
        if place is not None:
            key = None if place.api_key_env is None else await self._key(place.api_key_env)
            if place.api_key_env is not None and key is None:
                raise ProviderError(
                    f"provider {name!r} has no API key",
                    kind="auth",
                    billed="no",
                    hint=f"set {place.api_key_env} in the environment of the server, or with `ksi-mcp credentials set`",
                )
            if kind == "anthropic":
                return self._anthropic(key, place.base_url, most, name)
            from ksi_mcp.providers.openai.compatible import OpenAICompatibleProvider  # noqa: PLC0415  as above

            return OpenAICompatibleProvider(key, place.base_url, most, name=name)
        if "@" in name:
            self.profiles.check_place(name)
        if name == "openai_compatible":
            raise Invalid(
                "openai_compatible has no base_url",
                hint="set openai_compatible.base_url in config.yaml, or use a profile such as ollama",
            )
        if self.knows(name):
            return await self.plugins.build(name)
        raise NotFound(f"unknown provider {name[:80]!r}", hint=f"known are: {', '.join(self.known())}")

    async def _key(self, name: str) -> str | None:
        found = await self.credentials.find(name)
        return None if found is None else found[1]

    def _anthropic(self, key: str | None, base_url: str | None, most: int, name: str = "anthropic") -> Provider:
        from ksi_mcp.providers.anthropic.provider import AnthropicProvider  # noqa: PLC0415  as above

        prompt_cache = self.settings.config.anthropic.prompt_cache
        return AnthropicProvider(key, base_url, most, prompt_cache=prompt_cache, name=name)

    def _claude_cli(self) -> Provider:
        from ksi_mcp.providers.claude.cli import ClaudeCliProvider  # noqa: PLC0415  as above

        if self.settings.root is None:
            raise Invalid("claude_cli needs a data folder", hint="give one with --home")
        return ClaudeCliProvider(
            self.settings.config.claude_cli, self.settings.root, self._door, self._environ, self._clock
        )

    def _scripted(self) -> Provider:
        # Its format costs a server that asks real models 10 ms at each start.
        from ksi_mcp.providers.script import Script, parse_script  # noqa: PLC0415
        from ksi_mcp.providers.scripted import ScriptedProvider  # noqa: PLC0415

        return ScriptedProvider(Script(parse_script(self.settings.scripted_script)), self._clock)

    def end_lost(self) -> int:
        """Kill the processes that a lost worker has left; how many. Blocking; for the holder of the folder's lock."""
        root = self.settings.root
        if root is None:
            return 0
        ended = end_recorded(root / "processes")  # servers whose tools agents were given
        if (root / "claude_cli").is_dir():
            from ksi_mcp.providers.claude.cli import end_recorded as end_claude  # noqa: PLC0415  as above

            ended += end_claude(root)
        return ended

    async def aclose(self) -> None:
        """Close what was built. All are closed, even if one fails; the first failure is raised."""
        self._closed = True
        built, self._built = self._built, {}
        failures: list[Exception] = []
        for provider in built.values():
            try:
                await provider.aclose()
            except Exception as error:  # noqa: BLE001 - the others still have to be closed
                failures.append(error)
        if failures:
            raise failures[0]

    # ----------------------------------------------------------------------------- what there is

    def available(self) -> dict[str, tuple[bool, str]]:
        """Say of each provider whether it can be used, and why or why not. Starts nothing and asks no network."""
        return {name: self._look(name) for name in self.known()}

    def _look(self, name: str) -> tuple[bool, str]:
        config, kind = self.settings.config, kind_of(name)
        try:
            if kind == "scripted":
                return self._look_at_script()
            if kind == "external":
                return True, "turns wait until somebody answers them with completion_answer"
            if kind == "claude_cli":
                from ksi_mcp.providers.choosing import look_for_claude  # noqa: PLC0415  as above

                return look_for_claude(config.claude_cli, self._environ)
            if name == "anthropic":
                url, key = config.anthropic.base_url, config.anthropic.api_key_env
                local = url is not None and check_url(url, name)[1]
                return self._look_for_key(key, None if local else f"no API key; set {key}")
            place = self.names.place(name)
        except Invalid as wrong:
            return False, wrong.text()
        if place is not None:
            lacking = None if place.api_key_env is None else f"no API key; set {place.api_key_env}"
            found, why = self._look_for_key(place.api_key_env, lacking)
            host = check_url(place.base_url, name)[0]
            return found, f"{host}, {why}"
        if name == "openai_compatible":
            return False, "no base_url in config.yaml"
        return True, f"from another package ({self.plugins.where(name)})"

    def _look_for_key(self, key: str | None, lacking: str | None) -> tuple[bool, str]:
        source = None if key is None else self.credentials.source(key)
        if source is not None:
            return True, f"the key is in {key} ({source})"
        return lacking is None, lacking or "no key needed"

    def _look_at_script(self) -> tuple[bool, str]:
        from ksi_mcp.providers.script import parse_script  # noqa: PLC0415  as above

        spec = parse_script(self.settings.scripted_script)
        return True, f"{len(spec.replies)} scripted replies" if spec.replies or spec.default else "echoes the prompt"


def settings_of(config: Config, root: Path, project: Path | None = None) -> ProviderSettings:
    """The providers' part of the configuration; a script is read from below the data folder `root`.

    Raises:
        Invalid: the script cannot be read.
    """
    script: Mapping[str, Any] | None = None
    if config.scripted.script is not None:
        file = root / config.scripted.script
        try:
            text = file.read_text("utf-8")
        except OSError:
            raise Invalid(
                f"config.yaml: scripted.script {config.scripted.script[:100]!r} cannot be read",
                hint="give a file relative to the data folder",
            ) from None
        script = yamlio.safe_load(text, what=config.scripted.script)
    return ProviderSettings(config=config, root=root, project=project, scripted_script=script)
