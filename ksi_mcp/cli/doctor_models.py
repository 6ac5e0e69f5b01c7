"""What `ksi-mcp doctor` says of models: who answers, by default and by name, where keys are, the profiles."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

from ksi_mcp.config import Config, Home
from ksi_mcp.errors import KsiError
from ksi_mcp.providers.choosing import LOCAL, models_of
from ksi_mcp.providers.claude.command import ask_status
from ksi_mcp.providers.credentials import FILE_KEY, MIN_FILE_KEY_CHARS
from ksi_mcp.providers.processes import Processes
from ksi_mcp.providers.profiles.records import Link, Profile
from ksi_mcp.providers.registry import ProviderRegistry

STATUS_S = 5.0
"""How long Claude Code is given to say whether it is logged in."""
SHOWN_MODELS = 5


async def look_at_models(registry: ProviderRegistry, config: Config, place: Home) -> dict[str, Any]:
    """Everything, for programs. No key is in it."""
    default = await registry.default()
    providers = await asyncio.to_thread(registry.available)
    servers = await _local_servers(registry)
    for name, shown in LOCAL.items():  # an address is not yet somebody who listens there
        if shown in servers and servers[shown] is None:
            providers[f"openai_compatible@{name}"] = (False, "does not answer")
    if "@" not in default.provider:
        model = default.model
        if model is None and default.found:
            try:
                model = await registry.names.model_at(default.provider)
            except KsiError:
                model = None
    else:
        model = default.model
    return {
        "providers": {
            name: {"answers": answers, "why": why, "default": name == default.provider}
            for name, (answers, why) in providers.items()
        },
        "default": {"provider": default.provider, "model": model, "why": default.why, "found": default.found},
        "claude_code": await _claude_code(config, place),
        "local_servers": servers,
        "credentials": await asyncio.to_thread(_credentials, registry, config),
        "credentials_problem": await asyncio.to_thread(registry.credentials.problem),
        "profiles": {name: _shown(profile) for name, profile in registry.profiles.all().items()},
        "profile_problems": [
            f"profiles.yaml ({bad.layer}){f': {bad.profile}' if bad.profile else ''}: {bad.message}"
            for bad in registry.profiles.problems()
        ],
    }


async def _claude_code(config: Config, place: Home) -> dict[str, Any]:
    try:
        async with asyncio.timeout(STATUS_S):
            answers, why = await ask_status(config.claude_cli, os.environ, Processes(place.root / "processes"))
    except TimeoutError:
        answers, why = False, f"`{config.claude_cli.command} auth status` did not end within {STATUS_S:g} s"
    return {"answers": answers, "why": why}


async def _local_servers(registry: ProviderRegistry) -> dict[str, list[str] | None]:
    """The models of each server on this machine; None: it does not answer."""
    places = {
        shown: found.base_url
        for name, shown in LOCAL.items()
        if (found := registry.names.place(f"openai_compatible@{name}")) is not None
    }
    answers = await asyncio.gather(*(models_of(url) for url in places.values()))
    return dict(zip(places, answers, strict=True))


def _credentials(registry: ProviderRegistry, config: Config) -> dict[str, str | None]:
    """Where each key is that something asks for or that is kept, by name; None: nowhere."""
    asked = {config.anthropic.api_key_env, config.openai_compatible.api_key_env}
    asked |= {place.api_key_env for place in registry.profiles.endpoints().values()}
    with contextlib.suppress(KsiError):  # `credentials_problem` says why
        asked |= set(registry.credentials.kept())
    return {name: registry.credentials.source(name) for name in sorted(name for name in asked if name)}


def _shown(profile: Profile) -> dict[str, Any]:
    return {
        "layer": profile.layer,
        "provider": profile.first.provider,
        "model": profile.first.model,
        "fallback": [_link(link) for link in profile.chain],
        **profile.settings,
    }


def _link(link: Link) -> str:
    model = link.model or "(its first model)"
    return model if link.provider is None else f"{link.provider}:{model}"


def missing_models(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What keeps agents from being answered, and how to mend it. Nothing of it is essential: the rest works."""
    default = facts["default"]
    missing: list[dict[str, Any]] = []
    state = facts["providers"].get(default["provider"])
    if not default["found"]:
        what = "no model is set up, so turns wait until somebody answers them (completion_answer)"
        get = (
            "set ANTHROPIC_API_KEY or run `ksi-mcp credentials set ANTHROPIC_API_KEY`, log in to Claude Code, start"
            " Ollama or LM Studio, or set `provider: scripted` in config.yaml"
        )
        missing.append({"what": what, "essential": False, "get": f"{get} ({default['why']})"})
    elif state is None or not state["answers"]:
        why = "there is none of that name" if state is None else state["why"]
        get = f"{why}; or set `provider: scripted` in config.yaml"
        what = f"the default provider {default['provider']!r} does not answer"
        missing.append({"what": what, "essential": False, "get": get})
    missing += [
        {"what": f"profile {problem}", "essential": False, "get": "correct the file"}
        for problem in facts["profile_problems"]
    ]
    if facts["credentials_problem"]:
        get = f"{FILE_KEY} must be the one that it was written with ({MIN_FILE_KEY_CHARS} characters or more)"
        missing.append({"what": facts["credentials_problem"], "essential": False, "get": get})
    return missing


def lines_of_models(facts: dict[str, Any]) -> list[str]:
    """The same for people."""
    default = facts["default"]
    lines = [f"default      {default['provider']} {default['model'] or ''}".rstrip() + f": {default['why']}"]
    for name, state in facts["providers"].items():
        marked = " (default)" if state["default"] else ""
        lines.append(f"provider     {name}{marked}: {'ok' if state['answers'] else 'no'}, {state['why']}")
    claude = facts["claude_code"]
    lines.append(f"claude code  {'ok' if claude['answers'] else 'no'}, {claude['why']}")
    for name, models in facts["local_servers"].items():
        said = "does not answer" if models is None else ", ".join(models[:SHOWN_MODELS]) or "has no models"
        lines.append(f"{name:<12} {said}")
    for name, source in facts["credentials"].items():
        lines.append(f"credential   {name}: {source or 'nowhere'}")
    for name, profile in facts["profiles"].items():
        model = _link(Link(provider=profile["provider"], model=profile["model"]))
        then = "".join(f", then {each}" for each in profile["fallback"])
        lines.append(f"profile      {name} ({profile['layer']}): {model}{then}")
    return lines
