"""Which provider answers where neither the agent nor config.yaml names one: what this machine has, without asking.

An API key, then what config.yaml says of a place, then a Claude Code that is logged in, then a server for local models,
else nobody but whoever answers turns by hand. Only files and this machine's own ports are looked at.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ksi_mcp.config import DEFAULT_MODEL, Config
from ksi_mcp.provider_config import ClaudeCliConfig
from ksi_mcp.providers.credentials import Credentials
from ksi_mcp.providers.profiles.layers import Profiles
from ksi_mcp.providers.urls import is_loopback, is_loopback_url

LOOK_S: Final = 0.3
"""How long the servers on this machine are given to say what they have; all are asked at once."""
LOCAL: Final[Mapping[str, str]] = {"ollama": "Ollama", "lm_studio": "LM Studio"}
"""Built-in profiles of servers for local models, in the order in which they are preferred."""
DEFAULT_MODELS: Final[Mapping[str, str]] = {
    "anthropic": DEFAULT_MODEL,
    "claude_cli": "sonnet",
    "external": "host",
    "scripted": DEFAULT_MODEL,
}
"""For agents that name none, by kind of provider; the others have none that is always there."""

_MAX_ANSWER_BYTES: Final = 1_000_000
_MAX_STATE_BYTES: Final = 50_000_000
_LOGINS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
_ACCOUNT: Final = re.compile(rb'"oauthAccount"\s*:\s*\{')
_MODEL: Final = re.compile(r"[^\x00-\x20\x7f]{1,200}")
_OK: Final = b" 200 "


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """The provider for agents that name none, its model, and why it is this one."""

    provider: str
    model: str | None
    """None: whichever the provider has, asked when an agent needs it."""
    why: str
    found: bool = True
    """Whether there is anybody to ask at all."""


def look_for_claude(config: ClaudeCliConfig, environ: Mapping[str, str]) -> tuple[bool, str]:
    """Whether Claude Code is there and logged in, as files show it. Starts nothing; what they say may have expired."""
    program = config.command[:80]
    if shutil.which(config.command, path=environ.get("PATH", "")) is None:
        return False, f"there is no {program} on PATH"
    for name in _LOGINS:
        if name in config.env and environ.get(name):
            return True, f"{program} is on PATH and its key in {name}"
    home, own = environ.get("HOME", "/nonexistent"), environ.get("CLAUDE_CONFIG_DIR")
    tokens, state = Path(own or f"{home}/.claude", ".credentials.json"), Path(own or home, ".claude.json")
    # Where the token is in the system's keychain, there is only its owner's name in the state.
    if b'"accessToken"' in _read(tokens) or _ACCOUNT.search(_read(state)) is not None:
        return True, f"{program} is on PATH and logged in"
    return False, f"{program} is on PATH, but not logged in"


def _read(file: Path) -> bytes:
    try:
        if not file.is_file():
            return b""
        with file.open("rb") as opened:
            return opened.read(_MAX_STATE_BYTES)
    except OSError:
        return b""


async def models_of(base_url: str) -> list[str] | None:
    """The models for text that a server on this machine has; None if it does not answer within `LOOK_S`.

    Only plain HTTP on the loopback interface is asked: this sends no key and nothing else either.
    """
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if parts.scheme != "http" or not is_loopback(host):
        return None
    try:
        async with asyncio.timeout(LOOK_S):
            answer = await _get(host, parts.port or 80, f"{parts.path.rstrip('/')}/models")
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    if _OK not in head.partition(b"\r\n")[0] + b" ":
        return None
    try:
        entries = json.loads(body)["data"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    texts = [name for name in names if isinstance(name, str) and _MODEL.fullmatch(name)]
    return [name for name in texts if "embed" not in name.lower()]


async def _get(host: str, port: int, path: str) -> bytes:
    """One request in HTTP/1.0, which is answered in one piece."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nAccept: application/json\r\n\r\n".encode())
        await writer.drain()
        pieces, size = [], 0
        while (piece := await reader.read(65_536)) and size <= _MAX_ANSWER_BYTES:
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)
    finally:
        writer.transport.abort()


async def choose(config: Config, credentials: Credentials, profiles: Profiles, environ: Mapping[str, str]) -> Default:
    """The default of this data folder on this machine. It takes no longer than the keyring and `LOOK_S`."""
    if config.provider is not None:
        return Default(provider=config.provider, model=config.model, why="config.yaml says so")
    found = await _found(config, credentials, profiles, environ)
    return found if config.model is None else replace(found, model=config.model)


async def _found(config: Config, credentials: Credentials, profiles: Profiles, environ: Mapping[str, str]) -> Default:
    key = config.anthropic.api_key_env
    if (found := await credentials.find(key)) is not None:
        return Default(provider="anthropic", model=None, why=f"there is a key in {key} ({found[0]})")
    if is_loopback_url(config.anthropic.base_url):
        return Default(provider="anthropic", model=None, why="config.yaml gives it a base_url on this machine")
    if config.openai_compatible.base_url is not None:
        return Default(provider="openai_compatible", model=None, why="config.yaml gives it a base_url")
    logged_in, claude = await asyncio.to_thread(look_for_claude, config.claude_cli, environ)
    if logged_in:
        return Default(provider="claude_cli", model=None, why=claude)
    local = await choose_local(profiles)
    if local is not None:
        return local
    why = f"no key in {key}; {claude}; no {' or '.join(LOCAL.values())} with a model answers on this machine"
    return Default(provider="external", model=None, why=why, found=False)


async def choose_local(profiles: Profiles) -> Default | None:
    """The first server for local models that answers and has one; asked are those of the profiles in `LOCAL`."""
    places = [
        (shown, place)
        for name, shown in LOCAL.items()
        if (place := profiles.endpoints().get(f"openai_compatible@{name}")) is not None
    ]
    answers = await asyncio.gather(*(models_of(place.base_url) for _, place in places))
    for (shown, place), models in zip(places, answers, strict=True):
        if models:
            return Default(provider=place.name, model=place.model or models[0], why=f"{shown} runs on this machine")
    return None
