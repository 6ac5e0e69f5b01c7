"""What `ksi-mcp top` is set to: which page, what is selected, what is asked; changed by keys and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Focus = Literal["runs", "agents"]
OPEN = ("running", "suspended")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a key asks the program for, besides another look."""

    kind: Literal["quit", "look", "detail", "control"]
    run: str | None = None
    action: Literal["suspend", "resume"] | None = None


class Board:
    """The state of the view. `runs` and `agents` are what was seen last."""

    def __init__(self, *, page: int = 20) -> None:
        self.page = page
        self.focus: Focus = "agents"
        self.run_at = 0
        self.agent_at = 0
        self.offset = 0
        self.find = ""
        self.typing = False
        self.paused = False
        self.helping = False
        self.asking: Wish | None = None
        self.detail: tuple[Focus, str] | None = None
        self.scroll = 0
        self.said = ""
        self.runs: Sequence[Mapping[str, Any]] = ()
        self.agents: Sequence[Mapping[str, Any]] = ()
        self.fitting = 0

    def saw(self, seen: Mapping[str, Any]) -> bool:
        """Take in a look; True if it was at a page that is there no more, and another look is due."""
        self.runs, self.agents, self.fitting = seen["runs"], seen["agents"], seen["agents_fitting"]
        self.run_at = max(min(self.run_at, len(self.runs) - 1), 0)
        self.agent_at = max(min(self.agent_at, self.fitting - 1), 0)
        return self._turn_page()

    def set_page(self, rows: int) -> bool:
        """There is room for so many agents; True if other ones are to be shown because of it."""
        if rows == self.page:
            return False
        self.page = max(rows, 1)
        self._turn_page()
        return True

    @property
    def selected(self) -> tuple[Focus, str] | None:
        """What a key is about."""
        if self.focus == "runs":
            return ("runs", self.runs[self.run_at]["orchestration"]) if self.runs else None
        place = self.agent_at - self.offset
        return ("agents", self.agents[place]["agent"]) if 0 <= place < len(self.agents) else None

    def key(self, key: str) -> Wish | None:
        """A key was pressed."""
        self.said = ""
        if key == "eof":
            return Wish(kind="quit")
        if self.asking is not None:
            wish, self.asking = self.asking, None
            return wish if key in ("y", "Y") else None
        if self.typing:
            return self._typed(key)
        if self.helping:
            self.helping = False
            return Wish(kind="quit") if key == "q" else None
        if self.detail is not None:
            return self._in_detail(key)
        return self._in_lists(key)

    # ------------------------------------------------------------------------------------- private

    def _typed(self, key: str) -> Wish | None:
        match key:
            case "enter":
                self.typing = False
                return None
            case "escape":
                self.typing, self.find = False, ""
            case "backspace":
                self.find = self.find[:-1]
            case _ if len(key) == 1 and len(self.find) < 60:  # noqa: PLR2004  as much as a line shows
                self.find += key
            case _:
                return None
        self.agent_at = self.offset = 0
        return Wish(kind="look")

    def _in_detail(self, key: str) -> Wish | None:
        match key:
            case "q":
                return Wish(kind="quit")
            case "escape" | "enter" | "left" | "backspace":
                self.detail = None
                return Wish(kind="look")
            case "down" | "j":
                self.scroll += 1
            case "up" | "k":
                self.scroll = max(self.scroll - 1, 0)
            case "pagedown" | " ":
                self.scroll += self.page
            case "pageup":
                self.scroll = max(self.scroll - self.page, 0)
            case "home" | "g":
                self.scroll = 0
            case "end" | "G":
                self.scroll = 10**9
            case "s":
                return self._control()
            case "p":
                return self._pause()
            case "?":
                self.helping = True
        return None

    def _in_lists(self, key: str) -> Wish | None:
        match key:
            case "q":
                return Wish(kind="quit")
            case "escape" if self.find:
                self.find, self.agent_at = "", 0
                self._turn_page()
                return Wish(kind="look")
            case "tab" | "left" | "right":
                self.focus = "runs" if self.focus == "agents" else "agents"
            case "down" | "j":
                return self._move(1)
            case "up" | "k":
                return self._move(-1)
            case "pagedown" | " ":
                return self._move(self.page)
            case "pageup":
                return self._move(-self.page)
            case "home" | "g":
                return self._move(-(10**9))
            case "end" | "G":
                return self._move(10**9)
            case "enter":
                if (chosen := self.selected) is not None:
                    self.detail, self.scroll = chosen, 0
                    return Wish(kind="detail")
            case "p":
                return self._pause()
            case "/":
                self.typing, self.focus = True, "agents"
            case "s":
                return self._control()
            case "?":
                self.helping = True
        return None

    def _move(self, step: int) -> Wish | None:
        if self.focus == "runs":
            self.run_at = max(min(self.run_at + step, len(self.runs) - 1), 0)
            return None
        self.agent_at = max(min(self.agent_at + step, self.fitting - 1), 0)
        return Wish(kind="look") if self._turn_page() else None

    def _turn_page(self) -> bool:
        """See that what is selected is on the page; True if that is another one."""
        offset = self.agent_at // self.page * self.page
        changed, self.offset = offset != self.offset, offset
        return changed

    def _pause(self) -> Wish | None:
        self.paused = not self.paused
        return None if self.paused else Wish(kind="look")

    def _control(self) -> Wish | None:
        chosen = self.detail or self.selected
        run = None
        if chosen is not None:
            of_agent = next((each for each in self.agents if each["agent"] == chosen[1]), {})
            run = chosen[1] if chosen[0] == "runs" else of_agent.get("orchestration")
        known = next((each for each in self.runs if each["orchestration"] == run), None)
        if run is None or (known is not None and known["state"] not in OPEN):
            self.said = "no run is selected that could be held" if run is None else f"{run} has ended"
            return None
        held = known is not None and known["state"] == "suspended"
        self.asking = Wish(kind="control", run=run, action="resume" if held else "suspend")
        return None
