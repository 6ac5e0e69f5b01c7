"""How Claude Code is called: its arguments, its environment, and whether it is there at all.

Nothing of the user's own set-up but the login takes part: no settings, hooks, plugins, skills, memories or MCP servers
of theirs. Prompts and credentials are never arguments. A prompt is only text: `@file` is not read, `/name` not run.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ksi_mcp.errors import ProviderError
from ksi_mcp.provider_config import ClaudeCliConfig
from ksi_mcp.providers.base import Request, ToolSpec
from ksi_mcp.providers.claude.events import Spent
from ksi_mcp.providers.door import Grant
from ksi_mcp.providers.processes import Processes

TOKEN_ENV: Final = "KSI_AGENT_TOKEN"  # noqa: S105 - the name of the variable, not what is in it
URL_ENV: Final = "KSI_AGENT_URL"
"""With both, `ksi-mcp` in a shell of the process is the agent too, in its turns."""
SERVER: Final = "ksi"
"""The name under which it knows our tools: `mcp__ksi__agent_spawn`."""
PROMPTS: Final = "prompts"
RETRIES: Final = 2
"""How often a call in the middle of a turn is tried again before the whole turn is lost."""

_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_SESSION: Final = re.compile(r"[0-9a-fA-F-]{8,64}")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,199}")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_SCHEMA_BYTES: Final = 100_000
"""One argument of a program holds 128 KiB on Linux."""
_STATUS_S: Final = 15.0

# What a program needs to find its way, its login, the network and its certificates. Anything else is only passed on if
# `claude_cli.env` names it: a key that is meant for other providers would be used, and paid, instead of the login.
_PASSED: Final = (
    *("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TERM", "TZ", "TMPDIR", "CLAUDE_CONFIG_DIR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
)
_PASSED_PREFIXES: Final = ("LC_", "XDG_")
_SET: Final[Mapping[str, str]] = {
    "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",  # else `@/any/file` in a prompt is read, with no tool allowed at all
    "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
    "CLAUDE_CODE_DISABLE_CLAUDE_MDS": "1",
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",  # a stream that broke off is not silently bought again
    "CLAUDE_CODE_DISABLE_REFUSAL_RETRY": "1",
    "CLAUDE_CODE_DISABLE_REFUSAL_FALLBACK": "1",
    "CLAUDE_CODE_NO_MODEL_FALLBACK": "1",
    "CLAUDE_CODE_MAX_RETRIES": str(RETRIES),
    "DISABLE_AUTOUPDATER": "1",
    "ENABLE_TOOL_SEARCH": "false",
    "MCP_CONNECTION_NONBLOCKING": "0",
}
_LOOPBACK: Final = "127.0.0.1,localhost"
_NO_PROGRAM: Final = "install Claude Code and put it on PATH, or name it: `claude_cli: {command: /path/to/claude}`"


def arguments(
    request: Request, config: ClaudeCliConfig, *, system_file: Path, door_url: str | None, resume: Left | None
) -> list[str]:
    """What follows the program's name.

    Raises:
        ProviderError: an effort that it does not know, or a schema that is too large.
    """
    model = request.model
    if not _MODEL.fullmatch(model):
        raise ProviderError(f"{model[:80]!r} is not a model", kind="request", billed="no")
    given = [
        "-p",
        *("--input-format", "stream-json", "--output-format", "stream-json", "--verbose", "--include-partial-messages"),
        *("--model", model),
        *("--system-prompt-file", str(system_file), "--system-prompt-snapshot", "off"),
        *("--tools", ",".join(config.tools)),
        *("--restricted", "--strict-mcp-config", "--setting-sources", "", "--disable-slash-commands"),
        *("--permission-prompts", "none"),
        *("--max-budget-usd", f"{config.max_usd_per_turn:.6f}", "--max-turns", str(config.model_turns)),
    ]
    if request.effort is not None:
        if request.effort not in _EFFORTS:
            raise ProviderError(
                f"Claude Code knows no effort {request.effort[:40]!r}",
                kind="request",
                billed="no",
                hint=f"one of {', '.join(_EFFORTS)}",
            )
        given += ["--effort", request.effort]
    if request.output_schema is not None:
        schema = json.dumps(dict(request.output_schema))
        if len(schema) > _MAX_SCHEMA_BYTES:
            raise ProviderError(
                f"the output schema has {len(schema):,} bytes; Claude Code takes {_MAX_SCHEMA_BYTES:,}",
                kind="request",
                billed="no",
            )
        given += ["--json-schema", schema]
    allowed = list(config.tools)
    if door_url is not None:
        server = {"type": "http", "url": door_url, "headers": {"Authorization": f"Bearer ${{{TOKEN_ENV}}}"}}
        given += ["--mcp-config", json.dumps({"mcpServers": {SERVER: server}})]
        allowed.insert(0, f"mcp__{SERVER}")
    if allowed:
        given += ["--allowedTools", ",".join(allowed)]
    if resume is not None:
        given += ["--resume", resume.session_id, "--resume-session-at", resume.place, "--fork-session"]
    return given


def environment(config: ClaudeCliConfig, environ: Mapping[str, str], grant: Grant | None) -> dict[str, str]:
    """The environment of the process: what every program needs, what the configuration names, our switches.

    Which data folder this is, it is not told: its shell would be the operator there.
    """
    passed = {
        name: value
        for name, value in environ.items()
        if name in _PASSED or name in config.env or name.startswith(_PASSED_PREFIXES)
    }
    for name in ("NO_PROXY", "no_proxy"):  # the door is on this machine
        passed[name] = ",".join(part for part in (passed.get(name), _LOOPBACK) if part)
    passed |= {name: value for name, value in _SET.items() if name not in config.env}
    if grant is not None:
        passed |= {TOKEN_ENV: grant.token, URL_ENV: grant.url}
    return passed


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A session of the program, as it stood after an answer."""

    session_id: str
    place: str
    """The newest message then: what a turn that failed has added since is left out."""
    digest: str
    """Of the conversation."""
    spent: Spent

    def as_json(self) -> dict[str, Any]:
        """What is stored with the answer."""
        spent = {"spent_usd_micros": self.spent.usd_micros, "spent_tokens": self.spent.tokens}
        return {"id": self.session_id, "place": self.place, "digest": self.digest, **spent}


