"""The role object of federation: compositions leave in bundles, and come in by way of a quarantine.

Nothing that comes from elsewhere is in the library before the operator has allowed it. What it reports of its own
runs is kept as a claim, with its origin, and never counted as evidence.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ksi_mcp.compositions import quarantine, store
from ksi_mcp.compositions.archive import MAX_BUNDLE_BYTES
from ksi_mcp.compositions.bundles import gather, text_of_file
from ksi_mcp.compositions.importers.model import Format
from ksi_mcp.compositions.importers.reading import Harvest, Step, read_source
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.manifest import MANIFEST, Bundle, Role, Stamp, from_bytes, make_bundle, to_bytes
from ksi_mcp.compositions.model import FOLDERS, Composition, parse_composition, shorten
from ksi_mcp.compositions.quarantine import Held, Quarantine
from ksi_mcp.compositions.records import Commit
from ksi_mcp.compositions.review import Reviewed, review, text_for
from ksi_mcp.compositions.runrows import RunRow
from ksi_mcp.compositions.signing import check_signature, signer, trusted_keys
from ksi_mcp.compositions.store import Indexed
from ksi_mcp.db import Tx
from ksi_mcp.db.database import Work
from ksi_mcp.errors import Conflict, Invalid, NotFound
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import Context

QUARANTINE_FOLDER: Final = "quarantine"
EXPORTS_FOLDER: Final = "exports"
TRUSTED_FOLDER: Final = "trusted_keys"
"""Of the data folder."""
BUNDLE_ORIGIN: Final = "bundle:"
"""How the `origin` of a claimed run begins."""
MAX_UNREAD_SHOWN: Final = 5
_YAML_ENDINGS: Final = (".yaml", ".yml", ".md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A bundle, and what it refers to that could not be put into it."""

    bundle: Bundle
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A bundle as it stands before the library. `state` says where its compositions are by now."""

    bundle: Bundle
    state: str
    """quarantined | present (all of it is here already, nothing was kept) | imported | discarded"""
    reviewed: tuple[Reviewed, ...]
    notes: dict[str, Any]
    signed: str | None
    new_runs: int
    new_versions: int
    """Ancestors that are not known here."""
    warnings: tuple[str, ...]
    placed: tuple[str, ...] = ()
    """Names that were written into the library by this call."""


class Federation:
    """Export and import. All folders lie in the data folder `home`."""

    def __init__(self, journal: Journal, library: Library, *, home: Path) -> None:
        self._journal = journal
        self._library = library
        self.home = home
        self._quarantine = Quarantine(home / QUARANTINE_FOLDER)

    # ------------------------------------------------------------------------------------------ out

    async def export(
        self,
        ctx: Context,
        names: Sequence[str],
        *,
        with_dependencies: bool = True,
        with_runs: bool = True,
        sign_with: Path | None = None,
    ) -> Exported:
        """A bundle of compositions, what they need, whom they descend from, and their runs here.

        Raises:
            NotFound: a name is unknown; Invalid: they do not fit into a bundle, or the key file is none.
        """
        await self._library.refresh()
        found = await self._journal.read(
            lambda tx: gather(tx, names, with_dependencies=with_dependencies, with_runs=with_runs)
        )
        stamp = Stamp(at=self._now(), by=str(ctx.actor))

        def make() -> Bundle:
            roots = self._library.roots
            return make_bundle(
                stamp=stamp,
                names=tuple(dict.fromkeys(names)),
                members=[(role, each.composition, text_of_file(roots, each)) for role, each in found.members],
                runs=found.runs,
                requires=found.requires,
                sign=signer(sign_with) if sign_with is not None else None,
            )

        return Exported(bundle=await asyncio.to_thread(make), missing=found.missing)

    async def save(self, bundle: Bundle) -> Path:
        """Write a bundle into the data folder's `exports/`; where it is."""
        name = f"{bundle.names[0][:60]}-{bundle.id}{quarantine.ENDING}"
        return await asyncio.to_thread(quarantine.save, self.home / EXPORTS_FOLDER, name, to_bytes(bundle))

    # ------------------------------------------------------------------------------------------- in

    async def receive(
        self, ctx: Context, source: Path | bytes, *, format: Format | None = None, step: Step | None = None
    ) -> Incoming:
        """Check a bundle, or make one of a file or folder of compositions, and put it into quarantine.

        What is here already, all of it, is not kept again.

        Raises:
            NotFound: there is nothing at that path; Invalid: it is no bundle, or not as it says, or nothing in the
            folder could be read; Conflict, Exhausted: the quarantine cannot take it.
        """
        bundle, notes = await asyncio.to_thread(self._opened, ctx, source, format, step)
        incoming = await self._incoming(Held(bundle=bundle, notes=notes), prefix=None)
        here = not incoming.new_runs and not incoming.new_versions
        here = here and all(each.standing == "identical" for each in incoming.reviewed)
        # One that is still there was cut short: allowing it again completes what its files do not tell.
        if here and bundle.id not in await asyncio.to_thread(self._quarantine.ids):
            return replace(incoming, state="present")
        async with self._locked():
            await asyncio.to_thread(self._quarantine.sweep)
            await asyncio.to_thread(self._quarantine.put, bundle, notes)
        return incoming

    def place(self, path: str) -> Path:
        """A path as the operator writes it: in the data folder, unless it is absolute or begins with ~.

        Raises:
            Invalid: it cannot be a path.
        """
        try:
            place = self.home / Path(path).expanduser()
            place.exists()
        except (OSError, ValueError):
            raise Invalid(f"{shorten(path)!r} cannot be the path of a file or folder") from None
        except RuntimeError:
            raise Invalid(f"{shorten(path)!r} begins with nobody's home folder", hint="write the path whole") from None
        return place

    async def waiting(self) -> list[Held]:
        """The bundles in quarantine; one that cannot be read any more is left out."""

        def look() -> list[Held]:
            found = []
            for bundle_id in self._quarantine.ids():
                try:
                    found.append(self._quarantine.get(bundle_id))
                except (Invalid, NotFound):
                    continue
            return found

        return await asyncio.to_thread(look)

    async def look(self, bundle_id: str, *, prefix: str | None = None, only: Sequence[str] | None = None) -> Incoming:
        """What a bundle in quarantine would bring; with a prefix, under which names (those of `only`, if given).

        Raises:
            NotFound: none has that id; Invalid: it was changed.
        """
        held = await asyncio.to_thread(self._quarantine.get, bundle_id)
        return await self._incoming(held, prefix=prefix, only=only)

    async def allow(
        self,
        ctx: Context,
        bundle_id: str,
        *,
        names: Sequence[str] | None = None,
        prefix: str | None = None,
        commit: Commit | None = None,
    ) -> Incoming:
        """Place a bundle's compositions, or those of `names`, in the library, all at once, with a note of their origin.

        A call that a crash cut short is completed by repeating it. Once everything is placed the bundle leaves
        its quarantine.

        Raises:
            NotFound: no such bundle, or no such name in it; Conflict: a name is taken and there is no prefix.
        """
        root = self._library.decisions_root
        if root is None:
            raise Invalid("the library has no layer that can be written", hint="start the server with a data folder")
        library = root.parent
        async with self._locked():
            await self._library.refresh()
            incoming = await self.look(bundle_id, prefix=prefix, only=names)
            chosen = _chosen(incoming, names)
            if taken := [each for each in chosen if each.standing == "differs"]:
                shown = ", ".join(repr(each.composition.name) for each in taken[:8])
                raise Conflict(
                    f"the library has other compositions named {shown}",
                    hint="give a prefix for these names, or allow only some of the bundle's names",
                )
            new = [each for each in chosen if each.standing == "new"]
            if new:
                await asyncio.to_thread(self._place, ctx, library, incoming, new)
                await self._library.refresh()
            placed = tuple(each.composition.name for each in new)
            await self._record(ctx, incoming, chosen, placed, commit)
            done = {each.item.entry.name for each in chosen}
            waiting = (each for each in incoming.reviewed if each.standing != "identical")
            left = [each for each in waiting if each.item.entry.name not in done]
            if not left:
                await asyncio.to_thread(self._quarantine.discard, bundle_id)
        return replace(incoming, state="quarantined" if left else "imported", placed=placed, new_runs=0, new_versions=0)

    async def discard(self, bundle_id: str) -> None:
        """Throw a bundle in quarantine away.

        Raises:
            NotFound: none has that id.
        """
        async with self._locked():
            await asyncio.to_thread(self._quarantine.discard, bundle_id)

    # -------------------------------------------------------------------------------------- private

    def _opened(
        self, ctx: Context, source: Path | bytes, format: Format | None, step: Step | None
    ) -> tuple[Bundle, dict[str, Any]]:
        if isinstance(source, bytes):
            return from_bytes(source), {}
        if source.is_file() and not source.is_symlink() and not source.name.endswith(_YAML_ENDINGS):
            return from_bytes(quarantine.read_bounded(source, MAX_BUNDLE_BYTES, what="the file")), {}
        harvest = read_source(source, format=format, step=step)
        if not harvest.imported:
            raise Invalid(f"nothing in {shorten(source.name)!r} could be read as a composition{_why(harvest)}")
        members: list[tuple[Role, Composition, str]] = [
            ("composition", parse_composition(each.document, what=each.path), each.text) for each in harvest.imported
        ]
        bundle = make_bundle(
            stamp=Stamp(at=self._now(), by=str(ctx.actor), source=harvest.source),
            names=tuple(composition.name for _, composition, _ in members),
            members=members,
        )
        notes = {
            "files": [each.as_document() for each in harvest.imported],
            "unread": [each.as_document() for each in harvest.unread],
            "skipped": list(harvest.skipped),
        }
        return bundle, notes

    async def _incoming(self, held: Held, *, prefix: str | None, only: Sequence[str] | None = None) -> Incoming:
        bundle = held.bundle
        trusted = await asyncio.to_thread(trusted_keys, self.home / TRUSTED_FOLDER) if bundle.signature else {}
        signed = check_signature(bundle.entries[MANIFEST], bundle.signature, trusted)
        await self._library.fresh()

        def look(tx: Tx) -> tuple[list[Reviewed], int, int, list[str]]:
            found: dict[str, Indexed | None] = {}

            def named(name: str) -> Indexed | None:
                if name not in found:
                    found[name] = store.find(tx, name)
                return found[name]

            ids = json.dumps([run.run_id for run in bundle.runs])
            known = {row["run_id"] for row in tx.all("compositions.known_run_ids", {"ids": ids})}
            warnings = [text for name, hash in bundle.requires if (text := _unmet(named(name), name, hash))]
            new_runs = sum(run.run_id not in known for run in bundle.runs)
            ancestors = [f"{item.entry.name}@{item.entry.hash}" for item in bundle.ancestors()]
            new_versions = sum(store.find(tx, each) is None for each in ancestors)
            return review(bundle, named, prefix=prefix, only=only), new_runs, new_versions, warnings

        reviewed, new_runs, new_versions, warnings = await self._journal.read(look)
        return Incoming(
            bundle=bundle,
            state="quarantined",
            reviewed=tuple(reviewed),
            notes=held.notes,
            signed=signed,
            new_runs=new_runs,
            new_versions=new_versions,
            warnings=tuple(warnings),
        )

    async def _record(
        self, ctx: Context, incoming: Incoming, chosen: list[Reviewed], placed: tuple[str, ...], commit: Commit | None
    ) -> None:
        """Ancestors by hash, claimed runs, and the event: in one transaction, once."""
        bundle = incoming.bundle
        names = {each.item.entry.name: each.composition.name for each in chosen}
        runs = [run for run in bundle.runs if run.name in names]
        origin = f"{BUNDLE_ORIGIN}{bundle.id}"

        def write(tx: Tx) -> None:
            for item in bundle.ancestors():
                made = item.composition
                store.remember(tx, hash=made.hash, name=made.name, document=made.document)
            for run in runs:
                tx.run("compositions.claim_run", {**_row(run), "name": names[run.name], "origin": origin})
            if placed or tx.one("compositions.was_imported", {"bundle": bundle.id}) is None:
                data = {
                    "bundle": bundle.id,
                    "digest": bundle.digest,
                    "names": sorted(names.values()),
                    "runs": len(runs),
                    "source": bundle.stamp.source,
                    "made_by": bundle.stamp.by,
                    "made_at": bundle.stamp.at,
                    "signed": incoming.signed,
                }
                self._journal.record(tx, "composition:imported", data, ctx)

        run: Callable[[Work[None]], Awaitable[None]] = commit or self._journal.commit
        await run(write)

    def _place(self, ctx: Context, library: Path, incoming: Incoming, new: list[Reviewed]) -> None:
        """Blocking."""
        contents = {
            f"{FOLDERS[each.composition.type]}/{each.composition.name}.yaml": text_for(
                each, self._origin(ctx, incoming, each)
            )
            for each in new
        }
        quarantine.place(library, incoming.bundle.id, contents)

    def _origin(self, ctx: Context, incoming: Incoming, each: Reviewed) -> dict[str, Any]:
        """What stands under `lineage.imported_from` of a file."""
        bundle, entry = incoming.bundle, each.item.entry
        found = {
            "bundle": bundle.id,
            "name": entry.name if each.composition.name != entry.name else None,
            "hash": entry.hash,
            "source": bundle.stamp.source,
            "made_by": bundle.stamp.by,
            "made_at": bundle.stamp.at,
            "signed": incoming.signed,
            "imported_at": self._now(),
            "imported_by": str(ctx.actor),
        }
        return {key: value for key, value in found.items() if value is not None}

    def _now(self) -> str:
        now = datetime.fromtimestamp(self._journal.clock.now_ms() / 1000, UTC)
        return now.isoformat(timespec="seconds").replace("+00:00", "Z")

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        lock = await asyncio.to_thread(self._quarantine.lock)
        try:
            yield
        finally:
            lock.release()


