"""The library's files: found, read and written without ever leaving a layer's folder.

Blocking; callers run it in a thread. Nothing here follows a symbolic link that leads out, and a
file is written whole or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import ksi_mcp
from ksi_mcp.compositions.markdown import document_of
from ksi_mcp.compositions.model import FOLDERS, Composition, CompositionType, check_name, parse_composition, shorten
from ksi_mcp.errors import Conflict, Invalid, NotFound, StoreError

MAX_FILE_BYTES: Final = 1_000_000
MAX_FILES: Final = 10_000
"""Files looked at in one layer."""
MAX_FOLDER_DEPTH: Final = 8

DECISIONS_FOLDER: Final = "decisions"
DECISIONS_SUFFIX: Final = "_decisions"
"""Decision logs lie beside the compositions and are none."""

_ENDINGS: Final = frozenset({".yaml", ".yml", ".md"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file that may hold a composition. `path` is inside its layer, with forward slashes."""

    path: str
    mtime_ns: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProblem:
    """Why a file of a layer is not in the library."""

    layer: str
    path: str
    message: str


def builtin_root() -> Path:
    """The folder of the compositions that come with the package, installed or in a checkout."""
    package = Path(ksi_mcp.__file__).resolve().parent
    packaged = package / "_compositions"
    return packaged if packaged.is_dir() else package.parent / "compositions"


def path_for(kind: CompositionType, name: str) -> str:
    """Where a composition of that type and name is written, inside its layer.

    Raises:
        Invalid: the name cannot be a file's name.
    """
    check_name(name)
    if name.endswith(DECISIONS_SUFFIX):
        raise Invalid(f"the name {name!r} ends like a decision log", hint="choose another ending")
    return f"{FOLDERS[kind]}/{name}.yaml"


def scan(root: Path) -> tuple[list[FoundFile], list[tuple[str, str]]]:
    """Every file under `root` that may hold a composition, and what had to be left out as (path, reason)."""
    found: list[FoundFile] = []
    refused: list[tuple[str, str]] = []
    real_root = os.path.realpath(root)
    for entry, inside in _walk(real_root):
        if entry.is_symlink() and not _within(real_root, os.path.realpath(entry.path)):
            refused.append((inside, "a symbolic link that leads out of the library"))
            continue
        try:
            status = entry.stat()
        except OSError:
            refused.append((inside, "cannot be looked at"))
            continue
        if not stat.S_ISREG(status.st_mode):
            refused.append((inside, "not a regular file"))
        elif len(found) >= MAX_FILES:
            refused.append((inside, f"more than {MAX_FILES:,} files"))
            break
        else:
            found.append(FoundFile(path=inside, mtime_ns=status.st_mtime_ns, size=status.st_size))
    found.sort(key=lambda file: file.path)
    return found, refused


def read_composition(root: Path, path: str) -> Composition | None:
    """The composition in a file of a layer; None for Markdown that has no front matter.

    Raises:
        Invalid: it holds none, with the line where that shows; NotFound: the file is gone.
    """
    return composition_in(read_text(root, path), path)


def composition_in(text: str, path: str) -> Composition | None:
    """The composition in the text of a file.

    Raises:
        Invalid: it holds none, with the line where that shows.
    """
    document = document_of(text, path, max_bytes=MAX_FILE_BYTES)
    if document is None and not path.endswith(".md"):
        raise Invalid("the file is empty from line 1 on", hint="a composition begins with `name:` and `type:`")
    if document is None:
        return None
    try:
        return parse_composition(document, what="the file")
    except Invalid as invalid:
        raise Invalid(_with_line(invalid.message, text), hint=invalid.hint) from None


def _with_line(message: str, text: str) -> str:
    """The message, and where in the file the key stands that it begins with."""
    key = re.match(r"the file: (\w+):", message)
    line = re.search(rf"^{key[1]}[ \t]*:", text, re.MULTILINE) if key else None
    place = text.count("\n", 0, line.start()) + 1 if line else 1
    return message.replace("the file", f"the file at line {place}", 1)