def session_of(request: Request) -> Left | None:
    """The session that was left with the newest answer; what is stored may be anything."""
    said = request.session or {}
    session, place, digest = said.get("id"), said.get("place"), said.get("digest")
    usd_micros, tokens = said.get("spent_usd_micros"), said.get("spent_tokens")
    if not isinstance(session, str) or not isinstance(place, str) or not isinstance(digest, str):
        return None
    if not _SESSION.fullmatch(session) or not _SESSION.fullmatch(place):
        return None
    if not isinstance(usd_micros, int) or not isinstance(tokens, int):
        return None
    return Left(session_id=session, place=place, digest=digest, spent=Spent(usd_micros=usd_micros, tokens=tokens))


def work_folder(folder: Path, agent_id: str | None) -> Path:
    """The empty folder in which the processes of an agent work; its sessions belong to it."""
    name = agent_id if agent_id is not None and _NAME.fullmatch(agent_id) else "nobody"
    place = folder / "work" / name
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    return place


def system_file(folder: Path, text: str) -> Path:
    """Write a system prompt where only this user can read it, outside of the folder in which the process works."""
    place = folder / PROMPTS
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = place / f"{secrets.token_hex(8)}.txt"
    file.touch(mode=0o600, exist_ok=False)
    file.write_text(text, "utf-8", errors="replace")
    return file


def find_program(config: ClaudeCliConfig, environ: Mapping[str, str]) -> str:
    """The path of the program.

    Raises:
        ProviderError: there is none.
    """
    found = shutil.which(config.command, path=environ.get("PATH"))
    if found is None:
        raise ProviderError(
            f"the program {config.command[:80]!r} is not there", kind="request", billed="no", hint=_NO_PROGRAM
        )
    return found


async def ask_status(config: ClaudeCliConfig, environ: Mapping[str, str], processes: Processes) -> tuple[bool, str]:
    """Whether it is there and logged in, as it says itself: takes about a second, and no network."""
    try:
        program = find_program(config, environ)
    except ProviderError as error:
        return False, error.text()
    try:
        command = (program, "auth", "status", "--json")
        running = await processes.start(command, cwd=Path("/"), env=environment(config, environ, None))
    except OSError as failure:
        return False, f"{config.command} could not be started: {failure.strerror}"
    assert running.process.stdout is not None  # noqa: S101  it was started with one
    try:
        async with asyncio.timeout(_STATUS_S):
            said = _object(json.loads(await running.process.stdout.read(100_000)))
    except TimeoutError:
        return False, f"`{config.command} auth status` did not end within {_STATUS_S:g} s"
    except ValueError:
        return False, f"`{config.command} auth status` did not say; update it: {config.command} update"
    finally:
        await running.end()
    if said.get("loggedIn") is True:
        return True, f"{config.command} is there and logged in ({str(said.get('authMethod'))[:40]})"
    return False, f"{config.command} is there, but not logged in; run `{config.command}` once and log in"


def tool_names(tools: Sequence[ToolSpec]) -> str:
    """The tools as text that differs if anything in them does."""
    return "\n".join(tool.canonical for tool in tools)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
