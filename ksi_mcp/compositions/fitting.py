"""How well compositions fit a task: what it says against what they are found by. Pure; ms for a thousand of them.

Two kinds of evidence are added. Words: each word of the task that stands in a composition counts by where it
stands (`features`), by how few compositions have it, and less the later in the task it comes, since people say what
they want done first (BM25 over fields, with a floor under the rarity: a dozen forks must not hide each other).
Purposes: the task's and the composition's, by the cues of the vocabulary, so that `rank these drafts` finds a
tournament. A task that speaks mostly of a purpose that the composition does not have counts less for it, as does one
that begins as an errand (`book a table`). The sum is mapped to 0..1 so that 0.5 is the least that is called a fit.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ksi_mcp.compositions.features import FIELDS, Described, Extractor, Features
from ksi_mcp.compositions.terms import words

FITS: Final = 0.5
"""The least score that is called a fit."""
MAX_TASK_WORDS: Final = 300
"""Of a task; what comes after is not read."""

_HALF_SUM: Final = 0.56
"""The sum of evidence that makes a score of `FITS`; set on tasks.yaml and tasks_builtin.yaml of the tests."""
_WORDS_WEIGHT: Final = 0.75
_WORDS_MOST: Final = 1.5
_SATURATION: Final = 2.0
_COMMON_FACTOR: Final = 0.25
_TEXT_WEIGHT: Final = 0.1
_TEXT_MOST: Final = 0.15
_LEAST_RARITY: Final = 0.35
_CUE_FLOOR: Final = 0.3
_FADING_WORDS: Final = 40
_FURTHER_PURPOSE: Final = 0.5
_ERRAND_FACTOR: Final = 0.35
_QUESTION_FACTOR: Final = 0.6
_OUTRIGHT: Final = 0.75
_UNSERVED: Final = 0.5
_SERVED_FACTOR: Final = 1.5
_NOT_FOR_SHARE: Final = 0.6
_NOT_FOR_WORDS: Final = 2
_NOT_FOR_FACTOR: Final = 0.5
_LEAST_SHOWN: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task taken apart: its stems with weights, the words they were, and what it speaks of, by which cues."""

    terms: dict[str, float]
    written: dict[str, str]
    purposes: dict[str, float]
    cues: dict[str, tuple[str, ...]]
    errand: bool
    question: bool
    cut: bool


