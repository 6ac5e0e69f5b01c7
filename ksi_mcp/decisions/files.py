"""`<pattern>_decisions.yaml`: a YAML list that only ever grows, so that a decision's cost does not.

Blocking; callers run it in a thread. Each entry begins with its `id`, or with the id it `resolves`, and ends with its
`at`, both at fixed columns: what a crash cut short is recognised without reading the YAML, and taken off.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from ksi_mcp import yamlio
from ksi_mcp.compositions.files import DECISIONS_SUFFIX, sync_folder
from ksi_mcp.decisions.model import Decision
from ksi_mcp.errors import Invalid, StoreError

Kind = Literal["id", "resolves"]
"""What an entry is: a decision, or how one turned out."""

_TAIL_BYTES: Final = 524_288  # more than the largest entry
_CHUNK_BYTES: Final = 1 << 20
_ID = re.compile(rb"^- (id|resolves): (d_[0-9a-z]+)$", re.MULTILINE)
_END = re.compile(rb"^  at: \S+\n", re.MULTILINE)


def append(folder: Path, pattern: str, decisions: Iterable[Decision], *, kind: Kind = "id") -> None:
    """Add decisions to the pattern's file in one durable write, leaving out those just written by another.

    `kind` "resolves" adds how they turned out instead.

    Raises:
        Invalid: the folder or file is a link that leads elsewhere; StoreError: it cannot be written.
    """
    with _locked(folder, pattern) as handle:
        _cut_torn_end(handle)
        size = os.fstat(handle).st_size
        tail = os.pread(handle, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        there = set(_ID.findall(tail))
        lacking = [each for each in decisions if (kind.encode(), each.decision_id.encode()) not in there]
        _write(handle, [_entry(each) if kind == "id" else _resolution(each) for each in lacking])


def missing_ids(folder: Path, pattern: str, ids: Iterable[str], *, kind: Kind = "id") -> list[str]:
    """Which of `ids` the pattern's file lacks; an entry that was cut short is taken off first.

    Raises:
        Invalid, StoreError: as `append`.
    """
    with _locked(folder, pattern) as handle:
        _cut_torn_end(handle)
        there = {found.decode() for of, found in _ids_in(handle) if of == kind.encode()}
    return [each for each in ids if each not in there]


def _write(handle: int, entries: list[dict[str, Any]]) -> None:
    data = b"".join(yamlio.dump([entry]).encode() for entry in entries)
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        data = b"\n" + data
    if data:
        written = os.write(handle, data)
        while written < len(data):
            written += os.write(handle, data[written:])
        os.fsync(handle)


def _at(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _resolution(decision: Decision) -> dict[str, Any]:
    entry = {
        "resolves": str(decision.decision_id),
        "outcome": decision.outcome,
        "score": decision.score,
        "by": decision.resolved_by,
    }
    shown = {key: value for key, value in entry.items() if value is not None}
    return {**shown, "at": _at(decision.resolved_at_ms or decision.at_ms)}


def _entry(decision: Decision) -> dict[str, Any]:
    entry = {
        "id": str(decision.decision_id),
        "pattern": decision.pattern,
        "decision": decision.decision,
        "context": decision.context,
        "reasoning": decision.reasoning,
        "confidence": decision.confidence,
        "outcome": decision.outcome,
        "score": decision.score,
        "agent": decision.agent,
        "orchestration": decision.orchestration_id,
    }
    return {**{key: value for key, value in entry.items() if value is not None}, "at": _at(decision.at_ms)}


def _ids_in(handle: int) -> Iterator[tuple[bytes, bytes]]:
    offset, rest = 0, b""
    while chunk := os.pread(handle, _CHUNK_BYTES, offset):
        offset += len(chunk)
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        yield from _ID.findall(whole + newline)
    yield from _ID.findall(rest)


def _cut_torn_end(handle: int) -> None:
    """Take off a last entry of ours that has no end. Entries written by hand are left alone."""
    size = os.fstat(handle).st_size
    start = max(0, size - _TAIL_BYTES)
    tail = os.pread(handle, size - start, start)
    last = None
    for last in _ID.finditer(tail):  # noqa: B007 - the last match is wanted
        pass
    half = re.search(rb"(?:\A|\n)(- ?[a-z]*:? ?[0-9a-z_]*)\Z", tail)
    if half is not None:
        os.ftruncate(handle, start + half.start(1))
    elif last is not None and not _END.search(tail, last.end()):
        os.ftruncate(handle, start + last.start())


@contextmanager
def _locked(folder: Path, pattern: str) -> Iterator[int]:
    """The pattern's file, open for appending, with every other writer kept out."""
    root = folder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.realpath(folder) != os.path.join(os.path.realpath(root), folder.name):  # noqa: PTH118 - strings, as realpath
            raise Invalid("the folder of decisions is a link that leads out of the library")
        path = folder / f"{pattern}{DECISIONS_SUFFIX}.yaml"
        new = not path.exists()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        raise StoreError(f"the decisions of {pattern!r} could not be written ({error.strerror})") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if new:
            sync_folder(folder)
        yield handle
    except OSError as error:
        raise StoreError(f"the decisions of {pattern!r} could not be written ({error.strerror})") from None
    finally:
        os.close(handle)
