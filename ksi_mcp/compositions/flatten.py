"""Parents merged into their children, texts of components and includes gathered. Pure over a look-up function.

Parents come first and the child overrides them: mappings merge deeply, everything else is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from ksi_mcp.compositions.model import Composition, content_hash, parse_reference, text_of
from ksi_mcp.errors import Invalid, NotFound

MAX_DEPTH: Final = 20
"""Generations of parents."""
MAX_INCLUDES: Final = 50

# What belongs to one composition alone and is not handed down.
_OWN_KEYS: Final = frozenset(
    {
        "name",
        "type",
        "component_type",
        "version",
        "description",
        "author",
        "tags",
        "lineage",
        "performance",
        "learnings",
    }
)
_SECURITY: Final = frozenset(
    {
        "capabilities",
        "permissions",
        "security",
        "security_profile",
        "permission_profile",
        "tools",
        "allowed_tools",
        "allowedTools",
        "disallowed_tools",
        "disallowedTools",
        "mcp_servers",
        "mcpServers",
        "routing_level",
        "subscription_level",
        "error_level",
    }
)
"""What says how far an agent may go: whoever writes it says all of it, and nothing it depends on adds to that."""
_LINK_KEYS: Final = frozenset({"extends", "mixins", "components"})

Lookup = Callable[[str], Composition | None]
"""The composition of a reference (`name` or `name@version-or-hash`), or None."""


def included_texts(flat: Composition, lookup: Lookup, dangling: list[str] | None = None) -> dict[str, str]:
    """The texts of everything under `includes`, and of what that includes, by name. For `dangling`, see `Flattener`.

    Raises:
        NotFound: an included composition is not there.
        Invalid: there are too many of them.
    """
    texts: dict[str, str] = {}
    waiting = [(name, flat.name) for name in names_under(flat.document, "includes")]
    while waiting:
        reference, by = waiting.pop(0)
        if reference in texts:
            continue
        if len(texts) >= MAX_INCLUDES:
            raise Invalid(f"{flat.name!r} includes more than {MAX_INCLUDES} compositions")
        found = lookup(reference)
        if found is None:
            message = f"{by!r} includes {reference!r}, which is not in the library"
            if dangling is None:
                raise NotFound(message)
            dangling.append(message)
            continue
        texts[reference] = text_of(found.document)
        waiting += [(name, found.name) for name in names_under(found.document, "includes")]
    return texts


def names_under(document: dict[str, Any], key: str) -> list[str]:
    """The references under `key`: one, or a list of them.

    Raises:
        Invalid: something there is no reference.
    """
    value = document.get(key)
    entries = [] if value is None else value if isinstance(value, list) else [value]
    found = []
    for entry in entries:
        name, version = parse_reference(entry, what=key)
        found.append(f"{name}@{version}" if version else name)
    return found


def merge(parent: Any, child: Any, *, keep_security: bool = False) -> Any:
    """`child` over `parent`: mappings deeply, everything else replaced.

    Security settings are never mixed: those of the child stand for themselves, or, with `keep_security`, those of
    the parent do where it has any.
    """
    if isinstance(parent, dict) and isinstance(child, dict):
        merged = dict(parent)
        for key, value in child.items():
            if key not in parent:
                merged[key] = value
            elif key in _SECURITY:
                merged[key] = parent[key] if keep_security else value
            else:
                merged[key] = merge(parent[key], value, keep_security=keep_security)
        return merged
    return child


class Flattener:
    """Merges a composition with its parents. Each one is looked at once, however often it is named.

    With `dangling`, what leads nowhere is noted there and left out: for a look, not for a run.
    """

    def __init__(self, lookup: Lookup, dangling: list[str] | None = None) -> None:
        self._lookup = lookup
        self._dangling = dangling
        self._done: dict[str, Composition] = {}

    def flatten(self, composition: Composition, path: tuple[str, ...] = ()) -> Composition:
        """`composition` with everything it inherits; without `extends`, `mixins` and `components`."""
        path = (*path, composition.name)
        if composition.name in path[:-1]:
            raise Invalid(f"compositions extend each other in a circle: {' -> '.join(path)}")
        if len(path) > MAX_DEPTH:
            raise Invalid(f"compositions extend each other more than {MAX_DEPTH} deep: {' -> '.join(path)}")
        if composition.hash in self._done:
            return self._done[composition.hash]
        inherited: dict[str, Any] = {}
        for key in ("extends", "mixins"):
            for reference in names_under(composition.document, key):
                found = self._found(reference, path)
                if found is None:
                    continue
                handed_down = {k: v for k, v in self.flatten(found, path).document.items() if k not in _OWN_KEYS}
                inherited = merge(inherited, handed_down, keep_security=key == "mixins")
        own = {key: value for key, value in composition.document.items() if key not in _LINK_KEYS}
        document = merge(inherited, own)
        if texts := self._component_texts(composition.document.get("components"), path):
            prompt = "\n\n".join([*texts, text_of(document)]).strip()
            document = {
                key: value for key, value in document.items() if key not in ("system_prompt", "content", "text")
            }
            document["prompt"] = prompt
        flat = replace(composition, document=document, hash=content_hash(document))
        self._done[composition.hash] = flat
        return flat

    def _found(self, reference: str, path: tuple[str, ...]) -> Composition | None:
        found = self._lookup(reference)
        if found is None:
            message = f"{' -> '.join((*path, reference))}: {reference!r} is not in the library"
            if self._dangling is None:
                raise NotFound(message, hint="composition_discover lists what is there")
            self._dangling.append(message)
        return found

    def _component_texts(self, components: object, path: tuple[str, ...]) -> list[str]:
        entries = [] if components is None else components if isinstance(components, list) else [components]
        texts: list[str] = []
        for entry in entries:
            if isinstance(entry, dict) and "inline" in entry:
                inline = entry["inline"]
                texts.append(text_of(inline) if isinstance(inline, dict) else str(inline).strip())
                continue
            named = entry
            if isinstance(entry, dict):
                named = next((entry[key] for key in ("source", "component", "name") if key in entry), None)
            name, version = parse_reference(named, what="components")
            found = self._found(f"{name}@{version}" if version else name, path)
            if found is not None:
                texts.append(text_of(self.flatten(found, path).document))
        return [text for text in texts if text]