@dataclass(slots=True)
class _Evidence:
    words: float = 0.0
    text: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What is kept of each composition beside its words: a thousand of them must not fill the memory."""

    purposes: dict[str, float]
    not_for: tuple[tuple[str, frozenset[str]], ...]


class Index:
    """What is known of compositions, by keys that change when they do. Not for two threads at once."""

    def __init__(self) -> None:
        self._extractor = Extractor()
        self._slots: list[_Kept] = []
        self._by_key: dict[Hashable, int] = {}
        self._strong: defaultdict[str, tuple[array[int], array[float]]] = defaultdict(lambda: (array("I"), array("f")))
        self._text: defaultdict[str, array[int]] = defaultdict(lambda: array("I"))

    def missing(self, keys: Iterable[Hashable]) -> list[Hashable]:
        """Those of the keys that were never added."""
        return [key for key in keys if key not in self._by_key]

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, key: Hashable, described: Described) -> None:
        """Take a composition apart and remember it. One that has changed has another key."""
        features = self._extractor.features(described)
        slot = len(self._slots)
        for stem, (weight, _) in features.terms.items():
            slots, weights = self._strong[stem]
            slots.append(slot)
            weights.append(weight)
        for stem in features.text:
            self._text[stem].append(slot)
        self._slots.append(_Kept(purposes=dict(features.purposes), not_for=features.not_for))
        self._by_key[key] = slot

    def task(self, text: str) -> Task:
        """Take a task apart."""
        extractor = self._extractor
        listed = words(text)
        written = listed[:MAX_TASK_WORDS]
        stems = [extractor.stemmer.stem(word) for word in written]
        terms: dict[str, float] = {}
        for place, stem in enumerate(stems):
            if stem not in extractor.stop and not (stem.isdecimal() or len(stem) == 1):
                weight = _fading(place) * (_COMMON_FACTOR if stem in extractor.common else 1.0)
                terms[stem] = max(weight, terms.get(stem, 0.0))
        saying: dict[str, float] = {}
        purposes: dict[str, float] = {}
        cues: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for heard in extractor.cues.find(stems):
            cue = " ".join(written[heard.start : heard.start + heard.words])
            said = heard.strength * _fading(heard.start)
            for stem in stems[heard.start : heard.start + heard.words]:
                saying[stem] = max(heard.strength, saying.get(stem, 0.0))
            if said > cues[heard.purpose].get(cue, 0.0):
                cues[heard.purpose][cue] = said
        for purpose, said_by in cues.items():
            purposes[purpose] = 1 - math.prod(1 - said for said in said_by.values())
        for stem, strength in saying.items():
            if stem in terms:
                # A word that many kinds of work are asked for with, such as `check`, has spoken as a cue already.
                terms[stem] *= _CUE_FLOOR + (1 - _CUE_FLOOR) * strength
        return Task(
            terms=terms,
            written=dict(zip(reversed(stems), reversed(written), strict=True)),
            purposes=purposes,
            cues={purpose: tuple(sorted(by, key=lambda cue: (-by[cue], cue))) for purpose, by in cues.items()},
            errand=extractor.cues.is_errand(stems),
            question=extractor.cues.is_question(stems) and max(purposes.values(), default=0.0) < _OUTRIGHT,
            cut=len(listed) > MAX_TASK_WORDS,
        )

    def scores(self, task: Task, keys: Sequence[Hashable]) -> list[float]:
        """How well each of the compositions fits, 0 to 1."""
        alive = {self._by_key[key]: place for place, key in enumerate(keys)}
        evidence = [_Evidence() for _ in keys]
        for stem, weight in task.terms.items():
            self._count(stem, weight, alive, evidence)
        return [self._score(task, self._slots[slot], evidence[place]) for slot, place in alive.items()]

    def reasons(self, task: Task, key: Hashable, described: Described) -> list[str]:
        """Why a composition has its score, in short sentences, what counts most first."""
        known = self._slots[self._by_key[key]].purposes
        return _reasons(task, self._extractor.features(described, purposes=known))

    def _count(self, stem: str, weight: float, alive: dict[int, int], evidence: list[_Evidence]) -> None:
        slots, weights = self._strong.get(stem, ((), ()))
        hits = [(alive[slot], strength) for slot, strength in zip(slots, weights, strict=True) if slot in alive]
        rarity = _rarity(len(hits), len(alive))
        for place, strength in hits:
            evidence[place].words += weight * rarity * strength / (strength + _SATURATION)
        in_text = [alive[slot] for slot in self._text.get(stem, ()) if slot in alive]
        rarity = _rarity(len(hits) + len(in_text), len(alive))
        for place in in_text:
            evidence[place].text += weight * rarity * _TEXT_WEIGHT

    def _score(self, task: Task, features: _Kept, evidence: _Evidence) -> float:
        has = features.purposes
        served = sorted((said * has[name] for name, said in task.purposes.items() if name in has), reverse=True)
        if not (served or evidence.words or evidence.text):
            return 0.0
        purpose = sum(each * _FURTHER_PURPOSE**rank for rank, each in enumerate(served[:4]))
        total = purpose + _WORDS_WEIGHT * min(evidence.words, _WORDS_MOST) + min(evidence.text, _TEXT_MOST)
        total *= 1 - _UNSERVED * _unserved(task, features)
        if task.errand:
            total *= _ERRAND_FACTOR
        if task.question:
            total *= _QUESTION_FACTOR
        if _warned(task, features):
            total *= _NOT_FOR_FACTOR
        return round(1 - math.pow(FITS, total / _HALF_SUM), 4)


def _rarity(having: int, all_of: int) -> float:
    """1 for a word that one composition has, less the more have it."""
    if having == 0:
        return 0.0
    rare = math.log(1 + (all_of - having + 0.5) / (having + 0.5)) / math.log(1 + (all_of - 0.5) / 1.5)
    return max(_LEAST_RARITY, min(1.0, rare))


def _fading(place: int) -> float:
    return 1 / (1 + place / _FADING_WORDS)


def _unserved(task: Task, features: _Kept) -> float:
    """The share of what the task speaks of that is no purpose of the composition; 0 where it hardly speaks of any."""
    said = served = 0.0
    for name, strength in task.purposes.items():
        said += strength**2
        served += strength**2 * min(1.0, _SERVED_FACTOR * features.purposes.get(name, 0.0))
    return (1 - served / said) * min(1.0, said) if said else 0.0


def _warned(task: Task, features: Features | _Kept) -> str | None:
    """What the composition says it is not for, if that is what the task is about."""
    for text, stems in features.not_for:
        common = sum(stem in task.terms for stem in stems)
        if common >= _NOT_FOR_WORDS and common / len(stems) >= _NOT_FOR_SHARE:
            return text
    return None


def _reasons(task: Task, features: Features) -> list[str]:
    reasons: list[str] = []
    served = {name: said * features.purposes.get(name, 0.0) for name, said in task.purposes.items()}
    for name, part in sorted(served.items(), key=lambda pair: (-pair[1], pair[0]))[:2]:
        if part > _LEAST_SHOWN:
            cues = ", ".join(repr(cue) for cue in task.cues[name][:4])
            reasons.append(f"made for {name.replace('_', ' ')}, which {cues} asks for ({part:.2f})")
    matched = [(stem, *features.terms[stem]) for stem in task.terms if stem in features.terms]
    matched.sort(key=lambda each: (-each[1] * task.terms[each[0]], each[0]))
    for stem, _, bits in matched[:4]:
        where = ", ".join(field for bit, field in enumerate(FIELDS) if bits >> bit & 1)
        reasons.append(f"{task.written[stem]!r} is in its {where}")
    if in_text := sorted(stem for stem in task.terms if stem in features.text)[:4]:
        reasons.append(f"{', '.join(repr(task.written[stem]) for stem in in_text)} in its prompts or strategy")
    if task.errand:
        reasons.append("the task begins like an errand for one tool, which counts against every pattern")
    if task.question:
        reasons.append("the task begins like a question for a fact, which counts against every pattern")
    if (warned := _warned(task, features)) is not None:
        reasons.append(f"it says it is not for {warned!r}")
    return reasons or ["nothing of the task is in it"]
