"""The words of a condition: a closed alphabet, respelled for Python's own parser.

Only the tokens listed here exist, so that nothing Python may ever learn to say gets through by
accident. Upper-case `AND`, `true`, `null`, `a contains b` and keys such as `data.from` or
`data.items.0` become Python; text in quotes is decoded here and written anew, never touched otherwise.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from ksi_mcp.errors import Invalid
from ksi_mcp.events.patterns import shorten

MAX_TOKENS = 800
MAX_BRACKETS = 32
MAX_NUMBER_CHARS = 32
MAX_SIGNS = 20
"""`not` and `-` in a row; each is a level of nesting for the parser."""

_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<text>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')
      | (?P<op>==|!=|<=|>=|[<>()\[\],.-])
    """,
    re.VERBOSE,
)
_KEY = re.compile(r"[0-9]+|[^\W\d]\w*")  # right after a dot
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES: Final[Mapping[str, str]] = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip
_CONSTANTS: Final[Mapping[str, str]] = {"true": "True", "false": "False", "null": "None", "none": "None"}
_WORDS: Final = frozenset({"and", "or", "not", "in"})
_HINTS: Final[Mapping[str, str]] = {
    "=": "equality is written ==",
    "&": "write: and",
    "|": "write: or",
    "!": "write: not, or !=",
    "*": "there is no arithmetic",
    "+": "there is no arithmetic",
    "/": "there is no arithmetic",
    "%": "there is no arithmetic",
    "{": "a condition speaks of names directly, e.g. data.score, without braces",
}


class Token(NamedTuple):
    """A word of the expression: its kind (space, number, name, text, op) and its spelling."""

    kind: str
    text: str


def rewrite(text: str) -> str:
    """The same expression in Python's spelling.

    Raises:
        Invalid: it holds a character or word that the language does not have, or nests too deeply.
    """
    tokens = _tokens(text)
    out: list[str] = []
    at = 0
    while at < len(tokens):
        kind, word = tokens[at]
        after_operand = bool(at) and _ends_operand(tokens[at - 1])
        follows = tokens[at + 1] if at + 1 < len(tokens) else Token("end", "")
        at += 1
        if kind == "key":
            if at < 3 or not _ends_operand(tokens[at - 3]):  # noqa: PLR2004  operand, dot, key
                raise Invalid(f"condition {shorten(text)} has '.{word}' after nothing", hint="write e.g. data.x or 0.5")
            out[-1:] = [f"[{int(word) if word.isascii() and word.isdigit() else ascii(word)}]"]
        elif kind == "text":
            out.append(ascii(_decode(word, text)))
        elif kind != "name":
            out.append(word)
        elif word.lower() == "contains" and after_operand:
            out.append("is")
        elif word.lower() == "not" and after_operand and follows.text.lower() == "contains":
            out.append("is not")
            at += 1
        elif (word.islower() or word.isupper()) and word.lower() in _WORDS:
            out.append(word.lower())
        elif (word.islower() or word.isupper() or word.istitle()) and word.lower() in _CONSTANTS:
            out.append(_CONSTANTS[word.lower()])
        elif keyword.iskeyword(word):
            hint = "equality is written ==" if word == "is" else "there are and, or, not, in, contains"
            raise Invalid(f"condition {shorten(text)} has the word {word!r}", hint=hint)
        else:
            out.append(word)
    return " ".join(out)


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    signs = 0
    open_brackets: list[str] = []
    at = 0
    while at < len(text):
        after_dot = bool(tokens) and tokens[-1] == ("op", ".")
        found = _KEY.match(text, at) if after_dot else None
        found = found or _TOKEN.match(text, at)
        if found is None:
            char = text[at]
            hint = "a text ends with the quote it began with" if char in "\"'" else _HINTS.get(char)
            raise Invalid(f"condition {shorten(text)} has {char!r} at character {at + 1}", hint=hint)
        at = found.end()
        kind = found.lastgroup or "key"
        if kind == "space":
            continue
        tokens.append(Token(kind, found[0]))
        _check(tokens[-1], open_brackets, text)
        signs = signs + 1 if found[0] == "-" or found[0].lower() == "not" else 0
        if signs > MAX_SIGNS:
            raise Invalid(f"condition {shorten(text)} has over {MAX_SIGNS} signs in a row")
        if len(tokens) > MAX_TOKENS:
            raise Invalid(f"condition {shorten(text)} has over {MAX_TOKENS} words", hint="use several rules")
    if open_brackets:
        raise Invalid(f"condition {shorten(text)} has an open {open_brackets[-1]!r}")
    return tokens


def _check(token: Token, open_brackets: list[str], text: str) -> None:
    if (token.kind == "number" or token.text.isdigit()) and len(token.text) > MAX_NUMBER_CHARS:
        raise Invalid(f"condition {shorten(text)} has a number of {len(token.text)} characters")
    if token.text in ("(", "[") and token.kind == "op":
        open_brackets.append(token.text)
        if len(open_brackets) > MAX_BRACKETS:
            raise Invalid(f"condition {shorten(text)} is nested too deeply", hint=f"at most {MAX_BRACKETS} brackets")
    elif token.text in (")", "]") and token.kind == "op":
        opened = open_brackets.pop() if open_brackets else ""
        if opened + token.text not in ("()", "[]"):
            raise Invalid(f"condition {shorten(text)} has a {token.text!r} that closes nothing")


def _ends_operand(token: Token) -> bool:
    kind, text = token
    if kind == "op":
        return text in (")", "]")
    return kind in ("number", "text", "key") or (kind == "name" and text.lower() not in (*_WORDS, "contains"))


def _decode(literal: str, text: str) -> str:
    def escape(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) > 1:
            return chr(int(code[1:], 16))
        if code not in _ESCAPES:
            raise Invalid(f"condition {shorten(text)} has the escape '\\{code}'", hint="write \\\\ for a backslash")
        return _ESCAPES[code]

    return _ESCAPE.sub(escape, literal[1:-1])
