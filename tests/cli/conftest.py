"""A terminal of our own for commands that draw: a real pseudo-terminal, and a screen that reads what they write."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import os
import re
import signal
import struct
import sys
import termios
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
HANG_S = 40.0
_TOKEN = re.compile(
    r"\x1b\[(?P<params>[?>=]?[0-9;:]*)(?P<final>[@-~])|\x1b\](?P<osc>[^\x07\x1b]*)(?:\x07|\x1b\\)|\x1b(?P<esc>[^\[\]])"
    r"|(?P<control>[\x00-\x1f\x7f-\x9f])|(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
)


@dataclass
class Screen:
    """What a terminal shows that obeys what was written; `strange` is what a calm program does not send."""

    columns: int
    rows: int
    x: int = 0
    y: int = 0
    style: str = ""
    alternate: bool = False
    cursor: bool = True
    cells: list[list[tuple[str, str]]] = field(default_factory=list)
    kept: list[list[tuple[str, str]]] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    scrolled: list[str] = field(default_factory=list)
    _held: str = ""
    _decode: Any = None

    def __post_init__(self) -> None:
        self.cells = self._empty()

    def _empty(self) -> list[list[tuple[str, str]]]:
        return [[(" ", "")] * self.columns for _ in range(self.rows)]

    @property
    def lines(self) -> list[str]:
        return ["".join(cell[0] for cell in row).rstrip() for row in self.cells]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def feed(self, text: str) -> None:
        self._held += text
        while self._held:
            found = _TOKEN.match(self._held)
            if found is None or (found["control"] == "\x1b" and len(self._held) < 64):
                if len(self._held) > 64:
                    self.strange.append(self._held[:20])
                    self._held = self._held[1:]
                    continue
                return
            self._held = self._held[found.end() :]
            if found["text"]:
                for character in found["text"]:
                    self._put(character)
            elif found["control"]:
                self._control(found["control"])
            elif found["final"]:
                self._sequence(found["params"], found["final"])
            else:
                self.strange.append(found[0])

    def _put(self, character: str) -> None:
        width = 2 if unicodedata.east_asian_width(character) in "WF" else 0 if unicodedata.combining(character) else 1
        if width == 0:
            return
        if self.x + width > self.columns:
            self.x = 0
            self._down()
        self.cells[self.y][self.x] = (character, self.style)
        if width == 2:
            self.cells[self.y][self.x + 1] = ("", self.style)
        self.x += width

    def _down(self) -> None:
        if self.y < self.rows - 1:
            self.y += 1
            return
        self.scrolled.append("".join(cell[0] for cell in self.cells.pop(0)).rstrip())
        self.cells.append([(" ", "")] * self.columns)

    def _control(self, character: str) -> None:
        match character:
            case "\n":
                self._down()
            case "\r":
                self.x = 0
            case "\b":
                self.x = max(self.x - 1, 0)
            case _:
                self.strange.append(repr(character))

    def _sequence(self, params: str, final: str) -> None:
        numbers = [int(each) if each.isdigit() else 0 for each in params.lstrip("?").split(";")]
        first = max(numbers[0], 1)
        match final, params:
            case "m", _:
                self.style = "" if params in ("", "0") else params if not self.style else f"{self.style};{params}"
            case "H", _:
                self.y = min(first, self.rows) - 1
                self.x = min(max(numbers[1] if len(numbers) > 1 else 1, 1), self.columns) - 1
            case "A", _:
                self.y = max(self.y - first, 0)
            case "B", _:
                self.y = min(self.y + first, self.rows - 1)
            case "G", _:
                self.x = min(first, self.columns) - 1
            case "K", "0" | "":
                self.cells[self.y][self.x :] = [(" ", "")] * (self.columns - self.x)
            case "K", "2":
                self.cells[self.y] = [(" ", "")] * self.columns
            case "J", "2":
                self.cells = self._empty()
            case "h" | "l", "?25":
                self.cursor = final == "h"
            case "h", "?1049":
                self.kept, self.cells, self.alternate = self.cells, self._empty(), True
            case "l", "?1049":
                self.cells, self.alternate = self.kept or self._empty(), False
            case _:
                self.strange.append(f"CSI {params}{final}")

    def resize(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.cells, self.kept = self._empty(), self._empty()
        self.x = self.y = 0


@dataclass
class Typed:
    """A command at a terminal of its own."""

    process: asyncio.subprocess.Process
    screen: Screen
    master: int
    before: list[Any]
    slave: int
    written: list[bytes] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(columns, rows)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    async def until(self, holds: Callable[[Screen], bool]) -> None:
        """Until the screen is like that; fails with what is on it."""
        try:
            async with asyncio.timeout(HANG_S):
                while not holds(self.screen):
                    self._news.clear()
                    with contextlib.suppress(TimeoutError):  # its modes change without a word
                        await asyncio.wait_for(self._news.wait(), 0.1)
        except TimeoutError:
            pytest.fail(f"it did not come to that; the screen:\n{self.screen.text}\nscrolled:\n{self.screen.scrolled}")

    async def shows(self, *texts: str) -> None:
        await self.until(lambda screen: all(text in screen.text for text in texts))

    async def ended(self) -> int:
        """Until the process has ended; its exit code."""
        code = await asyncio.wait_for(self.process.wait(), HANG_S)
        self.take()
        return code

    def take(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 65536):
                self.written.append(data)
                self.screen.feed(self.screen._decode(data))
        self._news.set()

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was found: its modes, its screen, its cursor."""
        now = termios.tcgetattr(self.slave)
        return now == self.before and not self.screen.alternate and self.screen.cursor


OpenTerminal = Callable[..., AbstractAsyncContextManager[Typed]]


@pytest.fixture
def open_terminal() -> OpenTerminal:
    @asynccontextmanager
    async def opened(*arguments: str, columns: int = 100, rows: int = 30, **environ: str) -> AsyncIterator[Typed]:
        master, slave = os.openpty()
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.set_blocking(master, False)
        passed = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ANTHROPIC_", "OPENAI_", "KSI_")) and name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        env = passed | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ksi_mcp", *arguments, stdin=slave, stdout=slave, stderr=slave, env=env,
            preexec_fn=lambda: os.login_tty(os.dup(0)),  # so that Ctrl-C reaches it
        )  # fmt: skip
        screen = Screen(columns=columns, rows=rows)
        screen._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        typed = Typed(process=process, screen=screen, master=master, slave=slave, before=termios.tcgetattr(slave))
        loop = asyncio.get_running_loop()
        loop.add_reader(master, typed.take)
        try:
            yield typed
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            loop.remove_reader(master)
            os.close(master)
            os.close(slave)

    return opened