def read_text(root: Path, path: str, *, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The text of a file inside `root`.

    Raises:
        NotFound: there is none; Invalid: it lies outside, is too large, or is not UTF-8 text.
    """
    target = _inside(root, path)
    try:
        # O_NONBLOCK: a pipe put there between look and open must not hang the thread.
        handle = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"the file {shorten(path)!r} is not there any more") from None
    except OSError as error:
        raise Invalid(f"the file cannot be opened ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise Invalid("the file is not a regular file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise Invalid(f"the file cannot be read ({error.strerror})") from None
    finally:
        os.close(handle)
    if len(data) > max_bytes:
        raise Invalid(f"the file is larger than {max_bytes:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Invalid(f"the file is not UTF-8 text at line {line}") from None


def create_file(root: Path, path: str, text: str) -> None:
    """Write a new file, whole and durable, or nothing.

    Raises:
        Conflict: there is one of that name.
        Invalid: the path leads out of `root`, or the text is too large.
        StoreError: the folder cannot be written.
    """
    data = text.encode()
    if len(data) > MAX_FILE_BYTES:
        raise Invalid(f"the composition has {len(data):,} bytes, the limit is {MAX_FILE_BYTES:,}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        target = _inside(root, path)
        made = _make_folders(target.parent, Path(os.path.realpath(root)))
        temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
        try:
            _write_synced(temporary, data)
            _move_if_free(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        for folder in (target.parent, *made):
            sync_folder(folder)
    except FileExistsError:
        raise Conflict(f"a file for {target.stem!r} exists already", hint="choose another name") from None
    except OSError as error:
        raise StoreError(f"the library could not be written ({error.strerror})") from None


def replace_file(root: Path, path: str, text: str, *, instead_of: str) -> None:
    """Write over a file whose text is still `instead_of`: whole, durable and at once, or not at all.

    Raises:
        Conflict: its text is another by now; NotFound: it is gone.
        Invalid: the path leads out of `root`, or the text is too large.
        StoreError: the folder cannot be written.
    """
    data = text.encode()
    if len(data) > MAX_FILE_BYTES:
        raise Invalid(f"the composition has {len(data):,} bytes, the limit is {MAX_FILE_BYTES:,}")
    target = _inside(root, path)
    try:
        with _only_one(target.parent):
            temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
            try:
                _write_synced(temporary, data, mode=stat.S_IMODE(target.stat().st_mode))
                # Last of all: an editor does not ask for the lock, and making text durable takes a while.
                if read_text(root, path) != instead_of:
                    raise Conflict(
                        f"the file of {target.stem!r} was changed in the meantime",
                        hint="read it again, then repeat the call",
                    )
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(target.parent)
    except OSError as error:
        raise StoreError(f"the library could not be written ({error.strerror})") from None


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep other processes that write into `folder` out, from the look at a file to its replacement."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make a new name in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _walk(real_root: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    folders = [("", 0)]
    while folders:
        inside, depth = folders.pop()
        try:
            entries = sorted(os.scandir(os.path.join(real_root, inside)), key=lambda entry: entry.name)  # noqa: PTH118
        except OSError:
            continue
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < MAX_FOLDER_DEPTH and path != DECISIONS_FOLDER:
                    folders.append((path, depth + 1))
            elif is_candidate(entry.name):
                yield entry, path


def is_candidate(name: str) -> bool:
    """Whether a file of that name may hold a composition."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122 - the ending of a bare name
    return ending in _ENDINGS and not stem.endswith(DECISIONS_SUFFIX)


def _within(real_root: str, real_path: str) -> bool:
    return real_path.startswith(real_root.rstrip("/") + "/")


def _inside(root: Path, path: str) -> Path:
    """The real place of `path`, which must lie under `root` whatever links there are."""
    parts = PurePosixPath(path).parts
    real_root = os.path.realpath(root)
    if path.startswith("/") or "\\" in path or "\0" in path or not parts or ".." in parts:
        raise Invalid(f"{shorten(path)!r} is not a path inside the library")
    real_path = os.path.realpath(os.path.join(real_root, *parts))  # noqa: PTH118 - strings, as realpath takes them
    if not _within(real_root, real_path):
        raise Invalid(f"{shorten(path)!r} leads out of the library")
    return Path(real_path)


def _make_folders(folder: Path, root: Path) -> list[Path]:
    """Make `folder`; the folders in which a new name appeared."""
    changed: list[Path] = []
    missing: list[Path] = []
    while folder != root and not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        changed.append(each.parent)
    return changed


def _write_synced(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _move_if_free(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: claim the name, then put the whole file in its place.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        temporary.replace(target)
