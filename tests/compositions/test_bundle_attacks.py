"""Bundles that lie: each is refused, says why, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.compositions import archive, bundles, runs
from ksi_mcp.compositions.federation import Federation
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.manifest import MANIFEST, RUNS, SIGNATURE, Stamp, from_bytes, make_bundle, to_bytes
from ksi_mcp.compositions.model import parse_composition
from ksi_mcp.compositions.runrows import RunRow
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Invalid, KsiError
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.testing import FakeClock

CTX = fresh_context(OPERATOR)
TEXT = "name: good\ntype: agent\nprompt: Be good.\n"
PATH = "compositions/agents/good.yaml"
RUN = RunRow(
    run_id="o_11111", name="good", hash="a" * 64, version="1.0.0", outcome="success", success=True, score=0.5,
    metrics={"rounds": 3}, usd_micros=5, tokens=7, turns=2, duration_s=1.5, ended_at_ms=1_800_000_000_000,
)  # fmt: skip

Entries = dict[str, bytes]


def _composition(text: str = TEXT) -> Any:
    from ksi_mcp import yamlio  # noqa: PLC0415

    return parse_composition(yamlio.safe_load(text, what="x"), what="x")


def _good() -> bytes:
    made = make_bundle(
        stamp=Stamp(at="2026-01-01T00:00:00Z", by="operator"),
        names=("good",),
        members=[("composition", _composition(), TEXT)],
        runs=(RUN,),
    )
    return to_bytes(made)


def _zip(entries: list[tuple[str | zipfile.ZipInfo, bytes]], *, kind: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as made:
        for name, data in entries:
            made.writestr(name, data)
    return out.getvalue()


def _with(change: Callable[[dict[str, Any], Entries], None]) -> bytes:
    """A good bundle after `change`, which gets its manifest and files."""
    entries = archive.unpack(_good())
    manifest = json.loads(entries.pop(MANIFEST))
    change(manifest, entries)
    return _zip([(MANIFEST, json.dumps(manifest).encode()), *entries.items()])


def _says(**values: Any) -> Callable[[], bytes]:
    """The manifest says something else of its first file."""
    return lambda: _with(lambda manifest, _: manifest["files"][0].update(values))


def _manifest(**values: Any) -> Callable[[], bytes]:
    return lambda: _with(lambda manifest, _: manifest.update(values))


def _holds(text: str, **more: Any) -> Callable[[], bytes]:
    """Another text, honestly described as far as its bytes go."""

    def change(manifest: dict[str, Any], entries: Entries) -> None:
        data = text.encode()
        entries[PATH] = data
        manifest["files"][0].update(sha256=hashlib.sha256(data).hexdigest(), size=len(data), **more)

    return lambda: _with(change)


def _honest(text: str) -> Callable[[], bytes]:
    """A bundle of that text whose manifest is true in every word."""

    def make() -> bytes:
        composition = _composition(text)
        stamp = Stamp(at="2026-01-01T00:00:00Z", by="operator")
        return to_bytes(make_bundle(stamp=stamp, names=("good",), members=[("composition", composition, text)]))

    return make


def _runs(**values: Any) -> Callable[[], bytes]:
    """A run that cannot have been, honestly described as far as its bytes go."""

    def change(manifest: dict[str, Any], entries: Entries) -> None:
        rows = json.loads(entries[RUNS])
        rows[0].update(values)
        entries[RUNS] = data = json.dumps(rows).encode()
        manifest["runs"] = {"count": 1, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}

    return lambda: _with(change)


def _named(path: str, mode: int = stat.S_IFREG | 0o644) -> Callable[[], bytes]:
    """One more entry, of that path and kind."""

    def make() -> bytes:
        info = zipfile.ZipInfo(path)
        info.create_system = 3
        info.external_attr = mode << 16
        return _zip([*archive.unpack(_good()).items(), (info, b"x")])

    return make


def _twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate"):
        return _zip([*archive.unpack(_good()).items(), (PATH, b"name: evil\n")])


def _bomb() -> bytes:
    return _zip([(MANIFEST, b" " * 40_000_000)], kind=zipfile.ZIP_DEFLATED)


def _lying_bomb() -> bytes:
    """It says that it unpacks to ten bytes."""
    data = bytearray(_zip([(MANIFEST, b" " * 9_000_000)], kind=zipfile.ZIP_DEFLATED))
    central = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, central + 24, 10)
    struct.pack_into("<I", data, 22, 10)
    return bytes(data)


def _encrypted() -> bytes:
    data = bytearray(_good())
    data[6] |= 1
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    return bytes(data)


def _two_names() -> bytes:
    """A file under another name in the directory than before its data."""
    good = _good()
    return good.replace(PATH.encode(), PATH.replace("good", "evil").encode(), 1)


def _doubled(manifest: dict[str, Any], _entries: Entries) -> None:
    manifest["files"].append(manifest["files"][0])


def _unnamed(manifest: dict[str, Any], _entries: Entries) -> None:
    manifest["files"] = []
    manifest["names"] = []


def _gone(_manifest: dict[str, Any], entries: Entries) -> None:
    del entries[PATH]


def _runs_gone(_manifest: dict[str, Any], entries: Entries) -> None:
    del entries[RUNS]


def _signed(**values: Any) -> Callable[[], bytes]:
    signature = {"algorithm": "ed25519", "public_key": "A" * 43 + "=", "signature": "A" * 86 + "==", **values}
    return lambda: _with(lambda _, entries: entries.update({SIGNATURE: json.dumps(signature).encode()}))


LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    # the outer shape
    "not a bundle at all": (lambda: b"hello", "not a bundle"),
    "nothing": (lambda: b"", "not a bundle"),
    "only the beginning": (lambda: _good()[:-100], "not a bundle"),
    "a byte changed in a file": (lambda: _good().replace(b"Be good.", b"Be evil."), "damaged"),
    "something before it": (lambda: b"#!/bin/sh\n" + _good(), "not a bundle"),
    "a parent folder": (_named("../evil.yaml"), "not a path"),
    "a parent folder further down": (_named("compositions/../../evil.yaml"), "not a path"),
    "an absolute path": (_named("/etc/evil.yaml"), "not a path"),
    "a path of another system": (_named("compositions\\agents\\evil.yaml"), "not a path"),
    "a drive": (_named("c:/evil.yaml"), "not a path"),
    "a hidden file": (_named(".bashrc"), "not a path"),
    "a zero byte in a path": (_named("compositions/agents/a\0.yaml"), "not a path|damaged|does not name"),
    "a very long path": (_named("a" * 400), "not a path"),
    "a symbolic link": (_named("compositions/agents/link.yaml", stat.S_IFLNK | 0o777), "symbolic link"),
    "a device": (_named("compositions/agents/null.yaml", stat.S_IFCHR | 0o666), "not a regular file"),
    "a folder": (_named("compositions/agents/", stat.S_IFDIR | 0o755), "not a path"),
    "a file twice": (_twice, "twice"),
    "a bomb": (_bomb, "the limit is"),
    "a bomb that lies about its size": (_lying_bomb, "damaged|not JSON|not as long"),
    "an encrypted file": (_encrypted, "encrypted"),
    "two names for one file": (_two_names, "damaged"),
    "too many entries": (lambda: _zip([(f"f{n}", b"") for n in range(2_001)]), "2,001 entries"),
    "too large": (lambda: b"PK\x03\x04" + b"0" * 50_000_001, "the limit is 50,000,000"),
    # the manifest
    "no manifest": (lambda: _zip([(PATH, TEXT.encode())]), "no manifest.json"),
    "a manifest that is no JSON": (lambda: _zip([(MANIFEST, b"{")]), "not JSON"),
    "a manifest that is a list": (lambda: _zip([(MANIFEST, b"[]")]), "not that of a bundle"),
    "a manifest with a key twice": (lambda: _zip([(MANIFEST, b'{"format": 1, "format": 2}')]), "key twice"),
    "a manifest with endless depth": (lambda: _zip([(MANIFEST, b"[" * 100_000)]), "not JSON|nested deeper"),
    "a manifest with NaN": (lambda: _zip([(MANIFEST, b'{"format": NaN}')]), "NaN"),
    "a manifest of 3 MB": (lambda: _zip([(MANIFEST, b" " * 3_000_000)]), "the limit is 2,000,000"),
    "a format of the future": (_manifest(format_version=2), "format version 2"),
    "another format": (_manifest(format="tar"), "not that of a bundle"),
    "a promise that is not kept": (_manifest(names=["good", "better"]), "promises 'better'"),
    "a file that is not there": (lambda: _with(_gone), "does not hold"),
    "a file that is not named": (lambda: _with(lambda _, files: files.update({"extra.yaml": b"x"})), "does not name"),
    "files but none of them named": (lambda: _with(_unnamed), "does not name"),
    "a file named twice": (lambda: _with(_doubled), "twice"),
    "another name than the file's": (_says(name="better"), "has the name 'better'; it has 'good'"),
    "another type": (_says(type="component"), "has the type"),
    "another version": (_says(version="9.9.9"), "has the version"),
    "another behaviour": (_says(hash="0" * 64), "has the hash"),
    "other bytes": (_says(sha256="0" * 64), "SHA-256 differs"),
    "another size": (_says(size=3), "bytes, the manifest says 3"),
    "a size that is none": (_says(size="large"), "no size"),
    "a role that is none": (_says(role="admin"), "the role 'admin'"),
    "one more key": (_says(trusted=True), "does not have the keys"),
    "another place": (_says(path="compositions/components/good.yaml"), "does not hold"),
    "an author with a line break": (_manifest(created_by="operator\nadmin"), "on one line"),
    "a requirement that is none": (_manifest(requires=[{"name": "../x", "hash": "a" * 64}]), "`requires`"),
    # the files
    "a text that is another composition": (_holds(TEXT.replace("good", "evil", 1)), "holds the agent 'evil'"),
    "a text of another kind": (_holds(TEXT.replace("agent", "component")), "holds the component 'good'"),
    "a text with a path for a name": (_holds(TEXT.replace("name: good", "name: ../good")), "not a plain name"),
    "a text that is no YAML": (_holds("name: [good"), "not valid YAML"),
    "a text with Python in it": (_holds("name: !!python/object/apply:os.system [id]\n"), "tag"),
    "a text with an alias bomb": (
        _holds("a0: &a0 [x, x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n}, ' * 9}]\n" for n in range(9))),
        "aliases expand",
    ),
    "a text of 2 MB": (_holds(TEXT + "x: " + "y" * 2_000_000), "may have 1,000,000"),
    "a text that is not UTF-8": (
        lambda: _with(lambda manifest, files: _bytes(manifest, files, b"name: \xff\xfe")),
        "not UTF-8",
    ),
    # what it asks for
    "a file that makes itself the operator": (_honest(f"{TEXT}capabilities: [operator]\n"), "asks for what no"),
    "a capability that there is none of": (_honest(f"{TEXT}capabilities: [root]\n"), "asks for what no"),
    "a level beyond all": (_honest(f"{TEXT}routing_level: galaxy\n"), "asks for what no"),
    "servers that are none": (_honest(f"{TEXT}mcp_servers: {{x: {{sudo: true}}}}\n"), "asks for what no"),
    # the runs
    "runs that are not there": (lambda: _with(_runs_gone), "does not hold"),
    "more runs than there are": (
        lambda: _with(lambda manifest, _: manifest["runs"].update(count=1_000)),
        "says 1000 runs, there are 1",
    ),
    "a run with an infinite score": (_runs(score=1e308), "for `score`"),
    "a run with a score of text": (_runs(score="best"), "for `score`"),
    "a run of a strange name": (_runs(name="../good"), "for `name`"),
    "a run with an origin of its own": (_runs(origin=None), "does not have the keys"),
    "a run that cost less than nothing": (_runs(usd_micros=-5), "for `usd_micros`"),
    "a run with a strange id": (_runs(run_id="x' OR 1=1"), "for `run_id`"),
    "a run with strange metrics": (_runs(metrics={"a": "b"}), "for `metrics`"),
    # the signature
    "a signature of nobody": (_signed(), "does not fit"),
    "a signature of another kind": (_signed(algorithm="none"), "cannot be checked"),
    "a signature too short": (_signed(signature="AAAA"), "64 bytes"),
}  # fmt: skip


def _bytes(manifest: dict[str, Any], entries: Entries, data: bytes) -> None:
    entries[PATH] = data
    manifest["files"][0].update(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


@pytest.fixture
async def federation(tmp_path: Path) -> AsyncIterator[Federation]:
    clock = FakeClock()
    db = await open_sqlite(":memory:", clock)
    journal = Journal(db, clock)
    library = Library(journal, builtin=tmp_path / "builtin", user=tmp_path / "home/compositions", project=None)
    yield Federation(journal, library, home=tmp_path / "home")
    await db.close()


def _traces(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.name not in (".lock", "home", "quarantine"))


async def _rows(federation: Federation) -> int:
    def count(tx: Tx) -> int:
        return len(tx.all("compositions.files")) + len(tx.all("compositions.known_run_ids", {"ids": '["o_11111"]'}))

    return await federation._journal.read(count)


@pytest.mark.parametrize("lie", LIES)
async def test_a_bundle_that_lies_is_refused_and_leaves_nothing(federation: Federation, tmp_path: Path, lie: str):
    make, says = LIES[lie]
    with pytest.raises(Invalid, match=says) as refused:
        await federation.receive(CTX, make())
    assert str(tmp_path) not in refused.value.text()
    assert len(refused.value.text()) < 700
    assert (_traces(tmp_path), await _rows(federation)) == ([], 0)


async def test_the_bundle_that_the_lies_are_made_of_is_good(federation: Federation) -> None:
    incoming = await federation.receive(CTX, _good())
    assert [each.standing for each in incoming.reviewed] == ["new"]
    assert (await federation.allow(CTX, incoming.bundle.id)).placed == ("good",)
    deflated = _zip(list(archive.unpack(_good()).items()), kind=zipfile.ZIP_DEFLATED)
    assert (await federation.receive(CTX, deflated)).state == "present"


async def test_what_was_changed_in_quarantine_is_not_allowed(federation: Federation, tmp_path: Path) -> None:
    incoming = await federation.receive(CTX, _good())
    held = tmp_path / f"home/quarantine/{incoming.bundle.id}/bundle.ksi.zip"
    held.write_bytes(_honest(TEXT.replace("Be good.", "Be evil."))())
    with pytest.raises(Invalid, match="changed in its quarantine"):
        await federation.allow(CTX, incoming.bundle.id)
    assert not (tmp_path / "home/compositions").exists()


async def test_the_readable_copies_in_quarantine_are_not_what_is_placed(federation: Federation, tmp_path: Path) -> None:
    incoming = await federation.receive(CTX, _good())
    (tmp_path / f"home/quarantine/{incoming.bundle.id}/files/{PATH}").write_text("name: evil\n")
    await federation.allow(CTX, incoming.bundle.id)
    placed = tmp_path / f"home/compositions/imported/{incoming.bundle.id}/agents/good.yaml"
    assert placed.read_text().startswith(TEXT)


async def test_a_folder_of_imports_that_is_a_link_is_not_written_through(
    federation: Federation, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home/compositions").mkdir(parents=True)
    (tmp_path / "home/compositions/imported").symlink_to(tmp_path / "elsewhere")
    incoming = await federation.receive(CTX, _good())
    with pytest.raises(Invalid, match="a link that leads out"):
        await federation.allow(CTX, incoming.bundle.id)
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_file_that_is_no_file_is_refused(federation: Federation, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ksi.zip")
    (tmp_path / "link.ksi.zip").symlink_to("/etc/passwd")
    for name in ("pipe.ksi.zip", "link.ksi.zip", "nothing.ksi.zip", "/dev/zero"):
        with pytest.raises(KsiError):
            await federation.receive(CTX, tmp_path / name)


async def test_claims_never_become_evidence_of_ones_own(federation: Federation) -> None:
    incoming = await federation.receive(CTX, _good())
    await federation.allow(CTX, incoming.bundle.id)

    (claim,) = await federation._journal.read(lambda tx: bundles.claims(tx, ["good"]))
    assert claim["origin"] == f"bundle:{incoming.bundle.id}"
    assert await federation._journal.read(lambda tx: runs.by_ids(tx, ["o_11111"])) == {}
    assert await federation._journal.read(lambda tx: runs.performance(tx, names=["good"])) == {}


_GOOD = _good()


@given(st.integers(0, len(_GOOD) - 1), st.integers(1, 255))
def test_a_bundle_with_any_byte_changed_is_the_same_or_refused(at: int, by: int) -> None:
    changed = bytearray(_GOOD)
    changed[at] ^= by
    try:
        found = from_bytes(bytes(changed))
    except Invalid:
        return
    assert found.digest == from_bytes(_GOOD).digest
