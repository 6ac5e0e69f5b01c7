"""What a bundle says it holds, and whether that is so. Nothing of a bundle is believed that was not checked here.

Pure. In a bundle lie `manifest.json`, the files that it names with their sizes and sums, and nothing else but
a signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Literal, cast, get_args

from ksi_mcp import yamlio
from ksi_mcp.compositions import archive, files
from ksi_mcp.compositions.model import Composition, name_problem, parse_composition, shorten
from ksi_mcp.compositions.runrows import RunRow, read_runs
from ksi_mcp.errors import Invalid, KsiError

FORMAT: Final = "ksi-bundle"
FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "signature.json"
RUNS: Final = "runs.json"
MAX_MANIFEST_BYTES: Final = 2_000_000
MAX_TEXT_CHARS: Final = 500

Role = Literal["composition", "dependency", "ancestor"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
"""Asked for; needed by one that was asked for; an earlier version that one descends from."""

_ID_CHARS: Final = 20
_SHA256_CHARS: Final = 64
_HEX: Final = frozenset("0123456789abcdef")
_LIES: Final = "nothing of it was taken; ask its author for another"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of a bundle as its manifest describes it. `hash` is of the behaviour, `sha256` of the bytes."""

    path: str
    role: Role
    name: str
    type: str
    version: str
    hash: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Who made a bundle, when (ISO 8601, UTC) and, where it was made of other files, of which."""

    at: str
    by: str
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A file of a bundle: its description, its text, and the composition in it."""

    entry: Entry
    text: str
    composition: Composition


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that is as it says. `digest` is of its contents, whoever packed them when; `id` begins it."""

    stamp: Stamp
    names: tuple[str, ...]
    items: tuple[Item, ...]
    runs: tuple[RunRow, ...]
    requires: tuple[tuple[str, str], ...]
    """(name, hash) of compositions that come with the program and are needed besides."""
    digest: str
    entries: dict[str, bytes]

    @property
    def id(self) -> str:
        """`b_` and the first characters of the digest."""
        return f"b_{self.digest[:_ID_CHARS]}"

    @property
    def signature(self) -> bytes | None:
        """What stands in `signature.json`; not yet checked."""
        return self.entries.get(SIGNATURE)

    def placed(self) -> tuple[Item, ...]:
        """Those that belong into a library: all but the ancestors."""
        return tuple(item for item in self.items if item.entry.role != "ancestor")

    def ancestors(self) -> tuple[Item, ...]:
        """Earlier versions, to be kept by hash."""
        return tuple(item for item in self.items if item.entry.role == "ancestor")


def make_bundle(
    *,
    stamp: Stamp,
    names: tuple[str, ...],
    members: list[tuple[Role, Composition, str]],
    runs: tuple[RunRow, ...] = (),
    requires: tuple[tuple[str, str], ...] = (),
    sign: Callable[[bytes], bytes] | None = None,
) -> Bundle:
    """A bundle of (role, composition, its text), read back as whoever gets it will read it.

    Raises:
        Invalid: it would be more than a bundle holds, or not be taken.
    """
    most = archive.MAX_ENTRIES - 3  # the manifest, the signature and the runs are entries too
    if len(members) > most:
        raise Invalid(
            f"{len(members):,} compositions, a bundle takes {most:,}",
            hint="take fewer at a time, of a folder its subfolders one by one",
        )
    contents: dict[str, bytes] = {}
    described: list[Entry] = []
    for role, composition, text in members:
        path = path_in_bundle(role, composition)
        if path in contents:
            raise Invalid(f"two compositions would be {path!r} in the bundle", hint="give one another name")
        contents[path] = data = text.encode()
        described.append(
            Entry(
                path=path,
                role=role,
                name=composition.name,
                type=composition.type,
                version=composition.version,
                hash=composition.hash,
                sha256=hashlib.sha256(data).hexdigest(),
                size=len(data),
            )
        )
    described.sort(key=lambda entry: entry.path)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created_at": stamp.at,
        "created_by": stamp.by,
        "names": sorted(names),
        "files": [asdict(entry) for entry in described],
        "requires": [{"name": name, "hash": hash} for name, hash in sorted(requires)],
    }
    if stamp.source is not None:
        manifest["source"] = stamp.source
    if runs:
        contents[RUNS] = data = json.dumps(
            [asdict(run) for run in sorted(runs, key=lambda run: run.run_id)], ensure_ascii=False, indent=1
        ).encode()
        manifest["runs"] = {"count": len(runs), "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    head = json.dumps(manifest, ensure_ascii=False, indent=1).encode() + b"\n"
    entries = {MANIFEST: head}
    if sign is not None:
        entries[SIGNATURE] = sign(head)
    return verify({**entries, **dict(sorted(contents.items()))})


def path_in_bundle(role: Role, composition: Composition) -> str:
    """Where a composition lies in a bundle.

    Raises:
        Invalid: its name cannot be a file's name.
    """
    path = files.path_for(composition.type, composition.name)
    if role == "ancestor":
        return f"ancestors/{PurePosixPath(path).stem}@{composition.hash[:12]}.yaml"
    return f"compositions/{path}"


def to_bytes(bundle: Bundle) -> bytes:
    """The file that a bundle is sent as."""
    return archive.pack(bundle.entries)


def from_bytes(data: bytes) -> Bundle:
    """The bundle in a file.

    Raises:
        Invalid: it is none, or not as it says.
    """
    return verify(archive.unpack(data))


def verify(entries: dict[str, bytes]) -> Bundle:
    """The bundle that these files are, with everything its manifest says checked.

    Raises:
        Invalid: the manifest is missing, malformed, or says what is not so.
    """
    if MANIFEST not in entries:
        raise Invalid(f"the bundle has no {MANIFEST}", hint="a bundle is what composition_export writes")
    manifest = read_json(entries[MANIFEST], what="the manifest", limit=MAX_MANIFEST_BYTES)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Invalid("the manifest is not that of a bundle")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise Invalid(
            f"the bundle has format version {shorten(str(version))}, this program reads {FORMAT_VERSION}",
            hint="use a newer version of this program, or ask for an older format",
        )
    items = [_item(raw, entries) for raw in _list_of(manifest, "files")]
    _refuse_doubles(items)
    runs = _runs(manifest.get("runs"), entries)
    named = {item.entry.path for item in items} | {MANIFEST, SIGNATURE} | ({RUNS} if "runs" in manifest else set())
    if extra := sorted(entries.keys() - named):
        raise Invalid(f"the bundle holds {extra[0]!r}, which its manifest does not name", hint=_LIES)
    names = tuple(_text(name, "names") for name in _list_of(manifest, "names"))
    if missing := sorted(set(names) - {item.entry.name for item in items if item.entry.role == "composition"}):
        raise Invalid(f"the manifest promises {shorten(missing[0])!r}, which the bundle does not hold", hint=_LIES)
    stamp = Stamp(
        at=_text(manifest.get("created_at"), "created_at"),
        by=_text(manifest.get("created_by"), "created_by"),
        source=None if manifest.get("source") is None else _text(manifest["source"], "source"),
    )
    what = {key: manifest.get(key) for key in ("format_version", "names", "files", "runs", "requires")}
    canonical = json.dumps(what, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return Bundle(
        stamp=stamp,
        names=names,
        items=tuple(items),
        runs=runs,
        requires=tuple(_required(raw) for raw in _list_of(manifest, "requires")),
        digest=hashlib.sha256(canonical.encode()).hexdigest(),
        entries=entries,
    )


def read_json(data: bytes, *, what: str, limit: int) -> Any:
    """JSON that somebody else wrote.

    Raises:
        Invalid: it is none, too large, too deep, or has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Invalid(f"{what} has a key twice in the same object")
        return found

    def refuse(word: str) -> Any:
        raise Invalid(f"{what} holds {word}, which is not a number")

    if len(data) > limit:
        raise Invalid(f"{what} has {len(data):,} bytes, the limit is {limit:,}")
    try:
        return yamlio.plain(json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse))
    except (ValueError, RecursionError):
        raise Invalid(f"{what} is not JSON") from None


