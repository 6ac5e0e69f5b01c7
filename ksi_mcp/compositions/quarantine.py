"""Folders of bundles: what waits to be allowed, what was exported, and the one step that places files in a library.

Blocking; callers run it in a thread and hold `lock`. A bundle appears in quarantine, and its files in the library,
by one rename each: there is never half of it, whenever the machine stops.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self

from filelock import FileLock, Timeout

from ksi_mcp.compositions import archive
from ksi_mcp.compositions.files import sync_folder
from ksi_mcp.compositions.manifest import Bundle, from_bytes, read_json, to_bytes
from ksi_mcp.compositions.model import shorten
from ksi_mcp.errors import Conflict, Exhausted, Invalid, KsiError, NotFound, StoreError

BUNDLE_FILE: Final = "bundle.ksi.zip"
NOTES_FILE: Final = "notes.json"
FILES_FOLDER: Final = "files"
IMPORTED_FOLDER: Final = "imported"
"""In the writable library: a folder for each bundle that was allowed."""
ENDING: Final = ".ksi.zip"
MAX_WAITING: Final = 200
MAX_NOTES_BYTES: Final = 5_000_000
LOCK_WAIT_S: Final = 30.0

_STAGING: Final = ".import-"
_ID = re.compile(r"b_[0-9a-f]{20}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A bundle in quarantine, and what was noted about it as it came."""

    bundle: Bundle
    notes: dict[str, Any]


class Quarantine:
    """The folder `quarantine/` of a data folder: a bundle each, under its id."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def lock(self) -> FileLock:
        """Held while a bundle is put in, placed or thrown away, by one process at a time."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the quarantine could not be made ({error.strerror})") from None
        lock = FileLock(self._root / ".lock", thread_local=False)
        try:
            lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout:
            raise Conflict("another import is going on", hint="try again when it is done") from None
        return lock

    def ids(self) -> list[str]:
        """Of the bundles that wait."""
        try:
            return sorted(entry.name for entry in self._root.iterdir() if _ID.fullmatch(entry.name))
        except OSError:
            return []

    def put(self, bundle: Bundle, notes: dict[str, Any]) -> None:
        """Keep a bundle until it is allowed. One that is there already is replaced by the same.

        Raises:
            Conflict: another one has its id; Exhausted: too many wait.
        """
        target = self._root / bundle.id
        if target.exists():
            try:
                if self.get(bundle.id).bundle.digest != bundle.digest:
                    raise Conflict(f"another bundle has the id {bundle.id}", hint="discard that one first")
            except Invalid:
                pass  # what is there was damaged
        elif len(self.ids()) >= MAX_WAITING:
            raise Exhausted(f"{MAX_WAITING} bundles wait already", hint="allow or discard some of them")
        contents = {
            BUNDLE_FILE: to_bytes(bundle),
            NOTES_FILE: json.dumps(notes, ensure_ascii=False, indent=1).encode(),
            **{f"{FILES_FOLDER}/{item.entry.path}": item.text.encode() for item in bundle.items},
        }
        try:
            with _Staged(self._root, contents) as staged:
                self._remove(bundle.id)
                staged.become(target)
        except OSError as error:
            raise StoreError(f"the bundle could not be put into quarantine ({error.strerror})") from None

    def get(self, bundle_id: str) -> Held:
        """A bundle that waits, checked again.

        Raises:
            NotFound: none has that id; Invalid: its file was changed.
        """
        if not _ID.fullmatch(bundle_id):
            raise NotFound(f"{shorten(bundle_id)!r} is not a bundle's id", hint="composition_import() lists those here")
        folder = self._root / bundle_id
        if not folder.is_dir():
            raise NotFound(f"no bundle {bundle_id} is in quarantine", hint="composition_import() lists those here")
        bundle = from_bytes(read_bounded(folder / BUNDLE_FILE, archive.MAX_BUNDLE_BYTES, what="the bundle"))
        if bundle.id != bundle_id:
            raise Invalid(
                f"the bundle {bundle_id} was changed in its quarantine", hint="discard it and import it again"
            )
        notes = read_json(
            read_bounded(folder / NOTES_FILE, MAX_NOTES_BYTES, what="the notes"),
            what="the notes",
            limit=MAX_NOTES_BYTES,
        )
        return Held(bundle=bundle, notes=notes if isinstance(notes, dict) else {})

    def discard(self, bundle_id: str) -> None:
        """Throw a bundle away, whatever its state.

        Raises:
            NotFound: none has that id.
        """
        if not _ID.fullmatch(bundle_id) or not (self._root / bundle_id).exists():
            raise NotFound(f"no bundle {shorten(bundle_id)!r} is in quarantine")
        try:
            self._remove(bundle_id)
        except OSError as error:
            raise StoreError(f"the bundle could not be removed ({error.strerror})") from None

    def sweep(self) -> None:
        """Remove what a crash left."""
        _sweep(self._root)

    def _remove(self, bundle_id: str) -> None:
        folder = self._root / bundle_id
        if folder.exists():
            gone = self._root / f"{_STAGING}{secrets.token_hex(8)}"
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def place(library: Path, bundle_id: str, contents: dict[str, str]) -> str:
    """Put files into the library, all at once: the folder inside it that they are in.

    Raises:
        Invalid: that folder is a link that leads elsewhere; StoreError: it cannot be written.
    """
    try:
        parent = library / IMPORTED_FOLDER
        parent.mkdir(parents=True, exist_ok=True)
        if os.path.realpath(parent) != os.path.join(os.path.realpath(library), IMPORTED_FOLDER):  # noqa: PTH118 - strings, as realpath
            raise Invalid(f"the folder {IMPORTED_FOLDER!r} is a link that leads out of the library")
        _sweep(library)
        sync_folder(library)
        with _Staged(library, {path: text.encode() for path, text in contents.items()}) as staged:
            number = 1
            while True:
                name = bundle_id if number == 1 else f"{bundle_id}.{number}"
                try:
                    if not (parent / name).exists():
                        staged.become(parent / name)
                        return f"{IMPORTED_FOLDER}/{name}"
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                number += 1
    except OSError as error:
        raise StoreError(f"the library could not be written ({error.strerror})") from None


