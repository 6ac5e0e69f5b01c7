"""The terminal while something is shown on it: its keys, its size, and its state, given back whatever happens."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console

from ksi_mcp.cli.live.painting import Painter

try:
    import termios
except ImportError:  # not on Windows: there are no keys then, and no line is edited by us
    termios = None  # type: ignore[assignment]

ESCAPE_S: Final = 0.05
"""An escape character that nothing follows for so long is the key of that name."""
_SEQUENCES: Final = {
    "[A": "up", "[B": "down", "[C": "right", "[D": "left", "OA": "up", "OB": "down", "OC": "right", "OD": "left",
    "[H": "home", "[F": "end", "OH": "home", "OF": "end", "[1~": "home", "[4~": "end", "[5~": "pageup",
    "[6~": "pagedown", "[3~": "delete",
}  # fmt: skip
_NAMED: Final = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\t": "tab", "\x04": "eof"}
_LONGEST: Final = 32


class KeyReader:
    """Turns what a terminal sends into names of keys (`up`, `enter`, `escape`, ...) and characters."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("ignore").decode
        self._held = ""

    @property
    def waits(self) -> bool:
        """Whether an escape character waits for what may follow it."""
        return bool(self._held)

    def feed(self, data: bytes) -> list[str]:
        """The keys that are complete by now."""
        self._held += self._decode(data)
        keys: list[str] = []
        while self._held:
            used, key = self._next(self._held)
            if not used:
                break
            self._held = self._held[used:]
            if key:
                keys.append(key)
        return keys

    def flush(self) -> list[str]:
        """Nothing has followed."""
        held, self._held = self._held, ""
        return ["escape"] if held else []

    @staticmethod
    def _next(text: str) -> tuple[int, str]:
        """How many characters the first key takes (0: it is not complete), and its name; none if it is unknown."""
        first = text[0]
        if first != "\x1b":
            return 1, _NAMED.get(first, first if first.isprintable() else "")
        if len(text) == 1:
            return 0, ""
        if text[1] not in "[O":
            return 1, "escape"
        for length in range(3, min(len(text), _LONGEST) + 1):
            if text[1] == "O" or "@" <= text[length - 1] <= "~":
                return length, _SEQUENCES.get(text[1:length], "")
        return (len(text), "") if len(text) >= _LONGEST else (0, "")


class Terminal:
    """Shows frames on a terminal and hears its keys; use it as a context manager.

    Keys are not echoed. Ctrl-C stays what it is. Ctrl-Z gives the terminal back for as long as the program rests.
    """

    def __init__(
        self,
        console: Console,
        *,
        alternate: bool,
        on_key: Callable[[str], None] | None = None,
        on_resize: Callable[[], None] | None = None,
    ) -> None:
        self.console = console
        self.painter = Painter(console, alternate=alternate)
        self._on_key = on_key
        self._on_resize = on_resize
        self._fd = _input_terminal()
        self._keys = KeyReader()
        self._before: list[Any] | None = None
        self._escape: asyncio.TimerHandle | None = None

    @property
    def has_keys(self) -> bool:
        """Whether it can be told anything."""
        return self._fd is not None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, AttributeError, ValueError):
            loop.add_signal_handler(signal.SIGWINCH, self._resized)
            loop.add_signal_handler(signal.SIGTSTP, self._rest)
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, AttributeError, ValueError):
            loop.remove_signal_handler(signal.SIGWINCH)
            loop.remove_signal_handler(signal.SIGTSTP)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Give the terminal back for a while, to print something or to ask."""
        self._give_back()
        try:
            yield
        finally:
            self._take()

    async def ask(self, prompt: str) -> str | None:
        """A line that somebody types, while the terminal is `aside`; None at the end of the input."""
        if self._fd is None:
            return None
        self.console.print(prompt, end="", soft_wrap=True)
        self.console.file.flush()
        loop, fd = asyncio.get_running_loop(), self._fd
        pieces: list[bytes] = []
        done: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            data = os.read(fd, 4096)
            pieces.append(data)
            if (not data or data.endswith(b"\n")) and not done.done():
                done.set_result(None)

        loop.add_reader(fd, read)
        try:
            await done
        finally:
            loop.remove_reader(fd)
        line = b"".join(pieces)
        return line.decode("utf-8", "replace").rstrip("\r\n") if line else None

    # ------------------------------------------------------------------------------- take, give back

    def _take(self) -> None:
        if self._fd is not None:
            self._before = termios.tcgetattr(self._fd)
            quiet = termios.tcgetattr(self._fd)
            quiet[3] &= ~(termios.ICANON | termios.ECHO)
            quiet[6][termios.VMIN], quiet[6][termios.VTIME] = 1, 0
            with contextlib.suppress(OSError, ValueError):  # the one way to end us that nothing could clean up after
                quiet[6][termios.VQUIT] = bytes([os.fpathconf(self._fd, "PC_VDISABLE")])
            termios.tcsetattr(self._fd, termios.TCSADRAIN, quiet)
            asyncio.get_running_loop().add_reader(self._fd, self._readable)
        self.painter.begin()

    def _give_back(self) -> None:
        try:
            self.painter.end()
        finally:
            if self._escape is not None:
                self._escape.cancel()
                self._escape = None
            if self._fd is not None and self._before is not None:
                asyncio.get_running_loop().remove_reader(self._fd)
                with contextlib.suppress(OSError, termios.error):  # the terminal is gone
                    termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._before)
                self._before = None

    def _resized(self) -> None:
        self.painter.resized()
        if self._on_resize is not None:
            self._on_resize()

    def _rest(self) -> None:
        """Ctrl-Z: the shell gets the terminal as it was, and we take it again when we are let go on."""
        was_open = self.painter.is_open
        if was_open:
            self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        if was_open:
            self._take()
            self._resized()

    # ------------------------------------------------------------------------------------------ keys

    def _readable(self) -> None:
        assert self._fd is not None  # noqa: S101  only then it is watched
        try:
            data = os.read(self._fd, 1024)
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._tell(["eof"])
            return
        self._tell(self._keys.feed(data))
        if self._escape is not None:
            self._escape.cancel()
            self._escape = None
        if self._keys.waits:
            self._escape = asyncio.get_running_loop().call_later(ESCAPE_S, lambda: self._tell(self._keys.flush()))

    def _tell(self, keys: list[str]) -> None:
        if self._on_key is not None:
            for key in keys:
                self._on_key(key)


def _input_terminal() -> int | None:
    """Where keys come from, if there are any."""
    if termios is None:
        return None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stdin.isatty():
            return sys.stdin.fileno()
    return None


class Notices(logging.Handler):
    """Keeps what the program would say in its log while a frame is on the terminal, to show it there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=20)

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        self.lines.append(record.getMessage())

    @classmethod
    def install(cls) -> Self:
        """From here on the log goes nowhere else."""
        made = cls()
        logging.basicConfig(level=logging.WARNING, handlers=[made], force=True)
        return made
