"""Documents as files hold them: YAML, or Markdown whose text is the prompt or content of its front matter. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from ksi_mcp import yamledit, yamlio
from ksi_mcp.compositions.model import FOLDERS
from ksi_mcp.errors import Invalid

MAX_EDITED_CHARS: Final = 200_000
"""Larger files are written anew: looking for places in them takes too long."""

_FRONT_MATTER: Final = re.compile(r"\s*---[ \t]*\r?\n(.*?\n)??---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_TEXT_KEYS: Final = ("prompt", "system_prompt", "content")
_BODY: Final = "body"
# Found in any folder, and never a composition.
_PAPERS: Final = frozenset({"readme", "changelog", "license", "contributing", "index", "claude", "agents", "todo"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """A Markdown file in its parts. `given` is what the file does not say itself: its name, or its folder's type."""

    matter: str
    body: str
    document: Any
    given: dict[str, str]
    body_key: str | None = None


def document_of(text: str, path: str, *, max_bytes: int) -> Any:
    """The document in a file; None for Markdown that does not claim to hold one.

    Raises:
        Invalid: it is no YAML, its front matter has no end, or it has none where one is needed.
    """
    if not path.endswith(".md"):
        return yamlio.safe_load(text, what="the file", max_bytes=max_bytes)
    page = _page_of(text, path, max_bytes=max_bytes)
    return None if page is None else page.document


def text_for(text: str, path: str, document: dict[str, Any], *, max_bytes: int) -> str:
    """`text` changed so that it holds `document`; comments and layout stay wherever that is possible.

    Raises:
        Invalid: it cannot be written so that it would read the same.
    """
    for candidate in _candidates(text, path, document, max_bytes=max_bytes):
        if len(candidate.encode(errors="replace")) > max_bytes:
            continue
        try:
            read_back = document_of(candidate, path, max_bytes=max_bytes)
        except Invalid:
            continue
        if json.dumps(read_back, sort_keys=True) == json.dumps(document, sort_keys=True):
            return candidate
    raise Invalid("the composition cannot be written so that it reads the same", hint="shorten it, or split it")


def _candidates(text: str, path: str, document: dict[str, Any], *, max_bytes: int) -> Iterator[str]:
    """Texts that may hold `document`, the one that keeps most of `text` first."""
    yield text
    if not path.endswith(".md"):
        if (kept := _edited(text, document)) is not None:
            yield kept
        yield yamlio.dump(document)
        return
    try:
        page = _page_of(text, path, max_bytes=max_bytes)
    except Invalid:
        page = None
    body = document.get(page.body_key) if page is not None and page.body_key is not None else None
    if page is not None and isinstance(body, str):
        shown = page.body if body == page.body.strip() else f"\n{body}\n"
        rest = {key: value for key, value in document.items() if key != page.body_key}
        # What its place says need not be said again; but front matter that says anything says its type too.
        for untold in (page.given, {"name": page.given.get("name")}):
            told = {key: value for key, value in rest.items() if key not in untold or untold[key] != value}
            if page.matter and (kept := _edited(page.matter, told)) is not None:
                yield f"---\n{kept}---\n{shown}"
            yield f"---\n{yamlio.dump(told)}---\n{shown}" if told else shown
    if page is not None and page.matter and (kept := _edited(page.matter, document)) is not None:
        yield f"---\n{kept.rstrip()}\n---\n"
    yield f"---\n{yamlio.dump(document)}---\n"


def _edited(text: str, document: dict[str, Any]) -> str | None:
    if len(text) > MAX_EDITED_CHARS:
        return None
    try:
        return yamledit.edited(text, document, what="the file")
    except Invalid:
        return None


def _page_of(text: str, path: str, *, max_bytes: int) -> _Page | None:
    place = PurePosixPath(path)
    match = _FRONT_MATTER.match(text)
    if match is None:
        return _bare(text, place)
    lines_before = text.count("\n", 0, match.start(1)) if match[1] is not None else 0
    matter = match[1] or ""
    # As many lines in front keep the line numbers of errors those of the file.
    document = yamlio.safe_load("\n" * lines_before + matter, what="the file", max_bytes=max_bytes)
    body = text[match.end() :]
    if document is None:
        document = {}
    if not isinstance(document, dict):
        return _Page(matter=matter, body=body, document=document, given={})
    given: dict[str, str] = {}
    if "name" not in document:
        given["name"] = document["name"] = place.stem
    key = None
    if stripped := body.strip():
        key = _body_key(document)
        document[key] = stripped
    return _Page(matter=matter, body=body, document=document, given=given, body_key=key)


def _bare(text: str, place: PurePosixPath) -> _Page | None:
    """Markdown without front matter: what it is, its folder says."""
    if re.match(r"\s*---[ \t]*\r?\n", text):
        line = text[: len(text) - len(text.lstrip())].count("\n") + 1
        raise Invalid(f"the front matter that begins at line {line} has no end", hint="end it with a line ---")
    if place.stem.lower() in _PAPERS:
        return None
    kind = next((kind for kind, folder in FOLDERS.items() if place.parts[:-1] and place.parts[0] == folder), None)
    if kind is None:
        raise Invalid(
            "line 1: there is no front matter, and the file lies in no folder that says what it is",
            hint="begin it with ---, name:, type:, ---",
        )
    given: dict[str, str] = {"name": place.stem, "type": kind}
    document: dict[str, Any] = dict(given)
    key = None
    if stripped := text.strip():
        key = _body_key(document)
        document[key] = stripped
    return _Page(matter="", body=text, document=document, given=given, body_key=key)


def _body_key(document: dict[str, Any]) -> str:
    """The key that the text below the front matter is kept under; nothing that the front matter says is replaced."""
    word = document.get("type", document.get("component_type"))
    wanted = "prompt" if word in ("agent", "profile") else "content"
    key = _BODY if any(key in document for key in _TEXT_KEYS) else wanted
    if key in document:
        raise Invalid(
            f"the front matter has {key!r}, and there is a text below it that would be the same",
            hint="keep one of them",
        )
    return key
