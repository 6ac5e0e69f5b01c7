"""The chunks of a streamed answer: server-sent events as servers of models write them, which is not always right.

Comments, `event:` and `id:` lines are passed over; line ends may be CRLF; `data:` needs no space, and an event no blank
line after it. A server that does not stream sends one JSON object, which is one chunk then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from ksi_mcp.providers.openai.wire import Said, read_error

MAX_LINE_BYTES: Final = 8_000_000
MAX_ANSWER_BYTES: Final = 256_000_000
"""Each token is wrapped in 200 to 400 bytes; what is passed over, such as reasoning, counts here only."""
_MAX_DATA_LINES: Final = 200
_BLANK: Final = b"\xef\xbb\xbf \t\r\n"


class Unreadable(Exception):
    """What came is no answer; the text says why, and quotes nothing."""


class BrokenOff(Exception):
    """The server reported an error where the answer should have gone on."""

    def __init__(self, said: Said) -> None:
        super().__init__(said.message)
        self.said = said


class Events:
    """Bytes in, chunks out, to `take`. `is_whole`: it is one object. `over`: the server said that this was all."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._take = take
        self.is_whole = False
        self.over = False
        self._bytes = 0
        self._begun = False
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Take in what has arrived. Raises `Unreadable`, `BrokenOff`, after the chunks before what is wrong."""
        if self.over:
            return
        self._bytes += len(data)
        if self._bytes > MAX_ANSWER_BYTES:
            raise Unreadable(f"it is larger than {MAX_ANSWER_BYTES:,} bytes")
        if not self._begun:
            data = data.lstrip(_BLANK)
            if not data:
                return
            self._begun = True
            if data.startswith(b"<"):
                raise Unreadable("it is a web page: does the base URL lead to the API?")
            self.is_whole = data.startswith((b"{", b"["))
        if self.is_whole or b"\n" not in data:
            self._keep(data)
            return
        lines = data.split(b"\n")
        if self._tail:
            self._tail.append(lines[0])
            lines[0] = b"".join(self._tail)
            self._tail.clear()
            self._tail_bytes = 0
        rest = lines.pop()
        for line in lines:
            self._line(line)
        if rest:
            self._keep(rest)

    def end(self) -> None:
        """Nothing comes any more: take in what is left. Raises as `feed` does."""
        rest = b"".join(self._tail)
        self._tail.clear()
        if self.is_whole:
            if rest:
                self._take(_parsed(rest))
            return
        if rest:
            self._line(rest)
        self._line(b"")

    def _keep(self, data: bytes) -> None:
        self._tail.append(data)
        self._tail_bytes += len(data)
        if self._tail_bytes > MAX_LINE_BYTES:
            raise Unreadable(f"it has a line of more than {MAX_LINE_BYTES:,} bytes")

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                self.over = True
            elif self._data:
                self._data.append(data)
                if len(self._data) > _MAX_DATA_LINES or sum(map(len, self._data)) > MAX_LINE_BYTES:
                    raise Unreadable("a chunk is no JSON")
            elif data:
                try:
                    value = json.loads(data.decode("utf-8", "replace"))
                except ValueError:
                    self._data.append(data)  # the event may go on in the next line
                except RecursionError:
                    raise Unreadable("a chunk is nested too deeply") from None
                else:
                    self._take(value)
        elif not line or line == b"\r":
            if self._data:
                data = b"\n".join(self._data)
                self._data.clear()
                self._take(_parsed(data))
        elif line.startswith(b"error:"):  # llama.cpp
            raise BrokenOff(read_error(line[6:].strip()))


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except ValueError:
        raise Unreadable("a chunk is no JSON") from None
    except RecursionError:
        raise Unreadable("a chunk is nested too deeply") from None
