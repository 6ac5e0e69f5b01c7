"""A new version of a composition in the place of the old one: comments and layout stay, and so does the old version.

The file is read, changed, checked and replaced in one step; whoever changed it in the meantime is not written over.
A crash between the file and its row leaves a file that the next look at the folders indexes; repeating the call then
finds nothing to change and reports what was done.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ksi_mcp import yamlio
from ksi_mcp.compositions import files, store
from ksi_mcp.compositions.checking import check
from ksi_mcp.compositions.fork import modified
from ksi_mcp.compositions.granting import refuse_beyond
from ksi_mcp.compositions.library import MAX_REASON_CHARS, Library
from ksi_mcp.compositions.markdown import text_for
from ksi_mcp.compositions.model import DEFAULT_VERSION, Composition, Layer, shorten
from ksi_mcp.compositions.planning import Plan, loaded
from ksi_mcp.compositions.records import Commit
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid, Refused
from ksi_mcp.permissions import Context

Change = Callable[[dict[str, Any]], dict[str, Any]]
"""The document as it is to be, of a copy of the document as it is."""

_MEASURED: Final = ("lineage", "performance", "learnings")
_NUMBERS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,9}")
_PARTS: Final = 3
_MAX_DIGITS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Revised:
    """A composition before and after. `text` is its file's."""

    before: Composition
    composition: Composition
    layer: Layer
    text: str
    warnings: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether there was anything to change."""
        return not _same(self.before.document, self.composition.document)


async def update(
    library: Library,
    ctx: Context,
    name: str,
    *,
    modifications: dict[str, Any] | None = None,
    document: dict[str, Any] | str | None = None,
    reason: str | None = None,
    expected_hash: str | None = None,
    dry_run: bool = False,
    commit: Commit | None = None,
) -> Revised:
    """Change a composition at dotted paths, or replace its document. The version goes up at the last place.

    Raises:
        Invalid: neither or both are given, a path leads nowhere, or the result could not be used.
        Refused: it is in a layer that is not written.
        Conflict: it was changed since, by `expected_hash` or by the version that `document` carries.
    """
    if (modifications is None) == (document is None):
        raise Invalid("an update takes modifications, or a document", hint="give one of them")
    if reason is not None and len(reason) > MAX_REASON_CHARS:
        raise Invalid(f"the reason has {len(reason):,} characters", hint=f"at most {MAX_REASON_CHARS:,}")
    whole = None if document is None else await asyncio.to_thread(loaded, document)

    def change(current: dict[str, Any]) -> dict[str, Any]:
        after = modified(current, modifications or {}) if whole is None else _carried(current, whole)
        return _with_version(current, after)

    facts = {"reason": reason.strip()} if reason and reason.strip() else {}
    return await rewrite(
        library,
        ctx,
        name,
        change,
        event=("composition:updated", facts),
        expected_hash=expected_hash,
        dry_run=dry_run,
        commit=commit,
    )


async def rewrite(
    library: Library,
    ctx: Context,
    name: str,
    change: Change,
    *,
    event: tuple[str, dict[str, Any]],
    expected_hash: str | None = None,
    dry_run: bool = False,
    commit: Commit | None = None,
    vouched: bool = False,
) -> Revised:
    """Replace a composition's document by what `change` makes of it; `event` tells of it, with both versions.

    The version is `change`'s own affair. Nothing is written if there is nothing to change. An agent writes over what
    asks for no more than it holds: a prompt steers whatever its agent may do. `vouched`: what was asked for before
    may be asked for still, since something else than the agent's word speaks for the change.

    Raises:
        NotFound: there is none; Refused: it is in a layer that is not written.
        Conflict: it has another hash than `expected_hash`, or is changed by somebody else at the same time.
        Invalid: the result could not be used.
    """
    layer, root = library.writable()
    await library.fresh()
    found = await library.journal.read(lambda tx: library.found(tx, name))
    if not found.path:
        raise Conflict(f"{shorten(name)!r} is a version of the past", hint="update the newest, or fork this one")
    if found.layer != layer:
        raise Refused(
            f"{found.composition.name!r} is in the {found.layer} library, which is not written",
            hint="composition_fork makes a copy that you can change",
        )
    text = await asyncio.to_thread(files.read_text, root, found.path)
    before = await asyncio.to_thread(files.composition_in, text, found.path)
    if before is None or before.name != found.composition.name:
        raise Conflict(f"{shorten(name)!r} has just become another file", hint="repeat the call")
    after = change(yamlio.plain(before.document))
    if after.get("name") != before.document.get("name"):
        raise Invalid(
            f"a composition keeps its name, and {shorten(str(after.get('name')))!r} is another",
            hint="composition_fork makes one of another name",
        )
    if any(after.get(key) != before.document.get(key) for key in ("type", "component_type")):
        raise Invalid("a composition keeps its type", hint="composition_create makes one of another type")
    unchanged = _same(before.document, after)
    if expected_hash is not None and not unchanged:
        _expect(before, expected_hash)
    written = text if unchanged else await asyncio.to_thread(_text_for, text, found.path, after)
    composition, warnings = await library.journal.read(
        lambda tx: check(after, store.lookup_in(tx), what="the composition")
    )
    if not unchanged:
        known_asks = (before,) if vouched else ()
        await library.journal.read(lambda tx: refuse_beyond(tx, ctx, composition, *known_asks))
    revised = Revised(before=before, composition=composition, layer=layer, text=written, warnings=tuple(warnings))
    if dry_run or (unchanged and not await library.journal.read(lambda tx: _is_unfinished(tx, composition))):
        return revised
    if not unchanged:
        await asyncio.to_thread(files.replace_file, root, found.path, written, instead_of=text)
    kind, facts = event
    known = {"version": composition.version, "previous_version": before.version, "previous_hash": before.hash}
    plan = Plan(composition=composition, text=written, path=found.path)
    replaced = None if unchanged else before
    await library.index(ctx, layer, plan, event=(kind, {**known, **facts}), commit=commit, replaced=replaced)
    return revised


def next_version(version: str) -> str:
    """The version after `version`: 1.2.3 -> 1.2.4, 1.2 -> 1.2.1, rc1 -> rc2, draft -> draft-1."""
    if _NUMBERS.fullmatch(version):
        numbers = [int(part) for part in version.split(".")]
        numbers += [0] * (_PARTS - len(numbers))
        return ".".join(map(str, [*numbers[:-1], numbers[-1] + 1]))
    head = version.rstrip("0123456789")
    tail = version[len(head) :]
    return f"{head}{int(tail) + 1}" if 0 < len(tail) <= _MAX_DIGITS else f"{version}-1"


def _text_for(text: str, path: str, after: dict[str, Any]) -> str:
    return text_for(text, path, after, max_bytes=files.MAX_FILE_BYTES)


def _carried(current: dict[str, Any], whole: Any) -> dict[str, Any]:
    """The document that was handed in, with what only the library writes."""
    if not isinstance(whole, dict):
        raise Invalid("the document is not a mapping of keys", hint="composition_get shows what it is now")
    for key in _MEASURED:
        if key in whole and not _same(whole[key], current.get(key)):
            raise Invalid(f"{key!r} cannot be changed by hand", hint="leave it out: what is there stays")
    own, theirs = str(current.get("version", DEFAULT_VERSION)), str(whole.get("version", DEFAULT_VERSION))
    if "version" in whole and _is_older(theirs, own):
        raise Conflict(
            f"the document is of version {shorten(theirs)}, and {current.get('name')!r} is at {shorten(own)} by now",
            hint="composition_get shows it; make the change there",
        )
    return {**whole, **{key: current[key] for key in _MEASURED if key in current}}


def _with_version(current: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    given = after.get("version", current.get("version", DEFAULT_VERSION))
    rest = {key: value for key, value in after.items() if key != "version"}
    if str(given) != str(current.get("version", DEFAULT_VERSION)):
        return {**after, "version": given}
    if _same(rest, {key: value for key, value in current.items() if key != "version"}):
        return current
    return {**after, "version": next_version(str(given))}


def _is_older(one: str, other: str) -> bool:
    if not (_NUMBERS.fullmatch(one) and _NUMBERS.fullmatch(other)):
        return False
    return [int(part) for part in one.split(".")] < [int(part) for part in other.split(".")]


def _expect(before: Composition, expected: str) -> None:
    if len(expected) < store.MIN_HASH_PREFIX or not before.hash.startswith(expected):
        raise Conflict(
            f"{before.name!r} has the hash {before.hash[:12]}, not {shorten(expected)}",
            hint="composition_get shows it as it is now",
        )


def _is_unfinished(tx: Tx, composition: Composition) -> bool:
    """Whether this version replaced another here, and nothing tells of it: a crash came between file and row."""
    reported = store.was_hash_reported(tx, composition.name, composition.hash)
    return not reported and store.has_others(tx, composition.name, composition.hash)


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
