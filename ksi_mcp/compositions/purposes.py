"""Which purposes a text speaks of, by the cues of the vocabulary. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ksi_mcp.compositions.terms import Stemmer, words
from ksi_mcp.compositions.vocabulary import ERRANDS, PURPOSES, QUESTIONS

STRENGTHS: Final = (1.0, 0.55, 0.22)
"""Of a strong, a medium and a weak cue."""
_POLITE: Final = words("please can could would you i we want need like to us just hey hi hello kindly now go and")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A cue that was found: where it begins, the words it takes, what it speaks for and how strongly (0 to 1)."""

    start: int
    words: int
    purpose: str
    strength: float


class Cues:
    """The vocabulary, compiled for finding."""

    def __init__(self, stemmer: Stemmer) -> None:
        self._by_first: defaultdict[str, list[tuple[tuple[str, ...], str, float]]] = defaultdict(list)
        for purpose in PURPOSES:
            for listed, strength in zip((purpose.strong, purpose.medium, purpose.weak), STRENGTHS, strict=True):
                for cue in _listed(listed, stemmer):
                    self._by_first[cue[0]].append((cue, purpose.name, strength))
        self._errands = frozenset(_listed(ERRANDS, stemmer))
        self._questions = frozenset(_listed(QUESTIONS, stemmer))
        self._polite = stemmer.all_of(_POLITE)

    def find(self, stems: Sequence[str]) -> list[Heard]:
        """Every cue in a text, given its stems in order, but those inside a longer one: `side` in `side by side`."""
        found: list[Heard] = []
        for start, stem in enumerate(stems):
            at_once: dict[str, Heard] = {}
            for cue, purpose, strength in self._by_first.get(stem, ()):
                if tuple(stems[start : start + len(cue)]) == cue:
                    known = at_once.get(purpose)
                    if known is None or strength > known.strength:
                        at_once[purpose] = Heard(start=start, words=len(cue), purpose=purpose, strength=strength)
            found += at_once.values()
        phrases = [heard for heard in found if heard.words > 1]
        return [heard for heard in found if not any(_is_inside(heard, phrase) for phrase in phrases)]

    def spoken_of(self, stems: Sequence[str]) -> dict[str, float]:
        """How much a text speaks of each purpose: its cues, each once, added up."""
        seen: set[tuple[str, ...]] = set()
        total: defaultdict[str, float] = defaultdict(float)
        for heard in self.find(stems):
            cue = (heard.purpose, *stems[heard.start : heard.start + heard.words])
            if cue not in seen:
                seen.add(cue)
                total[heard.purpose] += heard.strength
        return dict(total)

    def is_errand(self, stems: Sequence[str]) -> bool:
        """Whether a task begins as one that a single call of a tool does."""
        return self._begins_as(self._errands, stems)

    def is_question(self, stems: Sequence[str]) -> bool:
        """Whether a task begins as a question for a fact."""
        return self._begins_as(self._questions, stems)

    def _begins_as(self, listed: frozenset[tuple[str, ...]], stems: Sequence[str]) -> bool:
        start = next((i for i, stem in enumerate(stems) if stem not in self._polite), len(stems))
        return any(tuple(stems[start : start + length]) in listed for length in (1, 2, 3))


def _is_inside(heard: Heard, phrase: Heard) -> bool:
    return (
        heard.words < phrase.words
        and heard.strength <= phrase.strength
        and phrase.start <= heard.start
        and heard.start + heard.words <= phrase.start + phrase.words
        and heard.purpose != phrase.purpose
    )


def _listed(text: str, stemmer: Stemmer) -> list[tuple[str, ...]]:
    cues = (tuple(stemmer.stem(word) for word in words(cue)) for cue in text.split(","))
    return [cue for cue in cues if cue]
