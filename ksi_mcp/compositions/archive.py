"""The outer shape of a bundle: a ZIP file whose bytes depend on its contents alone, read as if an enemy had made it.

Entries are stored, not compressed: the same contents are the same bytes on every machine. Reading takes
deflated entries too, never more of them than they say and never more than the limits. Pure.
"""

from __future__ import annotations

import io
import re
import stat
import zipfile
import zlib
from typing import Final

from ksi_mcp.compositions.model import shorten
from ksi_mcp.errors import Invalid

MAX_BUNDLE_BYTES: Final = 50_000_000
MAX_ENTRIES: Final = 2_000
MAX_ENTRY_BYTES: Final = 10_000_000
MAX_UNPACKED_BYTES: Final = 50_000_000

_PATH = re.compile(r"[a-z0-9][a-z0-9_.@-]*(?:/[a-z0-9][a-z0-9_.@-]*){0,4}")
_MAX_PATH_CHARS: Final = 300
_TIME: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_FILE_MODE: Final = (stat.S_IFREG | 0o644) << 16
_FIRST: Final = b"PK\x03\x04"
_END: Final = b"PK\x05\x06"
_END_BYTES: Final = 22
_ENCRYPTED: Final = 0x1
_KINDS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def pack(entries: dict[str, bytes]) -> bytes:
    """A bundle of `entries`, in their order, without the time of day or anything of this machine.

    Raises:
        Invalid: more than a bundle holds.
    """
    if len(entries) > MAX_ENTRIES or sum(map(len, entries.values())) > MAX_UNPACKED_BYTES:
        raise Invalid(
            f"a bundle holds at most {MAX_ENTRIES:,} files of {MAX_UNPACKED_BYTES:,} bytes together",
            hint="export fewer compositions at a time",
        )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for path, data in entries.items():
            _check_path(path)
            if len(data) > MAX_ENTRY_BYTES:
                raise Invalid(f"{path!r} has {len(data):,} bytes, a bundle takes {MAX_ENTRY_BYTES:,}")
            info = zipfile.ZipInfo(path, _TIME)
            info.create_system = _UNIX
            info.external_attr = _FILE_MODE
            archive.writestr(info, data)
    return out.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """What is in a bundle, by path.

    Raises:
        Invalid: it is no ZIP file, or holds anything but plain files under plain names within the limits.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise Invalid(f"the bundle has {len(data):,} bytes, the limit is {MAX_BUNDLE_BYTES:,}")
    if not data.startswith(_FIRST) or data[-_END_BYTES:][:4] != _END:
        raise Invalid("this is not a bundle", hint="a bundle is the .ksi.zip file that composition_export writes")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_entries(archive.infolist())
            return {info.filename: _read(archive, info) for info in archive.infolist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, OverflowError) as error:
        raise Invalid(f"the bundle is damaged: {shorten(str(error))}", hint="ask for the file again") from None


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise Invalid(f"the bundle has {len(entries):,} entries, the limit is {MAX_ENTRIES:,}")
    seen: set[str] = set()
    total = 0
    for info in entries:
        # `filename` ends at a zero byte; what stood behind it must not go unseen.
        _check_path(info.orig_filename)
        if info.filename in seen:
            raise Invalid(f"the bundle has {info.filename!r} twice")
        seen.add(info.filename)
        if info.flag_bits & _ENCRYPTED:
            raise Invalid(f"{info.filename!r} in the bundle is encrypted")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.is_dir():
            what = "a symbolic link" if kind == stat.S_IFLNK else "not a regular file"
            raise Invalid(f"{info.filename!r} in the bundle is {what}")
        if info.compress_type not in _KINDS:
            raise Invalid(f"{info.filename!r} in the bundle is packed in a way that is not taken")
        if info.file_size > MAX_ENTRY_BYTES:
            raise Invalid(f"{info.filename!r} would have {info.file_size:,} bytes, the limit is {MAX_ENTRY_BYTES:,}")
        total += info.file_size
    if total > MAX_UNPACKED_BYTES:
        raise Invalid(f"the bundle would have {total:,} bytes unpacked, the limit is {MAX_UNPACKED_BYTES:,}")


def _check_path(path: str) -> None:
    if len(path) > _MAX_PATH_CHARS or not _PATH.fullmatch(path) or ".." in path:
        raise Invalid(f"{shorten(ascii(path)[1:-1])!r} is not a path that a bundle may hold")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise Invalid(f"{info.filename!r} in the bundle is not as long as it says")
    return data
