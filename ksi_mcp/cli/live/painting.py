"""Frames on a terminal: only lines that changed are written, in one piece, so that nothing flickers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console, RenderableType
from rich.control import Control
from rich.segment import ControlType, Segment, Segments

Line = list[Segment]
_NEWLINE: Final = Segment("\n")


class Painter:
    """Paints frames over each other: on the alternate screen, or (not `alternate`) below what is there already."""

    def __init__(self, console: Console, *, alternate: bool) -> None:
        self.console = console
        self._alternate = alternate
        self._shown: list[Line] = []
        self._width = 0
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether a frame may be on the terminal."""
        return self._open

    def begin(self) -> None:
        """Take the terminal."""
        if not self._open:
            self._open = True
            self._shown, self._width = [], self.console.width
            self.console.control(
                *((Control((ControlType.ENABLE_ALT_SCREEN,)), Control.home()) if self._alternate else ())
            )
            self.console.show_cursor(show=False)

    def end(self, *, keep: bool = False) -> None:
        """Give it back as it was. With `keep` the last frame stays, where there is no alternate screen."""
        if not self._open:
            return
        self._open = False
        if self._alternate:
            self.console.control(Control((ControlType.DISABLE_ALT_SCREEN,)))
        elif keep:
            self.console.line()
        elif self._shown:
            self._write(self._over([]))
            self.console.control(Control((ControlType.CARRIAGE_RETURN,)))
        self.console.show_cursor(show=True)
        self._shown = []

    def resized(self) -> None:
        """The terminal has another size: what is on it cannot be relied upon."""
        if self._open:
            self._shown, self._width = [], self.console.width
            self.console.control(Control.clear(), Control.home())

    def paint(self, renderable: RenderableType) -> None:
        """Show a frame; what does not fit into the height is left out."""
        if not self._open:
            return
        if self.console.width != self._width:
            self.resized()
        options = self.console.options.update(width=self._width)
        height = self.console.height
        lines = self.console.render_lines(renderable, options, pad=False, new_lines=False)[:height]
        lines = [_trimmed(line) for line in lines]
        pieces = self._at(lines) if self._alternate else self._over(lines)
        self._shown = lines
        self._write(pieces)

    def _write(self, pieces: Sequence[Segment]) -> None:
        if pieces:
            self.console.print(Segments(pieces), end="", crop=False, soft_wrap=True)

    def _at(self, lines: list[Line]) -> list[Segment]:
        pieces: list[Segment] = []
        for row in range(max(len(lines), len(self._shown))):
            line = lines[row] if row < len(lines) else []
            if row < len(self._shown) and line == self._shown[row]:
                continue
            pieces.append(Control.move_to(0, row).segment)
            pieces += self._whole(line)
        return pieces

    def _over(self, lines: list[Line]) -> list[Segment]:
        """The cursor rests on the last line of the frame, wherever on the terminal that is."""
        before = self._shown
        pieces: list[Segment] = []
        if len(before) > 1:
            pieces.append(Control((ControlType.CURSOR_UP, len(before) - 1)).segment)
        rows = max(len(lines), len(before))
        for row in range(rows):
            line = lines[row] if row < len(lines) else []
            if row >= len(before) or line != before[row]:
                pieces.append(Control((ControlType.CARRIAGE_RETURN,)).segment)
                pieces += self._whole(line)
            if row < rows - 1:
                pieces.append(_NEWLINE)
        if (beyond := rows - max(len(lines), 1)) > 0:
            pieces.append(Control((ControlType.CURSOR_UP, beyond)).segment)
        return pieces

    def _whole(self, line: Line) -> list[Segment]:
        """A line, and nothing of an earlier one behind it; erasing past a full line would take its last character."""
        if Segment.get_line_length(line) >= self._width:
            return list(line)
        return [*line, Control((ControlType.ERASE_IN_LINE, 0)).segment]


def _trimmed(line: Line) -> Line:
    """Without blanks at its end, unless they have a colour."""
    kept = [segment for segment in line if not segment.control]
    while kept and not kept[-1].text.strip(" ") and (kept[-1].style is None or kept[-1].style.bgcolor is None):
        kept.pop()
    return kept
