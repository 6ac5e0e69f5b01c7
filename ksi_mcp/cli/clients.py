"""What an MCP client is told so that it starts this server: absolute paths, in each client's own form."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import platformdirs

from ksi_mcp.config import Home, user_home
from ksi_mcp.errors import Conflict, Invalid

NAME: Final = "ksi"
"""What the server is called in a client: tools are `mcp__ksi__agent_spawn` in some."""
INSPECTOR: Final = "npx -y @modelcontextprotocol/inspector@2.12.0"
_UV_CACHE: Final = "archive-v0"
_PRIVATE: Final = 0o600


class Client(StrEnum):
    """Whose form a configuration has."""

    CLAUDE_CODE = "claude-code"
    CLAUDE_DESKTOP = "claude-desktop"
    CURSOR = "cursor"
    VSCODE = "vscode"
    INSPECTOR = "inspector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a client is set up: the configuration, where that belongs, and what to do then."""

    text: str
    file: Path | None
    key: str
    then: str


def setup_for(client: Client, place: Home, *, cwd: Path) -> Setup:
    """The set-up of a client for the data folder `place`. `cwd` is the project of those that have one."""
    command, *args = server_command(place)
    entry: dict[str, Any] = {"command": command, "args": args}
    match client:
        case Client.INSPECTOR:
            text = f"{INSPECTOR} --cli -q --method tools/list -- {shlex.join([command, *args])}"
            return Setup(text=text, file=None, key="", then="run it in a terminal: it lists the tools")
        case Client.CLAUDE_CODE:
            file, key, then = cwd / ".mcp.json", "mcpServers", "start `claude` in this folder and approve the server"
        case Client.CLAUDE_DESKTOP:
            folder = Path(platformdirs.user_config_dir("Claude", appauthor=False, roaming=True))
            file, key, then = (
                folder / "claude_desktop_config.json",
                "mcpServers",
                "quit Claude Desktop and start it again",
            )
        case Client.CURSOR:
            file, key, then = cwd / ".cursor" / "mcp.json", "mcpServers", "switch the server on in Cursor's settings"
        case Client.VSCODE:
            entry = {"type": "stdio", **entry}
            file, key, then = cwd / ".vscode" / "mcp.json", "servers", "start the server from that file in VS Code"
    text = json.dumps({key: {NAME: entry}}, indent=2, ensure_ascii=False)
    return Setup(text=text, file=file, key=key, then=then)


def server_command(place: Home) -> list[str]:
    """The command that serves `place`, with absolute paths: a client may start it in any folder, without a PATH."""
    here = Path(sys.executable)
    script = here.with_name("ksi-mcp.exe" if os.name == "nt" else "ksi-mcp")
    uvx = shutil.which("uvx")
    if _UV_CACHE in here.parts and uvx is not None:  # an environment that uvx made and may clear away
        command = [str(Path(uvx).absolute()), "ksi-mcp"]
    elif script.is_file():
        command = [str(script)]
    else:
        command = [str(here), "-m", "ksi_mcp"]
    # The user's own data folder is found without being named; any other one is not, from another folder.
    home = [] if place.root == user_home().resolve() else ["--home", str(place.root)]
    return [*command, "serve", *home]


def write(setup: Setup) -> bool:
    """Add the server to the client's file; False if it is there already, just so.

    Everything else in that file stays as it is; a new file is readable by its owner only, since keys may come into it.

    Raises:
        Invalid: the client has no file, or it is not one of the client's.
        Conflict: another server of that name is in it.
    """
    if setup.file is None:
        raise Invalid("that client has no file to write to", hint="run what is printed without --write")
    file = setup.file.resolve()
    try:
        document = json.loads(file.read_text("utf-8")) if file.exists() else {}
    except (OSError, ValueError, RecursionError):
        raise Invalid(f"{file.name} cannot be read as JSON", hint="mend it, or add the server by hand") from None
    servers = document.setdefault(setup.key, {}) if isinstance(document, dict) else None
    if not isinstance(servers, dict):
        raise Invalid(f"{file.name} has no {setup.key!r} that servers could be added to", hint="add it by hand")
    entry = json.loads(setup.text)[setup.key][NAME]
    if NAME in servers:
        if servers[NAME] == entry:
            return False
        raise Conflict(f"{file.name} has another server {NAME!r}", hint="remove it there first, or change it by hand")
    servers[NAME] = entry
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    except OSError as failure:
        raise Invalid(f"{file.name} cannot be written: {failure.strerror}") from None
    return True


def replace_file(file: Path, text: str) -> None:
    """Put `text` in the place of a file, all of it or nothing; its mode stays.

    Raises:
        OSError: it cannot be written.
    """
    mode = file.stat().st_mode & 0o777 if file.exists() else _PRIVATE
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(handle)
        draft.replace(file)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
