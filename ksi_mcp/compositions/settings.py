"""How an agent's model is called, as a document says it: next to its prompt or under `settings`. Pure."""

from __future__ import annotations

from typing import Any, Final

from ksi_mcp.compositions.model import shorten
from ksi_mcp.compositions.reading import Problems, join, kind_of, mapping, positive, whole
from ksi_mcp.compositions.servers import servers_of
from ksi_mcp.permissions import MAX_SUBSCRIPTION_LEVEL, ROUTING_LEVELS

MAX_FALLBACKS: Final = 10
MAX_MODEL_CHARS: Final = 200

_WHOLE: Final = ("max_tokens", "max_tool_rounds", "context_messages", "context_tokens")
_PLAIN: Final = (*_WHOLE, "effort", "timeout_s", "expect", "cache", "fallback", "supervision")
_LEVELS: Final = ("routing_level", "subscription_level", "error_level", "wake")
_CONTEXT: Final = {"max_messages": "context_messages", "max_tokens": "context_tokens"}


def settings_of(body: dict[str, Any], path: str, problems: Problems) -> dict[str, Any]:
    """`max_tokens`, `max_tool_rounds`, `effort`, `timeout_s`, `context`, `expect`, `cache`, `fallback`, `supervision`.

    `routing_level` says whose routes it may change: none, self, children, orchestration, global; `subscription_level`
    and `error_level`, how far below it an agent hears others without a rule (0 nobody, 1 its children, -1 all);
    `wake`, whether that starts a turn. `mcp_servers` names other servers whose tools it gets: see `servers_of`.

    What an expectation and a supervision say is checked when the agent is made, like the names of models.
    """
    settings = dict(mapping(body.get("settings"), join(path, "settings"), problems))
    settings.update({key: body[key] for key in (*_PLAIN, *_LEVELS) if body.get(key) is not None})
    settings.update(_context(body.get("context", settings.pop("context", None)), join(path, "context"), problems))
    for key in _WHOLE:
        if key in settings and (number := whole(settings[key])) is not None:
            settings[key] = number
        elif key in settings:
            problems.add(join(path, key), f"must be a whole number above 0, not {shorten(str(settings[key]))!r}")
    if "timeout_s" in settings and (seconds := positive(settings["timeout_s"])) is not None:
        settings["timeout_s"] = seconds
    elif "timeout_s" in settings:
        problems.add(join(path, "timeout_s"), "must be a number of seconds above 0")
    if "effort" in settings:
        problems.text(settings["effort"], join(path, "effort"))
    if "expect" in settings:
        settings["expect"] = mapping(settings["expect"], join(path, "expect"), problems)
    if "fallback" in settings:
        settings["fallback"] = _fallback(settings["fallback"], join(path, "fallback"), problems)
    if "cache" in settings:
        settings["cache"] = _cache(settings["cache"], join(path, "cache"), problems)
    if "supervision" in settings and not isinstance(settings["supervision"], str | dict):
        problems.add(join(path, "supervision"), f"must be text or a mapping, not {kind_of(settings['supervision'])}")
    servers = next((body[key] for key in ("mcp_servers", "mcpServers") if body.get(key) is not None), None)
    if (servers := settings.pop("mcp_servers", None) if servers is None else servers) is not None:
        settings["mcp_servers"] = servers_of(servers, join(path, "mcp_servers"), problems)
    _check_levels(settings, path, problems)
    return settings


def _check_levels(settings: dict[str, Any], path: str, problems: Problems) -> None:
    if (level := settings.get("routing_level")) is not None:
        settings["routing_level"] = level = level.lower() if isinstance(level, str) else level
        if level not in ROUTING_LEVELS:
            known = ", ".join(ROUTING_LEVELS)
            problems.add(join(path, "routing_level"), f"{shorten(str(level))!r} is none; there are {known}")
    for key in ("subscription_level", "error_level"):
        depth = settings.get(key)
        if depth is not None and not (type(depth) is int and -1 <= depth <= MAX_SUBSCRIPTION_LEVEL):
            problems.add(join(path, key), f"must be a whole number from -1 to {MAX_SUBSCRIPTION_LEVEL}")
    if not isinstance(settings.get("wake"), bool | None):
        problems.add(join(path, "wake"), f"must be yes or no, not {kind_of(settings['wake'])}")


def _context(value: object, path: str, problems: Problems) -> dict[str, Any]:
    """The window of the history that a turn is shown."""
    if value is None or isinstance(value, str):  # text under that name is prose, and kept like any other
        return {}
    window = mapping(value, path, problems)
    for key in window.keys() - _CONTEXT:
        problems.add(join(path, shorten(str(key))), "is no part of a context; there are max_messages and max_tokens")
    return {ours: window[theirs] for theirs, ours in _CONTEXT.items() if window.get(theirs) is not None}


def _fallback(value: object, path: str, problems: Problems) -> list[str]:
    """The models asked instead, in order: one, or a list."""
    models: list[Any] = value if isinstance(value, list) else [value]
    if len(models) > MAX_FALLBACKS:
        problems.add(path, f"{len(models)} models, the limit is {MAX_FALLBACKS}")
        return []
    for place, model in enumerate(models):
        if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_CHARS:
            problems.add(f"{path}.{place}", f"must name a model or provider:model, not {shorten(str(model))!r}")
        elif model in models[:place]:
            problems.add(f"{path}.{place}", f"the model {shorten(model)!r} is there twice")
    return models


def _cache(value: object, path: str, problems: Problems) -> str | None:
    if value in (None, False, "off", "none"):
        return None
    if value not in ("exact", "semantic"):
        problems.add(path, f"must be 'exact', 'semantic' or off, not {shorten(str(value))!r}")
        return None
    return str(value)
