"""Whatever compositions lie in a file or folder, of whatever format; a file that cannot be read spoils no other.

Blocking. No symbolic link is followed and nothing is written. A folder may be a git checkout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ksi_mcp import yamlio
from ksi_mcp.compositions import files
from ksi_mcp.compositions.importers import claude_agents, ksi, llm_orc
from ksi_mcp.compositions.importers.model import Format, Imported, Notes, Unread
from ksi_mcp.compositions.markdown import document_of
from ksi_mcp.compositions.model import FOLDERS, parse_composition, shorten
from ksi_mcp.compositions.review import asks_of
from ksi_mcp.errors import Invalid, KsiError, NotFound

MAX_FILES: Final = 5_000
MAX_DEPTH: Final = 12
_HIDDEN: Final = frozenset({".claude", ".llm-orc", ".ksi"})
_SKIPPED: Final = frozenset({"node_modules", "__pycache__", files.DECISIONS_FOLDER})
_BODY_KEYS: Final = ("content", "prompt", "body")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF = re.compile(r"ref: (refs/[A-Za-z0-9._/-]{1,200})")
_MAX_REF_BYTES: Final = 1_000

Step = Callable[[int, int], None]
"""Told after each file: how many are done, of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """What was found. `skipped` files claim to be no composition; `source` names the place without its path."""

    source: str
    imported: tuple[Imported, ...]
    unread: tuple[Unread, ...]
    skipped: tuple[str, ...]


def read_source(path: Path, *, format: Format | None = None, step: Step | None = None) -> Harvest:
    """Every composition in a file or a folder; `format` is taken from each file's contents unless it is given.

    Raises:
        NotFound: there is no such file or folder; Invalid: it is neither, or there are too many files.
    """
    if path.is_symlink():
        raise Invalid(f"{shorten(path.name)!r} is a symbolic link", hint="name the file or folder itself")
    if path.is_file():
        root, found, refused = path.parent, [path.name], list[Unread]()
    elif path.is_dir():
        root = path
        found, refused = _walk(path)
    else:
        raise NotFound(
            f"there is no file or folder {shorten(path.name)!r}",
            hint="name a file, a folder, or a bundle in quarantine",
        )
    imported: list[Imported] = []
    skipped: list[str] = []
    unread = refused
    names: dict[str, str] = {}
    for place, inside in enumerate(found):
        taken, problems = _read(root, inside, format, base=path.name)
        unread += problems
        if not taken and not problems:
            skipped.append(inside)
        for each in taken:
            name = str(each.document["name"])
            first = names.setdefault(name, each.path)
            if first != each.path or any(other.document["name"] == name for other in imported):
                unread.append(Unread(path=inside, reason=f"the name {name!r} is already that of {first}"))
            else:
                imported.append(each)
        if step is not None:
            step(place + 1, len(found))
    return Harvest(source=_source(path), imported=tuple(imported), unread=tuple(unread), skipped=tuple(skipped))


def _walk(root: Path) -> tuple[list[str], list[Unread]]:
    found: list[str] = []
    refused: list[Unread] = []
    for entry, inside in _entries(root):
        if entry.is_symlink():
            refused.append(Unread(path=inside, reason="a symbolic link: not followed"))
        elif not entry.is_file(follow_symlinks=False):
            refused.append(Unread(path=inside, reason="not a regular file"))
        elif len(found) >= MAX_FILES:
            raise Invalid(f"there are more than {MAX_FILES:,} files", hint="name a folder further down")
        else:
            found.append(inside)
    return found, refused


