"""One Claude Code process: prompts in, events out, both as lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ksi_mcp.providers.claude.events import Reading, died, failed
from ksi_mcp.providers.processes import MAX_LINE_BYTES, Processes, Running

MAX_TURN_BYTES: Final = 64 * 1024 * 1024
"""Of all that it says in one turn."""
LOOK_S: Final = 1.0
"""How often somebody looks whether it still lives."""
_OTHER_CHARS: Final = 2000

Watch = Callable[[str], None]
"""Told each piece of text; may raise to stop the turn."""


class ClaudeProcess:
    """Answers one prompt after another, in one conversation. `end` may be called at any time, and more than once."""

    def __init__(self, running: Running, files: Sequence[Path]) -> None:
        self._running = running
        self._files = files
        self._asked = False
        self._other = ""

    @classmethod
    async def start(
        cls, processes: Processes, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], files: Sequence[Path]
    ) -> ClaudeProcess:
        """Start it. `files` are what it reads at its start; they go when it ends.

        Raises:
            OSError: it could not be started; the files are gone.
        """
        try:
            return cls(await processes.start(command, cwd=cwd, env=env), files)
        except BaseException:
            _remove(files)
            raise

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group as well."""
        return self._running.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self._running.process.returncode is None

    async def ask(self, prompt: str, reading: Reading, watch: Watch) -> None:
        """Hand a prompt over and read until its result. `watch` is called after each event.

        Raises:
            ProviderError: it died, or said too much.
        """
        self._asked = False
        stdin = self._running.process.stdin
        assert stdin is not None  # noqa: S101  it was started with one
        message = {"role": "user", "content": [{"type": "text", "text": prompt}]}
        line = json.dumps({"type": "user", "message": message}, ensure_ascii=False).encode("utf-8", "replace")
        with contextlib.suppress(ConnectionError):  # it is dead: what it has left behind says why
            self._asked = self.alive
            stdin.write(line + b"\n")
            await stdin.drain()
        size = 0
        while reading.result is None:
            line = await self._line(reading)
            size += len(line)
            if size > MAX_TURN_BYTES:
                raise self._flood(reading, f"more than {MAX_TURN_BYTES:,} bytes in one turn")
            event = self._event(line)
            if event is not None:
                watch(reading.take(event))
                if event.get("type") == "control_request":
                    self._decline(event)

    async def end(self) -> None:
        """End it and all that it has started; returns when nothing of it is left."""
        try:
            await self._running.end()
        finally:
            _remove(self._files)

    async def _line(self, reading: Reading) -> bytes:
        process = self._running.process
        assert process.stdout is not None  # noqa: S101  it was started with one
        said = asyncio.ensure_future(process.stdout.readline())
        try:
            while not said.done():
                dead = process.returncode is not None  # but what it has started may hold its pipe open
                await asyncio.wait((said,), timeout=LOOK_S)
                if dead:
                    break
            line = said.result() if said.done() else b""
        except ValueError:
            raise self._flood(reading, f"a line of more than {MAX_LINE_BYTES:,} bytes") from None
        finally:
            said.cancel()
        if not line:
            with contextlib.suppress(TimeoutError):  # it may have closed its pipe only
                async with asyncio.timeout(LOOK_S):
                    await process.wait()
            left = self._other or self._running.errors
            raise died(reading, asked=self._asked, code=process.returncode, said=left)
        return line

    def _event(self, line: bytes) -> Mapping[str, Any] | None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            return event
        self._other = (self._other + line[:_OTHER_CHARS].decode("utf-8", "replace"))[-_OTHER_CHARS:]
        return None

    def _decline(self, event: Mapping[str, Any]) -> None:
        """It asks for something that only a person at a terminal could give."""
        answer = {"subtype": "error", "request_id": event.get("request_id"), "error": "nobody is there to ask"}
        stdin = self._running.process.stdin
        if stdin is not None:
            stdin.write(json.dumps({"type": "control_response", "response": answer}).encode() + b"\n")

    @staticmethod
    def _flood(reading: Reading, what: str) -> Exception:
        return failed(f"Claude Code said {what}; it was ended", kind="server", reading=reading, billed="unknown")


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
