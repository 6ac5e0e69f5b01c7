"""What a call that waits says meanwhile: a bar on stderr, if that is a terminal; nothing in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, Self

from ksi_mcp.cli.escaping import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_MESSAGE_CHARS: Final = 200


class Watching:
    """A progress callback. The bar is there from the first word on, and gone when the context ends."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    async def __call__(self, done: float, total: float | None, message: str) -> None:
        """`done` of `total`, in somebody's words."""
        if not self._shown:
            return
        if self._bar is None:
            self._begin()
        if self._bar is not None and self._task is not None:
            text = one_line(message)[:_MESSAGE_CHARS]
            self._bar.update(self._task, completed=done, total=total, description=text)

    def _begin(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        from ksi_mcp.cli.showing import make_console

        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=make_console(error=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()
