"""Whether two prompts that look alike may have the same answer. Pure.

Likeness alone cannot tell: "older than 7 days" and "older than 70 days" are nearer to each other than most ways of
asking one thing. So a word that only one prompt has makes it another question, and so do the same words in another
order. What may differ is little: courtesy, an article or a form of "be" that comes or goes, contractions, spelling,
case and punctuation, a few pairs of words that mean the same, and a place or time that is said first or last.

Most of what asks the same is refused, and that is meant: a question that is bought twice costs a little, an answer
to another question may cost much. The lists of opposites, units and so on only name the reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Final, Literal, NamedTuple

Kind = Literal["number", "quoted", "negation", "unit", "opposite", "time", "name", "words", "order"]


class Difference(NamedTuple):
    """Why two prompts are not taken for one."""

    kind: Kind
    one: str
    other: str

    def text(self) -> str:
        """In words, short."""
        return f"{self.kind}: {self.one[:80] or '-'} / {self.other[:80] or '-'}"


def difference(one: str, other: str) -> Difference | None:
    """What tells the prompts apart; None if nothing does. Symmetric; takes time in proportion to their length."""
    first, second = _flat(one), _flat(other)
    quotes, others = _quoted(first), _quoted(second)
    if quotes and others and quotes != others:
        return Difference("quoted", ", ".join(quotes), ", ".join(others))
    (ours, articles), (theirs, other_articles) = _tokens(first), _tokens(second)
    if ours == theirs:
        return _exchanged(articles, other_articles)
    counted, against = Counter(ours), Counter(theirs)
    left, right = list((counted - against).elements()), list((against - counted).elements())
    if not left and not right:
        place = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        return Difference("order", " ".join(ours[place : place + 4]), " ".join(theirs[place : place + 4]))
    return Difference(_kind(left, right, first + " " + second), " ".join(left), " ".join(right))


# ---------------------------------------------------------------------------------- the prompt, laid out

_QUOTES: Final = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ab": '"', "\u00bb": '"'}
)
_QUOTED: Final = re.compile(r"\"([^\"\n]+)\"|`([^`\n]+)`|(?<!\w)'([^'\n]+)'(?!\w)")
# A number with its sign, unless the hyphen joins; a word with what holds it together; an operator; any other sign.
_TOKEN: Final = re.compile(
    r"(?<![\w.])[-+]?(?:\d+(?:[.,:/]\d+)*|\.\d+)|\w+(?:[.'-]\w+)*|[!<>=]=+|&&|\|\||(?<=\d)!|!(?=\w)"
    r"|(?<=\w)[\"'](?!\w)|[^\w\s.,;:!?'\"`\u2026\u2013\u2014]"
)
_THOUSANDS: Final = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER: Final = re.compile(r"[-+]?\.?\d")
_RAISED: Final = re.compile("[\u00b2\u00b3\u00b9\u2070-\u207f]+")
_MINUS: Final = re.compile(r"[\u2013\u2212](?=\s?[\w.])")
_COMPARED: Final = 40
"""Words on each side that are looked through for opposites; the reason is only a name."""
_COURTESY: Final = re.compile(
    r"^(?:(?:hi|hello|hey|good morning)[\s,!.]+)?"
    r"(?:(?:please|kindly),?\s+)?"
    r"(?:(?:could|can|would) you\s+|i(?:'d| would) like you to\s+|i (?:want|need) you to\s+|do you know\s+)?"
    r"(?:(?:please|kindly),?\s+)?"
    r"(?:tell me\s+|let me know\s+)?"
    r"|,?\s*(?:please|thanks(?: a lot)?|thank you)$",
)
_FOR_ME: Final = re.compile(r"\b(give|show|write|find|name) me\b")
_SUMMARY: Final = re.compile(r"\bgive (?:an? )?(?:short )?summary of\b")
_FRONTED: Final = re.compile(r"^((?:in|on|at|for|during|within|using)\s[^,.;:?!]{1,40}), (.+)$")

_CONTRACTED: Final = (
    (re.compile(r"\bcan't\b|\bcannot\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\bshan't\b"), "shall not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\b(who|what|where|when|why|how|that|there|it|he|she|here)'s\b"), r"\1 is"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ve\b"), " have"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"\bi'm\b"), "i am"),
)
_SPELT: Final = (
    (re.compile(r"^(.{3,})is(e|es|ed|er|ers|ing|ation|ations)$"), r"\1iz\2"),
    (re.compile(r"^(.{2,})ys(e|es|ed|er|ers|ing)$"), r"\1yz\2"),
    (re.compile(r"^(behavi|col|fav|harb|hon|lab|neighb|rum)our"), r"\1or"),
    (re.compile(r"^e-mail"), "email"),
)
_WEIGHTLESS: Final = frozenset(("a", "an", "the", "is", "are", "am", "be", "do", "does"))
"""They come and go with the way of asking."""
_VERBS: Final = frozenset(("is", "are", "am", "do", "does"))
"""Where a prompt begins with one, it asks whether something is so."""

_SAME: Final = {
    "pr": ("pull", "request"), "pr_": ("pull", "request"), "prs": ("pull", "requests"),
    "repo": ("repository",), "repos": ("repositories",),
    "delete": ("remove",), "repair": ("fix",), "display": ("show",),
    "two": ("2",), "three": ("3",), "four": ("4",), "five": ("5",), "six": ("6",), "seven": ("7",), "eight": ("8",),
    "nine": ("9",), "ten": ("10",), "eleven": ("11",), "twelve": ("12",), "twenty": ("20",), "hundred": ("100",),
}  # fmt: skip


def _flat(text: str) -> str:
    text = _RAISED.sub(lambda found: f" ^{found[0]}", text)
    return " ".join(_MINUS.sub("-", unicodedata.normalize("NFKC", text)).translate(_QUOTES).split())


def _quoted(text: str) -> list[str]:
    return ["".join(match.groups("")) for match in _QUOTED.finditer(text)]


def _tokens(text: str) -> tuple[list[str], Counter[str]]:
    """What carries the sense, in order; and how often it says "the" and "a"."""
    text = _without_end(_THOUSANDS.sub("", _marked(text).casefold()))
    for pattern, long_form in _CONTRACTED:
        text = pattern.sub(long_form, text)
    text = _FOR_ME.sub(r"\1", _COURTESY.sub("", text))
    text = _SUMMARY.sub("summarize", text)
    if fronted := _FRONTED.match(text):
        text = f"{fronted[2]} {fronted[1]}"
    words = [word for found in _TOKEN.findall(text) for word in _SAME.get(found, (_spelt(found),))]
    articles = Counter("a" if word == "an" else word for word in words if word in ("a", "an", "the"))
    asks = words[:1] if words and words[0] in _VERBS else []
    return [*asks, *(word for word in words if word not in _WEIGHTLESS)], articles


def _without_end(text: str) -> str:
    bare = text.rstrip(" .?!")
    factorial = bare[-1:].isdigit() and text[len(bare) :].startswith("!")
    return f"{bare}!" if factorial else bare


def _exchanged(one: Counter[str], other: Counter[str]) -> Difference | None:
    """An article may be left out, but not changed: "a king" is not "the king"."""
    if (one["the"] - other["the"]) * (one["a"] - other["a"]) < 0:
        return Difference("words", *(("the", "a") if one["the"] > other["the"] else ("a", "the")))
    return None


_CAPITALS: Final = re.compile(r"\b([A-Za-z][A-Z]|WHO|AIDS)\b")


def _marked(text: str) -> str:
    """Short words in capitals told from others: the US is not us, MB is not Mb. Not where everything is in capitals."""
    return text if text.isupper() else _CAPITALS.sub(r"\1_", text)


def _spelt(word: str) -> str:
    word = word.removesuffix("'s")
    for pattern, american in _SPELT:
        word = pattern.sub(american, word)
    return word


# ---------------------------------------------------------------------------------- the reason


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEGATIONS: Final = _words("not no never none nor neither nobody nothing nowhere without except unless hardly but ever")
_UNITS: Final = _words(
    "ms s sec secs second seconds min mins minute minutes h hour hours day days week weeks month months year years "
    "mm cm m km kilometre kilometres kilometer kilometers mile miles metre metres meter meters inch inches foot feet "
    "g kg gram grams kilogram kilograms lb lbs pound pounds ounce ounces ton tons l litre litres liter liters gallon "
    "b kb mb gb tb kib mib gib tib bit bits byte bytes megabit megabits megabyte megabytes gigabyte gigabytes "
    "celsius fahrenheit kelvin degrees euro euros dollar dollars usd eur gbp yen percent % $ € £"
)
_TIMES: Final = _words(
    "today tomorrow yesterday now then last this next previous before after since until during recently soon morning "
    "evening night weekly daily monthly yearly january february march april may june july august september october "
    "november december monday tuesday wednesday thursday friday saturday sunday was were will did"
)
_OPPOSITES: Final = frozenset(
    frozenset(pair.split("-"))
    for pair in _words(
        "from-to before-after read-write min-max minimum-maximum more-less most-least most-fewest enable-disable "
        "include-exclude including-excluding with-without accept-reject accepts-rejects allow-deny grant-revoke "
        "add-remove open-close opened-closed start-stop first-last highest-lowest largest-smallest fastest-slowest "
        "best-worst oldest-newest longest-shortest cheapest-dearest ascending-descending increase-decrease "
        "upload-download import-export push-pull input-output public-private all-some all-any internal-external "
        "above-below over-under up-down left-right buy-sell pass-fail true-false on-off old-new "
        "advantages-disadvantages pros-cons"
    )
)
_TURNED: Final = re.compile(r"^(?:un|in|im|ir|il|dis|de|non-?|anti-?|ex|en)(?=\w{4})")
_NAMES: Final = re.compile(r"(?<=[\w,;:)'\"] )[\"'`(]*([^\W\d_a-z][\w-]*)")


def _kind(left: list[str], right: list[str], both: str) -> Kind:
    words = {word.removesuffix("_") for word in (*left, *right)}
    if any(_NUMBER.match(word) for word in words):
        return "number"
    if words & _NEGATIONS:
        return "negation"
    if words & _UNITS:
        return "unit"
    if any(frozenset((a, b)) in _OPPOSITES or _turned(a, b) for a in left[:_COMPARED] for b in right[:_COMPARED]):
        return "opposite"
    if words & _TIMES:
        return "time"
    if words & {_spelt(name.casefold()) for name in _NAMES.findall(both)}:
        return "name"
    return "words"


def _turned(one: str, other: str) -> bool:
    """Whether one is the other with a prefix that turns it round."""
    return one != other and _TURNED.sub("", one) == _TURNED.sub("", other)