def _item(raw: Any, entries: dict[str, bytes]) -> Item:
    if not isinstance(raw, dict) or raw.keys() != set(Entry.__dataclass_fields__):
        raise Invalid(f"an entry of the manifest does not have the keys {', '.join(Entry.__dataclass_fields__)}")
    size = raw["size"]
    if type(size) is not int or size < 0:
        raise Invalid("an entry of the manifest has no size")
    if raw["role"] not in ROLES:
        raise Invalid(f"an entry of the manifest has the role {shorten(str(raw['role']))!r}")
    texts = {key: _text(raw[key], key) for key in ("path", "name", "type", "version", "hash", "sha256")}
    entry = Entry(role=cast("Role", raw["role"]), size=size, **texts)
    data = entries.get(entry.path)
    if data is None:
        raise Invalid(f"the manifest names {shorten(entry.path)!r}, which the bundle does not hold", hint=_LIES)
    _check_sum(entry.path, data, entry.sha256, entry.size)
    if len(data) > files.MAX_FILE_BYTES:
        raise Invalid(f"{entry.path!r} has {len(data):,} bytes, a composition may have {files.MAX_FILE_BYTES:,}")
    what = f"{entry.path!r} in the bundle"
    try:
        composition = parse_composition(yamlio.safe_load(data, what=what, max_bytes=files.MAX_FILE_BYTES), what=what)
        text = data.decode()
        if path_in_bundle(entry.role, composition) != entry.path:
            raise Invalid(f"{what} holds the {composition.type} {composition.name!r}", hint=_LIES)
    except UnicodeDecodeError:
        raise Invalid(f"{what} is not UTF-8 text") from None
    for key in ("name", "type", "version", "hash"):
        said, found = getattr(entry, key), getattr(composition, key)
        if said != found:
            raise Invalid(
                f"the manifest says that {entry.path!r} has the {key} {shorten(said)!r}; it has {shorten(found)!r}",
                hint=_LIES,
            )
    return Item(entry=entry, text=text, composition=composition)