def _entries(root: Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    folders = [("", 0)]
    while folders:
        inside, depth = folders.pop()
        try:
            entries = sorted(os.scandir(root / inside), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            hidden = entry.name.startswith(".") and entry.name not in _HIDDEN
            if hidden or entry.name in _SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < MAX_DEPTH:
                    folders.append((path, depth + 1))
            elif files.is_candidate(entry.name):
                yield entry, path


def _read(root: Path, path: str, format: Format | None, *, base: str) -> tuple[list[Imported], list[Unread]]:
    try:
        text = files.read_text(root, path)
        documents = _documents(text, f"{base}/{path}")
    except KsiError as error:
        return [], [Unread.of(path, error.text())]
    imported: list[Imported] = []
    unread: list[Unread] = []
    for place, document in enumerate(documents):
        which = f"{path}#{place + 1}" if len(documents) > 1 else path
        try:
            made = _converted(document, text if len(documents) == 1 else None, which, format, base=base)
        except KsiError as error:
            unread.append(Unread.of(which, error.text()))
        else:
            if made is not None:
                imported.append(made)
    return imported, unread


def _documents(text: str, path: str) -> list[Any]:
    if not path.endswith(".md"):
        return yamlio.safe_load_all(text, what="the file", max_bytes=files.MAX_FILE_BYTES)
    # Where a collection lies inside a checkout, its folders say what a page without front matter is.
    parts = path.split("/")
    start = next((place for place, part in enumerate(parts[:-1]) if part in FOLDERS.values()), None)
    try:
        document = document_of(
            text, "/".join(parts[start:]) if start is not None else path, max_bytes=files.MAX_FILE_BYTES
        )
    except Invalid:
        if not text.lstrip().startswith("---"):
            return []  # a page of prose
        mended = claude_agents.mended(text)
        if mended is None:
            raise
        try:
            document = document_of(mended, path, max_bytes=files.MAX_FILE_BYTES)
        except Invalid:
            document = None
        if not isinstance(document, dict):
            raise
    return [] if document is None else [document]


def _converted(document: Any, text: str | None, path: str, format: Format | None, *, base: str) -> Imported | None:
    """None: it does not claim to be a composition."""
    if not isinstance(document, dict):
        if document is None or format is None:
            return None
        raise Invalid("the file is not a mapping of keys")
    kind = format or _format_of(document, f"{base}/{path}")
    if kind is None:
        return None
    made, notes = _convert(document, path, kind)
    if kind == "ksi" and made == document:
        kind = "ksi_mcp"
    # Read back as it will be written, and looked through: what asks for too much is left out, the rest goes on.
    if made != document or text is None or path.endswith(".md"):
        text = yamlio.dump(made)
        made = yamlio.safe_load(text, what="the file")
    composition = parse_composition(made, what="the file")
    files.path_for(composition.type, composition.name)
    _asks, problems = asks_of(composition)
    notes.unused += [f"to be mended before it is used: {problem}" for problem in problems]
    return Imported(
        path=path,
        format=kind,
        document=composition.document,
        text=text,
        mapped=tuple(notes.mapped),
        unused=tuple(notes.unused),
    )


def _convert(document: dict[str, Any], path: str, kind: Format) -> tuple[dict[str, Any], Notes]:
    plain = path.partition("#")[0]
    if kind == "llm_orc":
        return llm_orc.convert(document, plain)
    if kind == "claude_agents":
        key = next((key for key in _BODY_KEYS if isinstance(document.get(key), str)), None)
        front = {name: value for name, value in document.items() if name != key}
        return claude_agents.convert(front, document[key] if key else "", plain)
    if kind == "ksi":
        return ksi.convert(document, plain)
    return document, Notes()


def _format_of(document: dict[str, Any], path: str) -> Format | None:
    if path.endswith(".md") and claude_agents.looks_like(document, path):
        return "claude_agents"
    if llm_orc.looks_like(document):
        return "llm_orc"
    says = {"type", "component_type", "agents", "orchestration_logic"} & document.keys()
    if says and ("name" in document or "component_type" in document):
        return "ksi"
    return None


def _source(path: Path) -> str:
    """Its name, and the commit where it is a git checkout: never where it lies."""
    name = "".join(character for character in path.name if character.isprintable())[:200] or "folder"
    commit = _commit_of(path)
    return f"{name} at commit {commit}" if commit else name


def _commit_of(path: Path) -> str | None:
    for folder in (path, *path.absolute().parents)[:MAX_DEPTH]:
        git = folder / ".git"
        if not git.is_dir() or git.is_symlink():
            continue
        head = _small(git / "HEAD")
        ref = _REF.fullmatch(head)
        if ref is not None and ".." not in ref[1]:
            head = _small(git / ref[1])
        return head if _COMMIT.fullmatch(head) else None
    return None


def _small(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_REF_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
