"""The providers by name, each built when it is first asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksi_mcp import yamlio
from ksi_mcp.clock import Clock
from ksi_mcp.config import Config
from ksi_mcp.errors import Conflict, Invalid, NotFound
from ksi_mcp.providers.anthropic import AnthropicProvider
from ksi_mcp.providers.base import Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """What the configuration says about providers. The key itself is not in it, only where it is.

    Without `scripted_script` the scripted provider echoes the prompt.
    """

    default_provider: str = "anthropic"
    default_model: str = "claude-sonnet-5-5"
    scripted_script: Mapping[str, Any] | None = None
    anthropic_base_url: str | None = None
    anthropic_key_env: str = "ANTHROPIC_API_KEY"
    anthropic_prompt_caching: bool = False
    max_connections: int = 64


class ProviderRegistry:
    """Builds providers, keeps them, closes them. `environ` is where keys are looked up."""

    def __init__(self, settings: ProviderSettings, clock: Clock, environ: Mapping[str, str]) -> None:
        self.settings = settings
        self._clock = clock
        self._environ = environ
        self._built: dict[str, Provider] = {}
        self._closed = False
        self._builders: dict[str, Callable[[], Provider]] = {"scripted": self._scripted, "anthropic": self._anthropic}
        self._checks: dict[str, Callable[[], tuple[bool, str]]] = {
            "scripted": self._check_scripted,
            "anthropic": self._check_anthropic,
        }

    async def get(self, name: str | None = None) -> Provider:
        """Return the provider of that name, the default one without a name.

        Raises `NotFound` for an unknown name, `Invalid` if its settings are wrong, `Conflict` once closed. A missing
        key or package shows at its first call, as `ProviderError`: see `available`.
        """
        name = name or self.settings.default_provider
        if self._closed:
            raise Conflict("the providers are closed", hint="start the server again")
        if name not in self._builders:
            raise NotFound(f"unknown provider {name[:80]!r}", hint=f"known are: {', '.join(self.known())}")
        if name not in self._built:
            self._built[name] = self._builders[name]()
        return self._built[name]

    def known(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._builders)

    def available(self) -> dict[str, tuple[bool, str]]:
        """Say of each provider whether it can be used, and why or why not. Asks no network."""
        return {name: self._checks[name]() for name in self.known()}

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

    def _scripted(self) -> Provider:
        # Its format costs a server that asks real models 10 ms at each start.
        from ksi_mcp.providers.script import Script, parse_script  # noqa: PLC0415
        from ksi_mcp.providers.scripted import ScriptedProvider  # noqa: PLC0415

        return ScriptedProvider(Script(parse_script(self.settings.scripted_script)), self._clock)

    def _anthropic(self) -> Provider:
        settings = self.settings
        return AnthropicProvider(
            self._environ.get(settings.anthropic_key_env),
            settings.anthropic_base_url,
            settings.max_connections,
            prompt_caching=settings.anthropic_prompt_caching,
        )

    def _check_scripted(self) -> tuple[bool, str]:
        from ksi_mcp.providers.script import parse_script  # noqa: PLC0415  as above

        try:
            spec = parse_script(self.settings.scripted_script)
        except Invalid as error:
            return False, error.text()
        return True, f"{len(spec.replies)} scripted replies" if spec.replies or spec.default else "echoes the prompt"

    def _check_anthropic(self) -> tuple[bool, str]:
        if importlib.util.find_spec("anthropic") is None:
            return False, "the package 'anthropic' is not installed; run: pip install 'anthropic>=2.11,<3'"
        try:
            provider = self._anthropic()
        except Invalid as error:
            return False, error.text()
        if self._environ.get(self.settings.anthropic_key_env, "").strip():
            return True, f"the key is in {self.settings.anthropic_key_env}"
        if isinstance(provider, AnthropicProvider) and provider.loopback:
            return True, "no key needed: the base URL is on this machine"
        return False, f"no API key; set {self.settings.anthropic_key_env}"


def settings_of(config: Config, root: Path) -> ProviderSettings:
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
    settings: dict[str, Any] = {"scripted_script": script, "anthropic_key_env": config.anthropic.api_key_env}
    if config.provider is not None:
        settings["default_provider"] = config.provider
    if config.model is not None:
        settings["default_model"] = config.model
    if config.anthropic.base_url is not None:
        settings["anthropic_base_url"] = config.anthropic.base_url
    return ProviderSettings(**settings)