def _refuse_doubles(items: list[Item]) -> None:
    paths, names = set[str](), set[str]()
    for item in items:
        if item.entry.path in paths:
            raise Invalid(f"the manifest names {item.entry.path!r} twice", hint=_LIES)
        paths.add(item.entry.path)
        if item.entry.role != "ancestor":
            if item.entry.name in names:
                raise Invalid(f"the bundle holds two compositions named {item.entry.name!r}", hint=_LIES)
            names.add(item.entry.name)


def _runs(raw: Any, entries: dict[str, bytes]) -> tuple[RunRow, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, dict) or RUNS not in entries:
        raise Invalid(f"the manifest names {RUNS}, which the bundle does not hold", hint=_LIES)
    data = entries[RUNS]
    _check_sum(RUNS, data, raw.get("sha256"), raw.get("size"))
    try:
        rows = read_runs(read_json(data, what=RUNS, limit=archive.MAX_ENTRY_BYTES))
    except KsiError as error:
        raise Invalid(f"{RUNS} in the bundle: {error.message}", hint=_LIES) from None
    if raw.get("count") != len(rows):
        raise Invalid(f"the manifest says {shorten(str(raw.get('count')))} runs, there are {len(rows)}", hint=_LIES)
    return rows


def _check_sum(path: str, data: bytes, sha256: Any, size: Any) -> None:
    if size != len(data):
        raise Invalid(f"{path!r} has {len(data):,} bytes, the manifest says {shorten(str(size))}", hint=_LIES)
    if sha256 != hashlib.sha256(data).hexdigest():
        raise Invalid(f"{path!r} is not what the manifest says: its SHA-256 differs", hint=_LIES)


def _required(raw: Any) -> tuple[str, str]:
    if not isinstance(raw, dict) or raw.keys() != {"name", "hash"}:
        raise Invalid("`requires` of the manifest must be a list of name and hash")
    name, hash = raw["name"], raw["hash"]
    if name_problem(name) or not isinstance(hash, str) or len(hash) != _SHA256_CHARS or set(hash) - _HEX:
        raise Invalid("`requires` of the manifest must be a list of name and hash")
    return name, hash


def _list_of(manifest: dict[str, Any], key: str) -> list[Any]:
    value = manifest.get(key)
    if not isinstance(value, list) or len(value) > archive.MAX_ENTRIES:
        raise Invalid(f"`{key}` of the manifest must be a list of at most {archive.MAX_ENTRIES:,}")
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT_CHARS or not value.isprintable():
        raise Invalid(f"`{key}` of the manifest must be text of 1 to {MAX_TEXT_CHARS} characters on one line")
    return value
