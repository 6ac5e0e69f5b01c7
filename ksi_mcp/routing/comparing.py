"""What a replay found: deliveries as they would be, beside deliveries as they were recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ksi_mcp.events.model import Event
from ksi_mcp.routing.recording import Attempt, Key, Recording

Kind = Literal["added", "removed", "changed", "failed"]
_COUNTS: Final = (
    "events", "before", "after", "same", "changed", "added", "removed", "failed", "followed_events", "followed_turns",
    "unanswered_turns", "tools_not_run", "cut_off_events", "cut_off_deliveries", "not_delivered_yet", "joins_waiting",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One delivery that would be another.

    `payload` is an event's data or an agent's prompt. Negative ids, and turns `new-<n>`, are of what only the replay
    made (`made`). `cut_off`: recorded events that would not be there without a removed or changed delivery.
    """

    kind: Kind
    event_id: int
    event: str
    rule_id: str
    target: str
    payload: Any = None
    reason: str | None = None
    made: str | None = None
    cut_off: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Counts by name, each difference in the order in which it came up, and what could not be looked at."""

    census: Mapping[str, int]
    differences: tuple[Difference, ...]
    missing: tuple[str, ...]


class Comparison:
    """Contract: after = same + changed + added; at the end before = same + changed + removed + cut_off_deliveries."""

    def __init__(self, recording: Recording, hidden: frozenset[str]) -> None:
        self.attempts = {key: each for key, each in recording.attempts.items() if key[1] not in hidden}
        self.of_event: dict[int, list[Attempt]] = {}
        for each in self.attempts.values():
            self.of_event.setdefault(each.key[0], []).append(each)
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.counts["before"] = sum(each.made for each in self.attempts.values())
        self.gone: set[str] = set()
        """Recorded events and turns that would not have been."""
        self.tried: dict[tuple[int, str], list[str]] = {}
        """The targets of what was tried again, by event and rule."""
        self.tries = 0
        self._hidden = hidden
        self._settled: set[Key] = set()
        self._differences: list[Difference] = []
        self._places: dict[str, int] = {}
        """Where the difference is that something gone goes back to."""

    def recorded(self, event: Event, rule_id: str) -> list[Attempt]:
        """What the log shows a rule to have done with an event."""
        return [each for each in self.of_event.get(int(event.event_id), ()) if each.key[1] == rule_id]

    def standing(self, key: Key) -> Attempt | None:
        """The delivery that the log shows there, if it was made and nothing was said of it yet."""
        known = self.attempts.get(key)
        return known if known is not None and known.made and key not in self._settled else None

    def kept(self, key: Key) -> None:
        """It is made as it was."""
        self._try(key)
        if self.standing(key) is not None:
            self._settled.add(key)
            self.counts["same"] += 1

    def made(self, key: Key, event: Event, *, ref: str, payload: Any) -> bool:
        """A delivery that made something new; whether the log has none there."""
        self._try(key)
        known = self.standing(key)
        self._differ("added" if known is None else "changed", key, event.name, payload=payload, made=ref)
        if known is None:
            return True
        self._settled.add(key)
        self._lose(known.ref, len(self._differences) - 1)
        return False

    def failed(self, key: Key, event: str, reason: str | None) -> None:
        """A delivery that comes to nothing."""
        self._try(key)
        if key not in self.attempts and key[1] not in self._hidden:
            self._differ("failed", key, event, reason=reason)

    def removed(self, each: Attempt, event: str, reason: str) -> None:
        """A recorded delivery that is not made any more."""
        self._settled.add(each.key)
        self._differ("removed", each.key, event, reason=reason)
        self._lose(each.ref, len(self._differences) - 1)

    def cut_off(self, event: Event, source: str, refs: Sequence[str]) -> None:
        """A recorded event that would not be there, because `source` is gone; `refs`: what is gone with it."""
        place = self._places.get(source)
        for ref in refs:
            self._lose(ref, place)
        self.counts["cut_off_events"] += 1
        if place is not None:
            was = self._differences[place]
            self._differences[place] = replace(was, cut_off=was.cut_off + 1)
        for each in self.of_event.get(int(event.event_id), ()):
            if self.standing(each.key) is not None:
                self.counts["cut_off_deliveries"] += 1
                self._settled.add(each.key)
                self._lose(each.ref, place)

    def outcome(self, missing: Sequence[str]) -> Outcome:
        """All of it."""
        after = sum(self.counts[name] for name in ("same", "changed", "added"))
        return Outcome(
            census={**self.counts, "after": after}, differences=tuple(self._differences), missing=tuple(missing)
        )

    def _try(self, key: Key) -> None:
        self.tries += 1
        self.tried.setdefault(key[:2], []).append(key[2])

    def _lose(self, ref: str | None, place: int | None) -> None:
        if ref is None:
            return
        self.gone.add(ref)
        if place is not None:
            self._places[ref] = place

    def _differ(self, kind: Kind, key: Key, event: str, **more: Any) -> None:
        self.counts[kind] += 1
        event_id, rule_id, target = key
        self._differences.append(
            Difference(kind=kind, event_id=event_id, event=event, rule_id=rule_id, target=target, **more)
        )