def _chosen(incoming: Incoming, names: Sequence[str] | None) -> list[Reviewed]:
    if names is None:
        return list(incoming.reviewed)
    there = {each.item.entry.name for each in incoming.reviewed}
    if not names or (unknown := sorted(set(names) - there)):
        missing = f"no {shorten(unknown[0])!r}" if names else "nothing without a name"
        raise NotFound(f"the bundle holds {missing}", hint=f"it holds {', '.join(sorted(there)[:12])}")
    return [each for each in incoming.reviewed if each.item.entry.name in names]


def _unmet(there: Indexed | None, name: str, hash: str) -> str | None:
    if there is None:
        return f"it needs {name!r}, which is not in the library"
    if there.composition.hash != hash:
        return f"it was made with another version of {name!r} ({hash[:12]}, here {there.composition.hash[:12]})"
    return None


def _row(run: RunRow) -> dict[str, Any]:
    values = {name: getattr(run, name) for name in RunRow.__dataclass_fields__}
    values["success"] = None if run.success is None else int(run.success)
    values["metrics"] = None if run.metrics is None else json.dumps(run.metrics)
    return values


def _why(harvest: Harvest) -> str:
    shown = [f"{each.path}: {each.reason}" for each in harvest.unread[:MAX_UNREAD_SHOWN]]
    return f": {'; '.join(shown)}" if shown else ""
