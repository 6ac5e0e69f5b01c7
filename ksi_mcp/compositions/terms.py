"""Words of a text as terms that can be compared: split, folded, stemmed; words that say nothing are left out. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

MAX_CHARS: Final = 8_000
"""Of one text; what comes after is not read."""
MAX_WORD_CHARS: Final = 40

_WORD = re.compile(r"[^\W_]+")
_APOSTROPHES = re.compile(r"['\u2019`](?:s|t|re|ve|ll|d|m)?\b")
_MIN_STEM: Final = 4
_MIN_SHORT_STEM: Final = 3
_SHORT_WORD: Final = 3

# Longest first; (ending, what stands there instead). At least four letters stay.
_ENDINGS: Final[tuple[tuple[str, str], ...]] = (
    ("isation", ""), ("ization", ""), ("ication", ""), ("itive", ""), ("ition", ""), ("ation", "at"),
    ("ator", "at"), ("ement", ""), ("ising", ""), ("izing", ""), ("itor", ""), ("ised", ""), ("ized", ""),
    ("iser", ""), ("izer", ""), ("ified", "if"), ("ment", ""), ("ness", ""), ("ence", ""), ("ance", ""),
    ("able", ""), ("ible", ""), ("ison", ""), ("ity", ""), ("ise", ""), ("ize", ""), ("ify", "if"), ("ive", ""),
    ("ion", ""), ("ful", ""), ("ers", ""), ("ant", ""), ("ent", ""), ("er", ""), ("or", ""), ("ly", ""),
    ("al", ""),
)  # fmt: skip
_VERB_ENDINGS: Final = ("ing", "ed")
_OWN_STEMS: Final[dict[str, str]] = {
    "analytic": "analys", "analytical": "analys", "analyst": "analys", "criteria": "criterion",
    "severity": "severity", "severe": "severity", "responsible": "responsible", "responsibility": "responsible",
    "localise": "localise", "localize": "localise", "localisation": "localise", "localization": "localise",
    "implementation": "implement", "variation": "variant",
    **{word: word for word in (
        "competitor", "staging", "incoming", "letter", "proposition", "objective", "object", "finding",
        "minority", "majority", "production", "important", "variable", "variant", "story", "party", "critical",
        "author", "settlement", "worker", "implement", "united", "moment", "element", "paper",
    )},
}  # fmt: skip
"""Words that the rules below would part from their kind, or throw together with others."""

STOP_WORDS: Final = frozenset(
    _WORD.findall(
        """a about after all also am an and any anybody anyone anything are as at be been being both but by can
        could did do does doing done each either else ever every everybody everyone everything few for from get
        gets getting give given gives go goes going good got had has have having he hello help helps her here
        him his how i if in into is it its just kind let lets like made make makes making many may me might more
        most much must my need needs needed no nobody none not nothing now of off ok on one only or other others
        our out over own per please put quite rather really same say says see she should so some somebody
        someone something such sure take taken takes tell than thank thanks that the their them themselves then
        there these they thing things this those through to together too us use used uses using very via want
        wants wanted was way ways we well were what when where whether which while who whom whose why will with
        within without would yes yet you your yours yourself myself ourselves"""
    )
)

COMMON: Final = frozenset(
    _WORD.findall(
        """able access account add agent agents allow answer around ask back base become begin best better big
        build call case change check come company complete create current data day deal different each end event
        every fact file files final find first five follow four full hand hard high hold hour idea identify
        include input issue item keep know last later less level life line list little live long look main
        matter message minute model money month morning move name new next night number office old once open
        order output part pass people person piece place plan play point possible prepare problem produce
        project question read ready real report request result right room run second send service set several
        show side simple single situation small software start state step still stop subject support system task
        team ten text think three time today tomorrow top topic try turn two type understand until user variable
        version wait week whole word work works worker write written wrong year"""
    )
)
"""Words that many texts have: alike in these says little."""


def words(text: str, *, limit: int = MAX_CHARS) -> list[str]:
    """The words of a text, in its order, folded to lower case without accents."""
    plain = text[:limit].casefold()
    if not plain.isascii():
        folded = unicodedata.normalize("NFKD", plain)
        plain = "".join(char for char in folded if not unicodedata.combining(char))
    return [word[:MAX_WORD_CHARS] for word in _WORD.findall(_APOSTROPHES.sub("", plain))]


class Stemmer:
    """Cuts words to what their forms have in common; what it has cut once it knows."""

    def __init__(self, *, most: int = 50_000) -> None:
        self._known: dict[str, str] = {}
        self._most = most

    def stem(self, word: str) -> str:
        """The stem of one folded word."""
        known = self._known.get(word)
        if known is None:
            known = stem(word)
            if len(self._known) < self._most:
                self._known[word] = known
        return known

    def stems(self, text: str, *, limit: int = MAX_CHARS) -> list[str]:
        """The stems of every word of a text, stop words and all."""
        return [self.stem(word) for word in words(text, limit=limit)]

    def all_of(self, given: Iterable[str]) -> frozenset[str]:
        """The stems of words."""
        return frozenset(self.stem(word) for word in given)


def stem(word: str) -> str:
    """What the forms of a word have in common: `comparing`, `comparison`, `compares` are `compar`.

    Light and the same every time; not a word, and now and then the same for two words that have nothing in common.
    """
    if len(word) <= _SHORT_WORD or not word.isascii() or not word.isalpha():
        return word
    cut = _without_plural(word).replace("yz", "ys")
    if cut.endswith("ysis"):
        cut = cut[:-2]
    if cut in _OWN_STEMS:
        return _OWN_STEMS[cut]
    for ending, instead in _ENDINGS:
        if cut.endswith(ending) and len(cut) - len(ending) >= _MIN_STEM:
            return _tidied(cut[: -len(ending)] + instead)
    for ending in _VERB_ENDINGS:
        base = cut[: -len(ending)]
        if cut.endswith(ending) and len(base) >= _MIN_SHORT_STEM and any(char in "aeiouy" for char in base):
            short = len(base) == _MIN_SHORT_STEM and base[1] in "aeiouy" and base[2] not in "aeiouy"
            return f"{base}e" if short else _tidied(base)  # voting, vote; but winning, win
    return _tidied(cut[:-1] if cut.endswith("e") and len(cut) > _MIN_STEM else cut)


def _without_plural(word: str) -> str:
    if word.endswith("ies") and len(word) > _MIN_STEM:
        return word[:-3] + "y"
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _tidied(cut: str) -> str:
    """Without a doubled last letter, and without the difference of a last `y`, `i` and nothing."""
    if len(cut) > _MIN_SHORT_STEM and cut[-1] == cut[-2] and cut[-1] not in "aeiou":
        cut = cut[:-1]
    if len(cut) > _MIN_STEM and cut[-1] in "iy" and cut[-2] not in "aeiou":
        cut = cut[:-1]
    return cut