def save(folder: Path, name: str, data: bytes) -> Path:
    """Write a file whole, replacing one of that name; where it is.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            _write(temporary, data)
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise StoreError(f"{shorten(name)!r} could not be written ({error.strerror})") from None
    return folder / name


def read_bounded(path: Path, limit: int, *, what: str) -> bytes:
    """A regular file of at most `limit` bytes.

    Raises:
        NotFound: there is none; Invalid: it is something else, or larger.
    """
    try:
        # O_NONBLOCK: a pipe must not hang the thread.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{what} {shorten(path.name)!r} is not there") from None
    except OSError as error:
        raise Invalid(f"{what} cannot be opened ({error.strerror})") from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Invalid(f"{what} {shorten(path.name)!r} is not a regular file")
        if status.st_size > limit:
            raise Invalid(f"{what} has {status.st_size:,} bytes, the limit is {limit:,}")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Invalid(f"{what} has more than {limit:,} bytes")
    return data


class _Staged:
    """Files written durably into a hidden folder, which then becomes what it is for, or goes."""

    def __init__(self, parent: Path, contents: dict[str, bytes]) -> None:
        self._folder = parent / f"{_STAGING}{secrets.token_hex(8)}"
        self._contents = contents

    def __enter__(self) -> Self:
        try:
            folders = {self._folder}
            self._folder.mkdir(mode=0o700)
            for path, data in self._contents.items():
                if path.startswith("/") or ".." in PurePosixPath(path).parts:
                    raise Invalid(f"{shorten(path)!r} is not a path inside the library")
                target = self._folder / path
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                folders.update(each for each in target.parents if self._folder in (each, *each.parents))
                _write(target, data, durable=not path.startswith(f"{FILES_FOLDER}/"))  # copies to look at
            for folder in sorted(folders, reverse=True):
                sync_folder(folder)
        except (OSError, KsiError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise StoreError(f"the bundle's files could not be written ({error.strerror})") from None
            raise
        return self

    def become(self, target: Path) -> None:
        self._folder.rename(target)
        sync_folder(target.parent)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _write(path: Path, data: bytes, *, durable: bool = True) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(handle)


def _sweep(folder: Path) -> None:
    for each in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(each, ignore_errors=True)
