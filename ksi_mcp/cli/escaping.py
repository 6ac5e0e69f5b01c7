"""What others wrote, made harmless for a terminal: control sequences are shown, and not obeyed."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Final

# Controls of 7 and 8 bits, marks that hide text or turn its direction round, line ends of other kinds, halves of
# surrogate pairs, tags. New lines and tabs are text.
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with each control character written out as its number; new lines and tabs stay."""
    return text if text.isprintable() else _CONTROL.sub(_written, text)


def one_line(text: str) -> str:
    """The same on one line."""
    return visible(" ".join(text.split()))


def exact_json(value: Any, *, indent: int | None = None, in_ascii: bool = False) -> str:
    """The value as JSON that is exact and that no terminal obeys: what it could obey is escaped."""
    text = json.dumps(value, ensure_ascii=in_ascii, indent=indent)
    return _CONTROL.sub(_as_json, text)


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print the value as exact JSON, in ASCII if stdout takes no Unicode."""
    in_ascii = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(exact_json(value, indent=indent, in_ascii=in_ascii), flush=True)


def _written(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _as_json(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
