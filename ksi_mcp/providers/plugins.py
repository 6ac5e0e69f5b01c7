"""Providers from other packages: entry points of the group `ksi_mcp.providers`.

`name = "package.module:factory"`, where `factory(settings, credentials)` returns a `Provider`. `settings` is what
`config.yaml` says under `providers.name`; `credentials(NAME)` is a key or None, wherever the operator keeps it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Final

from ksi_mcp.errors import KsiError, NotFound, ProviderError
from ksi_mcp.providers.base import Provider
from ksi_mcp.providers.failures import masked, safe_text
from ksi_mcp.providers.kinds import KINDS
from ksi_mcp.providers.plugin_guard import GuardedProvider

GROUP: Final = "ksi_mcp.providers"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,59}")

Find = Callable[[str], str | None]
"""The key of that name."""


class Plugins:
    """What is installed, found when it is first asked for."""

    def __init__(self, settings: Mapping[str, Mapping[str, Any]], find: Find) -> None:
        self._settings = settings
        self._find = find
        self._offered: dict[str, EntryPoint] | None = None

    def names(self) -> list[str]:
        """The names of the providers, sorted; one of ours is never another package's."""
        return sorted(self._all())

    def where(self, name: str) -> str:
        """`package.module:factory`, as the package says it."""
        return self._all()[name].value

    async def build(self, name: str) -> Provider:
        """Make the provider of that name. Its module is loaded in a thread, its factory is called on the loop.

        Raises:
            NotFound: no package offers it. ProviderError: it cannot be loaded or made, or is no provider.
        """
        offered = self._all().get(name)
        if offered is None:
            raise NotFound(f"no installed package offers the provider {name[:60]!r}")
        handed: list[str] = []

        def find(wanted: str) -> str | None:
            key = self._find(wanted)
            if key:
                handed.append(key)
            return key

        try:
            factory = await asyncio.to_thread(offered.load)
            made = factory(MappingProxyType(dict(self._settings.get(name, {}))), find)
        except KsiError:
            raise
        except Exception as failure:  # noqa: BLE001  whatever another package does
            said = str(failure)
            for key in handed:
                said = masked(said, key)
            raise _unusable(name, f"{type(failure).__name__}: {safe_text(said)}") from None
        lacking = [part for part in ("complete", "aclose") if not callable(getattr(made, part, None))]
        if lacking or not isinstance(getattr(made, "name", None), str):
            raise _unusable(name, f"what it made has no {lacking[0] if lacking else 'name'}")
        return GuardedProvider(name, made, handed)

    def _all(self) -> dict[str, EntryPoint]:
        if self._offered is None:
            found = entry_points(group=GROUP)
            self._offered = {each.name: each for each in found if _NAME.fullmatch(each.name) and each.name not in KINDS}
        return self._offered


def _unusable(name: str, why: str) -> ProviderError:
    return ProviderError(
        f"provider {name!r} from another package cannot be used ({why})",
        kind="bug",
        billed="no",
        hint="see its documentation, or uninstall the package",
    )
